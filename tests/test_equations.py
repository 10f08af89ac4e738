"""Equations read off a cell say what the cell does: as a tree, and as text, LaTeX and MathML that are parsed back."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.mathtext import MathTextParser
from parse_equations import text_of_latex, text_of_mathml, value_of
from torch import Tensor, sigmoid, tanh
from torch.nn import functional as F

from rnnzoo import (
    Cell,
    Diagonal,
    RecurrentWeight,
    Scalar,
    State,
    UserError,
    Weight,
    gate,
    get,
    list_cells,
)
from rnnzoo.check import shaken
from rnnzoo.explain.equations import Reading, gates, read, read_function
from rnnzoo.explain.expression import Equation, Symbol, evaluate
from rnnzoo.explain.notation import LaTeX, MathML, Notation

TEXT = Notation()
B = 3


class StructureOfLaTeX(LaTeX):
    """LaTeX whose names are those of the text."""

    def symbol(self, symbol: Symbol) -> str:
        return TEXT.symbol(symbol)


class StructureOfMathML(MathML):
    """MathML whose names are those of the text."""

    def symbol(self, symbol: Symbol) -> str:
        return f"<mi>{TEXT.symbol(symbol)}</mi>"


def variants(name: str) -> list[dict[str, object]]:
    """The defaults, and every other choice of one hyperparameter."""
    declared = get(name).hyperparameters.items()
    choices = {key: h.choices or (True, False) for key, h in declared if h.choices or h.type is bool}
    return [{}, *({key: value} for key, values in choices.items() for value in values)]


CASES = [(name, variant) for name in list_cells() for variant in variants(name)]


def column(tensor: Tensor) -> np.ndarray:
    array = tensor.detach().numpy()
    return array[:, None] if array.ndim == 1 else array


def given(cell: Cell, reading: Reading, symbol: Symbol, x: Tensor, states: dict[str, Tensor]) -> np.ndarray:
    """What a symbol that is not computed stands for in one sequence, with input x [I]."""
    if symbol.role == "input":
        return column(x)
    if symbol.role == "state":
        return column(states[symbol.name])
    value = getattr(cell, symbol.name)
    if not isinstance(value, Tensor):
        return np.asarray(value)
    return column(value.mT if symbol in reading.turned else value)


def held(cell: Cell) -> list[str]:
    """The equations of a cell in plain text, once tree and text have been computed and agree with `step`."""
    reading, cell = read(cell), shaken(cell)
    x = torch.randn(B, cell.input_size, dtype=torch.float64)
    before = tuple(torch.rand(B, *shape, dtype=torch.float64) for shape in cell.state_shapes())
    with torch.no_grad():
        after = cell(x, *(state.clone() for state in before))  # h += ... writes into what it is given
        output = cell.readout(x, *after)
    for k in range(B):
        states = {name: state[k] for name, state in zip(cell.state_names, before)}
        values = {symbol: given(cell, reading, symbol, x[k], states) for symbol in reading.given}
        names = {TEXT.symbol(symbol): value for symbol, value in values.items()}
        for equation in reading.equations:
            value = evaluate(equation.value, values)
            for text in texts(equation) if k == 0 else ():
                left, _, right = text.partition(" = ")
                said = np.broadcast_to(value_of(right, names), value.shape)
                np.testing.assert_allclose(said, value, rtol=1e-5, atol=1e-9, err_msg=right)
                assert left == left_side(equation)
            many = len(equation.targets) > 1
            for target, part in zip(equation.targets, np.split(value, len(equation.targets)) if many else [value]):
                rows, columns = (*reading.shapes[target], 1, 1)[:2]
                assert part.size == rows * columns and (part.size == 1 or part.shape == (rows, columns))
                values[target] = names[TEXT.symbol(target)] = part
        for name, state in zip(cell.state_names, after):
            same(values[Symbol(name, "t", role="state")], state[k])
        same(values[reading.output], output[k])
    return [TEXT.equation(equation) for equation in reading.equations]


def texts(equation: Equation) -> list[str]:
    """An equation in text, and in text made of its LaTeX and of its MathML."""
    mathml = ET.fromstring(StructureOfMathML().equation(equation))
    return [TEXT.equation(equation), text_of_latex(StructureOfLaTeX().equation(equation)), text_of_mathml(mathml)]


def left_side(equation: Equation) -> str:
    names = [TEXT.symbol(target) for target in equation.targets]
    return names[0] if len(names) == 1 else f"[{'; '.join(names)}]"


def same(found: np.ndarray, expected: Tensor) -> None:
    np.testing.assert_allclose(found.reshape(-1), expected.numpy().reshape(-1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "variant"), CASES, ids=lambda case: str(case))
def test_equations_of_every_registered_cell_compute_its_step(name, variant):
    torch.manual_seed(0)
    for sizes in ((5, 7), (1, 4), (4, 1)):
        held(get(name)(*sizes, **variant))


class Own(Cell):
    """Weights for cells of one's own, of which each computes h in a way of its own."""

    depth: int = 3
    rate: float = 0.25
    W, U, b = gate()
    V, w, a = RecurrentWeight(), Diagonal(), Scalar()
    u = Weight("hidden", 1)
    three = Weight("depth", "hidden", "hidden")


