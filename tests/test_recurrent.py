"""The layer people use: like torch's for torch's cells, and the same promises for every other cell.

The truth is torch's own module, or a cell stepped by hand over each sequence alone.
Shapes: T time steps, B batch, I input size, H hidden size, L layers, D directions.
"""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from varied import VARIED

from rnnzoo import Cell, InputWeight, Recurrent, UserError
from rnnzoo.engine import cpp, stepping

I, H = 3, 4  # noqa: E741  I is the input size everywhere in this project
TORCH = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
few = settings(deadline=None, max_examples=5, derandomize=True, database=None)
cells = pytest.mark.parametrize("name", VARIED)


class Copy(Cell):
    """The new state is the input, so that what a layer adds to its cells can be seen; not registered."""

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return x + 0 * h


class Outer(Cell):
    """A matrix state, a running sum of outer products, that is read by its own equation."""

    V = InputWeight()

    def step(self, x: Tensor, S: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        v = torch.tanh(x @ self.V)
        return 0.9 * S + v[:, :, None] * v[:, None, :], n + 1  # [B, H, H], [B, H]

    def readout(self, x: Tensor, S: Tensor, n: Tensor) -> Tensor:
        return (S @ (x @ self.V)[..., None])[..., 0] / n

    def initial_state(self, x: Tensor) -> tuple[Tensor, ...]:
        B = x.shape[0]
        return x.new_zeros(B, self.hidden_size, self.hidden_size), x.new_zeros(B, self.hidden_size)


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def random_state(layer: Recurrent, batch: int):
    """As torch's modules take it: a tensor for one state, a tuple for several."""
    x = double(3, batch, layer.input_size)  # run, so that a count counts and a past input has its size
    _, state = layer(x.transpose(0, 1) if layer.batch_first else x)
    return state.detach() if isinstance(state, Tensor) else tuple(s.detach() for s in state)


def row(state, b: slice | int):
    """Some sequences' part of a state [L·D, B, ...]."""
    return state[:, b] if isinstance(state, Tensor) else tuple(s[:, b] for s in state)


def twins(name: str, **shape):
    """torch's module and our layer with its weights."""
    module = TORCH[name](I, H, **shape).double()
    layer = Recurrent(name, I, H, **shape).double()
    layer.load_torch(module.state_dict())
    return module, layer


def assert_same(actual, expected) -> None:
    """Values, shapes and types, `PackedSequence`s field by field."""
    assert type(actual) is type(expected)
    if isinstance(actual, tuple):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected):
            assert_same(a, e)
    elif actual is not None:
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("with_state", [False, True], ids=["zero", "state"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize("B", [None, 1, 3], ids=["unbatched", "B1", "B3"])
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, False), (1, True), (2, True)])
@pytest.mark.parametrize("name", TORCH)
def test_used_like_torch(name, layers, bidirectional, B, batch_first, with_state):
    torch.manual_seed(0)
    module, layer = twins(name, num_layers=layers, bidirectional=bidirectional, batch_first=batch_first)
    T = 5
    x = double(T, I) if B is None else double(B, T, I) if batch_first else double(T, B, I)
    state = random_state(layer, B or 1) if with_state else None
    if with_state and B is None:
        state = row(state, 0)
    assert_same(layer(x, state), module(x, state))
    assert layer.output_size == module(x)[0].shape[-1]


