"""A trained run tested again on its own data, its metrics beside the recorded ones."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rnnzoo.errors import UserError
from rnnzoo.hydra.trained import data_of, load
from rnnzoo.hydra.trainer import quieten
from rnnzoo.lightning.framework import pl
from rnnzoo.plain import printable


def evaluate(run: Path) -> bool:
    """Test the model again on its run's data, and print its metrics beside the recorded ones; whether they are equal.

    Raises `UserError` when the run has no test, or was made on data that is not there.
    """
    trained = load(run)
    module, data = trained.module, data_of(trained)
    if not data.has_test:
        raise UserError(f"{run}: task={trained.settings['task']['name']} has no test")
    recorded, steps = recorded_metrics(trained.folder / "summary.json")
    module.expect(steps)  # so that the engine is the one that trained
    quieten()
    with tempfile.TemporaryDirectory() as folder:  # pictures of the test are in the run's own
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_test_batches=trained.settings["trainer"].get("limit_test_batches", 1.0),
            default_root_dir=folder,
        )
        found = trainer.test(module, data, verbose=False)[0]
    table = Table("metric", "now", "recorded", title=escape(printable(trained.checkpoint)), title_justify="left")
    equal = True
    for name, value in found.items():
        before = recorded.get(name)
        equal &= before is None or abs(value - before) <= 1e-4 * max(abs(before), 1e-3)
        table.add_row(escape(printable(name)), f"{value:.6g}", "–" if before is None else f"{before:.6g}")
    Console().print(table)
    print("equal to the recorded ones" if equal else "NOT equal to the recorded ones")
    return equal


def recorded_metrics(path: Path) -> tuple[dict[str, float], int]:
    """Metrics and steps of a run's summary.json, none of a run that was not finished; `UserError` if it is damaged."""
    if not path.is_file():
        return {}, 0
    try:
        summary: Any = json.loads(path.read_bytes())
        return {str(name): float(value) for name, value in summary["metrics"].items()}, int(summary["steps"])
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: damaged ({' '.join(str(error).split())}); move it away to go on without") from error
