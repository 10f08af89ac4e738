"""Gates as time constants: how long a gate keeps something, what sets it, and what learning makes of it.

Shapes: T time steps, B sequences, H units.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import torch
from markupsafe import Markup
from torch import Tensor

from rnnzoo.cell import Cell
from rnnzoo.explain import chart, probe
from rnnzoo.explain.essays import vanishing
from rnnzoo.explain.essays.page import Essay, Found, curves
from rnnzoo.recurrent import Recurrent

KEPT = (0.5, 0.9, 0.98)
"""Constant gates whose memory is shown."""

BIASES = (-1.0, 0.0, 1.0, 2.0, 3.0, 5.0)
UNITS, LONGEST = 64, 200
"""Of the LSTM whose time constants are spread by the chrono initialisation."""

TAU, SPAN, SAMPLES = 8.0, 60.0, 24
"""A leak of this time constant, looked at so many times within this span."""


def time_constant(gate: float) -> float:
    """After how many steps 1/e is left of what a constant gate keeps.

    >>> round(time_constant(math.exp(-1 / 7)), 6)
    7.0
    """
    return -1 / math.log(gate)


def sigmoid(bias: float) -> float:
    return 1 / (1 + math.exp(-bias))


def of_bias(bias: float) -> Cell:
    """An LSTM cell without any weights but a forget bias, so that its gate is the bias's sigmoid whatever it reads."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        layer = Recurrent("lstm", 2, 4, engine="reference").double()
        for weight in layer.parameters():
            weight.zero_()
        cell = layer._cell(0)
        cell.get_parameter("b_f").fill_(bias)
    return cell


def memory_constants(cell: Cell, x: Tensor) -> list[float]:
    """Time constants of the memories of an LSTM along x [T, B, I], shortest first."""
    return sorted(probe.time_constants(cell, x)[cell.hidden_size :].tolist())


class Samples(NamedTuple):
    """A leaky unit that follows a signal, seen at irregular times.

    `exact` is the unit in continuous time; `fixed` has one gate for all steps, `aware` one made of the time that has
    passed. Each is what it is at `times`.
    """

    times: list[float]
    exact: list[float]
    fixed: list[float]
    aware: list[float]

    def miss(self, kind: str) -> float:
        """The largest difference to the exact unit."""
        return max(abs(a - b) for a, b in zip(getattr(self, kind), self.exact))


def sample() -> Samples:
    """The signal jumps where it is looked at, and nowhere else, so that nothing of it is missed."""
    generator = torch.Generator().manual_seed(0)
    times = (SPAN * torch.rand(SAMPLES, generator=generator, dtype=torch.float64)).sort().values
    signal = torch.randint(2, (SAMPLES,), generator=generator).double()
    gaps = times.diff(prepend=times.new_zeros(1))
    fixed_gate = math.exp(-float(gaps.mean()) / TAU)
    exact, fixed, aware = [0.0], [0.0], [0.0]
    for gap, u in zip(gaps[1:].tolist(), signal[:-1].tolist()):
        # the leak's differential equation τ h' = u - h, solved in a thousand small steps of the midpoint rule
        h, dt = exact[-1], gap / 1000
        for _ in range(1000):
            middle = h + dt / 2 * (u - h) / TAU
            h += dt * (u - middle) / TAU
        exact.append(h)
        fixed.append(fixed_gate * fixed[-1] + (1 - fixed_gate) * u)
        gate = math.exp(-gap / TAU)
        aware.append(gate * aware[-1] + (1 - gate) * u)
    return Samples(times.tolist(), exact, fixed, aware)


@cache
def found() -> dict[str, Any]:
    x = torch.randn(32, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        spread = {
            name: Recurrent("lstm", 2, UNITS, chrono=longest, engine="reference").double()._cell(0)
            for name, longest in (("default", 0), ("chrono", LONGEST))
        }
    runs: dict[str, vanishing.Run] = vanishing.found()["runs"]
    task = vanishing.examples(4, torch.Generator().manual_seed(2))
    learned = {
        f"{name}_{when}": memory_constants(getattr(runs[name], when).layer._cell(0), task)
        for name in ("lstm", "chrono")
        for when in ("before", "after")
    }
    return {
        "kept": {gate: time_constant(gate) for gate in KEPT},
        "biases": [
            (
                bias,
                sigmoid(bias),
                1 / math.log1p(math.exp(-bias)),
                memory_constants(of_bias(bias), x)[0],
            )
            for bias in BIASES
        ],
        "spread": {name: memory_constants(cell, x) for name, cell in spread.items()},
        "longest": LONGEST,
        "units": UNITS,
        "learned": learned,
        "long": {name: sum(constant > vanishing.T / 2 for constant in values) for name, values in learned.items()},
        "factors": {when: vanishing.factor(runs["lstm"].found[when]) for when in ("before", "after")},
        "loss": runs["lstm"].loss,
        "chrono_loss": runs["chrono"].loss,
        "steps": vanishing.T,
        "of_units": vanishing.H,
        "samples": sample(),
        "tau": TAU,
        "exp": math.exp,
    }


def pictures(say: Any, found: Found) -> Found:
    samples: Samples = found["samples"]
    drawn = [1 + (LONGEST - 2) * (k + 0.5) / UNITS for k in range(UNITS)]
    memory = {f"f = {gate:g}": [gate**k for k in range(60)] for gate in KEPT}
    return {
        "memory_chart": curves(memory, say.label_lag(), say.gates_left(), say.gates_memory_chart()),
        "spread_chart": curves(
            {
                say.gates_default(): found["spread"]["default"],
                say.gates_chrono(): found["spread"]["chrono"],
                say.gates_uniform(): [time_constant(sigmoid(math.log(steps))) for steps in drawn],
            },
            say.gates_rank(),
            say.gates_constant(),
            say.gates_spread_chart(),
            log=True,
            starts=(1, 1, 1),
        ),
        "learned_chart": curves(
            {getattr(say, f"gates_{name}")(): values for name, values in found["learned"].items()},
            say.gates_rank(),
            say.gates_constant(),
            say.gates_learned_chart(),
            log=True,
            starts=(1, 1, 1, 1),
        ),
        "samples_chart": Markup(
            chart.lines(
                {
                    getattr(say, f"gates_{kind}")(): list(zip(samples.times, getattr(samples, kind)))
                    for kind in ("exact", "fixed", "aware")
                },
                say.gates_when(),
                "h",
                say.gates_samples_chart(),
                dots=True,
            )
        ),
    }


ESSAY = Essay("gates", "essay_gates.html", found, pictures)
