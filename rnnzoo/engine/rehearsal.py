"""A cell tried on a few rows: what is wrong with its step, as a line that names the step's own.

Training, `rnnzoo check` and the engines ask here, so that one fault has one name.

Shapes: B rows, I input size, H hidden size.
"""

from __future__ import annotations

import ast
import copy
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rnnzoo.cell import Cell
from rnnzoo.engine.trace import author, reason, sample
from rnnzoo.errors import UserError, nearest

ROWS = (7, 11, 13)
"""How many rows may be tried: one that is neither input nor hidden size, so that a shape says which is which."""

SIGNS: dict[type[ast.operator], str] = {
    ast.MatMult: "@", ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**",
}  # fmt: skip


VALUES = {"numpy", "__array__", "tolist"}
"""What hands a tensor's numbers to Python unseen by torch's operators."""

CHANCE = torch.Tag.nondeterministic_seeded
BY_POSITION = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
"""What hangs on data, its result's size too, where it is given truth values, and else does not."""
OF_DATA = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


INSTEAD = {
    "draws random numbers": "leave chance to the layer's dropout, recurrent_dropout and zoneout, which run everywhere",
    "leaves torch, by NumPy or lists, where no gradient follows": "write it in torch's functions",
    "asks for a tensor's value, as a branch on data does": "choose row by row, with torch.where",
}
"""What only the plain loop can run, and what to do so that others can."""

DRAWS, LEAVES, ASKS = INSTEAD
OUTPUT = "output"


class NotCopied(UserError):
    """A cell of which there can be no copy to try."""


def fault(cell: Cell) -> UserError | None:
    """What `rehearse` finds wrong, or None: for whoever has already failed and looks for the cause."""
    return _causes(cell)[0]


def obstacle(cell: Cell) -> UserError | None:
    """The same, or what it finds that only the plain loop can run: for engines that cannot run the cell."""
    wrong, looped = _causes(cell)
    return wrong or (None if looped is None else UserError(looped))


def _causes(cell: Cell) -> tuple[UserError | None, str | None]:
    try:
        return None, rehearse(cell)
    except NotCopied:  # which is no step's fault
        return None, None
    except UserError as error:
        return error, None
    except Exception:  # a fault here must not hide the one that is looked for
        return None, None


def rehearse(cell: Cell) -> str | None:
    """Try a few steps of a cell, in a copy of it. Raises `UserError` naming file and line where it is wrong.

    It may write to none of its arguments, weights and buffers, has to return states of the shapes and dtypes that it
    was given, each row's must follow from that row alone, gradients can be computed, and in evaluation nothing is left
    to chance. The same holds for what `readout` makes of them.

    Returns what only the plain loop can run, or None: chance in training, a branch on numbers, what leaves torch.
    """
    rows = next(n for n in ROWS if n not in (cell.input_size, getattr(cell, "hidden_size", 0)))
    looped: dict[str, str] = {}
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again where the step is in earnest
        try:
            cell = copy.deepcopy(cell)
        except Exception as error:
            raise NotCopied(
                f"{_home(cell)}: the cell cannot be copied ({reason(error)}); let it hold only what it declares"
            ) from error
        cell.modifier = None
        torch.manual_seed(0)
        x = torch.randn(rows, cell.features).to(sample(cell))
        with _naming(cell, rows):
            state = tuple(s.clone() for s in cell.initial_state(x))
        for training in (True, False):
            _rehearse(cell.train(training), x, state, looped)
        _differentiate(cell.train(), x, state)
    for what, line in looped.items():
        return f"{line}: step {what}, which only engine=reference runs; {INSTEAD[what]}"
    return None


