"""What a model does on an input, step by step, as data: all that its cells name, with some of it held if asked.

The model's own code runs, on a copy that shares its weights and steps by the reference engine.

Shapes: T time steps, I input size; everything is of the first sequence of a batch.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rnnzoo.cell import Cell
from rnnzoo.errors import UserError
from rnnzoo.explain.rewritten import rewritten
from rnnzoo.recording import noting
from rnnzoo.recurrent import Recurrent

T = TypeVar("T")
Module = TypeVar("Module", bound=nn.Module)

STEPS = 2000
"""At most so many time steps are recorded,"""

NUMBERS = 40_000_000
"""and so many numbers, where a step is taken to name"""

NAMED = 4
"""times as many as it is given."""


@dataclass(frozen=True)
class Hold:
    """A variable of a cell's step, or one unit of it, held at a value.

    Args:
        cell: the cell's number among all of the model's.
        name: the variable, as the code has it; a state's name stands for the new state.
        value: what it is held at.
        unit: its place among the variable's numbers in order; None for all of them.
        start: the first of the cell's own steps, counted from the session's beginning;
        stop: the one after the last; None for no end.
    """

    cell: int
    name: str
    value: float
    unit: int | None = None
    start: int = 0
    stop: int | None = None

    def acts(self, step: int) -> bool:
        return self.start <= step and (self.stop is None or step < self.stop)

    def applied(self, tensor: Tensor) -> Tensor:
        """The tensor [B, ...] with the unit at the value, if it has such a unit."""
        if self.unit is None:
            return torch.full_like(tensor, self.value)
        flat = tensor.flatten(1).clone()
        flat[:, self.unit : self.unit + 1] = self.value
        return flat.view_as(tensor)


@dataclass
class Recorded:
    """A cell's steps.

    Attributes:
        name: of the cell in the model.
        cell: itself.
        backward: whether its first step read the last input.
        start: the first of its steps among all of the session's.
        rows: sequences of the batch at the first step.
        x: its input [I] at each step.
        before: its old states at each step.
        names: what each step gave a name, new states among it.
    """

    name: str
    cell: Cell
    backward: bool
    start: int = 0
    rows: int = 1
    x: list[Tensor] = field(default_factory=list)
    before: list[tuple[Tensor, ...]] = field(default_factory=list)
    names: dict[str, list[Tensor]] = field(default_factory=dict)

    def values(self, name: str, start: int = 0) -> Tensor:
        """A variable from the step `start` on, flat: [T, n]."""
        return torch.stack(self.names[name][start:]).flatten(1)


def twin(module: Module) -> Module:
    """A copy of a module, part by part where it is recurrent, that shares the weights: what is done to it is not seen
    in the other. Its layers take the reference engine."""
    made = copy.copy(module)
    made._forward_pre_hooks = OrderedDict(module._forward_pre_hooks)
    made._modules = {
        name: part if part is None or not _is_recurrent(part) else twin(part) for name, part in module._modules.items()
    }
    if isinstance(made, Recurrent):
        made.engine, made.checkpoint_every = "reference", 0
    return made


def _is_recurrent(module: nn.Module) -> bool:
    return any(isinstance(part, (Recurrent, Cell)) for part in module.modules())


def cells_of(module: nn.Module) -> list[tuple[str, Recurrent, int, Cell]]:
    """The cells of a module's recurrent layers in order: a name, the layer, the number in it, and the cell."""
    found = []
    for name, layer in module.named_modules():
        if isinstance(layer, Recurrent):
            for index, cell in enumerate(layer._cells()):
                level, backward = divmod(index, 1 + layer.bidirectional)
                found.append((f"{name or 'layer'}.{level + 1}{' backward' * backward}", layer, index, cell))
    return found


