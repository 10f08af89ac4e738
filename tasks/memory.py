"""Long memories: the copy and the adding problem, whose answer hangs on what was read up to T steps before.

Shapes: T as in the papers, B batch. Batches have their rows first, the layers time.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError
from torchmetrics.classification import MulticlassAccuracy

from rnnzoo.lightning.module import SequenceModule

from .drawn import Batch, Drawn
from .one_hot import OneHot

SYMBOLS, KINDS = 10, 8
"""Of the copy problem: how many symbols are to be remembered, and how many different ones there are."""

BLANK, DELIMITER = KINDS, KINDS + 1


class Copies(Drawn):
    """Ten symbols, T - 1 blanks, a delimiter, ten blanks; to be answered by T + 10 blanks, then the ten symbols.

    Input and target are symbol numbers [B, T + 20], as in Arjovsky, Shah & Bengio 2016 (arXiv:1511.06464), section 4.1,
    after Hochreiter & Schmidhuber 1997: 8 kinds of symbols, drawn uniformly.
    """

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        symbols = torch.randint(KINDS, (count, SYMBOLS), generator=generator)
        x = torch.full((count, self.T + 2 * SYMBOLS), BLANK)
        y = x.clone()
        x[:, :SYMBOLS] = y[:, -SYMBOLS:] = symbols
        x[:, -SYMBOLS - 1] = DELIMITER
        return Batch(x, y)

    def baseline(self) -> dict[str, float]:
        """Without a memory: blanks where blanks belong, then any of the symbols, each as likely as the others."""
        return {"baseline/trivial_loss": SYMBOLS * math.log(KINDS) / (self.T + 2 * SYMBOLS)}


class Sums(Drawn):
    """T values uniform in [0, 1], two of them marked with a 1, one in each half; the target is the sum of these two.

    Input [B, T, 2] (value, mark) and target [B] in float32, as in Arjovsky, Shah & Bengio 2016 (arXiv:1511.06464),
    section 4.2, after Hochreiter & Schmidhuber 1997.
    """

    def __init__(
        self,
        T: Annotated[int, Field(ge=2)] = 200,
        samples: PositiveInt = 16000,
        batch_size: PositiveInt = 32,
        seed: int = 1,
    ) -> None:
        super().__init__(T, samples, batch_size, seed)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        values = torch.rand(count, self.T, generator=generator)
        middle = self.T // 2
        halves = ((0, middle), (middle, self.T))
        marked = torch.cat([torch.randint(*half, (count, 1), generator=generator) for half in halves], 1)
        marks = torch.zeros_like(values).scatter_(1, marked, 1.0)
        return Batch(torch.stack([values, marks], -1), values.gather(1, marked).sum(1))

    def baseline(self) -> dict[str, float]:
        """Without a memory: always 1, the mean of the sums. It costs their variance."""
        return {"baseline/trivial_loss": 1 / 6}


FORWARD_ONLY = "read from both ends, nothing needs remembering for T steps; leave it out"


class Copy(SequenceModule):
    """One-hot symbols through a recurrent layer and a linear head to the logits of the answer at every step.

    Args:
        base: see `SequenceModule`.
    """

    def __init__(self, **base: Any) -> None:
        super().__init__(**base)
        self.start()

    def build(self) -> None:
        self.embed = OneHot(KINDS + 2)
        self.layer = self.recurrent(KINDS + 2, FORWARD_ONLY)
        self.head = nn.Linear(self.layer.output_size, KINDS + 1)
        self.add_metrics(accuracy=MulticlassAccuracy(KINDS + 1, average="micro", validate_args=False))

    def forward(self, codes: Tensor) -> Tensor:
        """Symbol numbers [T + 20, B] to logits [T + 20, B, 9] of the eight kinds of symbols and the blank."""
        output, _ = self.layer(self.embed(codes))
        return self.single(self.head(output))

    def score(self, batch: Batch) -> tuple[Tensor, int, Tensor, Tensor]:
        """Also logits and truth of the ten symbols to be recalled, [10·B, 9] and [10·B]."""
        logits, target = self(batch.x.T), batch.y.T
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        return loss, target.numel(), logits[-SYMBOLS:].flatten(0, 1), target[-SYMBOLS:].flatten()


class Adding(SequenceModule):
    """Values and marks through a recurrent layer, and a linear head on its last output.

    Args:
        base: see `SequenceModule`.
    """

    def __init__(self, **base: Any) -> None:
        super().__init__(**base)
        self.start()

    def build(self) -> None:
        self.layer = self.recurrent(2, FORWARD_ONLY)
        self.head = nn.Linear(self.layer.output_size, 1)
        self.add_metrics(mse=MeanSquaredError(), mae=MeanAbsoluteError())

    def forward(self, x: Tensor) -> Tensor:
        """Values and marks [T, B, 2] to the sums of the marked ones [B]."""
        output, _ = self.layer(x.to(self.head.weight.dtype))
        return self.single(self.head(output[-1])).squeeze(-1)

    def score(self, batch: Batch) -> tuple[Tensor, int, Tensor, Tensor]:
        """Also predictions and targets [B]."""
        prediction = self(batch.x.transpose(0, 1))
        return F.mse_loss(prediction, batch.y), batch.y.numel(), prediction, batch.y
