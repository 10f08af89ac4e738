"""NB-SVM, and log-count ratios of n-grams as features: both against counting by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rnnzoo.tasks import nb_svm as in_nb_svm
from rnnzoo.tasks.imdb import Sentiment, Sentiments
from rnnzoo.tasks.nb_svm import STRENGTHS, MeansAccuracy, judge, nb_svm, occurrences
from rnnzoo.tasks.ratios import FOLDS, SMOOTHINGS, Ratios, folds_of
from rnnzoo.tasks.reviews import Reviews

Words = list[list[int]]


def end_to_end(reviews: Words) -> tuple[Any, Any]:
    """Tokens and ends."""
    tokens = np.array([token for review in reviews for token in review], dtype=np.int32)
    return tokens, np.array([0, *(len(review) for review in reviews)]).cumsum()


def grams_of(review: list[int], n: int) -> set[tuple[int, ...]]:
    return {tuple(review[at : at + n]) for at in range(len(review) - n + 1)}


@settings(deadline=None, max_examples=40)
@given(reviews=st.lists(st.lists(st.integers(0, 3), max_size=8), min_size=1, max_size=6))
def test_occurrences_are_those_of_sets(reviews: Words) -> None:
    known: list[Any] = []
    tokens, ends = end_to_end(reviews)
    grams, rows = occurrences(tokens, ends, 4, known)
    found: dict[int, list[int]] = {}
    for gram, row in zip(grams.tolist(), rows.tolist()):
        found.setdefault(gram, []).append(row)
    assert sorted(found) == list(found)  # ascending
    where: dict[tuple[int, ...], list[int]] = {}
    for row, review in enumerate(reviews):
        for n in (1, 2, 3):
            for gram in grams_of(review, n):
                where.setdefault(gram, []).append(row)
    assert sorted(found.values()) == sorted(where.values())  # reviews ascend, each once
    # what is known is found again under its number, and nothing else
    others = [review[::-1] for review in reviews]
    grams, rows = occurrences(*end_to_end(others), 4, known)
    number = {gram: place for place, gram in enumerate(sorted(where, key=lambda gram: (len(gram), gram)))}
    there = {(number[gram], row) for row, other in enumerate(others) for n in (1, 2, 3) for gram in grams_of(other, n)
             if gram in where}  # fmt: skip
    assert list(zip(grams.tolist(), rows.tolist())) == sorted(there)


def random_reviews(count: int, signal: float, seed: int) -> tuple[Words, list[int]]:
    """The pair 1 2 marks positive reviews and 2 1 negative ones, reliably with `signal` 1; others say nothing."""
    generator = np.random.default_rng(seed)
    reviews, labels = [], []
    for row in range(count):
        label = row % 2
        truthful = generator.random() < signal
        noise = generator.integers(3, 9, 4).tolist()
        at = int(generator.integers(0, 5))
        reviews.append([*noise[:at], *([1, 2] if label == truthful else [2, 1]), *noise[at:]])
        labels.append(label)
    return reviews, labels


def parts(count: int) -> tuple[Any, Any]:
    """Which are learned from and which choose the strength: the first half, and half of the rest."""
    return np.arange(count // 2), np.arange(count // 2, 3 * count // 4)


def test_what_only_pairs_tell_is_told() -> None:
    reviews, labels = random_reviews(80, 1, 0)
    _, logit = judge(*end_to_end(reviews), np.array(labels), *parts(80), np.arange(80))
    assert ((logit > 0) == np.array(labels)).all()


@pytest.mark.parametrize("at_once", [2000, 7])
def test_nb_svm_is_logistic_regression_on_ratios(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newton's method on C·Σ log-loss + ½|w|² over features r·f, f from sets, r from the paper, for each C."""
    monkeypatch.setattr(in_nb_svm, "AT_ONCE", at_once)
    reviews, labels = random_reviews(120, 0.75, 1)
    train, val = parts(120)
    y = np.array(labels)
    known = sorted({gram for row in train for n in (1, 2, 3) for gram in grams_of(reviews[row], n)})
    f = np.array([[gram in grams_of(review, len(gram)) for gram in known] for review in reviews], dtype=float)
    p, q = 1 + f[train][y[train] == 1].sum(0), 1 + f[train][y[train] == 0].sum(0)
    x = np.hstack([f * np.log((p / p.sum()) / (q / q.sum())), np.ones((120, 1))])
    found = {}
    for strength in STRENGTHS:
        w = np.zeros(x.shape[1])
        ridge = np.diag([1.0] * len(known) + [0.0])
        for _ in range(30):
            said = 1 / (1 + np.exp(-x[train] @ w))
            gradient = strength * x[train].T @ (said - y[train]) + ridge @ w
            w -= np.linalg.solve(strength * (x[train].T * (said * (1 - said))) @ x[train] + ridge, gradient)
        found[strength] = x @ w
    right = {strength: ((z > 0) == y)[val].mean() for strength, z in found.items()}
    best = max(STRENGTHS, key=lambda strength: (right[strength], -strength))
    assert len({round(share, 6) for share in right.values()}) > 1  # the choice is one
    of_val, logit = judge(*end_to_end(reviews), y, train, val, np.arange(120))
    assert logit == pytest.approx(found[best], abs=2e-3) and of_val == pytest.approx(logit[val])


