"""Cells around a matrix memory: `matrix` gives what the plain loop gives, for any numbers and lengths, in less memory.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, exp, sigmoid, sign
from torch.nn.functional import logsigmoid

from rnnzoo import Bias, Cell, InputWeight, Recurrent, RecurrentWeight, State, UserError, Weight
from rnnzoo.engine import PAYS_BACK, choose, matrix

B, I, H = 3, 3, 6  # noqa: E741  I is the input size everywhere in this project

NAMES = ("gla", "rwkv7", "retention", "delta_net", "gated_delta_net", "linear_attention", "hgrn2", "mlstm", "mamba2")

pytestmark = pytest.mark.usefixtures("empty_memory_is_nan", "shared_kernels")


class Parts(Cell):
    """Weights for the odd cells below."""

    S = State("hidden", "hidden")
    W_k, W_v, W_q = InputWeight(), InputWeight(), InputWeight()
    W_a, w_a, U = Weight("input", 1), Bias(init=torch.nn.init.normal_), RecurrentWeight()

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        return (state[0] @ (x @ self.W_q).unsqueeze(-1)).squeeze(-1) @ self.U


class Learned(Parts):
    """Its decay is a weight, one number a key."""

    def step(self, x: Tensor, S: Tensor) -> Tensor:
        return sigmoid(self.w_a) * S - 2 * (x @ self.W_v)[:, :, None] * (x @ self.W_k)[:, None, :]


class Negative(Parts):
    """A decay that is any number; the value depends on what was held under another key."""

    def step(self, x: Tensor, S: Tensor) -> Tensor:
        held = (S @ (x @ self.W_q)[:, :, None])[:, :, 0]
        v = (x @ self.W_v - sigmoid(self.w_a) * held) * 0.5
        return (x @ self.W_a)[:, :, None] * S + v[:, :, None] * (x @ self.W_k)[:, None, :]


class Still(Parts):
    """A decay that is one, zero, or underflows: exp(-800) is 0, exp(-740) no normal number."""

    def step(self, x: Tensor, S: Tensor) -> Tensor:
        a = exp(-400 * (1 + sign(x[:, :1])) - 370 * (1 + sign(x[:, 1:2])))
        return a[:, :, None] * S + (x @ self.W_v)[:, :, None] * (x @ self.W_k)[:, None, :]


class Twice(Parts):
    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        (S,) = state
        return super().readout(x, S) + (S * (x @ self.W_k).unsqueeze(-2)).sum(-1)

    step = Learned.step


class Itself(Parts):
    """What it keeps depends on what it holds."""

    def step(self, x: Tensor, S: Tensor) -> Tensor:
        a = sigmoid((S * (x @ self.W_k)[:, None, :]).sum(-1))
        return a[:, None, :] * S + (x @ self.W_v)[:, :, None] * (x @ self.W_k)[:, None, :]


class Cells(Parts):
    """Every number decays on its own."""

    def step(self, x: Tensor, S: Tensor) -> Tensor:
        k, v = x @ self.W_k, x @ self.W_v
        return sigmoid(v[:, :, None] + k[:, None, :]) * S + v[:, :, None] * k[:, None, :]


class Leaking(Parts):
    """Another state hangs on the memory."""

    def step(self, x: Tensor, S: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        k, v = x @ self.W_k, x @ self.W_v
        return S + v[:, :, None] * k[:, None, :], n + (S * k[:, None, :]).sum(-1)


def pair(cell: Any, dtype: torch.dtype = torch.float64, H: int = H, **options: Any) -> list[Recurrent]:
    """A layer on `matrix` and the same on the plain loop."""
    torch.manual_seed(0)
    layers = [Recurrent(cell, I, H, engine="reference", **options).to(dtype) for _ in range(2)]
    with torch.no_grad():
        for parameter in layers[0].parameters():  # at zero some would prove little
            parameter.add_(0.2 * torch.randn_like(parameter))
    layers[1].load_state_dict(layers[0].state_dict())
    layers[0].engine = "matrix"
    return layers


def everything(layer: Recurrent, x: Tensor, states: list[Tensor], **given: Any) -> dict[str, Tensor]:
    """Output, final states and all gradients of a random linear function of these."""
    x, states = x.clone().requires_grad_(), [s.clone().requires_grad_() for s in states]
    output, final = layer(x, states[0] if len(states) == 1 else tuple(states), **given)
    assert layer.engine_used == layer.engine
    found = [output, *(final if isinstance(final, tuple) else (final,))]
    generator = torch.Generator().manual_seed(2)
    layer.zero_grad()
    sum((r * torch.randn(r.shape, generator=generator, dtype=r.dtype)).sum() for r in found).backward()
    named = {"x": x} | {f"state {k}": s for k, s in enumerate(states)} | dict(layer.named_parameters())
    gradients = {f"gradient of {k}": torch.zeros_like(t) if t.grad is None else t.grad for k, t in named.items()}
    return {f"result {k}": r.detach() for k, r in enumerate(found)} | gradients


def compare(layers: list[Recurrent], x: Tensor, states: list[Tensor], tolerance: float = 1e-9, **given: Any) -> None:
    actual, expected = (everything(layer, x, states, **given) for layer in layers)
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        scale = max(1.0, float(value.nan_to_num(0, 0, 0).abs().max()))
        torch.testing.assert_close(
            actual[key], value, rtol=tolerance, atol=tolerance * scale, equal_nan=True,
            msg=lambda text, key=key: f"{key}: {text}",
        )  # fmt: skip


def drawn(layer: Recurrent, T: int, B: int = B) -> tuple[Tensor, list[Tensor]]:
    dtype = next(layer.parameters()).dtype
    x = torch.randn(T, B, I, dtype=dtype)
    with torch.no_grad():
        state = layer(torch.randn(3, B, I, dtype=dtype))[1]  # a count must count
    return x, list(state) if isinstance(state, tuple) else [state]


@pytest.mark.parametrize("cell", [*NAMES, Learned, Negative, Still], ids=str)
def test_equals_the_plain_loop(cell):
    layers = pair(cell)
    for T, rows in ((1, 1), (16, 3), (35, 2)):  # a stretch of time steps, and parts of some
        x, states = drawn(layers[1], T, rows)
        compare(layers, x, states)
        compare(layers, x, states, lengths=torch.tensor([T, 1 + T // 2, 1][:rows]))


@pytest.mark.parametrize("cell", ["gla", "delta_net", "mlstm"])
def test_starts_anew_inside(cell):
    layers = pair(cell, bidirectional=True)
    x, states = drawn(layers[1], 35)
    resets = torch.rand(35, B, generator=torch.Generator().manual_seed(1)) < 0.2
    resets[0, 0] = resets[15, 1] = resets[16, 2] = resets[-1, 1] = True
    for lengths in (None, torch.tensor([35, 4, 17])):
        compare(layers, x, states, resets=resets, lengths=lengths)


@pytest.mark.parametrize("cell", [Learned, Negative, "gated_delta_net"], ids=str)
def test_special_values(cell):
    layers = pair(cell)
    for value in (math.inf, -math.inf, math.nan, 1e200, 1e-310, 0.0):
        x, states = drawn(layers[1], 18, 2)
        x[5, 0, 1], x[17, 1] = value, value
        compare(layers, x, states)
        states[0][0, 0, 2, 3] = value
        compare(layers, *drawn(layers[1], 18, 2)[:1], states)


def test_rows_that_fill_no_vector(as_users_compile):
    layers = pair(Negative, torch.float32, 33)
    compare(layers, *drawn(layers[1], 20), tolerance=1e-3)


@pytest.mark.parametrize("cell", ["gla", "mlstm"])
def test_without_gradients_and_in_pieces(cell):
    layers = pair(cell)
    x, states = drawn(layers[1], 35)
    state = states[0] if len(states) == 1 else tuple(states)
    with torch.no_grad():
        torch.testing.assert_close(layers[0](x, state), layers[1](x, state), rtol=1e-9, atol=1e-9)
        first, carried = layers[0](x[:20], state)
        second, final = layers[0](x[20:], carried)
        expected = layers[1](x, state)
        torch.testing.assert_close((torch.cat([first, second]), final), expected, rtol=1e-9, atol=1e-9)
    layers[0].checkpoint_every = 20
    compare(layers, x, states)


@pytest.mark.parametrize("cell", ["gla", "delta_net"])
def test_only_the_final_state_or_only_the_output_asks_for_a_gradient(cell):
    for part in (0, 1):
        found = []
        for layer in pair(cell):
            x = torch.randn(20, B, I, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
            layer(x)[part].square().sum().backward()
            found.append(x.grad)
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("gru", "no matrix that a readout reads"),
        ("fast_weights", "no matrix that a readout reads"),
        (Twice, "2 products with a vector read it"),
        (Itself, "more than the output hangs on it"),
        (Cells, "decays otherwise than as a whole, or key by key"),
        (Leaking, "more than the output hangs on it"),
    ],
    ids=str,
)
def test_refuses_by_name_what_is_no_such_memory(cell, reason):
    with pytest.raises(UserError, match=reason):
        Recurrent(cell, I, H, engine="matrix")


def test_auto_takes_it_once_compiling_pays_back():
    layer = Recurrent("gla", I, H)
    assert choose(layer.cells[0], PAYS_BACK)[0] == "matrix"
    assert choose(layer.cells[0], PAYS_BACK, "cuda")[0] != "matrix"
    assert matrix.refuses(layer.cells[0]) is None


def test_second_derivatives_are_refused():
    layer = pair("gla")[0]
    x = torch.randn(3, 1, I, dtype=torch.float64, requires_grad=True)
    with pytest.raises(UserError, match="engine=matrix has no second derivatives"):
        torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)


@pytest.mark.parametrize("cell", ["gla", "delta_net"])
def test_what_is_kept_for_the_backward_pass(cell):
    kept = {}
    for engine in ("matrix", "reference"):
        layer = Recurrent(cell, I, 64, engine=engine)
        x = torch.randn(128, 4, I)
        layer(x)  # the plan is made
        storages: dict[int, int] = {}

        def note(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            layer(x)
        kept[engine] = sum(storages.values())
    assert kept["matrix"] < 0.3 * kept["reference"]


def test_parts_of_the_equation():
    # S = sum of v kᵀ, each decayed since, in closed form
    layer = pair(Learned)[0]
    cell = layer.cells[0]
    x = torch.randn(20, 1, I, dtype=torch.float64)
    k, v, q = (x[:, 0] @ getattr(cell, name) for name in ("W_k", "W_v", "W_q"))
    age = torch.arange(20).flip(0)[:, None]
    S = (-2 * v).T @ (k * exp(age * logsigmoid(cell.w_a)))
    output, final = layer(x)
    torch.testing.assert_close(final[0, 0], S, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output[-1, 0], S @ q[-1] @ cell.U, rtol=1e-9, atol=1e-9)
