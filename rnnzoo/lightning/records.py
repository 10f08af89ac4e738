"""What a run leaves of its numbers: metrics.csv, the clock's lines, and the loss curves."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from rnnzoo.errors import UserError
from rnnzoo.files import writing
from rnnzoo.lightning.figures import count_along
from rnnzoo.lightning.framework import pl
from rnnzoo.lightning.metrics import mode_of
from rnnzoo.plain import printable

rank_zero_only = pl.utilities.rank_zero_only


class MetricsCSV(pl.loggers.Logger):
    """`metrics.csv`: one row for each step at which something was logged.

    Args:
        folder: of the run.
        step: where a resumed run goes on; rows it will write again are dropped.

    Raises `UserError` when the rows before it cannot be read.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self.rows = read_metrics(self.path, step) if step and self.path.is_file() else {}
        self.changed = False

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's configuration is in .hydra/."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.setdefault(step or 0, {}).update(metrics)
        self.changed = True

    @rank_zero_only
    def save(self) -> None:
        if not self.changed and self.path.is_file():  # Lightning saves before a resumed run is restored, which may fail
            return
        columns = ["epoch", *sorted({key for row in self.rows.values() for key in row} - {"epoch"})]
        with writing(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["step", *columns])
            writer.writeheader()
            writer.writerows({"step": step, **row} for step, row in sorted(self.rows.items()))

    def best_row(self, monitor: str) -> dict[str, Any]:
        """The row of the epoch that was best by `monitor`; empty if it was never logged."""
        rows = [row for row in self.rows.values() if monitor in row]
        choose = {"min": min, "max": max}[mode_of(monitor)]
        return choose(rows, key=lambda row: row[monitor]) if rows else {}

    def best(self, monitor: str) -> dict[str, float]:
        """The validation metrics in `best_row`."""
        return {name: float(value) for name, value in self.best_row(monitor).items() if name.startswith("val/")}


def read_metrics(path: Path, before: int) -> dict[int, dict[str, Any]]:
    """The rows of `metrics.csv` before a step, by their steps. Raises `UserError` naming file and line."""
    rows: dict[int, dict[str, Any]] = {}
    line = 1
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if header[:2] != ["step", "epoch"] or len(set(header)) != len(header):
                raise ValueError("its first two columns are not step and epoch, or a column is there twice")
            for row in reader:
                line += 1
                if len(row) != len(header):
                    raise ValueError(f"{len(row)} values in {len(header)} columns")
                if int(row[0]) < before:
                    values = {k: float(v) for k, v in zip(header[1:], row[1:]) if v != ""}
                    rows[int(row[0])] = {k: int(v) if k == "epoch" else v for k, v in values.items()}
    except (ValueError, OverflowError, csv.Error) as error:
        raise UserError(
            f"{path}: damaged, line {line}: {' '.join(str(error).split())}; mend it, or move it away to go on without"
        ) from error
    return rows


SHOWN = 8
"""So many metrics stand on an epoch's line."""


class Clock(pl.Callback):
    """Counts seconds and steps of training and prints a line for each epoch."""

    FIELDS = ("training", "validation", "epochs", "steps")

    def __init__(self) -> None:
        self.training = self.validation = 0.0
        self.epochs = self.steps = 0

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.FIELDS}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.steps:  # the best epoch's state comes in for the test; what was counted up to the end must stay
            return
        for name in self.FIELDS:
            setattr(self, name, state_dict[name])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.last = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.steps += 1
        now = time.perf_counter()
        self.training += now - self.last
        self.last = now

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            now = time.perf_counter()
            self.validation += now - self.last
            self.last = now

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs += 1
        metrics = trainer.callback_metrics  # of all processes, so that each of them has to ask
        if trainer.is_global_zero:
            texts = [f"{k} {float(v):.4g}" for k, v in metrics.items() if not k.startswith("step/")]
            if len(texts) > SHOWN:  # of many targets, say; metrics.csv has them all
                texts = [*texts[: SHOWN - 1], f"and {len(texts) - SHOWN} more", texts[-1]]
            left = ""
            if trainer.max_epochs and 0 < self.epochs < trainer.max_epochs:
                rest = (self.training + self.validation) / self.epochs * (trainer.max_epochs - self.epochs)
                left = f", {rest:.0f} s left"
            end = f"{self.training:.0f} s{left}"
            print(printable(f"epoch {self.epochs}/{trainer.max_epochs}  {'  '.join(texts)}  {end}"), flush=True)


def plot_losses(logger: MetricsCSV) -> Figure | None:
    """Training and validation loss over the epochs; None if none was logged."""
    curves = {
        name: [(row["epoch"] + 1, row[name]) for row in logger.rows.values() if name in row]
        for name in ("train/loss", "val/loss")
    }
    losses = [loss for points in curves.values() for _, loss in points]
    if not losses:
        return None
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, points), style in zip(curves.items(), ("-", "--")):
        if points:
            axes.plot(*zip(*points), style, marker="." if len(points) < 30 else None, label=name)
    wide = 0 < 10 * min(losses) < max(losses)
    axes.set(xlabel="epoch", ylabel="loss", yscale="log" if wide else "linear")
    count_along(axes)
    axes.legend(frameon=False)
    return figure
