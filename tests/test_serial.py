"""The serial engine equals the plain loop: varied cells by their plans, and a handful by their compiled kernels.

All cells of the zoo are in test_check.py. What `torch.empty` returns is filled with NaN, and so is the padding of
ragged batches.
Shapes: T time steps, B batch, I input size, H hidden size.
"""

import copy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap
from varied import CHANGES, VARIED, pruned

from rnnzoo import Bias, Cell, InputWeight, Recurrent, RecurrentWeight, Scalar, UserError
from rnnzoo import engine as engines
from rnnzoo.engine import cpp, library, serial, steps
from rnnzoo.engine import plan as plans

I, H = 3, 5  # noqa: E741  I is the input size everywhere in this project
KERNELS = ["rnn", "lstm", "gru", "mgu", "lstm_peephole"]


TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
cells = pytest.mark.parametrize("name", VARIED)
kernels = pytest.mark.parametrize("name", KERNELS)


pytestmark = pytest.mark.usefixtures("empty_memory_is_nan", "shared_kernels", "as_users_compile")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are run by torch as they are: compiling takes seconds, and what can be wrong is the rewriting."""
    monkeypatch.setattr(serial, "_programs", {})
    monkeypatch.setattr(serial, "loop", lambda plan, *options: steps.Steps(plan, compiled=False))


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The compiler's runs from here on, as if nothing had been compiled before."""
    monkeypatch.setenv("RNNZOO_CACHE", str(tmp_path / "cache"))
    forget(monkeypatch)
    run, calls = subprocess.run, []

    def counted(command: list[str], *args: Any, **options: Any) -> Any:
        if "-shared" in command:
            calls.append(command)
        return run(command, *args, **options)

    monkeypatch.setattr(subprocess, "run", counted)
    return calls


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new process would not know."""
    monkeypatch.setattr(library, "_libraries", {})
    monkeypatch.setattr(serial, "_programs", {})
    for known in ("_failed", "_told"):
        monkeypatch.setattr(engines, known, type(getattr(engines, known))())
    library._version.cache_clear()


def make(cell: Any, engine: str = "serial", dtype: torch.dtype = torch.float64, **options: Any) -> Recurrent:
    torch.manual_seed(0)
    layer = Recurrent(cell, options.pop("I", I), options.pop("H", H), engine=engine, **options).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():  # biases and scalars too: at zero they would prove little
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layer


def random_state(layer: Recurrent, B: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    with torch.no_grad():
        _, state = layer(torch.randn(3, B, layer.input_size, dtype=dtype))  # a count must count
    return list(state) if isinstance(state, tuple) else [state]


def results(
    layer: Recurrent, x: Tensor, states: list[Tensor], lengths: Any = None, loss: str = "output and states"
) -> dict[str, Tensor]:
    """Output, final states and all gradients, by name; no gradient is a gradient of zero."""
    named = {"x": x.clone().requires_grad_()} | {f"state {k}": s.clone().requires_grad_() for k, s in enumerate(states)}
    given = list(named.values())
    output, final = layer(given[0], given[1] if len(states) == 1 else tuple(given[1:]), lengths)
    found = [output, *(final if isinstance(final, tuple) else (final,))]
    generator = torch.Generator().manual_seed(1)
    terms = [(r * torch.randn(r.shape, generator=generator, dtype=r.dtype)).sum() for r in found]
    sum(
        {"output and states": terms, "output": terms[:1], "states": terms[1:], "last state": terms[-1:]}[loss]
    ).backward()
    named |= {k: p for k, p in layer.named_parameters() if p.requires_grad}
    gradients = {f"gradient of {k}": torch.zeros_like(t) if t.grad is None else t.grad for k, t in named.items()}
    layer.zero_grad()
    return {f"result {k}": r.detach() for k, r in enumerate(found)} | gradients


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert value.isfinite().all(), key
        scale = max(value.abs().max().item(), 1e-3)
        error = (actual[key] - value).abs().max().item() / scale
        assert error < tolerance, f"{key}: {error}"


def like(layer: Recurrent, engine: str = "reference") -> Recurrent:
    """The same layer run by another engine."""
    other = copy.deepcopy(layer)
    other.engine = engine
    return other


def padded(x: Tensor, lengths: Tensor) -> Tensor:
    x = x.clone()
    x[torch.arange(len(x))[:, None] >= lengths] = float("nan")
    return x


def ragged_lengths(T: int, B: int) -> Tensor:
    """Unsorted, between 1 and T."""
    return torch.tensor([1 + (T - 1 + 5 * row) % T for row in range(B)])


def compare(engine: str, name: Any, T: int, B: int, dtype: torch.dtype, ragged: bool, **shape: Any) -> None:
    layer = make(name, "reference", dtype, **shape)
    x, states = torch.randn(T, B, I, dtype=dtype), random_state(layer, B, dtype)
    lengths = ragged_lengths(T, B) if ragged else None
    x = padded(x, lengths) if ragged else x
    expected = results(layer, x, states, lengths)
    layer.engine = engine
    found = results(layer, x, states, lengths)
    assert layer.engine_used == engine
    assert_equal(found, expected, TOLERANCE[dtype])
    if ragged:
        assert found["gradient of x"][x.isnan()].eq(0).all()


@pytest.mark.parametrize("B", [1, 3, 17])
@pytest.mark.parametrize("T", [1, 2, 7, 8, 9, 63])
@cells
def test_every_plan_equals_the_reference(uncompiled, name, T, B):
    compare("serial", name, T, B, torch.float64, ragged=B == 3)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@cells
def test_every_plan_stacked_and_in_both_directions(uncompiled, name, ragged, dtype):
    compare("serial", name, 9, 3, dtype, ragged, num_layers=2, bidirectional=True)


@pytest.mark.parametrize(("T", "B"), [(1, 1), (2, 17), (7, 3), (8, 1), (9, 17), (63, 3)])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@kernels
def test_kernels_equal_the_reference(name, dtype, ragged, T, B):
    compare("serial", name, T, B, dtype, ragged)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@kernels
def test_kernels_stacked_and_in_both_directions(name, dtype):
    compare("serial", name, 9, 3, dtype, True, num_layers=2, bidirectional=True)


@pytest.mark.parametrize("H", [1, 2, 33])
def test_kernels_of_odd_sizes(H):
    # a vector of the processor holds 4 to 16 numbers
    compare("serial", "gru", 5, 13, torch.float64, True, H=H)


@pytest.mark.parametrize("lengths", [None, [4, 9, 1]], ids=["full", "ragged"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@kernels
def test_kernels_without_gradients(name, mode, lengths):
    layer = make(name)
    x, states = torch.randn(9, 3, I, dtype=torch.float64), random_state(layer, 3)
    state = states[0] if len(states) == 1 else tuple(states)
    with mode():
        torch.testing.assert_close(layer(x, state, lengths), like(layer)(x, state, lengths), rtol=1e-9, atol=1e-10)


def test_kernels_share_rows_among_threads(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for B in (1, 2, 17):
            compare("serial", "lstm", 5, B, torch.float64, True)
            compare("serial", "ltc", 3, B, torch.float64, True)  # whose threads each sum up gradients
    finally:
        torch.set_num_threads(threads)


def test_one_kernel_serves_all_lengths_and_batches(compiler):
    layer, other = make("mgu", dtype=torch.float32), make("mgu", "reference", torch.float32)
    other.load_state_dict(layer.state_dict())
    for T in (*range(1, 41), 977):
        for B in (1, 3, 17):
            x = torch.randn(T, B, I)
            output, final = layer(x, lengths=ragged_lengths(T, B) if T % 2 else None)
            (output.sum() + final.sum()).backward()
            assert len(compiler) == 1
            if T in (1, 40):
                torch.testing.assert_close(layer(x), other(x))


def test_kernels_are_kept_on_disk(compiler, monkeypatch):
    x = torch.randn(4, 2, I)
    before = make("rnn", dtype=torch.float32)(x)
    assert len(compiler) == 1
    forget(monkeypatch)
    torch.testing.assert_close(make("rnn", dtype=torch.float32)(x), before)
    assert len(compiler) == 1
    make("rnn", dtype=torch.float32, H=H + 1)(x)
    assert len(compiler) == 2


class Fresh(Cell):
    """A cell of which no other test asks for a kernel."""

    W, U = InputWeight(), RecurrentWeight()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.sin(x @ self.W + h @ self.U)


@pytest.fixture(params=["fails", "missing"])
def no_compiler(request, tmp_path, compiler, monkeypatch) -> None:
    """A compiler that knows its version and nothing else, or none."""
    broken = tmp_path / "compiler"
    if request.param == "fails":
        broken.write_text("#!/bin/sh\n[ $# = 1 ] && echo 1.0 && exit 0\necho 'error: out of order' >&2\nexit 1\n")
        broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))


def test_a_kernel_that_cannot_be_compiled_is_an_error(no_compiler):
    with pytest.raises(UserError) as caught:
        make(Fresh)(torch.zeros(2, 1, I, dtype=torch.float64))
    message = str(caught.value)
    assert "\n" not in message
    assert ("compiler" in message and "engine=reference" in message) or "CXX" in message


def test_auto_warns_once_of_a_kernel_that_cannot_be_compiled(no_compiler):
    layer = make(Fresh, "auto", num_layers=2)
    layer.expected_calls = 10**6
    x = torch.randn(4, 2, I, dtype=torch.float64)
    with pytest.warns(UserWarning) as caught:
        found = layer(x)
        layer(x)
    assert layer.engine_used == "reference"
    assert {str(w.message).partition(" ")[0] for w in caught} and len(caught) <= len(layer.cells)
    torch.testing.assert_close(found, like(layer)(x))


@pytest.mark.slow
def test_plans_compiled_by_inductor(monkeypatch):
    monkeypatch.setattr(serial, "_programs", {})
    made: list[steps.Steps] = []
    monkeypatch.setattr(serial, "loop", lambda plan, *options: made.append(steps.Steps(plan)) or made[-1])
    for B in (3, 1, 5):  # all of them fill up to eight
        for T in range(1, 10):
            compare("serial", "mgu", T, B, torch.float64, ragged=False)
    assert len(made) == 1
    assert len(made[0]._functions) == 2  # forward and back


@kernels
def test_a_graph_that_is_kept_gives_the_same_gradients_again(name):
    layer = make(name)
    x = torch.randn(9, 3, I, dtype=torch.float64, requires_grad=True)
    loss = layer(x)[0].sin().sum()
    given = [x, *layer.parameters()]
    first = torch.autograd.grad(loss, given, retain_graph=True)
    again = torch.autograd.grad(loss, given, retain_graph=True)
    last = torch.autograd.grad(loss, given)
    for a, b, c in zip(first, again, last, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def one_line(error: Any, *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_second_derivatives_are_refused():
    x = torch.randn(4, 2, I, dtype=torch.float64, requires_grad=True)
    with pytest.raises(UserError) as caught:
        torch.autograd.grad(make("mgu")(x)[0].sum(), x, create_graph=True)
    one_line(caught, "MGU", "engine=serial", "engine=reference")


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "grad": lambda f, x: grad(lambda x: f(x).sum())(x),
    "vmap": lambda f, x: vmap(f, 1, 1)(x),
    "jvp": lambda f, x: jvp(f, (x,), (torch.ones_like(x),))[1],
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, in jvp
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_are_refused_by_serial_and_run_by_auto(transform):
    x = torch.randn(4, 2, I, dtype=torch.float64)
    layer = make("mgu")
    with pytest.raises(UserError) as caught:
        TRANSFORMS[transform](lambda x: layer(x)[0], x)
    one_line(caught, "engine=serial", "engine=reference")
    reference = like(layer)
    expected = TRANSFORMS[transform](lambda x: reference(x)[0], x)
    layer.engine, layer.expected_calls = "auto", 10**6
    torch.testing.assert_close(TRANSFORMS[transform](lambda x: layer(x)[0], x), expected)


@pytest.mark.parametrize("loss", ["output", "states", "last state"])
@pytest.mark.parametrize("lengths", [None, [9, 2, 4]], ids=["full", "ragged"])
@pytest.mark.parametrize("name", ["lstm", "mgu"])
def test_losses_of_a_part(name, lengths, loss):
    layer = make(name)
    x, states = torch.randn(9, 3, I, dtype=torch.float64), random_state(layer, 3)
    assert_equal(results(layer, x, states, lengths, loss), results(like(layer), x, states, lengths, loss))


@pytest.mark.parametrize("wanted", ["x", "state", "U_f"])
@pytest.mark.parametrize("engine", ["serial", "reference"])
def test_gradients_of_one_thing_only(engine, wanted):
    layer = make("lstm", engine)
    x, (h, c) = torch.randn(7, 3, I, dtype=torch.float64), random_state(layer, 3)
    every = {"x": x, "state": h, "U_f": layer.cells[0].U_f}
    together = torch.autograd.grad(layer(x.requires_grad_(), (h.requires_grad_(), c))[0].sin().sum(), every.values())
    for tensor in (x, h, *layer.parameters()):
        tensor.requires_grad_(tensor is every[wanted])
    (alone,) = torch.autograd.grad(layer(x, (h, c))[0].sin().sum(), every[wanted])
    torch.testing.assert_close(alone, dict(zip(every, together))[wanted])


def half_of_it(y: Tensor) -> None:
    y[:, 0] = 0


def rows_of_it(y: Tensor) -> None:
    y[1:].mul_(0.5)


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "relu": lambda y: F.relu(y, inplace=True),
    "dropout": lambda y: F.dropout(y, 1.0, inplace=True),
    "add": lambda y: y.add_(1),
    "mul": lambda y: y.mul_(y.detach().clone()),
    "row": half_of_it,
    "slice": rows_of_it,
    "transposed": lambda y: y.transpose(0, 1)[0].exp_(),
    "zero": lambda y: y.zero_(),
}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("engine", ["serial", "scan", "native"])
def test_an_output_may_be_written_to(engine, write, batch_first):
    name: Any = {"scan": OnlyDecay, "serial": "mgu", "native": "lstm"}[engine]
    layer = make(name, engine, batch_first=batch_first)
    x = torch.randn(5, 3, I, dtype=torch.float64, requires_grad=True)
    found = {}
    for each in (layer, like(layer)):
        output, final = each(x)
        kept = output.detach().clone()
        WRITES[write](output)
        found[each.engine] = [output.detach(), *torch.autograd.grad(output.sin().sum(), [x, *each.parameters()])]
        final = final if isinstance(final, Tensor) else final[0]
        torch.testing.assert_close(final[0].detach(), kept[:, -1] if batch_first else kept[-1])
    torch.testing.assert_close(found[engine], found["reference"], rtol=1e-9, atol=1e-9)


def test_the_output_of_one_layer_costs_no_copy_until_it_is_written_to():
    layer = make("lstm", dtype=torch.float32)
    output, _ = layer(torch.randn(5, 3, I))
    shared = torch._C._data_address(output)
    output.sum().backward(retain_graph=True)
    assert torch._C._data_address(output) == shared
    output.detach().add_(1)
    assert torch._C._data_address(output) != shared


@pytest.mark.parametrize("name", ["rnn", "lstm", "mgu"])
def test_writing_into_a_state_is_never_silently_wrong(name):
    layer = make(name)
    x = torch.randn(5, 3, I, dtype=torch.float64)
    expected = torch.autograd.grad((like(layer)(x.requires_grad_())[0] * 2).sum(), x)[0]
    output, final = layer(x)
    (final if isinstance(final, Tensor) else final[-1]).mul_(2)
    torch.testing.assert_close(torch.autograd.grad((output * 2).sum(), x)[0], expected)


@pytest.mark.parametrize("what", ["x", "U_h"])
def test_writing_into_what_was_given_is_never_silently_wrong(what):
    layer = make("mgu")
    x = torch.randn(5, 3, I, dtype=torch.float64)
    loss = layer(x)[0].sum()
    with torch.no_grad():
        {"x": x, "U_h": layer.cells[0].U_h}[what].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_input_and_states_that_are_not_contiguous():
    layer = make("lstm")
    x = torch.randn(I, 3, 9, dtype=torch.float64).permute(2, 1, 0)
    states = [torch.randn(1, H, 3, dtype=torch.float64).transpose(1, 2) for _ in range(2)]
    lengths = torch.tensor([5, 9, 3, 9, 1, 9])[::2]
    assert not any(t.is_contiguous() for t in (x, *states, lengths))
    assert_equal(results(layer, x, states, lengths), results(like(layer), x, states, lengths))
    expected = like(layer)(x)[0]
    layer.batch_first = True
    torch.testing.assert_close(layer(x.transpose(0, 1))[0].transpose(0, 1), expected)


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("engine", ["serial", "native", "auto"])
def test_a_changed_cell_is_trained_as_by_the_reference(engine, change):
    if change is pruned and engine != "auto":  # the hook that renews the weight is part of the plain loop only
        layer = make("gru", engine)
        change(layer.cells[0])
        with pytest.raises(UserError, match=f"engine={engine} cannot run under forward hooks.*engine=reference"):
            layer(torch.zeros(1, 1, I, dtype=torch.float64))
        return
    found = {}
    make("gru", engine)(torch.zeros(1, 1, I, dtype=torch.float64))  # a plan of the unchanged cell is there
    for name in ("reference", engine):
        layer = make("gru", name)
        torch.manual_seed(1)
        layer.expected_calls = 10**6
        change(layer.cells[0])
        optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        x = torch.randn(4, 2, I, dtype=torch.float64)
        for _ in range(3):
            optimizer.zero_grad()
            layer(x)[0].square().sum().backward()
            optimizer.step()
        found[name] = layer(x)[0].detach()
    torch.testing.assert_close(found[engine], found["reference"])


class NoParameters(Cell):
    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(0.5 * h + x)


class OnlyScalars(Cell):
    a, b = Scalar(0.5), Scalar(-0.3)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.a * h + self.b * x)


class WithoutInput(Cell):
    """A clock beside a decaying memory."""

    b = Bias(init=0.5)

    def step(self, x: Tensor, h: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(self.b) * h + torch.sin(n), n + 1


class Masked(Cell):
    """Truth values, of one feature and of all, from where they are made to where they are used."""

    W = InputWeight()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        chosen = (h > 0.117) & (h.sum(-1, keepdim=True) > 0.313)
        return torch.where(chosen, 0.5 * h, torch.tanh(x @ self.W))


class Detached(Cell):
    """A gate that learns nothing."""

    W = InputWeight()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x @ self.W + torch.sigmoid(h).detach() * h)


class Interpolated(Cell):
    """`lerp`, whose elementary form tests its weight."""

    W, U = InputWeight(), RecurrentWeight()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(torch.lerp(h, x @ self.W, 0.3) @ self.U)


class SumsBetweenProducts(Cell):
    """A sum that two products share."""

    W, U, V = InputWeight(), RecurrentWeight(), RecurrentWeight()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        a = x @ self.W + h @ self.U
        b = (a + a.sum(-1, keepdim=True)) @ self.V
        return torch.sigmoid(b) * h + (1 - torch.sigmoid(b)) * torch.tanh(b)


class Recorded(Cell):
    """A memory whose gradient keeps truth values."""

    W = InputWeight()

    def step(self, x: Tensor, h: Tensor, M: Tensor) -> tuple[Tensor, Tensor]:
        v = torch.cat([x, h], -1) @ torch.cat([self.W, self.W.T @ self.W])
        return 0.5 * h + v.clamp(-0.71, 0.53), torch.tanh(M + v)


class FromTheEnd(Cell):
    """Units counted from the last one."""

    W, U = InputWeight(), RecurrentWeight()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        turned = torch.cat([h[:, -2:], h[:, :-2]], -1)
        return torch.tanh(x @ self.W + turned @ self.U) * torch.sigmoid(h[:, -1, None])


class WithoutLeaves(Cell):
    """Nothing enters from outside."""

    def step(self, x: Tensor, h: Tensor, M: Tensor) -> tuple[Tensor, Tensor]:
        return h - 0.3 * torch.sigmoid(h), 0.5 * M + torch.tanh(h)


ODD = [
    WithoutLeaves,
    Detached,
    NoParameters,
    OnlyScalars,
    WithoutInput,
    Masked,
    Interpolated,
    SumsBetweenProducts,
    Recorded,
    FromTheEnd,
]


@pytest.mark.parametrize("kernel", [False, True], ids=["plan", "kernel"])
@pytest.mark.parametrize("kind", ODD, ids=lambda kind: kind.__name__)
def test_odd_cells(kind, kernel, request):
    if not kernel:
        request.getfixturevalue("uncompiled")
    layer = make(kind, I=H)
    x, states = torch.randn(9, 3, H, dtype=torch.float64), random_state(layer, 3)
    for lengths in (None, [9, 1, 4]):
        assert_equal(results(layer, x, states, lengths), results(like(layer), x, states, lengths))


class Summed(Cell):
    """An operation that has no C++ form."""

    W = InputWeight()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x @ self.W + torch.lgamma(h))


def test_auto_does_not_wait_for_inductor_on_a_cpu():
    layer = make(Summed, "auto")
    layer.expected_calls = 10**6
    with pytest.warns(UserWarning, match="Summed: aten.lgamma.default has no C\\+\\+ form"):
        layer(torch.zeros(2, 1, I, dtype=torch.float64))
    assert layer.engine_used == "reference"
    assert "lgamma" in engines.choose(layer.cells[0], 10**6)[1]


class Functions(Cell):
    """The functions that kernels in float32 have of their own."""

    def step(
        self,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        d: Tensor,
        e: Tensor,
        f: Tensor,
        g: Tensor,
        sin: Tensor,
        cos: Tensor,
    ) -> tuple[Tensor, ...]:
        logs = torch.log(x.abs() + 1e-30), torch.log1p(x.abs())
        return torch.sigmoid(x), torch.tanh(x), torch.exp(x), F.elu(x), F.softplus(x), *logs, torch.sin(x), torch.cos(x)


def test_functions_in_float32_over_their_whole_range():
    x = torch.linspace(-110, 110, 220_001)[None, :, None]
    found = Recurrent(Functions, 1, 1, engine="serial")(x)[1]
    layer = Recurrent(Functions, 1, 1, engine="reference").double()
    expected = layer(x.double())[1]
    for name, actual, wanted in zip(Functions.state_names, found, expected, strict=True):
        # where a result is zero in float32, or near a zero of sine and cosine, the absolute error counts
        tolerance = {"rtol": 2e-6, "atol": 2e-7 if name in ("sin", "cos") else 1e-37}
        torch.testing.assert_close(actual, wanted.float(), **tolerance, msg=lambda m, n=name: f"{n}: {m}")


class Composed(Cell):
    """A product of weights, which is made once a sequence."""

    W, U, V = InputWeight(), RecurrentWeight(), RecurrentWeight()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x @ self.W + h @ (self.U @ self.V))


@pytest.mark.parametrize("name", ["mgu", "lstm", Composed], ids=str)
def test_autocast_like_the_reference(name):
    layer = make(name, dtype=torch.float32)
    x, states = torch.randn(5, 3, I), random_state(layer, 3, torch.float32)
    for state in (states, [s.bfloat16() for s in states]):
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(x, state[0] if len(state) == 1 else tuple(state))[0].float()
            expected = like(layer)(x, state[0] if len(state) == 1 else tuple(state))[0].float()
        # bfloat16 keeps eight bits, and products are rounded elsewhere
        torch.testing.assert_close(output, expected, rtol=0.05, atol=0.05)


def test_a_state_of_another_type_is_never_misread():
    layer = make("mgu", dtype=torch.float32)
    x, h = torch.randn(5, 3, I), torch.randn(1, 3, H, dtype=torch.float64)
    try:
        output = layer(x, h)[0]
    except (RuntimeError, UserError):
        return  # as the reference
    torch.testing.assert_close(output.float(), layer(x, h.float())[0])


@pytest.mark.parametrize(
    ("engine", "every"),
    [(e, k) for e in ("serial", "scan", "native", "reference") for k in (1, 4, 9, 20)],
)
def test_checkpoint_every_changes_no_result(engine, every):
    name: Any = {"native": "lstm", "scan": OnlyDecay}.get(engine, "mgu")
    layer = make(name, engine, num_layers=2, bidirectional=True)
    x, states = torch.randn(13, 3, I, dtype=torch.float64), random_state(layer, 3)
    layer(x)  # planned and compiled
    for lengths in (None, torch.tensor([13, 3, 5])):  # the second sequence has no step in most pieces
        x_padded = x if lengths is None else padded(x, lengths)
        expected = results(like(layer), x_padded, states, lengths)
        layer.checkpoint_every = every
        assert_equal(results(layer, x_padded, states, lengths), expected)


@pytest.mark.parametrize("engine", ["serial", pytest.param("auto")])
def test_the_first_call_may_be_checkpointed(engine, uncompiled, monkeypatch):
    monkeypatch.setattr(plans, "_kept", [])
    layer = make("mgu", engine)
    layer.expected_calls, layer.checkpoint_every = 10**6, 2
    layer(torch.randn(5, 2, I, dtype=torch.float64))[0].sum().backward()


class OnlyDecay(Cell):
    W, a = InputWeight(), Bias(init=0.7)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.sigmoid(self.a) * h + torch.tanh(x @ self.W)


@pytest.mark.parametrize("engine", ["serial", "reference"])
def test_checkpoint_every_keeps_less(engine):
    layer = make("lstm", engine, torch.float32, H=32)
    x = torch.randn(256, 16, I)
    layer(x[:1])  # compiled before memory is counted
    kept = {}
    for every in (0, 16):
        layer.checkpoint_every = every
        sizes: dict[int, int] = {}

        def pack(t: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            storage = t.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            layer(x)[0]
        kept[every] = sum(sizes.values())
    # outputs stay, and the states between the pieces; what lies between is five times as much
    assert kept[16] < kept[0] / 3, kept


@cells
def test_a_state_dict_does_not_name_the_engine(name):
    layers = {e: Recurrent(name, I, H, engine=e) for e in ("auto", "serial", "reference")}
    first = layers["auto"].state_dict()
    for layer in layers.values():
        assert layer.state_dict().keys() == first.keys()
        layer.load_state_dict(first)
        layer(torch.randn(2, 1, I)) if name in KERNELS else None
        assert layer.state_dict().keys() == first.keys()


@pytest.mark.parametrize(("name", "before", "pays"), [("mgu", "reference", 4096), ("lstm", "native", 65536)])
def test_auto_compiles_when_it_pays_back(uncompiled, name, before, pays):
    x = torch.zeros(8, 1, I, dtype=torch.float64)

    def used(expected_calls: int | None) -> list[str]:
        layer, found = make(name, "auto"), []
        layer.expected_calls = expected_calls
        for _ in range(2):
            layer(x)
            found.append(layer.engine_used)
        return found

    enough = -(-pays // engines.TYPICAL_LENGTH)
    assert used(enough) == ["serial", "serial"]
    assert used(enough - 1) == [before, before]
    assert used(None) == [before, before]
    assert used(1) == [before, before]


@pytest.mark.parametrize(("name", "before", "pays"), [("mgu", "reference", 4096), ("lstm", "native", 65536)])
def test_auto_compiles_after_what_would_have_paid_back(name, before, pays):
    layer = make(name, "auto")
    with torch.no_grad():
        engines_used = []
        for steps_so_far in range(pays // 4, pays + 1, pays // 4):
            layer(torch.zeros(pays // 4, 1, I, dtype=torch.float64))
            engines_used.append((layer.engine_used, steps_so_far))
    assert engines_used == [(before, pays // 4), (before, pays // 2), (before, pays * 3 // 4), ("serial", pays)]


def test_numerics_do_not_depend_on_the_engine_that_trained():
    found = {}
    for engine in ("serial", "native", "reference"):
        layer = make("gru", engine)
        optimizer = torch.optim.Adam(layer.parameters(), 0.01)
        torch.manual_seed(1)
        for _ in range(5):
            x = torch.randn(6, 4, I, dtype=torch.float64)
            optimizer.zero_grad()
            layer(x)[0].square().mean().backward()
            optimizer.step()
        found[engine] = torch.cat([p.detach().flatten() for p in layer.parameters()])
    torch.testing.assert_close(found["serial"], found["reference"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found["native"], found["reference"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", KERNELS)
def test_nothing_is_saved_where_no_gradient_is_asked_for(name, mode, monkeypatch):
    saving, forward = [], cpp.Kernel.forward
    monkeypatch.setattr(cpp.Kernel, "forward", lambda *a: saving.append(a[-1]) or forward(*a))
    with mode():
        make(name)(torch.randn(4, 2, I, dtype=torch.float64))
    assert saving == [False]


def test_functional_call_runs_on_the_parameters_it_is_given():
    layer, other = make("lstm"), make("lstm")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    x = torch.randn(4, 2, I, dtype=torch.float64)
    torch.testing.assert_close(functional_call(layer, dict(other.named_parameters()), (x,)), other(x))
