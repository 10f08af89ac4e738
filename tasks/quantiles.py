"""Quantiles of what comes: forecast without crossing, and learned by the pinball loss.

Shapes: Q quantiles, 0.5 among them, in the last dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rnnzoo import UserError


def check(quantiles: Sequence[float]) -> None:
    """Raise `UserError` unless they rise between 0 and 1 with 0.5 among them."""
    rising = all(low < high for low, high in zip([0.0, *quantiles], [*quantiles, 1.0]))
    if not rising or 0.5 not in quantiles or len(quantiles) < 2:
        raise UserError(
            f"task.quantiles=[{','.join(f'{q:g}' for q in quantiles)}]: must rise between 0 and 1, with 0.5, the "
            "median, and at least one other among them, as in [0.1,0.5,0.9]"
        )


def middle(quantiles: Sequence[float]) -> int:
    """The median's place."""
    return list(quantiles).index(0.5)


def median_first(quantiles: Sequence[float]) -> list[int]:
    """The places of all quantiles, the median's before the others'; the only one's without any."""
    median = middle(quantiles) if quantiles else 0
    return [median, *(place for place in range(len(quantiles)) if place != median)]


def ordered(values: Tensor, median: int) -> Tensor:
    """Any numbers [..., Q] to quantiles that rise: the median as it is, each other one a positive step further out."""
    steps = F.softplus(values)
    below = steps[..., :median].flip(-1).cumsum(-1).flip(-1)
    center, above = values[..., median : median + 1], steps[..., median + 1 :].cumsum(-1)
    return torch.cat([center - below, center, center + above], -1)


def opening(errors: Tensor, quantiles: Sequence[float]) -> Tensor:
    """Numbers [..., Q] of which `ordered` makes quantiles as far from the median 0 as those of errors [B, ...] are."""
    found = torch.from_numpy(np.nanquantile(errors.numpy(), list(quantiles), axis=0)).movedim(0, -1)
    steps = found.diff(dim=-1).nan_to_num(1.0).clamp(min=1e-3)
    steps = steps + (-(-steps).expm1()).log()  # the inverse of softplus
    median = middle(quantiles)
    return torch.cat([steps[..., :median], torch.zeros_like(found[..., :1]), steps[..., median:]], -1)


def pinball(forecasts: Tensor, truth: Tensor, quantiles: Tensor) -> Tensor:
    """max(q·e, (q - 1)·e) of the errors e = truth [...] - forecasts [..., Q]; least, on average, at the quantile q.

    Koenker & Bassett 1978, Regression quantiles, Econometrica 46.
    """
    error = truth[..., None] - forecasts
    return torch.maximum(quantiles * error, (quantiles - 1) * error)