@pytest.mark.parametrize("lengths", [[5, 3, 3, 1], [3, 5, 1, 3], [2, 2, 2, 2], [4]], ids=str)
@pytest.mark.parametrize("with_state", [False, True], ids=["zero", "state"])
@pytest.mark.parametrize("enforce_sorted", [False, True], ids=["any_order", "sorted"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize("name", TORCH)
def test_packed_sequences_like_torch(name, batch_first, enforce_sorted, with_state, lengths):
    torch.manual_seed(0)
    lengths = sorted(lengths, reverse=True) if enforce_sorted else lengths
    module, layer = twins(name, num_layers=2, bidirectional=True, batch_first=batch_first)
    packed = pack_sequence([double(length, I) for length in lengths], enforce_sorted)
    state = random_state(layer, len(lengths)) if with_state else None
    output, final = layer(packed, state)
    assert isinstance(output, PackedSequence)
    assert_same((output, final), module(packed, state))


def test_gradient_passes_through_packed_sequences():
    torch.manual_seed(0)
    module, layer = twins("gru", bidirectional=True)
    x = double(5, 3, I)
    found = []
    for run in (module, layer):
        leaf = x.clone().requires_grad_()
        output, final = run(pack_padded_sequence(leaf, [2, 5, 4], enforce_sorted=False))
        (output.data.sin().sum() + final.sum()).backward()
        found.append(leaf.grad)
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("engine", ["native", "reference"])
@pytest.mark.parametrize("name", TORCH)
def test_weights_exported_to_torch_run_the_same_and_return_exactly(name, engine):
    torch.manual_seed(0)
    shape = {"num_layers": 2, "bidirectional": True}
    layer = Recurrent(name, I, H, engine=engine, **shape).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    module = TORCH[name](I, H, **shape).double()
    exported = layer.torch_state_dict()
    assert list(exported) == list(module.state_dict())
    assert not any(tensor.requires_grad for tensor in exported.values())
    module.load_state_dict(exported)
    x = double(5, 2, I)
    torch.testing.assert_close(layer(x), module(x))

    fresh = Recurrent(name, I, H, **shape).double()
    fresh.load_torch(module.state_dict())
    for key, parameter in layer.named_parameters():
        assert torch.equal(dict(fresh.named_parameters())[key], parameter), key
    # the weights were copied: training one leaves the other as it is
    with torch.no_grad():
        module.weight_ih_l0.zero_()
    assert fresh.cells[0].get_parameter(next(iter(fresh.cells[0].weights))).ne(0).any()


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.LSTM(I, H + 1), ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]),
        (nn.LSTM(I, H, num_layers=2), ["weight_ih_l1"]),
        (nn.LSTM(I, H, bidirectional=True), ["weight_hh_l0_reverse"]),
        (nn.LSTM(I, H, bias=False), ["bias_ih_l0", "bias_hh_l0"]),
        (nn.LSTM(I, H, proj_size=2), ["weight_hr_l0"]),
        (nn.GRU(I, H), ["weight_ih_l0"]),
    ],
    ids=str,
)
def test_torch_weights_that_do_not_fit_are_named_and_change_nothing(module, words):
    layer = Recurrent("lstm", I, H)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(UserError) as caught:
        layer.load_torch(module.state_dict())
    assert all(word in str(caught.value) for word in ["torch weights do not fit", *words])
    assert all(torch.equal(tensor, before[key]) for key, tensor in layer.state_dict().items())


def test_cells_that_torch_lacks_have_no_torch_weights():
    layer = Recurrent("mgu", I, H)
    for use in (layer.torch_state_dict, lambda: layer.load_torch(nn.GRU(I, H).state_dict())):
        with pytest.raises(UserError, match=r"no torch weights for this layer.*MGU"):
            use()


def by_hand(layer: Recurrent, x: Tensor, state) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """One full batch x [T, B, I] with a loop over time for each cell, from a state as the layer takes it."""
    tensors = (state,) if isinstance(state, Tensor) else state
    directions = 2 if layer.bidirectional else 1
    finals = []
    for first in range(0, len(layer.cells), directions):
        outputs = []
        for index in range(first, first + directions):
            cell, ys = layer.cells[index], []
            now = tuple(s[index][..., : z.shape[-1]] for s, z in zip(tensors, cell.initial_state(x[0])))
            for x_t in x.flip(0) if index > first else x:
                now = cell(x_t, *now)
                ys.append(cell.readout(x_t, *now))
            outputs.append(torch.stack(ys[::-1] if index > first else ys))
            finals.append(now)
        x = torch.cat(outputs, -1)
    return x, finals


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@cells
@few
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4), more=st.integers(0, 2), seed=st.integers(0, 99))
def test_lengths_equal_each_sequence_alone(name, bidirectional, engine, lengths, more, seed):
    torch.manual_seed(seed)
    layer = Recurrent(name, I, H, num_layers=2, bidirectional=bidirectional, engine=engine).double()
    T, B = max(lengths) + more, len(lengths)
    x, state = double(T, B, I), random_state(layer, B)
    for b, length in enumerate(lengths):
        x[length:, b] = float("nan")
    x.requires_grad_()

    output, final = layer(x, state, lengths)
    output.sin().sum().backward()
    batched = (x.grad, [parameter.grad for parameter in layer.parameters()])
    x.grad = None
    layer.zero_grad()
    for b, length in enumerate(lengths):
        alone, finals = by_hand(layer, x[:length, b : b + 1], row(state, slice(b, b + 1)))
        torch.testing.assert_close(output[:length, b], alone[:, 0])
        assert output[length:, b].eq(0).all()
        mine = (final[:, b],) if isinstance(final, Tensor) else tuple(s[:, b] for s in final)
        for k, s in enumerate(mine):
            for index, f in enumerate(finals):
                width = f[k].shape[-1]
                torch.testing.assert_close(s[index][..., :width], f[k][0])
                assert s[index][..., width:].eq(0).all()  # where layers' widths differ
        alone.sin().sum().backward()
    torch.testing.assert_close(batched[0], x.grad)
    torch.testing.assert_close(batched[1], [parameter.grad for parameter in layer.parameters()])


