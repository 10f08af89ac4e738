"""What a run leaves and how it ends: metrics, summary, checkpoints, loggers, two processes, and failures."""

from __future__ import annotations

import csv
import json
import os
import pickle
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import small
import torch

from rnnzoo.lightning.checkpoints import read_checkpoint
from rnnzoo.lightning.records import MetricsCSV, plot_losses

ROOT = Path(__file__).parents[2]

# 40 windows in batches of 8 are five steps an epoch
SINE = (*small.SINE, "trainer.max_epochs=3")
TEXT = (*small.TEXT, "task.dropout=0", "task.restart=0")

# 43 windows in as many batches as 40, of 9, 9, 9, 8 and 8
UNEVEN = (*SINE, "task.samples=43", "task.batch_size=9")

FRAGILE = """
import torch
from rnnzoo import Cell, gate, register

calls = -6  # of which the rehearsal makes six

@register("fragile")
class Fragile(Cell):
    W, U, b = gate()

    def step(self, x, h):
        global calls
        calls += self.training
        h = torch.tanh(x @ self.W + h @ self.U + self.b)
        return h * float("nan") if calls > {at} else h
"""


@pytest.fixture
def refusal(train: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refusal(...)` runs train.py, which must end with exit code 1 and one line on stderr, which it returns."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            train(*arguments)
        error = capsys.readouterr().err
        assert end.value.code == 1
        assert error.startswith("error: ") and error.endswith("\n") and error.count("\n") == 1, error
        return error.strip()

    return run


def rows(folder: Path) -> list[dict[str, float]]:
    """metrics.csv, each row with what is in it."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def mean_over_windows(steps: list[dict[str, float]]) -> float:
    """The loss over the first batches of an epoch of `UNEVEN`: a window counts as much as any other."""
    windows = [9, 9, 9, 8, 8][: len(steps)]
    return sum(row["step/loss"] * n for row, n in zip(steps, windows)) / sum(windows)


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


# What is left


def test_metrics_csv(train: Callable[..., Path]) -> None:
    """Every step's loss, gradient norm and learning rate, and every epoch's means, agree with each other."""
    folder = train(*UNEVEN, "trainer.log_every_n_steps=1", "optimizer.lr=0.003", "optimizer.schedule=linear")
    found = rows(folder)
    assert [row["step"] for row in found] == sorted({row["step"] for row in found})
    steps = [row for row in found if "step/loss" in row]
    assert [row["step"] for row in steps] == list(range(15))
    assert [row["epoch"] for row in steps] == [0] * 5 + [1] * 5 + [2] * 5
    assert [row["step/lr"] for row in steps] == pytest.approx([0.003 * (1 - step / 15) for step in range(15)])
    assert all(row["step/grad_norm"] > 0 for row in steps)
    for name in ("train/loss", "val/loss", "val/mse", "val/mae", "val/r2"):
        assert [row["step"] for row in found if name in row] == [4, 9, 14]
    means = [row["train/loss"] for row in found if "train/loss" in row]
    assert means == pytest.approx([mean_over_windows(steps[first : first + 5]) for first in (0, 5, 10)], rel=1e-6)
    [tested] = [row for row in found if "test/loss" in row]
    assert {key: tested[key] for key in tested if key.startswith("test/")} == pytest.approx(
        {key: value for key, value in summary(folder)["metrics"].items() if key.startswith("test/")}
    )


def test_an_epoch_cut_short_has_a_loss_too(train: Callable[..., Path]) -> None:
    found = rows(train(*UNEVEN, "trainer.log_every_n_steps=1", "trainer.max_steps=9"))
    means = {row["step"]: row["train/loss"] for row in found if "train/loss" in row}
    steps = [row for row in found if "step/loss" in row]
    expected = {4: mean_over_windows(steps[:5]), 8: mean_over_windows(steps[5:])}
    assert means == pytest.approx(expected, rel=1e-6)


def test_steps_need_not_be_logged(train: Callable[..., Path]) -> None:
    """0 is Lightning's way to say never."""
    found = rows(train(*SINE, "trainer.log_every_n_steps=0"))
    assert not any(key.startswith("step/") for row in found for key in row)


def test_the_gradient_is_clipped_after_it_is_measured(train: Callable[..., Path]) -> None:
    """With plain SGD at rate 1 and a norm clipped to 1e-3, a step moves the weights by 1e-3 and no more."""
    sgd = ("optimizer=sgd", "optimizer.lr=1", "optimizer.momentum=0", "optimizer.schedule=constant")
    few = ("trainer.log_every_n_steps=1", "trainer.max_epochs=1", "trainer.limit_train_batches=1")
    unmoved = train(*SINE, *sgd, *few, "optimizer.lr=0")
    folder = train(*SINE, *sgd, *few, "trainer.gradient_clip_val=1e-3")
    before, after = (read_checkpoint(f / "checkpoints" / "last.ckpt")["state_dict"] for f in (unmoved, folder))
    weights = [key for key in before if key.startswith(("layer.", "head."))]
    distance = sum(float((after[key] - before[key]).double().square().sum()) for key in weights) ** 0.5
    assert distance == pytest.approx(1e-3, rel=1e-2)
    assert rows(folder)[0]["step/grad_norm"] == rows(unmoved)[0]["step/grad_norm"] > 1e-2


def test_metrics_are_taken_up_where_a_run_goes_on(tmp_path: Path) -> None:
    first = MetricsCSV(tmp_path)
    for step in range(5):
        first.log_metrics({"epoch": step // 2, "step/loss": 10.0 - step}, step)
    first.log_metrics({"val/loss": 0.5}, 3)
    first.save()

    again = MetricsCSV(tmp_path, 3)
    again.log_metrics({"epoch": 1, "step/loss": 70.0}, 3)
    again.save()
    assert rows(tmp_path) == [
        {"step": 0, "epoch": 0, "step/loss": 10},
        {"step": 1, "epoch": 0, "step/loss": 9},
        {"step": 2, "epoch": 1, "step/loss": 8},
        {"step": 3, "epoch": 1, "step/loss": 70},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]

    fresh = MetricsCSV(tmp_path)
    fresh.log_metrics({"step/loss": 1.0}, 0)
    fresh.save()
    assert rows(tmp_path) == [{"step": 0, "step/loss": 1}]


def test_the_best_epoch_is_chosen(tmp_path: Path) -> None:
    metrics = MetricsCSV(tmp_path)
    for step, (loss, accuracy) in enumerate([(0.5, 0.7), (0.3, 0.8), (0.4, 0.9)]):
        metrics.log_metrics({"val/loss": loss, "val/accuracy": accuracy, "train/loss": 1.0}, step)
    assert metrics.best("val/loss") == {"val/loss": 0.3, "val/accuracy": 0.8}
    assert metrics.best("val/accuracy") == {"val/loss": 0.4, "val/accuracy": 0.9}
    assert metrics.best("val/other") == {}


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 40])
def test_there_are_no_half_epochs(epochs: int, tmp_path: Path) -> None:
    metrics = MetricsCSV(tmp_path)
    for epoch in range(epochs):
        metrics.log_metrics({"epoch": epoch, "train/loss": 1.0, "val/loss": 2.0}, epoch)
    figure = plot_losses(metrics)
    assert figure is not None
    [axes] = figure.axes
    low, high = axes.get_xlim()
    marks = [mark for mark in axes.get_xticks() if low <= mark <= high]
    assert marks and all(mark == round(mark) for mark in marks)


def test_summary(train: Callable[..., Path]) -> None:
    folder = train(*SINE, "model=gru", "seed=7")
    found = summary(folder)
    assert (found["task"], found["model"], found["seed"]) == ("sine", "gru", 7)
    # three gates of W [1, 4], U [4, 4] and b [4], one more bias, and the head
    assert found["parameters"] == 3 * (4 + 16 + 4) + 4 + (4 + 1)
    assert (found["epochs"], found["steps"]) == (3, 15)
    assert found["versions"]["torch"] == torch.__version__
    assert set(found["versions"]) == {"rnnzoo", "torch", "lightning", "python"}
    assert found["seconds_training"] > 0 and found["steps_per_second"] > 0 and found["peak_memory_mib"] > 50
    assert (found["peak_gpu_memory_mib"] is None) == (not torch.cuda.is_available())
    assert f"{os.cpu_count()} cores" in found["machine"]
    assert {"commit", "seconds_validation", "seconds_per_epoch", "peak_gpu_memory_mib"} <= found.keys()
    losses = [row["val/loss"] for row in rows(folder) if "val/loss" in row]
    assert found["metrics"]["val/loss"] == pytest.approx(min(losses))
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert not list(folder.rglob("*.partial"))


def test_best_is_the_first_of_equals_and_last_is_last(train: Callable[..., Path]) -> None:
    """At rate 0 every epoch is as good as the first."""
    folder = train(*SINE, "optimizer.lr=0")
    assert read_checkpoint(folder / "checkpoints" / "best.ckpt")["global_step"] == 5
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 15


def test_only_testing_repeats_the_runs_metrics(train: Callable[..., Path]) -> None:
    folder = train(*SINE)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = train(*SINE, "test_only=true", f"ckpt={folder / 'checkpoints' / 'best.ckpt'}")
    first = summary(folder)["metrics"]
    expected = {key: value for key, value in first.items() if key.startswith(("test/", "baseline/"))}
    assert summary(again)["metrics"] == expected
    assert not (again / "plots" / "loss.png").exists()  # nothing was trained
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_all_combinations(tmp_path: Path, train: Callable[..., Path]) -> None:
    train("-m", "seed=1,2", *SINE, "trainer.max_epochs=1", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert [summary(tmp_path / "sweep" / number)["seed"] for number in ("0", "1")] == [1, 2]


# Checkpoints that do not fit


def test_a_checkpoint_of_something_else_is_refused(
    tmp_path: Path, train: Callable[..., Path], refusal: Callable[..., str]
) -> None:
    best = train(*SINE, "trainer.max_epochs=1") / "checkpoints" / "best.ckpt"
    evaluate = ("test_only=true", f"ckpt={best}")
    for other in ("model=lstm", "model.hidden_size=5", "model.num_layers=2", "task.step=0.3"):
        error = refusal(*SINE, other, *evaluate)
        assert str(best) in error and other.split("=")[1] in error
    assert str(best) in refusal("hardware=cpu", *TEXT, *evaluate)
    # what does not change what the weights mean may differ
    train(*SINE, "seed=5", "optimizer=sgd", "engine=reference", *evaluate)

    for content in (b"", b"not a checkpoint", pickle.dumps(print), best.read_bytes()[:-1000]):
        damaged = tmp_path / "damaged.ckpt"
        damaged.write_bytes(content)
        assert f"{damaged}: damaged or not a checkpoint" in refusal(*SINE, "test_only=true", f"ckpt={damaged}")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    assert "not a checkpoint" in refusal(*SINE, "test_only=true", f"ckpt={tmp_path / 'other.pt'}")
    assert "no such checkpoint" in refusal(*SINE, "test_only=true", f"ckpt={tmp_path / 'none.ckpt'}")


def test_a_checkpoint_cannot_run_code(tmp_path: Path, refusal: Callable[..., str]) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    torch.save({"state_dict": Bomb(), "hyper_parameters": {}, "global_step": 0}, tmp_path / "bomb.ckpt")
    assert "bomb.ckpt" in refusal(*SINE, "test_only=true", f"ckpt={tmp_path / 'bomb.ckpt'}")
    assert not (tmp_path / "exploded").exists()


# Ends


def test_not_a_number_ends_the_run_and_spares_the_checkpoints(tmp_path: Path, refusal: Callable[..., str]) -> None:
    """The second batch of the second epoch: three calls a batch, five batches an epoch."""
    cells, folder = tmp_path / "fragile.py", tmp_path / "run"
    cells.write_text(FRAGILE.format(at=15 + 3))
    error = refusal(
        *SINE, f"cells={cells}", "model=fragile", "optimizer.schedule=constant", "optimizer.lr=0.0123",
        f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert "diverged at step 6:" in error
    assert "loss nan" in error and "learning rate 0.0123" in error and "gradient norm nan" in error
    assert "lower optimizer.lr" in error
    for name in ("best", "last"):
        checkpoint = read_checkpoint(folder / "checkpoints" / f"{name}.ckpt")
        assert checkpoint["global_step"] == 5
        assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())
    assert [row["step"] for row in rows(folder) if "val/loss" in row] == [4]
    assert not (folder / "summary.json").exists()
    left = json.loads((folder / "diverged.json").read_text())
    assert (left["model"], left["seed"], left["steps"]) == ("fragile", 1, 6) and left["diverged"] in error


def test_a_run_that_diverged_can_go_on(tmp_path: Path, train: Callable[..., Path]) -> None:
    folder = train(*SINE, f"hydra.run.dir={tmp_path / 'run'}")
    (folder / "summary.json").unlink()
    (folder / "diverged.json").write_text("{}")  # of its fourth epoch
    train(f"resume={folder}", "trainer.max_epochs=4")
    assert (folder / "summary.json").exists() and not (folder / "diverged.json").exists()


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        ("task.window=100000000000000", ", 800000000000008 bytes at once"),  # steps, and one more, in float64
        ("task=adding task.T=100000000000000", ", 8000000000000000 bytes at once"),  # of 20 sequences in float32
        ("task.window=10000000000000000000", ""),
        ("model.hidden_size=100000000000000", ", 400000000000000 bytes at once"),  # a bias in float32
        ("model.num_layers=100000000000000", ""),
    ],
)
def test_sizes_that_no_machine_holds(argument: str, wanted: str, refusal: Callable[..., str]) -> None:
    """The largest is named first, with the others that were given and might be lower as well."""
    given = ["hardware=cpu", "task=sine", "task.samples=40", "model.hidden_size=4", *argument.split()]
    sizes = dict(text.split("=") for text in given if text.startswith(("task.", "model.")))
    lower = ", ".join(f"{key}={sizes[key]}" for key in sorted(sizes, key=lambda key: -int(sizes[key])))
    said = f"error: the sizes given need more memory than there is{wanted}; lower one of {lower}"
    assert refusal(*given) == said


def test_a_learning_rate_too_high_is_blamed(refusal: Callable[..., str]) -> None:
    error = refusal(*SINE, "optimizer.lr=1e30", "optimizer.schedule=constant")
    assert "diverged at step 1:" in error and "learning rate 1e+30" in error


@pytest.mark.parametrize("patience", [1, 3])
def test_early_stopping(patience: int, train: Callable[..., Path]) -> None:
    """At rate 0 no epoch is better than the first."""
    still = ("optimizer.lr=0", "trainer.max_epochs=9", f"early_stopping.patience={patience}")
    found = summary(train(*SINE, *still))
    assert (found["epochs"], found["steps"]) == (1 + patience, 5 * (1 + patience))


def test_no_early_stopping_unless_asked(train: Callable[..., Path]) -> None:
    assert summary(train(*SINE, "optimizer.lr=0", "trainer.max_epochs=4"))["epochs"] == 4


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """As on a full disk: what would be written beyond `size` bytes of a file is an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path, refusal: Callable[..., str]) -> None:
    folder = tmp_path / "run"
    with files_no_larger_than(40_000):
        error = refusal(*SINE, "model.hidden_size=64", f"hydra.run.dir={folder}")
    assert "cannot write" in error and str(folder / "checkpoints") in error
    assert "too large" in error.lower() or "PytorchStreamWriter" not in error
    assert not list(folder.rglob("*.partial"))


def test_a_plot_that_cannot_be_written(tmp_path: Path, train: Callable[..., Path]) -> None:
    folder = tmp_path / "run"
    with files_no_larger_than(18_000), pytest.warns(UserWarning, match="could not be drawn") as said:
        train(*SINE, "model.hidden_size=1", "model=rnn", "optimizer=sgd", f"hydra.run.dir={folder}")
    assert [str(w.message).partition(" ")[0] for w in said] == [
        str(folder / "plots" / name) for name in ("closed_loop.png", "loss.png")
    ]
    assert not list((folder / "plots").glob("*"))
    assert (folder / "summary.json").is_file()


def test_metrics_that_cannot_be_written(tmp_path: Path, refusal: Callable[..., str]) -> None:
    folder = tmp_path / "run"
    (folder / "metrics.csv.partial").mkdir(parents=True)
    assert "metrics" in refusal(*SINE, f"hydra.run.dir={folder}")


# Loggers


def test_tensorboard(train: Callable[..., Path]) -> None:
    folder = train(*SINE, "logger=tensorboard", "trainer.max_epochs=1")
    events = b"".join(path.read_bytes() for path in (folder / "tensorboard").glob("events.out.tfevents.*"))
    assert all(name in events for name in (b"train/loss", b"val/loss", b"test/loss"))
    assert rows(folder)


# Two processes


IMDB = (
    "task=imdb", "task.batch_size=7", "task.pool=2", "task.embedding=4", "task.dropout=0", "task.word_dropout=0",
    "task.embedding_dropout=0", "task.val_fraction=0.2", "model.hidden_size=4", "trainer.max_epochs=2",
)  # fmt: skip
FORECAST = (
    "task=forecast", "task.window=20", "task.horizon=3", "task.stride=7", "task.dropout=0", "model.hidden_size=4",
    "trainer.max_epochs=1",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("task", ["char_lm", "imdb", "forecast"])
def test_two_processes_equal_one(
    task: str,
    tmp_path: Path,
    reviews: Path,
    train: Callable[..., Path],
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """The same batches, split into shares that differ in size: the same steps, and metrics over all data."""
    arguments = {
        "char_lm": TEXT,
        "imdb": (*IMDB, f"task.data={reviews}"),
        "forecast": FORECAST,
    }[task]
    one = train(*arguments, "hardware=cpu")
    two = tmp_path / "two"
    done = command("train.py", *arguments, "hardware=cpu_ddp", f"hydra.run.dir={two}")
    assert done.returncode == 0, done.stderr
    assert not any(word in done.stderr for word in ("Traceback", "Warning", "deprecated")), done.stderr
    expected, found = summary(one)["metrics"], summary(two)["metrics"]
    assert found == pytest.approx(expected, abs=1e-4)
    losses = ([row["train/loss"] for row in rows(f) if "train/loss" in row] for f in (one, two))
    assert next(losses) == pytest.approx(next(losses), abs=1e-4)
    assert summary(two)["steps"] == summary(one)["steps"]
    for name in ("metrics.csv", "summary.json", "config.yaml", "last.ckpt"):
        assert len(list(tmp_path.glob(f"two/**/{name}"))) == 1
    assert done.stdout.count("│ all ") == 1  # one table of parameters
    ours, theirs = (read_checkpoint(f / "checkpoints" / "last.ckpt")["state_dict"] for f in (one, two))
    for key in ours:
        assert torch.allclose(ours[key].double(), theirs[key].double(), atol=1e-4), key


@pytest.mark.slow
def test_two_processes_do_not_say_more_than_one(
    tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    diverging = ("optimizer.lr=1e30", "optimizer.schedule=constant")
    done = command("train.py", *SINE, *diverging, "hardware=cpu_ddp", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 1
    said = {line for line in done.stderr.splitlines() if line and not line.startswith("Initializing distributed")}
    assert len(said) == 1 and "error: training diverged at step 1" in said.pop(), done.stderr
