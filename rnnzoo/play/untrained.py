"""A cell as it is before any training, with an input to draw."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from rnnzoo import registry
from rnnzoo.cell import Cell
from rnnzoo.play.machine import Machine
from rnnzoo.play.views import Series
from rnnzoo.recurrent import Recurrent

UNITS = 16
"""Of the cell, unless another number is said; its input is one number a step."""


class Untrained(nn.Module):
    """One layer with the weights that it starts with, the same each time."""

    def __init__(self, kind: type[Cell], units: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = Recurrent(kind, 1, units)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


def machine(target: str, units: int = UNITS, rows: int = 48) -> Machine:
    """A registered cell, or FILE.py:Class, reading two waves. Raises `UserError` for what is no cell."""
    kind = registry.find(target)
    wave = [[math.sin(t * math.pi / 6) if t < rows // 2 else 0.0] for t in range(rows)]
    module = Untrained(kind, units).eval()
    return Machine(f"{registry.entry_of(kind).name}, untrained, {units} units", module, Series(["x"], wave, None))
