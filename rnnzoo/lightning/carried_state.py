"""Truncated back-propagation through time: windows of a long sequence whose state goes from one to the next.

In any LightningModule, with data whose batches are consecutive windows of the same streams:

    class MyModel(CarriedState, LightningModule):
        def training_step(self, batch, batch_idx):
            output, state = self.layer(batch.x, self.carried)
            self.carry(state)
            return loss(output, batch.y)

The state starts from zero in every epoch and in every evaluation, and is part of the checkpoint, so that a run resumed
within an epoch goes on with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rnnzoo.recurrent import State


def with_states(state: State, change: Callable[[Tensor], Tensor]) -> State:
    """The state with each of its tensors changed."""
    return change(state) if isinstance(state, Tensor) else tuple(change(tensor) for tensor in state)


class CarriedState:
    """Mixin that stands before `LightningModule` among the bases, see above.

    Attributes:
        carried: the state at the end of the last window, None at the start. Training and evaluation have one each.
    """

    trainer: Any
    training: bool
    device: Any
    _of_training: State | None = None
    _of_evaluation: State | None = None

    @property
    def carried(self) -> State | None:
        kept = self._of_training if self.training else self._of_evaluation
        # a checkpoint is read before the module lies where it will be trained
        return None if kept is None else with_states(kept, lambda state: state.to(self.device))

    def carry(self, state: State | None) -> None:
        """Keep a window's final state for the next one; no gradient flows back through it."""
        kept = None if state is None else with_states(state, Tensor.detach)
        if self.training:
            self._of_training = kept
        else:
            self._of_evaluation = kept

    def on_train_epoch_start(self) -> None:
        self._of_training = None

    def on_validation_epoch_start(self) -> None:
        self._of_evaluation = None

    def on_test_epoch_start(self) -> None:
        self._of_evaluation = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]

        # Each process carries its own streams, not always as many: all are saved, in order of the processes.
        carried = [self._of_training]
        if self.trainer.world_size > 1:
            carried = carried * self.trainer.world_size
            torch.distributed.all_gather_object(carried, self._of_training)
        checkpoint["carried"] = carried

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        carried = checkpoint.get("carried", [])
        rank: int = self.global_rank  # type: ignore[attr-defined]
        self._of_training = carried[rank] if rank < len(carried) else None
