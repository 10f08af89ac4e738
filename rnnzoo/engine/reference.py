"""The plain loop over time: the oracle that every other engine must equal.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rnnzoo.cell import Cell
from rnnzoo.engine.rehearsal import fault


def refuses(cell: Cell) -> str | None:
    """Nothing: the loop runs every cell."""
    return None


def run(
    cell: Cell, x: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run `cell` over x [T, B, I] from the given states; see `rnnzoo.engine` for the contract."""
    running = None if lengths is None else torch.arange(len(x), device=x.device)[:, None] < lengths  # [T, B]
    states = []
    # unbind, not x[t]: indexing would make the backward pass quadratic in T.
    for t, x_t in enumerate(x.unbind(0)):
        try:
            new = cell(x_t, *state)
        except Exception as error:
            found = fault(cell)
            if found is None:
                raise
            raise found from error
        if running is not None:
            new = tuple(torch.where(_beside(running[t], n), n, s) for n, s in zip(new, state))
        state = new
        states.append(state)

    if type(cell).readout is Cell.readout:
        output = torch.stack([s[0] for s in states])  # [T, B, H]
    else:
        output = cell.readout(x[..., : cell.input_size], *(torch.stack(s) for s in zip(*states)))
    if running is not None:
        output = output.masked_fill(~_beside(running, output), 0)
    return output, state


def _beside(mask: Tensor, tensor: Tensor) -> Tensor:
    """`mask` with trailing dimensions of size 1 added until it broadcasts against `tensor`."""
    return mask.reshape(*mask.shape, *[1] * (tensor.dim() - mask.dim()))