def _rehearse(cell: Cell, x: Tensor, state: tuple[Tensor, ...], looped: dict[str, str]) -> None:
    rows = len(x)
    new = _tried(cell, x, state, looped)[: len(state)]
    for name, before, after in zip(cell.state_names, state, new):
        if before.shape != after.shape:
            raise UserError(
                f"{_home(cell)}: step returns {name} as {_shape(cell, after, rows)}, and was given "
                f"{_shape(cell, before, rows)}; return it as it came, or declare {name} = State(...)"
            )
        if before.dtype != after.dtype:
            raise UserError(
                f"{_home(cell)}: step returns {name} as {after.dtype}, and was given {before.dtype}; make constants of "
                "x's dtype, as in x.new_tensor(0.5)"
            )
    new = tuple(s.clone() for s in new)  # a step may have made them in inference mode
    again = _tried(cell, x, new, looped)
    for name, first, second in zip((*cell.state_names, OUTPUT), again, _taken(cell, x, new)):
        if not torch.equal(first.nan_to_num(), second.nan_to_num()):
            raise UserError(
                f"{_home(cell, name)}: step gives another {name} when it is taken twice; what it remembers has to be a "
                "state, and chance is left to the layer's dropout, recurrent_dropout and zoneout"
            )
    _refuse_mixing(cell, (x, *new), again, looped)
    if len(again) > len(new):
        _rehearse_readout(cell, x, again[:-1], again[-1])


def _refuse_mixing(cell: Cell, given: tuple[Tensor, ...], all_rows: tuple[Tensor, ...], looped: dict[str, str]) -> None:
    """Raise `UserError` if a row's states or output follow from the other rows as well."""
    tries = [] if DRAWS in looped else [(0, tuple(t[:1] for t in given))]  # of another shape, chance is another
    for row in range(len(given[0])) if looped else ():  # a branch may happen to be the right one for some rows
        tries.append((row, tuple(t[row : row + 1].expand_as(t).clone() for t in given)))
    for row, (x, *state) in tries:
        for name, expected, found in zip((*cell.state_names, OUTPUT), all_rows, _taken(cell, x, tuple(state))):
            if torch.allclose(expected[row], found[row], rtol=1e-3, atol=1e-3, equal_nan=True):
                continue
            if ASKS in looped:
                raise UserError(f"{looped[ASKS]}: step {ASKS}, and one row decides for all; {INSTEAD[ASKS]}")
            raise UserError(
                f"{_home(cell, name)}: step mixes rows of the batch: {name} of a row depends on the others; take no "
                "sum, mean or norm over dimension 0"
            )


def _rehearse_readout(cell: Cell, x: Tensor, state: tuple[Tensor, ...], output: Tensor) -> None:
    if output.shape != (len(x), cell.output_size):
        raise UserError(
            f"{_home(cell, OUTPUT)}: readout gives {output.shape[-1]} features where output_size says "
            f"{cell.output_size}; override output_size"
        )
    with _naming(cell, len(x)):
        both = cell.readout(torch.stack([x, x]), *(torch.stack([s, s]) for s in state))
    if both.shape != (2, *output.shape) or not torch.allclose(both[1], output, 1e-3, 1e-3, equal_nan=True):
        raise UserError(
            f"{_home(cell, OUTPUT)}: readout gives something else for all time steps together, [T, B, ...], than for "
            "each; count dimensions from the end, as in h[..., :2] or sum(-1)"
        )


def _differentiate(cell: Cell, x: Tensor, state: tuple[Tensor, ...]) -> None:
    """Raise `UserError` if gradients cannot be computed."""
    x, count = x.clone().requires_grad_(), len(state)
    own = torch.autograd.graph.saved_tensors_hooks(_held, _found)  # in the place of those of a checkpoint around this
    with torch.enable_grad(), own, _naming(cell, len(x)):
        for _ in range(2):
            found = _taken(cell, x, state)
            state = found[:count]
        asking = [t for t in found if t.requires_grad]
        if asking:
            torch.autograd.backward(asking, [torch.ones_like(t) for t in asking])


def _held(tensor: Tensor) -> tuple[Tensor, int]:
    return tensor, tensor._version


