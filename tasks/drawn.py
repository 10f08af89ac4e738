"""Problems that are drawn: every batch is made anew from the seed, the split, the epoch and its number.

Nothing is stored, and no training sequence is seen twice.

Shapes: T time steps as the problem counts them, B sequences of a batch, which stand first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pydantic import PositiveInt
from torch import Tensor

from rnnzoo.lightning.data import Batches, SequenceData, in_order, share

TRAIN, VAL, TEST = range(3)
Key = tuple[int, int, int, int]
"""Split, epoch, number and sequences of a batch."""


IGNORED = -100
"""Where nothing is asked for, as `torch.nn.functional.cross_entropy` has it."""


class Batch(NamedTuple):
    """Input and target of B sequences."""

    x: Tensor
    y: Tensor


class Drawn(SequenceData):
    """Base of the data.

    Args:
        T: the problem's length in time steps.
        samples: training sequences an epoch; a tenth as many are drawn for validation, and for the test.
        batch_size: sequences in a batch.
        seed: of all that is drawn.
    """

    def __init__(
        self,
        T: PositiveInt = 100,
        samples: PositiveInt = 32000,
        batch_size: PositiveInt = 64,
        seed: int = 1,
    ) -> None:
        super().__init__()
        self.T, self.samples, self.batch_size, self.seed = T, samples, batch_size, seed
        self.held_out = max(samples // 10, 2)

    def read(self) -> None:
        """Nothing: batches are drawn when they are wanted."""

    def draw(self, count: int, T: int, generator: torch.Generator) -> Batch:
        """`count` sequences of length T."""
        raise NotImplementedError

    def length(self, split: int) -> int:
        """The length of a split's sequences."""
        return self.T

    def train_dataloader(self) -> Any:
        return Batches(lambda epoch: self._keys(TRAIN, epoch, self.samples), self._share, self.position)

    def val_dataloader(self) -> Any:
        return Batches(lambda epoch: self._keys(VAL, 0, self.held_out), self._share)

    def test_dataloader(self) -> Any:
        return Batches(lambda epoch: self._keys(TEST, 0, self.held_out), self._share)

    def _keys(self, split: int, epoch: int, samples: int) -> Sequence[Key]:
        return [(split, epoch, number, len(rows)) for number, rows in enumerate(in_order(samples, self.batch_size))]

    def _share(self, key: Key) -> Batch:
        *drawn_from, count = key
        generator = torch.Generator().manual_seed(hash((self.seed, *drawn_from)) % 2**63)
        return Batch(*map(share, self.draw(count, self.length(key[0]), generator)))
