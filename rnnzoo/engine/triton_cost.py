"""What a time step costs on a GPU, estimated: by one Triton kernel, and by graphs of kernels for some steps a call.

Nothing here was measured: the numbers are round ones for an H200 (132 processors at 1.7 GHz), and what lies between the
two ways is less than they may be wrong by. RESULTS.md works one case out by hand.
"""

from __future__ import annotations

import weakref
from collections.abc import MutableMapping, Sequence

import torch

from rnnzoo.engine.places import Unsupported
from rnnzoo.engine.plan import Plan
from rnnzoo.engine.trace import inputs, outputs
from rnnzoo.engine.triton_blocks import LEAST, Blocks, divide
from rnnzoo.engine.triton_emit import Source, write

ROWS = 64
"""A typical batch: what runs a plan must not hang on the batch that happens to come first."""

PROGRAMS, MEMORY = 132, 227 << 10
"""Programs that run at once, and bytes of shared memory of each."""

MEETING = 2.0
"""Microseconds for a program to tell through the second cache that it is done and see that all others are."""

STEP = 1.0
"""Microseconds from what others have written to the new state written: latencies of memory, element-wise work."""

KERNEL = 2.5
"""Microseconds of a small kernel that waits for the one before, in a CUDA graph."""

ADDS = 0.218e6
"""Multiply-adds a microsecond of one processor, in float32 without tensor cores."""

OWN, LIBRARY = 0.4, 0.5
"""The share of it that products of a few rows reach here, where shared memory limits them, and in a library."""

BYTES = 42e3
"""Bytes a microsecond of one processor from the second cache while all of them read."""


def whole(source: Source, blocks: Blocks, rows: int) -> tuple[float, float]:
    """Microseconds of a time step, forwards and backwards, by one Triton kernel over so many rows."""

    def step(meets: int, products: Sequence[tuple[int, int]]) -> float:
        waves = -(-(-(-rows // blocks.rows) * blocks.parts) // PROGRAMS)
        adds = sum(blocks.rows * K * N / blocks.parts for K, N in products)
        matrices = sum(4 * K * N / blocks.parts for K, N in products)
        read = sum(4 * blocks.rows * K for K, _ in products) + max(0.0, matrices - blocks.held)
        return waves * (meets * MEETING * (blocks.parts > 1) + STEP + adds / (OWN * ADDS) + read / BYTES)

    return step(source.meets[0], source.products[0]), step(source.meets[1], source.products[1])


def graphs(source: Source, rows: int) -> tuple[float, float]:
    """The same by graphs of kernels: one for each product and one for the element-wise work behind it."""

    def step(products: Sequence[tuple[int, int]]) -> float:
        adds = sum(rows * K * N for K, N in products)
        return max(2 * len(products), 1) * KERNEL + adds / (LIBRARY * ADDS * PROGRAMS)

    return step(source.products[0]), step(source.products[1])


def pays(plan: Plan) -> bool:
    """Whether one Triton kernel is estimated to take less time than graphs; False where it has no form in Triton."""
    if plan not in _pays:
        widest = max(node.meta["val"][0].numel() for node in outputs(plan.recur))
        try:
            source = write(plan, Blocks(LEAST, 1))
            single = inputs(plan.recur)[0].meta["val"].dtype == torch.float32
            blocks = divide(ROWS, widest, any(source.meets), PROGRAMS, MEMORY, "ieee")
            _pays[plan] = single and sum(whole(source, blocks, ROWS)) < sum(graphs(source, ROWS))
        except Unsupported:
            _pays[plan] = False
    return _pays[plan]


_pays: MutableMapping[Plan, bool] = weakref.WeakKeyDictionary()
