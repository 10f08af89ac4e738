"""What a run says of itself: its parameters at the start, summary.json and a table at the end, and what comes next."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import rnnzoo
from rnnzoo.files import writing
from rnnzoo.hydra.done import DIVERGED
from rnnzoo.hydra.trainer import find_callback
from rnnzoo.lightning.figures import save
from rnnzoo.lightning.framework import pl
from rnnzoo.lightning.module import Diverged, SequenceModule
from rnnzoo.lightning.records import Clock, MetricsCSV, plot_losses
from rnnzoo.lightning.verbs import verbs_of
from rnnzoo.lightning.wandb_run import WandbRun
from rnnzoo.plain import printable

AFTERWARDS = (("play", ""), ("eval", ""), ("export", " --onnx"))
"""What any run can be asked for, and how."""

GROWN = 10
"""So many times the loss of the first step, where nothing is learned yet, is no noise at a training's end."""


def print_parameters(module: pl.LightningModule, device: torch.device) -> None:
    """A table of every parameter with its shape and size, under the device that they will be on."""
    table = Table("parameter", "shape", "size", title=f"{type(module).__name__} on {device}")
    for name, parameter in module.named_parameters():
        table.add_row(name, " × ".join(map(str, parameter.shape)) or "scalar", f"{parameter.numel():,}")
    table.add_section()
    table.add_row("all", "", f"{sum(p.numel() for p in module.parameters()):,}")
    Console().print(table)


def diverged(
    folder: Path, settings: dict[str, Any], module: SequenceModule, trainer: pl.Trainer, error: Diverged
) -> None:
    """Write diverged.json in place of a summary."""
    clock = find_callback(trainer, Clock)
    told = {
        **_choices(settings), "diverged": str(error), "parameters": _learned(module), "steps": clock.steps,
        "seconds_training": round(clock.training, 2), "seconds_validation": round(clock.validation, 2),
    }  # fmt: skip
    with writing(folder / DIVERGED) as partial:
        partial.write_text(json.dumps(told, indent=2) + "\n")


def _choices(settings: dict[str, Any]) -> dict[str, Any]:
    return {"task": settings["task"]["name"], "model": settings["model"]["cell"], "seed": settings["seed"]}


def _learned(module: pl.LightningModule) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def finish(
    folder: Path, settings: dict[str, Any], module: SequenceModule, trainer: pl.Trainer, metrics: dict[str, float]
) -> None:
    """Write summary.json and the loss curves, and print the summary."""
    clock, metrics_csv = find_callback(trainer, Clock), trainer.loggers[0]
    best = metrics_csv.best_row(module.monitor) if isinstance(metrics_csv, MetricsCSV) else {}
    summary: dict[str, Any] = {
        **_choices(settings),
        "metrics": metrics,
        "monitor": module.monitor,
        "mode": find_callback(trainer, pl.callbacks.ModelCheckpoint).mode,
        "best_epoch": int(best["epoch"]) + 1 if best else None,
        "parameters": _learned(module),
        "epochs": clock.epochs,
        "steps": clock.steps,
        "seconds_training": round(clock.training, 2),
        "seconds_validation": round(clock.validation, 2),
        "seconds_per_epoch": round((clock.training + clock.validation) / max(clock.epochs, 1), 3),
        "steps_per_second": round(clock.steps / clock.training, 2) if clock.training else None,
        "peak_memory_mib": _peak_memory(),
        "peak_gpu_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20) if torch.cuda.is_available() else None,
        "versions": {
            "rnnzoo": rnnzoo.__version__,
            "torch": torch.__version__,
            "lightning": pl.__version__,  # type: ignore[attr-defined]
            "python": platform.python_version(),
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "commit": _commit(),
    }
    with writing(folder / "summary.json") as partial:
        partial.write_text(json.dumps(summary, indent=2) + "\n")
    if isinstance(metrics_csv, MetricsCSV):
        save(folder / "plots" / "loss.png", lambda: plot_losses(metrics_csv))
    for logger in trainer.loggers:
        if isinstance(logger, WandbRun):
            logger.conclude(summary)

    table = Table("", "", show_header=False, title=f"{summary['task']} · {summary['model']}")
    for name, value in metrics.items():
        table.add_row(escape(printable(name)), f"{value:.4g}")
    table.add_section()
    for name in ("parameters", "epochs", "seconds_training", "steps_per_second", "peak_memory_mib"):
        table.add_row(name.replace("_", " "), str(summary[name]))
    console = Console(highlight=False)
    console.print(table)
    console.print(printable(f"folder: {folder}"), markup=False, soft_wrap=True)
    rows = metrics_csv.rows.values() if isinstance(metrics_csv, MetricsCSV) else ()
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    if losses and module.first_loss is not None and losses[-1] > GROWN * abs(float(module.first_loss)):
        print(
            f"the training has diverged: its loss was {float(module.first_loss):.3g} at first and is {losses[-1]:.3g} "
            "in the last epoch; lower optimizer.lr",
            file=sys.stderr,
            flush=True,
        )
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return
    where = shlex.quote(os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder))
    kind = type(module)
    own_task = not kind.__module__.startswith("rnnzoo.")
    code = settings["cells"] or (sys.modules[kind.__module__].__file__ if own_task else None)
    named = f" --cells {shlex.quote(code)}" if code else ""  # code of a person's own is loaded only by name
    task = settings["task"]  # whose data is what a verb may ask for
    own = [
        " ".join([f"rnnzoo {verb} {where}", *(shlex.quote(str(task.get(key) or key.upper())) for key in keys)]) + named
        for verb, keys in verbs_of(kind).items()
    ]
    own += [f"rnnzoo {command} {where}{option}{named}" for command, option in AFTERWARDS]
    for line in ("go on with", *own):
        console.print(printable(line if line == "go on with" else f"  {line}"), markup=False, soft_wrap=True)


def _peak_memory() -> int | None:
    """The most memory that this process has had, in MiB; None where the system does not say."""
    try:
        import resource  # which Windows lacks
    except ImportError:
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def _commit() -> str | None:
    """The project's commit, if it runs from a clone and git is there."""
    root = Path(__file__).parent
    try:
        answer = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return answer.stdout.strip() or None
