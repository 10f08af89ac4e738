"""Sweeps from the command line: what is proposed, run, pruned, told, and repeated."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from joblib.externals.loky.process_executor import TerminatedWorkerError
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from rnnzoo import UserError
from rnnzoo.hydra.models import register_models
from rnnzoo.hydra.search.space import distribution, grid, make_sampler
from rnnzoo.hydra.search.study import ERROR, FOLDER, REPEATS, storage_at
from rnnzoo.hydra.search.sweeper import Combinations
from rnnzoo.hydra.search.trial import PRUNERS

ROOT = Path(__file__).parents[2]
TOY = ["task=sine", "task.samples=64", "task.window=6", "model=rnn", "model.hidden_size=4", "trainer.max_epochs=1",
       "engine=reference", "hardware=cpu", "trainer.log_every_n_steps=1"]  # fmt: skip

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def override(text: str) -> Any:
    return OverridesParser.create().parse_override(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("k=a,b", CategoricalDistribution(["a", "b"])),
        ("k=choice(1,[1,2])", CategoricalDistribution(["1", "[1,2]"])),
        ("k=interval(1,2)", FloatDistribution(1.0, 2.0)),
        ("k=int(interval(1,8))", IntDistribution(1, 8)),
        ("k=tag(log,interval(1e-4,1))", FloatDistribution(1e-4, 1.0, log=True)),
        ("k=tag(log,int(interval(16,256)))", IntDistribution(16, 256, log=True)),
        ("k=range(1,4)", IntDistribution(1, 3)),
        ("k=range(10,1,-3)", IntDistribution(4, 10, step=3)),
        ("k=range(0.0,0.6,0.2)", FloatDistribution(0.0, 0.4, step=0.2)),
    ],
)
def test_hydras_syntax_says_what_is_searched(text: str, expected: Any) -> None:
    assert distribution(override(text)) == expected


@pytest.mark.parametrize(
    "text", ["k=interval(2,1)", "k=tag(log,interval(0,1))", "k=range(3,3)", "k=tag(log,range(1,9))"]
)
def test_what_cannot_be_searched_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^k="):
        distribution(override(text))


def test_a_grid_lists_all_values() -> None:
    space = {
        k: distribution(override(f"k={text}")) for k, text in enumerate(["a,b", "range(1,6,2)", "range(0.0,1.0,0.25)"])
    }
    assert [list(values) for values in grid(space).values()] == [["a", "b"], [1, 3, 5], [0.0, 0.25, 0.5, 0.75]]
    with pytest.raises(UserError, match=r"k: sweep.sampler=grid needs values that can be counted"):
        grid({"k": FloatDistribution(0, 1)})


@pytest.mark.parametrize("name", ["tpe", "random", "grid", "gp", "cmaes", "qmc"])
def test_samplers_by_name(name: str) -> None:
    needed = {"gp": "scipy", "qmc": "scipy", "cmaes": "cmaes"}.get(name)
    if needed is not None:
        pytest.importorskip(needed)
    space = {"x": IntDistribution(0, 9)}
    study = optuna.create_study(sampler=make_sampler(name, 1, space))
    for _ in range(10):
        trial = study.ask(space)
        study.tell(trial, (trial.params["x"] - 4) ** 2)
    assert study.best_value <= 1
    assert name != "grid" or sorted(trial.params["x"] for trial in study.trials) == list(range(10))


def test_a_sampler_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**options: Any) -> None:
        raise ImportError("no cmaes")

    monkeypatch.setattr(optuna.samplers, "CmaEsSampler", missing)
    with pytest.raises(UserError, match=r"^sweep.sampler=cmaes: needs a package more: pip install cmaes$"):
        make_sampler("cmaes", 1, {})


@pytest.mark.parametrize("name", PRUNERS)
def test_pruners_by_name(name: str) -> None:
    study = optuna.create_study(pruner=PRUNERS[name]())
    pruned = 0
    for k in range(30):
        trial = study.ask()
        for step in range(1, 9):
            trial.report(k, step)  # each worse than all before it
            if trial.should_prune():
                pruned += 1
                break
        study.tell(trial, k)
    assert (pruned > 0) == (name != "none")


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "sweep").glob("*.yaml")))
def test_spaces_of_the_project(name: str) -> None:
    register_models(None)
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        params = compose("config", overrides=[f"sweep={name}"], return_hydra_config=True).hydra.sweeper.params or {}
        spaces = {key: distribution(override(f"{key}={value}")) for key, value in params.items()}
        assert bool(spaces) == (name != "optuna")
        for key, kind in spaces.items():
            for value in getattr(kind, "choices", None) or (kind.low, kind.high):
                compose("config", overrides=[f"sweep={name}", f"{key}={value}"])


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return trials_at(f"sqlite:///{folder / 'study.db'}")


def trials_at(url: str) -> list[optuna.trial.FrozenTrial]:
    with storage_at(url) as storage:
        [name] = optuna.get_all_study_names(storage)
        return optuna.load_study(study_name=name, storage=storage).get_trials()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_sweep_and_its_continuation(
    train: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = [*TOY, "sweep=optuna", "sweep.sampler=grid", "optimizer.lr=1e-3,1e-2,1e30,-1", "optimizer.name=sgd",
              "trainer.gradient_clip_val=null", "task.batch_size=32", "sweep.pruner=none"]  # fmt: skip
    with pytest.raises(SystemExit) as ended:  # one of the learning rates is refused
        train(*search, "sweep.n_trials=9")
    assert ended.value.code == 1
    [folder] = (here / "sweeps").iterdir()
    found = {trial.params["optimizer.lr"]: trial for trial in trials(folder)}
    assert len(found) == 4  # the grid's size, fewer than n_trials
    assert {lr: trial.state.name for lr, trial in found.items()} == {
        "0.001": "COMPLETE", "0.01": "COMPLETE", "1e+30": "PRUNED", "-1": "FAIL",
    }  # fmt: skip
    assert "diverged" in found["1e+30"].user_attrs[ERROR] and "optimizer.lr=-1" in found["-1"].user_attrs[ERROR]
    for lr in ("0.001", "0.01"):
        run = Path(found[lr].user_attrs[FOLDER])
        assert run == folder / str(found[lr].number)
        with (run / "metrics.csv").open() as file:
            losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
        assert found[lr].value == pytest.approx(min(losses))
    said = capsys.readouterr().out
    best = min((found["0.001"], found["0.01"]), key=lambda trial: trial.value or 0.0)
    assert f"best trial: {best.number}, val/loss {best.value:.4g}, in {best.user_attrs[FOLDER]}" in said
    [command] = [line for line in said.splitlines() if line.startswith("as a run: ")]
    assert "sweep" not in command and f"optimizer.lr={best.params['optimizer.lr']}" in command
    assert (folder / "study.png").stat().st_size > 10_000 and (folder / "results.html").is_file()

    again = train(*command.removeprefix("as a run: rnnzoo train ").split())
    with (again / "metrics.csv").open() as file:
        assert min(float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]) == pytest.approx(
            best.value
        )

    train(*search, "sweep.n_trials=9")  # nothing is left to do
    assert len(trials(folder)) == 4 and "4 of 4 trials there" in capsys.readouterr().out


def test_bad_trials_are_pruned(train: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(*TOY, "sweep=optuna", "sweep.n_trials=7", "sweep.sampler=random", "trainer.max_epochs=2",
          "model.hidden_size=4,8", "sweep.study=mine", "optimizer.lr=choice(1e-2)")  # fmt: skip
    found = trials(here / "sweeps" / "mine")
    pruned = [trial for trial in found if trial.state == TrialState.PRUNED]
    assert len(found) == 7
    # the median pruner compares with the five that it has let pass
    for trial in found[5:]:
        earlier = [
            other.intermediate_values[1] for other in found[: trial.number] if other.state == TrialState.COMPLETE
        ]
        middle = sorted(earlier)[len(earlier) // 2]
        assert (trial in pruned) == (trial.intermediate_values[1] > middle) or len(earlier) % 2 == 0
        assert (here / "sweeps" / "mine" / str(trial.number) / "summary.json").exists() == (trial not in pruned)
    with pytest.raises(SystemExit):
        train(*TOY, "sweep=optuna", "model.hidden_size=4,9", "sweep.study=mine")
    assert "sweep.study=mine: is a study of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("", "sweep: nothing to search"),
        ("seed=1,2 sweep.n_trials=0", "sweep.n_trials=0: should be greater than 0"),
        ("seed=1,2 sweep.n_trial=3", "sweep.n_trial: no such key; did you mean n_trials"),
        ("seed=1,2 sweep.pruner=cut", "sweep.pruner=cut: should be 'none', 'median'"),
        ("seed=1,2 sweep.n_jobs=2", "sweep.n_jobs=2: needs processes to run in; say hydra/launcher=joblib"),
        ("task=sine,imdb", "task=sine,imdb: losses of different tasks cannot be compared"),
        ("model=gru,gruu", "model=gruu: no such model"),
        ("seed=interval(1,2) sweep.sampler=grid", "seed: sweep.sampler=grid needs values that can be counted"),
        ("seed=1,2 sweep.storage=nonsense", "sweep.storage=nonsense: Could not parse"),
        ("sweep=foo", "sweep=foo: no such sweep; known: "),
    ],
)
def test_bad_sweeps_in_one_line(
    train: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str], arguments: str, problem: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        train(*TOY, "sweep=optuna", *arguments.split())
    assert ended.value.code == 1
    assert capsys.readouterr().err.strip().startswith(f"error: {problem}")


def test_a_killed_process_of_joblib_is_one_line(
    train: Callable[..., Path], here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(*arguments: Any) -> None:
        raise TerminatedWorkerError("A worker process was killed\nby the operating system")

    def sweep(self: Combinations, arguments: list[str], real: Any = Combinations.sweep) -> Any:
        self.hydras.sweep = killed
        return real(self, arguments)

    monkeypatch.setattr(Combinations, "sweep", sweep)
    with pytest.raises(SystemExit) as ended:
        train("-m", *TOY, "seed=1,2", f"hydra.sweep.dir={here}")
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {here}: a process of the sweep was killed") and said.count("\n") == 1


def test_no_folder_is_written_over(train: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "sweeps" / "mine" / "0").mkdir(parents=True)
    with pytest.raises(SystemExit):
        train(*TOY, "sweep=optuna", "seed=1,2", "sweep.study=mine")
    assert capsys.readouterr().err.endswith("sweeps/mine/0 is there, but its study is not; move it away\n")


MY_CELL = """
from torch import Tensor, tanh

