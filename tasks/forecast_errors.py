"""Errors of forecasts, in the data's units by target and in scaled ones over all; those of quantiles beside them.

Shapes: H rows ahead, B windows, K targets, Q quantiles.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from .quantiles import middle, pinball


class Errors(Metric):
    """Mean absolute error, root mean square error, and MASE of scaled forecasts, in the data's units, by target.

    MASE is the mean absolute error divided by that of the value a season before, over the training part (Hyndman &
    Koehler 2006). `rmse_last` is the root mean square error of the last row ahead alone. With several targets the names
    of the errors end in theirs. `scaled_mse` and `scaled_mae` are means over all targets in scaled units, as benchmarks
    of long horizons report them.

    Args:
        targets: names, K.
        scale: what the target was divided by, K.
        naive_error: mean absolute change over a season in the training part, K.
        options: keywords of `Metric`.
    """

    total_absolute: Tensor
    total_square: Tensor
    count: Tensor
    last_square: Tensor
    last_count: Tensor
    scale: Tensor
    naive_error: Tensor

    def __init__(self, targets: list[str], scale: list[float], naive_error: list[float], **options: Any) -> None:
        super().__init__(**options)
        self.suffixes = [f"_{name}" for name in targets] if len(targets) > 1 else [""]
        self.register_buffer("scale", torch.tensor(scale), persistent=False)
        self.register_buffer("naive_error", torch.tensor(naive_error), persistent=False)
        for name in ("total_absolute", "total_square", "count", "last_square", "last_count"):
            dtype = torch.long if name.endswith("count") else torch.float
            self.add_state(name, torch.zeros(len(targets), dtype=dtype), dist_reduce_fx="sum")

    def update(self, forecast: Tensor, target: Tensor) -> None:
        """Add a batch [H, ..., K] of either; what is not known of the target is left out."""
        known = ~target.isnan()
        error = (forecast - target).where(known, 0)
        over = tuple(range(error.dim() - 1))
        self.total_absolute += error.abs().sum(over)
        self.total_square += error.square().sum(over)
        self.count += known.sum(over)
        self.last_square += error[-1:].square().sum(over)
        self.last_count += known[-1:].sum(over)

    def compute(self) -> dict[str, Tensor]:
        count = self.count.sum()
        scaled = {"scaled_mse": self.total_square.sum() / count, "scaled_mae": self.total_absolute.sum() / count}
        mae = self.total_absolute / self.count * self.scale
        errors = {
            "mae": mae,
            "rmse": (self.total_square / self.count).sqrt() * self.scale,
            "rmse_last": (self.last_square / self.last_count).sqrt() * self.scale,
            "mase": mae / self.naive_error,
        }
        return self.by_target(errors) | scaled

    def by_target(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Values [K] by name, each target's under a name of its own."""
        return {name + s: value[k] for name, value in values.items() for k, s in enumerate(self.suffixes)}


class QuantileErrors(Errors):
    """Errors of the median; `pinball`, the mean pinball loss over all quantiles, in the data's units; and `coverage`,
    the share of the truth that lies between the outermost two, those included.

    A forecast whose outermost quantiles are 0.1 and 0.9 should cover 0.8 (Gneiting & Raftery 2007).

    Args:
        quantiles: rising, 0.5 among them, Q.
        others: arguments of `Errors`.
    """

    total_pinball: Tensor
    covered: Tensor
    quantiles: Tensor

    def __init__(self, quantiles: list[float], *others: Any, **options: Any) -> None:
        super().__init__(*others, **options)
        self.register_buffer("quantiles", torch.tensor(quantiles), persistent=False)
        self.median = middle(quantiles)
        for name, dtype in (("total_pinball", torch.float), ("covered", torch.long)):
            self.add_state(name, torch.zeros(len(self.suffixes), dtype=dtype), dist_reduce_fx="sum")

    def update(self, forecast: Tensor, target: Tensor) -> None:
        """Add a batch of forecasts [H, ..., K, Q] and targets [H, ..., K]."""
        super().update(forecast[..., self.median], target)
        known, over = ~target.isnan(), tuple(range(target.dim() - 1))
        loss = pinball(forecast, target, self.quantiles).mean(-1)
        self.total_pinball += loss.where(known, 0).sum(over)
        self.covered += ((forecast[..., 0] <= target) & (target <= forecast[..., -1])).sum(over)  # NaN is in none

    def compute(self) -> dict[str, Tensor]:
        found = {"pinball": self.total_pinball / self.count * self.scale, "coverage": self.covered / self.count}
        return super().compute() | self.by_target(found)
