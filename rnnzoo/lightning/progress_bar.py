"""One bar for a whole run, with the time left."""

from __future__ import annotations

import math
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rnnzoo.lightning.framework import pl


class WholeRun(pl.callbacks.ProgressBar):
    """Batches of all epochs in one bar; epochs are counted from 1, as in the lines above it."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: Progress | None = None

    def disable(self) -> None:
        """Nothing: who wants no bar leaves the callback out."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        epochs, batches = trainer.max_epochs or -1, trainer.num_training_batches
        total = epochs * batches if epochs > 0 and math.isfinite(batches) else None
        look = TextColumn("epoch {task.fields[epoch]}"), BarColumn(bar_width=None), TimeElapsedColumn()
        self.bar = Progress(*look, TextColumn("left"), TimeRemainingColumn(), refresh_per_second=4)
        self.task = self.bar.add_task("", total=total, epoch="")
        self.bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.bar is not None:
            done = trainer.current_epoch * trainer.num_training_batches + batch_idx + 1
            of_all = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
            self.bar.update(self.task, completed=done, epoch=f"{trainer.current_epoch + 1}{of_all}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
