"""Pictures of a network while it learns, switched on by `pictures=true`: PNG files, images and numbers to the loggers.

They are measured on a few sequences of the first validation batch, on a copy of the layer, so that nothing of the
training changes.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytorch_lightning as pl
import torch
from hydra.utils import get_class
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.ticker import NullLocator
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from rnnzoo import Recurrent
from tasks.base import writing
from tasks.observe import Observed, gate_shares, lag_norms, observe, sigmoid_gates

SEQUENCES, STEPS = 8, 64
"""At most so many sequences and time steps of each are looked at."""

MEASURED = 5
"""At most so many times in a run, after epochs equally far apart, and after the last."""

SHARE = 0.01
"""Of a run's time for drawing: what took a second waits a hundred. A PNG can take as long as an epoch."""

WORDS = 60
"""Words of a review that fit on the page."""


class Seen(NamedTuple):
    """What pictures are made from: module, data, number of the epoch, and what each cell of the layers did, by name."""

    module: Any
    data: Any
    epoch: int
    cells: dict[str, Observed]


class Picture:
    """A kind of picture, over the epochs.

    `measure` keeps an epoch's numbers in `history`, which checkpoints save, and returns those that loggers get; `draw`
    makes the figure of all so far, or None if there is nothing to show, and whatever else belongs beside its PNG.
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        self.history: dict[int, Any] = {}

    def measure(self, seen: Seen) -> dict[str, float]:
        raise NotImplementedError

    def draw(self, png: Path) -> Figure | None:
        raise NotImplementedError


class GradientFlow(Picture):
    """How much of the last output's gradient arrives k time steps before, a curve for each epoch."""

    name = "gradient_flow"

    def measure(self, seen: Seen) -> dict[str, float]:
        norms = {cell: lag_norms(observed) for cell, observed in seen.cells.items()}
        self.history[seen.epoch] = norms
        lags = [2**k for k in range(STEPS.bit_length())]
        return {f"{cell}/lag_{k}": curve[k - 1] for cell, curve in norms.items() for k in lags if k <= len(curve)}

    def draw(self, png: Path) -> Figure | None:
        cells = self.history[max(self.history)]
        figure, rows = panels(len(cells), 1, 6, 3.2)
        for (axes,), cell in zip(rows, cells):
            for epoch, look in fading(self.history):
                # what is zero or not a number has no place on a logarithmic scale, and an axis of nothing else warns
                curve = [norm if norm > 0 else math.nan for norm in self.history[epoch].get(cell, [])]
                axes.plot(range(1, len(curve) + 1), curve, **look)
            axes.set(yscale="log", xlabel="lag k in time steps", title=f"{cell}: ‖ ∂ output(T) / ∂ state(T − k) ‖")
            # ticks in plain text: typesetting powers of ten takes longer than all the rest
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
            axes.legend(frameon=False)
        return figure


class GateActivations(Picture):
    """Every gate's mean, and how much of it is closed (below 0.1) or open (above 0.9)."""

    name = "gates"

    def measure(self, seen: Seen) -> dict[str, float]:
        self.history[seen.epoch] = {
            cell: {gate: gate_shares(values) for gate, values in observed.gates.items()}
            for cell, observed in seen.cells.items()
            if observed.gates
        }
        return {
            f"{cell}/{gate}/{what}": value
            for cell, found in self.history[seen.epoch].items()
            for gate, shares in found.items()
            for what, value in shares.items()
        }

    def draw(self, png: Path) -> Figure | None:
        cells = self.history[max(self.history)]
        if not cells:
            return None
        epochs = sorted(self.history)
        figure, rows = panels(len(cells), 2, 4.4, 3)
        for (means, shares), (cell, found) in zip(rows, cells.items()):
            for index, gate in enumerate(found):
                values = [self.history[epoch][cell][gate] for epoch in epochs]
                for axes, what, style in ((means, "mean", "-"), (shares, "open", "-"), (shares, "closed", "--")):
                    y = [value[what] for value in values]
                    axes.plot([e + 1 for e in epochs], y, style, color=f"C{index}", marker=".", label=gate)
            means.set(xlabel="epoch", ylim=(-0.02, 1.02), title=f"{cell}: mean of each gate")
            shares.set(xlabel="epoch", ylim=(-0.02, 1.02), title="share open, > 0.9 (—); closed, < 0.1 (--)")
            means.legend(frameon=False, ncols=2)
            for axes in (means, shares):
                axes.xaxis.get_major_locator().set_params(integer=True)
        return figure


class Prediction(Picture):
    """A series and what the model predicted of it; the module's `example(data)` gives both, [T] each."""

    name = "prediction"

    def measure(self, seen: Seen) -> dict[str, float]:
        self.truth, prediction = seen.module.example(seen.data)
        self.history[seen.epoch] = prediction.tolist()
        return {"rmse": float((prediction - self.truth).square().mean().sqrt())}

    def draw(self, png: Path) -> Figure | None:
        figure, ((axes,),) = panels(1, 1, 8, 3.2)
        axes.plot(self.truth.tolist(), "o", color="0.6", markersize=6, label="truth")
        for epoch, look in fading(self.history):
            axes.plot(self.history[epoch], **look)
        axes.set(xlabel="time step", title="predictions of the first validation series")
        axes.legend(loc="upper right", frameon=False, ncols=3)
        return figure