@pytest.mark.parametrize("name", ["lstm", "mgu"])
def test_lengths_with_batch_first(name):
    torch.manual_seed(0)
    layer = Recurrent(name, I, H, bidirectional=True).double()
    x = double(5, 3, I)
    output, final = layer(x, lengths=[2, 5, 1])
    layer.batch_first = True
    output_2, final_2 = layer(x.transpose(0, 1), lengths=torch.tensor([2, 5, 1]))
    torch.testing.assert_close(output_2, output.transpose(0, 1))
    torch.testing.assert_close(final_2, final)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("engine", ["native", "reference"])
def test_lengths_of_any_integer_type(engine, dtype):
    torch.manual_seed(0)
    layer = Recurrent("lstm", I, H, bidirectional=True, engine=engine).double()
    x = double(300, 3, I)
    lengths = [120, 1, 37]  # 300 steps would not fit into 8 bits, these lengths do
    torch.testing.assert_close(layer(x, lengths=torch.tensor(lengths).to(dtype)), layer(x, lengths=lengths))


class Direction(Cell):
    """Looks at the direction of its input only, which a zero input does not have; not registered."""

    W = InputWeight()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        a = x @ self.W
        return 0.5 * h + a / a.square().sum(-1, keepdim=True).sqrt()


def test_lengths_with_a_cell_that_is_undefined_at_zero_input():
    torch.manual_seed(0)
    layer = Recurrent(Direction, I, H).double()
    x = double(5, 2, I)
    output, _ = layer(x, lengths=[5, 2])
    output.sin().sum().backward()
    found = layer.cells[0].W.grad
    layer.zero_grad()
    for b, length in enumerate([5, 2]):
        layer(x[:length, b : b + 1])[0].sin().sum().backward()
    assert layer.cells[0].W.grad.isfinite().all()
    torch.testing.assert_close(found, layer.cells[0].W.grad)


@cells
def test_steps_equal_the_whole(name):
    torch.manual_seed(0)
    layer = Recurrent(name, I, H, num_layers=2).double().eval()
    x = double(6, 2, I)
    for state in (None, random_state(layer, 2)):
        whole, final = layer(x, state)
        stepper = layer.stepper(state)
        torch.testing.assert_close(torch.stack([stepper(x_t) for x_t in x]), whole)
        torch.testing.assert_close(stepper.state, final)
        outputs = []
        for x_t in x:
            y, state = layer.step(x_t, state)
            outputs.append(y)
        torch.testing.assert_close(torch.stack(outputs), whole)
        torch.testing.assert_close(state, final)


@cells
@few
@given(cuts=st.lists(st.integers(1, 8), max_size=3, unique=True).map(sorted), seed=st.integers(0, 99))
def test_state_carried_between_chunks_equals_the_whole(name, cuts, seed):
    torch.manual_seed(seed)
    layer = Recurrent(name, I, H, num_layers=2).double()
    x, state = double(9, 2, I), None
    whole, final = layer(x)
    outputs = []
    for start, end in zip([0, *cuts], [*cuts, 9]):
        output, state = layer(x[start:end], state)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs), whole)
    torch.testing.assert_close(state, final)


