"""What a cell class means: its declarations, the errors they raise, and how it behaves as an `nn.Module`.

Shapes: B batch, I input size, H hidden size.
"""

import copy
import math
import pickle
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

from rnnzoo import Bias, Cell, Diagonal, InputWeight, RecurrentWeight, Scalar, UserError, Weight, gate, get

B, I, H = 3, 4, 5  # noqa: E741  I is the input size everywhere in this project


class Everything(Cell):
    """One declaration of each kind; its states are a moving average and a count."""

    rate: float = 0.5
    rank: int = 2
    shift: bool = True
    mode: str = "plain"
    side: Literal["left", "right"] = "left"
    limits: ClassVar[tuple[float, float]] = (0.0, 1.0)

    W, U, b = gate()
    d = Diagonal()
    s = Scalar(init=3)
    L = Weight("hidden", "rank")
    R = Weight("rank", "hidden", init=nn.init.ones_)
    k = Weight("rank", init=0.25)
    p = Bias(init="rate")

    def step(self, x: Tensor, mean: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        return self.rate * mean + (1 - self.rate) * (x @ self.W), count + 1


class Elman(Cell):
    """The smallest cell with a matrix on its state."""

    W, U, b = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x @ self.W + h @ self.U + self.b)


def test_declarations_become_parameters_in_order():
    cell = Everything(I, H, rank=3)
    shapes = {name: tuple(parameter.shape) for name, parameter in cell.named_parameters()}
    expected = {"W": (I, H), "U": (H, H), "b": (H,), "d": (H,), "s": (), "L": (H, 3), "R": (3, H), "k": (3,), "p": (H,)}
    assert shapes == expected
    assert list(shapes) == list(expected)
    assert list(cell.state_dict()) == list(expected)
    assert all(getattr(cell, name) is parameter for name, parameter in cell.named_parameters())


def test_gate_is_input_weight_recurrent_weight_and_bias():
    kinds = [type(Everything.weights[name]) for name in ("W", "U", "b")]
    assert kinds == [InputWeight, RecurrentWeight, Bias]
    # read from the class, a declaration is itself
    assert Everything.W is Everything.weights["W"]
    assert Everything.W.name == "W"


def test_default_initialisers():
    torch.manual_seed(0)
    cell = Everything(64, 32)
    glorot = math.sqrt(6 / (64 + 32))
    assert cell.W.abs().max() <= glorot
    # a uniform distribution has standard deviation bound / √3; 2,048 draws lie within a few percent of it
    assert cell.W.std().item() == pytest.approx(glorot / math.sqrt(3), rel=0.1)
    torch.testing.assert_close(cell.U @ cell.U.T, torch.eye(32))
    assert cell.b.eq(0).all()
    assert 0 < cell.d.abs().max() <= 1 / math.sqrt(32)


def test_initialisers_by_function_number_and_hyperparameter():
    cell = Everything(I, H, rate=0.75)
    assert cell.R.eq(1).all()
    assert cell.k.eq(0.25).all()
    assert cell.s.item() == 3
    assert cell.p.eq(0.75).all()


@pytest.mark.parametrize("dims", [(), ("hidden",), ("input", "hidden"), ("hidden", "hidden", "hidden")], ids=str)
def test_a_weight_of_any_number_of_dimensions_has_a_default_initialiser(dims):
    class Plain(Cell):
        w = Weight(*dims)

        def step(self, x, h):
            return h

    assert Plain(I, H).w.isfinite().all()


def test_reset_parameters_draws_anew():
    torch.manual_seed(0)
    cell = Everything(I, H)
    before = copy.deepcopy(cell.state_dict())
    cell.reset_parameters()
    assert not torch.equal(cell.W, before["W"])
    assert torch.equal(cell.p, before["p"])
    torch.manual_seed(0)
    cell.reset_parameters()
    assert torch.equal(cell.W, before["W"])


def test_states_are_the_arguments_of_step():
    cell = Everything(I, H)
    assert cell.state_names == ("mean", "count")
    x = torch.randn(B, I, dtype=torch.float64)
    state = cell.initial_state(x)
    assert [s.shape for s in state] == [(B, H), (B, H)]
    assert all(s.dtype == torch.float64 and s.eq(0).all() for s in state)


def test_forward_always_returns_a_tuple_of_states():
    x = torch.randn(B, I)
    one = Elman(I, H)
    new = one(x, torch.ones(B, H))
    assert isinstance(new, tuple) and len(new) == 1

    two = Everything(I, H, rate=0.25)
    mean, count = two(x, torch.ones(B, H), torch.zeros(B, H))
    torch.testing.assert_close(mean, 0.25 + 0.75 * (x @ two.W))
    assert count.eq(1).all()
    assert two.readout(x, mean, count) is mean