def double(a: Tensor, times: float = 2.0) -> Tensor:
    twice = a * times
    return twice


class OneMore(Own):
    @property
    def C(self) -> Tensor:
        return self.U + self.V.T

    def squeezed(self, a: Tensor, *, by: Tensor) -> Tensor:
        inner = tanh(a)
        return inner * by


class Matrix(Own):
    S = State("hidden", "depth")
    P = Weight("hidden", "depth")


def step_of(kind: type[Cell], step: object) -> Cell:
    """A cell of 5 inputs and 7 units that computes `step`."""
    return type("Mine", (kind,), {"step": step})(5, 7)


def both_ways(self, x, h):
    return h @ self.V + self.V[0] + h @ self.three[0].T @ self.three[0] + h @ self.V.T + h @ (self.U * self.V)


def sums_of_matrices(self, x, h):
    return h @ (1 - self.V) + h @ (self.U - 0.5 * self.V.T) + h @ (self.rate + self.V) + h @ (2 - self.V).T


def rows_and_columns(self, x, h):
    return h @ (self.w * self.U) + h @ (self.w[:, None] * self.V) + h @ (self.U + self.w) + h @ (self.V * self.w).T


def outer_product(self, x, h):
    return h @ (self.w[:, None] * self.b) + h @ (self.b[None, :] * self.w.unsqueeze(1)) @ self.V


def dot_products(self, x, h):
    return h * (h * self.w).sum(-1, keepdim=True) + (h @ self.u) * h + (h @ self.w)[:, None] * self.b


def sums(self, x, h):
    return h * h.sum(1, keepdim=True) + h.mean(-1, keepdim=True) + (0.5 * h).sum(-1, keepdim=True)


def loop(self, x, h):
    for k in range(self.depth):
        h = tanh(h @ self.three[k] + x @ self.W)
    return h


def choice(self, x, h):
    if self.depth > 2 and self.rate < 1:
        return h + self.rate * x @ self.W
    return h


def augmented(self, x, h):
    h += x @ self.W
    h *= self.w
    h -= self.b
    h /= 2
    return h


def assigned_at_once(self, x, h):
    a, b = sigmoid(x @ self.W), h * 2
    c = d = a + b
    e: Tensor = c * d
    return e - a


def cut_apart(self, x, h):
    a, b = torch.cat([x @ self.W, h], -1).split(7, -1)
    c, d = sigmoid(torch.cat([a, b], 1)).chunk(2, -1)
    return c * h + d * a


def helpers(self, x, h):
    return double(h) + double(double(x @ self.W, times=self.rate)) + (lambda a: a * 3)(h)


