"""Sine waves sampled at irregular times: told by their period from all others.

The task of Neil, Pfeiffer & Liu 2016 (Phased LSTM, arXiv:1610.09513), section 3.1, for cells that take time: without
it, one period cannot be told from another.

Shapes: T samples of a wave, B waves. Batches have their rows first, the layers time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn
from torchmetrics.classification import BinaryAccuracy

from rnnzoo.lightning.examples import examples, one_number
from rnnzoo.lightning.module import SequenceModule
from rnnzoo.play.views import Examples

from .drawn import Batch, Drawn

PERIODS = (1.0, 5.0, 6.0, 100.0)
"""Waves with periods between the inner two are to be told from those between an inner and an outer one."""

SPANS = (15.0, 125.0)
"""Between the first and the last possible sample of a wave lies a time between these two, itself within the longer."""


class Irregular(Drawn):
    """Waves of any phase, sampled at T times drawn uniformly from a span; the target is 1 for a period from 5 to 6.

    Input [B, T, 2] (time, value) and target [B] in float32. Half of the waves, drawn at random, have such a period, the
    logarithms of the others' are drawn uniformly from those of 1 to 5 and of 6 to 100. Differs: the authors'
    freq_task.py (github.com/dannyneil/public_plstm at 1bf2627) draws T as well, between 15 and 125, and leaves one in
    25 of the other half's periods between 5 and 6, with the target 1.

    Args:
        T: samples of a wave.
        samples: waves an epoch; a tenth as many are drawn for validation, and for the test.
        batch_size: waves in a batch.
        seed: of all that is drawn.
    """

    def __init__(
        self, T: PositiveInt = 100, samples: PositiveInt = 16000, batch_size: PositiveInt = 32, seed: int = 1
    ) -> None:
        super().__init__(T, samples, batch_size, seed)

    def draw(self, count: int, T: int, generator: torch.Generator) -> Batch:
        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(count, *shape, generator=generator)

        least, low, high, most = PERIODS
        kind = uniform(0, 1) < 0.5
        others = uniform(math.log(least), math.log(most) - math.log(high / low)).exp()
        period = torch.where(kind, uniform(low, high), torch.where(others > low, others * high / low, others))
        span = uniform(*SPANS)
        start = (SPANS[1] - span) * uniform(0, 1)
        times = start[:, None] + span[:, None] * uniform(0, 1, T).sort(1).values
        values = torch.sin(2 * math.pi * (times / period[:, None] + uniform(0, 1, 1)))
        return Batch(torch.stack([times, values], -1), kind.float())

    def baseline(self) -> dict[str, float]:
        """Guessing."""
        return {"baseline/trivial_accuracy": 0.5, "baseline/trivial_loss": math.log(2)}


class Frequency(SequenceModule):
    """Times and values through a recurrent layer, and a linear head on its last output.

    Args:
        base: see `SequenceModule`.
    """

    monitor = "val/accuracy"

    def __init__(self, **base: Any) -> None:
        super().__init__(**base)
        self.start()

    def build(self) -> None:
        self.layer = self.recurrent(2, "a wave is told once it has been heard to its end; leave it out")
        self.head = nn.Linear(self.layer.output_size, 1)
        self.add_metrics(accuracy=BinaryAccuracy(validate_args=False))

    def forward(self, x: Tensor) -> Tensor:
        """Times and values [T, B, 2] to the logits [B] of a period from 5 to 6."""
        output, _ = self.layer(x.to(self.head.weight.dtype))
        return self.single(self.head(output[-1])).squeeze(-1)

    def variables(self, batch: Batch) -> dict[str, Tensor]:
        """Which kind of wave it is."""
        return {"kind": batch.y}

    def view(self, data: Callable[[], Any]) -> Examples:
        return examples(data, one_number)

    def score(self, batch: Batch) -> tuple[Tensor, int, Tensor, Tensor]:
        """Also logits and targets [B]."""
        logits = self(batch.x.transpose(0, 1))
        return F.binary_cross_entropy_with_logits(logits, batch.y), batch.y.numel(), logits, batch.y
