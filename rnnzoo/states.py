"""The states of a layer's cells, and the state that the layer takes and returns.

Shapes: B batch, I input size, H hidden size, L layers, D directions (1 or 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from rnnzoo.cell import Cell
from rnnzoo.errors import UserError

State: TypeAlias = "Tensor | tuple[Tensor, ...]"
"""A tensor [L·D, B, H] for cells with one state, a tuple of them for cells with several, as in torch. States whose
widths differ between layers are padded with zeros to the widest."""


def split(cells: Sequence[Cell], state: State | None, x: Tensor) -> list[tuple[Tensor, ...]]:
    """The state as one tuple for each cell, their initial states if None; x [B, I] gives batch size, device and dtype.

    Raises `UserError` for a state of another shape.
    """
    initial = [cell.initial_state(x) for cell in cells]
    if state is None:
        return initial
    tensors = (state,) if isinstance(state, Tensor) else tuple(state)
    expected = [(len(cells), *_widest(of_cells)) for of_cells in zip(*initial)]
    if [tuple(t.shape) for t in tensors] != expected:
        wanted = ", ".join(f"{name} {list(shape)}" for name, shape in zip(cells[0].state_names, expected))
        raise UserError(f"the state must be {wanted}, not {', '.join(str(list(t.shape)) for t in tensors)}")
    of_cells = zip(*(t.unbind(0) for t in tensors))
    return [tuple(_narrow(s, z.shape) for s, z in zip(*both)) for both in zip(of_cells, initial)]


def join(states: Sequence[tuple[Tensor, ...]]) -> State:
    """One tuple for each cell as the state that a layer returns; the inverse of `split`."""
    tensors = tuple(torch.stack([_pad(s, _widest(of_cells)) for s in of_cells]) for of_cells in zip(*states))
    return tensors[0] if len(tensors) == 1 else tensors


def _widest(states: Sequence[Tensor]) -> tuple[int, ...]:
    """A shape for the largest: layers may be of different sizes, and a state may be as wide as its layer's input."""
    return tuple(map(max, zip(*(s.shape for s in states))))


def _pad(state: Tensor, shape: Sequence[int]) -> Tensor:
    """The state [B, ...] with zeros after its features, up to this shape."""
    missing = [wanted - size for size, wanted in zip(state.shape[1:], shape[1:])]
    return F.pad(state, [n for size in reversed(missing) for n in (0, size)]) if any(missing) else state


def _narrow(state: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `_pad`."""
    for dim in range(1, len(shape)):
        state = state if state.shape[dim] == shape[dim] else state.narrow(dim, 0, shape[dim])
    return state
