"""Why gradients vanish, measured: four networks before they learn, what they learn, and what has changed.

Shapes: T time steps, B sequences, H units, S numbers of all states together.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor, nn

from rnnzoo.explain import chart, probe
from rnnzoo.explain.essays.page import Essay, Found, curves
from rnnzoo.recurrent import Recurrent

T, H, BATCH, UPDATES, RATE = 40, 24, 32, 200, 3e-3
"""Of the task and of learning."""

LINEAR = (1.1, 1.0, 0.9, 0.5)
"""Eigenvalues of the linear networks that the page begins with."""

CONTENDERS: dict[str, Callable[[], Recurrent]] = {
    "rnn": lambda: Recurrent("rnn", 2, H, initializer="torch", engine="native"),
    "orthogonal": lambda: Recurrent("orthogonal", 2, H, engine="reference"),
    "lstm": lambda: Recurrent("lstm", 2, H, engine="native"),
    "chrono": lambda: Recurrent("lstm", 2, H, chrono=T, engine="native"),
}
"""Each by torch's own kernels where there are such, which need not be compiled."""


class Remember(nn.Module):
    """A layer and a linear output, which at the end names the value that came with a mark, at the first step."""

    def __init__(self, layer: Recurrent) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, B, 2] to the mean squared error."""
        output, _ = self.layer(x)
        return (self.head(output[-1])[:, 0] - x[0, :, 0]).square().mean()


@dataclass(frozen=True)
class Run:
    """A network before and after it has learned."""

    before: Remember
    after: Remember
    losses: list[float]
    found: dict[str, probe.Findings]
    gradients: dict[str, Tensor]

    @property
    def loss(self) -> float:
        """Of the last tenth of all updates."""
        last = self.losses[-len(self.losses) // 10 :]
        return sum(last) / len(last)


def examples(count: int, generator: torch.Generator) -> Tensor:
    """Values from N(0, 1), and a mark beside the first of them: [T, count, 2]."""
    x = torch.stack([torch.randn(T, count, generator=generator), torch.zeros(T, count)], -1)
    x[0, :, 1] = 1
    return x


def learn(make: Callable[[], Recurrent]) -> Run:
    """Adam on fresh examples; the measures on others, before and after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Remember(make())
    before = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    losses = []
    for _ in range(UPDATES):
        optimizer.zero_grad()
        loss = model(examples(BATCH, generator))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    x = examples(8, torch.Generator().manual_seed(2))
    found, gradients = {}, {}
    for name, network in (("before", before), ("after", model)):
        network.requires_grad_(False)
        found[name] = probe.examine(network.layer._cell(0), x)
        [gradients[name]] = probe.gradients(network.layer, partial(network, x))
    return Run(before, model, losses, found, gradients)


@cache
def found() -> dict[str, Any]:
    return {
        "runs": {name: learn(make) for name, make in CONTENDERS.items()},
        "steps": T,
        "units": H,
        "updates": UPDATES,
        "batch": BATCH,
        "rate": RATE,
        "factor": factor,
        "exp": math.exp,
    }


def along(findings: probe.Findings) -> probe.Along:
    """What the Jacobians tell, which are small here."""
    assert findings.along is not None
    return findings.along


def factor(findings: probe.Findings) -> float:
    """What the reach is multiplied by each step, in the mean over the second half of the lags; 0 if it ends."""
    norms = along(findings).reach
    middle, last = float(norms[len(norms) // 2]), float(norms[-1])
    return (last / middle) ** (1 / (len(norms) - 1 - len(norms) // 2)) if min(middle, last) > 0 else 0.0


def pictures(say: Any, found: Found) -> Found:
    runs: dict[str, Run] = found["runs"]
    names = {name: getattr(say, f"vanishing_{name}")() for name in runs}

    def reach(when: str) -> Markup:
        norms = {names[name]: along(run.found[when]).reach.tolist() for name, run in runs.items()}
        title = getattr(say, f"vanishing_reach_{when}")()
        return curves(norms, say.label_lag(), say.vanishing_reach_norm(), title, log=True, starts=[1] * len(norms))

    powers = {f"λ = {value:g}": [value**k for k in range(T + 1)] for value in LINEAR}
    return {
        "linear_chart": curves(powers, say.label_lag(), "|λ|ᵏ", say.vanishing_linear_chart(), log=True),
        "reach_chart": reach("before"),
        "after_chart": reach("after"),
        "eigenvalue_chart": curves(
            {
                names[name]: along(run.found["before"]).spectrum.eigenvalues.abs().mean(0).tolist()
                for name, run in runs.items()
            },
            say.vanishing_rank(),
            "|λ|",
            say.vanishing_eigenvalue_chart(),
            starts=[1] * len(runs),
        ),
        "gradient_chart": curves(
            {names[name]: run.gradients["before"].tolist() for name, run in runs.items()},
            say.label_time(),
            "‖∂E / ∂s(t)‖",
            say.vanishing_gradient_chart(),
            log=True,
            starts=[1] * len(runs),
        ),
        "loss_chart": Markup(
            chart.lines(
                {names[name]: smoothed(run.losses) for name, run in runs.items()},
                say.label_update(),
                say.label_mse(),
                say.vanishing_loss_chart(),
                log=True,
            )
        ),
    }


def smoothed(losses: list[float], over: int = 10) -> list[tuple[float, float]]:
    """Means of so many losses after one another, each at the last one's number."""
    starts = range(0, len(losses) - over + 1, over)
    return [(float(start + over), sum(losses[start : start + over]) / over) for start in starts]


ESSAY = Essay("vanishing", "essay_vanishing.html", found, pictures)
