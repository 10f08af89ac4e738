"""Engines agree: `native` with torch's modules and with the plain loop, in outputs, states and every gradient.

Weights are copied between torch's layout and ours by this file's own table, and `torch.empty` is filled with NaN,
so that nothing is equal by a shared mistake or by a lucky zero.
Shapes: T time steps, B batch, I input size, H hidden size, L layers, D directions.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from varied import CHANGES

from rnnzoo import Recurrent, UserError, get, list_cells
from rnnzoo.engine import ENGINES, PAYS_BACK, PAYS_BACK_NATIVE, choose

I, H = 3, 4  # noqa: E741  I is the input size everywhere in this project

TWINS = {
    "rnn-tanh": ("rnn", nn.RNN, {"nonlinearity": "tanh"}),
    "rnn-relu": ("rnn", nn.RNN, {"nonlinearity": "relu"}),
    "lstm": ("lstm", nn.LSTM, {}),
    "gru": ("gru", nn.GRU, {}),
}
"""Our cell, torch's module, and the options that both take."""

BLOCKS = {
    nn.RNN: [("W", "U", "b", None)],
    nn.LSTM: [(f"W_{gate}", f"U_{gate}", f"b_{gate}", None) for gate in ("i", "f", "g", "o")],
    nn.GRU: [("W_r", "U_r", "b_r", None), ("W_z", "U_z", "b_z", None), ("W_n", "U_n", "b_n", "c_n")],
}
"""Blocks of torch's weight_ih, weight_hh, bias_ih and bias_hh in the order that its documentation gives. None where
our cell has one bias for torch's two."""


pytestmark = pytest.mark.usefixtures("empty_memory_is_nan")


def torch_tensors(module: nn.RNNBase, index: int) -> list[Tensor]:
    directions = 2 if module.bidirectional else 1
    suffix = f"_l{index // directions}" + "_reverse" * (index % directions)
    return [getattr(module, name + suffix) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


@torch.no_grad()
def copy_weights(module: nn.RNNBase, layer: Recurrent) -> None:
    blocks = BLOCKS[type(module)]
    for index, cell in enumerate(layer.cells):
        chunks = [tensor.chunk(len(blocks)) for tensor in torch_tensors(module, index)]
        for (W, U, b, c), weight_ih, weight_hh, bias_ih, bias_hh in zip(blocks, *chunks, strict=True):
            getattr(cell, W).copy_(weight_ih.T)
            getattr(cell, U).copy_(weight_hh.T)
            getattr(cell, b).copy_(bias_ih if c else bias_ih + bias_hh)
            if c:
                getattr(cell, c).copy_(bias_hh)


def torch_gradients(module: nn.RNNBase) -> dict[str, Tensor]:
    """The gradients of torch's parameters under the names of ours."""
    blocks = BLOCKS[type(module)]
    found = {}
    for index in range(len(module.all_weights)):
        chunks = [tensor.grad.chunk(len(blocks)) for tensor in torch_tensors(module, index)]
        for (W, U, b, c), weight_ih, weight_hh, bias_ih, bias_hh in zip(blocks, *chunks, strict=True):
            found |= {f"cells.{index}.{W}": weight_ih.T, f"cells.{index}.{U}": weight_hh.T}
            found |= {f"cells.{index}.{b}": bias_ih}
            if c:
                found |= {f"cells.{index}.{c}": bias_hh}
    return found


def run_torch(module: nn.RNNBase, x: Tensor, state, lengths: Tensor | None):
    """torch's module on a padded batch, by way of a packed one."""
    if lengths is None:
        return module(x, state)
    output, final = module(pack_padded_sequence(x, lengths, enforce_sorted=False), state)
    return pad_packed_sequence(output, total_length=len(x))[0], final


def run_ours(layer: Recurrent, x: Tensor, state, lengths: Tensor | None):
    return layer(x, state, lengths)


def everything(run, module: nn.Module, x: Tensor, states: list[Tensor], lengths: Tensor | None) -> dict[str, Tensor]:
    """Output, final states and all gradients, by name, of one random linear function of output and final states."""
    x = x.clone().requires_grad_()
    states = [s.clone().requires_grad_() for s in states]
    output, final = run(module, x, states[0] if len(states) == 1 else tuple(states), lengths)
    results = (output, final) if len(states) == 1 else (output, *final)
    generator = torch.Generator().manual_seed(1)
    loss = sum((r * torch.randn(r.shape, generator=generator, dtype=r.dtype)).sum() for r in results)
    module.zero_grad()
    loss.backward()
    found = {f"result {k}": r.detach() for k, r in enumerate(results)}
    found |= {"gradient of x": x.grad}
    found |= {f"gradient of state {k}": s.grad for k, s in enumerate(states)}
    if isinstance(module, Recurrent):
        return found | {key: parameter.grad for key, parameter in module.named_parameters()}
    return found | torch_gradients(module)


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for key in expected:
        assert expected[key].isfinite().all(), key
        torch.testing.assert_close(actual[key], expected[key], rtol=1e-9, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")


def ragged_lengths(T: int, B: int) -> Tensor:
    """Unsorted, between 1 and T; the first is T unless it is the only one."""
    return torch.tensor([T if row == 0 and B > 1 else 1 + (4 + 5 * row) % T for row in range(B)])


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, True)], ids=["plain", "stacked"])
@pytest.mark.parametrize("B", [1, 3, 17])
@pytest.mark.parametrize("T", [1, 2, 7, 8, 9, 63])
@pytest.mark.parametrize("twin", TWINS)
def test_native_equals_torch_and_reference(twin, T, B, layers, bidirectional, ragged):
    name, kind, options = TWINS[twin]
    torch.manual_seed(T + B)
    shape = {"num_layers": layers, "bidirectional": bidirectional}
    module = kind(I, H, **shape, **options).double()
    layers_of = {e: Recurrent(name, I, H, engine=e, **shape, **options).double() for e in ("native", "reference")}
    for layer in layers_of.values():
        copy_weights(module, layer)
    x = torch.randn(T, B, I, dtype=torch.float64)
    cells = layers * (2 if bidirectional else 1)
    states = [torch.randn(cells, B, H, dtype=torch.float64) for _ in range(2 if name == "lstm" else 1)]
    lengths = None
    if ragged:
        lengths = ragged_lengths(T, B)
        # what stands in the padding must reach nothing: no output, no state, no gradient
        x[torch.arange(T)[:, None] >= lengths] = float("nan")

    expected = everything(run_torch, module, x, states, lengths)
    for layer in layers_of.values():
        found = everything(run_ours, layer, x, states, lengths)
        assert_equal(found, expected)
        if ragged:
            assert found["gradient of x"][x.isnan()].eq(0).all()
            assert found["result 0"][x.isnan().any(-1)].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("twin", TWINS)
