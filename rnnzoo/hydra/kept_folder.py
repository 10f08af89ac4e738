"""A run's folder that somebody deletes while it trains: it is said, and what makes it a run's is written again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rnnzoo.files import writing
from rnnzoo.lightning.framework import pl
from rnnzoo.plain import printable


class KeptFolder(pl.Callback):
    """Looks for the run's configuration before each checkpoint and at the end.

    Without it, the checkpoints that follow could neither be resumed nor used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record: Callable[[], None] = lambda: None
        """Called in the first process once training begins, so when all that could be wrong has been looked at."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.files = {path: path.read_bytes() for path in (self.folder / ".hydra").glob("*.*")}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.record()
            self.setup(trainer, pl_module, "fit")

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        self._look(trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._look(trainer)

    def _look(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero or all(path.is_file() for path in self.files):
            return
        what = f"{self.folder}: was deleted while its run goes on; it is made again, without what had been written"
        print(printable(what), file=sys.stderr, flush=True)
        for path, text in self.files.items():
            with writing(path) as partial:
                partial.write_bytes(text)