@pytest.mark.parametrize("stepwise", [False, True], ids=["whole", "steps"])
def test_dropout_between_layers_only_and_only_in_training(stepwise):
    torch.manual_seed(0)
    layer = Recurrent(Copy, I, I, num_layers=3, dropout=0.25).double()
    x = double(50, 8, I)

    def run():
        if not stepwise:
            return layer(x)
        state, outputs = None, []
        for x_t in x:
            y, state = layer.step(x_t, state)
            outputs.append(y)
        return torch.stack(outputs), state

    layer.eval()
    assert torch.equal(run()[0], x)

    layer.train()
    output, states = run()
    dropped = output.eq(0)
    # Two gaps between three layers: what is left was scaled twice, and (3/4)² of all is left. 1,200 draws.
    torch.testing.assert_close(output[~dropped], x[~dropped] / 0.75**2)
    assert dropped.double().mean().item() == pytest.approx(1 - 0.75**2, abs=0.06)
    # the first layer sees its input whole, and the last one's output is not dropped on its way out
    assert torch.equal(states[0], x[-1])
    assert torch.equal(states[2], output[-1])
    assert not torch.equal(run()[0], output)


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
def test_a_cell_with_its_own_readout_and_a_matrix_state(bidirectional, engine):
    torch.manual_seed(0)
    layer = Recurrent(Outer, I, H, num_layers=2, bidirectional=bidirectional, engine=engine).double()
    x, state = double(6, 3, I), random_state(layer, 3)
    directions = 2 if bidirectional else 1
    assert [tuple(s.shape) for s in state] == [(2 * directions, 3, H, H), (2 * directions, 3, H)]
    state = state[0], state[1].abs() + 1

    output, final = layer(x, state)
    expected, finals = by_hand(layer, x, state)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(final, tuple(torch.stack(s) for s in zip(*finals)))

    lengths = [6, 2, 4]
    output, final = layer(x, state, lengths)
    for b, length in enumerate(lengths):
        expected, finals = by_hand(layer, x[:length, b : b + 1], row(state, slice(b, b + 1)))
        torch.testing.assert_close(output[:length, b], expected[:, 0])
        assert output[length:, b].eq(0).all()
        for k in range(2):
            torch.testing.assert_close(final[k][:, b], torch.stack([f[k][0] for f in finals]))


def test_steps_of_a_cell_with_its_own_readout():
    torch.manual_seed(0)
    layer = Recurrent(Outer, I, H, num_layers=2).double()
    x, state = double(5, 3, I), None
    whole, final = layer(x)
    for t, x_t in enumerate(x):
        y, state = layer.step(x_t, state)
        torch.testing.assert_close(y, whole[t])
    torch.testing.assert_close(state, final)


def test_a_cell_class_that_is_not_registered():
    layer = Recurrent(Copy, I, I, num_layers=2, bidirectional=False)
    x = torch.randn(4, 2, I)
    output, final = layer(x)
    assert torch.equal(output, x)
    assert torch.equal(final, x[-1:].expand(2, 2, I))


def test_hyperparameters_reach_every_cell():
    layer = Recurrent("rnn", I, H, num_layers=2, bidirectional=True, nonlinearity="relu")
    assert all(cell.nonlinearity == "relu" for cell in layer.cells)


