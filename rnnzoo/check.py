"""Whether every engine computes a cell as the plain loop does: outputs, final states and every gradient.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rnnzoo.cell import Cell
from rnnzoo.engine import ENGINES
from rnnzoo.errors import UserError
from rnnzoo.recurrent import Recurrent

I, H = 5, 12  # noqa: E741  I is the input size everywhere in this project

SIZES = ((1, 1), (9, 3), (20, 17))
"""T, B: a single step, and more than one block of rows and of time steps, whole and not."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Relative to the norm of what the plain loop gives."""


@dataclass(frozen=True)
class Finding:
    """How one engine compares with the plain loop on one cell.

    `error`: the largest relative error in float64 and float32, by what it occurred in; `seconds`: the first call's,
    which compiles; `reason`: why the engine does not take the cell.
    """

    cell: str
    engine: str
    passed: bool
    error: dict[torch.dtype, tuple[float, str]]
    seconds: float
    reason: str = ""


def compare(name: str, cell: type[Cell]) -> Iterator[Finding]:
    """Compare every engine with the plain loop; engines that do not take the cell say why and pass."""
    for engine in (e for e in ENGINES if e != "reference"):
        try:
            layer = Recurrent(cell, I, H, engine=engine)
            started = time.perf_counter()
            layer(torch.randn(2, 1, I))
            seconds = time.perf_counter() - started
        except UserError as error:
            refused = ENGINES[engine].refuses(cell(I, H)) is not None
            yield Finding(name, engine, refused, {}, 0.0, str(error).partition("; use engine=")[0])
            continue
        worst = {dtype: max(_errors(cell, engine, dtype)) for dtype in TOLERANCE}
        passed = all(error < TOLERANCE[dtype] for dtype, (error, _) in worst.items())
        yield Finding(name, engine, passed, worst, seconds)


def _errors(cell: type[Cell], engine: str, dtype: torch.dtype) -> Iterator[tuple[float, str]]:
    """Relative errors of everything that a layer computes, with the name of each."""
    for T, B in SIZES:
        for ragged in (False, True):
            torch.manual_seed(T)
            layers = [Recurrent(cell, I, H, 2, bidirectional=True, engine=e).to(dtype) for e in ("reference", engine)]
            layers[1].load_state_dict(layers[0].state_dict())
            x = torch.randn(T, B, I, dtype=dtype)
            zero = layers[0]._cell(0).initial_state(x[0])
            states = [0.5 * torch.rand(4, *s.shape, dtype=dtype) for s in zero]
            lengths = torch.randint(1, T + 1, (B,)) if ragged else None
            expected, found = (everything(layer, x, states, lengths) for layer in layers)
            for key, value in expected.items():
                scale = value.norm() + torch.finfo(dtype).tiny
                error = float((found[key] - value).norm() / scale)
                yield (error if error == error else float("inf")), f"{key} at T={T}, B={B}"


def everything(layer: Recurrent, x: Tensor, states: list[Tensor], lengths: Tensor | None) -> dict[str, Tensor]:
    """Output, final states and all gradients, by name, of one random linear function of output and final states."""
    x = x.clone().requires_grad_()
    states = [s.clone().requires_grad_() for s in states]
    output, final = layer(x, states[0] if len(states) == 1 else tuple(states), lengths)
    results = (output, *(final if isinstance(final, tuple) else (final,)))
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(r.shape, generator=generator, dtype=r.dtype).to(r.device) for r in results]
    layer.zero_grad()
    torch.autograd.backward(results, weights)
    found = {f"result {k}": r.detach() for k, r in enumerate(results)}
    named = {"x": x} | {f"state {k}": s for k, s in enumerate(states)} | dict(layer.named_parameters())
    return found | {f"gradient of {k}": torch.zeros_like(t) if t.grad is None else t.grad for k, t in named.items()}
