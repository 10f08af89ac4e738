"""What the words of a review tell with no more than their neighbours: NB-SVM, the baseline of `task=imdb`.

Wang and Manning 2012 (ACL, P12-2018), in the form with logistic regression of Mesnil et al. 2014 (arXiv:1412.5335).

Shapes: R reviews, T tokens of all reviews end to end, P pairs of an n-gram and a review in which it occurs, B batch.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric

from .review_files import read_reviews
from .reviews import held_out, kept, key_of

Array = NDArray[Any]

TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[^\w\s]")
"""Words, and punctuation marks one by one: they tell, too."""
LONGEST = 3
"""Words of an n-gram."""
SMOOTHING = 1.0
"""Added to every count: α."""
STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""Weights of the loss against the penalty that the validation part chooses from: C."""


def nb_svm(source: Path, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Logits of the reviews held out and of the test part [R], from the cache if these very data were judged before.

    Whole reviews are read, and all n-grams of the training part.
    """

    def judged() -> dict[str, Array]:
        print("reading all words, pairs and triples for NB-SVM, the baseline; a minute or two, once", flush=True)
        tokens, ends, labels, test = _tokens(source)
        val = np.zeros_like(test)
        val[~test] = held_out(torch.from_numpy(labels[~test]), val_fraction, seed)
        grams, reviews = occurrences(tokens, ends, LONGEST)
        logit = judge(grams, reviews, labels, ~test & ~val, val)
        return {"val": logit[val], "test": logit[test]}

    def load(stored: Mapping[str, Array]) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(stored["val"]), torch.from_numpy(stored["test"])

    return kept(f"imdb_nb_svm_{key_of(source, val_fraction, seed)}", judged, load)


def _tokens(source: Path) -> tuple[Array, Array, Array, Array]:
    """Tokens by number [T], ends of reviews [R + 1], labels [R], and which are of the test part [R]."""
    number: dict[str, int] = {}
    tokens, ends, labels, test = array("i"), array("q", [0]), array("q"), array("b")
    for split, label, text in read_reviews(source):
        found = TOKEN.findall(text.replace("<br />", " ").lower())
        tokens.extend([number.setdefault(token, len(number)) for token in found])
        ends.append(len(tokens))
        labels.append(label)
        test.append(split == "test")
    return np.array(tokens), np.array(ends), np.array(labels), np.array(test, dtype=bool)


def occurrences(tokens: Array, ends: Array, longest: int) -> tuple[Array, Array]:
    """Which n-grams of up to `longest` tokens occur in which review: n-grams, ascending, and reviews, both [P]."""
    of_token = np.repeat(np.arange(len(ends) - 1, dtype=np.int32), np.diff(ends))
    beginning, size = np.zeros(len(tokens), np.int64), int(tokens.max(initial=0)) + 1
    grams, reviews, before = [], [], 0
    for n in range(1, longest + 1):
        last = tokens[n - 1 :]  # of the n-gram that begins at each token
        beginning = beginning[: len(last)] * size + last  # the n-gram without it is known by its number
        order = beginning.argsort(kind="stable")
        new = np.diff(beginning[order], prepend=-1) != 0
        number = new.cumsum() - 1
        review = of_token[order]
        beginning[order] = number
        # the sort has left reviews in order, so that one that has an n-gram twice has it twice in a row
        once = (new | (np.diff(review, prepend=-1) != 0)) & (of_token[n - 1 :][order] == review)
        grams.append((number[once] + before).astype(np.int32))
        reviews.append(review[once])
        before += int(number[-1]) + 1 if len(number) else 0
    return np.concatenate(grams), np.concatenate(reviews)


def judge(grams: Array, reviews: Array, labels: Array, train: Array, val: Array) -> Array:
    """The logit of each review [R] by those of `train`, with the strength that judges those of `val` best.

    Args:
        grams: see `occurrences`, [P].
        reviews: the same, [P].
        labels: 1 for a positive review, [R].
        train: which reviews are learned from, [R].
        val: which ones choose the strength, the weakest of the best, [R].
    """
    known = np.zeros(grams.max(initial=-1) + 1, dtype=bool)
    known[grams[train[reviews]]] = True
    told = known[grams]
    grams, reviews = (known.cumsum() - 1)[grams[told]], reviews[told].astype(np.int64)
    learned = train[reviews]
    columns, rows = grams[learned], reviews[learned]
    counts = np.bincount(columns)
    starts = counts.cumsum() - counts  # of each n-gram's reviews in `rows`
    positive = np.add.reduceat(labels[rows], starts) + SMOOTHING
    negative = counts - positive + 2 * SMOOTHING
    ratio = np.log(positive / positive.sum()) - np.log(negative / negative.sum())
    space = np.empty(len(rows))  # to be filled again and again: new memory costs more than the sums

    def logit(weight: Array, columns: Array, rows: Array, space: Array | None = None) -> Array:
        taken = np.take(ratio * weight[:-1], columns, out=space, mode="clip")  # other modes make a copy first
        return np.bincount(rows, taken, len(labels)) + weight[-1]

    def residual(logit: Array) -> Array:
        return np.where(train, 1 / (1 + np.exp(-logit)) - labels, 0.0)

    weight = nn.Parameter(torch.zeros(len(ratio) + 1, dtype=torch.float64))  # the last one is the bias
    found, best = np.zeros(len(labels)), -1.0
    sign = 1 - 2 * labels[train]
    for strength in STRENGTHS:
        # Gradients by hand, because those of torch's sparse products take a hundred times as long.
        optimizer = torch.optim.LBFGS([weight], max_iter=60, history_size=5, line_search_fn="strong_wolfe")

        def closure(strength: float = strength) -> float:
            given = weight.detach().numpy()
            score = logit(given, columns, rows, space)
            left = residual(score)
            by_ratio = np.add.reduceat(np.take(left, rows, out=space, mode="clip"), starts) * ratio
            penalty = strength * train.sum()
            weight.grad = torch.from_numpy(np.append(by_ratio * strength + given[:-1], left.sum() * strength)) / penalty
            loss = np.logaddexp(0, sign * score[train]).sum()
            return float((strength * loss + given[:-1] @ given[:-1] / 2) / penalty)

        optimizer.step(closure)
        score = logit(weight.detach().numpy(), grams, reviews)
        right = float(((score > 0) == labels)[val].mean())
        if right > best:
            found, best = score, right
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