def make(**options):
    return Recurrent(**{"cell": "lstm", "input_size": I, "hidden_size": H, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cell": "lstn"}, ["'lstn'", "did you mean", "lstm"]),
        ({"input_size": 0}, ["input_size", "0"]),
        ({"hidden_size": -1}, ["hidden_size", "-1"]),
        ({"num_layers": 0}, ["num_layers", "0"]),
        ({"num_layers": 2.0}, ["num_layers", "2.0"]),
        ({"num_layers": True}, ["num_layers", "True"]),
        ({"num_layers": 2, "dropout": 1.0}, ["dropout", "1.0"]),
        ({"num_layers": 2, "dropout": -0.1}, ["dropout", "-0.1"]),
        ({"num_layers": 2, "dropout": float("nan")}, ["dropout", "nan"]),
        ({"dropout": 0.5}, ["dropout", "between layers", "num_layers", "dropout=0"]),
        ({"forget_bais": 1.0}, ["'forget_bais'", "did you mean forget_bias"]),
        ({"cell": "gru", "alpha": 1.0}, ["GRU", "'alpha'", "known", "zoneout"]),
        ({"forget_bias": "high"}, ["forget_bias", "number", "'high'"]),
        ({"cell": "rnn", "nonlinearity": "sine"}, ["nonlinearity", "'tanh' or 'relu'", "'sine'"]),
        ({"hidden_size": "4"}, ["hidden_size", "'4'"]),
        ({"num_layers": "2"}, ["num_layers", "'2'"]),
        ({"num_layers": 2, "dropout": "0.5"}, ["dropout", "'0.5'"]),
        ({"bidirectional": "no"}, ["bidirectional", "'no'"]),
        ({"batch_first": "no"}, ["batch_first", "'no'"]),
        ({"engine": None}, ["engine", "None"]),
        ({"cell": 5}, ["cell", "5"]),
        ({"cell": nn.LSTM}, ["cell", "LSTM"]),
        ({"cell": Copy(I, H)}, ["cell", "Copy"]),
    ],
    ids=str,
)
def test_wrong_options_are_refused_by_name(options, words):
    with pytest.raises(UserError) as caught:
        make(**options)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words)


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((5, 2, I + 1), {}, [f"{I} features", f"[5, 2, {I + 1}]"]),
        ((5, I - 1), {}, [f"{I} features", f"[5, {I - 1}]"]),
        ((I,), {}, ["3 dimensions", f"[{I}]"]),
        ((2, 5, 2, I), {}, ["3 dimensions"]),
        ((0, 2, I), {}, ["no time step"]),
        ((0, I), {}, ["no time step"]),
        ((5, 2, I), {"lengths": [5]}, ["2 integers", "[5]"]),
        ((5, 2, I), {"lengths": [5, 5, 5]}, ["2 integers", "[5, 5, 5]"]),
        ((5, 2, I), {"lengths": [[5, 5]]}, ["2 integers"]),
        ((5, 2, I), {"lengths": []}, ["2 integers"]),
        ((5, 2, I), {"lengths": 5}, ["2 integers"]),
        ((5, 2, I), {"lengths": [5.0, 3.0]}, ["2 integers"]),
        ((5, 2, I), {"lengths": torch.tensor([True, True])}, ["2 integers"]),
        ((5, 2, I), {"lengths": [0, 5]}, ["between 1 and 5", "[0, 5]"]),
        ((5, 2, I), {"lengths": [-1, 5]}, ["between 1 and 5"]),
        ((5, 2, I), {"lengths": [5, 6]}, ["between 1 and 5", "[5, 6]"]),
        ((5, 2, I), {"state": torch.zeros(1, 2, H)}, [f"h [1, 2, {H}], c [1, 2, {H}]"]),
        ((5, 2, I), {"state": (torch.zeros(1, 2, H), torch.zeros(2, H))}, [f"c [1, 2, {H}]", f"[2, {H}]"]),
        ((5, 2, I), {"state": (torch.zeros(1, 3, H),) * 2}, [f"h [1, 2, {H}]", f"[1, 3, {H}]"]),
        ((5, 2, I), {"state": (torch.zeros(2, 2, H),) * 2}, [f"h [1, 2, {H}]", f"[2, 2, {H}]"]),
        ((5, I), {"state": (torch.zeros(1, H + 1),) * 2}, [str(H + 1)]),
    ],
    ids=str,
)
@pytest.mark.parametrize("engine", ["native", "reference"])
def test_wrong_input_is_refused(engine, shape, options, words):
    with pytest.raises(UserError) as caught:
        make(engine=engine)(torch.zeros(shape), **options)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words)


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_a_packed_sequence_is_checked_too(engine):
    with pytest.raises(UserError, match="leave lengths out"):
        make(engine=engine)(pack_sequence([torch.zeros(2, I)]), lengths=[2])
    with pytest.raises(UserError, match=r"h \[1, 1, 4\]"):
        make(engine=engine)(pack_sequence([torch.zeros(2, I)]), (torch.zeros(1, 2, H),) * 2)
    # in float32, torch's LSTM kernel does not check this one and returns whatever memory holds
    with pytest.raises(UserError, match=f"{I} features"):
        make(engine=engine)(pack_sequence([torch.zeros(2, I + 2)]))


@pytest.mark.parametrize("shape", [(I,), (2, I + 1), (2, 2, I)], ids=str)
def test_a_step_of_a_wrong_shape_is_refused(shape):
    with pytest.raises(UserError) as caught:
        make().step(torch.zeros(shape))
    assert str(list(shape)) in str(caught.value)


def test_a_step_from_a_state_of_a_wrong_shape_is_refused():
    with pytest.raises(UserError, match=r"h \[1, 2, 4\]"):
        make().step(torch.zeros(2, I), (torch.zeros(1, 3, H),) * 2)


def test_a_bidirectional_layer_cannot_be_stepped():
    with pytest.raises(UserError, match="whole sequence"):
        make(bidirectional=True).step(torch.zeros(2, I))
    with pytest.raises(UserError, match="whole sequence"):
        make(bidirectional=True).stepper()


