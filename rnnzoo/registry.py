"""Names for cells: register one, get one, list them, and load those a person wrote.

Built-in cells live in `rnnzoo.cells`; installed packages add theirs through the entry-point group
`rnnzoo.cells`; a person's own file or module comes in with `load`.
"""

from __future__ import annotations

import ast
import fnmatch
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rnnzoo.errors import UserError, nearest

if TYPE_CHECKING:
    from rnnzoo.cell import Cell

C = TypeVar("C", bound="type[Cell]")


@dataclass(frozen=True)
class Entry:
    """A registered cell: its name, its class, and the publication it follows."""

    name: str
    cell: type[Cell]
    source: str

    @property
    def module(self) -> str:
        return self.cell.__module__


_entries: dict[str, Entry] = {}
_loaded: set[str] = set()


def register(name: str, source: str = "") -> Callable[[C], C]:
    """Class decorator that makes a `Cell` known as `name`; `source` cites paper and equations.

    Raises `UserError` when the name is taken or cannot be used on a command line, or the class is not a Cell.
    """

    def decorate(cell: C) -> C:
        if not name.isidentifier():
            raise UserError(f"cell name {name!r} must be letters, digits and underscores, as in model={name}")
        if not isinstance(getattr(cell, "weights", None), dict):
            raise UserError(f"{cell!r} registered as {name!r} is not a subclass of rnnzoo.Cell")
        known = _entries.get(name)
        # A notebook runs the same definition again and again; anywhere else a second one is a mistake.
        redefined = known and cell.__module__ == "__main__" and cell.__qualname__ == known.cell.__qualname__
        if known and not redefined:
            raise UserError(f"cell {name!r} is already registered by {known.module}; choose another name")
        _entries[name] = Entry(name, cell, source)
        return cell

    return decorate


def get(name: str) -> type[Cell]:
    """The cell class registered as `name`; `UserError` with the nearest names when there is none."""
    return entry(name).cell


def entry(name: str) -> Entry:
    """The registry's record of `name`; `UserError` with the nearest names when there is none."""
    _load_installed()
    if name not in _entries:
        raise UserError(f"no cell is named {name!r}; {nearest(name, _entries)}")
    return _entries[name]


def list_cells(pattern: str = "*") -> list[str]:
    """Names of all registered cells that match the wildcard `pattern`, sorted."""
    _load_installed()
    return sorted(fnmatch.filter(_entries, pattern))


def load(target: str) -> None:
    """Import a file (`my_cells.py`) or module (`my_package.cells`) so that the cells in it are registered.

    A target that was loaded before is left alone. Raises `UserError` naming file and line when it is not found
    or fails; then none of its cells stay registered.
    """
    _load_installed()
    path = Path(target).expanduser().resolve()
    is_file = target.endswith(".py") or path.is_file()
    key = str(path) if is_file else target
    if key in _loaded:
        return
    before = dict(_entries)
    try:
        if is_file:
            _import_file(path)
        else:
            importlib.import_module(target)
    except Exception as error:
        _entries.clear()
        _entries.update(before)
        raise UserError(f"cells={target}: {_describe(error, target, path)}") from error
    _loaded.add(key)


def scan(path: Path) -> list[str]:
    """Names that a file registers, read off its text: for help, which must not wait for torch."""
    decorators = [
        decorator
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        for decorator in node.decorator_list
    ]
    return [
        str(ast.literal_eval(d.args[0]))
        for d in decorators
        if isinstance(d, ast.Call) and "register" in ast.dump(d.func)
    ]


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(path)
    # Two files of one name in different folders must stay two modules, the same ones in every process.
    name = f"rnnzoo_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _describe(error: Exception, target: str, path: Path) -> str:
    if isinstance(error, FileNotFoundError) and error.args == (path,):
        return f"no such file: {path}"
    if isinstance(error, ModuleNotFoundError) and error.name in (target, target.split(".")[0]):
        return "no such file or module; give a path that ends in .py, or an importable module"
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: syntax error: {error.msg}"
    own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f"line {own[-1]}: " if own else ""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return where + kind + " ".join(str(error).split())


@cache
def _load_installed() -> None:
    importlib.import_module("rnnzoo.cells")
    for point in entry_points(group="rnnzoo.cells"):
        point.load()