def torch_functions(self, x, h):
    a = torch.add(torch.mul(x @ self.W, h), torch.neg(h))
    b = torch.sub(a, torch.div(h, 2)).add(h).mul(self.w).matmul(self.U)
    c = torch.lerp(b, h, self.rate) + torch.addcmul(h, self.w, h) + F.linear(h, self.V, self.b)
    return (
        torch.where(c < 0, torch.expm1(c), torch.log1p(c * c)) + F.hardsigmoid(c) + torch.square(h) / F.softsign(h + 1)
    )


def powers(self, x, h):
    a = torch.exp(-2.0 * h)
    return (1 + h**2) ** -0.5 * a**2 * 1e-6 - (-h) ** 3 / (a / h) - 2.5e-7 * (h + 1) / self.rate + 2**h - (h - (a - h))


def quotients(self, x, h):
    a = 1 / (h + 1) * (h / self.w) - h / (2 * h) + (h**2) ** 3 / (h / self.rate / h)
    return (
        a
        + self.rate * (h / 3)
        + (h @ (self.U * 0.5)) / (h * h)
        + (h @ self.U @ self.V) * (2 * h @ self.U)
        + (h @ self.U) ** 2
        - (2 * h) ** 3
    )


def numbers(self, x, h):
    return 2.5e-7**h + (-2.0) ** (h > 1) * h + 1e-6**h - h * -3 + h @ self.U * -1e-5 * 1e6 - -2.5e-7 * h + (h - 1e-7)


def cases(self, x, h):
    a = torch.where(h > 0.5, h, torch.where(h > 0.2, x @ self.W, -h)) * h + torch.where(h < 0.7, h, 0.0)
    return torch.where(a > h * 2, torch.where(h < 0.3, a, h), -a) - h


def picks(self, x, h):
    a, c = torch.cat([h[:, -2:], h[:, :-2]], 1), h @ self.three[-1]
    return a * h[:, -1:] + c * self.w[-1] + h[:, 2:3] * self.V[-2] + self.three[self.depth - 2][0] * h[:, 0:1]


def python_numbers(self, x, h):
    n = self.depth // 2 + self.depth % 2
    return h * n + abs(h) * math.sqrt(self.depth) / math.ceil(self.rate) * sqrt(2)


def logarithms(self, x, h):
    log_a = torch.log(h)
    return 2 * log_a * h + log_a**2 - h @ self.U * log_a + self.rate * log_a / 2 + torch.exp(2 * log_a)


def remainders(self, x, h):
    return torch.remainder(h * 7, 2 + h) * h + (h > 0.5) * h + torch.floor(h * 3).clamp(max=1) + (h == h).double()


def with_keywords(self, x, h):
    return self.squeezed(h, by=self.b) + self.squeezed(a=x @ self.W, by=h)


def with_property(self, x, h):
    return tanh(h @ self.C) + h @ self.C


def two_norms(self, x, h):
    a = F.layer_norm(h, (7,), self.w, self.b) + F.rms_norm(h, (7,), eps=1e-5)
    return torch.softmax(a, -1) + torch.roll(F.gelu(a), 2, -1)


def triangles(self, x, h):
    return h @ (torch.triu(self.U) + torch.tril(self.V, 1)) + h @ torch.matrix_exp(torch.tril(self.U, -2)) @ self.V


def memory(self, x, h, S):
    f = sigmoid(h @ self.P)
    S = f[:, None, :] * S + h[:, :, None] * f.unsqueeze(1) - self.w[:, None] * S + S**2 * torch.abs(S)
    return h + (S @ f[..., None]).squeeze(-1) + S.sum(2) + (S @ self.P.T * self.V).sum(1), S


def cast(self, x, h):
    return h.detach().clone().to(x.dtype) * (h > 0).type_as(x)


