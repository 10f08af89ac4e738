"""Products in another guise, as products of rows with a matrix where a weight takes part, else as sums.

Shapes: N rows, which are the open dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import SymInt, Tensor

aten = torch.ops.aten


def products() -> dict[Any, Any]:
    """How they are written in elementary operations."""
    return {
        aten.mm.default: _mm,
        aten.bmm.default: _bmm,
        aten.baddbmm.default: lambda x, a, b, beta=1, alpha=1: _scaled(x, beta) + _scaled(torch.bmm(a, b), alpha),
        aten.addmm.default: lambda x, a, b, beta=1, alpha=1: _scaled(x, beta) + _scaled(torch.mm(a, b), alpha),
        aten.dot.default: lambda a, b: (a * b).sum(),
        aten.mv.default: lambda a, b: (a * b).sum(-1),
        aten._trilinear.default: _trilinear,
        aten.convolution.default: _convolution,
    }


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else factor * x


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """A weight times rows that stand upright is those rows times the weight, upright."""
    upright = isinstance(b.shape[1], SymInt) and not any(isinstance(size, SymInt) for size in a.shape)
    return torch.mm(b.mT, a.mT).mT if upright else NotImplemented


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    """Of a row's own matrices a sum of products; of several weights one product each."""
    if isinstance(a.shape[0], SymInt):
        return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)
    return torch.stack([a.select(0, k) @ b.select(0, k) for k in range(a.shape[0])])


def _trilinear(
    a: Tensor, W: Tensor, b: Tensor, one: Sequence[int], two: Sequence[int], three: Sequence[int], sums: Sequence[int],
    unroll_dim: int = 1,
) -> Tensor:  # fmt: skip
    """Of a [N, I], W [O, I, J] and b [N, J], as `bilinear` asks for it, with the weight in a product."""
    if [list(d) for d in (one, two, three, sums)] != [[1, 3], [0], [1, 2], [2, 3]]:
        return NotImplemented
    out, first, second = W.shape
    left = (a @ W.permute(1, 0, 2).reshape(first, out * second)).unflatten(-1, (out, second))
    return (left * b.unsqueeze(1)).sum(-1)


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """Of x [N, C, L] along L: what each place sees, side by side, times the weight."""
    if x.dim() != 3 or transposed or groups != 1:
        return NotImplemented
    out, channels, taps = weight.shape
    (step,), (apart,) = stride, dilation
    x = aten.constant_pad_nd(x, [padding[0], padding[0]])
    length = (x.shape[-1] - apart * (taps - 1) - 1) // step + 1
    seen = [x[..., k * apart : k * apart + step * (length - 1) + 1 : step] for k in range(taps)]
    rows = torch.stack(seen, 2).permute(0, 3, 1, 2).flatten(2)  # [N, L', C * taps]
    y = (rows @ weight.reshape(out, channels * taps).mT).mT
    return y if bias is None else y + bias[:, None]