def test_hyperparameters_have_defaults_and_take_values():
    cell = Everything(I, H)
    assert (cell.rate, cell.rank, cell.shift, cell.mode, cell.side) == (0.5, 2, True, "plain", "left")
    cell = Everything(I, H, rate=1, shift=False, mode="other", side="right")
    assert (cell.rate, cell.shift, cell.mode, cell.side) == (1.0, False, "other", "right")
    assert type(cell.rate) is float
    # the class is not touched, and a ClassVar is no hyperparameter
    assert Everything.rate == 0.5
    assert "limits" not in Everything.hyperparameters
    assert Everything.hyperparameters["side"].choices == ("left", "right")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": "fast"}, ["rate", "float", "'fast'"]),
        ({"rate": True}, ["rate", "float", "True"]),
        ({"rank": 2.0}, ["rank", "int", "2.0"]),
        ({"rank": True}, ["rank", "int", "True"]),
        ({"shift": 1}, ["shift", "bool", "1"]),
        ({"mode": None}, ["mode", "str", "None"]),
        ({"side": "top"}, ["side", "'left' or 'right'", "'top'"]),
        ({"rat": 0.1}, ["'rat'", "did you mean", "rate"]),
        ({"zzz": 1}, ["'zzz'", "known", "rate", "rank", "shift", "mode", "side"]),
        ({"limits": (0.0, 2.0)}, ["'limits'"]),
        ({"rank": 0}, ["rank", "0"]),
        ({"rank": -1}, ["rank", "-1"]),
        ({"input_size": 0}, ["input_size", "positive", "0"]),
        ({"hidden_size": -2}, ["hidden_size", "positive", "-2"]),
        ({"hidden_size": 2.0}, ["hidden_size", "2.0"]),
        ({"input_size": True}, ["input_size", "True"]),
        ({"input_size": "4"}, ["input_size", "'4'"]),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_by_name(options, words):
    with pytest.raises(UserError) as caught:
        Everything(**{"input_size": I, "hidden_size": H, **options})
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in ["Everything", *words])


def test_unknown_dimension():
    with pytest.raises(TypeError, match=r"Broken\.w has unknown dimension 'hiden'; did you mean hidden"):

        class Broken(Cell):
            w = Weight("input", "hiden")

            def step(self, x, h):
                return h


def test_a_dimension_must_be_an_integer_hyperparameter():
    with pytest.raises(TypeError, match="unknown dimension 'rate'"):

        class Broken(Cell):
            rate: float = 1.0
            w = Weight("rate")

            def step(self, x, h):
                return h


def test_unknown_hyperparameter_as_initialiser():
    with pytest.raises(TypeError, match=r"Broken\.b starts from unknown hyperparameter 'update_bais'.*update_bias"):

        class Broken(Cell):
            update_bias: float = 1.0
            b = Bias(init="update_bais")

            def step(self, x, h):
                return h


@pytest.mark.parametrize("init", [[1.0], object()], ids=["list", "object"])
def test_an_initialiser_must_be_a_function_a_number_or_a_name(init):
    for declare in (Weight, InputWeight, RecurrentWeight, Bias, Diagonal, Scalar):
        with pytest.raises(TypeError, match="init must be"):
            declare(init=init)
    with pytest.raises(TypeError, match="init must be"):
        gate(bias=init)


@pytest.mark.parametrize("kind", [list, Tensor, dict[str, int], float | None, Literal[None, "a"]], ids=str)
def test_wrong_annotation(kind):
    with pytest.raises(TypeError, match=r"Broken\.option must be annotated float, int, bool, str or Literal"):
        type("Broken", (Cell,), {"__annotations__": {"option": kind}, "option": None, "__module__": __name__})


def test_an_annotation_without_a_value_is_no_hyperparameter():
    class Noted(Elman):
        cache: Tensor

    assert Noted.hyperparameters == {}


@pytest.mark.parametrize(("kind", "value"), [(float, "x"), (int, 1.5), (Literal["a", "b"], "c")], ids=str)
def test_a_default_must_fit_its_annotation(kind, value):
    with pytest.raises((TypeError, UserError), match="option must be"):
        type("Broken", (Cell,), {"__annotations__": {"option": kind}, "option": value})


def test_one_declaration_under_two_names():
    # Before Python 3.12 an error from __set_name__ arrives as the cause of a RuntimeError.
    with pytest.raises((TypeError, RuntimeError)) as caught:

        class Broken(Cell):
            first = second = Bias()

            def step(self, x, h):
                return h

    reason = caught.value.__cause__ or caught.value
    assert isinstance(reason, TypeError)
    assert "first and second share one declaration" in str(reason)


