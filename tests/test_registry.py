"""The registry: names, and what becomes of the files and modules a person loads."""

import dataclasses
import importlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rnnzoo import Cell, Recurrent, UserError, get, list_cells, load, register, registry
from rnnzoo.registry import entry

ROOT = Path(__file__).parent.parent

CELL = """\
from rnnzoo import Cell, gate, register

@register("{name}", source="nowhere")
class {kind}(Cell):
    W, U, b = gate()

    def step(self, x, h):
        return h + x @ self.W
"""


@pytest.fixture(autouse=True)
def modules_as_they_were(tmp_path):
    """Modules that a test imports from its folder are gone after it."""
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that modules can be imported from by name."""
    monkeypatch.syspath_prepend(tmp_path)
    # a file that is written anew within a second must not be taken from a stale .pyc
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    importlib.invalidate_caches()
    return str(path)


def failure(target: str) -> str:
    """The message of the error that loading `target` raises: one line that names the target."""
    with pytest.raises(UserError) as caught:
        load(target)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"cells={target}: ")
    return message.removeprefix(f"cells={target}: ")


class Plain(Cell):
    def step(self, x, h):
        return h


def test_register_returns_the_class_and_get_finds_it():
    assert register("plain", source="eq. 1")(Plain) is Plain
    assert get("plain") is Plain
    assert entry("plain") == registry.Entry("plain", Plain, "eq. 1")
    assert "plain" in list_cells()


def test_an_entry_tells_where_a_cell_comes_from():
    found = entry("lstm")
    assert (found.name, found.cell, found.module) == ("lstm", get("lstm"), "rnnzoo.cells.lstm")
    assert "Gers" in found.source
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.name = "other"


def test_list_is_sorted_and_takes_wildcards():
    register("plain")(Plain)
    assert list_cells() == sorted(list_cells())
    assert {"rnn", "lstm", "gru", "mgu", "plain"} <= set(list_cells())
    assert {"lstm", "lstm_peephole"} <= set(list_cells("lstm*"))
    assert all(name.startswith("lstm") for name in list_cells("lstm*"))
    assert list_cells("pl?in") == ["plain"]
    assert list_cells("gru") == ["gru"]
    assert list_cells("nothing*") == []


def test_a_name_is_taken_once():
    with pytest.raises(UserError, match=r"'gru' is already registered by rnnzoo\.cells\.gru; choose another name"):
        register("gru")(Plain)
    assert get("gru") is not Plain


def test_a_notebook_can_define_its_cell_again():
    def define():
        return register("draft")(type("Draft", (Plain,), {"__module__": "__main__", "__qualname__": "Draft"}))

    first, second = define(), define()
    assert first is not second
    assert get("draft") is second


def test_a_notebook_cannot_replace_a_cell_of_the_zoo():
    # the engine `native` would go on to run torch's LSTM under the name of the new class
    with pytest.raises(UserError, match="already registered"):
        register("lstm")(type("LSTM", (Plain,), {"__module__": "__main__", "__qualname__": "LSTM"}))


@pytest.mark.parametrize("name", ["my-cell", "my cell", "", "1cell", "a.b", "a=b", "a/b"])
def test_a_name_must_fit_on_a_command_line(name):
    with pytest.raises(UserError, match="letters, digits and underscores"):
        register(name)(Plain)


@pytest.mark.parametrize("thing", [object, torch.nn.LSTM, len, "LSTM"], ids=str)
def test_only_cells_are_registered(thing):
    with pytest.raises(UserError, match=r"'thing' is not a subclass of rnnzoo\.Cell"):
        register("thing")(thing)
    assert "thing" not in list_cells()


def test_a_cell_without_step_is_not_registered():
    with pytest.raises((UserError, TypeError), match="step"):
        register("block")(type("Block", (Cell,), {}))
    assert "block" not in list_cells()


def test_register_without_a_name_is_refused():
    # `@register` instead of `@register("name")` would leave a function where the class was meant to be
    with pytest.raises((UserError, TypeError)):

        @register
        class Forgotten(Plain):
            pass


@pytest.mark.parametrize("find", [get, entry])
def test_an_unknown_name_suggests_the_nearest(find):
    with pytest.raises(UserError, match=r"no cell is named 'lstn'; did you mean .*lstm"):
        find("lstn")
    with pytest.raises(UserError, match=r"no cell is named 'qqqqq'; known: .*, .* and \d+ more; rnnzoo list shows all"):
        find("qqqqq")


def test_load_a_file(folder):
    load(write(folder / "mine.py", CELL.format(name="mine", kind="Mine")))
    assert entry("mine").source == "nowhere"
    output, _ = Recurrent("mine", 2, 3)(torch.ones(4, 1, 2))
    assert output.shape == (4, 1, 3)


def test_load_a_file_with_postponed_annotations(folder):
    text = CELL.format(name="mine", kind="Mine").replace("    W,", "    alpha: float = 0.5\n    W,")
    load(write(folder / "mine.py", "from __future__ import annotations\n" + text))
    assert get("mine")(2, 3, alpha=0.25).alpha == 0.25


def test_loading_twice_is_harmless(folder, monkeypatch):
    target = write(folder / "mine.py", CELL.format(name="mine", kind="Mine"))
    load(target)
    first = get("mine")
    load(target)
    monkeypatch.chdir(folder)
    load("mine.py")
    assert get("mine") is first


def test_two_files_of_one_name_in_different_folders(folder):
    one = write(folder / "a" / "cells.py", CELL.format(name="one", kind="Mine"))
    two = write(folder / "b" / "cells.py", CELL.format(name="two", kind="Mine"))
    load(one)
    load(two)
    assert get("one") is not get("two")
    assert entry("one").module != entry("two").module
    for name in ("one", "two"):
        assert pickle.loads(pickle.dumps(get(name))) is get(name)


def test_a_loaded_cell_can_be_pickled(folder):
    load(write(folder / "mine.py", CELL.format(name="mine", kind="Mine")))
    layer = Recurrent("mine", 2, 3)
    x = torch.randn(4, 1, 2)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x)[0], layer(x)[0])


def test_a_pickle_is_read_in_a_process_that_loads_the_file_anew(folder):
    target = write(folder / "mine.py", CELL.format(name="mine", kind="Mine"))
    load(target)
    here = get("mine")
    stored = pickle.dumps(here(2, 3))
    # what another process starts with
    del sys.modules[here.__module__], registry._entries["mine"]
    registry._loaded.clear()
    load(target)
    assert get("mine") is not here
    assert type(pickle.loads(stored)) is get("mine")


def test_load_a_module_by_dotted_name(folder):
    write(folder / "their_package" / "__init__.py", "")
    write(folder / "their_package" / "cells.py", CELL.format(name="theirs", kind="Theirs"))
    load("their_package.cells")
    load("their_package.cells")
    assert entry("theirs").module == "their_package.cells"


def test_a_missing_file_is_named(folder):
    assert failure(str(folder / "none.py")) == f"no such file: {folder / 'none.py'}"


@pytest.mark.parametrize("target", ["no_such_module", "no_such_package.cells", "rnnzoo.cells.no_such_module"])
def test_a_missing_module(target):
    assert "no such file or module" in failure(target)


def test_a_missing_import_inside_a_file_is_not_taken_for_the_file(folder):
    message = failure(write(folder / "mine.py", "\nimport no_such_module\n"))
    assert "line 2" in message and "no_such_module" in message


@pytest.mark.parametrize(
    "target", [".", "./mine", "../mine", "", "folder", "mine.txt"], ids=["dot", "stem", "up", "empty", "dir", "txt"]
)
def test_what_is_neither_a_python_file_nor_a_module_is_told_what_to_give(folder, monkeypatch, target):
    write(folder / "mine.txt", "x = 1\n")
    (folder / "folder.d").mkdir()
    monkeypatch.chdir(folder)
    assert ".py" in failure(target if target != "folder" else str(folder / "folder.d"))


@pytest.fixture(params=["file", "module"])
def loadable(request, folder):
    """From a text to a target that loads it, as a file or as a module by name."""
    as_path = request.param == "file"
    return lambda text: write(folder / "mine_to_load.py", text) if as_path else write_module(folder, text)


def write_module(folder: Path, text: str) -> str:
    write(folder / "mine_to_load.py", text)
    return "mine_to_load"


def test_a_syntax_error_names_its_line(loadable):
    message = failure(loadable("x = 1\n\ndef broken(:\n"))
    assert "line 3" in message and "syntax" in message


def test_an_exception_names_its_line_and_stays_on_one(loadable):
    message = failure(loadable("def broken():\n    raise RuntimeError('first\\nsecond')\n\n\nbroken()\n"))
    assert "RuntimeError" in message and "first second" in message
    # the line where it was raised, not the one that led there
    assert "line 2" in message


def test_a_wrong_declaration_names_its_line(loadable):
    text = CELL.format(name="mine", kind="Mine").replace("h):", "h=None):")
    message = failure(loadable(text))
    assert "line 4" in message and "Mine.step must take self, x and its states" in message
    assert "mine" not in list_cells()


def test_a_declaration_under_two_names_says_so(loadable):
    message = failure(loadable(CELL.format(name="mine", kind="Mine").replace("W, U, b = gate()", "W = U = gate()[0]")))
    assert "W and U share one declaration" in message


def test_a_mistake_in_an_imported_helper_is_placed_in_the_helper(folder):
    write(folder / "their_helper.py", "\n\n\nx = = 1\n")
    message = failure(write(folder / "mine.py", "import their_helper\n"))
    assert "their_helper" in message


def test_a_name_of_the_zoo_is_refused_and_its_line_named(loadable):
    before = get("gru")
    message = failure(loadable(CELL.format(name="gru", kind="Mine")))
    assert "line 3" in message and "'gru' is already registered by rnnzoo.cells.gru" in message
    assert get("gru") is before


def test_a_load_that_fails_leaves_nothing_behind_and_can_be_repeated(loadable):
    good = CELL.format(name="mine", kind="Mine")
    before = list_cells()
    target = loadable(good + "\nraise ValueError('later')\n")
    assert "later" in failure(target)
    assert list_cells() == before
    # once more the same mistake, not silence
    assert "later" in failure(target)
    loadable(good)
    load(target)
    assert list_cells() == sorted([*before, "mine"])


def test_a_package_that_failed_halfway_can_be_loaded_once_mended(folder):
    good = "import their_package.first\n"
    write(folder / "their_package" / "first.py", CELL.format(name="first", kind="First"))
    write(folder / "their_package" / "__init__.py", good + "raise ValueError('later')\n")
    assert "later" in failure("their_package")
    assert "first" not in list_cells()
    write(folder / "their_package" / "__init__.py", good)
    load("their_package")
    assert "first" in list_cells()


def test_scan_reads_the_names_that_importing_registers():
    # two ways to one list: help must not wait for torch, so it reads the names off the text
    scanned = [name for path in (ROOT / "rnnzoo" / "cells").glob("*.py") for name in registry.scan(path)]
    assert sorted(scanned) == [name for name in list_cells() if entry(name).module.startswith("rnnzoo.cells.")]


@pytest.mark.parametrize(
    ("written", "expected"),
    [('"mine"', ["mine"]), ('name="mine"', ["mine"]), ('source="here", name="mine"', ["mine"]), ("NAME", [])],
)
def test_scan_takes_every_way_to_write_a_name_and_passes_over_what_it_cannot_read(folder, written, expected):
    path = write(folder / "mine.py", f'NAME = "mine"\n\n@register({written})\nclass Mine(Cell):\n    pass\n')
    assert registry.scan(Path(path)) == expected


def test_scan_of_a_file_that_is_not_python_is_one_clear_line(folder):
    with pytest.raises(UserError, match="line 2"):
        registry.scan(Path(write(folder / "mine.py", "x = 1\ndef broken(:\n")))


def test_cells_of_installed_packages_are_found(tmp_path):
    write(tmp_path / "plug_in.py", CELL.format(name="plugged", kind="Plugged"))
    info = tmp_path / "plug_in-1.0.dist-info"
    write(info / "METADATA", "Metadata-Version: 2.1\nName: plug-in\nVersion: 1.0\n")
    write(info / "entry_points.txt", "[rnnzoo.cells]\nplug_in = plug_in\n")
    # a process of its own, because installed cells are looked up once
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    code = "import rnnzoo; print(*rnnzoo.list_cells()); print(rnnzoo.registry.entry('plugged').module)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    cells, module = done.stdout.splitlines()
    assert {"plugged", "lstm"} <= set(cells.split())
    assert module == "plug_in"
