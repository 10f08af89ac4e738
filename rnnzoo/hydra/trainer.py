"""Lightning's Trainer as a run needs it."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from rnnzoo.errors import UserError
from rnnzoo.hydra.kept_folder import KeptFolder
from rnnzoo.lightning.arguments import build, refuse_unknown
from rnnzoo.lightning.averaging import AveragedWeights
from rnnzoo.lightning.checkpoints import AtomicCheckpointIO
from rnnzoo.lightning.exact_resume import ExactResume
from rnnzoo.lightning.framework import pl
from rnnzoo.lightning.metrics import mode_of
from rnnzoo.lightning.pictures.picture import Picture
from rnnzoo.lightning.precision import precision
from rnnzoo.lightning.progress_bar import WholeRun
from rnnzoo.lightning.ranks import check_agreement, check_hardware, started
from rnnzoo.lightning.records import Clock, MetricsCSV
from rnnzoo.lightning.wandb_run import WandbRun

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

MisconfigurationException: Any = pl.utilities.exceptions.MisconfigurationException  # type: ignore[attr-defined]
Found = TypeVar("Found", bound=pl.Callback)


def quieten() -> None:
    """Leave out what Lightning says that calls for nothing, and hear what rnnzoo does, such as compiling."""
    logging.getLogger(pl.__name__).setLevel(logging.WARNING)
    own = logging.getLogger("rnnzoo")
    if not own.handlers:
        own.addHandler(_Printing())
        own.setLevel(logging.INFO)
        own.propagate = False
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message)


class _Printing(logging.Handler):
    """Prints to what is stdout when there is something to say; a progress bar looks for it there."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), flush=True)


def build_trainer(
    settings: dict[str, Any],
    folder: Path,
    metrics_csv: MetricsCSV,
    monitor: str,
    pictures: Sequence[Picture] = (),
    trial: pl.Callback | None = None,
) -> pl.Trainer:
    """Lightning's Trainer with the loggers, checkpoints and callbacks of a run; `pictures` are the task's own.

    `trial` ends a run that a sweep has seen enough of.

    Raises `UserError` for hardware that is not there and for options that the Trainer does not take.
    """
    _forget_peaks()
    quieten()
    mode = mode_of(monitor)
    checkpoints = folder / "checkpoints"
    callbacks: list[pl.Callback] = [
        Clock(),
        KeptFolder(folder),
        pl.callbacks.ModelCheckpoint(str(checkpoints), "best", monitor, mode=mode, enable_version_counter=False),
        ExactResume(checkpoints / "last.ckpt", settings["checkpoint"]["every_n_steps"], settings["seed"]),
    ]
    if settings["early_stopping"]["patience"] is not None:
        callbacks.append(
            pl.callbacks.EarlyStopping(monitor, patience=settings["early_stopping"]["patience"], mode=mode)
        )
    if settings["averaging"]["patience"] is not None:
        callbacks.append(AveragedWeights(monitor, settings["averaging"]["patience"]))
    if trial is not None:
        callbacks.append(trial)
    if settings["pictures"] or settings["probe"]:
        from rnnzoo.lightning.pictures.callback import Pictures

        own = list(pictures if settings["pictures"] else ())
        if settings["probe"]:
            from rnnzoo.lightning.pictures.dynamics import Dynamics

            own.append(Dynamics())
        callbacks.insert(
            0, Pictures(own, settings["pictures"])
        )  # before the clock, for which they belong to validation
    watched = sys.stdout.isatty()  # a bar needs a terminal
    if watched:
        callbacks.append(WholeRun())
    check_hardware(settings["hardware"])
    numbers, plugins = precision(settings["trainer"]["precision"], settings["hardware"]["accelerator"])
    environment = [] if started() else [pl.plugins.environments.LightningEnvironment()]  # type: ignore[attr-defined]
    options = {
        **settings["trainer"],
        **settings["hardware"],
        "callbacks": callbacks,
        "logger": [metrics_csv, *extra_loggers(settings, folder)],
        "precision": numbers,
        "plugins": [AtomicCheckpointIO(), *plugins, *environment],
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


def extra_loggers(settings: dict[str, Any], folder: Path) -> list[Any]:
    """The logger chosen beside metrics.csv, which every run writes."""
    name = settings["logger"]["name"]
    if name == "tensorboard":
        try:
            return [pl.loggers.TensorBoardLogger(folder, name="tensorboard", version="")]
        except ModuleNotFoundError as error:
            raise UserError("logger=tensorboard needs a package more: pip install 'rnnzoo[tensorboard]'") from error
    if name == "wandb":
        return [build(WandbRun, {**settings["logger"], "settings": settings, "folder": folder}, "logger")]
    return []


def find_callback(trainer: pl.Trainer, kind: type[Found]) -> Found:
    """The trainer's callback of that class."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next(callback for callback in callbacks if isinstance(callback, kind))


def _forget_peaks() -> None:
    """Let peak memory be this run's, not that of an earlier one in the same process; only Linux can forget RAM's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
