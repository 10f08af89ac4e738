"""How much more often a review's n-grams stand in positive reviews than in negative ones, as features of its words.

The log-count ratios of Wang and Manning 2012 (ACL, P12-2018), each smoothed in several ways: a rare n-gram is to be
trusted less. A training review would find itself in the counts, and the reviews of the same film beside it, as no new
review does. So it is read with the counts of the other folds; a fold is a stretch of the reviews in their order, where
a film's are neighbours.

Shapes: T time steps (words), B reviews, N lengths of n-grams, S smoothings, R training reviews.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnzoo.progress import steps

from .reviews import PADDING, Reviews

SMOOTHINGS = 1.0, 8.0, 32.0
FOLDS = 8
PRIME, MODULUS = 1_000_003, 2**31 - 1
"""Of the hash of an n-gram; their product fits into 64 bits."""

AT_ONCE = 256
"""Reviews that are counted together."""


def folds_of(labels: Tensor) -> Tensor:
    """The fold of each training review [R]: of each class, equal stretches in order."""
    folds = torch.empty_like(labels)
    for label in (0, 1):
        rows = (labels == label).nonzero()[:, 0]
        folds[rows] = torch.arange(len(rows)) * FOLDS // max(len(rows), 1)
    return folds


class Ratios(nn.Module):
    """Log-count ratios of the n-grams that end at a word, from tables of counts.

    Args:
        longest: words of the longest n-gram, N.
        buckets: cells of a table; n-grams that fall into the same one share it.
    """

    counts: Tensor

    def __init__(self, longest: int, buckets: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(longest, buckets, 2, dtype=torch.int32))
        self.of_folds: Tensor | None = None  # no buffer: it is for training alone, and the same in all processes
        self.features = longest * len(SMOOTHINGS)

    def cells(self, words: Tensor) -> list[Tensor]:
        """The cell of the n-gram that ends at each word [T, B], for each length; before a review there is padding."""
        longest, steps = len(self.counts), words.shape[0]
        padded = F.pad(words.long(), (0, 0, longest, 0), value=PADDING)
        hashed, found = padded.narrow(0, longest, steps), []
        for before in range(1, longest + 1):
            found.append(hashed % self.counts.shape[1])
            hashed = (hashed * PRIME + padded.narrow(0, longest - before, steps) + 1) % MODULUS
        return found

    def count(self, reviews: Reviews) -> None:
        """Count the training reviews of each label, and of each fold, in which an n-gram stands."""
        folds = folds_of(reviews.labels)
        self.of_folds = torch.zeros(FOLDS, *self.counts.shape, dtype=torch.int32)
        for rows in steps(torch.arange(len(folds)).split(AT_ONCE), "counting n-grams", lambda rows: f"to {rows[-1]:,}"):
            words = nn.utils.rnn.pad_sequence([reviews[row] for row in rows], padding_value=PADDING)
            for n, cells in enumerate(self.cells(words)):
                found = torch.unique((cells * len(rows) + torch.arange(len(rows)))[words != PADDING])  # once a review
                row = rows[found % len(rows)]
                at = (folds[row], torch.tensor(n), found // len(rows), reviews.labels[row])
                self.of_folds.index_put_(at, torch.ones_like(row, dtype=torch.int32), accumulate=True)
        self.counts.copy_(self.of_folds.sum(0))

    def forward(self, words: Tensor, folds: Tensor | None = None) -> Tensor:
        """Ratios [T, B, N·S] of words [T, B]; of training reviews by the other folds than theirs [B]."""
        found = []
        for n, cells in enumerate(self.cells(words)):
            counts = self.counts[n, cells]  # [T, B, 2]
            if folds is not None:
                assert self.of_folds is not None, "`count` the training reviews first"
                self.of_folds = self.of_folds.to(words.device)
                counts = counts - self.of_folds[folds.expand_as(cells), n, cells]
            found += [(counts + smoothing).log().diff(dim=-1) for smoothing in SMOOTHINGS]
        return torch.cat(found, -1)
