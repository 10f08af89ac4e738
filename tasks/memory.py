"""Long memories: problems whose answer hangs on what was read up to T steps before.

Shapes: T as in the papers, B batch. Batches have their rows first, the layers time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError
from torchmetrics.classification import MulticlassAccuracy

from rnnzoo.lightning.examples import examples, one_number
from rnnzoo.lightning.module import SequenceModule
from rnnzoo.play.views import Examples

from .drawn import IGNORED, Batch, Drawn
from .one_hot import OneHot
from .symbols import FORWARD_ONLY, told

SYMBOLS, KINDS = 10, 8
"""Of the copy problem: how many symbols are to be remembered, and how many different ones there are."""

BLANK, DELIMITER = KINDS, KINDS + 1


class Copies(Drawn):
    """Ten symbols, T - 1 blanks, a delimiter, ten blanks; to be answered by T + 10 blanks, then the ten symbols.

    Input and target are symbol numbers [B, T + 20], as in Arjovsky, Shah & Bengio 2016 (arXiv:1511.06464), section 4.1,
    after Hochreiter & Schmidhuber 1997: 8 kinds of symbols, drawn uniformly.
    """

    def draw(self, count: int, T: int, generator: torch.Generator) -> Batch:
        symbols = torch.randint(KINDS, (count, SYMBOLS), generator=generator)
        x = torch.full((count, T + 2 * SYMBOLS), BLANK)
        y = x.clone()
        x[:, :SYMBOLS] = y[:, -SYMBOLS:] = symbols
        x[:, -SYMBOLS - 1] = DELIMITER
        return Batch(x, y)

    def baseline(self) -> dict[str, float]:
        """Without a memory: blanks where blanks belong, then any of the symbols, each as likely as the others."""
        return {"baseline/trivial_loss": SYMBOLS * math.log(KINDS) / (self.T + 2 * SYMBOLS)}


class Scattered(Drawn):
    """Ten symbols at any ten of T places, blanks elsewhere, then ten delimiters: to be answered by the ten in order.

    Input and answer are symbol numbers [B, T + 10], answers asked for at the end only. Selective copying, as in Gu &
    Dao 2023 (arXiv:2312.00752), section 4.1.1, after Jing et al. 2019 (arXiv:1706.02761), with the symbols of `Copies`.
    """

    def __init__(
        self,
        T: Annotated[int, Field(ge=SYMBOLS)] = 100,
        samples: PositiveInt = 32000,
        batch_size: PositiveInt = 64,
        seed: int = 1,
    ) -> None:
        super().__init__(T, samples, batch_size, seed)

    def draw(self, count: int, T: int, generator: torch.Generator) -> Batch:
        symbols = torch.randint(KINDS, (count, SYMBOLS), generator=generator)
        x, y = torch.full((count, T + SYMBOLS), BLANK), torch.full((count, T + SYMBOLS), IGNORED)
        places = torch.rand(count, T, generator=generator).argsort(1)[:, :SYMBOLS].sort(1).values
        x.scatter_(1, places, symbols)
        x[:, T:], y[:, T:] = DELIMITER, symbols
        return Batch(x, y)

    def facts(self) -> dict[str, int]:
        return {"read": KINDS + 2, "answered": KINDS}

    def baseline(self) -> dict[str, float]:
        """Guessing."""
        return {"baseline/trivial_accuracy": 1 / KINDS, "baseline/trivial_loss": math.log(KINDS)}


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

    def draw(self, count: int, T: int, generator: torch.Generator) -> Batch:
        values = torch.rand(count, T, generator=generator)
        middle = T // 2
        halves = ((0, middle), (middle, T))
        marked = torch.cat([torch.randint(*half, (count, 1), generator=generator) for half in halves], 1)
        marks = torch.zeros_like(values).scatter_(1, marked, 1.0)
        return Batch(torch.stack([values, marks], -1), values.gather(1, marked).sum(1))

    def baseline(self) -> dict[str, float]:
        """Without a memory: always 1, the mean of the sums. It costs their variance."""
        return {"baseline/trivial_loss": 1 / 6}


class Firsts(Drawn):
    """T + 1 standard normal values; the target is the first.

    Input [B, T + 1, 1] and target [B] in float32: the benchmark of Vecoven, Ernst & Drion 2021 (arXiv:2006.05252),
    "copy first input".
    """

    def __init__(
        self, T: PositiveInt = 300, samples: PositiveInt = 16000, batch_size: PositiveInt = 100, seed: int = 1
    ) -> None:
        super().__init__(T, samples, batch_size, seed)

    def draw(self, count: int, T: int, generator: torch.Generator) -> Batch:
        values = torch.randn(count, T + 1, generator=generator)
        return Batch(values[..., None], values[:, 0])

    def baseline(self) -> dict[str, float]:
        """Without a memory: always 0. It costs the variance."""
        return {"baseline/trivial_loss": 1.0}


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

    def example_inputs(self, steps: int, batch: int) -> dict[str, Tensor]:
        return {"codes": torch.randint(KINDS + 2, (steps, batch))}

    def forward(self, codes: Tensor) -> Tensor:
        """Symbol numbers [T + 20, B] to logits [T + 20, B, 9] of the eight kinds of symbols and the blank."""
        output, _ = self.layer(self.embed(codes))
        return self.single(self.head(output))

    def view(self, data: Callable[[], Any]) -> Examples:
        return examples(data, told)

    def score(self, batch: Batch) -> tuple[Tensor, int, Tensor, Tensor]:
        """Also logits and truth of the ten symbols to be recalled, [10·B, 9] and [10·B]."""
        logits, target = self(batch.x.T), batch.y.T
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        return loss, target.numel(), logits[-SYMBOLS:].flatten(0, 1), target[-SYMBOLS:].flatten()


class Adding(SequenceModule):
    """Values and marks through a recurrent layer, and a linear head on its last output.

    Args:
        embedding: size of the vector that a learned linear map makes of what is read; 0 for none.
        base: see `SequenceModule`.
    """

    features = 2
    """Numbers read at each step."""

    def __init__(self, embedding: NonNegativeInt = 0, **base: Any) -> None:
        super().__init__(**base)
        self.start()

    def build(self) -> None:
        size = self.hparams["embedding"]
        self.embed = nn.Linear(self.features, size) if size else nn.Identity()
        self.layer = self.recurrent(size or self.features, FORWARD_ONLY)
        self.head = nn.Linear(self.layer.output_size, 1)
        self.add_metrics(mse=MeanSquaredError(), mae=MeanAbsoluteError())

    def example_inputs(self, steps: int, batch: int) -> dict[str, Tensor]:
        return {"x": torch.randn(steps, batch, self.features)}

    def forward(self, x: Tensor) -> Tensor:
        """What is read [T, B, features] to the answers [B], of the last step."""
        output, _ = self.layer(self.embed(x.to(self.head.weight.dtype)))
        return self.single(self.head(output[-1])).squeeze(-1)

    def variables(self, batch: Batch) -> dict[str, Tensor]:
        """The sum of the marked values so far."""
        return {"sum so far": batch.x.prod(-1).cumsum(1).T}

    def view(self, data: Callable[[], Any]) -> Examples:
        return examples(data, one_number)

    def score(self, batch: Batch) -> tuple[Tensor, int, Tensor, Tensor]:
        """Also predictions and targets [B]."""
        prediction = self(batch.x.transpose(0, 1))
        return F.mse_loss(prediction, batch.y), batch.y.numel(), prediction, batch.y


class First(Adding):
    """Values through a recurrent layer, and a linear head on its last output; arguments as `Adding` has them."""

    features = 1

    def variables(self, batch: Batch) -> dict[str, Tensor]:
        """What is to be remembered."""
        return {"first value": batch.y}