CELLS = [
    *((Own, step) for step in (both_ways, sums_of_matrices, rows_and_columns, outer_product, dot_products, sums)),
    *((Own, step) for step in (loop, choice, augmented, assigned_at_once, cut_apart, helpers, torch_functions, cast)),
    *((Own, step) for step in (powers, quotients, numbers, cases, picks, python_numbers, logarithms, remainders)),
    *((Own, step) for step in (two_norms, triangles)),
    *((OneMore, step) for step in (with_keywords, with_property)),
    (Matrix, memory),
]


@pytest.mark.parametrize(("kind", "step"), CELLS, ids=lambda case: case.__name__)
def test_equations_of_cells_of_ones_own_compute_their_step(kind, step):
    torch.manual_seed(0)
    held(step_of(kind, step))


def written(body: str, path: str) -> Cell:
    """A cell whose step has this body, as if read from the file `path`."""
    lines = ["class Mine(Own):", "    def step(self, x, h):", *(f"        {line}" for line in body.split("; "))]
    scope = {"Own": Own, "torch": torch, "F": F, "math": math, "other": torch.ones(7), "__name__": "mine"}
    source = "\n".join(lines)
    if path != "<string>":
        Path(path).write_text(source)
    exec(compile(source, path, "exec"), scope)
    return scope["Mine"](5, 7)


REFUSED = [
    ("return h if h.sum() > 0 else -h", "sums over more than one dimension|branches on data"),
    ("return h if (h > 0).all() else -h", "branches on data"),
    ("return h if h.sum().item() > 0 else -h", "Python number of a tensor, with item"),
    ("return h if torch.equal(h, h) else -h", "Python number of a tensor, with equal"),
    ("return h * self.w.tolist()[0]", "Python number of a tensor, with tolist"),
    ("return h * float(self.a)", "Python number of a tensor"),
    ("return h * math.exp(self.a)", "Python number of a tensor"),
    ("h[:, 0] = 1; return h", "line 2 of it writes in place"),
    ("self.last = h; return h", "line 2 of it writes in place"),
    ("h.add_(1); return h", "writes in place, with add_"),
    ("torch.relu_(h); return x @ self.W", "writes in place, with relu_"),
    ("return F.relu(h, inplace=True)", "writes in place, with relu"),
    ("self.w.data.mul_(2); return h * self.w", "writes in place, with mul_"),
    ("return torch.fft.fft(h).real", "no notation for fft_fft"),
    ("return torch.einsum('bh,hk->bk', h, self.U)", "no notation for"),
    ("return h * h.sum()", "sums over more than one dimension"),
    ("return h * h.sum((0, 1))", "sums over more than one dimension"),
    ("return h - h.sum(0)", "sums over the batch"),
    ("return h - h.mean(0)", "sums over the batch"),
    ("return torch.softmax(h, 0)", "no notation for"),
    ("return h * x.shape[0]", "mixes the sequences"),
    ("return torch.roll(h, 1, 0)", "no notation for"),
    ("return (self.U @ h.T).T", "turns the batch"),
    ("h_hat = 2 * h; new_h = 3 * h; h_tilde = h_hat * new_h; return h_tilde * h", "new_h and h_tilde would look alike"),
    ("return h.view(-1, 7)", "no notation for view"),
    ("return h.reshape(h.shape)", "no notation for reshape"),
    ("return h[:, [1, 0, 2, 3, 4, 5, 6]]", "picks elements"),
    ("return h[:, [1, 0, 2, 3, 4, 5, 6], None].squeeze(-1)", "no notation for the way in which h is computed"),
    ("return h * torch.rand_like(h)", "no notation for rand_like"),
    ("return F.dropout(h)", "no notation for dropout"),
    ("return h * other", "no declared weight"),
    ("return F.linear(h, other.diag())", "no declared weight"),
    ("a, b = torch.cat([h, 2 * h], 1).chunk(2, 1)[::-1]; return a - 2 * b + x @ self.W", "no notation for the way"),
    ("a, b = torch.cat([h, x], 1).split([7, 5], 1); return a + b @ self.W", "no notation for the way"),
    ("a, *b = torch.cat([h, h], 1).chunk(2, 1); return a", "assigns to \\*b"),
    ("return h.to(torch.int64) + h", "drops decimals"),
    ("return F.layer_norm(h, (7,), eps=1e-3)", "another eps"),
    ("return torch.rms_norm(h, (7,))", "another eps"),
    ("return F.softplus(h, 2.0)", "no notation for softplus"),
    ("return h @ self.U**3", "element-wise pow of matrices"),
    ("return h @ (self.U / self.V)", "element-wise truediv of matrices"),
    ("return h, h", "does not return 1 tensors"),
    ("return 0", "does not return 1 tensors"),
    ("return super().step(x, h)", "super"),
]


