"""In place of nn.LSTM: what programs written for torch's layers say, sizes that torch's cannot have, and empty batches.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from varied import VARIED

from rnnzoo import Recurrent, UserError, list_cells
from rnnzoo.engine import serial, steps
from rnnzoo.hydra.param_match import count_parameters

I, H = 3, 4  # noqa: E741  I is the input size everywhere in this project
TORCH = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
ENGINES = [(name, "reference") for name in VARIED] + [(name, "serial") for name in VARIED] \
    + [(name, "native") for name in TORCH] + [("qrnn", "scan"), ("gla", "scan")]  # fmt: skip


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are run by torch as they are."""
    monkeypatch.setattr(serial, "_programs", {})
    monkeypatch.setattr(serial, "loop", lambda plan, *options: steps.Steps(plan, compiled=False))


def every(state: Any) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


# What is said


@pytest.mark.parametrize("options", [{"bias": True}, {"proj_size": 0}, {"device": None, "dtype": None}], ids=str)
@pytest.mark.parametrize("name", TORCH)
def test_keywords_that_ask_for_nothing_more_are_taken(name, options):
    TORCH[name](I, H, **options if name == "lstm" or "proj_size" not in options else {})
    layer = Recurrent(name, I, H, num_layers=2, **options)
    layer.flatten_parameters()
    assert layer(torch.randn(5, 2, I))[0].shape == (5, 2, H)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bias": False}, ["bias=False", "LSTM's equations", "leave it out"]),
        ({"proj_size": 2}, ["proj_size=2", "projection=", "lstm_projected"]),
        ({"nonlinearity": "relu"}, ["nonlinearity='relu'", "LSTM", "rnn"]),
        ({"device": "cuda"}, ["device='cuda'", ".to(device)"]),
        ({"dtype": torch.float64}, ["dtype=torch.float64", ".to(dtype)"]),
        ({"biass": True}, ["LSTM has no hyperparameter 'biass'"]),
    ],
    ids=str,
)
def test_other_keywords_say_what_to_say_instead(options, words):
    with pytest.raises(UserError) as caught:
        Recurrent("lstm", I, H, **options)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words)


def test_the_cell_for_torchs_projection_is_named_rightly():
    layer = Recurrent("lstm_projected", I, H, projection_size=2)
    theirs = nn.LSTM(I, H, proj_size=2)
    x = torch.randn(5, 2, I)  # theirs is not run: that warns that oneDNN has no projections
    expected = [theirs.get_expected_hidden_size(x, None), theirs.get_expected_cell_size(x, None)]
    assert [tuple(s.shape) for s in layer(x)[1]] == expected


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", TORCH)
def test_torchs_weights_are_for_load_torch(name, strict):
    theirs = nn.ModuleDict({"encoder": TORCH[name](I, H, num_layers=2)})
    ours = nn.ModuleDict({"encoder": Recurrent(name, I, H, num_layers=2)})
    before = copy.deepcopy(ours.state_dict())
    for module, weights, key in (
        (ours, theirs.state_dict(), "'encoder.'"),
        (ours["encoder"], theirs["encoder"].state_dict(), "this state dict"),
    ):
        with pytest.raises(UserError, match=r"weight_ih_l0 is of a layer of torch\.nn; give .* load_torch") as caught:
            module.load_state_dict(weights, strict=strict)
        assert key in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in ours.state_dict().items())


def test_only_what_is_there_is_shown():
    assert "projections" not in repr(Recurrent("lstm", I, H))
    assert "projections" in repr(Recurrent("lstm", I, H, projection=2))


# A size for each layer


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("name", [*VARIED, "gla", "mlstm"])
def test_layers_of_different_sizes_are_layers_one_after_another(name, bidirectional):
    torch.manual_seed(0)
    layer = Recurrent(name, I, (6, 4, 2), num_layers=3, bidirectional=bidirectional, engine="reference").double()
    assert (layer.hidden_sizes, layer.hidden_size) == ((6, 4, 2), 2)
    directions = 2 if bidirectional else 1
    x = torch.randn(5, 2, I, dtype=torch.float64)
    expected, finals = x, []
    for k, size in enumerate(layer.hidden_sizes):
        single = Recurrent(name, expected.shape[-1], size, bidirectional=bidirectional, engine="reference").double()
        for d in range(directions):
            single.cells[d].load_state_dict(layer.cells[k * directions + d].state_dict())
        expected, final = single(expected)
        finals.append(every(final))
    output, final = layer(x)
    assert output.shape[-1] == layer.output_size
    torch.testing.assert_close(output, expected)
    for whole, parts in zip(every(final), zip(*finals)):
        for k, part in enumerate(parts):
            mine = whole[k * directions : (k + 1) * directions]
            inside = mine[tuple(slice(n) for n in part.shape)]
            torch.testing.assert_close(inside, part)
            assert mine.count_nonzero() == inside.count_nonzero()  # the rest is zero
    # a state goes back in as it came out
    first, state = layer(x[:2])
    if not bidirectional:
        torch.testing.assert_close(torch.cat([first, layer(x[2:], state)[0]]), output)


