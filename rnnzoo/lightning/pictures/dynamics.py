"""How the dynamics of each cell change while it learns: what they keep, for how long, and whether they are chaotic.

Shapes: T time steps, B batch, I input size, S numbers of all states together.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from rnnzoo import Recurrent
from rnnzoo.explain import probe
from rnnzoo.lightning.carried_state import CarriedState
from rnnzoo.lightning.pictures.activity import Observed, cells_of
from rnnzoo.lightning.pictures.picture import Picture, Seen, fading, panels

LARGEST = 512
"""Numbers of all states together beyond which a cell is left out: its Jacobians would take longer than an epoch."""

POINTS = 4
"""Steps whose eigenvalues are drawn."""

ROWS = 8
"""Of a batch, whose loss is followed back through the plain loop."""


class Dynamics(Picture):
    """Gradients of the loss by time, reach by lag, the largest Lyapunov exponent, memory length, eigenvalues.

    The loss is what the module's `score(batch)` returns first, as a `SequenceModule`'s does.
    """

    name = "dynamics"

    def measure(self, seen: Seen) -> dict[str, float]:
        found = {name: found for name, cell in seen.cells.items() if (found := _of(cell))}
        for name, norms in _gradients(seen).items():
            if name in found:
                found[name]["gradients"] = norms
        self.history[seen.epoch] = found
        return {
            f"{name}/{key}": value
            for name, numbers in found.items()
            for key, value in numbers.items()
            if not isinstance(value, list) and math.isfinite(value)
        }

    def draw(self, png: Path) -> Figure | None:
        cells = self.history[max(self.history)]
        if not cells:
            return None
        figure, rows = panels(len(cells), 3, 4.6, 3.6)
        for (*curves, plane), (name, latest) in zip(rows, cells.items()):
            for axes, key, along, what in (
                (curves[0], "gradients", "time step t", "‖ ∂ loss / ∂ state(t) ‖"),
                (curves[1], "reach", "lag k in time steps", "‖ ∂ state(T) / ∂ state(T − k) ‖"),
            ):
                for epoch, look in fading(self.history):
                    numbers = self.history[epoch].get(name, {}).get(key, [])
                    axes.plot(range(1, len(numbers) + 1), [n if n > 0 else math.nan for n in numbers], **look)
                axes.set(yscale="log", xlabel=along, title=f"{name}: {what}")
                axes.yaxis.set_minor_locator(NullLocator())
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
                axes.legend(frameon=False)
            turn = torch.linspace(0, 2 * math.pi, 100)
            plane.plot(turn.cos(), turn.sin(), color="0.7", linewidth=0.8)
            plane.plot(latest["real"], latest["imaginary"], ".", color="C3", markersize=3)
            plane.set_aspect("equal", "datalim")
            plane.set_title(f"{name}: eigenvalues of the step's Jacobian")
        return figure


def _gradients(seen: Seen) -> dict[str, list[float]]:
    """‖∂L/∂s_t‖ of every cell by its name, on a few rows; nothing for a module that has no `score`."""
    if seen.batch is None or not hasattr(seen.module, "score"):
        return {}
    batch = apply_to_collection(seen.batch, Tensor, lambda rows: rows[:ROWS])

    def loss() -> Tensor:
        if isinstance(seen.module, CarriedState):
            seen.module.carry(None)
        value: Tensor = seen.module.score(batch)[0]
        return value

    found: dict[str, list[float]] = {}
    for name, layer in seen.module.named_modules():
        if isinstance(layer, Recurrent):
            norms = probe.gradients(layer, loss)
            found |= {cell: of_cell.tolist() for cell, of_cell in zip(cells_of(name, layer), norms)}
    return found


def _of(observed: Observed) -> dict[str, Any]:
    """A cell's numbers; nothing where its states are too many."""
    if sum(math.prod(shape) for shape in observed.cell.state_shapes()) > LARGEST:
        return {}
    found = probe.examine(observed.cell, observed.inputs, POINTS)
    assert found.along is not None
    values = found.along.spectrum.eigenvalues.flatten()
    return {
        **found.numbers,
        "reach": found.along.reach.tolist(),
        "real": values.real.tolist(),
        "imaginary": values.imag.tolist(),
        "time_constants": found.along.time_constants.tolist(),
    }
