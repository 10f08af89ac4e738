"""Plans as Triton kernels: the whole loop over time in one launch, on a GPU.

Shapes: T time steps, B batch; every tensor is [T, B, ...] but states at one time, [B, ...], and shared tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from rnnzoo.engine.emit import parameters
from rnnzoo.engine.library import module
from rnnzoo.engine.places import Unsupported
from rnnzoo.engine.plan import Plan
from rnnzoo.engine.trace import inputs, outputs
from rnnzoo.engine.triton_blocks import LEAST, STAGES, Blocks, divide
from rnnzoo.engine.triton_emit import Source, write


class TritonKernel:
    """A plan compiled by Triton, its products of numbers rounded to bfloat16 if `half`; the interface of `cpp.Kernel`.

    Raises `Unsupported` for an operation without a form in Triton, and where there is no Triton.
    """

    label, proven = "triton", False

    def __init__(self, plan: Plan, half: bool = False, blocks: Blocks | None = None) -> None:
        if find_spec("triton") is None:
            raise Unsupported("a machine without Triton")
        self._plan = replace(plan)  # a copy: who keeps the plan itself keeps what is made of it
        self._plan.__dict__["derived"] = plan.derived
        self.derived = plan.derived
        self.homes: tuple[None, ...] = (None,) * plan.derived.saved
        self.reused = (False,) * len(outputs(plan.project))
        self.given, self.results = parameters(plan, plan.derived)
        self._widest = max(math.prod(n.meta["val"].shape[1:]) for n in outputs(plan.recur))
        self._dtype = inputs(plan.recur)[0].meta["val"].dtype
        self._half, self._blocks = half and self._dtype == torch.float32, blocks
        self._ready: set[Any] = set()
        self._sources: dict[Blocks, tuple[Source, Any]] = {}
        self._meets = any(write(self._plan, Blocks(LEAST, 1)).meets)

    def forward(
        self, tensors: Sequence[Tensor], slots: Sequence[int], lengths: Tensor | None, steps: int, saving: bool
    ) -> None:
        """See `cpp.Kernel.forward`."""
        self._launch("step" if saving else "recur", tensors, tensors[0].shape[1], lengths, steps, slots)

    def backward(self, tensors: Sequence[Tensor | None], batch: int, lengths: Tensor | None, steps: int) -> None:
        """See `cpp.Kernel.backward`."""
        known = dict(zip((*self.given, *self.results), tensors))
        far = []
        for s in self._plan.states:
            like = known[f"d_{s}"]
            assert like is not None
            far.append(int(known[f"out_{s}"] is not None))
            for name in (f"out_{s}", f"end_{s}"):
                known[name] = torch.zeros_like(like) if known[name] is None else known[name]
        given = [tensor for tensor in known.values() if tensor is not None]
        self._launch("back", given, batch, lengths, steps, far)

    def _source(self, blocks: Blocks) -> tuple[Source, Any]:
        """The text for these blocks and the module made of it."""
        if blocks not in self._sources:
            source = write(self._plan, blocks)
            self._sources[blocks] = source, module(source.text, self._plan.name)
        return self._sources[blocks]

    def compiled_for(self, rows: int) -> str:
        """See `cpp.Kernel.compiled_for`."""
        return f"{rows} rows"

    def ready(self, rows: int, device: torch.device, saving: bool) -> None:
        """See `cpp.Kernel.ready`."""
        if device.type != "cuda" or rows == 0:
            return
        blocks = self._blocks or self._divide(rows, device)
        source, made = self._source(blocks)
        types = {"lengths": torch.int64, "counters": torch.int32}
        for name in ("step", "back") if saving else ("recur",):
            if (name, blocks, device) in self._ready:
                continue
            function = getattr(made, name)
            tensors = function.arg_names[: function.arg_names.index("T")]
            numbers = [2] * (len(function.arg_names) - len(tensors))
            with torch.cuda.device(device):
                some = [types.get(tensor, self._dtype) for tensor in tensors]
                function.warmup(*some, *numbers, grid=(1,), **_options(source, blocks))
            self._ready.add((name, blocks, device))

    def _launch(
        self,
        name: str,
        tensors: Sequence[Tensor],
        batch: int,
        lengths: Tensor | None,
        steps: int,
        numbers: Sequence[int],
    ) -> None:
        if batch == 0:
            return
        like = tensors[0]
        blocks = self._blocks or self._divide(batch, like.device)
        source, made = self._source(blocks)
        rows = -(-batch // blocks.rows)
        ends = torch.full((batch,), steps, device=like.device) if lengths is None else lengths
        scratch = like.new_empty(max(source.scratch, 1) * batch)
        counters = torch.zeros(32 * rows, dtype=torch.int32, device=like.device)
        given = [*tensors, ends, scratch, counters, steps, batch, *numbers]
        with torch.cuda.device(like.device) if like.is_cuda else nullcontext():
            getattr(made, name)[(blocks.parts, rows)](*given, **_options(source, blocks))

    def _divide(self, batch: int, device: torch.device) -> Blocks:
        if device.type != "cuda":  # Triton's interpreter
            return Blocks(LEAST, 1, stages=1 if self._meets else STAGES)
        fast = torch.backends.cuda.matmul.fp32_precision == "tf32" and self._dtype == torch.float32
        precision = "bf16" if self._half else "tf32" if fast else "ieee"
        return divide(batch, self._widest, self._meets, *_abilities(device), precision)


def _options(source: Source, blocks: Blocks) -> dict[str, Any]:
    # with more stages, loads would overtake stores
    options: dict[str, Any] = {"num_warps": blocks.warps, "num_stages": 1, "enable_fp_fusion": True}
    if any(source.meets) and blocks.parts > 1:
        options["launch_cooperative_grid"] = True  # all programs run at once, or none does
    return options


@cache
def _abilities(device: torch.device) -> tuple[int, int]:
    """How many programs run at once, and how many bytes each has."""
    found = torch.cuda.get_device_properties(device)
    return found.multi_processor_count, getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block)