def without_state(self, x):
    return x


def with_default(self, x, h=None):
    return h


def with_rest(self, x, *state):
    return state


def with_keyword(self, x, h, *, c):
    return h


@pytest.mark.parametrize("step", [without_state, with_default, with_rest, with_keyword], ids=lambda f: f.__name__)
def test_step_must_name_its_states(step):
    with pytest.raises(TypeError, match=r"Broken\.step must take self, x and its states, without defaults"):
        type("Broken", (Cell,), {"step": step})


class Block(Cell):
    """Parameters and a hyperparameter for others to build on; no equations of its own."""

    scale: float = 2.0

    W, U, b = gate(bias="scale")


class Add(Block):
    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return h + self.scale * (x @ self.W)


class Multiply(Block):
    v = Diagonal()

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return h * c * self.v, c


def test_a_block_of_parameters_is_shared_by_inheritance():
    add, multiply = Add(I, H, scale=3.0), Multiply(I, H)
    assert list(dict(add.named_parameters())) == ["W", "U", "b"]
    assert list(dict(multiply.named_parameters())) == ["W", "U", "b", "v"]
    assert (Add.state_names, Multiply.state_names) == (("h",), ("h", "c"))
    assert add.b.eq(3).all() and multiply.b.eq(2).all()
    # shared is the declaration, never the tensor
    assert add.W is not multiply.W
    x = torch.randn(B, I)
    torch.testing.assert_close(add(x, torch.ones(B, H))[0], 1 + 3 * (x @ add.W))


def test_a_subclass_can_declare_a_parameter_or_a_default_anew():
    class Other(Block):
        scale: float = 5.0
        U = Diagonal()

        def step(self, x: Tensor, h: Tensor) -> Tensor:
            return h * self.U

    cell = Other(I, H)
    assert cell.scale == 5 and cell.b.eq(5).all()
    assert cell.U.shape == (H,)
    assert Block(I, H).scale == 2 and Block(I, H).U.shape == (H, H)


def test_a_default_set_anew_without_annotation_is_not_ignored():
    # either honoured or refused; to run on the parent's 1.0 would be silent
    try:

        class Other(Block):
            scale = 0.0

            def step(self, x, h):
                return h

    except TypeError:
        return
    assert Other(I, H).scale == 0
    assert Other(I, H).b.eq(0).all()


def test_repr_tells_sizes_and_hyperparameters():
    assert repr(get("rnn")(2, 3)) == "RNN(2, 3, nonlinearity='tanh')"
    assert repr(Add(2, 3, scale=0)) == "Add(2, 3, scale=0.0)"
    assert repr(Elman(2, 3)) == "Elman(2, 3)"


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda cell: pickle.loads(pickle.dumps(cell))])
def test_copies_are_equal_and_apart(duplicate):
    cell = Everything(I, H, rate=0.1, side="right")
    other = duplicate(cell)
    assert repr(other) == repr(cell)
    assert all(torch.equal(a, b) for a, b in zip(cell.parameters(), other.parameters(), strict=True))
    with torch.no_grad():
        other.W.zero_()
    assert cell.W.ne(0).any()


def test_a_parametrized_weight_is_what_step_uses():
    torch.manual_seed(0)
    cell = Elman(I, H).double()
    parametrizations.orthogonal(cell, "U")
    with torch.no_grad():
        cell.parametrizations.U.original.normal_()
    Q = cell.parametrizations.U[0](cell.parametrizations.U.original)
    torch.testing.assert_close(Q @ Q.T, torch.eye(H, dtype=torch.float64))
    assert torch.equal(cell.U, Q)

    x, h = torch.randn(B, I, dtype=torch.float64), torch.randn(B, H, dtype=torch.float64)
    (new,) = cell(x, h)
    torch.testing.assert_close(new, torch.tanh(x @ cell.W + h @ Q + cell.b))
    new.sum().backward()
    assert cell.parametrizations.U.original.grad.ne(0).any()


def test_functional_call_runs_on_the_parameters_it_is_given():
    torch.manual_seed(0)
    cell = Elman(I, H).double()
    before = copy.deepcopy(cell.state_dict())
    given = {name: torch.randn_like(parameter).requires_grad_() for name, parameter in cell.named_parameters()}
    x, h = torch.randn(B, I, dtype=torch.float64), torch.randn(B, H, dtype=torch.float64)

    (new,) = functional_call(cell, given, (x, h))
    torch.testing.assert_close(new, torch.tanh(x @ given["W"] + h @ given["U"] + given["b"]))
    new.sum().backward()
    assert all(tensor.grad is not None for tensor in given.values())
    assert all(parameter.grad is None and torch.equal(parameter, before[n]) for n, parameter in cell.named_parameters())
