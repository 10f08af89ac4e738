"""SIGTERM and SIGUSR1 end a run so that it can go on, bit for bit; a bad job of a sweep ends only itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_resume import SINE, TEXT, metrics, same

from rnnzoo.hydra.command_line import requeued
from rnnzoo.lightning.preempt import EXIT_CODE, INTERRUPTED, ONE_SIGNAL, SIGNALS, Watch, heeding_signals, watch

CELL = """
import os, signal, time
from pathlib import Path
import torch
from rnnzoo import Cell, gate, register

MARK = Path(__file__).with_suffix(".signalled")
calls = {{True: -6, False: 0}}  # of which the rehearsal makes six

def signalled(*signals, pause=0):
    if not MARK.exists():
        MARK.touch()
        for one in signals:
            os.kill(os.getpid(), one)
            time.sleep(pause)

@register("{name}")
class Signalled(Cell):
    W, U, b = gate()

    def step(self, x, h):
        calls[self.training] += 1
        {act}
        return torch.tanh(x @ self.W + h @ self.U + self.b)
"""
BATCH = 3
"""Calls of `step` in a training batch, five of which are an epoch."""

LOGGED = "trainer.log_every_n_steps=1"


def steps_taken(folder: Path) -> int:
    """The step of a run's last.ckpt."""
    steps: int = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    return steps


Command = Callable[..., "subprocess.CompletedProcess[str]"]
Train = Callable[..., Path]

REHEARSED = 4
"""Steps in evaluation that a cell of one's own is tried in before it is trained."""


def cell(folder: Path, act: str) -> list[str]:
    """Arguments that train a cell which runs `act` at every step."""
    path = folder / "signalled.py"
    name = folder.name.translate({ord(c): "_" for c in "[]-."})
    path.write_text(CELL.format(name=name, act=act))
    return [*SINE, LOGGED, f"cells={path}", f"model={name}"]


def told(code: object, stderr: str, *words: str) -> None:
    """The process ended with the code of its own, or as Ctrl-C has it, and one line with `words`."""
    assert code == (INTERRUPTED if stderr.startswith("interrupted") else EXIT_CODE), stderr
    assert stderr.count("\n") == 1 and all(word in stderr for word in words), stderr


