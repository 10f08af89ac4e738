"""Sequences that start anew inside: on every engine what their parts give, each run alone.

The truth is the plain loop without resets over each part of each sequence.
Shapes: T time steps, B batch, I input size, H hidden size.
"""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_sequence

from rnnzoo import Cell, InputWeight, Recurrent, RecurrentWeight, UserError, list_cells
from rnnzoo.engine import serial, steps
from rnnzoo.export import FORMS, export
from rnnzoo.states import join, split

T, B, I, H = 9, 4, 3, 5  # noqa: E741  I is the input size everywhere in this project

CELLS = [
    "rnn", "lstm", "gru", "mgu", "lstm_peephole",
    "phased_lstm",  # a clock
    "mlstm", "gla",  # matrix memories
    "min_gru", "qrnn",  # parallel, one with a past input for a state
    "scrn", "lru",  # readouts
]  # fmt: skip
PARALLEL = ["gla", "lru", "min_gru", "min_lstm", "qrnn", "retention", "rg_lru"]
KERNELS = ["lstm", "gru", "phased_lstm", "qrnn"]
LENGTHS = [9, 1, 4, 7]
OPTIONS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "everything": {"num_layers": 2, "bidirectional": True, "learn_initial_state": True, "checkpoint_every": 4},
}


@pytest.fixture(autouse=True)
def setting(empty_memory_is_nan: None, shared_kernels: None) -> None:
    """Memory is poisoned, and kernels are shared among tests."""


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are run by torch as they are."""
    monkeypatch.setattr(serial, "_programs", {})
    monkeypatch.setattr(serial, "loop", lambda plan, *options: steps.Steps(plan, compiled=False))


def make(cell: Any, engine: str = "reference", **options: Any) -> Recurrent:
    torch.manual_seed(0)
    layer = Recurrent(cell, I, H, engine=engine, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():  # at zero some would prove little
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layer


def drawn(share: float = 0.3) -> tuple[Tensor, Tensor]:
    """x [T, B, I] and resets [T, B], among them at the first and at the last step."""
    generator = torch.Generator().manual_seed(1)
    resets = torch.rand(T, B, generator=generator) < share
    resets[0, :2], resets[-1, 0] = torch.tensor([True, False]), True
    return torch.randn(T, B, I, generator=generator, dtype=torch.float64), resets


def random_state(layer: Recurrent) -> list[Tensor]:
    with torch.no_grad():
        state = layer(torch.randn(3, B, I, dtype=torch.float64))[1]  # a count must count
    return list(state) if isinstance(state, tuple) else [state]


def in_parts(layer: Recurrent, x: Tensor, state: Any, lengths: Any, resets: Tensor) -> tuple[Tensor, Any]:
    """What the layer gives without resets on each part of each sequence."""
    given, initial = split(layer._cells(), state, x[0]), split(layer._cells(), None, x[0])
    directions = 2 if layer.bidirectional else 1
    outputs, finals = [], []
    for b in range(B):
        length = T if lengths is None else lengths[b]
        cuts = [0, *(t for t in range(1, length) if resets[t, b]), length]
        pieces, ends = [], []
        for k, (start, stop) in enumerate(pairwise(cuts)):
            carried = [stop == length if i % directions else k == 0 and not resets[0, b] for i in range(len(given))]
            begin = [g if c else s for g, s, c in zip(given, initial, carried)]
            begin = [tuple(s[b : b + 1] for s in states) for states in begin]
            output, final = layer(x[start:stop, b : b + 1], join(begin))
            pieces.append(output)
            ends.append(split(layer._cells(), final, x[0, :1]))
        pieces.append(torch.zeros(T - length, 1, layer.output_size, dtype=x.dtype))
        outputs.append(torch.cat(pieces))
        finals.append([ends[0 if i % directions else -1][i] for i in range(len(given))])
    joined = [tuple(torch.cat(rows) for rows in zip(*of_cell)) for of_cell in zip(*finals)]
    return torch.cat(outputs, 1), join(joined)


def results(run: Any, layer: Recurrent, x: Tensor, states: list[Tensor], lengths: Any, resets: Tensor) -> Any:
    """Output, final states and all gradients of a random linear function of these."""
    x, states = x.clone().requires_grad_(), [s.clone().requires_grad_() for s in states]
    output, final = run(x, states[0] if len(states) == 1 else tuple(states), lengths, resets)
    found = [output, *(final if isinstance(final, tuple) else (final,))]
    generator = torch.Generator().manual_seed(2)
    layer.zero_grad()
    sum((r * torch.randn(r.shape, generator=generator, dtype=r.dtype)).sum() for r in found).backward()
    named = {"x": x} | {f"state {k}": s for k, s in enumerate(states)} | dict(layer.named_parameters())
    gradients = {f"gradient of {k}": torch.zeros_like(t) if t.grad is None else t.grad for k, t in named.items()}
    return {f"result {k}": r.detach() for k, r in enumerate(found)} | gradients


def compare(name: Any, engine: str, lengths: Any = None, **options: Any) -> None:
    layer = make(name, **options).eval()
    x, resets = drawn()
    states = random_state(layer)
    expected = results(lambda *given: in_parts(layer, *given), layer, x, states, lengths, resets)
    layer.engine = engine
    found = results(layer, layer, x, states, lengths, resets)
    assert layer.engine_used == engine
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("engine", ["reference", "serial"])
@pytest.mark.parametrize("name", CELLS)
def test_parts_do_not_know_of_each_other(uncompiled, name, engine, options, lengths):
    compare(name, engine, lengths, **options)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", PARALLEL)
def test_parts_side_by_side(name, options, lengths):
    compare(name, "scan", lengths, **options)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_torchs_own_kernels(name, options, lengths):
    compare(name, "native", lengths, **options)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name, lengths):
    compare(name, "serial", lengths, **OPTIONS["everything"])


@pytest.mark.parametrize("name", list_cells())
def test_every_cell(name):
    compare(name, "reference", LENGTHS, bidirectional=True)


@pytest.mark.parametrize("engine", ["reference", "serial"])
def test_options_of_the_step_go_on(uncompiled, engine):
    compare("lstm", engine, LENGTHS, layer_norm=True, zoneout=0.2, learn_initial_state=True)


@pytest.mark.parametrize("engine", ["serial", "scan"])
def test_random_options_in_training_are_those_of_the_plain_loop(uncompiled, engine):
    name, options = ("gru", {"recurrent_dropout": 0.3}) if engine == "serial" else ("min_gru", {})
    x, resets = drawn()
    found = []
    for each in ("reference", engine):
        layer = make(name, each, zoneout=0.2, **options)
        torch.manual_seed(3)
        found.append(results(layer, layer, x, random_state(make(name)), None, resets))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value)


class One(Cell):
    """Starts at one."""

    W, U = InputWeight(), RecurrentWeight()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x @ self.W + h @ self.U)

    def initial_state(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.new_ones(x.shape[0], self.hidden_size),)


class AsItsInput(One):
    """The same step from elsewhere: a plan must not be taken for that of the other."""

    def initial_state(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.mean(1, keepdim=True).expand(-1, self.hidden_size),)


@pytest.mark.parametrize("engine", ["reference", "serial"])
def test_a_cell_that_chooses_its_initial_state(uncompiled, engine):
    compare(One, engine, LENGTHS)
    x, resets = drawn()
    resets[:] = False
    resets[5] = True
    layer = make(AsItsInput, engine)
    torch.testing.assert_close(layer(x, resets=resets)[0][5:], layer(x[5:])[0])


def test_rows_that_cannot_stay_open_are_left_to_the_reference():
    class Counted(One):
        def initial_state(self, x: Tensor) -> tuple[Tensor, ...]:
            return (x.new_ones(len(x), self.hidden_size),)

    compare(Counted, "reference")
    x, resets = drawn()
    with pytest.raises(UserError, match=r"One.step cannot be traced: it fixes the number of rows, as len\(x\)"):
        make(Counted, "serial")(x, resets=resets)


def test_a_cell_that_is_not_as_it_was_made():
    layer = make("gru")
    parametrizations.orthogonal(layer.cells[0], "U_n")
    x, resets = drawn()
    expected, _ = in_parts(layer, x, None, None, resets)
    for engine in ("reference", "serial"):
        layer.engine = engine
        torch.testing.assert_close(layer(x, resets=resets)[0], expected)
    layer = make("gru")
    prune.l1_unstructured(layer.cells[0], "U_n", amount=0.5)
    expected, _ = in_parts(layer, x, None, None, resets)
    torch.testing.assert_close(layer(x, resets=resets)[0], expected)


@pytest.mark.parametrize("worst", [float("nan"), float("inf")])
@pytest.mark.parametrize(("name", "engine"), [(n, "reference") for n in CELLS] + [(n, "serial") for n in KERNELS]
                         + [(n, "scan") for n in PARALLEL])  # fmt: skip
def test_what_is_left_behind_may_be_anything(name, engine, worst):
    layer = make(name, engine)
    x, resets = drawn()
    states = [torch.full_like(s, worst) for s in random_state(layer)]
    resets[0] = True
    zeros = [torch.zeros_like(s) for s in states]
    expected = results(lambda *given: in_parts(layer, *given), layer, x, zeros, None, resets)
    for key, value in results(layer, layer, x, states, None, resets).items():
        torch.testing.assert_close(value, expected[key])
    # in the middle, long enough for the scan to go in chunks
    x, resets = torch.randn(200, B, I, dtype=torch.float64), torch.zeros(200, B, dtype=torch.bool)
    x[90, 0], resets[[90, 91, 150], 0] = worst, True
    output, final = layer(x, resets=resets)
    alone, alone_final = layer(x[150:, :1])
    torch.testing.assert_close(output[150:, :1], alone)
    assert output[91:].isfinite().all() and output[:, 1:].isfinite().all()
    for f, a in zip(*(s if isinstance(s, tuple) else (s,) for s in (final, alone_final))):
        torch.testing.assert_close(f[:, :1], a)


@pytest.mark.parametrize("name", ["gru", "min_gru"])
def test_no_gradient_passes(name):
    for engine in ("reference", "serial", *(["scan"] if name == "min_gru" else [])):
        layer = make(name, engine, num_layers=2)
        x, resets = drawn()
        x.requires_grad_()
        resets[:] = False
        resets[4] = True
        output, _ = layer(x, resets=resets)
        output[4:].sum().backward(retain_graph=True)
        assert x.grad is not None and x.grad[:4].eq(0).all() and x.grad[4:].ne(0).all()
        x.grad = None
        output[:4].sum().backward()
        assert x.grad[4:].eq(0).all() and x.grad[0].ne(0).all()


def test_shapes_follow_the_input():
    layer = make("lstm")
    x, resets = drawn()
    output, final = layer(x, resets=resets)
    alone, alone_final = layer(x[:, 2], resets=resets[:, 2])
    torch.testing.assert_close(alone, output[:, 2])
    torch.testing.assert_close(alone_final, tuple(s[:, 2] for s in final))
    layer.batch_first = True
    torch.testing.assert_close(layer(x.transpose(0, 1), resets=resets.T), (output.transpose(0, 1), final))


def test_auto_takes_an_engine_that_can(monkeypatch):
    x, resets = drawn()
    layer = make("lstm", "auto")
    layer(x)
    assert layer.engine_used == "native"
    layer(x, resets=resets)
    assert layer.engine_used == "native"
    layer.expected_calls = 10**6
    layer(x, resets=resets)
    assert layer.engine_used == "serial"


def test_nothing_stays_behind():
    layer = make("lstm", "native")
    keys = list(layer.state_dict())
    x, resets = drawn()
    before = layer(x)
    layer.engine = "reference"
    layer(x, resets=resets)
    layer.engine = "native"
    torch.testing.assert_close(layer(x), before)
    assert list(layer.state_dict()) == keys


@pytest.mark.parametrize(
    ("resets", "words"),
    [
        (torch.zeros(T, B), ["torch.bool [9, 4]", "torch.float32 [9, 4]"]),
        (torch.zeros(T, B, dtype=torch.int64), ["torch.bool", "torch.int64"]),
        (torch.zeros(B, T, dtype=torch.bool), ["[9, 4]", "[4, 9]"]),
        (torch.zeros(T, dtype=torch.bool), ["[9, 4]", "[9]"]),
        (torch.zeros(T, B, 1, dtype=torch.bool), ["[9, 4, 1]"]),
        ([[True] * B] * T, ["tensor of torch.bool"]),
        (True, ["tensor of torch.bool", "True"]),
    ],
    ids=str,
)
def test_wrong_resets_are_refused(resets, words):
    with pytest.raises(UserError) as caught:
        make("gru")(drawn()[0], resets=resets)
    message = str(caught.value)
    assert message.startswith("resets must be") and "\n" not in message
    assert all(word in message for word in words)


def test_a_packed_sequence_has_no_resets():
    with pytest.raises(UserError, match="resets need a padded input"):
        make("gru")(pack_sequence([drawn()[0][:, 0]]), resets=drawn()[1])


class Episodes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Recurrent("gru", I, H)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, resets=x[:, :, 0] > 0)[0]


@pytest.mark.parametrize("form", FORMS)
def test_a_file_has_no_resets(form):
    with pytest.raises(UserError, match=rf"{form}: GRU has no such form: .*resets"):
        export(Episodes(), form)