def test_without_gradients(twin, ragged, dtype):
    # torch takes other kernels here, those of oneDNN in float32
    name, kind, options = TWINS[twin]
    torch.manual_seed(0)
    module = kind(I, H, num_layers=2, bidirectional=True, **options).to(dtype)
    x = torch.randn(9, 3, I, dtype=dtype)
    states = [torch.randn(4, 3, H, dtype=dtype) for _ in range(2 if name == "lstm" else 1)]
    state = states[0] if len(states) == 1 else tuple(states)
    lengths = torch.tensor([4, 9, 1]) if ragged else None
    if ragged:
        x[torch.arange(9)[:, None] >= lengths] = float("nan")

    for engine in ("native", "reference"):
        layer = Recurrent(name, I, H, 2, bidirectional=True, engine=engine, **options).to(dtype)
        copy_weights(module, layer)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                torch.testing.assert_close(layer(x, state, lengths), run_torch(module, x, state, lengths))


def test_a_state_that_would_explode_past_the_end_reaches_no_gradient():
    # Here h grows tenfold a step: 2e5 at the first sequence's end, beyond float32 if it went on to the batch's end.
    found = {}
    for engine in ("native", "reference"):
        torch.manual_seed(0)
        layer = Recurrent("rnn", I, H, engine=engine, nonlinearity="relu")
        with torch.no_grad():
            layer.cells[0].U.copy_(10 * torch.eye(H))
        states = [torch.tensor([2e3, 0.0])[None, :, None].expand(1, 2, H)]
        found[engine] = everything(run_ours, layer, torch.zeros(63, 2, I), states, torch.tensor([2, 63]))
    for key, expected in found["reference"].items():
        assert expected.isfinite().all(), key
        torch.testing.assert_close(found["native"][key], expected, msg=lambda m, k=key: f"{k}: {m}")


OLD = """
import pytest, torch
from rnnzoo import Recurrent, UserError
from rnnzoo.engine import PAYS_BACK, choose
for dtype in (torch.bfloat16, torch.float16):
    outputs = {}
    for engine in ("auto", "reference", "native"):
        torch.manual_seed(0)
        layer = Recurrent("lstm", 3, 4, engine=engine)
        with torch.autocast("cpu", dtype):
            if engine == "native":
                with pytest.raises(UserError, match=f"no LSTM in {dtype} for this processor; use engine=auto"):
                    layer(torch.ones(5, 2, 3))
                continue
            outputs[engine] = layer(torch.ones(5, 2, 3))[0].float()
            outputs[engine].sum().backward()
            assert choose(layer.cells[0], PAYS_BACK)[0] == "serial"
    assert torch.equal(outputs["auto"], outputs["reference"])
"""


