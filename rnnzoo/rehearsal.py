"""A cell of a person's own, tried on a few rows before anything is trained: a wrong step is a line that names its own.

Shapes: B rows, I input size, H hidden size.
"""

from __future__ import annotations

import ast
import copy
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rnnzoo.cell import Cell
from rnnzoo.engine.trace import author, sample
from rnnzoo.errors import UserError

ROWS = (7, 11, 13)
"""How many rows may be tried: one that is neither input nor hidden size, so that a shape says which is which."""

SIGNS: dict[type[ast.operator], str] = {
    ast.MatMult: "@", ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**",
}  # fmt: skip


def rehearse(cell: Cell) -> None:
    """Try one step of a cell, in a copy of it. Raises `UserError` naming file and line where it is wrong.

    It may write to none of its arguments and weights, has to return states of the shapes that it was given, and each
    row's must follow from that row alone.
    """
    cell = copy.deepcopy(cell).eval()
    rows = next(n for n in ROWS if n not in (cell.input_size, getattr(cell, "hidden_size", 0)))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        x = torch.randn(rows, cell.features).to(sample(cell))
        state = tuple(s.clone() for s in cell.initial_state(x))
        new = _tried(cell, x, state)
        for name, before, after in zip(cell.state_names, state, new):
            if before.shape != after.shape:
                raise UserError(
                    f"{_home(cell)}: step returns {name} as {_shape(cell, after, rows)}, and was given "
                    f"{_shape(cell, before, rows)}"
                )
        again = _tried(cell, x, new)
        one = cell(x[:1], *(s[:1] for s in new))
    for name, all_rows, alone in zip(cell.state_names, again, one):
        if not torch.allclose(all_rows[:1], alone, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise UserError(f"{_home(cell)}: step mixes rows of the batch: {name} of a row depends on the others")


def _tried(cell: Cell, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A step; `UserError` if it raises, or writes to what it is given."""
    file = _file(cell)
    given = {"x": x, **dict(zip(cell.state_names, state)), **{f"self.{k}": v for k, v in cell.named_parameters()}}
    try:
        with _Watching(given, file):
            found = cell(x, *state)
    except UserError:
        raise
    except Exception as error:
        frame, line = _last_frame(error.__traceback__, file)
        where = f"{file} line {line}: " if line else f"{_home(cell)}: "
        shapes = _operands(cell, frame, line, len(x)) if frame else ""
        reason = shapes or f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(where + reason) from error
    if not isinstance(found, tuple) or len(found) != len(state) or not all(isinstance(s, Tensor) for s in found):
        raise UserError(f"{_home(cell)}: step has to return {', '.join(cell.state_names)}, each a tensor")
    return found


class _Watching(TorchFunctionMode):
    """Raises `UserError` at the line that writes to one of some tensors."""

    def __init__(self, given: dict[str, Tensor], file: str) -> None:
        super().__init__()
        self.given, self.file = given, file
        self.versions = {name: tensor._version for name, tensor in given.items()}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for name, tensor in self.given.items():
            if tensor._version != self.versions[name]:
                line = next((f.f_lineno for f in _above(sys._getframe(1)) if f.f_code.co_filename == self.file), 0)
                raise UserError(
                    f"{self.file} line {line}: step writes to {name}, which others read; make a new tensor, as in "
                    f"{name} = {name} + ..."
                )
        return found


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
