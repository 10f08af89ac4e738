"""The instruments, on systems whose answers are known: linear cells, the logistic map, two wells, an LSTM by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rnnzoo import Cell, Recurrent, UserError, list_cells
from rnnzoo.engine.plan import own_gradients
from rnnzoo.explain import dynamics, probe

SINGLE = torch.zeros(1, 1, 1, dtype=torch.float64)


class Linear(Cell):
    """h' = A h + x, A diagonal but for one entry."""

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        a = torch.tensor([[0.95, 0.0, 0.0], [0.3, -0.5, 0.0], [0.0, 0.0, 0.2]], dtype=x.dtype)
        return h @ a.T + x


A = torch.tensor([[0.95, 0.0, 0.0], [0.3, -0.5, 0.0], [0.0, 0.0, 0.2]], dtype=torch.float64)


class Logistic(Cell):
    """The logistic map, 4 h (1 - h), whose exponent is ln 2."""

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return 4 * h * (1 - h) + 0 * x


class Wells(Cell):
    """tanh(2 h): 0 repels, two points attract, unit by unit."""

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(2 * h) + 0 * x[:, :1]


class Leak(Cell):
    """Each unit forgets at its own rate."""

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return h * torch.tensor([0.5, 0.9, 1.0], dtype=x.dtype) + x


def test_a_linear_cells_jacobians_and_exponents_are_its_matrix() -> None:
    cell, x = Linear(3, 3), torch.randn(40, 2, 3, dtype=torch.float64)
    states = dynamics.trajectory(cell, x)
    assert states.shape == (41, 2, 3)
    torch.testing.assert_close(states[1], x[0])
    torch.testing.assert_close(states[2], x[0] @ A.T + x[1])
    jacobian = dynamics.jacobians(cell, states[:-1].flatten(0, 1), x.flatten(0, 1))
    torch.testing.assert_close(jacobian, A.expand(80, 3, 3))
    found = dynamics.spectrum(jacobian)
    torch.testing.assert_close(found.eigenvalues[0].abs(), torch.tensor([0.95, 0.5, 0.2], dtype=torch.float64))
    torch.testing.assert_close(found.singular_values[0], torch.linalg.svdvals(A))
    assert found.near == pytest.approx(1 / 3)
    exponents = dynamics.lyapunov(cell, x.repeat(10, 1, 1), 3)
    torch.testing.assert_close(exponents, torch.tensor([0.95, 0.5, 0.2], dtype=torch.float64).log(), atol=1e-2, rtol=0)


class Ladder(Cell):
    """The second number doubles and feeds the first, which alone would vanish."""

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.cat([h[:, :1] / 2 + h[:, 1:], 2 * h[:, 1:]], 1) + 0 * x


def test_the_largest_exponent_is_found_where_axes_are_kept() -> None:
    x = torch.zeros(60, 1, 2, dtype=torch.float64)
    assert float(dynamics.lyapunov(Ladder(2, 2), x, 1, burn_in=20)) == pytest.approx(math.log(2), abs=1e-6)
    both = dynamics.lyapunov(Ladder(2, 2), x, 2, burn_in=20)
    assert both.tolist() == pytest.approx([math.log(2), math.log(0.5)], abs=1e-6)


def test_the_logistic_map_is_chaotic() -> None:
    """From a point that is on no short cycle, over so many steps that the mean is near its limit."""
    start, x = torch.full((1, 1, 1), 0.2345, dtype=torch.float64), SINGLE.expand(20_000, 1, 1)
    cell = Logistic(1, 1)
    visited = dynamics.trajectory(cell, x[:200], (start[0],))[:-1, :, 0]
    logs = (4 - 8 * visited).abs().log().mean()  # the derivative, by hand
    cell.initial_state = lambda x: (start[0],)  # type: ignore[method-assign]
    assert float(dynamics.lyapunov(cell, x[:200], 1)) == pytest.approx(float(logs))
    assert float(dynamics.lyapunov(cell, x[:3000], 1)) == pytest.approx(math.log(2), abs=0.02)


