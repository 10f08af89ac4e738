"""What the words of a review tell with no more than their neighbours: NB-SVM, the baseline of `task=imdb`.

Wang and Manning 2012 (ACL, P12-2018), in the form with logistic regression of Mesnil et al. 2014 (arXiv:1412.5335).

Shapes: R reviews, T tokens of all reviews end to end, P pairs of an n-gram and a review in which it occurs, G n-grams
that are known, B batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from rnnzoo.files import cache_folder, writing
from rnnzoo.plain import printable

from .blocks import Array
from .review_files import read_reviews
from .reviews import held_out, kept, key_of, number_all

TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[^\w\s]")
"""Words, and punctuation marks one by one: they tell, too."""
LONGEST = 3
"""Words of an n-gram."""
SMOOTHING = 1.0
"""Added to every count: α."""
STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""Weights of the loss against the penalty that the validation part chooses from: C."""
LEARNED = 50_000
"""Training reviews that are learned from, for which 3 GiB of memory do; of more so many are drawn."""
AT_ONCE = 2000
"""Reviews that are judged together."""


def nb_svm(source: Path, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Logits of the reviews held out and of the test part [R], from the cache if these very data were judged before.

    Whole reviews are read, and all n-grams of the training part, or of `LEARNED` reviews of it.
    """
    numbers = cache_folder() / "nb_svm.int32"

    def judged() -> dict[str, Array]:
        print(
            "reading all words, pairs and triples for NB-SVM, the baseline; two minutes for 50,000 reviews, once",
            flush=True,
        )
        with writing(numbers) as partial:
            _, _, lengths, labels, test = number_all(read_reviews(source), tokenize, None, partial)
        val = np.zeros_like(test)
        val[~test] = held_out(torch.from_numpy(labels[~test]), val_fraction, seed, source)
        train = np.flatnonzero(~test & ~val)
        if len(train) > LEARNED:
            some = f"{LEARNED:,} of {len(train):,} training reviews, drawn at random"
            print(printable(f"NB-SVM learns from {some}, and judges {(test | val).sum():,}; minutes more"), flush=True)
            train = np.sort(np.random.default_rng(seed).permutation(train)[:LEARNED])
        try:
            tokens, ends = np.memmap(numbers, np.int32, "r"), np.append(0, lengths.cumsum())
            found = judge(tokens, ends, labels, train, np.flatnonzero(val), np.flatnonzero(test))
        finally:
            numbers.unlink()
        return dict(zip(("val", "test"), found))

    def load(stored: Mapping[str, Array]) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(stored["val"]), torch.from_numpy(stored["test"])

    return kept(f"imdb_nb_svm_{key_of(source, val_fraction, seed)}", judged, load)


def tokenize(review: str) -> list[str]:
    return TOKEN.findall(review.replace("<br />", " ").lower())


def judge(tokens: Array, ends: Array, labels: Array, train: Array, val: Array, test: Array) -> tuple[Array, Array]:
    """The logits of some reviews, and of others, with the strength that judges the former best.

    Args:
        tokens: of all reviews by number, [T].
        ends: of the reviews, [R + 1].
        labels: 1 for a positive review, [R].
        train: rows of the reviews that are learned from.
        val: rows of those that choose the strength, the weakest of the best.
        test: rows of those that are judged, too.
    """
    known: list[Array] = []
    size = int(tokens.max(initial=0)) + 1

    def occurring(rows: Array) -> tuple[Array, Array]:
        taken = np.concatenate([tokens[:0], *(tokens[ends[row] : ends[row + 1]] for row in rows)])
        return occurrences(taken, np.append(0, np.diff(ends)[rows].cumsum()), size, known)

    def logits(rows: Array, weights: Array) -> Array:
        found = [np.zeros((len(weights), 0))]
        for some in np.array_split(rows, -(-len(rows) // AT_ONCE) or 1):
            grams, reviews = occurring(some)
            found.append(np.stack([np.bincount(reviews, w[grams], len(some)) + w[-1] for w in weights]))
        return np.concatenate(found, 1)

    weights = learn(*occurring(train), labels[train])
    found = logits(val, weights)
    best = ((found > 0) == labels[val]).mean(1).argmax()
    return found[best], logits(test, weights[best, None])[0]


def occurrences(tokens: Array, ends: Array, size: int, known: list[Array]) -> tuple[Array, Array]:
    """Which n-grams of up to `LONGEST` tokens occur in which review: n-grams, ascending, and reviews, both [P].

    Args:
        tokens: numbers below `size`, [T].
        ends: of the reviews, [R + 1].
        size: different tokens.
        known: for each length the n-grams that are looked for; an empty list is filled with those that occur.
    """
    reviews = len(ends) - 1
    of_token = np.repeat(np.arange(reviews), np.diff(ends))
    number, pairs, before, learning = np.zeros(len(tokens), np.int64), [], 0, not known
    for n in range(1, LONGEST + 1):
        last = tokens[n - 1 :]  # of the n-gram that begins at each token
        number, review = number[: len(last)], of_token[: len(last)]
        # an n-gram is its last token and the number of what is before, which is -1 if that is not known
        whole = (number >= 0) & (review == of_token[n - 1 :])
        grams, which = np.unique(np.where(whole, number * size + last, -1), return_inverse=True)
        if learning:
            known.append(grams[grams >= 0])
        place = np.searchsorted(known[n - 1], grams)
        number = np.where(np.append(known[n - 1], -2)[place] == grams, place, -1)[which]
        found = number >= 0
        pairs.append(np.unique((number[found] + before) * reviews + review[found]))  # once a review
        before += len(known[n - 1])
    return np.divmod(np.concatenate(pairs), max(reviews, 1))


def learn(grams: Array, reviews: Array, labels: Array) -> Array:
    """What each n-gram adds to the logit for each strength, and what is added to all: [len(STRENGTHS), G + 1].

    Args:
        grams: see `occurrences`, [P].
        reviews: the same, [P].
        labels: [R].
    """
    counts = np.bincount(grams)
    starts = counts.cumsum() - counts  # of each n-gram's reviews in `reviews`
    positive = np.add.reduceat(labels[reviews].astype(np.int64), starts) + SMOOTHING
    negative = counts - positive + 2 * SMOOTHING
    ratio = np.append(np.log(positive / positive.sum()) - np.log(negative / negative.sum()), 1.0)  # the last: the bias
    space = np.empty(len(grams))  # to be filled again and again: new memory costs more than the sums
    sign = 1 - 2 * labels.astype(np.int64)
    weight = nn.Parameter(torch.zeros(len(ratio), dtype=torch.float64))
    found = np.empty((len(STRENGTHS), len(ratio)))
    for row, strength in enumerate(STRENGTHS):
        # Gradients by hand, because those of torch's sparse products take a hundred times as long.
        optimizer = torch.optim.LBFGS([weight], max_iter=60, history_size=5, line_search_fn="strong_wolfe")

        def closure(strength: float = strength) -> float:
            given = weight.detach().numpy()
            taken = np.take(given * ratio, grams, out=space, mode="clip")  # other modes make a copy first
            logit = np.bincount(reviews, taken, len(labels)) + given[-1]
            left = 1 / (1 + np.exp(-logit)) - labels
            by_gram = np.add.reduceat(np.take(left, reviews, out=space, mode="clip"), starts)
            penalty, pulled = strength * len(labels), np.append(given[:-1], 0.0)
            weight.grad = torch.from_numpy(np.append(by_gram, left.sum()) * ratio * strength + pulled) / penalty
            loss = np.logaddexp(0, sign * logit).sum()
            return float((strength * loss + pulled @ pulled / 2) / penalty)

        optimizer.step(closure)
        found[row] = weight.detach().numpy() * ratio
    return found


class MeansAccuracy(Metric):
    """The accuracy of (1 - w)·logit + w·other for w = 0, 0.05, ..., 1."""

    right: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.linspace(0, 1, 21)
        self.add_state("right", torch.zeros(21, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logit: Tensor, other: Tensor, labels: Tensor) -> None:
        """Add reviews: both logits and the labels, all [B]."""
        weights = self.weights.to(logit.device)[:, None]
        self.right.add_((((1 - weights) * logit + weights * other > 0) == labels).sum(1))
        self.count.add_(len(labels))

    def compute(self) -> Tensor:
        return self.right / self.count