@pytest.fixture
def ended(train: Train, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """`ended(...)` runs train.py in this process, which a signal ends, and returns what it says."""
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end, heeding_signals():
            train(*arguments)
        said = capsys.readouterr().err
        told(end.value.code, said)
        vars(watch).update(vars(Watch()))
        return said

    yield run
    vars(watch).update(vars(Watch()))
    for number, handler in before.items():
        signal.signal(number, handler)


def equal(left: Path, right: Path) -> None:
    """Both runs have the same weights, the same metrics at the same steps, and ended."""
    assert same(left, right)
    ours, theirs = ([{k: v and float(v) for k, v in row.items()} for row in metrics(run)] for run in (left, right))
    assert ours == theirs
    assert all((run / "summary.json").is_file() for run in (left, right))


@pytest.mark.parametrize(
    ("number", "moment", "steps"),
    [
        ("SIGUSR1", f"calls[True] == {7 * BATCH + 1}", 8),  # in the eighth batch, after which no checkpoint is due
        ("SIGTERM", f"calls[True] == {9 * BATCH + 1}", 10),  # in an epoch's last
        ("SIGUSR1", f"calls[True] == {5 * BATCH} and not self.training", 5),
        ("SIGTERM", f"calls[False] > {3 * BATCH + REHEARSED}", 15),
        ("SIGINT", f"calls[True] == {7 * BATCH + 1}", 8),
    ],
    ids=["batch", "last batch", "validation", "test", "Ctrl-C"],
)
def test_goes_on_as_if_nothing_had_happened(
    number: str, moment: str, steps: int, tmp_path: Path, ended: Callable[..., str], train: Train
) -> None:
    arguments = cell(tmp_path, f"if {moment}: signalled(signal.{number})")
    broken = tmp_path / "broken"
    said = ended(*arguments, f"hydra.run.dir={broken}")
    assert (
        "interrupted" if number == "SIGINT" else number
    ) in said and f"resume={broken} cells={tmp_path / 'signalled.py'}" in said
    assert not list(broken.rglob("*.partial"))
    assert not (broken / "summary.json").exists()
    assert steps_taken(broken) == steps
    train(f"resume={broken}", f"cells={tmp_path / 'signalled.py'}")
    equal(train(*arguments), broken)


def test_validation_begins_anew(tmp_path: Path, ended: Callable[..., str], train: Train) -> None:
    """A language model's, in its second batch of five time steps; its state goes on from the last batch of training."""
    act = f"if calls[False] == {REHEARSED + 7}: signalled(signal.SIGTERM)"
    arguments, broken = [*TEXT, LOGGED, *cell(tmp_path, act)[-2:]], tmp_path / "broken"
    ended(*arguments, f"hydra.run.dir={broken}")
    assert steps_taken(broken) == 7 and not (broken / "checkpoints" / "best.ckpt").exists()
    train(f"resume={broken}", f"cells={tmp_path / 'signalled.py'}")
    whole = train(*arguments)
    equal(whole, broken)
    assert [path.read_text() for path in sorted((whole / "samples").iterdir())] == [
        path.read_text() for path in sorted((broken / "samples").iterdir())
    ]


def test_gradients_that_were_being_gathered_are_not_lost(
    tmp_path: Path, ended: Callable[..., str], train: Train
) -> None:
    """Neither by a signal nor by a checkpoint that is due: both wait for the step."""
    act = f"if calls[True] == {2 * BATCH + 1}: signalled(signal.SIGTERM)"
    arguments = [*cell(tmp_path, act), "trainer.accumulate_grad_batches=2", "checkpoint.every_n_steps=1"]
    broken = tmp_path / "broken"
    ended(*arguments, f"hydra.run.dir={broken}")
    assert steps_taken(broken) == 2
    train(f"resume={broken}", f"cells={tmp_path / 'signalled.py'}")
    equal(train(*arguments), broken)


def test_before_the_first_checkpoint_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: Callable[..., str]
) -> None:
    before = tmp_path / "before" / "checkpoints" / "last.ckpt"  # of a job before in the same process
    before.parent.mkdir(parents=True)
    before.touch()
    monkeypatch.setattr("rnnzoo.lightning.preempt.watch.last", before)
    monkeypatch.setattr("pytorch_lightning.seed_everything", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    assert "same command again" in ended(*SINE, f"hydra.run.dir={tmp_path / 'early'}")
    assert not (tmp_path / "early").exists()


@pytest.mark.slow
def test_a_process_ends_and_its_requeued_job_goes_on(
    tmp_path: Path, command: Command, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SLURM has it: two signals for one preemption, then the same command once more and a variable that says so."""
    act = f"if calls[True] == {7 * BATCH + 1}: signalled(signal.SIGUSR1, signal.SIGTERM)"
    arguments, folder = cell(tmp_path, act), tmp_path / "run"
    for name, value in {"JOB_ID": "1234", "JOB_NAME": "train", "NTASKS": "1", "RESTART_COUNT": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)  # enough for Lightning to requeue jobs by itself, which it must not
    for name in ("PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    done = command("train.py", *requeued([*arguments, f"hydra.run.dir={folder}"]))
    told(done.returncode, done.stderr, "SIGUSR1", f"resume={folder}")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    train(*requeued([*arguments, f"hydra.run.dir={folder}"]))
    equal(train(*arguments), folder)


def test_only_a_requeued_job_that_left_a_checkpoint_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["model=gru", f"hydra.run.dir='{tmp_path}'"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert requeued(command) == command
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert requeued(command) == [f"resume='{tmp_path}'"]
    assert requeued([*command, "cells=own.py"]) == [f"resume='{tmp_path}'", "cells=own.py"]
    assert requeued(["resume=elsewhere", *command]) == ["resume=elsewhere", *command]
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    assert requeued(command) == command


@pytest.mark.slow
def test_a_sweep_ends_too_and_within_ten_seconds(tmp_path: Path) -> None:
    """A signal from outside, once the first epoch has been reported."""
    endless = ["trainer.max_epochs=100000", "engine=reference"]  # which lets a step count its calls
    arguments = [*cell(tmp_path, ""), *endless, f"hydra.sweep.dir={tmp_path}", "seed=1,2", "-m"]
    process = subprocess.Popen(
        [sys.executable, "train.py", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert any(line.startswith("epoch 1/") for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - start < 10
    told(process.returncode, said, "SIGTERM", f"resume={tmp_path / '0'}")
    assert (tmp_path / "0" / "checkpoints" / "last.ckpt").is_file() and not (tmp_path / "1").exists()


@pytest.mark.parametrize("seconds", [0.0, 1.0, 2.5])
def test_ctrl_c_while_it_starts(seconds: float, tmp_path: Path) -> None:
    """Torch is being read, or the data: one line, and nothing is left."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *SINE, "trainer.max_epochs=100000"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline().startswith("task sine, model gru")
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert said.startswith("interrupted; ") and said.count("\n") == 1
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow
def test_a_second_signal_ends_at_once(tmp_path: Path, command: Command) -> None:
    act = f"if calls[True] == {7 * BATCH + 1}: signalled(signal.SIGTERM, signal.SIGTERM, pause={ONE_SIGNAL + 0.2})"
    arguments, folder = cell(tmp_path, act), tmp_path / "run"
    done = command("train.py", *arguments, f"hydra.run.dir={folder}")
    assert (done.returncode, done.stderr) == (EXIT_CODE, "")
    assert steps_taken(folder) == 7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "moment", "steps", "loss"),
    [
        (SINE, f"calls[True] > {2 * BATCH}", 3, "train/loss"),
        ((*TEXT, "task.dropout=0", "task.restart=0"), f"calls[False] == {REHEARSED + 7}", 7, "val/loss"),
    ],
    ids=["training", "validation"],
)
def test_two_processes_agree(
    base: tuple[str, ...], moment: str, steps: int, loss: str, tmp_path: Path, command: Command, train: Train
) -> None:
    """Only one receives the signal; both stop after the same step or before the same batch of validation, and one alone
    can go on with what both had seen."""
    act = f"if os.environ.get('LOCAL_RANK') == '1' and {moment}: signalled(signal.SIGTERM)"
    arguments = [*base, LOGGED, *cell(tmp_path, act)[-2:], "hardware=cpu_ddp", "checkpoint.every_n_steps=100"]
    folder = tmp_path / "run"
    done = command("train.py", *arguments, f"hydra.run.dir={folder}", timeout=100)
    told(done.returncode, done.stderr.splitlines(keepends=True)[-1], f"resume={folder}")
    assert steps_taken(folder) == steps and not (folder / "checkpoints" / "best.ckpt").exists()
    train(f"resume={folder}", f"cells={tmp_path / 'signalled.py'}", "hardware=cpu")
    whole = train(*arguments[:-2], "hardware=cpu")
    resumed, undisturbed = (next(row for row in metrics(run) if row[loss]) for run in (folder, whole))
    assert float(resumed[loss]) == pytest.approx(float(undisturbed[loss]), rel=1e-5)


def test_bad_jobs_of_a_sweep_end_only_themselves(
    tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = (f"hydra.sweep.dir={tmp_path}", "task.window=-1,3,0", "trainer.max_epochs=1")
    with pytest.raises(SystemExit) as end:
        train(*SINE, "-m", *sweep)  # where a person may put it
    assert end.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert ["task.window=-1" in lines[0], "task.window=0" in lines[1]] == [True, True] and len(lines) == 2
    assert (tmp_path / "1" / "summary.json").is_file()
    assert not (tmp_path / "0").exists() and not (tmp_path / "2").exists()
    train("-m", *SINE, f"hydra.sweep.dir={tmp_path / 'good'}", "trainer.max_epochs=1")


def test_a_refused_run_leaves_no_empty_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "other").mkdir(parents=True)
    with pytest.raises(SystemExit):
        train(*SINE, "task.window=-1", "hydra.run.dir=outputs/sine/gru/now")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["outputs", "outputs/other"]
