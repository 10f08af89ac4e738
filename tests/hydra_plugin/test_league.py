"""`rnnzoo league`: what it runs, in which order, what it does not repeat, and the table that it writes."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from rnnzoo import UserError, cli
from rnnzoo.explain.essays import league as page
from rnnzoo.hydra import league
from rnnzoo.hydra.command_line import CONF
from rnnzoo.hydra.league import Task, find, play
from rnnzoo.hydra.models import register_models
from rnnzoo.hydra.settings import resolve
from rnnzoo.registry import list_cells, load_all


@pytest.mark.parametrize("task", find([]), ids=lambda task: task.name)
def test_each_task_can_be_composed(task: Task, tmp_path: Path) -> None:
    register_models(None)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        settings = resolve(compose("config", overrides=task.arguments("gru", task.rates[0], "1")), tmp_path)
    assert 39_000 < settings["param_match"] < 41_000
    assert settings["optimizer"]["lr"] == float(task.rates[0])
    assert len(task.rates) == len(set(map(float, task.rates))) == 3 and task.seeds == ["1", "2", "3"]


TOY = [Task("adding", "mse", ["3e-3", "1e-3"], ["1", "2"]), Task("recall", "accuracy", ["3e-3"], ["1", "2"])]

MEASURED = {  # (test, validation): rnn is the better one on adding by the test and the worse one by validation
    ("adding", "gru", "0.003"): (0.30, 0.30), ("adding", "gru", "0.001"): (0.10, 0.20),
    ("adding", "rnn", "0.003"): (0.50, 0.40), ("adding", "rnn", "0.001"): (0.40, 0.50),
    ("recall", "gru", "0.003"): (0.90, 0.80), ("recall", "rnn", "0.003"): (0.20, 0.10),
}  # fmt: skip


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The arguments of each process that was started; what is written are the summaries of its runs."""
    seen = []

    def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "rnnzoo", "train"]
        given = dict(argument.split("=", 1) for argument in command[4:])
        seen.append(given)
        task, metric = Path(given["experiment"]).name, {"adding": "mse", "recall": "accuracy"}
        rate = str(float(given["optimizer.lr"]))
        for cell in given["model"].split(","):
            if (task, cell, rate) not in MEASURED and cell != "qrnn":
                continue  # as of one that is refused
            folder = Path(given["hydra.sweep.dir"]) / f"{cell}-{rate}-{given['seed']}"
            (folder / ".hydra").mkdir(parents=True)
            overrides = [f"{key}={cell if key == 'model' else value}" for key, value in given.items()]
            (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
            if cell == "qrnn":
                told = {"diverged": "at step 1", "parameters": 40123, "seconds_training": 1.5}
                (folder / "diverged.json").write_text(json.dumps(told))
                continue
            test, validation = MEASURED[task, cell, rate]
            metrics = {f"test/{metric[task]}": test, f"val/{metric[task]}": validation}
            summary = {"metrics": metrics, "parameters": 40123, "seconds_training": 1.5}
            (folder / "summary.json").write_text(json.dumps(summary))
        return subprocess.CompletedProcess(command, 0 if len(seen) > 1 else 1)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(league, "find", lambda names: [task for task in TOY if not names or task.name in names])
    return seen


def test_the_first_seed_at_every_rate_and_the_others_at_the_best(
    started: list[dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="3 runs failed, as"):
        play(["gru", "rnn", "esn"], [], tmp_path, ["hydra/launcher=joblib"])
    told = [(given["experiment"], given["model"], given["optimizer.lr"], given["seed"]) for given in started]
    assert told == [
        ("league/adding", "gru,rnn,esn", "3e-3", "1"), ("league/recall", "gru,rnn,esn", "3e-3", "1"),
        ("league/adding", "gru,rnn,esn", "1e-3", "1"), ("league/adding", "rnn", "3e-3", "2"),
        ("league/adding", "gru", "1e-3", "2"), ("league/recall", "gru,rnn", "3e-3", "2"),
    ]  # fmt: skip
    assert all(given["hydra/launcher"] == "joblib" for given in started)
    output = capsys.readouterr().out
    assert "adding, learning rate 3e-3, seed 1: 3 cells\n" in output
    assert "adding: 6 runs of 2 cells, test/mse of the best gru 0.1, rnn 0.5; none of esn\n" in output
    assert "recall: 4 runs of 2 cells, test/accuracy of the best gru 0.9, rnn 0.2; none of esn\n" in output
    with (tmp_path / "league.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 and set(rows[0]) == set(page.COLUMNS)
    assert rows[0] == {
        "cell": "gru", "task": "adding", "metric": "test/mse", "value": "0.1", "validation": "0.2", "seed": "1",
        "parameters": "40123", "learning_rate": "0.001", "seconds": "1.5", "settings": "",
    }  # fmt: skip
    adding, recall = page.rank(page.read(tmp_path / "league.csv"))
    assert [(entry.cell, entry.middle) for entry in adding.entries] == [("gru", 0.1), ("rnn", 0.5)]
    assert [(entry.cell, entry.place) for entry in recall.entries] == [("gru", 1), ("rnn", 2)]


def test_what_is_there_is_not_repeated(started: list[dict[str, str]], tmp_path: Path) -> None:
    assert play(["gru"], [], tmp_path, only_show=True) == [] and not started
    done = play(["gru"], ["recall"], tmp_path)
    assert len(done) == len(started) == 2
    play(["gru", "rnn"], ["recall"], tmp_path)
    assert [given["model"] for given in started] == ["gru", "gru", "rnn", "rnn"]
    assert len(play([], [], tmp_path, only_show=True)) == len(started) == 4
    shutil.rmtree(tmp_path / "recall" / "gru-0.003-1")
    assert len(play(["gru"], ["recall"], tmp_path)) == len(started) == 4  # the table knows of it
    (tmp_path / "league.csv").unlink()
    assert len(play(["gru"], ["recall"], tmp_path)) == 4 and len(started) == 5
    with pytest.raises(UserError, match=r"gru-0.003-1: made by .*, now it is .*trainer.max_epochs=9"):
        play(["gru"], ["recall"], tmp_path, ["trainer.max_epochs=9"])
    assert len(play(["gru"], ["recall"], tmp_path, ["trainer.max_epochs=9"], only_show=True)) == 4


def test_runs_with_other_settings_are_another_contest(
    started: list[dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["trainer.max_epochs=1", "cells=mine.py"]
    assert [run.settings for run in play(["gru"], ["recall"], tmp_path, short)] == ["trainer.max_epochs=1"] * 2
    shutil.rmtree(tmp_path / "recall")  # as one is told to do
    assert len(play(["gru"], ["recall"], tmp_path, short)) == len(started) == 2
    assert len(play(["gru"], ["recall"], tmp_path)) == len(started) == 4
    capsys.readouterr()
    shown = play(["gru"], ["recall"], tmp_path, only_show=True)
    output = capsys.readouterr().out
    assert "recall: 2 runs of 1 cells, test/accuracy of the best gru 0.9\n" in output
    assert "recall with trainer.max_epochs=1: 2 runs of 1 cells, test/accuracy of the best gru 0.9\n" in output
    assert [task.name for task in page.rank(shown)] == ["recall", "recall with trainer.max_epochs=1"]


@pytest.mark.parametrize("key", ["seed=7", "+model=gru", "optimizer.lr=1", "experiment=league/recall"])
def test_what_the_league_sets_cannot_be_given(key: str, started: list[dict[str, str]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the league sets this itself; name cells and --tasks"):
        play(["gru"], ["recall"], tmp_path / "out", [key])
    assert not started and not (tmp_path / "out").exists()


def test_cells_that_learn_nothing_do_not_play() -> None:
    assert all(set(list_cells()) - set(task.cells()) == {"esn"} for task in find([]))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("gru,adding,test/mse,0.2,0.3,7,40123,0.02,1.5,,more", "line 2: has not the 10 fields"),
        ("gru,adding,test/mse,0.2,0.3", "line 2: has not the 10 fields"),
        ("gru,adding,test/mse,0.2,0.3,7,40123,0.02,1.5,\n" * 2, "line 3: is of the same run as line 2; take one of"),
    ],
)
def test_a_damaged_table_is_refused(lines: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "league.csv").write_text(f"{','.join(page.COLUMNS)}\n{lines}")
    with pytest.raises(UserError, match=f"league.csv: {words}"):
        play(["gru"], ["recall"], tmp_path, only_show=True)


def test_what_diverged_is_the_last_and_is_not_repeated(
    started: list[dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    play(["gru", "qrnn"], ["recall"], tmp_path)
    assert [(given["model"], given["seed"]) for given in started] == [("gru,qrnn", "1"), ("gru", "2")]
    assert "test/accuracy of the best gru 0.9, qrnn nan\n" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "recall")  # what the table says is enough
    play(["gru", "qrnn"], ["recall"], tmp_path)
    assert len(started) == 2
    [recall] = page.rank(page.read(tmp_path / "league.csv"))
    assert [(entry.cell, entry.place, entry.parameters) for entry in recall.entries] == [
        ("gru", 1, 40123), ("qrnn", 2, 40123),
    ]  # fmt: skip


def test_lines_of_another_league_stay(started: list[dict[str, str]], tmp_path: Path) -> None:
    path = tmp_path / "league.csv"
    path.write_text(",".join(page.COLUMNS) + "\nlstm,adding,test/mse,0.2,0.3,7,40123,0.02,1.5,\n")
    assert [run.seed for run in play(["gru"], ["recall"], tmp_path, only_show=True)] == [7]
    assert [run.cell for run in play(["gru"], ["recall"], tmp_path)] == ["gru", "gru", "lstm"]
    assert "lstm,adding,test/mse,0.2,0.3,7,40123,0.02,1.5," in path.read_text()
    path.write_text(path.read_text().replace("seconds", "seconds,note").replace("1.5,", "1.5,a,"))
    with pytest.raises(UserError, match=r"league.csv: has a column 'note' more than cell, task"):
        play(["gru"], ["recall"], tmp_path, only_show=True)


def test_a_process_that_is_killed_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command: subprocess.CompletedProcess(command, -9))
    with pytest.raises(UserError, match=r"model=gru .*: ended with -9; the same command goes on"):
        play(["gru"], ["recall"], tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gruu"], "no cell is named 'gruu'; did you mean gru"),
        (["gru", "--tasks", "recal", "trainer.max_epochs=1"], "did you mean recall"),
        (["gru", "--out", "F", "gruu", "trainer.max_epochs=1"], "no cell is named 'gruu'"),
        (["gru", "--out", "F", "trainer.max_epochs=[1"], "trainer.max_epochs=[1: is not KEY=VALUE (no viable"),
        (["--show", "--out", __file__], "test_league.py: File exists; name a folder that can be made"),
    ],
    ids=str,
)
def test_unknown_names(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["league", *arguments]) == 1
    assert words in capsys.readouterr().err


MINE = """
from torch import Tensor

from rnnzoo import Cell, gate, register

@register("mine_of_the_league")
class Mine(Cell):
    W, U, b = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return (x @ self.W + h @ self.U + self.b).tanh()
"""


def test_it_is_played(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """A real piece: three cells on one task for a batch, and no second process for what is there."""
    ended, really = [], subprocess.run

    def run(given: Sequence[str]) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as as_it_was:
            as_it_was.setattr(subprocess, "run", really)
            ended.append(command(*given[1:]))
        return ended[-1]

    monkeypatch.setattr(subprocess, "run", run)
    task = Task("adding", "mse", ["3e-3"], ["1"])
    monkeypatch.setattr(league, "find", lambda names: [task])
    little = [f"trainer.limit_{part}_batches=1" for part in ("train", "val", "test")]
    (tmp_path / "my cell.py").write_text(MINE)
    load_all(str(tmp_path / "my cell.py"))
    little += ["trainer.max_epochs=1", "task.T=5", f"cells='{tmp_path / 'my cell.py'}'"]  # which a multirun quotes
    with pytest.raises(UserError, match="1 run failed, as"):
        play(["rnn", "esn", "mine_of_the_league"], [], tmp_path, little)
    found = play(["rnn", "mine_of_the_league"], [], tmp_path, little)
    assert ended[0].returncode == 1 and "esn has 0 parameters to learn at any size" in ended[0].stderr
    assert [(run.cell, run.task, run.metric) for run in found] == [
        (c, "adding", "test/mse") for c in ("mine_of_the_league", "rnn")
    ]
    assert all(abs(run.parameters - 39_350) < 3000 and run.value > 0 and run.validation > 0 for run in found)
    assert play(["rnn", "mine_of_the_league"], [], tmp_path, little) == found
    assert len(ended) == 1
