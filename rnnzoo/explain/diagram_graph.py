"""The graph that a diagram draws: what meets in + and ×, and what happens to a value on its way between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from rnnzoo.explain.diagram_text import PLAIN, TEXT, UPPER
from rnnzoo.explain.equations import Reading
from rnnzoo.explain.expression import Equation, Expression, Symbol
from rnnzoo.explain.notation import TOGETHER
from rnnzoo.explain.rounds import Rounds, folded

Role: TypeAlias = Literal["plain", "matrix", "diagonal", "function", "sum", "name"]
"""What happens to a value on a piece of a line: it is scaled by a number or picked apart, multiplied by a weight
matrix, multiplied by a weight element by element, a function is applied, a weight is added; or it only gets a name."""


@dataclass
class Step:
    """One piece of a line with its label, and the value that is on the line after it."""

    role: Role
    text: str
    value: Expression


@dataclass(eq=False)
class Vertex:
    """A place where values meet, with the pieces of the line that leaves it.

    Args:
        kind: given (x or an old state), sum, product, box (a function of several), line (nothing meets), new (a new
            state at the right edge), way (a line passes).
        inputs: what comes in; into a box from top to bottom.
        minus: which inputs are subtracted.
        text: in a box or beside a given or new state.
        addend: what a sum adds that needs no line, as a bias.
        ports: what the inputs of a box are, where its text does not say so.
        value: where the inputs meet, before the pieces.
    """

    kind: str
    inputs: list[Vertex] = field(default_factory=list)
    minus: list[bool] = field(default_factory=list)
    text: str = ""
    addend: str = ""
    ports: tuple[str, ...] = ()
    steps: list[Step] = field(default_factory=list)
    layer: int = 0
    value: Expression | None = None

    @property
    def carried(self) -> Expression:
        """The value on the line that leaves."""
        if self.steps:
            return self.steps[-1].value
        return self.inputs[0].carried if self.value is None else self.value


@dataclass
class Graph:
    """`vertices` come after their inputs; the value of `output` leaves on top under the name `output_text`; `notes` are
    the definitions of what depends on weights alone; `equations` define all symbols of the values, in order."""

    vertices: list[Vertex]
    x: Vertex | None
    output: Vertex
    output_text: str
    notes: list[str]
    equations: list[Equation]


PLACE = Expression("symbol", (), Symbol("·"))
"""Stands for the value on a line where a label tells what is done to it."""


def graph(reading: Reading) -> Graph:
    """What the equations compute, equal subexpressions once."""
    return _Builder(reading).build()


class _Builder:
    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.vertices: list[Vertex] = []
        self.of_symbol: dict[Symbol, Vertex] = {}
        self.of_expression: dict[Expression, Vertex] = {}
        self.constant: dict[Symbol, bool] = {}

    def build(self) -> Graph:
        reading, notes = self.reading, list[str]()
        for symbol in reading.given:
            self.constant[symbol] = symbol.role not in ("input", "state")
            if not self.constant[symbol]:
                self.of_symbol[symbol] = self._add(Vertex("given", text=TEXT.symbol(symbol), value=_named(symbol)))
        equations = [*reading.equations]
        for part in folded(reading):
            for equation in [part] if isinstance(part, Equation) else part.once:
                self._take(equation, notes)
            if isinstance(part, Rounds):
                equations += part.once
                for last, once in part.results.items():
                    self.constant[last] = self.constant[once]
                    if not self.constant[once]:
                        text = f"repeated × {part.count}"
                        self.of_symbol[last] = self._line(self.of_symbol[once], "plain", text, _named(last))
        x = next((v for s, v in self.of_symbol.items() if s.role == "input"), None)
        states = [e.targets[0] for e in reading.step if e.targets[0].role == "state"]
        news = [self._add(Vertex("new", [self.of_symbol[s]], text=TEXT.symbol(s))) for s in states]
        output = self.of_symbol[reading.output]
        needed = _needed([*news, output])
        merged = _merge([v for v in self.vertices if v in needed], output)
        output = merged.get(output, output)
        kept = [v for v in self.vertices if v in needed - {*merged}]
        return Graph(kept, x, output, TEXT.symbol(reading.output), notes, equations)

    def _take(self, equation: Equation, notes: list[str]) -> None:
        constant = self._is_constant(equation.value)
        self.constant |= dict.fromkeys(equation.targets, constant)
        if constant:
            notes.append(TEXT.equation(equation))
        else:
            self._define(equation)

    def _define(self, equation: Equation) -> None:
        value = self._value(equation.value)
        for k, target in enumerate(equation.targets):
            name = _named(target)
            part = value if len(equation.targets) == 1 else self._line(value, "plain", f"part {k + 1}", name)
            if target.role not in ("state", "output"):
                part = self._line(part, "name", TEXT.symbol(_untimed(target)), name)
            self.of_symbol[target] = part

    def _add(self, vertex: Vertex) -> Vertex:
        vertex.minus = vertex.minus or [False] * len(vertex.inputs)
        self.vertices.append(vertex)
        return vertex

    def _is_constant(self, e: Expression) -> bool:
        return all(self.constant[symbol] for symbol in e.symbols())

    def _line(self, source: Vertex, role: Role, text: str, value: Expression) -> Vertex:
        return self._add(Vertex("line", [source], steps=[Step(role, text, value)]))

    def _value(self, e: Expression) -> Vertex:
        if e.op == "symbol":
            return self.of_symbol[e.detail]
        if e not in self.of_expression:
            self.of_expression[e] = self._computed(e)
        return self.of_expression[e]

    def _computed(self, e: Expression) -> Vertex:
        varying = [a for a in e.args if not self._is_constant(a)]
        if e.op == "add":
            return self._sum(e)
        if e.op in ("scale", "hadamard"):
            return self._product(e)
        if e.op == "negate":
            return self._line(self._value(e.args[0]), "function", "−", e)
        if e.op == "divide" and varying == [e.args[0]]:
            factor = Expression("divide", (Expression("number", (), 1), e.args[1]))
            return self._line(self._value(e.args[0]), "plain", TEXT.write(factor), e)
        if e.op == "divide" and len(varying) == 2:
            part = Expression("divide", (Expression("number", (), 1), e.args[1]))
            inverse = self._line(self._value(e.args[1]), "function", "1/·", part)
            return self._add(Vertex("product", [self._value(e.args[0]), inverse], value=e))
        if e.op == "matmul" and self._is_constant(e.args[0]):
            return self._weighted(*e.args)
        if e.op == "matmul" and e.args[0].op == "diag" and len(varying) == 2:
            return self._add(Vertex("product", [self._value(e.args[0].args[0]), self._value(e.args[1])], value=e))
        if e.op == "where" and len(varying) == 3:
            inputs = [self._value(a) for a in e.args]
            return self._add(Vertex("box", inputs, ports=("if", "then", "else"), value=e))
        return self._function(e, varying)

    def _sum(self, e: Expression) -> Vertex:
        constants = [a for a in e.args if self._is_constant(a)]
        varying = [a for a in e.args if not self._is_constant(a)]
        minus = [a.op == "negate" for a in varying]
        inputs = [self._value(a.args[0] if a.op == "negate" else a) for a in varying]
        addend = TEXT.write(Expression("add", tuple(constants))) if constants else ""
        numbers = all(s.role in ("hyperparameter", "size") for a in constants for s in a.symbols())
        if len(inputs) == 1 and numbers and minus[0]:
            return self._line(inputs[0], "function", f"{addend}−", e)
        addend = addend if not addend or addend.startswith("−") else f"+{addend}"
        if len(inputs) == 1 and numbers:
            return self._line(inputs[0], "function", addend, e)
        if len(inputs) == 1:
            value = self._line(inputs[0], "function", "−", varying[0]) if minus[0] else inputs[0]
            return self._line(value, "sum", addend, e)
        return self._add(Vertex("sum", inputs, minus, addend=addend, value=e))

    def _product(self, e: Expression) -> Vertex:
        constants = [a for a in e.args if self._is_constant(a)]
        parts = tuple(a for a in e.args if not self._is_constant(a))
        varying = [self._value(a) for a in parts]
        value = varying[0]
        if len(varying) > 1:
            value = self._add(Vertex("product", varying, value=replace(e, args=parts)))
        if not constants:
            return value
        factor = TEXT.write(Expression(e.op, tuple(constants)) if len(constants) > 1 else constants[0], TOGETHER)
        if e.op == "scale":
            return self._line(value, "plain", factor, e)
        return self._line(value, "diagonal", f"{factor}⊙", e)

    def _weighted(self, matrix: Expression, vector: Expression) -> Vertex:
        if matrix.op == "matmul":
            return self._weighted(matrix.args[0], Expression("matmul", (matrix.args[1], vector)))
        role: Role = "matrix" if any(matrix.symbols()) else "plain"  # what sums up features is no weight
        product = Expression("matmul", (matrix, vector))
        return self._line(self._value(vector), role, TEXT.write(matrix, TOGETHER), product)

    def _function(self, e: Expression, varying: Sequence[Expression]) -> Vertex:
        """A function of one value on its line, of several in a box; values without a name are a dot in its text."""
        stripped = [_stripped(a) for a in varying]
        inputs = list(dict.fromkeys(self._value(a) for a in stripped))
        shown = {a: _replaced(a, self._shown(s) if len(inputs) > 1 else PLACE) for a, s in zip(varying, stripped)}
        args = tuple(shown.get(a, a) for a in e.args)
        text = TEXT.write(replace(e, args=args))
        if e.op == "matmul" and e.args[0] == Expression("transpose", (e.args[1],)) and self._is_vector(e.args[1]):
            text = f"‖·‖{UPPER}2{PLAIN}"
        if e.op == "call" and (len(e.args) == 1 or e.detail in ("min", "max")) and len(varying) == len(e.args):
            text = TEXT.write(Expression("call", (), e.detail)).removesuffix("()") if e.detail != "floor" else text
        if len(inputs) > 1:
            return self._add(Vertex("box", inputs, text=text, value=e))
        kept = e.op in ("rows", "matmul", "transpose")
        text = text[1:-1] if e.op == "compare" else text
        return self._line(inputs[0], "plain" if kept else "function", text, e)

    def _is_vector(self, e: Expression) -> bool:
        return e.op == "symbol" and len(self.reading.shapes[e.detail]) == 1

    def _shown(self, e: Expression) -> Expression:
        """A value's name, if it has one."""
        named = e.op == "symbol"
        return replace(e, detail=_untimed(e.detail)) if named else PLACE


