"""How gradients flow back through time: their norm by lag.

Shapes: T time steps, B batch, F output size.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from rnnzoo.lightning.pictures.activity import STEPS, Observed
from rnnzoo.lightning.pictures.picture import Picture, Seen, fading, panels


class GradientFlow(Picture):
    """How much of the last output's gradient arrives k time steps before, a curve for each epoch."""

    name = "gradient_flow"

    def measure(self, seen: Seen) -> dict[str, float]:
        norms = {cell: lag_norms(observed) for cell, observed in seen.cells.items()}
        self.history[seen.epoch] = norms
        lags = [2**k for k in range(STEPS.bit_length())]
        return {f"{cell}/lag_{k}": curve[k - 1] for cell, curve in norms.items() for k in lags if k <= len(curve)}

    def draw(self, png: Path) -> Figure | None:
        cells = self.history[max(self.history)]
        figure, rows = panels(len(cells), 1, 6, 3.2)
        for (axes,), cell in zip(rows, cells):
            for epoch, look in fading(self.history):
                # what is zero or not a number has no place on a logarithmic scale, and an axis of nothing else warns
                curve = [norm if norm > 0 else math.nan for norm in self.history[epoch].get(cell, [])]
                axes.plot(range(1, len(curve) + 1), curve, **look)
            axes.set(yscale="log", xlabel="lag k in time steps", title=f"{cell}: ‖ ∂ output(T) / ∂ state(T − k) ‖")
            # ticks in plain text: typesetting powers of ten takes longer than all the rest
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
            axes.legend(frameon=False)
        return figure


def lag_norms(observed: Observed, seed: int = 0) -> list[float]:
    """The gradient's norm by lag: of the last output, in random directions of length 1, for the states k steps before.

    T - 1 numbers, k = 1 first, each a mean over the sequences; not a number where the gradient is infinite or none.
    """
    output, states = observed.output, observed.states
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(output.shape, generator=generator).to(output)
    direction = direction / direction.norm(dim=1, keepdim=True)
    flat = [state for step in states for state in step]
    if not (flat and output.requires_grad):
        return [0.0] * len(states)
    found = iter(torch.autograd.grad(output, flat, direction, allow_unused=True))
    squares = []
    for step in states:
        of_states = [gradient.float().flatten(1).square().sum(1) for _ in step if (gradient := next(found)) is not None]
        squares.append(sum(of_states, output.new_zeros(len(output), dtype=torch.float32)))
    norms = torch.stack(squares).sqrt().mean(1).flip(0)
    return norms.where(norms.isfinite(), math.nan).tolist()