def test_a_training_part_without_words_knows_nothing() -> None:
    logits = judge(*end_to_end([[], [], [1]]), np.array([1, 0, 1]), *(np.arange(2),) * 2, np.arange(3))
    assert all(np.isfinite(logit).all() for logit in logits)


def test_of_many_reviews_some_are_learned_from(
    reviews: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learned = []
    monkeypatch.setattr(in_nb_svm, "LEARNED", 20)
    monkeypatch.setattr(in_nb_svm, "judge", lambda *given: (learned.append(given[3]), judge(*given))[1])
    val, test = nb_svm(reviews, 0.25, 1)
    assert len(val) == 10 and len(test) == 42
    assert "NB-SVM learns from 20 of 32 training reviews, drawn at random" in capsys.readouterr().out
    assert len(set(learned[0].tolist())) == 20
    assert [path.suffix for path in own_cache.glob("[!.]*")] == [".npz"]  # the tokens are gone


def test_it_is_computed_once_for_the_same_data(
    reviews: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = nb_svm(reviews, 0.25, 1)
    assert "NB-SVM" in capsys.readouterr().out
    other = nb_svm(reviews, 0.5, 1)
    assert len(first[0]) == 10 and len(other[0]) == 20 and len(first[1]) == 42
    monkeypatch.delattr("rnnzoo.tasks.nb_svm.read_reviews")
    assert all(torch.equal(a, b) for a, b in zip(first, nb_svm(reviews, 0.25, 1)))


# Ratios


def batch(reviews: Words) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(review) for review in reviews])


def test_ratios_are_counted_by_hand_and_leave_a_fold_out() -> None:
    generator = np.random.default_rng(3)
    reviews = [generator.integers(2, 6, int(length)).tolist() for length in generator.integers(1, 6, 24)]
    labels = generator.permutation([0, 1] * 12).tolist()
    tokens, ends = end_to_end(reviews)
    ratios = Ratios(2, 1 << 20)
    starts, lengths = torch.from_numpy(ends[:-1]), torch.from_numpy(np.diff(ends))
    ratios.count(Reviews(torch.from_numpy(tokens), starts, lengths, torch.tensor(labels)))
    folds = folds_of(torch.tensor(labels))
    seen = [0, 0]
    for label, fold in zip(labels, folds.tolist()):
        assert fold == seen[label] * FOLDS // 12
        seen[label] += 1

    for of_batch in (None, folds):
        found = ratios(batch(reviews), of_batch)  # [T, B, N·S]
        for row, review in enumerate(reviews):
            others = [at for at in range(24) if of_batch is None or folds[at] != folds[row]]
            expected = [
                [
                    math.log((p + smoothing) / (q + smoothing))
                    for n in (1, 2)
                    for gram in [tuple([0, *review][at + 2 - n : at + 2])]
                    for p, q in [
                        [sum(gram in grams_of([0, *reviews[o]], n) for o in others if labels[o] == label)
                         for label in (1, 0)]
                    ]
                    for smoothing in SMOOTHINGS
                ]
                for at in range(len(review))
            ]  # fmt: skip
            assert torch.allclose(found[: len(review), row], torch.tensor(expected), atol=1e-5)


