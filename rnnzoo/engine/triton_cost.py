"""What a time step costs on a GPU, estimated: by one Triton kernel, and by graphs of kernels for some steps a call; and
what a scan costs.

Nothing here was measured by us, and what lies between two ways is often less than these numbers may be wrong by. They
are for an H200; each says whether it was published or is an estimate. RESULTS.md works cases out by hand.
"""

from __future__ import annotations

import weakref
from collections.abc import MutableMapping, Sequence

import torch

from rnnzoo.engine.places import Unsupported
from rnnzoo.engine.plan import Plan
from rnnzoo.engine.steps import CHUNK
from rnnzoo.engine.trace import inputs, outputs
from rnnzoo.engine.triton_blocks import LANES, LEAST, STAGES, Blocks, divide
from rnnzoo.engine.triton_emit import Source, write

ROWS = 64
"""A typical batch: what runs a plan must not hang on the batch that happens to come first."""

PROGRAMS, MEMORY = 132, 227 << 10
"""Programs that run at once, and bytes of shared memory of each. Published: 132 multiprocessors (NVIDIA, H100 and H200
data sheets; 108 of an A100), 227 KiB for a block of threads (CUDA C++ Programming Guide, compute capability 9.0; 163
KiB in 8.0)."""

RESIDENT = 8
"""Programs of a multiprocessor at once where they hold nothing in shared memory: an estimate, of at most 16 that 2,048
threads allow (the same guide)."""

MEETING = 2.0
"""Microseconds for a program to tell through the second cache that it is done and see that all others are. An estimate:
three trips to that cache one after another, 0.15 µs each where nothing else is read (about 260 cycles: Luo et al. 2024,
"Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", arXiv:2402.13499, cited from memory), and as much
again for each while all programs poll. CUDA's own barrier of a whole grid takes one to two on a V100 (Zhang et al.
2020, arXiv:2004.05371, cited from memory). FlashRNN (Pöppel et al. 2024, arXiv:2412.07752) and Persistent RNNs (Diamos
et al. 2016) rest on such a barrier; their texts were not at hand."""

STEP = 1.0
"""Microseconds from what others have written to the new state written: an estimate, of latencies one after another."""

LATENCY = 0.6
"""Microseconds from a load to its number where it comes from main memory and others load, too: an estimate, twice what
an idle H100 takes (about 480 cycles: Luo et al., as above)."""

TURN = 0.1
"""Microseconds of a turn of a loop within a time step, which loads a number: an estimate."""

KERNEL = 2.5
"""Microseconds of a small kernel that waits for the one before, in a CUDA graph. An estimate: published are 1.3 on an
H100 between kernels that do nothing (Spector et al. 2025, "Look Ma, No Bubbles!", Hazy Research); the rest is work."""

LAUNCH = 5.0
"""The same without a graph, in torch's operations one after another or by Triton's own launch: an estimate. Published
are 2.1 (Hazy Research, as above, cited from memory) in C++, to which Python adds."""

ADDS = 0.254e6
"""Multiply-adds a microsecond of one processor, in float32 without tensor cores. Published: 67 TFLOPS (NVIDIA, H200
data sheet), two operations each, over 132 processors; 0.090e6 of an A100 (19.5 TFLOPS over 108)."""

OWN, LIBRARY = 0.4, 0.5
"""The share of it that products of a few rows reach: here, where shared memory limits them, and in a library.
Estimates."""

BYTES = 42e3
"""Bytes a microsecond of one processor from the second cache while all of them read: an estimate. Published are 5,120
bytes a cycle of an A100 (NVIDIA, A100 whitepaper), 67e3 for each of its processors, which nothing reaches; for Hopper
NVIDIA names no number."""

MAIN = 4.8e6
"""Bytes a microsecond from main memory. Published: 4.8 TB/s (NVIDIA, H200 data sheet); 3.35 of an H100 SXM, 2.04 of an
A100 of 80 GB (their data sheets)."""


