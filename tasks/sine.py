"""Sine regression: predict a sine wave's next value, then continue the wave from predictions alone.

Shapes: M windows, T time steps, B batch. All waves have one feature.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, R2Score

from rnnzoo import UserError
from rnnzoo.lightning.data import SequenceData
from rnnzoo.lightning.module import SequenceModule
from rnnzoo.lightning.pictures.picture import Picture, Seen, fading, panels
from rnnzoo.play.views import Series

ARTICLE_PROBES = (
    # first step number t of the input x_t = sin(t·π/6), its length, the right answer, the article's answer
    ("sin 0, sin π/6", (0, 1), math.sin(2 * math.pi / 6), 0.8429),
    ("sin 4π/6, sin 5π/6", (4, 5), 0.0, -0.0266),
    ("sin π/6", (1,), math.sin(2 * math.pi / 6) / 2, 0.4383),
    ("sin 5π/6", (5,), math.sin(2 * math.pi / 6) / 2, 0.4383),
)
"""Both single inputs are 0.5, from which the wave may rise to sin 2π/6 or fall to 0: the best answer is the mean."""


class Waves(SequenceData):
    """x_t = sin(θ + (t-1)Δθ) with θ uniform in [0, π]: windows [M, window + 1, 1] in float32.

    Args:
        samples: training windows; a tenth as many again are made for validation, and for the test.
        window: time steps of input, T; the target is the input one step later.
        step: Δθ in radians.
        batch_size: windows in a batch.
        seed: of phases and order.
    """

    at_once = 1024

    def __init__(
        self,
        samples: PositiveInt = 7000,
        window: PositiveInt = 24,
        step: PositiveFloat = math.pi / 6,
        batch_size: PositiveInt = 128,
        seed: int = 1,
    ) -> None:
        super().__init__()
        self.samples, self.window, self.step = samples, window, step
        self.batch_size, self.seed = batch_size, seed

    def read(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        held_out = max(self.samples // 10, 2)
        theta = math.pi * torch.rand(self.samples + 2 * held_out, generator=generator, dtype=torch.float64)
        wave = torch.sin(theta[:, None] + self.step * torch.arange(self.window + 1, dtype=torch.float64))  # [M, T + 1]
        self.train, self.val, self.test = wave[:, :, None].float().split([self.samples, held_out, held_out])

    def facts(self) -> dict[str, Any]:
        return {"window": self.window, "step": self.step}

    def baseline(self) -> dict[str, float]:
        """Persistence: the next value is the last one."""
        return {"baseline/persistence_mse": float(F.mse_loss(self.test[:, :-1], self.test[:, 1:]))}


class Sine(SequenceModule):
    """A recurrent layer and a linear head that predict the next value at every step.

    Args:
        window: time steps of input, T; the data tell.
        step: Δθ of the waves in radians, for continuing them; the data tell.
        warmup: steps at a window's start that are not scored: from one value nobody can tell a rise from a fall.
        prefix: true steps shown before a continuation.
        horizon: steps continued from the model's own outputs.
        probes: also print the published exercise's questions beside its answers (step must be π/6).
        base: see `SequenceModule`.
    """

    def __init__(
        self,
        window: PositiveInt | None = None,
        step: PositiveFloat | None = None,
        warmup: NonNegativeInt = 1,
        prefix: PositiveInt = 12,
        horizon: PositiveInt = 100,
        probes: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self._check()
        self.start()

    def build(self) -> None:
        self.layer = self.recurrent(1)
        self.head = nn.Linear(self.layer.output_size, 1)
        self.add_metrics(mse=MeanSquaredError(), mae=MeanAbsoluteError(), r2=R2Score())

    def learn_from(self, data: Any) -> None:
        super().learn_from(data)
        self._check()

    def _check(self) -> None:
        """Raise `UserError` for options that do not go with the windows, once these are known."""
        window, step, warmup, probes = (self.hparams[key] for key in ("window", "step", "warmup", "probes"))
        if window is not None and warmup >= window:
            raise UserError(f"task.warmup={warmup} leaves no step of task.window={window} to score")
        if probes and step is not None and not math.isclose(step, math.pi / 6):
            raise UserError("task.probes=true asks the article's questions, which need task.step=pi/6")

    def view(self, data: Any) -> Series:
        step = self.hparams["step"] or math.pi / 6
        prefix, horizon = self.hparams["prefix"], self.hparams["horizon"]
        wave = [[math.sin(1 + step * t)] for t in range(prefix + horizon)]

        def onwards(module: Sine, rows: Tensor) -> Tensor:
            x = rows[:, None].float()
            return module(x)[-1] if module.layer.bidirectional else module.continue_wave(x, horizon)[:, 0]

        return Series(["x"], wave[:prefix], onwards, wave[prefix:], ["x"])

    def pictures(self) -> list[Picture]:
        return [Prediction()]

    def forward(self, x: Tensor) -> Tensor:
        """Windows x [T, B, 1] to predictions of the next value at every step [T, B, 1]."""
        output, _ = self.layer(x.to(self.head.weight.dtype))
        return self.single(self.head(output))

    def variables(self, batch: Tensor) -> dict[str, Tensor]:
        """The next value, and the cosine of the phase, without which the value does not tell whether a wave rises."""
        wave, step = batch.squeeze(-1).T, self.hparams["step"]
        return {"next value": wave[1:], "cosine of the phase": (wave[1:] - wave[:-1] * math.cos(step)) / math.sin(step)}

    def score(self, batch: Tensor) -> tuple[Tensor, int, Tensor, Tensor]:
        """Of windows [B, T + 1, 1] also predictions and targets of all steps but the warm-up's, [(T - warmup)·B]."""
        wave = batch.transpose(0, 1)
        warmup = self.hparams["warmup"]
        prediction, target = self(wave[:-1])[warmup:].reshape(-1), wave[1 + warmup :].reshape(-1)
        return F.mse_loss(prediction, target), target.numel(), prediction, target

    @torch.no_grad()
    def continue_wave(self, prefix: Tensor, horizon: int) -> Tensor:
        """Closed loop: from prefix [T, B, 1] feed each prediction back; returns [horizon, B, 1].

        A bidirectional layer cannot be stepped, so it reads all that there is so far anew for each value.
        """
        outputs: list[Tensor] = []
        if self.layer.bidirectional:
            for _ in range(horizon):
                outputs.append(self(torch.cat([prefix, *(o[None] for o in outputs)]))[-1])
            return torch.stack(outputs)
        dtype = self.head.weight.dtype
        output, state = self.layer(prefix.to(dtype))
        outputs.append(self.single(self.head(output[-1])))
        for _ in range(horizon - 1):
            output, state = self.layer.step(outputs[-1].to(dtype), state)
            outputs.append(self.single(self.head(output)))
        return torch.stack(outputs)

    @torch.no_grad()
    def example(self, data: Waves) -> tuple[Tensor, Tensor]:
        """The first validation window's next values and the predictions of them, [T] each."""
        wave = data.val[0, :, None].to(self.device)  # [T + 1, 1, 1]
        return wave[1:].flatten(), self(wave[:-1]).flatten()

    def on_test_epoch_end(self) -> None:
        self.log_metrics("test")
        step, prefix, horizon = (self.hparams[name] for name in ("step", "prefix", "horizon"))
        theta = torch.linspace(0, math.pi, 101, dtype=torch.float64)
        t = torch.arange(prefix + horizon, dtype=torch.float64)
        wave = torch.sin(theta + step * t[:, None])[:, :, None].float().to(self.device)  # [T, B, 1]
        continuation = self.continue_wave(wave[:prefix], horizon)
        rmse = F.mse_loss(continuation, wave[prefix:]).sqrt()
        self.log("test/closed_loop_rmse", rmse, sync_dist=True)
        middle = len(theta) // 4
        shown = wave[:, middle, 0].cpu(), continuation[:, middle, 0].cpu()
        self.draw("closed_loop", lambda: _closed_loop(*shown, prefix, float(rmse)))
        if self.hparams["probes"]:
            self._ask_probes()

    def _ask_probes(self) -> None:
        table = Table("input", "right answer", "this model", "the article's", title="the article's probes")
        for text, steps, right, article in ARTICLE_PROBES:
            x = torch.tensor([math.sin(t * math.pi / 6) for t in steps], device=self.device).reshape(-1, 1, 1)
            with torch.no_grad():
                answer = float(self(x)[-1])
            name = f"test/probe {text}".replace(" ", "_").replace(",", "")
            self.log(name, answer, sync_dist=True)
            table.add_row(text, f"{right:.4f}", f"{answer:.4f}", f"{article:.4f}")
        if self.trainer.is_global_zero:
            Console().print(table)


def _closed_loop(wave: Tensor, continuation: Tensor, prefix: int, rmse: float) -> Figure:
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots()
    t = range(len(wave))
    axes.plot(t, wave, color="0.75", linewidth=4, label="true wave")
    axes.plot(t[:prefix], wave[:prefix], "o", color="C0", markersize=4, label="prefix shown")
    axes.plot(t[prefix:], continuation, color="C3", linewidth=1.5, label="continued from its own outputs")
    axes.axvline(prefix - 0.5, color="0.5", linestyle=":")
    axes.set(xlabel="time step t", ylabel="x_t", ylim=(-1.6, 1.6))
    axes.set_title(f"closed loop over {len(continuation)} steps, RMSE {rmse:.4f}")
    axes.legend(loc="upper right", ncols=3, frameon=False)
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
