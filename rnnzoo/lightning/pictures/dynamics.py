"""How the dynamics of each cell change while it learns: what they keep, for how long, and whether they are chaotic.

Shapes: T time steps, B batch, I input size, S numbers of all states together.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from rnnzoo.explain import dynamics, probe
from rnnzoo.lightning.pictures.activity import Observed
from rnnzoo.lightning.pictures.picture import Picture, Seen, fading, panels

LARGEST = 512
"""Numbers of all states together beyond which a cell is left out: its Jacobians would take longer than an epoch."""

FOLLOWED = 2
"""Jacobians are followed along at most so many sequences."""

POINTS = 4
"""Steps whose eigenvalues are drawn."""


class Dynamics(Picture):
    """Reach by lag, the largest Lyapunov exponent, memory length, and the eigenvalues of the step's Jacobian."""

    name = "dynamics"

    def measure(self, seen: Seen) -> dict[str, float]:
        self.history[seen.epoch] = {name: found for name, cell in seen.cells.items() if (found := _of(cell))}
        wanted = ("exponent", "memory_length", "near_the_unit_circle", "participation_ratio")
        return {
            f"{name}/{key}": found[key]
            for name, found in self.history[seen.epoch].items()
            for key in wanted
            if math.isfinite(found[key])
        }

    def draw(self, png: Path) -> Figure | None:
        cells = self.history[max(self.history)]
        if not cells:
            return None
        figure, rows = panels(len(cells), 2, 4.6, 3.6)
        for (reach, plane), (name, latest) in zip(rows, cells.items()):
            for epoch, look in fading(self.history):
                curve = [norm if norm > 0 else math.nan for norm in self.history[epoch].get(name, {}).get("reach", [])]
                reach.plot(range(1, len(curve) + 1), curve, **look)
            reach.set(yscale="log", xlabel="lag k in time steps", title=f"{name}: ‖ ∂ state(T) / ∂ state(T − k) ‖")
            reach.yaxis.set_minor_locator(NullLocator())
            reach.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
            reach.legend(frameon=False)
            turn = torch.linspace(0, 2 * math.pi, 100)
            plane.plot(turn.cos(), turn.sin(), color="0.7", linewidth=0.8)
            plane.plot(latest["real"], latest["imaginary"], ".", color="C3", markersize=3)
            plane.set_aspect("equal", "datalim")
            plane.set_title(f"{name}: eigenvalues of the step's Jacobian")
        return figure


def _of(observed: Observed) -> dict[str, Any]:
    """A cell's numbers; nothing where its states are too many."""
    cell, x = observed.cell, observed.inputs[:, :FOLLOWED]
    if sum(math.prod(shape) for shape in cell.state_shapes()) > LARGEST:
        return {}
    visited = dynamics.trajectory(cell, x)
    some = torch.linspace(0, len(x) - 1, min(POINTS, len(x))).long()
    found = dynamics.spectrum(dynamics.jacobians(cell, visited[some, 0], x[some, 0]))
    reach = probe.reach(cell, x, len(x))
    values = found.eigenvalues.flatten()
    return {
        "reach": reach.tolist(),
        "real": values.real.tolist(),
        "imaginary": values.imag.tolist(),
        "exponent": float(dynamics.lyapunov(cell, x, 1)[0]),
        "memory_length": probe.memory_length(reach),
        "near_the_unit_circle": found.near,
        "participation_ratio": probe.participation_ratio(visited[1:]),
    }
