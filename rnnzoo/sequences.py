"""Sequences of different lengths side by side in one tensor.

Shapes: T time steps, B batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rnnzoo.errors import UserError


def check_lengths(lengths: Tensor | list[int], steps: int, batch: int) -> Tensor:
    """The lengths [B] as int64. Raises `UserError` when they are not `batch` integers between 1 and `steps`.

    Lengths that lie on a CUDA device are looked at there, without waiting for them: wrong ones fail as the device's own
    assertions do, later and with this message.
    """
    lengths = torch.as_tensor(lengths)
    if batch == 0 and lengths.shape == (0,):  # which from a list is of no integer type
        return lengths.to(torch.int64)
    if lengths.shape != (batch,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise UserError(f"lengths must be {batch} integers, one a sequence, not {_shown(lengths)}")
    if lengths.is_cuda or lengths.is_meta:
        right = ((lengths >= 1) & (lengths <= steps)).all()
        torch._assert_async(right, f"lengths must lie between 1 and {steps} steps")
    elif not 1 <= int(lengths.min()) <= int(lengths.max()) <= steps:
        raise UserError(f"lengths must lie between 1 and {steps} steps, not {lengths.tolist()}")
    return lengths.to(torch.int64)


def _shown(lengths: Tensor) -> str:
    shown = f"{lengths.dtype} {list(lengths.shape)}"
    return shown if lengths.is_meta else str(lengths.tolist())


def extend(x: Tensor, lengths: Tensor) -> Tensor:
    """x [T, B, ...] with each sequence's last real step in place of its padding.

    What stands in the padding, NaN included, must reach no gradient, and a cell may be undefined at zero.
    """
    t = torch.arange(x.shape[0], device=x.device)[:, None]  # not len(x), which a graph for export would freeze
    return _pick(x, t.clamp(max=lengths - 1))


def blank(x: Tensor, lengths: Tensor) -> Tensor:
    """x [T, B, F] with zeros in place of its padding."""
    return x.masked_fill(torch.arange(x.shape[0], device=x.device)[:, None, None] >= lengths[:, None], 0)


def reverse(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse x [T, B, ...] in time, each sequence within its own length."""
    if lengths is None:
        return x.flip(0)
    t = torch.arange(x.shape[0], device=x.device)[:, None]  # [T, 1]
    return _pick(x, torch.where(t < lengths, lengths - 1 - t, t))


def _pick(x: Tensor, t: Tensor) -> Tensor:
    """x [T, B, ...] at the time steps t [T, B]. Whole rows are copied, which takes a quarter of a gather's time."""
    rows = t * x.shape[1] + torch.arange(x.shape[1], device=x.device)
    return x.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, x.shape[:2])
