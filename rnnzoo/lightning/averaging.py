"""Averaged weights: the mean over a training's last steps, from where validation no longer gains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnnzoo.lightning.framework import pl
from rnnzoo.lightning.metrics import mode_of
from rnnzoo.plain import printable


class AveragedWeights(pl.Callback):
    """Evaluates and saves the mean of the weights after each step, once validation has stopped to gain.

    The averaging of NT-ASGD (Merity et al. 2018, arXiv:1708.02182, algorithm 1) for any optimizer: it begins after the
    first epoch that is worse in `monitor` than the best of those at least `patience` epochs before it. Training itself
    goes on from the last weights. Validation, a checkpoint's `state_dict` and the module after the training have the
    mean; `averaging` in a checkpoint holds what is needed to go on exactly.

    Args:
        monitor: a validation metric, best where it is lowest if it is a loss, else where it is highest.
        patience: epochs, n in the paper.
    """

    def __init__(self, monitor: str, patience: int) -> None:
        self.sign = 1 if mode_of(monitor) == "min" else -1
        self.monitor, self.patience = monitor, patience
        self.history: list[float] = []
        self.begun = self.swapped = False
        self.count = self.step = 0
        self.kept: dict[str, Tensor] = {}
        """The mean of `count` steps, by parameter; while it stands in the module, the last weights."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        own = dict(pl_module.named_parameters())
        self.kept = {name: weight.to(own[name].device) for name, weight in self.kept.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if not self.begun or trainer.global_step == self.step:  # no step yet, of several batches
            return
        self.step, self.count = trainer.global_step, self.count + 1
        for name, weight in pl_module.named_parameters():
            self.kept.setdefault(name, weight.clone()).lerp_(weight, 1 / self.count)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self.swap(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self.swapped:
            self.swap(pl_module)
        if not self.begun:
            value, early = self.sign * float(trainer.callback_metrics[self.monitor]), len(self.history) - self.patience
            self.begun = early > 0 and value > min(self.history[: early + 1])
            self.history.append(value)
            self.step = trainer.global_step
            if self.begun and trainer.is_global_zero:
                print(printable(f"weights are averaged from here on: {self.monitor} has not gained"), flush=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.swap(pl_module)

    @torch.no_grad()
    def swap(self, module: pl.LightningModule) -> None:
        """Exchange the module's weights and those kept, if there is a mean."""
        for name, weight in module.named_parameters() if self.count else ():
            other = weight.clone()
            weight.copy_(self.kept[name])
            self.kept[name].copy_(other)
        self.swapped = self.count > 0 and not self.swapped

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["averaging"] = {key: getattr(self, key) for key in ("history", "begun", "count", "step")}
        if not self.count:
            return
        before = self.swapped
        if not before:
            self.swap(pl_module)
        weights = trainer.strategy.lightning_module_state_dict()
        checkpoint["state_dict"] = {name: weight.clone() for name, weight in weights.items()}
        checkpoint["averaging"]["last"] = {name: weight.clone() for name, weight in self.kept.items()}
        if not before:
            self.swap(pl_module)

    @torch.no_grad()
    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("averaging")
        if trainer.state.fn != "fit" or saved is None:
            return
        self.history, self.begun, self.count, self.step = (saved[k] for k in ("history", "begun", "count", "step"))
        for name, weight in pl_module.named_parameters() if self.count else ():
            self.kept[name] = weight.detach().clone()
            weight.copy_(saved["last"][name])