def test_a_stepper_is_of_a_trained_layer():
    with pytest.raises(UserError, match=r"call its eval\(\) first"):
        make().stepper()
    layer = make(layer_norm=True, zoneout=0.2, projection=2).eval()
    stepper, x = layer.stepper(), torch.randn(5, 2, I)
    output = torch.stack([stepper(x_t) for x_t in x])
    assert not output.requires_grad
    torch.testing.assert_close(output, layer(x)[0])


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", VARIED)
@pytest.mark.usefixtures("shared_kernels")
def test_a_stepper_goes_on_when_it_is_compiled(name, rows, monkeypatch):
    """After a few steps, and for more than lie in one block of memory; from inputs, and from the numbers of such."""
    monkeypatch.setattr(stepping, "PAYS_BACK", 100)
    torch.manual_seed(0)
    layer = Recurrent(name, I, H, num_layers=2, engine="reference").double().eval()
    inputs = double(5, I)
    codes = torch.randint(5, (cpp.BLOCK + 30, rows))
    first = random_state(layer, rows)
    whole, final = layer(inputs[codes], first)
    layer.engine = "auto"
    for known, steps in ((None, inputs[codes]), (inputs, codes)):
        stepper = layer.stepper(first, known)
        torch.testing.assert_close(torch.stack([stepper(step) for step in steps]), whole)
        torch.testing.assert_close(stepper.state, final)
        assert all(frozen.kernel is not None for frozen in stepper._cells)


def test_a_compiled_stepper_takes_what_a_layer_takes():
    """A state of another dtype, and no number of an input that is not there."""
    layer = make(engine="serial").eval()
    inputs, codes = torch.randn(4, I), torch.randint(4, (6, 1))
    state = tuple(torch.randn(1, 1, H, dtype=torch.float64) for _ in range(2))
    stepper = layer.stepper(state, inputs)
    torch.testing.assert_close(torch.stack([stepper(step) for step in codes]), layer(inputs[codes], state)[0])
    for wrong in (4, -1):
        with pytest.raises(IndexError, match=f"input {wrong} is not among the 4"):
            stepper(torch.tensor([wrong]))


@pytest.mark.parametrize("options", [{"residual": True, "projection": I}, {"block": "glu"}], ids=str)
def test_a_stepper_of_several_layers_takes_numbers(options):
    layer = make(num_layers=2, **options).eval()
    inputs, codes = torch.randn(4, I), torch.randint(4, (6, 2))
    stepper = layer.stepper(known=inputs)
    torch.testing.assert_close(torch.stack([stepper(step) for step in codes]), layer(inputs[codes])[0])


def test_state_dict_keys_name_cell_and_parameter():
    layer = Recurrent("gru", I, H, num_layers=2, bidirectional=True)
    names = [f"{kind}_{g}" for g in "rzn" for kind in "WUb"] + ["c_n"]
    assert list(layer.state_dict()) == [f"cells.{k}.{name}" for k in range(4) for name in names]


def test_a_checkpoint_fits_whatever_the_engine():
    torch.manual_seed(0)
    fast, plain = (Recurrent("gru", I, H, engine=engine) for engine in ("native", "reference"))
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(4, 2, I)
    torch.testing.assert_close(plain(x), fast(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@cells
def test_copies_are_equal_and_apart(name, duplicate):
    layer = Recurrent(name, I, H, num_layers=2, dropout=0.1).eval()
    x = torch.randn(4, 2, I)
    before = layer(x)[0]
    other = duplicate(layer)
    assert repr(other) == repr(layer)
    assert torch.equal(other(x)[0], before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert torch.equal(layer(x)[0], before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", [None, [4, 2]], ids=["full", "ragged"])
@cells
def test_a_layer_keeps_its_dtype(name, lengths, dtype):
    layer = Recurrent(name, I, H, num_layers=2, bidirectional=True).to(dtype)
    output, final = layer(torch.randn(4, 2, I, dtype=dtype), lengths=lengths)
    assert output.dtype == dtype
    assert all(s.dtype == dtype for s in ((final,) if isinstance(final, Tensor) else final))


def test_nothing_is_written_to_what_the_caller_gave():
    layer = make(num_layers=2).double()
    x, state, lengths = double(5, 2, I), (double(2, 2, H), double(2, 2, H)), torch.tensor([2, 5])
    before = copy.deepcopy((x, state, lengths))
    layer(x, state, lengths)
    assert_same((x, state, lengths), before)