@pytest.mark.parametrize("name", ["lstm", "gla", "scrn"])
def test_different_sizes_go_with_everything_else(uncompiled, name):
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_layers": 2, "learn_initial_state": True, "zoneout": 0.1 if name != "gla" else 0.0}
    layer = Recurrent(name, I, [4, 2], residual=True, projection=I, **options).double().eval()
    x = torch.randn(5, 2, I, dtype=torch.float64)
    output, final = layer(x)
    stepper, state, stepped = layer.stepper(), None, []
    for x_t in x:
        y, state = layer.step(x_t, state)
        stepped.append(y)
        torch.testing.assert_close(stepper(x_t), y)
    torch.testing.assert_close(torch.stack(stepped), output)
    torch.testing.assert_close(every(state), every(final))
    torch.testing.assert_close(every(stepper.state), every(final))
    layer.engine = "serial"
    torch.testing.assert_close(layer(x, final, [5, 2])[0], copy.deepcopy(layer)(x, final, [5, 2])[0])
    torch.testing.assert_close(layer(x, lengths=[5, 3])[0][:3], output[:3])


def test_parameters_of_different_sizes_are_counted():
    layer = Recurrent("gru", I, [5, 2], num_layers=2, bidirectional=True)
    counted = count_parameters([5, 2], I, "gru", num_layers=2, bidirectional=True)
    assert counted == sum(p.numel() for p in layer.parameters())


def test_torch_has_one_size():
    with pytest.raises(UserError, match=r"no torch weights .* one hidden size for all, not \[2, 4\]"):
        Recurrent("lstm", I, [4, 2], num_layers=2).torch_state_dict()
    same = Recurrent("lstm", I, [H, H], num_layers=2)
    same.load_torch(nn.LSTM(I, H, num_layers=2).state_dict())


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ([4], ["hidden_size=[4]", "1 sizes for 2 layers", "num_layers"]),
        ([4, 4, 4], ["3 sizes for 2 layers"]),
        ([], ["0 sizes for 2 layers"]),
        ([4, 0], ["positive integer", "[4, 0]"]),
        ([4, "4"], ["positive integer"]),
        ([4, True], ["positive integer"]),
        ({4, 5}, ["positive integer"]),
        (None, ["hidden_size must be", "None"]),
        (torch.tensor([4, 4]), ["positive integer"]),
    ],
    ids=str,
)
def test_wrong_sizes_are_refused(size, words):
    with pytest.raises(UserError) as caught:
        Recurrent("lstm", I, size, num_layers=2)
    assert all(word in str(caught.value) for word in words)


# No sequence at all


@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize("engine", ["auto", "reference", "native", "serial"])
@pytest.mark.parametrize("name", TORCH)
def test_an_empty_batch_is_as_torch_has_it(uncompiled, name, engine, batch_first):
    shape: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "batch_first": batch_first}
    x = torch.zeros((0, 5, I) if batch_first else (5, 0, I), requires_grad=True)
    expected, state = TORCH[name](I, H, **shape)(x)
    layer = Recurrent(name, I, H, engine=engine, **shape)
    for given in ({}, {"lengths": []}, {"lengths": torch.zeros(0, dtype=torch.int64)}, {"state": state}):
        output, final = layer(x, **given)
        assert output.shape == expected.shape
        assert [s.shape for s in every(final)] == [s.shape for s in every(state)]
        output.sum().backward()
        assert all(p.grad is not None and p.grad.eq(0).all() for p in layer.parameters())
    for wrong in ([1], torch.zeros(1, 0)):
        with pytest.raises(UserError, match="0 integers"):
            layer(x, lengths=wrong)


@pytest.mark.parametrize(("name", "engine"), ENGINES)
def test_an_empty_batch_on_every_engine(uncompiled, name, engine):
    layer = Recurrent(name, I, H, num_layers=2, engine=engine)
    x = torch.zeros(5, 0, I)
    one, states = layer(torch.zeros(5, 1, I))
    given: list[dict[str, Any]] = [{}, {"lengths": []}]
    given += [] if engine == "native" else [{"resets": torch.zeros(5, 0, dtype=torch.bool)}]
    for options in given:
        output, final = layer(x, **options)
        assert output.shape == (5, 0, one.shape[-1])
        assert [s.shape for s in every(final)] == [(s.shape[0], 0, *s.shape[2:]) for s in every(states)]
        layer(x, final, **options)


@pytest.mark.parametrize("name", list_cells())
def test_an_empty_batch_of_every_cell(name):
    layer = Recurrent(name, I, 12, bidirectional=True, engine="reference", learn_initial_state=False)
    output, _ = layer(torch.zeros(5, 0, I, requires_grad=True))
    assert output.shape == (5, 0, layer.output_size)
    output.sum().backward()


@pytest.mark.parametrize("engine", ["reference", "serial"])
def test_an_empty_batch_stepped(engine):
    layer = Recurrent("gru", I, H, engine=engine).eval()
    y, state = layer.step(torch.zeros(0, I))
    assert y.shape == (0, H) and state.shape == (1, 0, H)
    stepper = layer.stepper()
    assert stepper(torch.zeros(0, I)).shape == stepper(torch.zeros(0, I)).shape == (0, H)


def test_no_time_step_is_an_error_as_in_torch():
    with pytest.raises(RuntimeError):
        nn.LSTM(I, H)(torch.zeros(0, 2, I))
    for shape in ((0, 2, I), (0, 0, I), (0, I)):
        with pytest.raises(UserError, match="no time step"):
            Recurrent("lstm", I, H)(torch.zeros(shape))
