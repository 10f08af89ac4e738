"""What the cells of a layer do on a few sequences, step by step: their states and the gates in their `step`.

Shapes: T time steps, B batch, I input size, F output size, H hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnzoo import Recurrent
from rnnzoo.cell import Cell
from rnnzoo.recording import noting

STEPS = 64
"""At most so many time steps of a sequence are looked at."""


class Observed(NamedTuple):
    """A cell's run over sequences.

    Args:
        output: of the last step, [B, F].
        states: given to each step but the first, those that depend on the input (a clock does not), [B, ...] each.
        gates: of each step, [T, B, H] each, by their names in `step`.
        cell: itself, as it is when not training.
        inputs: what it has read, [T, B, I].
    """

    output: Tensor
    states: list[list[Tensor]]
    gates: dict[str, Tensor]
    cell: Cell
    inputs: Tensor


def cells_of(name: str, layer: Recurrent) -> list[str]:
    """What the cells of a layer of that name are called, in their order."""
    places = (divmod(index, 1 + layer.bidirectional) for index in range(len(layer.cells)))
    return [f"{name}_{level + 1}{'_backward' * backward}" for level, backward in places]


def observe(layer: Recurrent, x: Tensor, names: Sequence[str] = ()) -> list[Observed]:
    """Run the layer, as it is when not training, over x [T, B, I] step by step; what each of its cells did.

    `names` are the variables of `step` to note as gates. The outputs can be differentiated with respect to the states.
    """
    with torch.inference_mode(False), torch.enable_grad():
        probe = copy.deepcopy(layer).eval().requires_grad_(False)
        probe.engine, probe.checkpoint_every = "reference", 0
        cells: list[Any] = list(probe.cells)
        given: list[list[tuple[Tensor, ...]]] = [[] for _ in cells]
        final: dict[int, tuple[Tensor, ...]] = {}
        handles: list[Any] = []
        for index, cell in enumerate(cells):
            handles.append(cell.register_forward_pre_hook(partial(_copied, given[index])))
            handles.append(cell.register_forward_hook(lambda cell, _, new, index=index: final.update({index: new})))
        # with the weights fixed, what needs a gradient is what depends on the input
        x = x.to(next((p.dtype for p in layer.parameters()), x.dtype)).clone().requires_grad_()
        with noting(cells, tuple(names)) as values:
            probe(x)
        for handle in handles:
            handle.remove()
        return [
            Observed(
                cell.readout(given[index][-1][0], *final[index]),
                [[state for state in states if state.requires_grad] for _, *states in given[index][1:]],
                {name: torch.stack(steps).detach() for name, steps in values[index].items()},
                cell,
                torch.stack([x for x, *_ in given[index]]).detach(),
            )
            for index, cell in enumerate(cells)
        ]


def _copied(noted: list[tuple[Tensor, ...]], cell: Cell, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a step is given, its states copied: an LSTM's h was made from its c, and that way is not the state's own."""
    noted.append((given[0], *(state.clone() for state in given[1:])))
    return noted[-1]
