"""A run that was killed goes on and ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import small
import torch

from rnnzoo import UserError, get
from rnnzoo.lightning.checkpoints import AtomicCheckpointIO
from rnnzoo.lightning.records import MetricsCSV

CELL = """
import os, signal
from pathlib import Path
import torch
from rnnzoo import Cell, gate, register

MARK = Path(__file__).with_suffix(".killed")
calls = -6  # of which the rehearsal makes six

@register("mortal{suffix}")
class Mortal(Cell):
    W, U, b = gate()

    def step(self, x, h):
        global calls
        calls += self.training
        if calls == {at} and not MARK.exists():
            MARK.touch()
            {end}
        return torch.tanh(x @ self.W + h @ self.U + self.b)
"""

SINE = (*small.SINE, "trainer.max_epochs=3", "checkpoint.every_n_steps=2", "optimizer=adamw")
STEPS_A_CALL = 3
TEXT = (
    "hardware=cpu", "task=char_lm", "task.corpus=hello", "task.window=5", "task.streams=4", "task.sample_length=3",
    "task.embedding=3", "task.restart=0.2", "task.dropout=0.5", "model.hidden_size=4", "trainer.max_epochs=2",
    "checkpoint.every_n_steps=3", "trainer.limit_train_batches=7",
)  # fmt: skip


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    state: dict[str, torch.Tensor] = checkpoint["state_dict"]
    return state


def same(left: Path, right: Path) -> bool:
    ours, theirs = final_weights(left), final_weights(right)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def losses(folder: Path) -> dict[str, str]:
    """Each row's training loss, by step."""
    return {row["step"]: row["train/loss"] for row in metrics(folder)}


def restart(name: str, cells: Path) -> None:
    """Let the cell count from zero and kill again."""
    sys.modules[get(name).__module__].calls = -6  # type: ignore[attr-defined]
    cells.with_suffix(".killed").unlink()


@pytest.mark.parametrize("at", [4, 7, 8, 9, 10, 12, 14, 15])
def test_resumed_equals_uninterrupted(at: int, tmp_path: Path, train: Callable[..., Path]) -> None:
    """Sine: five batches an epoch, killed in the `at`-th batch, once past each kind of checkpoint."""
    cells = tmp_path / "mortal.py"
    end = "raise RuntimeError('killed')"
    cells.write_text(CELL.format(suffix=f"_{at}", at=(at - 1) * STEPS_A_CALL + 1, end=end))
    cells.with_suffix(".killed").touch()
    whole = train(*SINE, f"cells={cells}", f"model=mortal_{at}")

    restart(f"mortal_{at}", cells)
    folder = tmp_path / "broken"
    with pytest.raises(SystemExit):
        train(*SINE, f"cells={cells}", f"model=mortal_{at}", f"hydra.run.dir={folder}")
    assert train(f"resume={folder}", f"cells={cells}") == folder
    assert same(whole, folder)
    assert losses(whole) == losses(folder)
    assert (folder / "summary.json").is_file()


@pytest.mark.parametrize("at", [4, 5, 7, 9, 12])
def test_carried_state_and_dropout_come_back(at: int, tmp_path: Path, train: Callable[..., Path]) -> None:
    """Language model: a carried state, random restarts and dropout, killed in the `at`-th batch of 14."""
    name = f"mortal_text_{at}"
    cells = tmp_path / "mortal.py"
    # a window of five characters, then three validation windows, two characters of sample before it
    cells.write_text(CELL.format(suffix=f"_text_{at}", at=(at - 1) * 5 + 1, end="raise RuntimeError('killed')"))
    cells.with_suffix(".killed").touch()
    whole = train(*TEXT, f"cells={cells}", f"model={name}")
    restart(name, cells)
    folder = tmp_path / "broken"
    with pytest.raises(SystemExit):
        train(*TEXT, f"cells={cells}", f"model={name}", f"hydra.run.dir={folder}")
    train(f"resume={folder}", f"cells={cells}")
    assert same(whole, folder)
    assert losses(whole) == losses(folder)


