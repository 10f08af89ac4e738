"""Pictures of a network while it learns: PNG files, images and numbers to the loggers.

They are measured on a few sequences of the first validation batch, on a copy of the layer, so that nothing of the
training changes. In any project of Lightning's whose module holds a `Recurrent` and whose validation runs it:

    trainer = Trainer(callbacks=[Pictures()], default_root_dir="run")  # run/plots/gradient_flow_epoch_001.png, ...

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.image import imread
from torch import Tensor

from rnnzoo import Recurrent
from rnnzoo.lightning.figures import save
from rnnzoo.lightning.framework import pl
from rnnzoo.lightning.pictures.activity import STEPS, cells_of, observe
from rnnzoo.lightning.pictures.gates import GateActivations, sigmoid_gates
from rnnzoo.lightning.pictures.lag import GradientFlow
from rnnzoo.lightning.pictures.picture import Picture, Seen

SEQUENCES = 8
"""At most so many sequences are looked at."""

MEASURED = 5
"""At most so many times in a run, after epochs equally far apart, and after the last."""

SHARE = 0.01
"""Of a run's time for drawing: what took a second waits a hundred. A PNG can take as long as an epoch."""


class Pictures(pl.Callback):
    """Measures and draws at the end of validation, in the first process.

    Args:
        own: further pictures, such as those that a task has (`SequenceModule.pictures`), or `dynamics.Dynamics()`.
        usual: whether gradients by lag and gates are among the pictures.
    """

    def __init__(self, own: Sequence[Picture] = (), usual: bool = True) -> None:
        self.pictures: list[Picture] = [*([GradientFlow(), GateActivations()] if usual else []), *own]
        self.layers: dict[str, Recurrent] = {}
        self.inputs: dict[str, Tensor] = {}
        self.handles: list[Any] = []
        self.batch: Any = None
        self.again = 0.0
        self.undrawn = False

    def state_dict(self) -> dict[str, Any]:
        return {picture.name: picture.history for picture in self.pictures}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for picture in self.pictures:
            picture.history = state_dict.get(picture.name, {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.layers = {name: layer for name, layer in pl_module.named_modules() if isinstance(layer, Recurrent)}
            self.gates = {name: sigmoid_gates(layer) for name, layer in self.layers.items()}

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        every = max(1, -(-(trainer.max_epochs or 0) // MEASURED))
        due = trainer.current_epoch % every == 0 or trainer.current_epoch + 1 == trainer.max_epochs
        if due and batch_idx == 0:
            self.batch = batch
            self.handles = [
                layer.register_forward_pre_hook(self._keep(name), with_kwargs=True)
                for name, layer in self.layers.items()
            ]

    def _keep(self, name: str) -> Callable[..., None]:
        def keep(layer: Any, given: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            x, lengths = given[0], keywords.get("lengths")
            steps, rows = STEPS, torch.arange(min(SEQUENCES, x.shape[1]), device=x.device)
            if lengths is not None:
                longest, rows = lengths.topk(len(rows))
                steps = min(STEPS, int(longest[-1]))
            self.inputs.setdefault(name, x[:steps, rows])

        return keep

    def on_validation_batch_end(self, *args: Any) -> None:
        while self.handles:
            self.handles.pop().remove()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.inputs:
            return
        cells = {}
        for name, x in self.inputs.items():
            layer = self.layers[name]
            for where, observed in zip(cells_of(name, layer), observe(layer, x, self.gates[name])):
                cells[where] = observed
        data = trainer.datamodule  # type: ignore[attr-defined]
        seen = Seen(pl_module, data, trainer.current_epoch, cells, self.batch)
        self.inputs, self.batch = {}, None
        metrics: dict[str, float] = {}
        for picture in self.pictures:
            metrics |= {f"pictures/{picture.name}/{name}": value for name, value in picture.measure(seen).items()}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, trainer.global_step - 1)
        self.undrawn = True
        if time.perf_counter() >= self.again:
            self._draw(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.undrawn:
            self._draw(trainer)

    def _draw(self, trainer: pl.Trainer) -> None:
        start = time.perf_counter()
        epoch = max(self.pictures[0].history) + 1
        for picture in self.pictures:
            path = Path(trainer.default_root_dir) / "plots" / f"{picture.name}_epoch_{epoch:03d}.png"
            # packing the PNG well would take a third of the time
            packing = {"compress_level": 1}
            if not save(path, partial(picture.draw, path), dpi="figure", pil_kwargs=packing):
                continue
            for logger in trainer.loggers:
                key = f"pictures/{picture.name}"
                if isinstance(logger, pl.loggers.WandbLogger):
                    logger.log_image(key, [str(path)], trainer.global_step - 1)
                elif isinstance(logger, pl.loggers.TensorBoardLogger):
                    logger.experiment.add_image(key, imread(path), trainer.global_step - 1, dataformats="HWC")
        self.undrawn = False
        self.again = time.perf_counter() + (time.perf_counter() - start) / SHARE