def test_fixed_points_of_two_wells() -> None:
    """±0.9575 and 0 are where tanh(2 h) = h; each unit is in one of them, so there are nine."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.rand(400, 2, generator=generator, dtype=torch.float64) * 3 - 1.5
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)] * 2) + 1e-3
    found = dynamics.fixed_points(Wells(1, 2), torch.cat([starts, corners]), torch.zeros(1, dtype=torch.float64))
    well = 0.9575040240772687
    assert (
        sorted(found.points.round(decimals=6).tolist())
        == sorted(
            [[a, b] for a in (-round(well, 6), 0.0, round(well, 6)) for b in (-round(well, 6), 0.0, round(well, 6))]
        )
        or len(found.points) == 9
    )
    assert sorted(found.unstable) == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert float(found.speeds.max()) < 1e-6
    for point, repels in zip(found.points, found.unstable):
        assert int((point.abs() < 1e-3).sum()) == repels
        assert all(abs(abs(v) - well) < 1e-5 or abs(v) < 1e-5 for v in point.tolist())
    slopes = found.eigenvalues[found.unstable.index(0)].abs()
    torch.testing.assert_close(slopes, torch.full((2,), 2 * (1 - well**2), dtype=torch.float64), atol=1e-6, rtol=0)


def test_a_linear_cells_fixed_point() -> None:
    x = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = dynamics.fixed_points(Linear(3, 3), torch.zeros(4, 3, dtype=torch.float64), x)
    torch.testing.assert_close(found.points, torch.linalg.solve(torch.eye(3, dtype=torch.float64) - A, x)[None])


def test_reach_and_memory_length() -> None:
    x = torch.randn(12, 2, 3, dtype=torch.float64)
    norms = probe.reach(Linear(3, 3), x, 9)
    wanted = [float(torch.linalg.matrix_norm(torch.linalg.matrix_power(A, k), 2)) for k in range(1, 10)]
    assert norms.tolist() == pytest.approx(wanted)
    halves = 0.5 ** torch.arange(1, 20, dtype=torch.float64)
    assert probe.memory_length(halves) == pytest.approx(math.log(100) / math.log(2) + 1)  # the first is lag 1
    assert probe.memory_length(torch.ones(5)) == math.inf


def test_time_constants() -> None:
    found = probe.time_constants(Leak(3, 3), torch.randn(4, 2, 3, dtype=torch.float64))
    assert found.tolist() == pytest.approx([-1 / math.log(0.5), -1 / math.log(0.9), math.inf])


def test_gradients_of_a_loss_by_time() -> None:
    """L = Σ_t h_t for h' = A h + x, two layers: ∂L/∂h_t = Σ_k (Aᵀ)^k 1, k from 0 to what is left."""
    layer = Recurrent(Linear, 3, 3, 2, engine="auto").double()
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    below, above = probe.gradients(layer, lambda: layer(x)[0].sum())
    one, wanted = torch.ones(3, dtype=torch.float64), []
    for left in range(1, 6):  # a state is seen through the steps after it only
        wanted.append(float(sum(torch.linalg.matrix_power(A.T, k) @ one for k in range(1, left + 1)).norm()))
    assert above.tolist() == pytest.approx(wanted[::-1], rel=1e-5)
    assert len(below) == 5 and layer.engine == "auto"


def test_states_of_layers_at_work() -> None:
    """Of two layers that one run runs, the second from the first's final state."""
    first, second = (Recurrent(Linear, 3, 3, 2, engine="auto").double() for _ in range(2))
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    found = probe.states_of({"a": first, "b": second}, lambda: second(x, first(x)[1]))
    below, above = found["a"]
    torch.testing.assert_close(below, dynamics.trajectory(first._cell(0), x)[1:])
    torch.testing.assert_close(above, dynamics.trajectory(first._cell(1), below)[1:])
    expected = dynamics.trajectory(second._cell(0), x, (below[-1],))[1:]
    torch.testing.assert_close(found["b"][0], expected)
    assert first.engine == "auto" and first._steps == 0


def test_all_measures_at_once() -> None:
    x = torch.randn(300, 3, 3, dtype=torch.float64)
    found = probe.examine(Linear(3, 3), x, points=4)
    assert found.along is not None and found.visited.shape == (301, 3, 3)
    assert found.along.steps.tolist() == [0, 99, 199, 299]
    assert found.along.exponents.tolist() == pytest.approx([math.log(0.95), math.log(0.5), math.log(0.2)], abs=0.02)
    assert found.numbers["exponent"] == float(found.along.exponents[0])
    assert found.numbers["near_the_unit_circle"] == pytest.approx(1 / 3) and found.numbers["dead_units"] == 0
    assert found.numbers["memory_length"] == pytest.approx(math.log(0.01) / math.log(0.95), rel=0.1)
    assert found.along.time_constants.tolist() == pytest.approx([-1 / math.log(d) for d in (0.95, 0.5, 0.2)])
    small = probe.examine(Linear(3, 3), x, largest=2)
    assert small.along is None and small.numbers.keys() == {"participation_ratio", "dead_units", "mean_norm"}


class Creep(Cell):
    """h grows by 0.02 + h² / 10: nowhere is it still, and it is slowest at 0."""

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return h + 0.02 + h**2 / 10 + 0 * x


