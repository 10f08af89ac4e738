"""One step at a time with weights that stay as they are, as when a trained layer goes on from its own outputs.

What only the weights decide is computed once, and products of one operand are one product, as in the other engines;
nothing is compiled and no gradient kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rnnzoo.cell import Cell
from rnnzoo.engine.plan import plan
from rnnzoo.engine.trace import effective, inputs, module
from rnnzoo.errors import UserError


class Frozen:
    """A cell's step with the weights that it has now.

    A cell whose step cannot be traced runs as it is written.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        try:
            made = plan(cell)
        except UserError:
            self.project = None
            return
        with torch.no_grad():
            tensors = module(made.prepare)(*effective(cell).values())
        outer = sum(str(node.target).startswith("outer") for node in inputs(made.project))
        self.outer, self.shared = tensors[:outer], tensors[outer:]
        self.project, self.recur = module(made.project), module(made.recur)

    def __call__(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """x [B, I] and the states before to the states after."""
        if self.project is None:
            return self.cell(x, *state)
        after: tuple[Tensor, ...] = self.recur(*self.project(x, *self.outer), *state, *self.shared)
        return after