from rnnzoo import Cell, gate, register


@register("mine", source="here")
class Mine(Cell):
    \"\"\"A cell of one's own.\"\"\"

    W, U, b = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return tanh(x @ self.W + h @ self.U + self.b)
"""


@pytest.mark.slow
def test_workers_of_joblib_know_my_cells_and_say_what_is_wrong(command: Command, here: Path) -> None:
    (here / "mine.py").write_text(MY_CELL)
    own = ["cells=mine.py", "model=mine", "model.hidden_size=4,-1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = command(str(ROOT / "train.py"), "-m", *TOY, *own, "hydra.sweep.dir=many", cwd=here)
    assert done.returncode == 1
    refused = "error: model.hidden_size must be a positive integer, or a list of one a layer, not -1"
    assert done.stderr.splitlines()[-1] == refused
    assert (here / "many" / "0" / "summary.json").is_file() and not (here / "many" / "1").exists()


@pytest.mark.slow
def test_jobs_of_submitit_know_my_cells(command: Command, here: Path) -> None:
    (here / "mine.py").write_text(MY_CELL)
    own = ["cells=mine.py", "model=mine", "seed=1,2", "sweep=optuna", "sweep.study=s", "sweep.sampler=grid"]
    done = command(str(ROOT / "train.py"), *TOY, *own, "sweep.n_jobs=2", "hydra/launcher=submitit_local", cwd=here)
    assert done.returncode == 0, done.stderr
    assert [trial.state for trial in trials(here / "sweeps" / "s")] == [TrialState.COMPLETE] * 2


def below(process: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [pid for child in map(int, children) for pid in (child, *below(child))]


def training(folder: Path) -> bool:
    """Whether a trial has written its checkpoint a moment ago and has not ended."""
    latest = [
        path for path in folder.glob("*/checkpoints/last.ckpt") if not (path.parents[1] / "summary.json").exists()
    ]
    return any(time.time() - path.stat().st_mtime < 0.5 for path in latest)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="kills processes that only Linux lists")
def test_kill_minus_nine_loses_nothing_and_repeats_nothing(here: Path) -> None:
    """RNNZOO_KILLS says how often, each time while a trial trains; in the end as many count as if there were none."""
    kills, chance = int(os.environ.get("RNNZOO_KILLS", "1")), random.Random(1)
    n_trials = 2 + 2 * kills
    arguments = [*TOY, "sweep=optuna", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "sweep.sampler=random",
                 "sweep.pruner=none", f"sweep.n_trials={n_trials}", "sweep.study=s", "sweep.dead_after=6",
                 "sweep.attempts=100", "hydra/launcher=joblib", "sweep.n_jobs=2", "trainer.max_epochs=9",
                 "hydra.launcher.n_jobs=2"]  # fmt: skip
    folder = here / "sweeps" / "s"

    def start() -> subprocess.Popen[bytes]:
        with (here / "log").open("ab") as log:
            return subprocess.Popen([sys.executable, str(ROOT / "train.py"), *arguments], stdout=log, stderr=log)

    sweep = start()
    for _ in range(kills):
        while not training(folder) and sweep.poll() is None:
            time.sleep(0.05)
        time.sleep(chance.random() / 2)
        workers = below(sweep.pid)
        victim = chance.choice([sweep.pid, *workers])
        os.kill(victim, signal.SIGKILL)
        if victim == sweep.pid and chance.random() < 0.5:  # else those orphaned run on beside their successors
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
        if victim == sweep.pid or sweep.poll() is not None:
            sweep.wait()
            sweep = start()
    assert sweep.wait(300 + 60 * kills) == 0, (here / "log").read_text()[-3000:]

    found = trials(folder)
    given_up = [trial for trial in found if trial.state == TrialState.FAIL]
    complete = [trial for trial in found if trial.state == TrialState.COMPLETE]
    assert len(complete) == n_trials and len(found) == len(complete) + len(given_up)
    proposed = {trial.params["optimizer.lr"] for trial in found if trial.params}
    assert {trial.params["optimizer.lr"] for trial in complete} == proposed and len(proposed) == n_trials
    assert sorted(t.user_attrs[REPEATS] for t in found if REPEATS in t.user_attrs) == [
        t.number for t in given_up if t.params
    ]
    finished = {path.parent.name for path in folder.glob("*/summary.json")}
    assert finished == {str(trial.number) for trial in complete}


@pytest.fixture
def postgres() -> Iterator[str]:
    """The URL of a server that is there for this test only, and listens on a socket in a folder of its own."""
    found = shutil.which("initdb") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    if found is None:
        pytest.skip("no PostgreSQL server is installed (Debian's package postgresql)")
    pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp())
    as_user = []
    if os.geteuid() == 0:  # it refuses to run as root
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]

    def run(program: str, *arguments: str) -> None:
        path = str(Path(found).with_name(program))
        subprocess.run(
            [*as_user, path, "-D", str(folder / "data"), *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )

    try:
        run("initdb", "--auth=trust", "--username=me", "--no-sync")
        run("pg_ctl", "start", "-w", "-l", str(folder / "log"), "-o", f"-k {folder} -h ''")
        yield f"postgresql://me@/postgres?host={folder}"
    finally:
        run("pg_ctl", "stop", "-m", "immediate")
        shutil.rmtree(folder)


@pytest.mark.slow
def test_two_machines_share_a_study_over_postgresql(python: list[str], here: Path, postgres: str) -> None:
    arguments = [*TOY, "sweep=optuna", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "sweep.sampler=random",
                 "sweep.n_trials=6", f"sweep.storage='{postgres}'"]  # fmt: skip
    machines = [here / "one", here / "two"]
    for machine in machines:
        machine.mkdir()
    sweeps = [
        subprocess.Popen([*python, str(ROOT / "train.py"), *arguments], cwd=machine, stdout=subprocess.PIPE, text=True)
        for machine in machines
    ]
    said = [sweep.communicate()[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0]
    found = trials_at(postgres)
    ended = [trial for trial in found if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(ended) == 6 == len({trial.params["optimizer.lr"] for trial in ended})
    runs = [path.parent for machine in machines for path in machine.glob("sweeps/*/*/.hydra")]
    assert sorted(int(run.name) for run in runs) == sorted(trial.number for trial in ended)
    assert all(list(machine.glob("sweeps/*/*/.hydra")) for machine in machines)  # both have had a share
    assert all(f"best trial: {min(ended, key=lambda t: t.value or 0).number}," in text for text in said)


@pytest.mark.parametrize(
    "search", [["task=char_lm", "task.restart=0.1,0.2"], ["model=indrnn", "model.nonlinearity=relu,tanh"]]
)
def test_keys_that_only_the_chosen_task_or_cell_has(
    search: list[str], train: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are composed: a budget that is refused only afterwards shows it."""
    with pytest.raises(SystemExit):
        train("sweep=optuna", *search, "hardware=cpu", "sweep.storage=nonsense")
    assert "sweep.storage=nonsense: Could not parse" in capsys.readouterr().err
    key = search[1].partition("=")[0]
    with pytest.raises(SystemExit):
        train("sweep=optuna", f"{search[0]}", f"{key}x=1,2", "hardware=cpu")
    assert f"{key}x: no such key" in capsys.readouterr().err