def test_a_slow_point_is_no_fixed_point() -> None:
    starts, x = torch.tensor([[-0.5], [0.4]], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert len(dynamics.fixed_points(Creep(1, 1), starts, x, steps=500).points) == 0
    found = dynamics.fixed_points(Creep(1, 1), starts, x, slow=0.1, steps=500)
    assert found.fixed == [False] and float(found.points) == pytest.approx(0, abs=0.02)
    assert float(found.speeds) == pytest.approx(0.02, rel=0.02)


def test_gates() -> None:
    layer = Recurrent("lstm", 3, 4).double()
    cell = layer._cell(0)
    with torch.no_grad():
        for weight in cell.parameters():
            weight.zero_()
        cell.b_f.fill_(5.0)
        cell.b_i.fill_(-5.0)
    [found] = probe.gate_use(layer, torch.randn(7, 2, 3, dtype=torch.float64))
    assert set(found) == {"i", "f", "o"}
    assert (found["f"].open, found["f"].closed) == (1, 0) and (found["i"].open, found["i"].closed) == (0, 1)
    assert found["o"].mean == pytest.approx(0.5) and found["o"].open == found["o"].closed == 0


def test_dead_units_and_participation() -> None:
    states = torch.randn(50, 40, 6, generator=torch.Generator().manual_seed(0))
    assert probe.participation_ratio(states) == pytest.approx(6, rel=0.05)
    states[..., 2] = 0.7
    states[..., 4] *= 1e-6
    assert probe.dead(states) == [2, 4]
    line = torch.randn(50, 40, 1) * torch.tensor([1.0, 2.0, -1.0])
    axis = probe.principal_axes(line, 2)[:, 0]
    torch.testing.assert_close(axis.abs(), torch.tensor([1.0, 2.0, 1.0]) / 6**0.5)
    assert probe.principal_axes(line[..., :1], 2).tolist() in ([[1.0, 0.0]], [[-1.0, 0.0]])
    assert probe.participation_ratio(line) == pytest.approx(1, rel=1e-4)


def test_decodability() -> None:
    """A number that the state holds from the third step on is read off from there, another one never."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(200, generator=generator, dtype=torch.float64)
    states = torch.randn(5, 200, 4, generator=generator, dtype=torch.float64)
    states[2:, :, 1] = 3 * target + states[2:, :, 0]
    found = probe.decodability(states, target)
    assert (found[:2] < 0.1).all() and (found[2:] > 0.999).all()
    assert (probe.decodability(states, torch.randn(200, generator=generator, dtype=torch.float64)) < 0.1).all()
    moving = torch.cumsum(states[..., 3], 0)
    assert float(probe.decodability(states, moving)[0]) > 0.999
    several = torch.stack([target.expand(5, 200), moving, torch.ones(5, 200, dtype=torch.float64)], -1)
    together = probe.decodability(states, several)
    torch.testing.assert_close(together[:, 0], found)
    torch.testing.assert_close(together[:, 1], probe.decodability(states, moving))
    assert together[:, 2].isnan().all()  # what is the same in all sequences cannot be told


@pytest.mark.parametrize("name", list_cells())
def test_every_cell_can_be_probed(name: str) -> None:
    """Jacobians are autograd's, by finite differences where the step is smooth enough: one random direction."""
    torch.manual_seed(0)
    layer = Recurrent(name, 5, 4, engine="reference").double().eval()
    cell, x = layer._cell(0), torch.randn(3, 2, 5, dtype=torch.float64)
    assert [tuple(given.shape) for given in probe.inputs_of(layer, x)] == [(3, 2, 5)]
    states = dynamics.trajectory(cell, x)
    jacobian = dynamics.jacobians(cell, states[2], x[2])
    size = states.shape[-1]
    assert jacobian.shape == (2, size, size)
    if own_gradients(cell):
        return  # which are meant to be something else
    direction = torch.randn(size, dtype=torch.float64)
    with torch.no_grad():
        moved = [dynamics.advance(cell, states[2] + sign * 1e-6 * direction, x[2]) for sign in (1, -1)]
    slope = (moved[0] - moved[1]) / 2e-6
    close = ((jacobian @ direction - slope).abs() <= 1e-4 * (1 + slope.abs())).double().mean()
    assert float(close) > 0.9  # a kink may lie between the two


def test_what_cannot_be_asked() -> None:
    x = torch.randn(4, 2, 3)
    with pytest.raises(UserError, match="bidirectional"):
        probe.inputs_of(Recurrent("gru", 3, 4, bidirectional=True), x)
    with pytest.raises(UserError, match="lags=5: more than the 4 time steps"):
        probe.reach(Linear(3, 3), x.double(), 5)
    with pytest.raises(UserError, match="burn_in=4"):
        dynamics.lyapunov(Linear(3, 3), x.double(), 1, burn_in=4)
    with pytest.raises(UserError, match="folds=5"):
        probe.decodability(torch.randn(3, 4, 2), torch.randn(4))