def _named(symbol: Symbol) -> Expression:
    return Expression("symbol", (), symbol)


def _untimed(symbol: Symbol) -> Symbol:
    """What is computed is of this step anyway; states and inputs are told apart by their time."""
    return replace(symbol, time="") if symbol.role == "local" else symbol


def _stripped(e: Expression) -> Expression:
    """A value without what only says how it lies in a product."""
    return _stripped(e.args[0]) if e.op in ("transpose", "diag") else e


def _replaced(e: Expression, by: Expression) -> Expression:
    return replace(e, args=(_replaced(e.args[0], by),)) if e.op in ("transpose", "diag") else by


def _needed(ends: Iterable[Vertex]) -> set[Vertex]:
    found: set[Vertex] = set()
    rest = list(ends)
    while rest:
        vertex = rest.pop()
        if vertex not in found:
            found.add(vertex)
            rest += vertex.inputs
    return found


def _merge(vertices: Sequence[Vertex], output: Vertex) -> dict[Vertex, Vertex]:
    """Appends a line to what it leaves, where nothing else leaves there; returns what became part of what."""
    merged: dict[Vertex, Vertex] = {}
    uses = Counter(i for v in vertices for i in v.inputs) + Counter([output])
    for vertex in vertices:
        vertex.inputs = [merged.get(i, i) for i in vertex.inputs]
        before = vertex.inputs[0] if vertex.kind == "line" else None
        if before and before.kind != "given" and uses[before] == 1:
            before.steps += vertex.steps
            uses[before] = uses[vertex]
            merged[vertex] = before
    return merged
