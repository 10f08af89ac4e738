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
from tasks.base import Batches, EvaluationMetrics, SequenceData, SequenceModule, in_order, share, shuffled, writing

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

    def __init__(
        self, samples: PositiveInt, window: PositiveInt, step: PositiveFloat, batch_size: PositiveInt, seed: int
    ) -> None:
        super().__init__()
        self.batch_size, self.seed = batch_size, seed
        generator = torch.Generator().manual_seed(seed)
        held_out = max(samples // 10, 2)
        theta = math.pi * torch.rand(samples + 2 * held_out, generator=generator, dtype=torch.float64)
        wave = torch.sin(theta[:, None] + step * torch.arange(window + 1, dtype=torch.float64))  # [M, T + 1]
        self.train, self.val, self.test = wave[:, :, None].float().split([samples, held_out, held_out])

    def train_dataloader(self) -> Any:
        return Batches(
            lambda epoch: shuffled(len(self.train), self.batch_size, self.seed, epoch),
            lambda rows: self.train[share(rows)],
            self.position,
        )

    def val_dataloader(self) -> Any:
        return self._in_order(self.val)

    def test_dataloader(self) -> Any:
        return self._in_order(self.test)

    def baseline(self) -> dict[str, float]:
        """Persistence: the next value is the last one."""
        return {"baseline/persistence_mse": float(F.mse_loss(self.test[:, :-1], self.test[:, 1:]))}

    def _in_order(self, windows: Tensor) -> Any:
        return Batches(lambda epoch: in_order(len(windows), 1024), lambda rows: windows[share(rows)])


class Sine(SequenceModule):
    """A recurrent layer and a linear head that predict the next value at every step.

    Args:
        window: time steps of input, T.
        step: Δθ of the waves in radians, for continuing them.
        warmup: steps at a window's start that are not scored: from one value nobody can tell a rise from a fall.
        prefix: true steps shown before a continuation.
        horizon: steps continued from the model's own outputs.
        probes: also print the published exercise's questions beside its answers (step must be π/6).
    """

    picture = "tasks.pictures.Prediction"

    def __init__(
        self,
        model: dict[str, Any],
        optimizer: dict[str, Any],
        engine: str,
        seed: int,
        window: PositiveInt,
        step: PositiveFloat,
        warmup: NonNegativeInt,
        prefix: PositiveInt,
        horizon: PositiveInt,
        probes: bool,
    ) -> None:
        super().__init__(model, optimizer, engine, seed)
        if warmup >= window:
            raise UserError(f"task.warmup={warmup} leaves no step of task.window={window} to score")
        if probes and not math.isclose(step, math.pi / 6):
            raise UserError("task.probes=true asks the article's questions, which need task.step=pi/6")
        self.layer = self.recurrent(1)
        self.head = nn.Linear(self.layer.output_size, 1)
        self.add_metrics(mse=MeanSquaredError(), mae=MeanAbsoluteError(), r2=R2Score())

    def forward(self, x: Tensor) -> Tensor:
        """Windows x [T, B, 1] to predictions of the next value at every step [T, B, 1]."""
        output, _ = self.layer(x.to(self.head.weight.dtype))
        return self.single(self.head(output))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        prediction, target = self._scored(batch)
        return self.training_loss(F.mse_loss(prediction, target), target.numel())

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self._evaluate(self.val_metrics, batch)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self._evaluate(self.test_metrics, batch)

    def _evaluate(self, metrics: EvaluationMetrics, batch: Tensor) -> None:
        prediction, target = self._scored(batch)
        loss = F.mse_loss(prediction, target)
        metrics.update(loss, target.numel(), prediction, target)

    def _scored(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Windows [B, T + 1, 1] to predictions and targets of all steps but the warm-up's, [(T - warmup)·B] each."""
        wave = windows.transpose(0, 1)
        warmup = self.hparams["warmup"]
        return self(wave[:-1])[warmup:].reshape(-1), wave[1 + warmup :].reshape(-1)

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
        if self.trainer.is_global_zero:
            middle = len(theta) // 4
            path = Path(self.trainer.default_root_dir) / "plots" / "closed_loop.png"
            _plot(path, wave[:, middle, 0].cpu(), continuation[:, middle, 0].cpu(), prefix, float(rmse))
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


def _plot(path: Path, wave: Tensor, continuation: Tensor, prefix: int, rmse: float) -> None:
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
    with writing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
