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
from types import ModuleType
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from rnnzoo.errors import UserError, nearest
from rnnzoo.files import expanded

if TYPE_CHECKING:
    from rnnzoo.cell import Cell

C = TypeVar("C", bound="type[Cell]")
Seen: TypeAlias = Literal["", "all", "part", "none"]


@dataclass(frozen=True)
class Entry:
    """A registered cell: its name, its class, the publication it follows, and what it was compared with.

    `package` names an installable implementation whose numbers it equals, `code` the authors' code that was read.
    `seen` says what of the paper's own text was read; "" where nobody noted it.
    """

    name: str
    cell: type[Cell]
    source: str
    package: str = ""
    code: str = ""
    seen: Seen = ""

    @property
    def module(self) -> str:
        return self.cell.__module__

    @property
    def family(self) -> str:
        """The last part of the module's name."""
        return self.module.rpartition(".")[2]

    @property
    def independent(self) -> bool:
        """Whether the package is evidence of its own.

        With neither text nor code at hand the cell follows what others wrote of the paper, most often that package's
        author; that the two agree then says nothing of the paper.
        """
        return self.seen != "none" or bool(self.code)


_entries: dict[str, Entry] = {}
_loaded: dict[str, ModuleType] = {}


def register(name: str, source: str = "", package: str = "", code: str = "", seen: Seen = "") -> Callable[[C], C]:
    """Class decorator that makes a `Cell` known as `name`; `source` cites paper and equations.

    `package` names what it was compared with by running both, `code` the authors' code it was compared with by reading.
    `seen` says what of the paper's text was read.

    Raises `UserError` when the name is taken or cannot be used on a command line, or the class is not a Cell.
    """

    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(f'a cell is registered as @register("name"), in letters, digits and underscores, not {name!r}')

    def decorate(cell: C) -> C:
        if not (isinstance(cell, type) and getattr(cell, "state_names", None)):
            raise UserError(f"{cell!r} registered as {name!r} is not a subclass of rnnzoo.Cell with a step")
        known = _entries.get(name)
        # A notebook runs the same definition again and again; anywhere else a second one is a mistake.
        redefined = known and cell.__module__ == known.module == "__main__" and cell.__name__ == known.cell.__name__
        if known and not redefined:
            raise UserError(f"cell {name!r} is already registered by {known.module}; choose another name")
        _entries[name] = Entry(name, cell, source, package, code, seen)
        return cell

    return decorate


def get(name: str) -> type[Cell]:
    """The cell class registered as `name`; `UserError` with the nearest names when there is none."""
    return entry(name).cell


def entry(name: str) -> Entry:
    """The registry's record of `name`; `UserError` with the nearest names when there is none."""
    _load_installed()
    if name not in _entries:
        raise UserError(f"no cell is named {name!r}; {nearest(name, _entries)}; rnnzoo list shows all")
    return _entries[name]


def list_cells(pattern: str = "*") -> list[str]:
    """Names of all registered cells that match the wildcard `pattern`, sorted."""
    _load_installed()
    return sorted(fnmatch.filter(_entries, pattern))


def load(target: str) -> ModuleType:
    """Import a file (`my_cells.py`) or module (`my_package.cells`) so that the cells in it are registered; return it.

    A target that was loaded before is left alone. Raises `UserError` naming file and line when it is not found
    or fails; then none of its cells stay registered.
    """
    _load_installed()
    path = expanded(target).resolve()
    is_module = all(part.isidentifier() for part in target.split(".")) and not path.is_file() and path.suffix != ".py"
    key = target if is_module else str(path)
    if key in _loaded:
        return _loaded[key]
    before, modules = dict(_entries), set(sys.modules)
    try:
        module = importlib.import_module(target) if is_module else _import_file(path)
    except (Exception, SystemExit) as error:
        _entries.clear()
        _entries.update(before)
        for name in sys.modules.keys() - modules:  # so that what is mended can be loaded
            if name.split(".")[0] == target.split(".")[0]:
                del sys.modules[name]
        raise UserError(f"cells={target}: {_describe(error, target, path)}") from error
    _loaded[key] = module
    return module