@pytest.mark.parametrize(("body", "reason"), REFUSED, ids=lambda case: case)
def test_what_cannot_be_read_is_one_line_and_never_a_formula(tmp_path, body, reason):
    with pytest.raises(UserError, match=f"^Mine cannot be read as equations: .*({reason}).*$"):
        read(written(body, str(tmp_path / "mine.py")))


def test_without_source_nothing_can_be_read():
    with pytest.raises(
        UserError, match=r"^Mine cannot be read .*Mine\.step is not to be had; write the cell to a file$"
    ):
        read(written("return h", "<string>"))


def tripled(function):
    return lambda self, x, h: 3 * function(self, x, h)


@tripled
def decorated(self, x, h):
    return h


def test_a_decorated_step_is_not_read_without_its_decorator():
    with pytest.raises(UserError, match="Mine cannot be read as equations: "):
        read(step_of(Own, decorated))


def test_a_cell_that_was_changed_after_it_was_written_is_not_read_as_written(monkeypatch):
    monkeypatch.setattr("test_equations.double", lambda a, times=2.0: a * times + 1)
    with pytest.raises(UserError, match="Mine cannot be read"):
        read(step_of(Own, helpers))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lstm", {"i": "sigmoid", "f": "sigmoid", "o": "sigmoid", "g": "tanh"}),
        ("gru", {"r": "sigmoid", "z": "sigmoid", "n": "tanh"}),
        ("sgu", {"z_g": "tanh", "z_out": "softplus", "z": "hard sigmoid"}),
        ("star", {"z": "tanh"}),
        ("irnn", {}),
        ("atr", {"i": "sigmoid", "f": "sigmoid"}),
        ("gru3", {"z": "sigmoid", "r": "sigmoid", "c": "tanh"}),
        ("scrn", {"h": "sigmoid"}),
    ],
)
def test_gates_are_the_variables_that_are_a_function_s_value(name, expected):
    assert gates(get(name)(5, 7)) == expected


def test_gates_cut_from_one_vector_are_gates_too():
    assert gates(step_of(Own, cut_apart)) == {"c": "sigmoid", "d": "sigmoid"}


def test_a_function_of_rows_is_read_like_a_step():
    def gradient(g_next, h_prev, U):
        return (g_next * (1 - h_prev**2)) @ U.T

    found = read_function(gradient, "g", g_next=torch.rand(3, 7), h_prev=torch.rand(3, 7), U=torch.rand(7, 7))
    assert [TEXT.equation(e) for e in found.equations] == ["g_t = U (g_{t+1} ⊙ (1 − h_{t−1}^2))"]


def test_reading_leaves_the_cell_and_random_numbers_alone():
    cell = get("lstm")(5, 7).half()
    before, state = {k: v.clone() for k, v in cell.state_dict().items()}, torch.get_rng_state()
    with torch.inference_mode():
        read(cell)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) and v.dtype == torch.half for k, v in cell.state_dict().items())