def whole(source: Source, blocks: Blocks, rows: int) -> tuple[float, float]:
    """Microseconds of a time step, forwards and backwards, by one Triton kernel over so many rows."""
    at_once = PROGRAMS if any(source.meets) else PROGRAMS * RESIDENT
    least = STEP if any(source.meets) else LATENCY / blocks.stages

    def step(meets: int, products: Sequence[tuple[int, int]], turns: int) -> float:
        waves = -(-(-(-rows // blocks.rows) * blocks.parts) // at_once)
        adds = sum(blocks.rows * K * N / blocks.parts for K, N in products)
        matrices = sum(4 * K * N / blocks.parts for K, N in products)
        read = sum(4 * blocks.rows * K for K, _ in products) + max(0.0, matrices - blocks.held)
        time = meets * MEETING * (blocks.parts > 1) + least + turns * TURN + adds / (OWN * ADDS) + read / BYTES
        return waves * time

    forward, backward = (step(*way) for way in zip(source.meets, source.products, source.turns))
    return forward, backward


def graphs(source: Source, rows: int) -> tuple[float, float]:
    """The same by graphs of kernels: one for each product and one for the element-wise work behind it.

    Without products there is one between sums, and without these one for all time steps of a call.
    """

    def step(meets: int, products: Sequence[tuple[int, int]]) -> float:
        adds = sum(rows * K * N for K, N in products)
        return (2 * len(products) or meets or 1 / CHUNK) * KERNEL + adds / (LIBRARY * ADDS * PROGRAMS)

    forward, backward = (step(*way) for way in zip(source.meets, source.products))
    return forward, backward


def verdict(plan: Plan) -> str | None:
    """Why a plan's loop is left to graphs of kernels; None where one Triton kernel is estimated to take less time."""
    if plan not in _verdicts:
        _verdicts[plan] = _against(plan)
    return _verdicts[plan]


def _against(plan: Plan) -> str | None:
    try:
        source = write(plan, Blocks(LEAST, 1))
    except Unsupported as error:
        return f"{error} has no form in Triton"
    if inputs(plan.recur)[0].meta["val"].dtype != torch.float32:
        return "what a kernel of Triton takes is estimated for float32 only"
    widest = max(node.meta["val"][0].numel() for node in outputs(plan.recur))
    blocks = divide(ROWS, widest, any(source.meets), PROGRAMS, MEMORY, "ieee")
    one, many = sum(whole(source, blocks, ROWS)), sum(graphs(source, ROWS))
    return None if one < many else f"estimated at {many:.1f} µs a time step and back, one of Triton at {one:.1f}"


_verdicts: MutableMapping[Plan, str | None] = weakref.WeakKeyDictionary()


def walked(T: int, lanes: int, size: int, chunks: int = 1) -> float:
    """Microseconds in which a kernel solves h_t = a_t · h_{t-1} + b_t over T steps, with time in so many chunks.

    `lanes` are the numbers of the states of all rows, `size` the bytes of each.
    """

    def walk(steps: int, side_by_side: int, moved: int) -> float:
        waves = -(-(-(-lanes // LANES) * side_by_side) // (PROGRAMS * RESIDENT))
        memory = steps * side_by_side * moved * lanes * size / MAIN
        return max(LAUNCH, waves * steps * LATENCY / STAGES, memory)

    if chunks == 1:
        return walk(T, 1, 3)
    return walk(-(-T // chunks), chunks, 2) + walk(chunks, 1, 3) + walk(-(-T // chunks), chunks, 3)


def chunks(T: int, lanes: int, size: int) -> int:
    """The number of chunks with which that takes least; one, unless several halve it: they take three launches."""
    best = min((2**k for k in range(max(T // 8, 1).bit_length())), key=lambda C: walked(T, lanes, size, C))
    return best if 2 * walked(T, lanes, size, best) < walked(T, lanes, size) else 1


def operated(T: int, lanes: int, size: int) -> float:
    """Microseconds in which torch's operations do the same: see `linear_scan._chunk_length` for how many there are."""
    if T < 32 or lanes * size > 2**22:
        return T * max(LAUNCH, 4 * lanes * size / MAIN)
    calls, steps, moved = 0, T, 0.0
    while steps >= 32:
        calls, steps, moved = calls + 12, steps // 4, moved + 10.25 * steps
    return (calls + steps) * LAUNCH + moved * lanes * size / MAIN