def load_all(targets: str) -> None:
    """Load what `cells=` names: one target, or several with commas between; see `load`."""
    for target in split(targets):
        load(target)


def split(targets: str) -> list[str]:
    """The targets of a list such as `a.py,b.py`; a file whose name has a comma is one."""
    return [targets] if expanded(targets).is_file() else [t.strip() for t in targets.strip("[]").split(",")]


def loaded(name: str) -> ModuleType | None:
    """The module that `load` has read, by its own name or by that of its file; None if there is none."""
    return next((module for key, module in _loaded.items() if name in (key, Path(key).stem)), None)


def all_loaded() -> list[ModuleType]:
    """All modules that `load` has read."""
    return list(_loaded.values())


def find(target: str) -> type[Cell]:
    """The class that `target` names: a registered cell, or `FILE.py:Class` or `module:Class`, registered or not.

    Raises `UserError` when there is none.
    """
    where, colon, name = target.rpartition(":")
    if not colon:
        if target.endswith(".py"):
            raise UserError(f"{target}: name the class as well, as in {target}:MyCell")
        return get(target)
    members = vars(load(where))
    found = members.get(name)
    if not (isinstance(found, type) and hasattr(found, "state_names")):
        cells = [key for key, value in members.items() if getattr(value, "state_names", ())]
        raise UserError(f"{where} has no cell class {name!r}; {nearest(name, cells)}")
    return found


def described(target: str) -> Entry:
    """The registry's record of what `find` finds; one of its own, without a source, for a class that has none."""
    return entry_of(find(target))


def entry_of(kind: type[Cell]) -> Entry:
    """The registry's record of a class; one of its own, without a source, for a class that has none."""
    known = (entry for entry in _entries.values() if entry.cell is kind)
    return next(known, None) or Entry(kind.__name__, kind, "")


def scan(path: Path) -> list[str]:
    """Names that a file registers, read off its text: for help, which must not wait for torch.

    Raises `UserError` when the file cannot be parsed.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path}: {_describe(error, str(path), path)}") from error
    classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    calls = (d for node in classes for d in node.decorator_list if isinstance(d, ast.Call))
    names = []
    for call in calls:
        named = [k.value for k in call.keywords if k.arg == "name"] + call.args
        if ast.unparse(call.func).endswith("register") and named and isinstance(named[0], ast.Constant):
            names.append(str(named[0].value))
    return names


def _import_file(path: Path) -> ModuleType:
    if path.suffix != ".py" or not path.is_file():
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
    return module


def _describe(error: BaseException, target: str, path: Path) -> str:
    """What went wrong in loading, with the line of the person's own code, in one line."""
    if isinstance(error, FileNotFoundError) and error.args == (path,):
        return (
            f"no such file: {path}" if path.suffix == ".py" else f"{path} is no Python file; its name must end in .py"
        )
    if isinstance(error, ModuleNotFoundError) and error.name and f"{target}.".startswith(f"{error.name}."):
        return "no such file or module; give a path that ends in .py, or an importable module"
    if isinstance(error, SyntaxError):
        other = "" if error.filename in (None, str(path), "<unknown>") else f"{error.filename} "
        line = f"line {error.lineno}: " if error.lineno else ""
        return f"{other}{line}syntax error: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "importlib" not in f.filename and not f.filename.startswith(str(Path(__file__).parent))]
    where = ""
    if own:
        where = (
            f"line {own[-1].lineno}: "
            if own[-1].filename == str(path)
            else f"{own[-1].filename} line {own[-1].lineno}: "
        )
    if isinstance(error, RuntimeError) and "__set_name__" in str(error) and error.__cause__:
        error = error.__cause__  # Python before 3.12 wraps what a declaration raises
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return where + kind + " ".join(str(error).split())


@cache
def _load_installed() -> None:
    importlib.import_module("rnnzoo.cells")
    for point in entry_points(group="rnnzoo.cells"):
        point.load()
