"""Equations read off the source of a cell's `step` and `readout`.

The source runs once, on stand-ins that note what is done to them; what each assignment gives is an equation. Loops
are unrolled, choices of hyperparameters are made, functions beside the cell are entered.

Code multiplies rows by matrices, x @ W, papers matrices by columns, W x. `Writer` turns the one into the other: a
matrix that multiplies rows is shown transposed, so that the W of the equations is [H, I] where the code's is [I, H].

The stand-ins carry random numbers, so every equation is tried before it is handed out, and the last of them against
`step` itself: what this module does not understand is an error and never a wrong equation.

Shapes: B batch, I input size, H hidden size.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType, SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from rnnzoo.cell import Cell
from rnnzoo.errors import UserError
from rnnzoo.explain.expression import Equation, Expression, Symbol, evaluate
from rnnzoo.explain.notation import Notation
from rnnzoo.explain.rewritten import rewritten
from rnnzoo.explain.value import Value, apply
from rnnzoo.explain.write import Writer

BATCH = 3
"""Rows of the input that the source runs on; no size of a cell is read off it."""


@dataclass(frozen=True)
class Reading:
    """A cell in equations.

    Args:
        step: from `x` and the old states to the new ones, in order.
        readout: from these to the output; empty where the output is the first state.
        given: every weight, hyperparameter, size, input and old state that occurs.
        shapes: of every symbol, as the equations have it: (n,) for a vector, (rows, columns) for a matrix.
        output: the symbol of the output.
        variables: what a symbol is called in the code, where it is assigned there.
        turned: the weights that the equations have transposed: [H, I] where the cell has [I, H].
    """

    step: tuple[Equation, ...]
    readout: tuple[Equation, ...]
    given: tuple[Symbol, ...]
    shapes: dict[Symbol, tuple[int, ...]]
    output: Symbol
    variables: dict[Symbol, str]
    turned: frozenset[Symbol]

    @property
    def equations(self) -> tuple[Equation, ...]:
        return self.step + self.readout


def read(cell: Cell) -> Reading:
    """The equations of a cell with the sizes and hyperparameters that it has; read once and kept.

    Raises `UserError` when the source is not to be had or does something that has no notation here.
    """
    known = _readings.setdefault(type(cell), {})
    hyperparameters = tuple(getattr(cell, name) for name in cell.hyperparameters)
    key = (cell.input_size, cell.hidden_size, hyperparameters, cell.training)
    if key not in known:
        known[key] = _read(cell)
    return known[key]


_readings: WeakKeyDictionary[type[Cell], dict[Any, Reading]] = WeakKeyDictionary()


def _read(cell: Cell) -> Reading:
    with _errors_name(type(cell).__name__), torch.inference_mode(False), torch.no_grad():
        return _Reader([*cell.weights, *cell.hyperparameters, "x"], cell.state_names).read_cell(_with_random(cell))


@contextmanager
def _errors_name(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise UserError(f"{what} cannot be read as equations: {' '.join(str(error).split())}") from error


def _with_random(cell: Cell) -> Cell:
    """A copy with random weights in double precision, on the CPU; sums over the first dimension stay near 1."""
    generator = torch.Generator().manual_seed(0)
    memo: dict[int, Any] = {}
    for tensor in filter(torch.is_floating_point, (*cell.parameters(), *cell.buffers())):
        random = _random(tensor.shape, generator) / (len(tensor) if tensor.dim() > 1 else 1)
        memo[id(tensor)] = nn.Parameter(random) if isinstance(tensor, nn.Parameter) else random
    return copy.deepcopy(cell, memo)


def _random(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), dtype=torch.float64, generator=generator)


def read_function(function: Callable[..., Any], target: str, **arguments: Tensor) -> Reading:
    """The equations of a function of tensors, which returns `target`; as `step` they are rows, [B, n], or weights.

    What has `BATCH` rows is a row for each sequence. A name that ends in `_prev` or `_next` is of the step before or
    after.
    """
    values = []
    for name, tensor in arguments.items():
        rows = tensor.dim() > 1 and len(tensor) == BATCH
        base, _, when = name.rpartition("_")
        time = {"prev": "t-1", "next": "t+1"}.get(when, "t")
        symbol = Symbol(base if time != "t" else name, time if rows else "", role="input" if rows else "weight")
        values.append(Value("leaf", (), tensor.detach().double(), rows, symbol))
    with _errors_name(function.__name__), torch.no_grad():
        return _Reader(arguments).read_function(function, values, Symbol(target, "t", role="output"))


def gates(cell: Cell) -> dict[str, str]:
    """The variables of `step` that are a function's value, as in `f = sigmoid(...)`, with the function's name."""
    reading, found = read(cell), {}
    for equation in reading.step:
        value = equation.value
        for variable in (reading.variables.get(target) for target in equation.targets):
            if value.op == "call" and variable is not None:
                found[variable] = "hard sigmoid" if _is_hard_sigmoid(value) else value.detail
    return found


def _is_hard_sigmoid(value: Expression) -> bool:
    return value.detail == "clip" and [a.detail for a in value.args[1:]] == [0, 1]


class _Reader:
    """Runs source on stand-ins and collects what is assigned.

    Args:
        given: names of what is not computed.
        states: names of the states.
    """

    def __init__(self, given: Iterable[str], states: Sequence[str] = ()) -> None:
        self.given, self.states = {*given}, tuple(states)
        self.noted: list[tuple[tuple[tuple[str, int], ...], Value]] = []
        self.count: dict[str, int] = {}
        self.locals: dict[tuple[str, int], Value] = {}
        self.renamed: dict[tuple[str, int], Symbol] = {}
        self.properties: dict[str, Any] = {}

    def read_cell(self, cell: Cell) -> Reading:
        generator = torch.Generator().manual_seed(1)
        shapes = [(cell.input_size,), *cell.state_shapes()]
        x, *before = (_random((BATCH, *shape), generator) for shape in shapes)
        x_now = Value("leaf", (), x, True, Symbol("x", "t", role="input"))
        old = [
            Value("leaf", (), tensor, True, Symbol(name, "t-1", role="state"))
            for name, tensor in zip(cell.state_names, before)
        ]
        new = _as_list(self._run(type(cell).step, _Self(self, cell), x_now, *old))
        if len(new) != len(before) or not all(isinstance(value, Value) for value in new):
            raise UserError(f"its step does not return {len(before)} tensors, one for each state")
        self._name_states(new)
        now = [Symbol(name, "t", role="state") for name in cell.state_names]
        for symbol, value in zip(now, new):
            if value.op != "local" or self.renamed.get(value.args[0]) != symbol:
                self._note_as(symbol, value)
        true = _as_list(cell.step(x[:1], *(tensor[:1].clone() for tensor in before)))
        output, of_step = now[0], len(self.noted)
        if type(cell).readout is not Cell.readout:
            after = [Value("leaf", (), value.number, True, symbol) for symbol, value in zip(now, new)]
            answer = self._run(type(cell).readout, _Self(self, cell), x_now, *after)
            taken = {*cell.state_names, *self.count, *cell.weights}
            output = Symbol("y" if "y" not in taken else "out", "t", role="output")
            self._note_as(output, answer)
            true.append(cell.readout(x[:1], *true))
            new.append(answer)
        reading = self._reading(of_step, output)
        if not all(_close(a.number[:1], b) for a, b in zip(new, true)):
            raise UserError("it does something else than its source says, or mixes the sequences of a batch")
        return reading

    def read_function(self, function: Callable[..., Any], arguments: Sequence[Value], target: Symbol) -> Reading:
        self._note_as(target, self._run(function, *arguments))
        return self._reading(len(self.noted), target)

    def _reading(self, of_step: int, output: Symbol) -> Reading:
        symbols = self._symbols()
        writer = Writer(symbols, {key: value for keys, value in self.noted for key in keys})
        equations = [Equation(tuple(symbols[key] for key in keys), writer.target(keys[0])) for keys, _ in self.noted]
        self._try(equations, writer)
        used = dict.fromkeys(s for e in equations for s in e.value.symbols())
        made = {target for e in equations for target in e.targets}
        given = tuple(s for s in used if s not in made)
        spelled: dict[str, Symbol] = {}
        for symbol in (*given, *symbols.values()):
            other = spelled.setdefault(Notation().symbol(symbol), symbol)
            if other != symbol or list(symbols.values()).count(symbol) > 1:
                raise UserError(f"{other.name} and {symbol.name} would look alike in equations; rename one of them")
        return Reading(
            tuple(equations[:of_step]),
            tuple(equations[of_step:]),
            given,
            {symbol: writer.shape(*seen) for symbol, seen in writer.seen.items()}
            | {symbols[key]: writer.shape(key, value) for key, value in self.locals.items()},
            output,
            {symbols[key]: key[0] for key in self.locals if "@" not in key[0]},
            frozenset(s for s in writer.turned if isinstance(s, Symbol)),
        )

    def _try(self, equations: Sequence[Equation], writer: Writer) -> None:
        """See that the equations hold for what the stand-ins stand for in one sequence."""
        values = {symbol: writer.array(*seen, 1) for symbol, seen in writer.seen.items()}
        for (keys, _), equation in zip(self.noted, equations):
            with np.errstate(all="ignore"):
                found = evaluate(equation.value, values)
            for key, part in zip(keys, np.split(found, len(keys)) if len(keys) > 1 else [found]):
                if not _close(part, writer.array(key, self.locals[key], 1)):
                    name = key[0].partition("@")[0]
                    raise UserError(f"there is no notation for the way in which {name} is computed")

    def _run(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function, its assignments noted, on stand-ins."""
        return rewritten(function, self._note, self._entered)(*args, **kwargs)

    def _entered(self, value: Any) -> Any:
        """A function that a person wrote beside the cell is read too; Python's own mathematics works on stand-ins."""
        if value is math:
            return SimpleNamespace(**{n: _number_function(n) for n in dir(math)})
        if isinstance(value, BuiltinFunctionType) and value.__module__ == "math":
            return _number_function(value.__name__)
        if isinstance(value, FunctionType) and not value.__module__.startswith("torch"):
            return lambda *args, **kwargs: self._call(value, *args, **kwargs)
        return value

    def _call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(function).bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            bound.arguments[name] = self._note(name, value) if isinstance(value, Value) else value
        return self._run(function, *bound.args, **bound.kwargs)

    def _note(self, names: Any, value: Any) -> Any:
        """Remember an assignment; returns what the name then stands for."""
        if isinstance(names, tuple) and isinstance(value, (tuple, list)) and len(names) == len(value):
            pieces = [v for v in value if isinstance(v, Value) and v.op == "piece"]
            if len(pieces) == len(value):  # cut apart: one equation for all parts
                keys = tuple(self._key(name) for name in names)
                self.noted.append((keys, pieces[0].args[0]))
                return tuple(self._local(key, piece) for key, piece in zip(keys, pieces))
            return tuple(self._note(n, v) for n, v in zip(names, value))
        another_name = isinstance(value, Value) and value.op in ("leaf", "local")
        if another_name or not isinstance(value, Value) or isinstance(names, tuple):
            return value
        key = self._key(names)
        self.noted.append(((key,), value))
        return self._local(key, value)

    def _key(self, name: str) -> tuple[str, int]:
        self.count[name] = self.count.get(name, 0) + 1
        return name, self.count[name]

    def _local(self, key: tuple[str, int], value: Value) -> Value:
        self.locals[key] = Value("local", (key,), value.number, value.rows)
        return self.locals[key]

    def _note_as(self, symbol: Symbol, value: Value) -> None:
        key = (f"{symbol.name}@{symbol.time}", 1)  # no variable of Python has such a name
        self.noted.append(((key,), value))
        self._local(key, value)
        self.renamed[key] = symbol

    def _name_states(self, new: list[Value]) -> None:
        """Which variables are the new states: those of their names, or what is returned under another name."""
        for name, value in zip(self.states, new):
            if value.op != "local" or value.args[0] in self.renamed:
                continue
            own, _ = value.args[0]
            if own == name or (own not in self.states and name not in self.count):
                self.renamed[value.args[0]] = Symbol(name, "t", role="state")

    def _symbols(self) -> dict[tuple[str, int], Symbol]:
        """What each variable is called, version by version."""
        states = {symbol.name for symbol in self.renamed.values()}
        found = {}
        for (name, version), value in self.locals.items():
            versions = self.count.get(name, 1)
            plain = versions - sum(key[0] == name for key in self.renamed)
            numbered = versions > 1 and (plain > 1 or name in self.states)
            prime = name in self.given or (name in states and versions == 1)
            symbol = Symbol(name, "t" if value.rows else "", version if numbered else 0, prime)
            found[name, version] = self.renamed.get((name, version), symbol)
        return found


