"""What a run leaves: metrics.csv, checkpoints that survive a kill, loss curves, and summary.json."""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

import rnnzoo
from rnnzoo import UserError
from tasks.base import SequenceModule, build, mode_of, refuse_unknown, writing
from tasks.last_checkpoint import LastCheckpoint
from tasks.precision import precision
from tasks.ranks import check_agreement, check_hardware, started
from tasks.wandb_log import WandbRun

HARMLESS = (
    ".*LeafSpec",  # Lightning 2.6 asks torch for a class that torch 2.13 is about to rename
    "The number of training batches .* is smaller than the logging interval",  # epochs are logged all the same
    "Grad strides do not match bucket view strides",  # of inputs with a single feature, under DDP
    "The dirpath has changed",  # a checkpoint is tested in a folder of its own
    "Be aware that when using `ckpt_path`",  # pictures may be switched on or off in a run resumed or tested
    "Detected call of `lr_scheduler.step",  # after a step whose float16 gradients overflowed, so that it was skipped
    "Checkpoint directory .* exists and is not empty",  # as it must be when a run is resumed
)
"""Warnings of Lightning that call for nothing, each with the reason."""

Found = TypeVar("Found", bound=pl.Callback)


class MetricsCSV(Logger):
    """`metrics.csv`: one row for each step at which something was logged.

    Args:
        folder: of the run.
        step: where a resumed run goes on; rows it will write again are dropped.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self.rows: dict[int, dict[str, Any]] = {}
        if step and self.path.is_file():
            with self.path.open(newline="") as file:
                for row in csv.DictReader(file):
                    if int(row["step"]) < step:
                        self.rows[int(row["step"])] = {k: float(v) for k, v in row.items() if v != "" and k != "step"}

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

    @rank_zero_only
    def save(self) -> None:
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


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or not there: written beside their place, flushed, then moved into it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with writing(Path(path)) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


def one_cause(error: BaseException) -> str:
    """The first line of the deepest exception behind `error`, where torch buries the reason."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's contents, loaded without running code from it; `UserError` if it is missing or damaged."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        contents: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not {"state_dict", "hyper_parameters", "global_step"} <= contents.keys():
            raise ValueError("not a checkpoint of a training run")
    except Exception as error:
        raise UserError(f"{path}: damaged or not a checkpoint ({one_cause(error)})") from error
    return contents


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
            texts = (f"{k} {float(v):.4g}" for k, v in metrics.items() if not k.startswith("step/"))
            print(f"epoch {self.epochs}/{trainer.max_epochs}  {'  '.join(texts)}  {self.training:.0f} s", flush=True)


def plot_losses(logger: MetricsCSV, path: Path) -> None:
    """Training and validation loss over the epochs, as PNG; nothing if none was logged."""
    curves = {
        name: [(row["epoch"] + 1, row[name]) for row in logger.rows.values() if name in row]
        for name in ("train/loss", "val/loss")
    }
    losses = [loss for points in curves.values() for _, loss in points]
    if not losses:
        return
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, points), style in zip(curves.items(), ("-", "--")):
        if points:
            axes.plot(*zip(*points), style, marker="." if len(points) < 30 else None, label=name)
    wide = 0 < 10 * min(losses) < max(losses)
    axes.set(xlabel="epoch", ylabel="loss", yscale="log" if wide else "linear")
    axes.legend(frameon=False)
    with writing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def print_parameters(module: pl.LightningModule) -> None:
    """A table of every parameter with its shape and size."""
    table = Table("parameter", "shape", "size", title=f"{type(module).__name__}")
    for name, parameter in module.named_parameters():
        table.add_row(name, " × ".join(map(str, parameter.shape)) or "scalar", f"{parameter.numel():,}")
    table.add_section()
    table.add_row("all", "", f"{sum(p.numel() for p in module.parameters()):,}")
    Console().print(table)


