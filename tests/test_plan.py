"""Plans equal the plain loop on cells that nobody thought of, and are as short as the papers promise.

Hypothesis composes a step out of elementary operations; the engine must give the reference's outputs, final states and
gradients. Values that are equal by algebra are never compared or clamped, so that rounding cannot decide a branch.
Shapes: T time steps, B batch, I input size, H hidden size.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from rnnzoo import Bias, Cell, Diagonal, InputWeight, Recurrent, RecurrentWeight, Scalar, Weight, get
from rnnzoo.engine import plan as plans
from rnnzoo.engine import scan, serial
from rnnzoo.engine.cpp import Kernel
from rnnzoo.engine.places import Unsupported
from rnnzoo.engine.plan import Plan, plan
from rnnzoo.engine.steps import Steps
from rnnzoo.engine.trace import ancestors, aten, has_rows, outputs

Operation = Callable[..., Tensor]


def draw_weight(tensor: Tensor) -> None:
    torch.nn.init.normal_(tensor, std=0.5)


class Generated(Cell):
    """Everything that a generated step may use; each one uses some."""

    wide: int = 2
    joined: int = 1

    W_1, W_2 = InputWeight(init=draw_weight), InputWeight(init=draw_weight)
    U_1, U_2 = RecurrentWeight(init=draw_weight), RecurrentWeight(init=draw_weight)
    A, B = Weight("hidden", "wide", init=draw_weight), Weight("wide", "hidden", init=draw_weight)
    V = Weight("joined", "hidden", init=draw_weight)
    b_1, b_2 = Bias(init=draw_weight), Bias(init=draw_weight)
    p_1, p_2 = Diagonal(init=draw_weight), Diagonal(init=draw_weight)
    s_1, s_2 = Scalar(draw_weight), Scalar(draw_weight)


def rotated(v: Tensor) -> Tensor:
    return torch.cat([v[:, 1:], v[:, :1]], -1)


def halves_swapped(v: Tensor) -> Tensor:
    a, b = v.tensor_split(2, -1)
    return torch.cat([b, a], -1)


def crossing(v: Tensor, w: Tensor) -> Tensor:
    """A slice that takes the end of one and the beginning of another."""
    size = v.shape[-1]
    return torch.cat([v, w], -1)[:, size // 2 : size // 2 + size]


def normed(v: Tensor) -> Tensor:
    return F.layer_norm(v, v.shape[-1:], eps=0.1)


INPUT_PRODUCTS: dict[str, Operation] = {
    "x W_1": lambda c, x: x @ c.W_1,
    "x W_2": lambda c, x: x @ c.W_2,
    "x W_1 + b_1": lambda c, x: x @ c.W_1 + c.b_1,
    "b_2 + x W_2": lambda c, x: c.b_2 + x @ c.W_2,
    "x (s W_1)": lambda c, x: x @ (c.s_1 * c.W_1),
    "tanh(x) W_1": lambda c, x: torch.tanh(x) @ c.W_1,
    "x W_1 U_1": lambda c, x: (x @ c.W_1) @ c.U_1,
    "linear": lambda c, x: F.linear(x, c.W_2.T, c.b_1),
    "sum x": lambda c, x: x.sum(-1, keepdim=True).expand(-1, c.hidden_size),
    "weights": lambda c, x: (c.b_1 * c.p_1).expand(x.shape[0], -1),
    "constant": lambda c, x: x.new_full((x.shape[0], c.hidden_size), 0.3),
}  # fmt: skip
"""From the input."""

UNARY: dict[str, Operation] = {
    "U_1": lambda c, v: v @ c.U_1,
    "U_2": lambda c, v: v @ c.U_2,
    "U_1 + b_2": lambda c, v: torch.addmm(c.b_2, v, c.U_1),
    "U_1.T": lambda c, v: v @ c.U_1.T,
    "U_1 - U_1.T": lambda c, v: v @ (c.U_1 - c.U_1.T),
    "U_1 U_2": lambda c, v: v @ (c.U_1 @ c.U_2),
    "softmax(U_2)": lambda c, v: v @ torch.softmax(c.U_2, -1),
    "A B": lambda c, v: v @ c.A @ c.B,
    "part of U_1": lambda c, v: v[:, 1:] @ c.U_1[1:] if c.hidden_size > 1 else v,
    "+ b_1": lambda c, v: v + c.b_1,
    "* p_1": lambda c, v: v * c.p_1,
    "p_2 *": lambda c, v: c.p_2 * v,
    "* s_1": lambda c, v: v * c.s_1,
    "+ s_2": lambda c, v: v + c.s_2,
    "/ p": lambda c, v: v / (1.5 + c.p_2.abs()),
    "0.5 *": lambda c, v: 0.5 * v,
    "1 -": lambda c, v: 1 - v,
    "/ 3": lambda c, v: v / 3,
    "neg": lambda c, v: -v,
    "tanh": lambda c, v: torch.tanh(v),
    "sigmoid": lambda c, v: torch.sigmoid(v),
    "relu": lambda c, v: torch.relu(v - 0.013),
    "elu": lambda c, v: F.elu(v - 0.013),
    "softplus": lambda c, v: F.softplus(v),
    "leaky": lambda c, v: F.leaky_relu(v - 0.017, 0.2),
    "gelu": lambda c, v: F.gelu(v),
    "silu": lambda c, v: F.silu(v),
    "hard": lambda c, v: F.hardtanh(0.5 * v - 0.013),
    "sin": lambda c, v: torch.sin(v),
    "exp": lambda c, v: torch.exp(-v.abs()),
    "square": lambda c, v: 0.1 * v.square(),
    "cube": lambda c, v: torch.tanh(v) ** 3,
    "rsqrt": lambda c, v: torch.rsqrt(1 + v * v),
    "log1p": lambda c, v: torch.log1p(v * v),
    "clamp": lambda c, v: v.clamp(-0.71, 0.53),
    "clamp low": lambda c, v: torch.clamp(v, min=-0.31),
    "sign": lambda c, v: torch.sign(v - 0.11),
    "where": lambda c, v: torch.where(v > 0.11, v, 0.2 * v - 0.07),
    "mask": lambda c, v: v * (v < 0.19),
    "rotated": lambda c, v: rotated(v),
    "roll": lambda c, v: v.roll(1, -1),
    "flip": lambda c, v: v.flip(-1),
    "last": lambda c, v: v[:, -1:] + 0.5 * v,
    "select": lambda c, v: v[:, 0].unsqueeze(-1) * v,
    "swapped": lambda c, v: halves_swapped(v),
    "sum": lambda c, v: v + v.sum(-1, keepdim=True),
    "mean": lambda c, v: v - v.mean(-1, keepdim=True),
    "amax": lambda c, v: v - (v + c.b_1).amax(-1, keepdim=True),
    "norm": lambda c, v: v / (1 + v.square().sum(-1, keepdim=True)).sqrt(),
    "sum of all": lambda c, v: v * v.sum(-1).tanh()[:, None],
    "softmax": lambda c, v: torch.softmax(v, -1),
    "log_softmax": lambda c, v: torch.log_softmax(v, -1),
    "logsumexp": lambda c, v: v - torch.logsumexp(v, -1, keepdim=True),
    "layer_norm": lambda c, v: normed(v),
    "affine layer_norm": lambda c, v: F.layer_norm(v, v.shape[-1:], c.p_1, c.b_2, eps=0.1),
    "heads": lambda c, v: torch.softmax(v.unflatten(-1, (1, -1)), -1).flatten(1),
}  # fmt: skip

BINARY: dict[str, Operation] = {
    "+": lambda c, v, w: v + w,
    "-": lambda c, v, w: v - w,
    "*": lambda c, v, w: torch.tanh(v) * w,
    "p v w": lambda c, v, w: c.p_1 * torch.sigmoid(v) * w,
    "/": lambda c, v, w: v / (1.5 + w.abs()),
    "gate": lambda c, v, w: torch.sigmoid(v) * w + (1 - torch.sigmoid(v)) * torch.tanh(w @ c.U_2),
    "lerp": lambda c, v, w: torch.lerp(v, w, 0.3),
    "addcmul": lambda c, v, w: torch.addcmul(c.b_1, torch.sin(v), w, value=0.5),
    "max": lambda c, v, w: torch.maximum(v - 0.0171, w + 0.0123),
    "min": lambda c, v, w: torch.minimum(v + 0.0171, w @ c.U_2),
    "where": lambda c, v, w: torch.where((v > 0.117) & (w < 0.313), v, w),
    "joined": lambda c, v, w: torch.cat([v, w], -1) @ torch.cat([c.U_1, c.U_2]),
    "crossing": lambda c, v, w: crossing(v, w),
    "gates": lambda c, v, w: (lambda a, b: torch.sigmoid(a) * b)(*(v @ torch.cat([c.U_1, c.U_2], 1)).chunk(2, -1)) + w,
    "dot": lambda c, v, w: (v * torch.tanh(w)).sum(-1, keepdim=True) * v,
    "stack": lambda c, v, w: torch.softmax(torch.stack([v, w], 1), 1)[:, 1] * v,
    "outer": lambda c, v, w: (torch.tanh(v)[:, :, None] * w[:, None, :]).mean(-1),
}  # fmt: skip

WITH_INPUT: dict[str, Operation] = {
    "[x v] V": lambda c, v, x: torch.cat([x, v], -1) @ c.V,
    "v mean(x)": lambda c, v, x: v * x.mean(-1, keepdim=True),
    "v + x": lambda c, v, x: v + x[:, :1] * c.p_2,
    "v / x": lambda c, v, x: v / (1 + x.square().sum(-1, keepdim=True)),
}  # fmt: skip

WITH_INDEX: dict[str, Operation] = {
    "v / (1 + n)": lambda c, v, n: v / (1 + n.abs()),
    "v sin(n)": lambda c, v, n: v * torch.sin(n),
    "p n": lambda c, v, n: v + torch.tanh(0.1 * n * c.p_1),
    "n mod 2": lambda c, v, n: torch.where(n.round() % 2 == 0, v, 0.5 * v),
}  # fmt: skip

WITH_MATRIX: dict[str, Operation] = {
    "M v": lambda c, v, M: (M @ v[:, :, None])[..., 0],
    "v M": lambda c, v, M: torch.einsum("bi,bij->bj", v, M),
    "sum": lambda c, v, M: (M * v[:, :, None]).sum(-2),
    "M.T": lambda c, v, M: (M.transpose(1, 2) * v[:, None, :]).mean(-1),
    "normed": lambda c, v, M: v / (1 + M.square().sum((1, 2))).sqrt()[:, None],
    "row": lambda c, v, M: v + M[:, 0],
}  # fmt: skip

NEW_STATE: dict[str, Operation] = {
    "tanh": lambda c, h, v, w: torch.tanh(v),
    "interpolated": lambda c, h, v, w: torch.sigmoid(w) * h + (1 - torch.sigmoid(w)) * torch.tanh(v),
    "leaky": lambda c, h, v, w: 0.5 * h + 0.5 * torch.tanh(v),
    "gated": lambda c, h, v, w: torch.sigmoid(c.p_1) * h + torch.tanh(v) * torch.sigmoid(w),
    "affine": lambda c, h, v, w: torch.sigmoid(c.b_1) * h + v.clamp(-3.1, 3.2),
    "decayed": lambda c, h, v, w: h - 0.3 * (h - torch.sigmoid(v)),
    "unchanged": lambda c, h, v, w: h,
    "normed": lambda c, h, v, w: normed(h + v),
    "value": lambda c, h, v, w: v.clamp(-2.3, 2.1),
}  # fmt: skip

NEW_MATRIX: dict[str, Operation] = {
    "delta": lambda c, M, v, w: 0.5 * M + torch.tanh(v)[:, :, None] * torch.sigmoid(w)[:, None, :],
    "gated": lambda c, M, v, w: torch.sigmoid(v)[:, :, None] * M + torch.tanh(w)[:, None, :],
    "squashed": lambda c, M, v, w: torch.tanh(M + (M @ v[:, :, None]) * w[:, None, :]),
    "unchanged": lambda c, M, v, w: M,
}  # fmt: skip


@st.composite
def generated(draw: Any) -> tuple[type[Cell], int, int, list[str]]:
    """A cell class, its sizes, and its step line by line."""
    I = draw(st.integers(1, 3))  # noqa: E741
    H = draw(st.integers(1, 5))
    vectors = draw(st.integers(1, 3))
    index, matrix = (draw(st.integers(0, 3)) == 0 for _ in range(2))
    states = vectors + index + matrix
    if states > 3:
        vectors, states = vectors - (states - 3), 3
    program: list[tuple[Operation, list[int]]] = []  # each appends a vector; operands count states, then results
    lines: list[str] = []
    count = vectors
    X, INDEX, MATRIX = -1, -2, -3

    def pick() -> int:  # mostly of the last few, so that little of the step is for nothing
        return count - 1 - draw(st.integers(0, min(3, count - 1) if draw(st.integers(0, 3)) else count - 1))

    def use(table: dict[str, Operation], *others: int, operands: int = 1) -> None:
        nonlocal count
        name = draw(st.sampled_from(sorted(table)))
        chosen = [pick() for _ in range(operands)]
        program.append((table[name], [*chosen, *others]))
        lines.append(f"v{count} = {name} of {[*chosen, *others]}")
        count += 1

    kinds = [
        (INPUT_PRODUCTS, (X,), 0),
        (WITH_INPUT, (X,), 1),
        (BINARY, (), 2),
        (UNARY, (), 1),
        (UNARY, (), 1),
        (BINARY, (), 2),
    ]
    kinds += [(WITH_INDEX, (INDEX,), 1)] * index + [(WITH_MATRIX, (MATRIX,), 1)] * matrix
    if draw(st.integers(0, 9)):  # else the step may ignore its input
        use(INPUT_PRODUCTS, X, operands=0)
    for _ in range(draw(st.integers(1, 9))):
        table, others, operands = draw(st.sampled_from(kinds))
        use(table, *others, operands=operands)

    updates = []
    for k in range(vectors):
        name = draw(st.sampled_from(sorted(NEW_STATE)))
        v, w = pick(), pick()
        updates.append((NEW_STATE[name], k, v, w))
        lines.append(f"state {k} = {name} of {v}, {w}")
    if matrix:
        name = draw(st.sampled_from(sorted(NEW_MATRIX)))
        v, w = pick(), pick()
        lines.append(f"matrix = {name} of {v}, {w}")
        new_matrix = NEW_MATRIX[name], v, w
    shared = draw(st.integers(0, 5)) == 0 and vectors > 1  # two states of one value

    def equations(self: Any, x: Tensor, *state: Tensor) -> Any:
        values = list(state[:vectors])
        others = {X: x, INDEX: state[vectors] if index else None, MATRIX: state[-1] if matrix else None}
        for operation, operands in program:
            values.append(operation(self, *(values[k] if k >= 0 else others[k] for k in operands)))
        new = [update(self, values[k], values[v], values[w]) for update, k, v, w in updates]
        if shared:
            new[1] = new[0]
        if index:
            new.append(state[vectors] + 1)
        if matrix:
            update, v, w = new_matrix
            new.append(update(self, state[-1], values[v], values[w]))
        return tuple(new) if len(new) > 1 else new[0]

    def step_1(self: Any, x: Tensor, a: Tensor) -> Any:
        return equations(self, x, a)

    def step_2(self: Any, x: Tensor, a: Tensor, b: Tensor) -> Any:
        return equations(self, x, a, b)

    def step_3(self: Any, x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Any:
        return equations(self, x, a, b, c)

    def initial_state(self: Any, x: Tensor) -> tuple[Tensor, ...]:
        sizes = [(H,)] * vectors + [(1,)] * index + [(H, H)] * matrix
        return tuple(x.new_zeros(x.shape[0], *size) for size in sizes)

    def readout(self: Any, x: Tensor, *state: Tensor) -> Tensor:
        return state[0] @ self.U_2 + state[-1].mean(-1, keepdim=state[-1].dim() == x.dim()) * (x @ self.W_2)

    members = {"step": (step_1, step_2, step_3)[states - 1], "initial_state": initial_state}
    members |= {"wide": draw(st.integers(1, 3)), "joined": I + H}
    if draw(st.integers(0, 3)) == 0:
        members["readout"] = readout
        lines.append("own readout")
    return (
        type("Step", (Generated,), members),
        I,
        H,
        [f"I={I} H={H} vectors={vectors} index={index} matrix={matrix}", *lines, f"shared={shared}"],
    )


def results(layer: Recurrent, x: Tensor, states: list[Tensor], lengths: list[int] | None) -> dict[str, Tensor]:
    """Output, final states and all gradients, by name; no gradient is a gradient of zero."""
    x = x.clone().requires_grad_()
    states = [s.clone().requires_grad_() for s in states]
    output, final = layer(x, states[0] if len(states) == 1 else tuple(states), lengths)
    found = [output, *(final if isinstance(final, tuple) else (final,))]
    generator = torch.Generator().manual_seed(1)
    loss = sum((r * torch.randn(r.shape, generator=generator, dtype=r.dtype)).sum() for r in found)
    named = {"x": x} | {f"state {k}": s for k, s in enumerate(states)} | dict(layer.named_parameters())
    loss.backward()
    gradients = {f"gradient of {k}": torch.zeros_like(t) if t.grad is None else t.grad for k, t in named.items()}
    for t in named.values():
        t.grad = None
    return {f"result {k}": r.detach() for k, r in enumerate(found)} | gradients


def assert_engine_equals_reference(engine: str, kind: type[Cell], I: int, H: int, ragged: bool) -> None:  # noqa: E741
    torch.manual_seed(0)
    T, B = 5, 3
    layer = Recurrent(kind, I, H, engine="reference").double()
    x = torch.randn(T, B, I, dtype=torch.float64)
    states = [torch.randn(1, *s.shape, dtype=torch.float64) for s in layer.cells[0].initial_state(x[0])]
    lengths = [3, 5, 1] if ragged else None
    if lengths:
        for b, length in enumerate(lengths):
            x[length:, b] = float("nan")
    expected = results(layer, x, states, lengths)
    layer.engine = engine
    actual = results(layer, x, states, lengths)
    for key, value in expected.items():
        assert value.isfinite().all(), key
        torch.testing.assert_close(
            actual[key],
            value,
            rtol=1e-9,
            atol=1e-9 * max(1.0, value.abs().max().item()),
            msg=lambda m, k=key: f"{k}: {m}",
        )


def loop_of(plan: Plan, *options: Any) -> Kernel | Steps:
    """The kernel, and where an operation has none, the plan as it is: Inductor takes seconds a cell."""
    try:
        return Kernel(plan, *options)
    except Unsupported:
        return Steps(plan, compiled=False)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serial, "_programs", {})
    monkeypatch.setattr(serial, "loop", lambda plan, *options: Steps(plan, compiled=False))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serial, "_programs", {})
    monkeypatch.setattr(serial, "loop", loop_of)


def examples(count: int) -> Callable[..., Any]:
    """The same cells in every run."""
    every = list(HealthCheck)
    return settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=every,
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip


def check(made: tuple[type[Cell], int, int, list[str]], ragged: bool) -> None:
    kind, I, H, lines = made  # noqa: E741
    for line in lines:
        note(line)
    assert_engine_equals_reference("serial", kind, I, H, ragged)
    if scan.refuses(kind(I, H).double()) is None:
        assert_engine_equals_reference("scan", kind, I, H, ragged)


@examples(40)
@given(generated(), st.booleans())
def test_generated_cells(uncompiled, made, ragged):
    check(made, ragged)


@pytest.mark.parametrize("name", ["ltc", "mamba"])
def test_nothing_of_a_pair_of_units_is_kept_for_each_row(name):
    made = plan(get(name)(3, 40))
    derived = made.summed
    states = [math.prod(s.meta["val"].shape[1:]) for s in outputs(made.recur)]
    terms = len(derived.totals)
    stored = [*outputs(made.project), *outputs(derived.step), *outputs(derived.back)[: -terms or None]]
    assert terms and max(math.prod(n.meta["val"].shape[1:]) for n in stored) <= max(states)


# beside these, test_serial.py and test_check.py run all cells of the zoo
@pytest.mark.slow
@examples(60)
@given(generated(), st.booleans())
def test_many_generated_cells(uncompiled, made, ragged):
    check(made, ragged)


@pytest.mark.slow
@examples(4)
@given(generated(), st.booleans())
def test_kernels_of_generated_cells(compiled, made, ragged):
    check(made, ragged)


def made(cell: str | type[Cell]) -> Plan:
    return plan((get(cell) if isinstance(cell, str) else cell)(3, 4))


def products(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.target in (aten.mm.default, aten.addmm.default)]


def state_ancestors(graph: fx.Graph, node: fx.Node, plan: Plan) -> set[str]:
    return {str(n.target) for n in ancestors([node]) if n.op == "placeholder"} & set(plan.states)


@pytest.mark.parametrize(("name", "count"), [("rnn", 1), ("lstm", 1), ("lstm_peephole", 1), ("gru", 1), ("mgu", 2)])
def test_products_of_one_step(name, count):
    # what depends on itself through a product needs one: gates of one operand share theirs, mgu's candidate waits for f
    found = made(name)
    assert len(products(found.recur)) == len(products(found.derived.step)) == count
    assert len(products(found.derived.back)) == count
    # weight gradients wait until the end and compute each number once, in one product or, of parts, in several
    sizes = [sum(n.meta["val"].numel() for n in products(found.derived.defer))]
    assert sizes == [sum(n.args[1].meta["val"].numel() for n in products(found.recur))]


@pytest.mark.parametrize("name", ["rnn", "lstm", "lstm_peephole", "gru", "mgu"])
def test_the_input_is_projected_at_once_with_its_biases(name):
    found = made(name)
    assert len(outputs(found.project)) == len(products(found.project)) == 1
    gates = [w for w, declared in get(name).weights.items() if declared.dims == ("input", "hidden")]
    (note,) = (n for n in found.merged if n.startswith("x @"))
    product, _, biases = note.partition(" + ")
    assert product == f"x @ [{' '.join(gates)}]"
    assert set(biases.strip("[]").split()) <= set(get(name).weights) and len(biases.split()) == len(gates)


def test_a_plan_is_the_same_under_autocast(monkeypatch):
    def types() -> list[torch.dtype]:
        monkeypatch.setattr(plans, "_kept", [])
        return [n.meta["val"].dtype for n in made("gru").recur.nodes if n.op != "output"]

    expected = types()
    with torch.autocast("cpu", torch.bfloat16):
        assert types() == expected


def test_what_an_lstm_saves():
    # the four gates: tanh(c) is made again, h and c are there
    found = made("lstm")
    saved = outputs(found.derived.step)[len(found.states) :]
    assert sum(n.meta["val"].shape[1] for n in saved) == 4 * 4
    assert found.derived.kept == 0


def test_deferred_products_run_once():
    for name in ("lstm", "mgu", "gru"):
        found = made(name)
        for node in products(found.derived.back):  # a sum over rows would have the rows between its operands
            assert all(isinstance(a.meta["val"].shape[0], torch.SymInt) for a in node.args[:1])
        assert all(not isinstance(n.meta["val"].shape[0], torch.SymInt) for n in products(found.derived.defer))


class MultiplicativeIntegration(Cell):
    """Wu et al. 2016, arXiv:1606.06630, eq. 4, as it is written there."""

    W, U, b = InputWeight(), RecurrentWeight(), Bias()
    alpha, beta_1, beta_2 = Diagonal(), Diagonal(), Diagonal()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        Wx, Uh = x @ self.W, h @ self.U
        return torch.tanh(self.alpha * Uh * Wx + self.beta_1 * Uh + self.beta_2 * Wx + self.b)


def test_what_the_state_does_not_reach_is_grouped():
    found = made(MultiplicativeIntegration)
    assert len(products(found.recur)) == 1
    (product,) = products(found.recur)
    # alpha Wx comes first, then times Uh
    factors = {n.args[0] if n.args[1] is product else n.args[1] for n in product.users if n.target is aten.mul.Tensor}
    assert any(
        f.op == "call_function" and not state_ancestors(found.recur, f, found) and {"leaf0"} <= {
            str(n.target) for n in ancestors([f])
        }
        for f in factors
    )  # fmt: skip


class Antisymmetric(Cell):
    """Chang et al. 2019, arXiv:1902.09689, eq. 9."""

    V, W, b = InputWeight(), RecurrentWeight(), Bias()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        gamma = 0.01 * torch.eye(self.hidden_size)
        return h + 0.1 * torch.tanh(h @ (self.W - self.W.T - gamma) + x @ self.V + self.b)


def test_work_on_weights_runs_once_a_sequence():
    found = made(Antisymmetric)
    (product,) = products(found.recur)
    assert product.args[1].op == "placeholder"
    assert any(n.target is aten.sub.Tensor for n in found.prepare.nodes)
    every_weight = [n for n in found.recur.nodes if n.op == "call_function" and not has_rows(n)]
    assert every_weight == []
