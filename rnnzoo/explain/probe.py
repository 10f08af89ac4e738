"""Instruments for a layer at work: what it remembers, how its units and gates behave, what its states tell.

Every function takes a `Recurrent`, one of its cells, or plain states, and data of any kind. Of the dynamics of a cell
see `rnnzoo.explain.dynamics`.

Shapes: T time steps, B sequences, I input size, S numbers of all states together, N points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rnnzoo.cell import Cell
from rnnzoo.errors import UserError
from rnnzoo.explain.dynamics import jacobians, trajectory
from rnnzoo.explain.equations import gates
from rnnzoo.recurrent import Recurrent

FORGOTTEN = 0.01
"""A gradient that has fallen to this share of its first value counts as gone."""


def inputs_of(layer: Recurrent, x: Tensor) -> list[Tensor]:
    """What each of the layer's cells reads when the layer reads x [T, B, I]: the outputs of the layer below.

    Raises `UserError` for a bidirectional layer, whose cells do not read in one direction.
    """
    if layer.bidirectional:
        raise UserError("a bidirectional layer has no single direction of time; look at its cells one by one")
    found: list[list[Tensor]] = [[] for _ in layer.cells]
    with _in_the_open(layer, lambda index: lambda _, given: found[index].append(given[0])):
        layer(x)
    return [torch.stack(steps) for steps in found]


def gradients(layer: Recurrent, run: Callable[[], Tensor]) -> list[Tensor]:
    """‖∂L/∂s_t‖ for the states s_t between the steps of a layer, for every cell: [T - 1] each, t = 1 first.

    Root mean squares over the sequences. A state's way through its later self counts, its way beside it does not, as
    from an LSTM's c to its h. For the backward direction of a bidirectional layer, time runs as the cell reads.

    Args:
        layer: what is looked at.
        run: runs the layer once, as by `lambda: layer(x)[0].square().mean()`, and returns the loss L.
    """
    given: list[list[tuple[Tensor, ...]]] = [[] for _ in layer.cells]

    def copied(index: int) -> Callable[[Any, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def hook(cell: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            given[index].append(tuple(_copy(state) for state in arguments[1:]))
            return (arguments[0], *given[index][-1])

        return hook

    with _in_the_open(layer, copied), torch.enable_grad():
        value = run()
    flat = [state for steps in given for states in steps for state in states if state.is_floating_point()]
    found = iter(torch.autograd.grad(value, flat, allow_unused=True))
    norms = []
    for steps in given:
        squares = [sum(float(g.square().sum()) for _ in states if (g := next(found)) is not None) for states in steps]
        norms.append(torch.tensor(squares[1:]).div(len(steps[0][0])).sqrt())
    return norms


def _copy(state: Tensor) -> Tensor:
    return state.clone() if state.requires_grad else state.clone().requires_grad_()


@contextmanager
def _in_the_open(layer: Recurrent, hook: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
    """The layer in the plain loop, each of its cells with a hook before every step."""
    handles = [cell.register_forward_pre_hook(hook(index)) for index, cell in enumerate(layer.cells)]
    engine, every = layer.engine, layer.checkpoint_every
    try:
        layer.engine, layer.checkpoint_every = "reference", 0
        yield
    finally:
        layer.engine, layer.checkpoint_every = engine, every
        for handle in handles:
            handle.remove()


def reach(cell: Cell, x: Tensor, lags: int) -> Tensor:
    """‖∂s_T/∂s_(T-k)‖₂ for k = 1 ... lags along x [T, B, I], the mean over the sequences: [lags].

    Raises `UserError` for fewer time steps than lags.
    """
    if lags > len(x):
        raise UserError(f"lags={lags}: more than the {len(x)} time steps")
    visited = trajectory(cell, x)
    product = torch.eye(visited.shape[-1], dtype=visited.dtype).expand(x.shape[1], -1, -1)
    norms = []
    for t in range(len(x) - 1, len(x) - 1 - lags, -1):
        product = product @ jacobians(cell, visited[t], x[t])
        norms.append(torch.linalg.matrix_norm(product, 2).mean())
    return torch.stack(norms)


def memory_length(norms: Tensor) -> float:
    """The lag at which norms by lag [lags] have fallen to 1 % of the first, between two lags by their logarithms.

    Infinity where they have not.
    """
    low = math.log(FORGOTTEN) + math.log(max(float(norms[0]), torch.finfo(norms.dtype).tiny))
    logs = norms.clamp(min=torch.finfo(norms.dtype).tiny).log().tolist()
    for lag in range(1, len(logs)):
        if logs[lag] <= low:
            return lag + (logs[lag - 1] - low) / (logs[lag - 1] - logs[lag])
    return math.inf


def time_constants(cell: Cell, x: Tensor) -> Tensor:
    """How many steps each number of the state keeps 1/e of itself by itself, along x [T, B, I]: [S].

    -1 / ln m for the mean modulus m of ∂s'_i/∂s_i; infinity where m is 1 or more.
    """
    visited = trajectory(cell, x)[:-1].flatten(0, 1)
    own = jacobians(cell, visited, x.flatten(0, 1)).diagonal(dim1=1, dim2=2).abs().mean(0)
    return torch.where(own < 1, -1 / own.log(), math.inf)


@dataclass(frozen=True)
class Gate:
    """How a gate is used: shares of its values below 0.1, above 0.9, and the mean."""

    closed: float
    open: float
    mean: float

    @classmethod
    def of(cls, values: Tensor) -> Gate:
        return cls(*(float(share.float().mean()) for share in (values < 0.1, values > 0.9, values)))


def gate_use(layer: Recurrent, x: Tensor) -> list[dict[str, Gate]]:
    """For each of the layer's cells its sigmoid gates, by their names in `step`, along x [T, B, I]."""
    names = [name for name, function in gates(layer._cell(0)).items() if "sigmoid" in function]
    with torch.no_grad():
        recorded = layer.record(x)
    return [{name: Gate.of(values[name]) for name in names} for values in recorded]