def build_trainer(
    settings: dict[str, Any],
    folder: Path,
    metrics_csv: MetricsCSV,
    monitor: str,
    picture: str | None = None,
    trial: pl.Callback | None = None,
) -> pl.Trainer:
    """Lightning's Trainer with the loggers, checkpoints and callbacks of a run; `picture` is the task's own.

    `trial` ends a run that a sweep has seen enough of.

    Raises `UserError` for hardware that is not there and for options that the Trainer does not take.
    """
    _forget_peaks()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message)
    mode = mode_of(monitor)
    checkpoints = folder / "checkpoints"
    callbacks: list[pl.Callback] = [
        Clock(),
        ModelCheckpoint(str(checkpoints), "best", monitor, mode=mode, enable_version_counter=False),
        LastCheckpoint(checkpoints / "last.ckpt", settings["checkpoint"]["every_n_steps"]),
    ]
    if settings["early_stopping"]["patience"] is not None:
        callbacks.append(EarlyStopping(monitor, patience=settings["early_stopping"]["patience"], mode=mode))
    if trial is not None:
        callbacks.append(trial)
    if settings["pictures"]:
        from tasks.pictures import Pictures

        callbacks.insert(0, Pictures(picture))  # before the clock, for which they belong to validation
    watched = sys.stdout.isatty()  # a bar needs a terminal
    if watched:
        callbacks.append(RichProgressBar())
    check_hardware(settings["hardware"])
    numbers, plugins = precision(settings["trainer"]["precision"], settings["hardware"]["accelerator"])
    options = {
        **settings["trainer"],
        **settings["hardware"],
        "callbacks": callbacks,
        "logger": [metrics_csv, *extra_loggers(settings, folder)],
        "precision": numbers,
        "plugins": [AtomicCheckpointIO(), *plugins, *([] if started() else [LightningEnvironment()])],
        "default_root_dir": folder,
        "enable_progress_bar": watched,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    refuse_unknown(options, [pl.Trainer], "trainer")
    if options.get("accelerator") == "gpu" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise UserError("hardware.accelerator=gpu: no GPU was found; use hardware=auto or hardware=cpu")
    try:
        trainer = build(pl.Trainer, options, "trainer")
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise error if isinstance(error, UserError) else UserError(" ".join(str(error).split())) from error
    check_agreement(trainer.num_devices, trainer.num_nodes)
    return trainer


def extra_loggers(settings: dict[str, Any], folder: Path) -> list[Logger]:
    """The logger chosen beside metrics.csv, which every run writes."""
    name = settings["logger"]["name"]
    if name == "tensorboard":
        try:
            return [TensorBoardLogger(folder, name="tensorboard", version="")]
        except ModuleNotFoundError as error:
            raise UserError("logger=tensorboard needs a package more: pip install 'rnnzoo[tensorboard]'") from error
    if name == "wandb":
        return [build(WandbRun, {**settings["logger"], "settings": settings, "folder": folder}, "logger")]
    return []


def load_matching(path: str | None, module: pl.LightningModule) -> int:
    """The step of the checkpoint at `path`, 0 for None; `UserError` unless it was written by a module like this."""
    if path is None:
        return 0
    checkpoint = read_checkpoint(path)
    for key, value in checkpoint["hyper_parameters"].items():
        free = key in ("optimizer", "engine", "seed")
        if not free and key in module.hparams and module.hparams[key] != value:
            raise UserError(f"{path} was trained with {_short(key, value)}, not {_short(key, module.hparams[key])}")
    if checkpoint["state_dict"].keys() != module.state_dict().keys():
        raise UserError(f"{path} does not fit task and model: it was written by another kind of run")
    step: int = checkpoint["global_step"]
    return step


def _short(key: str, value: Any) -> str:
    text = str(value)
    return f"{key}={text if len(text) < 200 else text[:200] + '...'}"


def find_callback(trainer: pl.Trainer, kind: type[Found]) -> Found:
    """The trainer's callback of that class."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next(callback for callback in callbacks if isinstance(callback, kind))


def finish(
    folder: Path, settings: dict[str, Any], module: SequenceModule, trainer: pl.Trainer, metrics: dict[str, float]
) -> None:
    """Write summary.json and the loss curves, and print the summary."""
    clock, metrics_csv = find_callback(trainer, Clock), trainer.loggers[0]
    best = metrics_csv.best_row(module.monitor) if isinstance(metrics_csv, MetricsCSV) else {}
    choices = {"task": settings["task"]["name"], "model": settings["model"]["cell"], "seed": settings["seed"]}
    summary: dict[str, Any] = {
        **choices,
        "metrics": metrics,
        "monitor": module.monitor,
        "mode": find_callback(trainer, ModelCheckpoint).mode,
        "best_epoch": int(best["epoch"]) + 1 if best else None,
        "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "epochs": clock.epochs,
        "steps": clock.steps,
        "seconds_training": round(clock.training, 2),
        "seconds_validation": round(clock.validation, 2),
        "seconds_per_epoch": round((clock.training + clock.validation) / max(clock.epochs, 1), 3),
        "steps_per_second": round(clock.steps / clock.training, 2) if clock.training else None,
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "peak_gpu_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20) if torch.cuda.is_available() else None,
        "versions": {
            "rnnzoo": rnnzoo.__version__,
            "torch": torch.__version__,
            "lightning": version("pytorch-lightning"),
            "python": platform.python_version(),
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "commit": _commit(),
    }
    with writing(folder / "summary.json") as partial:
        partial.write_text(json.dumps(summary, indent=2) + "\n")
    if isinstance(metrics_csv, MetricsCSV):
        plot_losses(metrics_csv, folder / "plots" / "loss.png")
    for logger in trainer.loggers:
        if isinstance(logger, WandbRun):
            logger.conclude(summary)

    table = Table("", "", show_header=False, title=f"{summary['task']} · {summary['model']}")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4g}")
    table.add_section()
    for name in ("parameters", "epochs", "seconds_training", "steps_per_second", "peak_memory_mib"):
        table.add_row(name.replace("_", " "), str(summary[name]))
    table.add_row("folder", str(folder))
    Console().print(table)


def _forget_peaks() -> None:
    """Let peak memory be this run's, not that of an earlier one in the same process; only Linux can forget RAM's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def _commit() -> str | None:
    """The project's commit, if it runs from a clone and git is there."""
    root = Path(__file__).parent
    try:
        answer = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return answer.stdout.strip() or None
