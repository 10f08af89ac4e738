"""The command `rnnzoo`: what it prints of every cell, and how it refuses."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from varied import VARIED

from rnnzoo import cli, get, list_cells
from rnnzoo.commands import benching, checking, listing, showing
from rnnzoo.engine import ENGINES
from rnnzoo.registry import entry

ROOT = Path(__file__).parent.parent
CELL = '''\
from torch import tanh
from rnnzoo import Cell, Scalar, Weight, gate, register


@register("shown_cell", source="a note [in brackets], [bold]eq. 1[/bold]")
class Shown(Cell):
    """A cell [to show]."""

    rank: int = 3
    slope: float = 0.5
    W, U, b = gate()
    low = Weight("rank", "hidden")
    scale = Scalar()

    def step(self, x, h, c):
        h = tanh(x @ self.W + h @ self.U + self.b) * self.scale
        return h, c + h
'''


@pytest.fixture
def rnnzoo(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`rnnzoo("list")` runs the command on a wide terminal and returns what it prints."""

    def run(*arguments: str) -> str:
        printed = io.StringIO()

        def wide(**options: Any) -> Console:
            return Console(file=printed, width=400, **options)

        for module in (listing, showing, checking, benching):
            monkeypatch.setattr(module, "Console", wide)
        with contextlib.redirect_stdout(printed):
            assert cli.main(list(arguments)) == 0
        return printed.getvalue()

    return run


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refusal(...)` runs the command on bad input: exit code 1, nothing printed but one line on stderr."""

    def run(*arguments: str) -> str:
        assert cli.main(list(arguments)) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ") and printed.err.endswith("\n") and printed.err.count("\n") == 1
        return printed.err.strip()

    return run


@pytest.fixture
def my_cells(tmp_path: Path) -> Path:
    path = tmp_path / "my_cells.py"
    path.write_text(CELL)
    return path


def listed(printed: str) -> list[str]:
    """The names in the first column of the table."""
    rows = [line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│")]
    return [name for name in rows if name]


def test_list_shows_all_cells(rnnzoo: Callable[..., str]) -> None:
    printed = rnnzoo("list")
    assert listed(printed) == list_cells()
    [lstm] = [line for line in printed.splitlines() if line.startswith("│ lstm ")]
    assert "h c" in lstm and "Gers, Schmidhuber" in lstm and "A memory c" in lstm


@pytest.mark.parametrize("pattern", ["*lstm*", "gru", "?nn", "*"])
def test_list_takes_wildcards(pattern: str, rnnzoo: Callable[..., str]) -> None:
    assert listed(rnnzoo("list", pattern)) == list_cells(pattern) != []


def test_list_without_a_match(refusal: Callable[..., str]) -> None:
    assert "'qqq*'" in refusal("list", "qqq*")


@pytest.mark.parametrize("family", ["lstm", "linear"])
def test_list_takes_a_family(family: str, rnnzoo: Callable[..., str]) -> None:
    found = listed(rnnzoo("list", "--family", family))
    assert found == [name for name in list_cells() if get(name).__module__ == f"rnnzoo.cells.{family}"] != []


def test_list_takes_a_kind(rnnzoo: Callable[..., str], refusal: Callable[..., str]) -> None:
    assert listed(rnnzoo("list", "*gru", "--family", "linear", "--kind", "parallel")) == ["min_gru", "t_gru"]
    assert listed(rnnzoo("list", "*rnn", "--family", "elman", "--kind", "diagonal")) == ["indrnn"]
    assert "fast_weights" in listed(rnnzoo("list", "f*", "--kind", "serial"))
    assert "no cell among them is parallel" in refusal("list", "gru", "--kind", "parallel")
    assert "did you mean lstm" in refusal("list", "--family", "lsmt")


def test_list_says_what_a_claim_rests_on(my_cells: Path, rnnzoo: Callable[..., str]) -> None:
    rows = {line.split("│")[1].strip(): line for line in rnnzoo("list", "--fidelity").splitlines() if "│" in line}
    assert "tests/oracles/lstm.py" in rows["lstm"] and "torch.nn.LSTMCell" in rows["lstm"]
    assert "github.com/tk-rusch/LEM" in rows["lem"]
    for name in list_cells():
        assert (ROOT / rows[name].split("│")[3].strip()).is_file()
    own = rnnzoo("--cells", str(my_cells), "list", "shown*", "--fidelity")
    assert "tests/oracles" not in own


@pytest.mark.parametrize("name", VARIED)
def test_show(name: str, rnnzoo: Callable[..., str]) -> None:
    """Source, equations, each parameter with its shape, hyperparameters, states and engines."""
    printed = rnnzoo("show", name, "--input-size", "7", "--hidden-size", "5")
    cell = get(name)(7, 5)
    assert entry(name).source in printed
    assert "def step(self" in printed
    rows = {line.split("│")[1].strip(): line for line in printed.splitlines() if line.startswith("│")}
    for key, parameter in cell.named_parameters():
        assert (" × ".join(map(str, parameter.shape)) or "scalar") in rows[key]
        assert f"{parameter.numel():,} │" in re.sub(" +", " ", rows[key])
    assert f"{sum(p.numel() for p in cell.parameters()):,}" in rows["learned"]
    for key, declared in cell.hyperparameters.items():
        assert f"hyperparameter {key}: {declared.type.__name__} = {declared.default!r}" in printed
    for key, shape in zip(cell.state_names, cell.state_shapes()):
        assert f"state {key}: B × {' × '.join(map(str, shape))}" in printed
    assert f"{cell.output_size} features" in printed and "kind: " in printed
    for engine in ENGINES:
        assert f"engine={engine}: " in printed
    assert "engine=reference: runs it" in printed
    assert re.search(r"engine=auto on cpu takes \w+ for a short run", printed)


def test_show_names_the_engine_that_torch_has(rnnzoo: Callable[..., str]) -> None:
    assert "engine=native: runs it" in rnnzoo("show", "gru")
    assert "engine=native: runs it" not in rnnzoo("show", "mgu")


def test_show_tells_of_a_matrix_memory(rnnzoo: Callable[..., str]) -> None:
    shown = " ".join(rnnzoo("show", "delta_net").split())
    assert "engine=matrix: runs it, with a memory of 128 values under 128 keys, by a delta rule, its decay 1" in shown
    assert "engine=auto on cpu takes matrix for a long run" in shown
    assert "engine=auto on cpu takes reference for a short run" in rnnzoo("show", "mgu")
    assert "engine=auto on cpu takes native for a short run" in rnnzoo("show", "gru")


def test_a_cell_of_ones_own(my_cells: Path, rnnzoo: Callable[..., str]) -> None:
    assert listed(rnnzoo("--cells", str(my_cells), "list", "shown*")) == ["shown_cell"]
    assert listed(rnnzoo("list", "shown*", "--cells", str(my_cells))) == ["shown_cell"]
    printed = rnnzoo("--cells", str(my_cells), "show", "shown_cell", "--hidden-size", "5")
    assert "A cell [to show]." in printed
    assert "a note [in brackets], [bold]eq. 1[/bold]" in printed
    assert "rank: int = 3" in printed and "slope: float = 0.5" in printed
    assert re.search(r"low +│ rank × hidden +│ 3 × 5 +│ 15 +│", printed)
    assert re.search(r"scale +│ scalar +│ +│ 1 +│", printed)
    assert "state h: B × 5" in printed and "state c: B × 5" in printed
    assert "cannot take chrono: Shown has no gate" in printed


def test_a_class_in_a_file_is_shown(my_cells: Path, rnnzoo: Callable[..., str]) -> None:
    printed = rnnzoo("show", f"{my_cells}:Shown")
    assert "A cell [to show]." in printed and "eq. 1" in printed
    plain = my_cells.with_name("plain.py")
    plain.write_text(my_cells.read_text().replace("@register(", "# (").replace("class Shown", "class Plain"))
    assert "A cell [to show]." in rnnzoo("show", f"{plain}:Plain")


def test_what_is_refused(my_cells: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    assert "did you mean" in refusal("show", "lstn") and "'lstn'" in refusal("show", "lstn")
    assert "known: " in refusal("show", "qqq")
    assert str(tmp_path / "none.py") in refusal("--cells", str(tmp_path / "none.py"), "list")
    assert "hidden_size" in refusal("show", "gru", "--hidden-size", "0")
    assert "input_size" in refusal("show", "gru", "--input-size", "-1")
    my_cells.write_text("x = (\n")
    assert "line 1: syntax error" in refusal("--cells", str(my_cells), "list")


def test_sizes_that_no_machine_holds(refusal: Callable[..., str]) -> None:
    """An LSTM's first matrix, 64 numbers of 4 bytes for each unit, is asked for first."""
    told = f"this needs more memory than there is, {4 * 64 * 10**14} bytes at once; ask for less"
    assert told in refusal("show", "lstm", "--hidden-size", str(10**14))


@pytest.mark.parametrize(
    "arguments",
    [[], ["shwo"], ["show"], ["--", "list"], ["--cell", "mine.py", "list"], ["show", "gru", "--hidden-size", "x"]],
)
def test_arguments_that_do_not_parse(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "usage: rnnzoo" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in cli._parser()[1] if name != "train"])
def test_names_stand_before_and_after_options(name: str) -> None:
    """Of a command that takes several of them and has an option with one value."""
    parser = cli._parser()[1][name][0]
    positional = [action for action in parser._actions if not action.option_strings and action.nargs in ("*", "+")]
    options = [action for action in parser._actions if action.option_strings and action.dest == "out"]
    for action, option in itertools.product(positional, options):
        given = parser.parse_intermixed_args(["a", *option.option_strings, "folder", "b"])
        assert list(map(str, getattr(given, action.dest))) == ["a", "b"] and str(given.out) == "folder"


def test_the_module_is_the_command(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    good = command("-m", "rnnzoo", "show", "gru")
    assert good.returncode == 0 and good.stderr == "" and "def step(self" in good.stdout
    bad = command("-m", "rnnzoo", "show", "gruu")
    assert bad.returncode == 1 and bad.stdout == "" and bad.stderr.count("\n") == 1
    assert "Traceback" not in bad.stderr and "did you mean gru" in bad.stderr


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("hydra", ["train", "task=sine"], "train"),
        ("pytorch_lightning", ["eval", "run"], "train"),
        ("hydra", ["sample", "run"], "train"),
        ("matplotlib", ["show", "gru", "--svg"], "gallery"),
        ("resvg_py", ["show", "gru", "--png", "gru.png"], "gallery"),
        ("matplotlib", ["bench", "gru"], "bench"),
    ],
)
def test_what_is_missing_is_named_with_its_extra(
    module: str, arguments: list[str], extra: str, interpreter: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """As after a plain `pip install rnnzoo`."""
    missing = [module, "lightning"] if module == "pytorch_lightning" else [module]
    hide = f"import sys; sys.modules.update(dict.fromkeys({missing}))"
    done = interpreter("-c", f"{hide}; from rnnzoo.cli import main; sys.exit(main({arguments}))")
    assert done.returncode == 1
    assert done.stderr.endswith(f"error: this needs {module}: pip install 'rnnzoo[{extra}]'\n"), done.stderr
    assert done.stderr.count("\n") == 1


def test_cells_need_no_extra(interpreter: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    extras = ["hydra", "omegaconf", "pytorch_lightning", "lightning", "torchmetrics", "pydantic", "matplotlib"]
    hide = f"import sys; sys.modules.update(dict.fromkeys({extras}))"
    run = "from rnnzoo.cli import main; import rnnzoo; layer = rnnzoo.Recurrent('gru', 2, 3, engine='serial')"
    more = "import torch; layer(torch.randn(4, 1, 2)); codes = [main(['list', 'gru']), main(['show', 'gru', '--text'])]"
    done = interpreter("-c", f"{hide}; {run}; {more}; sys.exit(sum(codes))")
    assert done.returncode == 0, done.stderr


def test_nothing_that_only_posix_has_is_needed(
    interpreter: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """As on Windows, as far as that can be said from here."""
    hide = (
        "import sys, signal; sys.modules.update(dict.fromkeys(['fcntl', 'resource', 'pwd', 'grp', 'termios']))\n"
        "before = {name: getattr(signal, name) for name in ('SIGUSR1', 'SIGKILL')}\n"
        "for name in before: delattr(signal, name)\n"
        "import rnnzoo.lightning.preempt\n"
        "vars(signal).update(before)  # Lightning itself asks for them where the system is not Windows\n"
    )
    toy = ["task=sine", "task.samples=40", "model.hidden_size=2", "trainer.max_epochs=1", "hardware=cpu"]
    train = f"from rnnzoo.cli import main; sys.exit(main({['train', *toy, f'hydra.run.dir={tmp_path}/run']}))"
    done = interpreter("-c", hide + train)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["peak_memory_mib"] is None


@pytest.mark.parametrize("arguments", [["train", "--cells", "mine.py"], ["--cells", "mine.py", "train", "task=sine"]])
def test_train_has_a_key_for_cells(arguments: list[str], refusal: Callable[..., str]) -> None:
    assert "cells=FILE, without dashes" in refusal(*arguments)
