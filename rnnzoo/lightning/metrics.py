"""Losses and metrics of a part of the data, over its batches and over all processes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection


class MeanLoss(Metric):
    """The mean of the losses of batches, weighted by how many elements each has, over all processes."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, count: int | Tensor) -> None:
        """Add a batch: its mean loss over `count` elements."""
        self.total.add_(loss * count)
        self.count.add_(count)

    def compute(self) -> Tensor:
        return self.total / self.count


class EvaluationMetrics(torch.nn.Module):
    """The mean loss and further torchmetrics of a split, over all processes."""

    def __init__(self, metrics: dict[str, Any]) -> None:
        super().__init__()
        self.loss = MeanLoss()
        self.further = MetricCollection(metrics).clone()

    def update(self, loss: Tensor, count: int | Tensor, *prediction_and_target: Tensor) -> None:
        """Add a batch: its mean loss over `count` elements, and what the further metrics take."""
        self.loss.update(loss, count)
        if prediction_and_target:
            self.further.update(*prediction_and_target)

    def compute(self) -> dict[str, Tensor]:
        """The values so far, then start anew."""
        values = {"loss": self.loss.compute(), **self.further.compute()}
        self.loss.reset()
        self.further.reset()
        return values


def mode_of(monitor: str) -> Literal["min", "max"]:
    """Whether a metric is best where it is lowest or highest."""
    return "min" if monitor.endswith("loss") else "max"