def test_only_in_training_a_fold_is_left_out(reviews: Path) -> None:
    data = Sentiments(str(reviews), vocabulary=50, maxlen=20, val_fraction=0.25)
    data.setup()
    module = Sentiment(model={"hidden_size": 4}, embedding=3, ngrams=3, buckets=512, dropout=0.0, word_dropout=0.0,
                       embedding_dropout=0.0)  # fmt: skip
    module.learn_from(data)
    assert module.ratios is not None
    module.ratios.count(data.train)
    read = data.batch(data.train, torch.arange(4))
    _, _, whole, _ = module.eval().score(read)
    _, _, left_out, _ = module.train().score(read)
    assert torch.allclose(whole, module(read.words, read.lengths).sigmoid())
    assert torch.allclose(left_out, module(read.words, read.lengths, read.folds).sigmoid())
    assert not torch.allclose(whole, left_out)
    assert data.batch(data.val, torch.arange(4)).folds is None


def test_the_mean_of_two_is_as_right_as_it_is() -> None:
    metric = MeansAccuracy()
    logits, others, labels = torch.tensor([2.0, -1.1, 3.3]), torch.tensor([-1.0, 3.0, -9.0]), torch.tensor([1, 1, 0])
    for rows in (slice(2), slice(2, 3)):
        metric.update(logits[rows], others[rows], labels[rows])
    # right are: the first for w < 2/3, the second and the third for w > 0.268
    expected = [((w < 13.5) + 2 * (w > 5)) / 3 for w in range(21)]
    assert metric.compute().tolist() == pytest.approx(expected)


def test_a_run_with_ratios_and_a_baseline_to_be_combined_with(reviews: Path, train: Callable[..., Path]) -> None:
    """Stopped after an epoch and gone on with, and evaluated from its checkpoint: the same as in one go."""
    toy = ("hardware=cpu", "experiment=imdb_best", f"task.data={reviews}", "task.batch_size=8", "task.embedding=4",
           "task.buckets=512", "task.val_fraction=0.25", "model.hidden_size=4", "optimizer.lr=0.02")  # fmt: skip
    found = json.loads((train(*toy, "trainer.max_epochs=2") / "summary.json").read_text())["metrics"]
    alone = [found["baseline/val_accuracy"], found["val/accuracy"]]
    assert found["val/combined_accuracy"] >= max(alone) - 1e-6 and "test/combined_accuracy" in found
    first = train(*toy, "trainer.max_epochs=1", "optimizer.schedule=constant")
    again = train(f"resume={first}", "trainer.max_epochs=2")
    module = Sentiment.load_from_checkpoint(again / "checkpoints" / "last.ckpt", weights_only=True)
    other = Sentiment.load_from_checkpoint(first / "checkpoints" / "best.ckpt", weights_only=True)
    assert module.ratios is not None and other.ratios is not None
    # 16 of 21 positive training reviews are not held out, and all have "it" in them
    assert module.ratios.counts[0].max() == 16 and torch.equal(module.ratios.counts, other.ratios.counts)
    [score] = module.eval().judge(torch.tensor([2, 3, 4]))
    alone = module(torch.tensor([[2], [3], [4]]), torch.tensor([3]))
    assert score == pytest.approx(alone.sigmoid().item())