def test_a_processor_without_an_lstm_in_half_precision():
    """oneDNN is told to take the processor for an older one, and raises."""
    done = subprocess.run(
        [sys.executable, "-c", OLD], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_auto_takes_native_where_torch_has_the_cell_until_compiling_pays_back():
    fast = {"rnn", "lstm", "gru"}
    for name in list_cells():
        layer = Recurrent(name, I, H)
        layer(torch.randn(2, 3, I))
        assert layer.engine_used == ("native" if name in fast else "reference"), name
    lstm, mgu = get("lstm")(I, H), get("mgu")(I, H)
    for cell, before, pays in ((lstm, "native", PAYS_BACK_NATIVE), (mgu, "reference", PAYS_BACK)):
        assert choose(cell, pays - 1)[0] == before
        assert choose(cell, pays)[0] == "serial"
    assert choose(lstm, PAYS_BACK_NATIVE, "cuda")[0] == "native"


@pytest.mark.parametrize("name", list_cells())
def test_reference_runs_every_cell(name):
    layer = Recurrent(name, I, H, engine="reference")
    assert "engine=reference" in repr(layer)
    output, _ = layer(torch.randn(2, 3, I))
    assert layer.engine_used == "reference"
    assert output.shape == (2, 3, layer.output_size)


def test_an_engine_that_is_asked_for_is_the_one_that_runs(monkeypatch):
    ran = []
    for name in ("native", "reference"):
        run = ENGINES[name].run
        monkeypatch.setattr(ENGINES[name], "run", lambda *args, n=name, r=run: ran.append(n) or r(*args))
    for name in ("native", "reference"):
        Recurrent("gru", I, H, engine=name)(torch.randn(2, 3, I))
    assert ran == ["native", "reference"]


def test_a_forced_engine_that_cannot_run_the_cell_is_refused():
    with pytest.raises(UserError) as caught:
        Recurrent("mgu", I, H, engine="native")
    message = str(caught.value)
    assert "\n" not in message
    # which engine, why, and what to do
    assert all(words in message for words in ("engine=native", "MGU", "rnn, lstm, gru", "engine=auto"))


@pytest.mark.parametrize(("engine", "hint"), [("nativ", "did you mean native"), ("zzz", "known: auto")])
def test_an_unknown_engine_suggests_the_nearest(engine, hint):
    with pytest.raises(UserError, match=f"no engine is named '{engine}'; {hint}"):
        Recurrent("lstm", I, H, engine=engine)


class Counting(get("lstm")):
    """An LSTM by its parameters only: h counts steps, c stays."""

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return h + 1, c


def test_a_subclass_is_not_run_by_the_kernel_of_its_parent():
    layer = Recurrent(Counting, I, H)
    output, (h, c) = layer(torch.randn(5, 2, I))
    assert layer.engine_used == "reference"
    assert torch.equal(output, torch.arange(1.0, 6)[:, None, None].expand(5, 2, H))
    assert h.eq(5).all() and c.eq(0).all()
    with pytest.raises(UserError, match="Counting"):
        Recurrent(Counting, I, H, engine="native")
    with pytest.raises(UserError, match=r"no torch weights for this layer.*Counting"):
        layer.torch_state_dict()


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_cell_changed_after_construction_still_runs_on_its_own_weights(change):
    # `auto` was settled when the layer was made, and torch's kernel knows nothing of such changes
    torch.manual_seed(0)
    layer = Recurrent("gru", I, H).double()
    cell = layer.cells[0]
    change(cell)
    x = torch.randn(4, 2, I, dtype=torch.float64)
    h = torch.zeros(2, H, dtype=torch.float64)
    expected = []
    for x_t in x:
        (h,) = cell(x_t, h)
        expected.append(h)
    torch.testing.assert_close(layer(x)[0], torch.stack(expected))


@pytest.mark.parametrize("name", list_cells())
def test_reference_has_second_derivatives(name):
    torch.manual_seed(0)
    layer = Recurrent(name, 2, 2, engine="reference").double()
    x = torch.randn(3, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], (x,))


@pytest.mark.parametrize("name", sorted(set(list_cells()) - {"esn"}))  # which learns nothing
def test_reference_gives_gradients_of_each_sequence_under_vmap(name):
    torch.manual_seed(0)
    layer = Recurrent(name, I, H, engine="reference").double()
    x = torch.randn(5, 3, I, dtype=torch.float64)
    parameters = {key: parameter.detach() for key, parameter in layer.named_parameters()}

    def loss(parameters, sequence):
        return functional_call(layer, parameters, (sequence,))[0].square().sum()

    together = vmap(grad(loss), in_dims=(None, 1))(parameters, x)
    for row in range(3):
        layer.zero_grad()
        layer(x[:, row])[0].square().sum().backward()
        for key, parameter in layer.named_parameters():
            torch.testing.assert_close(together[key][row], parameter.grad)


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_functional_call_runs_on_the_parameters_it_is_given(engine):
    torch.manual_seed(0)
    layer, other = (Recurrent("lstm", I, H, engine=engine).double() for _ in range(2))
    x = torch.randn(4, 2, I, dtype=torch.float64)
    torch.testing.assert_close(functional_call(layer, dict(other.named_parameters()), (x,)), other(x))