def test_what_a_symbol_is_follows_from_the_declaration():
    reading = read(get("retention")(5, 7))
    roles = {symbol.name: symbol.role for symbol in reading.given}
    assert (roles["W_K"], roles["theta"], roles["gamma"]) == ("weight", "fixed", "hyperparameter")
    assert (roles["key_size"], roles["x"], roles["S"]) == ("size", "input", "state")
    shapes = {TEXT.symbol(symbol): shape for symbol, shape in reading.shapes.items()}
    assert (shapes["W_K"], shapes["S_t"], shapes["k_t"], shapes["γ"], shapes["n_t"]) == ((4, 5), (4, 7), (4,), (), ())
    assert [e.targets[0].name for e in reading.step][-1] == "S" and reading.output == reading.readout[-1].targets[0]


NAMES = [
    (Symbol("W_f"), "W_f", "W_{f}"),
    (Symbol("h", "t-1"), "h_{t−1}", "h_{t-1}"),
    (Symbol("W_gh"), "W_{gh}", "W_{g h}"),
    (Symbol("W_in"), "W_{in}", r"W_{\mathrm{in}}"),
    (Symbol("x_g", "t"), "x_{g,t}", "x_{g,t}"),
    (Symbol("lambda_"), "λ", r"\lambda"),
    (Symbol("beta_xi"), "β_{xi}", r"\beta_{x i}"),
    (Symbol("lamda"), "λ", r"\lambda"),
    (Symbol("dt"), "Δt", r"\Delta t"),
    (Symbol("hidden_size"), "n_h", "n_{h}"),
    (Symbol("key_size"), "n_{key}", r"n_{\mathrm{key}}"),
    (Symbol("new_c", "t"), "c\u0303_t", r"\tilde{c}_{t}"),
    (Symbol("h_hat", "t"), "h\u0302_t", r"\hat{h}_{t}"),
    (Symbol("f_prime", "t"), "f′_t", "f'_{t}"),
    (Symbol("log_tau"), "log τ", r"\log \tau"),
    (Symbol("k", "t", 2, True), "k′_t^(2)", "k'^{(2)}_{t}"),
    (Symbol("update_coefficient"), "update_coefficient", r"\mathrm{update\_coefficient}"),
    (Symbol("Wx", "t"), "(Wx)_t", "(Wx)_{t}"),
    (Symbol("_", "t"), "·_t", "·_{t}"),
]


@pytest.mark.parametrize(("symbol", "text", "latex"), NAMES, ids=lambda case: getattr(case, "name", None))
def test_names_are_spelled_as_papers_spell_them(symbol, text, latex):
    assert (TEXT.symbol(symbol), LaTeX().symbol(symbol)) == (text, latex)
    spelled = "".join(ET.fromstring(MathML().symbol(symbol)).itertext())
    accents = str.maketrans("\u0303\u0302", "~^", "_{} ")
    assert spelled.replace(" ", "").replace("_", "") == text.translate(accents).replace("^(", "(")


@pytest.mark.parametrize("name", list_cells())
def test_latex_and_mathml_are_well_formed(name):
    for equation in read(get(name)(5, 7)).equations:
        latex = LaTeX().equation(equation)
        assert latex.count("{") == latex.count("}") and latex.count(r"\left") == latex.count(r"\right")
        assert latex.isascii()
        ET.fromstring(MathML().equation(equation))


@pytest.mark.parametrize("name", ["lstm", "mlstm", "delta_net", "orthogonal", "cornn"])
def test_latex_compiles(name):
    parser = MathTextParser("path")
    for equation in read(get(name)(5, 7)).equations:
        parser.parse(f"${LaTeX().equation(equation)}$")


def test_marked_parts_are_set_off_in_mathml_and_nowhere_else():
    equation = read(get("lstm")(5, 7)).equations[0]
    part = equation.value.args[0].args[1]
    marked = ET.fromstring(MathML().equation(equation, [part])).findall(".//mrow[@class='differs']")
    assert ["".join(element.itertext()) for element in marked] == ["Uiht−1"]
    assert TEXT.equation(equation, [part]) == TEXT.equation(equation)