def _as_list(returned: Any) -> list[Any]:
    return list(returned) if isinstance(returned, (tuple, list)) else [returned]


def _close(a: Any, b: Any) -> bool:
    """Whether two arrays are equal up to rounding; one number is the same in any shape."""
    a, b = np.asarray(a), np.asarray(b)
    return (a.shape == b.shape or a.size == b.size == 1) and np.allclose(a.ravel(), b.ravel(), 1e-6, equal_nan=True)


def _number_function(name: str) -> Any:
    function = getattr(math, name)
    return (lambda *args: apply(name, function, *args)) if callable(function) else function


class _Self:
    """What `self` is while the source runs: weights and numbers are stand-ins, methods are entered."""

    def __init__(self, reader: _Reader, cell: Cell) -> None:
        self._reader, self._cell = reader, cell

    def __getattr__(self, name: str) -> Any:
        cell, reader = self._cell, self._reader
        found, declared = getattr(cell, name), getattr(type(cell), name, None)
        if isinstance(found, Tensor):
            if isinstance(declared, property):
                if name not in reader.properties:
                    reader.properties[name] = reader._note(name, reader._run(declared.fget, self))
                return reader.properties[name]
            if name not in {**cell._parameters, **cell._buffers}:
                raise UserError(f"self.{name} is no declared weight")
            weight = cell.weights.get(name)
            role = "weight" if weight is None or weight.trainable else "fixed"
            return Value("leaf", (), found.clone(), False, Symbol(name, role=role))
        if isinstance(found, (int, float)) and not isinstance(found, bool):
            role = "hyperparameter" if name in cell.hyperparameters else "size"
            return Value("leaf", (), found, False, Symbol(name, role=role))
        if isinstance(found, MethodType) and found.__self__ is cell:
            return lambda *args, **kwargs: reader._call(found.__func__, self, *args, **kwargs)
        return reader._entered(found)
