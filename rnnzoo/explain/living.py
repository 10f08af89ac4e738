"""A diagram whose lines tell what is on them: the values of one step, by the numbers that its lines bear.

Shapes: for one sequence; vectors are columns [n, 1], as in `rnnzoo.explain.expression`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from rnnzoo.cell import Cell
from rnnzoo.errors import UserError
from rnnzoo.explain.diagram import Drawing
from rnnzoo.explain.equations import Reading, read
from rnnzoo.explain.expression import Array, Equation, Expression, Symbol, evaluate
from rnnzoo.explain.notation import Notation


class Living:
    """The diagram of a cell with the weights that it has now.

    Attributes:
        svg: the picture; the lines of one value have its number as `data-wire`.
        wires: what each number stands for, in words for a terminal.
        variables: for each number, what the value is called in the cell's code; "" for one without a name there, or
            whose name the step gives to another value later.

    Raises `UserError` where the cell cannot be read as equations, or runs its step in another way than they say.
    """

    def __init__(self, cell: Cell) -> None:
        modifier = cell.modifier
        if modifier is not None and (getattr(modifier, "layer_norm", True) or getattr(modifier, "zoneout", True)):
            raise UserError("layer norm and zoneout change the step, so that its equations do not say what is done")
        self.reading: Reading = read(cell)
        drawing = Drawing(cell, tells=True)
        self.svg = drawing.svg()
        self._values = list(drawing.wires)
        names = self.reading.variables
        self.wires = [Notation().write(value) for value in self._values]
        self.variables = [_variable(value, names) for value in self._values]
        self._equations: list[Equation] = drawing.graph.equations
        self._given: dict[Symbol, Array] = {}
        for symbol in self.reading.given:
            if symbol.role not in ("input", "state"):
                found = getattr(cell, symbol.name)
                self._given[symbol] = self._array(symbol, found) if isinstance(found, Tensor) else np.asarray(found)
        for equation in self._equations:
            if all(symbol in self._given for symbol in equation.value.symbols()):
                self._define(equation, self._given)

    def values(self, x: Tensor, states: Mapping[str, Tensor], named: Mapping[str, Tensor]) -> list[Array | None]:
        """What is on each wire in a step, flat; None where it cannot be told.

        Args:
            x: the input [I].
            states: the old ones by name, without the batch.
            named: what the step gave to its variables, new states among them, without the batch: taken as they are,
                so that what was held at a value is seen to act. All else is computed from these.
        """
        values = dict(self._given)
        for symbol in self.reading.given:
            if symbol.role in ("input", "state"):
                values[symbol] = self._array(symbol, x if symbol.role == "input" else states[symbol.name])
        for equation in self._equations:
            if all(target in values for target in equation.targets):
                continue
            self._define(equation, values)
            for target in equation.targets:
                name = target.name if target.role == "state" else self.reading.variables.get(target, "")
                if name in named and not target.version:
                    values[target] = self._array(target, named[name])
        return [_told(value, values) for value in self._values]

    def _define(self, equation: Equation, values: dict[Symbol, Array]) -> None:
        found = _evaluated(equation.value, values)
        if found is not None:
            parts: Sequence[Array] = np.split(found, len(equation.targets)) if len(equation.targets) > 1 else [found]
            values.update(zip(equation.targets, parts))

    def _array(self, symbol: Symbol, tensor: Tensor) -> Array:
        tensor = tensor.detach().double().cpu()
        if tensor.dim() == 1:
            tensor = tensor[:, None]
        found: Array = (tensor.mT if tensor.dim() > 1 and symbol in self.reading.turned else tensor).numpy()
        return found


def _variable(value: Expression, names: Mapping[Symbol, str]) -> str:
    if value.op != "symbol" or value.detail.version:
        return ""
    symbol: Symbol = value.detail
    return symbol.name if symbol.role == "state" and symbol.time == "t" else names.get(symbol, "")


def _evaluated(value: Expression, values: Mapping[Symbol, Array]) -> Array | None:
    """None for what hangs on the number of a round, of which a picture shows the first alone."""
    try:
        with np.errstate(all="ignore"):
            return evaluate(value, values)
    except (KeyError, IndexError, TypeError):
        return None


def _told(value: Expression, values: Mapping[Symbol, Array]) -> Array | None:
    found = _evaluated(value, values)
    return None if found is None else np.asarray(found, dtype=np.float64).reshape(-1)
