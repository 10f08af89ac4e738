"""Where a run goes on that was killed or that a signal has ended: last.ckpt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from tasks.preempt import Preempted, watch


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt every n steps, at the end of each epoch, and when a signal ends the run: where it goes on.

    Not after the last batch of an epoch, from where Lightning would go on without the epoch's validation.
    """

    def __init__(self, path: Path, every_n_steps: int) -> None:
        self.path, self.every_n_steps = path, every_n_steps
        self.ending = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        watch.last, watch.launcher, watch.alone = self.path, trainer.strategy.launcher, trainer.world_size == 1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        watch.heed()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        watch.heed()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.end_if_signalled(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.ending:  # only now, when the last step's metrics have been logged
            raise Preempted
        watch.patient = True

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        count, a_step = batch_idx + 1, trainer.accumulate_grad_batches
        if count % a_step or trainer.is_last_batch:
            return
        self.ending = self.signalled(trainer)
        if self.ending or count % (self.every_n_steps * a_step) == 0:
            trainer.save_checkpoint(self.path)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.end_if_signalled(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        watch.patient = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.path)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.end_if_signalled(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        watch.patient = False  # the next job of a sweep begins in this process

    def signalled(self, trainer: pl.Trainer) -> bool:
        """Whether any of the processes has received a signal."""
        here = watch.received is not None
        return here if watch.alone else trainer.strategy.reduce_boolean_decision(here, all=False)

    def end_if_signalled(self, trainer: pl.Trainer) -> None:
        """End now what was patient, and from here on at once."""
        watch.patient = False
        if self.signalled(trainer):
            raise Preempted