def record(
    module: Module, run: Callable[[Module], T], holds: Sequence[Hold] = (), start: int = 0
) -> tuple[T, list[Recorded]]:
    """Run a model in evaluation mode, and say what it returned and what its cells did.

    Args:
        module: with `Recurrent` layers of one kind of cell.
        run: calls the copy that it is given.
        holds: what is held at a value.
        start: the number of the first step, for a run that goes on from another's end.

    Raises `UserError` for holds that do not fit, and for more than can be recorded.
    """
    copied = twin(module)
    found = cells_of(copied)
    if not found:
        raise UserError("the model has no recurrent layer")
    cells = [cell for *_, cell in found]
    recorded = [Recorded(name, cell, layer.bidirectional and index % 2 == 1) for name, layer, index, cell in found]
    total = _Total(start)
    for number, (each, (_, layer, index, cell)) in enumerate(zip(recorded, found)):
        cell.register_forward_pre_hook(total.of(each, layer, index))
        _hold(cell, each, start, [hold for hold in holds if hold.cell == number])
    for hold in holds:
        if not 0 <= hold.cell < len(cells):
            raise UserError(f"there is no cell {hold.cell}; the model has {len(cells)}, counted from 0")
    try:
        with torch.no_grad(), noting(cells) as noted:
            result = run(copied)
    except _TooMany as enough:
        raise UserError(str(enough)) from None
    for each, names in zip(recorded, noted):
        each.names = {
            name: [value[0] for value in values]
            for name, values in names.items()
            if values[0].dim() > 1 and len(values[0]) == each.rows and len(values) == len(each.x)  # no weight
        }
    for hold in holds:
        _check(hold, recorded[hold.cell])
    return result, recorded


def _check(hold: Hold, recorded: Recorded) -> None:
    """Raise `UserError` for a hold of what there is not."""
    if not recorded.x:
        return
    if hold.name not in recorded.names:
        known = ", ".join(sorted(recorded.names))
        raise UserError(f"the step of {type(recorded.cell).__name__} names no {hold.name}; known: {known}")
    size = recorded.names[hold.name][0].numel()
    if hold.unit is not None and not 0 <= hold.unit < size:
        raise UserError(f"{hold.name} has {size} units, counted from 0; there is no unit {hold.unit}")


class _TooMany(BaseException):
    """Ends a run; no `Exception`, for in those the plain loop sees a fault of the step."""


class _Total:
    """Counts the steps of all layers, from `start` on, so that not more are kept than memory has room for."""

    def __init__(self, start: int) -> None:
        self.steps = start
        self.first: dict[int, int] = {}

    def of(self, recorded: Recorded, layer: Recurrent, index: int) -> Callable[..., None]:
        """What is called before each step of a cell."""

        def before(cell: Cell, given: tuple[Tensor, ...]) -> None:
            x, *states = given
            if not recorded.x:
                recorded.start, recorded.rows = self.first.setdefault(id(layer), self.steps), len(x)
            self.steps += index == 0
            numbers = NAMED * sum(tensor[0].numel() for tensor in given) * len(layer.cells)
            if self.steps > min(STEPS, NUMBERS // numbers):
                raise _TooMany(f"more than {self.steps - 1:,} steps of this model cannot be shown at once")
            recorded.x.append(x[0])
            recorded.before.append(tuple(state[0] for state in states))

        return before


def _hold(cell: Cell, recorded: Recorded, start: int, holds: Sequence[Hold]) -> None:
    """Let a cell's step hold what is to be held; the cell is a copy."""
    if not holds:
        return

    def note(name: Any, value: Any) -> Any:
        if isinstance(name, tuple):
            whole = isinstance(value, (tuple, list)) and len(value) == len(name)
            return tuple(map(note, name, value)) if whole else value
        step = start + len(recorded.x) - 1
        for hold in holds:
            if hold.name == name and hold.acts(step) and isinstance(value, Tensor):
                value = hold.applied(value)
        return value

    def returned(new: Any) -> Any:
        if isinstance(new, Tensor):
            return note(cell.state_names[0], new)
        return tuple(map(note, cell.state_names, new)) if isinstance(new, (tuple, list)) else new

    cell.step = MethodType(rewritten(type(cell).step, note, returned=returned), cell)
