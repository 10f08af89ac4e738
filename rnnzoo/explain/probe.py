"""Instruments for a layer at work: what it remembers, how its units and gates behave, what its states tell.

Every function takes a `Recurrent`, one of its cells, or plain states, and data of any kind. Of the dynamics of a cell
see `rnnzoo.explain.dynamics`.

Shapes: T time steps, B sequences, I input size, S numbers of all states together, N points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rnnzoo.cell import Cell
from rnnzoo.errors import UserError
from rnnzoo.explain.dynamics import Spectrum, jacobians, lyapunov, pack, spectrum, trajectory
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


def states_of(layers: Mapping[str, Recurrent], run: Callable[[], Any]) -> dict[str, list[Tensor]]:
    """The states after each step of each layer's cells, [T, B, S] each, while `run` runs every layer once.

    Without gradients. For the backward direction of a bidirectional layer, time runs as the cell reads.
    """
    found: dict[str, list[list[Tensor]]] = {name: [[] for _ in layer.cells] for name, layer in layers.items()}

    def noting(name: str) -> Callable[[int], Callable[..., Any]]:
        return lambda index: lambda cell, given, new: found[name][index].append(pack(new))

    with ExitStack() as stack, torch.no_grad():
        for name, layer in layers.items():
            stack.enter_context(_in_the_open(layer, noting(name), after=True))
        run()
    return {name: [torch.stack(steps) for steps in cells] for name, cells in found.items()}


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
        if not steps:  # a layer that the loss does without
            norms.append(torch.empty(0))
            continue
        squares = [sum(float(g.square().sum()) for _ in states if (g := next(found)) is not None) for states in steps]
        norms.append(torch.tensor(squares[1:]).div(len(steps[0][0])).sqrt())
    return norms


def _copy(state: Tensor) -> Tensor:
    return state.clone() if state.requires_grad else state.clone().requires_grad_()


@contextmanager
def _in_the_open(layer: Recurrent, hook: Callable[[int], Callable[..., Any]], after: bool = False) -> Iterator[None]:
    """The layer in the plain loop, each of its cells with a hook before every step, or after it."""
    handles = [
        cell.register_forward_hook(hook(index)) if after else cell.register_forward_pre_hook(hook(index))
        for index, cell in enumerate(layer.cells)
    ]
    before = {name: getattr(layer, name) for name in ("engine", "engine_used", "checkpoint_every", "_steps")}
    try:
        layer.engine, layer.checkpoint_every = "reference", 0
        yield
    finally:
        for name, value in before.items():
            setattr(layer, name, value)
        for handle in handles:
            handle.remove()


def reach(cell: Cell, x: Tensor, lags: int) -> Tensor:
    """‖∂s_T/∂s_(T-k)‖₂ for k = 1 ... lags along x [T, B, I], the mean over the sequences: [lags].

    Raises `UserError` for fewer time steps than lags.
    """
    if lags > len(x):
        raise UserError(f"lags={lags}: more than the {len(x)} time steps")
    visited = trajectory(cell, x)
    product = torch.eye(visited.shape[-1], dtype=visited.dtype, device=x.device).expand(x.shape[1], -1, -1)
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
class Along:
    """What the Jacobians of a cell's step along some data tell; see `examine`.

    Args:
        reach: see the function, for all T lags.
        exponents: the largest Lyapunov exponents, largest first.
        steps: at which time steps of the first sequence the spectrum was taken.
        spectrum: of the Jacobians there.
        time_constants: see the function.
    """

    reach: Tensor
    exponents: Tensor
    steps: Tensor
    spectrum: Spectrum
    time_constants: Tensor


@dataclass(frozen=True)
class Findings:
    """A cell at work on some data; see `examine`.

    Args:
        visited: states before each step and after the last, [T + 1, B, S].
        numbers: by name: participation_ratio, dead_units and mean_norm of the states, and from the Jacobians
            memory_length, exponent (the largest one) and near_the_unit_circle (the share of eigenvalues).
        along: what the Jacobians tell; None where these would be too large.
    """

    visited: Tensor
    numbers: dict[str, float]
    along: Along | None


def examine(cell: Cell, x: Tensor, points: int = 8, followed: int = 2, largest: int = 1024) -> Findings:
    """A cell's dynamics along x [T, B, I], all measures at once.

    Args:
        cell: in evaluation mode.
        x: what it reads.
        points: time steps whose spectrum is taken.
        followed: sequences along which Jacobians are taken.
        largest: numbers of all states together beyond which Jacobians, of their square, are left out.
    """
    visited = trajectory(cell, x)
    after = visited[1:]
    numbers = {
        "participation_ratio": participation_ratio(after),
        "dead_units": len(dead(after)),
        "mean_norm": float(after.norm(dim=-1).mean()),
    }
    if visited.shape[-1] > largest:
        return Findings(visited, numbers, None)
    x = x[:, :followed]
    some = torch.linspace(0, len(x) - 1, min(points, len(x)), device=x.device).long()
    found = spectrum(jacobians(cell, visited[some, 0], x[some, 0]))
    along = Along(reach(cell, x, len(x)), lyapunov(cell, x), some, found, time_constants(cell, x))
    numbers |= {
        "memory_length": memory_length(along.reach),
        "exponent": float(along.exponents[0]),
        "near_the_unit_circle": found.near,
    }
    return Findings(visited, numbers, along)


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
    """How well a linear map reads numbers of each sequence off the states, step by step: R² [T], cross-validated.

    Args:
        states: [T, B, S].
        target: [B], or [T, B] if it changes over time, or [T, B, K] for K numbers, for which R² is [T, K].
        folds: each sequence is predicted by maps fitted to the sequences of the other folds.
        strengths: of ridge regression relative to the states' mean square; the best of them counts.

    1: read off exactly; 0: no better than the mean; not a number where the target is the same in all sequences. Raises
    `UserError` for fewer sequences than folds.
    """
    T, B, S = states.shape
    if folds > B or folds < 2:
        raise UserError(f"folds={folds}: must be at least 2 and at most the {B} sequences")
    wanted = (target if target.dim() == 3 else target.expand(T, B)[..., None]).to(states.dtype)  # [T, B, K]
    guesses = [torch.empty_like(wanted) for _ in strengths]
    eye, tiny = torch.eye(S, dtype=states.dtype, device=states.device), torch.finfo(states.dtype).tiny
    for held in torch.arange(B).tensor_split(folds):
        rest = torch.ones(B, dtype=torch.bool)
        rest[held] = False
        x, y = states[:, rest], wanted[:, rest]
        middle, level = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
        x, y = x - middle, y - level
        gram, cross = x.mT @ x, x.mT @ y
        size = gram.diagonal(dim1=1, dim2=2).mean(1)
        for strength, guess in zip(strengths, guesses):
            weight = strength * size + tiny
            map_ = torch.linalg.solve(gram + weight[:, None, None] * eye, cross)
            guess[:, held] = (states[:, held] - middle) @ map_ + level
    spread = (wanted - wanted.mean(1, keepdim=True)).square().sum(1)  # [T, K]
    error = torch.stack([(guess - wanted).square().sum(1) for guess in guesses]).amin(0)
    found = torch.where(spread > 0, 1 - error / spread, math.nan)
    return found if target.dim() == 3 else found[:, 0]
