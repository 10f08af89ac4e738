"""The layout holds: imports flow one way, files and cells stay short, and no preset hides a cell.

Everything is read from the source with `ast`, nothing is imported but the registry.
"""

import ast
from pathlib import Path

import pytest

from rnnzoo import list_cells

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "rnnzoo").rglob("*.py"))
ABOVE = {"hydra", "omegaconf", "pytorch_lightning", "lightning", "tasks", "train"}
"""What is built on rnnzoo, or needed only by what is."""

RANK = {"errors": 0, "registry": 1, "cell": 2, "cells": 3, "options": 3, "engine": 4, "recurrent": 5}
"""Each part of rnnzoo imports only parts of lower rank, and itself; parts not named here may import all of these."""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.AST, at_import_only: bool) -> set[str]:
    """Dotted names that are imported: anywhere, or only those that run when the module itself is imported."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif at_import_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        elif at_import_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            found |= imports(ast.Module(node.orelse, []), at_import_only)
        else:
            found |= imports(node, at_import_only)
    return found


def part(path: Path) -> str:
    """`cells` for rnnzoo/cells/lstm.py, `cell` for rnnzoo/cell.py."""
    return path.relative_to(ROOT / "rnnzoo").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_rnnzoo_imports_nothing_that_is_built_on_it(path):
    # cli.py alone may reach up, and only from inside the commands that work on runs
    found = imports(ast.parse(path.read_text()), at_import_only=path == ROOT / "rnnzoo" / "cli.py")
    assert not {imported.split(".")[0] for imported in found} & ABOVE


@pytest.mark.parametrize("path", [p for p in PACKAGE if part(p) in RANK], ids=name)
def test_imports_inside_rnnzoo_flow_one_way(path):
    for imported in imports(ast.parse(path.read_text()), at_import_only=True):
        if imported.split(".")[0] != "rnnzoo":
            continue
        other = imported.split(".")[1]
        assert other in RANK, f"{imported}: import it from its own module"
        assert other == part(path) or RANK[other] < RANK[part(path)], imported


def test_every_part_with_a_rank_exists():
    assert set(RANK) <= {part(path) for path in PACKAGE}


SOURCES = [*PACKAGE, *sorted((ROOT / "tasks").rglob("*.py")), ROOT / "train.py"]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", sorted((ROOT / "rnnzoo" / "cells").glob("*.py")), ids=name)
def test_cells_stay_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            assert node.end_lineno - first + 1 <= 30, node.name


def test_the_zoo_can_be_read_in_one_sitting():
    assert sum(len(path.read_text().splitlines()) for path in (ROOT / "rnnzoo" / "cells").glob("*.py")) < 3400


def test_no_preset_carries_the_name_of_a_cell():
    # such a file would replace the option that the registry derives from the cell
    presets = {path.stem for path in (ROOT / "conf" / "model").glob("*.y*ml")}
    assert not presets & set(list_cells())
