"""One step at a time with weights that stay as they are, as when a trained layer goes on from its own outputs.

What only the weights decide is computed once, and so is what inputs that are known beforehand decide; no gradient is
kept. The rest of a step runs operation by operation until compiling it pays back.

Shapes: B batch, I input size, A inputs known beforehand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rnnzoo import engine as engines
from rnnzoo.cell import Cell
from rnnzoo.engine import serial
from rnnzoo.engine.cpp import Kernel, Repeated
from rnnzoo.engine.hooks import hooks
from rnnzoo.engine.plan import plan
from rnnzoo.engine.trace import effective, inputs, module
from rnnzoo.errors import UserError

PAYS_BACK = 100_000
"""To compile takes as long as about so many operations one by one."""


READY = ("serial", "matrix")
"""Engines whose cells have a kernel for their step."""


class Frozen:
    """A cell's step with the weights that it has now.

    A cell whose step cannot be traced, or that has hooks, runs as it is written.

    Args:
        cell: in evaluation mode.
        engine: the layer's: with `auto` the step is compiled when that pays back, with `serial` at once.
        known: [A, I], all inputs that can occur, if they are few.
    """

    def __init__(self, cell: Cell, engine: str, known: Tensor | None = None) -> None:
        self.cell, self.known = cell, known
        self.kernel: Repeated | None = None
        try:
            made = None if hooks(cell) else plan(cell)
        except UserError:
            made = None
        if made is None:
            self.project = None
            return
        with torch.no_grad():
            self.dtype = inputs(made.recur)[0].meta["val"].dtype
            prepared = module(made.prepare)(*effective(cell).values())
            tensors = [tensor.detach().to(self.dtype).contiguous() for tensor in prepared]
            outer = sum(str(node.target).startswith("outer") for node in inputs(made.project))
            self.outer, self.shared = tensors[:outer], tensors[outer:]
            self.project, self.recur = module(made.project), module(made.recur)
            if known is not None:
                self.table = [leaf.to(self.dtype).contiguous() for leaf in self.project(known, *self.outer)]
        patience = {"serial": 0, "matrix": 0, "auto": PAYS_BACK // len(made.recur.nodes)}
        self.left = patience.get(engine, -1)

    def __call__(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """x [B, I], or the numbers [B] of known inputs, and the states before to the states after."""
        if self.project is None:
            after: tuple[Tensor, ...] = self.cell(x if self.known is None else self.known[x], *state)
            return after
        if self.left == 0:
            self._compile(state[0])
        self.left -= 1
        if self.kernel is not None and self.known is not None and len(x) == 1:
            row = int(x)
            if not 0 <= row < len(self.known):
                raise IndexError(f"input {row} is not among the {len(self.known)} known ones")
            return self.kernel([leaf.data_ptr() + row * leaf.stride(0) * leaf.itemsize for leaf in self.table], state)
        if self.known is None:
            leaves = [leaf.to(self.dtype).contiguous() for leaf in self.project(x, *self.outer)]
        else:
            leaves = [leaf.index_select(0, x) for leaf in self.table]
        if self.kernel is not None:
            return self.kernel([leaf.data_ptr() for leaf in leaves], state)
        after = self.recur(*leaves, *state, *self.shared)
        return after

    def _compile(self, state: Tensor) -> None:
        """Make the kernel, if the cell can have one here."""
        often = engines.PAYS_BACK_NATIVE
        if state.device.type == "cpu" and engines.select("auto", often, self.cell, state) in READY:
            loop = serial.program(plan(self.cell), "cpu").loop
            self.kernel = loop.repeated(self.shared, self.dtype) if isinstance(loop, Kernel) else None
