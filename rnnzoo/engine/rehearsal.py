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
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rnnzoo.cell import Cell
from rnnzoo.engine.trace import author, sample
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


def fault(cell: Cell) -> UserError | None:
    """What `rehearse` finds wrong, or None: for whoever has already failed and looks for the cause."""
    try:
        rehearse(cell)
    except UserError as error:
        return error
    except Exception:  # what cannot even be copied is no step's fault
        pass
    return None


def rehearse(cell: Cell) -> None:
    """Try a few steps of a cell, in a copy of it. Raises `UserError` naming file and line where it is wrong.

    It may write to none of its arguments and weights, has to return states of the shapes and dtypes that it was given,
    each row's must follow from that row alone, and neither chance nor a branch on numbers may decide anything.
    """
    rows = next(n for n in ROWS if n not in (cell.input_size, getattr(cell, "hidden_size", 0)))
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again where the step is in earnest
        cell = copy.deepcopy(cell)
        cell.modifier = None
        torch.manual_seed(0)
        x = torch.randn(rows, cell.features).to(sample(cell))
        state = tuple(s.clone() for s in cell.initial_state(x))
        _tried(cell.train(), x, state)
        _rehearse(cell.eval(), x, state)


def _rehearse(cell: Cell, x: Tensor, state: tuple[Tensor, ...]) -> None:
    rows = len(x)
    new = _tried(cell, x, state)
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
    again = _tried(cell, x, new)
    for name, first, second in zip(cell.state_names, again, cell(x, *new)):
        if not torch.equal(first.nan_to_num(), second.nan_to_num()):
            raise UserError(
                f"{_home(cell)}: step gives another {name} when it is taken twice; what it remembers has to be a "
                "state, and chance is left to the layer's dropout, recurrent_dropout and zoneout"
            )
    one = cell(x[:1], *(s[:1] for s in new))
    for name, all_rows, alone in zip(cell.state_names, again, one):
        if not torch.allclose(all_rows[:1], alone, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise UserError(
                f"{_home(cell)}: step mixes rows of the batch: {name} of a row depends on the others; take no sum, "
                "mean or norm over dimension 0"
            )


def _tried(cell: Cell, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A step; `UserError` if it raises, writes to what it is given, or does what no step may."""
    file = _file(cell)
    given = {"x": x, **dict(zip(cell.state_names, state)), **{f"self.{k}": v for k, v in cell.named_parameters()}}
    try:
        with _Watching(given, file), _Deciding(given.values(), file):
            found = cell(x, *state)
    except UserError as error:
        raise error if str(error).startswith(file) else UserError(f"{_home(cell)}: {error}") from error
    except Exception as error:
        frame, line = _last_frame(error.__traceback__, file)
        where = f"{file} line {line}: " if line else f"{_home(cell)}: "
        shapes = _operands(cell, frame, line, len(x)) if frame else ""
        raise UserError(where + (shapes or _described(cell, error))) from error
    if len(found) != len(state) or not all(isinstance(s, Tensor) for s in found):
        other = [f"a {type(s).__name__}" for s in found if not isinstance(s, Tensor)]
        what = other[0] if other else f"{len(found)} tensor{'s' * (len(found) != 1)}"
        raise UserError(f"{_home(cell)}: step returns {what}; write return {', '.join(cell.state_names)}")
    return found


def _described(cell: Cell, error: Exception) -> str:
    if isinstance(error, AttributeError) and getattr(error, "obj", None) is cell:
        known = [*type(cell).weights, *type(cell).hyperparameters]
        return f"self.{error.name}: nothing of that name is declared; {nearest(str(error.name), known)}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class _Watching(TorchFunctionMode):
    """Raises `UserError` at the line that writes to one of some tensors, or that leaves torch."""

    def __init__(self, given: dict[str, Tensor], file: str) -> None:
        super().__init__()
        self.given, self.file = given, file
        self.versions = {name: tensor._version for name, tensor in given.items()}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in VALUES:
            raise UserError(
                f"{_line(self.file)}: step leaves torch, by NumPy or lists, where no gradient follows; write it in "
                "torch's functions"
            )
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
    """Raises `UserError` at the line that draws random numbers, or that asks for the value of what it is given."""

    def __init__(self, data: Iterable[Tensor], file: str) -> None:
        super().__init__()
        self.data = {id(tensor): tensor for tensor in data}  # with what follows from it; kept, so that ids last
        self.file = file

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if CHANCE in func.tags:
            raise UserError(
                f"{_line(self.file)}: step draws random numbers; leave chance to the layer's dropout, "
                "recurrent_dropout and zoneout"
            )
        follows = [leaf for leaf in tree_leaves((args, kwargs)) if id(leaf) in self.data]
        masks = any(leaf.dtype in (torch.bool, torch.uint8) for leaf in follows)
        if follows and OF_DATA & set(func.tags) and (masks or func not in BY_POSITION):
            raise UserError(
                f"{_line(self.file)}: step asks for a tensor's value, as a branch on data does: no gradient follows, "
                "and one row decides for all; choose row by row, with torch.where"
            )
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


def _home(cell: Cell) -> str:
    """File and line of the cell's step."""
    step = vars(author(cell))["step"]
    return f"{_file(cell)} line {step.__code__.co_firstlineno}"


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
        try:
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
