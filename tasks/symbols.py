"""Symbols in, symbols out: what the tasks share that read one sequence of symbols and answer at some of its places.

Shapes: T time steps, B batch; the layers have time first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from rnnzoo.lightning.examples import Lines, examples
from rnnzoo.lightning.module import SequenceModule
from rnnzoo.play.views import Examples

from .drawn import IGNORED, Batch
from .one_hot import OneHot

FORWARD_ONLY = "read from both ends, nothing needs to be kept in mind; leave it out"


def told(module: Any, batch: Batch) -> tuple[list[str], Lines]:
    """Of one example the symbols read, the likeliest answers, and the true ones where something is asked for."""
    answers, truth = module(batch.x.T)[:, 0].argmax(-1).tolist(), batch.y[0].tolist()
    asked = [answer != IGNORED for answer in truth]
    lines = {
        name: [str(n) if a else "" for n, a in zip(row, asked)] for name, row in (("answer", answers), ("truth", truth))
    }
    right = sum(mine == its for mine, its, a in zip(answers, truth, asked) if a)
    score: Lines = [("right", f"{right} of {sum(asked)}")]
    return list(map(str, batch.x[0].tolist())), [*lines.items(), *score]


class Symbols(SequenceModule):
    """Symbols through a recurrent layer and a linear head to the logits of the answer at every step.

    Args:
        read: how many symbols are read, and
        answered: among how many answers the choice is; both as the data have it.
        embedding: size of the learned vectors that stand for the symbols; 0 for vectors with a single one.
        window: symbols that each step reads: its own and, behind it, those before; zeros before the first.
        base: see `SequenceModule`.
    """

    told = ("read", "answered")

    def __init__(
        self,
        read: int | None = None,
        answered: int | None = None,
        embedding: NonNegativeInt = 0,
        window: PositiveInt = 1,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.start()

    def build(self) -> None:
        read, answered, size = (self.hparams[key] for key in ("read", "answered", "embedding"))
        self.embed = nn.Embedding(read, size) if size else OneHot(read)
        self.layer = self.recurrent((size or read) * self.hparams["window"], FORWARD_ONLY)
        self.head = nn.Linear(self.layer.output_size, answered)
        self.add_metrics(accuracy=MulticlassAccuracy(answered, average="micro", validate_args=False))

    def example_inputs(self, steps: int, batch: int) -> dict[str, Tensor]:
        return {"symbols": torch.randint(self.hparams["read"], (steps, batch))}

    def forward(self, symbols: Tensor) -> Tensor:
        """Symbol numbers [T, B] to the logits of the answers [T, B, answered]."""
        read, window = self.embed(symbols), self.hparams["window"]
        if window > 1:
            before = [F.pad(read, (0, 0, 0, 0, steps, 0))[: symbols.shape[0]] for steps in range(1, window)]
            read = torch.cat([read, *before], -1)
        output, _ = self.layer(read)
        return self.single(self.head(output))

    def variables(self, batch: Batch) -> dict[str, Tensor]:
        """The state of which the answer tells, if it is asked for at every step: 0 or 1, or each against all others."""
        states = batch.y.T
        if (states == IGNORED).any():
            return {}
        if self.hparams["answered"] == 2:
            return {"state": states.float()}
        return {f"state {k}": (states == k).float() for k in range(self.hparams["answered"])}

    def view(self, data: Callable[[], Any]) -> Examples:
        return examples(data, told)

    def score(self, batch: Batch) -> tuple[Tensor, ...]:
        """In evaluation also logits [N, answered] and answers [N] of the N places where something is asked for."""
        logits, answers = self(batch.x.T).flatten(0, 1), batch.y.T.flatten()
        asked = answers != IGNORED
        loss = F.cross_entropy(logits, answers, ignore_index=IGNORED), asked.sum()
        if self.training:  # to pick them out, a GPU would be waited for
            return loss
        return *loss, logits[asked], answers[asked]