def _found(held: tuple[Tensor, int]) -> Tensor:
    tensor, version = held
    if tensor._version != version:  # of which torch no longer tells where there are such hooks
        raise RuntimeError("a tensor that the gradient needs has been modified by an inplace operation")
    return tensor


def _taken(cell: Cell, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A step's new states, and its output if that is not the first of them; chance is the same each time."""
    torch.manual_seed(0)
    with _naming(cell, len(x)):
        new = cell(x, *state)
        other = [f"a {type(s).__name__}" for s in new if not isinstance(s, Tensor)]
        if other or len(new) != len(state):
            what = other[0] if other else f"{len(new)} tensor{'s' * (len(new) != 1)}"
            raise UserError(f"{_home(cell)}: step returns {what}; write return {', '.join(cell.state_names)}")
        return new if type(cell).readout is Cell.readout else (*new, cell.readout(x, *new))


def _tried(cell: Cell, x: Tensor, state: tuple[Tensor, ...], looped: dict[str, str]) -> tuple[Tensor, ...]:
    """What `_taken` gives. Raises `UserError` if the step does what none may.

    `looped` takes up, with its line, what only the plain loop can run.
    """
    file, tensors = _file(cell), (*cell.named_parameters(), *cell.named_buffers())
    given = {"x": x, **dict(zip(cell.state_names, state)), **{f"self.{k}": v for k, v in tensors}}
    with _Watching(given, file, looped), _Deciding(given.values(), file, looped, chance=cell.training):
        return _taken(cell, x, state)


@contextmanager
def _naming(cell: Cell, rows: int) -> Iterator[None]:
    """Within, whatever is raised is a `UserError` that begins with file and line of the cell's code."""
    file = _file(cell)
    try:
        yield
    except UserError as error:
        raise error if str(error).startswith(file) else UserError(f"{_home(cell)}: {error}") from error
    except Exception as error:
        frame, line = _last_frame(error.__traceback__, file)
        where = f"{file} line {line}: " if line else f"{_home(cell)}: "
        shapes = _operands(cell, frame, line, rows) if frame else ""
        raise UserError(where + (shapes or _described(cell, error))) from error


def _described(cell: Cell, error: Exception) -> str:
    if isinstance(error, AttributeError) and getattr(error, "obj", None) is cell:
        known = [*type(cell).weights, *type(cell).hyperparameters]
        return f"self.{error.name}: nothing of that name is declared; {nearest(str(error.name), known)}"
    text = " ".join(str(error).split())
    if "inplace operation" in text:
        return f"{text.partition(': ')[0]}, so that no gradient can be computed; write nothing in place"
    return f"{type(error).__name__}: {text[:200]}"


class _Watching(TorchFunctionMode):
    """Raises `UserError` at the line that writes to one of some tensors; notes the one that leaves torch."""

    def __init__(self, given: dict[str, Tensor], file: str, looped: dict[str, str]) -> None:
        super().__init__()
        self.given, self.file, self.looped = given, file, looped
        self.versions = {name: tensor._version for name, tensor in given.items()}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in VALUES:
            self.looped.setdefault(LEAVES, _line(self.file))
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "one_hot":  # which looks whether all are in range
            func = _one_hot
        found = func(*args, **kwargs)
        for name, tensor in self.given.items():
            if tensor._version != self.versions[name]:
                raise UserError(
                    f"{_line(self.file)}: step writes to {name}, which others read; make a new tensor, as in "
                    f"{name} = {name} + ..."
                )
        return found


def _one_hot(x: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes < 0:
        raise UserError("step asks for the greatest number; write one_hot(..., num_classes=n)")
    return (x.unsqueeze(-1) == torch.arange(num_classes, device=x.device)).long()


class _Deciding(TorchDispatchMode):
    """Notes the line that draws random numbers, and the one that asks for the value of what it is given.

    Raises `UserError` at one that draws where there may be no chance.
    """

    def __init__(self, data: Iterable[Tensor], file: str, looped: dict[str, str], chance: bool) -> None:
        super().__init__()
        self.data = {id(tensor): tensor for tensor in data}  # with what follows from it; kept, so that ids last
        self.file, self.looped, self.chance = file, looped, chance

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if CHANCE in func.tags:
            if not self.chance:
                raise UserError(
                    f"{_line(self.file)}: step {DRAWS} in evaluation, too; draw them only if self.training, or "
                    f"{INSTEAD[DRAWS]}"
                )
            self.looped.setdefault(DRAWS, _line(self.file))
        follows = [leaf for leaf in tree_leaves((args, kwargs)) if id(leaf) in self.data]
        masks = any(leaf.dtype in (torch.bool, torch.uint8) for leaf in follows)
        if follows and OF_DATA & set(func.tags) and (masks or func not in BY_POSITION):
            self.looped.setdefault(ASKS, _line(self.file))
        found = func(*args, **(kwargs or {}))
        if follows:
            self.data |= {id(leaf): leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)}
        return found


def _line(file: str) -> str:
    """The file with the line of it that is being run."""
    line = next((f.f_lineno for f in _above(sys._getframe(1)) if f.f_code.co_filename == file), 0)
    return f"{file} line {line}"


def _above(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _file(cell: Cell) -> str:
    return inspect.getsourcefile(author(cell)) or "?"


def _home(cell: Cell, name: str = "") -> str:
    """File and line of the cell's step, or of its readout if `name` is the output's."""
    function = type(cell).readout if name == OUTPUT else vars(author(cell))["step"]
    return f"{_file(cell)} line {function.__code__.co_firstlineno}"


def _last_frame(trace: TracebackType | None, file: str) -> tuple[FrameType | None, int]:
    """The innermost frame of a file in a traceback, and its line."""
    found: tuple[FrameType | None, int] = None, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            found = trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next
    return found


def _operands(cell: Cell, frame: FrameType, line: int, rows: int) -> str:
    """The operation on a line whose operands do not fit, with their shapes by name; empty if it is another fault."""
    tree = ast.parse(Path(frame.f_code.co_filename).read_text(encoding="utf-8"))
    operations = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and node.lineno <= line]
    for node in sorted(operations, key=lambda node: node.end_col_offset or 0):
        if not node.lineno <= line <= (node.end_lineno or 0):
            continue
        try:
            left, right = (_value(part, frame) for part in (node.left, node.right))
        except Exception:  # what is wrong is further inside, or on another line
            continue
        if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
            continue
        if left.dtype != right.dtype or left.device != right.device:  # of which torch speaks plainly
            continue
        try:
            with torch.no_grad():
                _value(node, frame)
        except RuntimeError:
            sign = SIGNS.get(type(node.op), "and")
            shapes = f"{_shape(cell, left, rows)} {sign} {_shape(cell, right, rows)}"
            cure = (
                "a weight for x is InputWeight(), one for a state RecurrentWeight()"
                if sign == "@"
                else "make the two alike"
            )
            return f"{ast.unparse(node)}: {shapes} do not fit; {cure}"
    return ""


def _value(node: ast.expr, frame: FrameType) -> Any:
    return eval(compile(ast.Expression(node), "?", "eval"), frame.f_globals, frame.f_locals)


def _shape(cell: Cell, tensor: Tensor, rows: int) -> str:
    """A tensor's shape as in `[B, input=1]`: by the sizes that the cell has names for."""
    named = {rows: "B", cell.input_size: f"input={cell.input_size}"}
    for key, weight in type(cell).weights.items():
        for dim, size in zip(weight.dims, weight.shape(cell)):
            if isinstance(dim, str):
                named.setdefault(size, f"{dim}={size}")
            if getattr(cell, key) is tensor:
                return "[" + ", ".join(f"{d}={s}" for d, s in zip(weight.dims, weight.shape(cell))) + "]"
    return "[" + ", ".join(named.get(size, str(size)) for size in tensor.shape) + "]"
