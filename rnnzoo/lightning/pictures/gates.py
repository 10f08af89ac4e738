"""How far the gates are open: means, and the shares that are closed or open.

Shapes: T time steps, B batch, H hidden size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from rnnzoo import Recurrent, UserError
from rnnzoo.explain.equations import gates
from rnnzoo.lightning.figures import count_along
from rnnzoo.lightning.pictures.picture import Picture, Seen, panels
from rnnzoo.plain import printable


class GateActivations(Picture):
    """Every gate's mean, and how much of it is closed (below 0.1) or open (above 0.9)."""

    name = "gates"

    def measure(self, seen: Seen) -> dict[str, float]:
        self.history[seen.epoch] = {
            cell: {gate: gate_shares(values) for gate, values in observed.gates.items()}
            for cell, observed in seen.cells.items()
            if observed.gates
        }
        return {
            f"{cell}/{gate}/{what}": value
            for cell, found in self.history[seen.epoch].items()
            for gate, shares in found.items()
            for what, value in shares.items()
        }

    def draw(self, png: Path) -> Figure | None:
        cells = self.history[max(self.history)]
        if not cells:
            return None
        epochs = sorted(self.history)
        figure, rows = panels(len(cells), 2, 4.4, 3)
        for (means, shares), (cell, found) in zip(rows, cells.items()):
            for index, gate in enumerate(found):
                values = [self.history[epoch][cell][gate] for epoch in epochs]
                for axes, what, style in ((means, "mean", "-"), (shares, "open", "-"), (shares, "closed", "--")):
                    y = [value[what] for value in values]
                    axes.plot([e + 1 for e in epochs], y, style, color=f"C{index}", marker=".", label=gate)
            means.set(xlabel="epoch", ylim=(-0.02, 1.02), title=f"{cell}: mean of each gate")
            shares.set(xlabel="epoch", ylim=(-0.02, 1.02), title="share open, > 0.9 (—); closed, < 0.1 (--)")
            means.legend(frameon=False, ncols=2)
            for axes in (means, shares):
                count_along(axes)
        return figure


def sigmoid_gates(layer: Recurrent) -> list[str]:
    """The variables of the cells' `step` that are sigmoids, hard ones too; where it cannot be read none, and a line."""
    cell: Any = layer.cells[0]
    try:
        return [name for name, function in gates(cell).items() if "sigmoid" in function]
    except UserError as error:
        print(printable(f"pictures=true shows no gates: {error}"))
        return []


def gate_shares(values: Tensor) -> dict[str, float]:
    """The mean of a gate's values, and the shares of them below 0.1 and above 0.9."""
    shares = {"mean": values, "closed": values < 0.1, "open": values > 0.9}
    return {name: float(share.float().mean()) for name, share in shares.items()}