class RunningScore(Picture):
    """What a classifier of reviews says after each word: two positive and two negative ones, read from the start."""

    name = "running_score"

    @torch.no_grad()
    def measure(self, seen: Seen) -> dict[str, float]:
        reviews, self.words, self.labels, scores = seen.data.val, [], [], []
        for label in (1, 0):
            rows = (reviews.labels == label).nonzero()[:, 0]
            for row in rows[(reviews.lengths[rows] - WORDS * 2 // 3).abs().argsort(stable=True)[:2]]:
                codes = reviews[row][-WORDS:].long().to(seen.module.device)  # [T]
                scores.append(seen.module.judge(codes, running=True))
                self.words.append([seen.data.vocabulary[code] for code in codes.tolist()])
                self.labels.append("positive" if label else "negative")
        self.history[seen.epoch] = scores
        return {f"review_{number}": score[-1] for number, score in enumerate(scores, 1)}

    def draw(self, png: Path) -> Figure | None:
        figure, rows = panels(len(self.words), 1, 11, 2.4, bottom=0.9)
        for index, ((axes,), words) in enumerate(zip(rows, self.words)):
            for epoch, look in fading(self.history):
                axes.plot(self.history[epoch][index], **look)
            axes.axhline(0.5, color="0.6", linestyle=":")
            axes.set(
                ylim=(0, 1), xlim=(-0.5, len(words) - 0.5), title=f"a {self.labels[index]} review, prefix by prefix"
            )
            axes.set_ylabel("P(positive)")
            shown = ["·" if word == "<unknown>" else word for word in words]
            axes.set_xticks(range(len(words)), shown, rotation=90, fontsize=7, parse_math=False)
            axes.legend(frameon=False, ncols=2, loc="lower left")
        return figure


def panels(rows: int, columns: int, width: float, height: float, bottom: float = 0.5) -> tuple[Figure, Any]:
    """A figure of axes [rows, columns], sizes in inches; laid out by hand, which takes half of matplotlib's time."""
    figure = Figure(figsize=(width * columns, height * rows), dpi=100)
    axes = figure.subplots(rows, columns, squeeze=False)
    inner = height - bottom - 0.35
    figure.subplots_adjust(
        left=0.7 / width / columns, right=1 - 0.15 / width / columns, wspace=0.7 / (width - 0.85),
        bottom=bottom / height / rows, top=1 - 0.35 / height / rows, hspace=(bottom + 0.35) / inner,
    )  # fmt: skip
    return figure, axes


def fading(history: dict[int, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The epochs measured, and how to draw each: grey and fainter the older, the last one red."""
    *older, last = sorted(history)
    greys = [str(round(0.9 - 0.5 * (index + 1) / len(older), 2)) for index in range(len(older))]
    looks = [(epoch, {"color": grey, "linewidth": 1.2}) for epoch, grey in zip(older, greys)]
    looks.append((last, {"color": "C3", "linewidth": 1.8}))
    for epoch, look in (looks[0], looks[-1]):
        look["label"] = f"epoch {epoch + 1}"
    return looks


class Pictures(pl.Callback):
    """Measures and draws at the end of validation, in the first process.

    Args:
        own: dotted name of the picture that only this task has.
    """

    def __init__(self, own: str | None) -> None:
        self.pictures: list[Picture] = [GradientFlow(), GateActivations()]
        if own is not None:
            self.pictures.append(get_class(own)())
        self.layers: dict[str, Recurrent] = {}
        self.inputs: dict[str, Tensor] = {}
        self.handles: list[Any] = []
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
            for index, observed in enumerate(observe(layer, x, self.gates[name])):
                level, backward = divmod(index, 1 + layer.bidirectional)
                cells[f"{name}_{level + 1}{'_backward' * backward}"] = observed
        self.inputs = {}
        data = trainer.datamodule  # type: ignore[attr-defined]
        seen = Seen(pl_module, data, trainer.current_epoch, cells)
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
            figure = picture.draw(path)
            if figure is None:
                continue
            with writing(path) as partial:
                # packing the PNG well would take a third of the time
                figure.savefig(partial, format="png", pil_kwargs={"compress_level": 1})
            for logger in trainer.loggers:
                key = f"pictures/{picture.name}"
                if isinstance(logger, WandbLogger):
                    logger.log_image(key, [str(path)], trainer.global_step - 1)
                elif isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(key, imread(path), trainer.global_step - 1, dataformats="HWC")
        self.undrawn = False
        self.again = time.perf_counter() + (time.perf_counter() - start) / SHARE
