"""Linear forecasts of windows, fitted in closed form: an autoregression over all columns, NLinear and DLinear.

Shapes: T rows of a window, H rows ahead, n columns, m of them known ahead, K targets, B windows; R rows of a
regression, F features, O answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
"""Of a ridge regression, as shares of its features' mean variance."""

AVERAGED = 25
"""Rows of DLinear's moving average, as its authors have it."""

Rows = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Features [R, F] and answers [R, O] of a part, piece by piece; NaN where an answer is not known."""


def relative(x: Tensor, ahead: Tensor, known: Sequence[int]) -> Tensor:
    """Windows x [T, B, n] relative to their last rows, those rows, and the columns known ahead [H, B, m] relative to
    them: [B, T·n + H·m]."""
    last = x[-1]
    before = (x[:-1] - last).transpose(0, 1).flatten(1)
    return torch.cat([before, last, (ahead - last[:, known]).transpose(0, 1).flatten(1)], 1)


def apart(x: Tensor) -> Tensor:
    """Columns as if each were a series of its own, [T, B, K] to [B·K, T]."""
    return x.permute(1, 2, 0).flatten(0, 1)


def decomposed(x: Tensor) -> Tensor:
    """Windows [R, T] as their moving average, which repeats the ends, and what is left of them, [R, 2T]."""
    half = AVERAGED // 2
    trend = F.avg_pool1d(F.pad(x[:, None], (half, half), "replicate"), AVERAGED, 1)[:, 0]
    return torch.cat([trend, x - trend], 1)


def answered(features: Tensor, weights: Tensor) -> Tensor:
    """Features [R, F] times weights [F + 1, O], of which the last row is for a constant."""
    return features @ weights[:-1] + weights[-1]


def ridge(train: Rows, val: Rows) -> Tensor:
    """Weights [F + 1, O] for features and a constant, in float64, by least squares with a penalty on the former.

    Only rows whose answers are all known take part in it, none of them leads to zeros. The penalty is the best one on
    the validation part.
    """
    gram: Any = 0
    product: Any = 0
    for found, wanted in train():
        complete = ~wanted.isnan().any(1)
        rows = F.pad(found[complete], (0, 1), value=1.0)
        gram, product = gram + rows.T @ rows, product + rows.T @ wanted[complete]
    count = gram[-1, -1].clamp(min=1)
    mean, mean_answer = gram[-1, :-1] / count, product[-1] / count
    variances, axes = torch.linalg.eigh(gram[:-1, :-1] / count - torch.outer(mean, mean))
    variances = variances.clamp(min=torch.finfo(torch.float64).tiny)
    shared = axes.T @ (product[:-1] / count - torch.outer(mean, mean_answer))

    def fitted(penalty: float) -> Tensor:
        weights = axes @ (shared / (variances + penalty * variances.mean())[:, None])
        return torch.cat([weights, (mean_answer - mean @ weights)[None]])

    def error(weights: Tensor) -> Any:
        return sum((answered(found, weights) - wanted).square().nansum() for found, wanted in val())

    return min(map(fitted, PENALTIES), key=error)