def dead(states: Tensor, below: float = 1e-4) -> list[int]:
    """The units of states [T, B, S] that hardly move: their standard deviation is below `below` of the largest."""
    spread = states.flatten(0, 1).std(0)
    return (spread <= below * spread.max()).nonzero()[:, 0].tolist()


def participation_ratio(states: Tensor) -> float:
    """(Σ λ)² / Σ λ² for the eigenvalues λ of the covariance of states [..., S]: in how many directions they spread."""
    centred = states.flatten(0, -2) - states.flatten(0, -2).mean(0)
    squares = torch.linalg.svdvals(centred).square()
    return float(squares.sum().square() / squares.square().sum())


def principal_axes(states: Tensor, count: int) -> Tensor:
    """The directions in which states [..., S] spread most, [S, count], filled up with zeros if S is less than count."""
    centred = states.flatten(0, -2) - states.flatten(0, -2).mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:count].T
    return torch.cat([axes, axes.new_zeros(len(axes), count - axes.shape[1])], 1)


def decodability(
    states: Tensor, target: Tensor, folds: int = 5, strengths: tuple[float, ...] = (1e-3, 1e-1, 1e1)
) -> Tensor:
    """How well a linear map reads a number of each sequence off the states, step by step: R² [T], cross-validated.

    Args:
        states: [T, B, S].
        target: [B], or [T, B] if it changes over time.
        folds: each sequence is predicted by maps fitted to the sequences of the other folds.
        strengths: of ridge regression relative to the states' mean square; the best of them counts.

    1: read off exactly; 0: no better than the mean. Raises `UserError` for fewer sequences than folds.
    """
    T, B, S = states.shape
    if folds > B or folds < 2:
        raise UserError(f"folds={folds}: must be at least 2 and at most the {B} sequences")
    wanted = target.expand(T, B).to(states.dtype)
    best = torch.full((T,), -math.inf, dtype=states.dtype)
    for strength in strengths:
        guess = torch.empty_like(wanted)
        for held in torch.arange(B).tensor_split(folds):
            rest = torch.ones(B, dtype=torch.bool)
            rest[held] = False
            x, y = states[:, rest], wanted[:, rest]
            middle, level = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
            x, y = x - middle, y - level
            weight = strength * x.square().sum((1, 2)) / S + torch.finfo(x.dtype).tiny
            gram = x.mT @ x + weight[:, None, None] * torch.eye(S, dtype=x.dtype)
            map_ = torch.linalg.solve(gram, x.mT @ y[..., None])
            guess[:, held] = ((states[:, held] - middle) @ map_)[..., 0] + level
        error = (guess - wanted).square().sum(1)
        best = best.maximum(1 - error / (wanted - wanted.mean(1, keepdim=True)).square().sum(1))
    return best
