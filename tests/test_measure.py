"""Costs against closed forms, gradient flow against Jacobians one by one, shapes against the tensors themselves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, tanh

from rnnzoo import Cell, Diagonal, RawInput, State, get, list_cells
from rnnzoo.explain.equations import read
from rnnzoo.explain.measure import Flow, cost, gradient_flow, shapes
from rnnzoo.explain.relatives import anatomy, differences, likeness, relatives


class Fading(Cell):
    """h_t = u h_{t-1} + x_t, whose gradient over k steps is u^k."""

    rate: float = 0.5
    u = Diagonal(init="rate")
    X = RawInput()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return self.u * h + x @ self.X


class Branching(Cell):
    u = Diagonal()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return self.u * h if h.sum() > 0 else tanh(h)


def test_costs_of_the_classics() -> None:
    size, hidden = 5, 7
    lstm = cost(get("lstm")(size, hidden))
    assert lstm.parameters == 4 * (size * hidden + hidden * hidden + hidden)
    assert lstm.hoisted == 4 * size * hidden
    assert lstm.serial == 4 * hidden * hidden + 3 * hidden  # f c, i g, o tanh c
    assert (lstm.state_bytes, lstm.products, lstm.kind) == (4 * 2 * hidden, 1, "serial")
    gru = cost(get("gru_reset_before")(size, hidden))
    assert (gru.hoisted, gru.products) == (3 * size * hidden, 2)
    assert cost(get("indrnn")(size, hidden)).serial == hidden
    matrix = cost(get("gla")(size, hidden))
    key = 2 * math.ceil(hidden / 4)
    assert matrix.state_bytes == 4 * key * hidden and matrix.kind == "parallel"
    assert matrix.serial is not None and matrix.serial >= 2 * key * hidden  # decay, and k v^T


def test_a_readouts_products_are_counted_among_those_of_all_time_steps() -> None:
    elstm = cost(get("elstm")(5, 7))  # two gates of x; in the readout one of x and one of the state
    assert elstm.hoisted == 2 * 5 * 7 + (5 * 7 + 7 * 7)


def test_a_cell_that_cannot_be_traced_has_unknown_costs() -> None:
    unknown = cost(Branching(2, 3))
    assert (unknown.parameters, unknown.hoisted, unknown.serial, unknown.kind) == (3, None, None, "untraceable")


@pytest.mark.parametrize("rate", [0.5, 1.0, 1.1])
def test_the_gradient_of_a_linear_cell(rate: float) -> None:
    flow = gradient_flow(Fading(2, 3, rate=rate).double(), lags=20)
    assert flow.norms == pytest.approx([rate**k for k in range(1, 21)], rel=1e-5)
    assert flow.factor == pytest.approx(rate, rel=1e-5)
    assert flow.verdict == {0.5: "vanishing", 1.0: "kept", 1.1: "exploding"}[rate]


def test_a_gradient_that_ends() -> None:
    assert Flow((1.0, 0.5, 0.0, 0.0)).verdict == "cut off"


@pytest.mark.parametrize("name", ["lstm", "fast_weights", "scrn"])
def test_gradient_flow_against_jacobians(name: str) -> None:
    """Each norm from torch's own Jacobian of the map from all states k steps before to the output."""
    torch.manual_seed(0)
    cell = get(name)(3, 4, **({"context_size": 2} if name == "scrn" else {})).double()
    lags = 6
    x = torch.randn(lags, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    states = [tuple(cell.initial_state(x[0]))]
    for x_t in x:
        states.append(cell(x_t, *states[-1]))
    for lag in range(1, lags + 1):

        def later(*state: Tensor, start: int = lags - lag) -> Tensor:
            for x_t in x[start:]:
                state = cell(x_t, *state)
            return cell.readout(x[-1], *state)[0]

        pieces = torch.autograd.functional.jacobian(later, states[lags - lag])
        jacobian = torch.cat([piece.flatten(1) for piece in pieces], 1)
        assert gradient_flow(cell, lags).norms[lag - 1] == pytest.approx(float(torch.linalg.matrix_norm(jacobian, 2)))


@pytest.mark.parametrize("name", list_cells())
def test_gradients_and_shapes_of_every_cell(name: str) -> None:
    torch.manual_seed(0)
    cell = get(name)(5, 7)
    flow = gradient_flow(cell, lags=12)
    assert len(flow.norms) == 12 and all(math.isfinite(norm) for norm in flow.norms) and max(flow.norms) > 0
    rows = shapes(cell)
    for row in rows:
        assert row.dims.count("×") == row.shape.count("×") and not any(d in ("101", "103") for d in row.dims.split())
        for dim, size in zip(row.dims.split(" × "), row.shape.split(" × ")):
            known = {"n_i": 5, "n_h": 7, "2 n_h": 14, "n_i + n_h": 12}.get(dim)
            assert known is None or str(known) == size
            named = f"{dim[3:-1]}_size" if dim.startswith("n_{") and "+" not in dim else dim
            assert not hasattr(cell, named) or getattr(cell, named) == int(size)
    learned = [row for row in rows if row.symbol.role == "weight"]
    numbers = sum(math.prod(map(int, row.shape.split(" × "))) for row in learned)
    used = {s.name for s in read(cell).given}
    assert numbers == sum(p.numel() for key, p in cell.named_parameters() if key in used)


def test_shapes_as_beginners_meet_them() -> None:
    rows = {(row.symbol.name, row.symbol.time): row for row in shapes(get("rnn")(3, 4))}
    assert (rows["W", ""].dims, rows["W", ""].shape) == ("n_h × n_i", "4 × 3")
    assert (rows["U", ""].dims, rows["U", ""].what) == ("n_h × n_h", "recurrent weight")
    assert rows["h", "t"].dims == "n_h" and rows["x", "t"].dims == "n_i"
    matrix = {row.symbol.name: row.dims for row in shapes(get("scrn")(3, 4))}
    assert (matrix["B"], matrix["P"], matrix["y"]) == ("n_{context} × n_i", "n_h × n_{context}", "n_h + n_{context}")


class States(Cell):
    """A state that is the input of the step before is no memory."""

    X = RawInput()
    prev = State("input")

    def step(self, x: Tensor, h: Tensor, prev: Tensor) -> tuple[Tensor, Tensor]:
        return tanh(h + prev @ self.X), x


def test_relatives() -> None:
    zoo = {name: anatomy(read(get(name)(5, 7))) for name in ("rnn", "lstm", "np", "gru", "cifg", "mgu", "lem")}
    assert likeness(zoo["lstm"], zoo["np"]) == 1.0  # the same equations in other letters
    assert likeness(zoo["lstm"], zoo["gru"]) == likeness(zoo["gru"], zoo["lstm"]) < 0.6
    assert relatives("lstm", zoo)[0] == "np"
    assert {"rnn", "lstm", "gru"} & {*relatives("lem", zoo, 1)}
    assert differences(zoo["lstm"], zoo["np"]) == frozenset()
    own = anatomy(read(States(5, 7)))
    assert "past input t-1" in "".join(own.parts) and "memory" not in "".join(own.parts)


def test_differences_are_what_one_cell_has_alone() -> None:
    nig, peephole = (anatomy(read(get(name)(5, 7))) for name in ("nig", "lstm_peephole"))
    marked = {tuple(s.name for s in part.symbols()) for part in differences(peephole, nig)}
    assert any("i" in names for names in marked)  # the input gate's part in the new memory
    assert all("o" not in names or "i" in names for names in marked)  # the output gate is the same in both