def test_values_that_do_not_go_together_are_refused_at_once(
    train: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """gru has no nonlinearity to choose: no trial has to be begun to see it."""
    toy = [argument for argument in TOY if not argument.startswith("model=")]
    search = ["model=indrnn,gru", "+model.nonlinearity=relu"]
    with pytest.raises(SystemExit):
        train(*toy, "sweep=optuna", "sweep.study=s", "sweep.sampler=grid", *search)
    assert "nonlinearity" in capsys.readouterr().err


FALLIBLE = MY_CELL.replace("mine", "fallible").replace(
    "        return", "        1 / (self.hidden_size - 4)\n        return"
)


@pytest.mark.parametrize("sweep", [["sweep=optuna", "sweep.study=s", "sweep.sampler=grid"], ["-m"]])
def test_a_job_that_raises_fails_alone(
    sweep: list[str], train: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "fallible.py").write_text(FALLIBLE)
    line = FALLIBLE.splitlines().index("        1 / (self.hidden_size - 4)") + 1
    toy = [argument for argument in TOY if not argument.startswith("model")]
    with pytest.raises(SystemExit) as end:
        train(*sweep, *toy, "cells=fallible.py", "model=fallible", "model.hidden_size=4,5", "hydra.sweep.dir=many")
    error = capsys.readouterr().err
    assert end.value.code == 1 and error.count("\n") == 1
    assert f"{here / 'fallible.py'} line {line}: ZeroDivisionError: " in error
    assert len(list(here.glob("many/*/summary.json"))) == 1
    if "-m" not in sweep:
        found = {trial.params["model.hidden_size"]: trial for trial in trials(here / "many")}
        assert {key: trial.state for key, trial in found.items()} == {"4": TrialState.FAIL, "5": TrialState.COMPLETE}
        assert "ZeroDivisionError" in found["4"].user_attrs[ERROR]


def test_a_database_that_is_read_only(
    train: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with storage_at(f"sqlite:///{here / 'study.db'}"):
        pass
    url = f"sqlite:///file:{here / 'study.db'}?mode=ro&uri=true"
    with pytest.raises(SystemExit) as end:
        train(*TOY, "sweep=optuna", "seed=1,2", f"sweep.storage='{url}'")
    error = capsys.readouterr().err
    assert end.value.code == 1 and error == f"error: sweep.storage={url}: attempt to write a readonly database\n"


def test_the_password_of_a_database_is_in_no_file_and_no_line(
    train: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///file:{here / 'study.db'}?uri=true&password=sesame"
    train(*TOY, "sweep=optuna", "seed=1,2", "sweep.n_trials=2", "sweep.study=s", f"sweep.storage='{url}'")
    assert len(list(here.glob("sweeps/s/*/summary.json"))) == 2
    said = capsys.readouterr()
    assert "sesame" not in said.out + said.err
    assert not [path for path in here.rglob("*") if path.is_file() and b"sesame" in path.read_bytes()]
    for wrong in ("nodb://me:sesame@host/x", "sqlite+nodb://me:ses@me@host/x?sslpassword=sesame"):
        with pytest.raises(SystemExit):
            train(*TOY, "sweep=optuna", "seed=1,2", f"sweep.storage='{wrong}'")
        error = capsys.readouterr().err
        assert "ses" not in error and "***" in error and error.count("\n") == 1
