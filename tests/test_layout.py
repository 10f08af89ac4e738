"""The layout holds: imports flow one way and in no circle, files and cells stay short, and no preset hides a cell.

Everything is read from the source with `ast`, nothing is imported but the registry.
"""

import ast
from pathlib import Path

import pytest

from rnnzoo import list_cells

ROOT = Path(__file__).parent.parent
SOURCES = [*sorted((ROOT / "rnnzoo").rglob("*.py")), *sorted((ROOT / "tasks").rglob("*.py")), ROOT / "train.py"]

LEVEL = {"core": 0, "lightning": 1, "tasks": 2, "hydra": 2, "cli": 3, "train.py": 4}
"""Each part imports only parts of a lower level, and itself; `core` is all of rnnzoo that is not named."""

FOREIGN = {"lightning": {"pytorch_lightning", "lightning"}, "hydra": {"hydra", "omegaconf"}}
"""The frameworks that each part may import."""

RANK = {
    "errors": 0, "plain": 0, "files": 1, "progress": 1, "sequences": 1, "cell": 1, "surrogate": 1, "registry": 2,
    "cells": 3, "options": 3, "resets": 3, "states": 3, "recording": 3, "stack": 4, "engine": 4, "torch_nn": 5,
    "recurrent": 6,
}  # fmt: skip
"""Within the core, each of these imports only those of lower rank, and itself; what is not named may import all."""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def dotted(path: Path) -> str:
    """`rnnzoo.cells.lstm` for rnnzoo/cells/lstm.py, `rnnzoo.tasks.sine` for tasks/sine.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join((*(("rnnzoo",) if parts[0] == "tasks" else ()), *(part for part in parts if part != "__init__")))


FILES = {dotted(path): path for path in SOURCES}


def imports(path: Path, at_once: bool = False) -> set[str]:
    """Dotted names of what a file imports: anywhere, types included, or only when it is imported itself."""
    package = dotted(path) if path.name == "__init__.py" else dotted(path).rpartition(".")[0]

    def found_in(tree: ast.AST) -> set[str]:
        found: set[str] = set()
        for node in ast.iter_child_nodes(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level < 2, "relative imports stay within a folder"
                base = f"{package}.{node.module}" if node.level else str(node.module)
                found |= {f"{base}.{alias.name}" for alias in node.names}
            elif at_once and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            elif at_once and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                found |= found_in(ast.Module(node.orelse, []))
            else:
                found |= found_in(node)
        return found

    return found_in(ast.parse(path.read_text()))


def public(package: str) -> dict[str, str]:
    """Where the names are defined that a package hands on, read off its `__init__`."""
    tree = ast.parse(FILES[package].read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.name: str(node.module) for node in nodes for alias in node.names}


def file_of(imported: str) -> str | None:
    """The file that an imported name is from, by its dotted name; None if it is not one of ours."""
    package, _, last = imported.rpartition(".")
    if imported in FILES:
        return imported
    if package in FILES and FILES[package].name == "__init__.py":
        return public(package).get(last, package)
    return package if package in FILES else None


def part(module: str) -> str:
    if module == "train":
        return "train.py"
    second = first(module)
    return "cli" if second in ("commands", "__main__") else second if second in LEVEL else "core"


def first(module: str) -> str:
    """`cells` for rnnzoo.cells.lstm."""
    return module.split(".")[1] if "." in module else ""


IMPORTS = {module: {file_of(i) for i in imports(path)} - {None, module} for module, path in FILES.items()}
FACES = {module for module, path in FILES.items() if path.name == "__init__.py"}
"""Packages, whose `__init__` hands names on: whoever asks them for one imports the file that it is from."""


@pytest.mark.parametrize("module", FILES)
def test_parts_import_only_what_is_below_them(module: str) -> None:
    for imported in IMPORTS[module]:
        mine, other = part(module), part(str(imported))
        assert other == mine or LEVEL[other] < LEVEL[mine], imported
        assert {mine, other} != {"hydra", "tasks"}, f"{imported}: hydra meets a task by its configured name"


@pytest.mark.parametrize("module", FILES)
def test_frameworks_are_met_in_their_own_part_only(module: str) -> None:
    foreign = {"hydra", "omegaconf", "pytorch_lightning", "lightning"}
    allowed = FOREIGN.get(part(module), set())
    used = {imported.split(".")[0] for imported in imports(FILES[module])} & foreign
    assert used <= allowed, used
    if allowed:
        assert used <= {"hydra", "omegaconf"} or module == "rnnzoo.lightning.framework", "take pl from framework"


def test_the_web_framework_is_met_by_the_server_alone() -> None:
    """So that sessions can be recorded and saved without the extra that serves them."""
    users = {module for module in FILES if {i.split(".")[0] for i in imports(FILES[module])} & {"starlette", "uvicorn"}}
    assert users == {"rnnzoo.play.server"}


@pytest.mark.parametrize("module", [m for m in FILES if first(m) in RANK])
def test_imports_inside_the_core_flow_one_way(module: str) -> None:
    for imported in IMPORTS[module]:
        other = first(str(imported))
        assert other in RANK, f"{imported}: import it from its own module"
        assert other == first(module) or RANK[other] < RANK[first(module)], imported


def test_every_part_with_a_rank_exists() -> None:
    assert set(RANK) <= {first(module) for module in FILES}
    assert set(LEVEL) - {"core"} <= {part(module) for module in FILES}


def test_no_file_imports_itself_in_a_circle() -> None:
    """Not even for types: of two files that need each other, neither can be read first."""
    done: set[str] = set()

    def follow(module: str, way: list[str]) -> None:
        assert module not in way, " → ".join([*way[way.index(module) :], module])
        if module in done:
            return
        for imported in IMPORTS[module] - FACES:
            follow(str(imported), [*way, module])
        done.add(module)

    for module in FILES:
        if module not in FACES:
            follow(module, [])


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_the_door_of_a_clone_is_small() -> None:
    assert len((ROOT / "train.py").read_text().splitlines()) <= 40


@pytest.mark.parametrize("path", sorted((ROOT / "rnnzoo" / "cells").glob("*.py")), ids=name)
def test_cells_stay_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            assert node.end_lineno - start + 1 <= 30, node.name


def test_the_zoo_can_be_read_in_one_sitting() -> None:
    lines = sum(len(path.read_text().splitlines()) for path in (ROOT / "rnnzoo" / "cells").glob("*.py"))
    assert lines <= 30 * len(list_cells())


def test_no_preset_carries_the_name_of_a_cell() -> None:
    # such a file would replace the option that the registry derives from the cell
    presets = {path.stem for path in (ROOT / "conf" / "model").glob("*.y*ml")}
    assert not presets & set(list_cells())


def spoken(path: Path) -> list[str]:
    """The f-strings that a file prints or warns with as they are, though something in them is neither a number with a
    format nor quoted."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "warnings.warn"):
            for text in (argument for argument in node.args if isinstance(argument, ast.JoinedStr)):
                values = [value for value in text.values if isinstance(value, ast.FormattedValue)]
                if any(value.conversion != ord("r") and value.format_spec is None for value in values):
                    found.append(ast.unparse(text))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_terminal_obeys_what_is_told_of_files_and_people(path: Path) -> None:
    """Names of folders, columns and classes are strangers': `printable` spells out their control characters."""
    assert spoken(path) == []
