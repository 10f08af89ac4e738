"""Associative recall: pairs of a key and a value, then keys alone, each to be answered by its value.

Shapes: T time steps, B batch, P pairs.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field, PositiveInt

from rnnzoo import UserError

from .drawn import IGNORED, Batch, Drawn


class Pairs(Drawn):
    """P pairs first, then every key once more, in any order, at places drawn uniformly; all else is blank.

    Input [B, T] and answer [B, T] are symbol numbers: the blank, the keys, the values; answers count values from 0 and
    are asked for where a key is read for the second time. After Arora et al. 2023 (Zoology, arXiv:2312.04927), who call
    it multi-query associative recall; there, keys come back soon more often than late.

    Args:
        T: time steps.
        pairs: pairs of a sequence.
        vocabulary: keys and values that there are, half of them each.
        samples: training sequences an epoch; a tenth as many are drawn for validation, and for the test.
        batch_size: sequences in a batch.
        seed: of all that is drawn.
    """

    def __init__(
        self,
        T: PositiveInt = 64,
        pairs: PositiveInt = 8,
        vocabulary: Annotated[int, Field(ge=4)] = 64,
        samples: PositiveInt = 16000,
        batch_size: PositiveInt = 64,
        seed: int = 1,
    ) -> None:
        super().__init__(T, samples, batch_size, seed)
        if 3 * pairs > T:
            raise UserError(f"task.pairs={pairs}: pairs and questions take {3 * pairs} steps, more than task.T={T}")
        if pairs > vocabulary // 2:
            raise UserError(f"task.pairs={pairs}: task.vocabulary={vocabulary} has only {vocabulary // 2} keys")
        self.pairs, self.kinds = pairs, vocabulary // 2

    def draw(self, count: int, T: int, generator: torch.Generator) -> Batch:
        P = self.pairs

        def some(among: int) -> torch.Tensor:
            """P different numbers below `among` for each sequence, in any order [B, P]."""
            return torch.rand(count, among, generator=generator).argsort(1)[:, :P]

        keys, values = some(self.kinds), torch.randint(self.kinds, (count, P), generator=generator)
        x, y = torch.zeros(count, T, dtype=torch.long), torch.full((count, T), IGNORED)
        x[:, 0 : 2 * P : 2], x[:, 1 : 2 * P : 2] = 1 + keys, 1 + self.kinds + values
        places = 2 * P + some(T - 2 * P)
        return Batch(x.scatter_(1, places, 1 + keys), y.scatter_(1, places, values))

    def facts(self) -> dict[str, int]:
        return {"read": 1 + 2 * self.kinds, "answered": self.kinds}

    def baseline(self) -> dict[str, float]:
        """Knowing which values there were, but not whose: any of the P; and what a guess among all values costs."""
        return {"baseline/trivial_accuracy": self._of_those_seen(), "baseline/trivial_loss": math.log(self.kinds)}

    def _of_those_seen(self) -> float:
        """How often one of the values seen, drawn at random, is the right one."""
        return 1 / self.pairs + (1 - 1 / self.pairs) / self.kinds
