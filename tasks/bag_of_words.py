"""What the reviews' words tell without their order: the baseline of `task=imdb`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .reviews import Reviews


def bag_of_words(train: Reviews, val: Reviews, test: Reviews, vocabulary_size: int) -> dict[str, float]:
    """Accuracy of logistic regression on which words occur, its L2 penalty chosen on the validation part."""
    bags = {name: _bags(part, vocabulary_size) for name, part in (("train", train), ("val", val), ("test", test))}
    labels = {"train": train.labels, "val": val.labels, "test": test.labels}

    def scores(name: str, weight: Tensor) -> Tensor:
        rows, words = bags[name]
        return torch.bincount(rows, weight[words], minlength=len(labels[name])) + weight[-1]

    best: dict[str, float] = {}
    for penalty in (1e-4, 3e-4, 1e-3):
        # Gradients by hand, because those of torch's sparse products take a hundred times as long.
        weight = nn.Parameter(torch.zeros(vocabulary_size + 1, dtype=torch.float64))  # the last one is the bias
        optimizer = torch.optim.LBFGS([weight], max_iter=40, line_search_fn="strong_wolfe")

        def closure(weight: Tensor = weight, penalty: float = penalty) -> float:
            rows, words = bags["train"]
            logit = scores("train", weight.detach())
            residual = (logit.sigmoid() - labels["train"]) / len(logit)
            weight.grad = torch.bincount(words, residual[rows], minlength=len(weight)) + 2 * penalty * weight.detach()
            weight.grad[-1] = residual.sum()
            loss = F.binary_cross_entropy_with_logits(logit, labels["train"].double())
            return float(loss + penalty * weight.detach()[:-1].square().sum())

        optimizer.step(closure)
        accuracy = {
            f"baseline/{name}_accuracy": float(((scores(name, weight.detach()) > 0) == labels[name]).double().mean())
            for name in ("val", "test")
        }
        best = max(best, accuracy, key=lambda found: found.get("baseline/val_accuracy", -1))
    return best


def _bags(reviews: Reviews, vocabulary_size: int) -> tuple[Tensor, Tensor]:
    """Which words occur in which review, each pair once: row numbers [pairs] and word numbers [pairs]."""
    rows = torch.arange(len(reviews.labels)).repeat_interleave(reviews.lengths)
    pairs = torch.unique(rows * vocabulary_size + reviews.words)
    return pairs // vocabulary_size, pairs % vocabulary_size
