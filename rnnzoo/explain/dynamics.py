"""A cell as a dynamical system: Jacobians of its step, Lyapunov exponents, fixed and slow points.

All states of a cell are seen as one vector s, and its step as s' = F(s, x).

Shapes: T time steps, B sequences, N points, I input size, S numbers of all states together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnnzoo.cell import Cell
from rnnzoo.errors import UserError

NEAR = 0.1
"""An eigenvalue whose modulus is within this of 1 counts as near the unit circle."""

FIXED = 1e-3
"""A point counts as fixed up to this speed."""


def pack(states: Sequence[Tensor]) -> Tensor:
    """States [N, ...] as one vector each, [N, S]."""
    return torch.cat([state.flatten(1) for state in states], 1)


def unpack(cell: Cell, s: Tensor) -> tuple[Tensor, ...]:
    """The inverse of `pack`."""
    shapes = cell.state_shapes()
    parts = s.split([math.prod(shape) for shape in shapes], 1)
    return tuple(part.unflatten(1, shape) for part, shape in zip(parts, shapes))


def advance(cell: Cell, s: Tensor, x: Tensor) -> Tensor:
    """F: states s [N, S] and inputs x [N, I] to the next states [N, S]."""
    return pack(cell(x, *unpack(cell, s)))


def trajectory(cell: Cell, x: Tensor, state: Sequence[Tensor] | None = None) -> Tensor:
    """The states before each step of x [T, B, I] and after the last, [T + 1, B, S], from zero or from `state`."""
    with torch.no_grad():
        s = pack(cell.initial_state(x[0]) if state is None else state)
        visited = [s]
        for x_t in x:
            s = advance(cell, s, x_t)
            visited.append(s)
    return torch.stack(visited)


def jacobians(cell: Cell, s: Tensor, x: Tensor) -> Tensor:
    """∂F(s, x)/∂s at N points s [N, S] with inputs x [N, I]: [N, S, S], rows of s', columns of s."""
    size = s.shape[1]
    found = []
    with torch.enable_grad():
        for one, x_n in zip(s, x):  # one point, once for each number of s', so that one backward pass gives all rows
            copies = one.detach().expand(size, -1).clone().requires_grad_()
            after = advance(cell, copies, x_n.expand(size, -1))
            eye = torch.eye(size, dtype=after.dtype, device=after.device)
            (gradient,) = torch.autograd.grad(after, copies, eye, allow_unused=True)
            found.append(torch.zeros_like(copies) if gradient is None else gradient)
    return torch.stack(found)


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues and singular values of Jacobians.

    Args:
        eigenvalues: [N, S], complex, largest modulus first.
        singular_values: [N, S], largest first.
    """

    eigenvalues: Tensor
    singular_values: Tensor

    @property
    def near(self) -> float:
        """The share of eigenvalues near the unit circle: of directions that are neither forgotten nor blown up."""
        return float(((self.eigenvalues.abs() - 1).abs() < NEAR).float().mean())


def spectrum(jacobian: Tensor) -> Spectrum:
    """Of each of N Jacobians [N, S, S]."""
    eigenvalues = torch.linalg.eigvals(jacobian)
    order = eigenvalues.abs().argsort(1, descending=True)
    return Spectrum(eigenvalues.gather(1, order), torch.linalg.svdvals(jacobian))


def lyapunov(cell: Cell, x: Tensor, count: int = 8, burn_in: int = 0) -> Tensor:
    """The largest Lyapunov exponents along x [T, B, I], per time step, largest first: [count].

    By QR decompositions (Benettin et al. 1980; Engelken, Wolf & Abbott 2023, arXiv:2006.02427), the mean over sequences
    and over the steps after `burn_in`. Positive: nearby states drift apart, and gradients explode; negative: they meet.
    -inf where a direction is forgotten at once.

    Raises `UserError` where no step is left after `burn_in`.
    """
    if burn_in >= len(x):
        raise UserError(f"burn_in={burn_in}: must be less than the {len(x)} time steps")
    visited = trajectory(cell, x)
    size = visited.shape[-1]
    count = min(count, size)
    # drawn, for axes may be directions that the step keeps among themselves
    drawn = torch.randn(size, count, dtype=visited.dtype, generator=torch.Generator().manual_seed(0)).to(x.device)
    q = torch.linalg.qr(drawn).Q.expand(x.shape[1], -1, -1)
    total = torch.zeros(count, dtype=visited.dtype, device=x.device)
    for t, (s, x_t) in enumerate(zip(visited, x)):
        q, r = torch.linalg.qr(jacobians(cell, s, x_t) @ q)
        if t >= burn_in:
            total += r.diagonal(dim1=1, dim2=2).abs().log().mean(0)
    return total.div(len(x) - burn_in).sort(descending=True).values


@dataclass(frozen=True)
class FixedPoints:
    """Points at which a constant input leaves the state as it is, or nearly so.

    Args:
        points: [N, S], the slowest first.
        speeds: [N], ‖F(s, x) - s‖.
        eigenvalues: [N, S] of the Jacobian there, complex, largest modulus first.
    """

    points: Tensor
    speeds: Tensor
    eigenvalues: Tensor

    @property
    def fixed(self) -> list[bool]:
        """For each point whether it is one, or only slow."""
        return (self.speeds < FIXED).tolist()

    @property
    def unstable(self) -> list[int]:
        """For each point the dimension of the space in which it repels: 0 for an attractor."""
        return (self.eigenvalues.abs() > 1).sum(1).tolist()


def fixed_points(
    cell: Cell, starts: Tensor, x: Tensor, slow: float = FIXED, apart: float = 1e-2, steps: int = 2000
) -> FixedPoints:
    """Minimise ½‖F(s, x) - s‖² from the states `starts` [N, S] under the constant input x [I].

    As Sussillo & Barak 2013 (Opening the black box), by Adam, then by Newton's method where it converges.

    Args:
        cell: whose step is F.
        starts: states that were visited; each leads to one point.
        x: the input.
        slow: the speed up to which a point is kept; beyond `FIXED`, so that slow points are found too.
        apart: two points nearer to each other than this, relative to their size, are one.
        steps: of Adam at most.
    """
    s = starts.detach().clone().requires_grad_()
    inputs = x.expand(len(s), -1)
    optimizer = torch.optim.Adam([s], lr=0.02)
    for step in range(steps):
        with torch.enable_grad():
            loss = (advance(cell, s, inputs) - s).square().sum(1) / 2
        if float(loss.detach().max()) < FIXED**2 / 200:
            break
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / steps)
        optimizer.zero_grad()
        loss.sum().backward(inputs=[s])
        optimizer.step()
    found = _newton(cell, s.detach(), inputs)
    with torch.no_grad():
        speeds = (advance(cell, found, inputs) - found).norm(dim=1)
    order = [n for n in speeds.argsort().tolist() if float(speeds[n]) < slow]
    kept: list[int] = []
    for n in order:
        scale = 1 + float(found[n].norm())
        if all(float((found[n] - found[m]).norm()) > apart * scale for m in kept):
            kept.append(n)
    points = found[kept]
    eigenvalues = (
        spectrum(jacobians(cell, points, inputs[: len(kept)])).eigenvalues if kept else points.to(torch.cfloat)
    )
    return FixedPoints(points, speeds[kept], eigenvalues)


def _newton(cell: Cell, s: Tensor, x: Tensor, rounds: int = 5) -> Tensor:
    """s [N, S] nearer to where F(s, x) = s, wherever Newton's steps bring it nearer."""
    eye = torch.eye(s.shape[1], dtype=s.dtype, device=s.device)
    for _ in range(rounds):
        with torch.no_grad():
            rest = advance(cell, s, x) - s
        change = torch.linalg.lstsq(jacobians(cell, s, x) - eye, -rest[..., None]).solution[..., 0]
        with torch.no_grad():
            moved = s + change
            nearer = (advance(cell, moved, x) - moved).norm(dim=1) < rest.norm(dim=1)
        s = torch.where(nearer[:, None], moved, s)
    return s
