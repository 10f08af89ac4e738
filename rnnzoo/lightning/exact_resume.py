"""A run that was killed, or that a signal has ended, goes on where it was: within its epoch, with the same numbers.

In any project of Lightning's, with a data loader that begins where the trainer is:

    def train_dataloader(self):  # of a LightningModule or LightningDataModule; the order follows from seed and epoch
        return Batches(lambda epoch: shuffled(len(self.x), 32, seed=1, epoch=epoch), lambda rows: self.x[rows],
                       lambda: position(self.trainer))

    trainer = Trainer(callbacks=[ExactResume(Path("run/last.ckpt"), every_n_steps=500, seed=1)])
    trainer.fit(module, data, ckpt_path="run/last.ckpt" if resuming else None)

Exact means bit for bit: the order of the batches is a function of seed and epoch alone, the position in it is the
trainer's own, and dropout draws from a generator seeded anew at every batch.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from rnnzoo.lightning.framework import pl
from rnnzoo.lightning.preempt import Preempted, watch


class ExactResume(pl.callbacks.Checkpoint):
    """Writes a checkpoint every n steps, at the end of each epoch, and when a signal ends the run: where it goes on.

    It takes its predecessor's place once Lightning has logged the metrics up to there, which a run that goes on from it
    will not log again. None is written after the last batch of an epoch, from where Lightning would go on without the
    epoch's validation; a signal then, or in validation, writes one from which validation begins.

    Args:
        path: of the checkpoint, one file that is written again and again.
        every_n_steps: optimizer steps from one to the next.
        seed: together with epoch, batch and process it seeds each training step's randomness.
    """

    def __init__(self, path: Path, every_n_steps: int, seed: int) -> None:
        self.path, self.every_n_steps, self.seed = path, every_n_steps, seed
        self.next = path.with_name(f"{path.name}.next")
        self.written = self.ending = self.validating = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        watch.last, watch.alone = self.path, trainer.world_size == 1
        if watch.guard is not None:
            watch.guard.launcher, watch.guard.meeting = trainer.strategy.launcher, None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        watch.heed()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        watch.heed()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.put_in_place(trainer)
        self.end_if_signalled(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.put_in_place(trainer)
        if self.ending:
            raise Preempted
        watch.patient = True
        self.draw_anew(trainer, pl_module, batch_idx)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        count, a_step = batch_idx + 1, trainer.accumulate_grad_batches
        if count % a_step or trainer.is_last_batch:
            return
        self.ending = self.signalled(trainer)
        if self.ending or count % (self.every_n_steps * a_step) == 0:
            self.write(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.put_in_place(trainer)
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            self.end_if_signalled(trainer)
        self.draw_anew(trainer, pl_module, -1)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not watch.patient or not self.signalled(trainer):
            return
        self.validating = True
        self.write(trainer)
        self.put_in_place(trainer)
        raise Preempted

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self.validating:  # what Lightning takes for a validation in its first batch, and begins
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            first = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress.update(total=first, current=dict(first), is_last_batch=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.write(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.put_in_place(trainer)
        self.end_if_signalled(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        watch.patient = self.validating = False  # the next job of a sweep begins in this process
        if self.written and trainer.is_global_zero:
            self.next.unlink(missing_ok=True)

    def draw_anew(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch_idx: int) -> None:
        """Let what is random follow from seed, epoch, batch and process."""
        seed = hash((self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)) % 2**63
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type != "cpu":  # torch.manual_seed would see to both, and take a tenth of a small step
            torch.get_device_module(pl_module.device).manual_seed(seed)

    def write(self, trainer: pl.Trainer) -> None:
        """Write a checkpoint beside its place."""
        trainer.save_checkpoint(self.next)
        self.written = True

    def put_in_place(self, trainer: pl.Trainer) -> None:
        """Let what has been written take its place."""
        if self.written and trainer.is_global_zero:
            with suppress(FileNotFoundError):  # of a folder that somebody has deleted
                self.next.replace(self.path)
        self.written = False

    def signalled(self, trainer: pl.Trainer) -> bool:
        """Whether any of the processes has received a signal."""
        here = watch.received is not None
        return here if watch.alone else trainer.strategy.reduce_boolean_decision(here, all=False)

    def end_if_signalled(self, trainer: pl.Trainer) -> None:
        """End now what was patient, and from here on at once."""
        watch.patient = False
        if self.signalled(trainer):
            raise Preempted
