"""Starting anew inside a sequence, as where one episode ends and the next begins.

Which steps start anew comes in beside the input's features, so that every engine can run the step as it would run any
other.

Shapes: T time steps, B batch, I input size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rnnzoo.cell import Cell, Modifier, plain_step
from rnnzoo.errors import UserError
from rnnzoo.sequences import reverse


@dataclass(frozen=True)
class Resets:
    """Sets the states back to the initial ones where the last feature of x says so, then runs the step.

    `modifier` is what the cell was changed by before, `reads` as in `rnnzoo.cell.Modifier`, and `author` the class that
    says what the initial states are.
    """

    modifier: Modifier | None
    reads: tuple[str, ...]
    author: type[Cell]

    def width(self, training: bool) -> int:
        """One feature more than without."""
        return 1 + (self.modifier.width(training) if self.modifier else 0)

    def __call__(self, cell: Cell, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One step, from x [B, I + width] and all states to the new states."""
        x, anew = x[:, :-1], x[:, -1] != 0
        state = self.begin(cell, x, state, anew)
        return self.modifier(cell, x, state) if self.modifier else plain_step(cell, x, state)

    def begin(self, cell: Cell, x: Tensor, state: tuple[Tensor, ...], anew: Tensor) -> tuple[Tensor, ...]:
        """The states, those of the sequences that start anew [B] at their initial values."""
        first: Sequence[Tensor | None]
        if self.author is Cell:  # zero, or learned, without a row of it for each sequence
            first = [cell._parameters.get(f"initial_{name}") for name in cell.state_names]
        else:
            first = self.author.initial_state(cell, x[:, : cell.input_size])
        masks = (anew.reshape(-1, *[1] * (s.dim() - 1)) for s in state)
        # chosen, not multiplied: what is left behind may be NaN
        return tuple(
            s.masked_fill(mask, 0) if f is None else torch.where(mask, f.to(s.dtype), s)
            for mask, f, s in zip(masks, first, state)
        )


def resetting(cell: Cell) -> Cell:
    """The cell with its own weights, whose steps take one feature more: not 0 where the states start anew."""
    before = cell.modifier
    learned = (f"initial_{name}" for name in cell.state_names)
    reads = (*(before.reads if before else ()), *(name for name in learned if name in cell._parameters))
    author = next(kind for kind in type(cell).__mro__ if "initial_state" in vars(kind))
    view = object.__new__(type(cell))
    vars(view).update(vars(cell) | {"modifier": Resets(before, reads, author)})
    return view


def check_resets(resets: Any, shape: Sequence[int]) -> None:
    """Raise `UserError` unless these are truth values of this shape, that of the input without its features."""
    if not isinstance(resets, Tensor) or resets.dtype != torch.bool or resets.shape != shape:
        found = f"{resets.dtype} {list(resets.shape)}" if isinstance(resets, Tensor) else repr(resets)
        raise UserError(f"resets must be a tensor of torch.bool {list(shape)}, one value a time step, not {found}")


def backwards(resets: Tensor, lengths: Tensor | None) -> Tensor:
    """Which steps start anew when sequences are read backwards: each that is followed by one that does forwards.

    [T, B] in the order of the reversed sequences.
    """
    before = torch.cat([resets[1:], torch.zeros_like(resets[:1])])
    if lengths is not None:
        before = before & (torch.arange(len(resets), device=resets.device)[:, None] < lengths - 1)
    return reverse(before, lengths)