@pytest.mark.parametrize(("name", "count"), [("step/loss", 2), ("train/loss", 1), ("train/loss", 3)])
def test_what_a_checkpoint_has_passed_is_in_the_metrics(
    name: str, count: int, tmp_path: Path, train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it logs what belongs to a checkpoint, a run logs the same when it goes on."""
    logged, log = 0, MetricsCSV.log_metrics

    def killed(self: MetricsCSV, metrics: dict[str, float], step: int | None = None) -> None:
        nonlocal logged
        logged += name in metrics
        if name in metrics and logged == count:
            raise RuntimeError("killed")
        log(self, metrics, step)

    monkeypatch.setattr(MetricsCSV, "log_metrics", killed)
    arguments, folder = (*SINE, "model=rnn", "trainer.log_every_n_steps=1"), tmp_path / "broken"
    with pytest.raises(RuntimeError, match="killed"):
        train(*arguments, f"hydra.run.dir={folder}")
    whole = train(*arguments)
    begun = (folder / "checkpoints" / "last.ckpt").is_file()  # else it begins anew, in the same folder
    train(*([f"resume={folder}"] if begun else [*arguments, f"hydra.run.dir={folder}"]))
    assert same(whole, folder)
    assert (whole / "metrics.csv").read_bytes() == (folder / "metrics.csv").read_bytes()


@pytest.mark.slow
def test_kill_minus_nine(tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """The real thing: SIGKILL in the middle of a step, then another process goes on."""
    cells = tmp_path / "mortal.py"
    cells.write_text(CELL.format(suffix="", at=25, end="os.kill(os.getpid(), signal.SIGKILL)"))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = ["train.py", *SINE, f"cells={cells}", "model=mortal"]
    assert command(*arguments, f"hydra.run.dir={broken}").returncode == -signal.SIGKILL
    assert command(*arguments, f"hydra.run.dir={whole}").returncode == 0
    resumed = command("train.py", f"resume={broken}", f"cells={cells}")
    assert resumed.returncode == 0, resumed.stderr
    assert same(whole, broken)


def test_a_longer_training_goes_on_from_a_finished_one(tmp_path: Path, train: Callable[..., Path]) -> None:
    constant = "optimizer.schedule=constant"
    whole = train(*SINE, constant, "model=rnn")
    short = train(*SINE, constant, "model=rnn", "trainer.max_epochs=2")
    train(f"resume={short}", "trainer.max_epochs=3")
    assert same(whole, short)


def test_same_seed_same_metrics(train: Callable[..., Path]) -> None:
    first, second = train(*SINE, "model=gru"), train(*SINE, "model=gru")
    assert (first / "metrics.csv").read_text() == (second / "metrics.csv").read_text()
    assert same(first, second)


def test_missing_or_damaged_checkpoints_are_errors(
    tmp_path: Path, train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train(f"resume={tmp_path / 'nowhere'}")
    assert "nothing to resume" in capsys.readouterr().err

    folder = train(*SINE, "model=rnn", "trainer.max_epochs=1")
    last = folder / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    metrics_before = (folder / "metrics.csv").read_text()
    for damaged in (before[: len(before) // 2], b"", before[:100] + b"x" * 50 + before[150:]):
        last.write_bytes(damaged)
        with pytest.raises(SystemExit):
            train(f"resume={folder}", "trainer.max_epochs=2")
        error = capsys.readouterr().err.strip()
        assert error.startswith("error:") and "last.ckpt" in error and "\n" not in error
        assert last.read_bytes() == damaged
        assert (folder / "metrics.csv").read_text() == metrics_before


def test_a_checkpoint_cut_off_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens before the last moment of writing, the file of that name stays whole."""
    path = tmp_path / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, path)

    def interrupted(checkpoint: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(UserError, match=r"cannot write .*last.ckpt: .*No space left"):
        io.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_a_finished_schedule_is_stretched(schedule: str, tmp_path: Path, train: Callable[..., Path]) -> None:
    """Two epochs, then up to four: the rate goes on as one that falls to zero at the new end, not at zero."""
    sine = ("task=sine", "task.samples=40", "task.batch_size=20", "model.hidden_size=2", "hardware=cpu",
            "trainer.log_every_n_steps=1", "optimizer.lr=0.1", f"optimizer.schedule={schedule}")  # fmt: skip
    folder = train(*sine, "trainer.max_epochs=2")
    train(f"resume={folder}", "trainer.max_epochs=4")
    with (folder / "metrics.csv").open(newline="") as file:
        rates = [float(row["step/lr"]) for row in csv.DictReader(file) if row["step/lr"]]
    expected = [0.1] * 8 if schedule == "constant" else [0.1, 0.075, 0.05, 0.025, 0.05, 0.0375, 0.025, 0.0125]
    assert rates == pytest.approx(expected)
