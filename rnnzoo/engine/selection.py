"""What picks numbers by where they stand or by their size, in elementary operations.

All of it comes down to `gather`, which picks by position, and `scatter_add`, its derivative. Positions are found by
comparing: of n numbers each with each where their order counts, which is meant for small n.
Shapes: n numbers along the dimension that is picked from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import SymInt, Tensor

aten = torch.ops.aten

SORTED = 64
"""As many numbers at most are sorted by comparing each with each."""


def selections() -> dict[Any, Any]:
    """Those that must be taken apart before they are differentiated: gradients go to what was picked."""
    return {
        aten.max.dim: lambda x, dim, keepdim=False: _at(x, dim, x.argmax(dim, True), keepdim),
        aten.min.dim: lambda x, dim, keepdim=False: _at(x, dim, x.argmin(dim, True), keepdim),
        aten.argmax.default: lambda x, dim=None, keepdim=False: _argument(x, x.amax, dim, keepdim),
        aten.argmin.default: lambda x, dim=None, keepdim=False: _argument(x, x.amin, dim, keepdim),
        aten.index_select.default: lambda x, dim, index: _along(x, dim, index),
        aten.index.Tensor: _index,
        aten.index_put.default: _index_put,
        aten.index_add.default: _index_add,
        aten.cummax.default: lambda x, dim: _running(x, dim, True),
        aten.cummin.default: lambda x, dim: _running(x, dim, False),
        aten.sort.default: lambda x, dim=-1, descending=False: _sort(x, dim, descending),
        aten.sort.stable: lambda x, stable=True, dim=-1, descending=False: _sort(x, dim, descending),
        aten.topk.default: _topk,
        aten.kthvalue.default: lambda x, k, dim=-1, keepdim=False: _kth(x, k - 1, dim, keepdim),
        aten.median.dim: _median,
        aten.unfold.default: _unfold,
        aten._cdist_forward.default: lambda a, b, p, mode: torch.linalg.vector_norm(
            a.unsqueeze(-2) - b.unsqueeze(-3), p, -1
        ),
        aten.any.dim: lambda x, dim, keepdim=False: (x != 0).sum(dim, keepdim) > 0,
        aten.any.dims: lambda x, dim, keepdim=False: (x != 0).sum(dim, keepdim) > 0,
        aten.all.dim: lambda x, dim, keepdim=False: (x == 0).sum(dim, keepdim) == 0,
        aten.all.dims: lambda x, dim, keepdim=False: (x == 0).sum(dim, keepdim) == 0,
    }


def later() -> dict[Any, Any]:
    """Those whose derivative torch knows better than that of their parts, and derivatives."""
    return {
        aten.linalg_vector_norm.default: _norm,
        aten.logcumsumexp.default: _logcumsumexp,
        aten.slice_backward.default: _slice_backward,
        aten.diagonal_backward.default: _diagonal_backward,
        aten.index_select_backward.default: lambda g, sizes, dim, index: _add_along(g.new_zeros(sizes), dim, index, g),
        aten.round.decimals: lambda x, *, decimals: torch.round(x * 10**decimals) / 10**decimals,
    }


def _positions(x: Tensor, dim: int) -> Tensor:
    """0, 1, ... along a dimension of x, which the others broadcast against."""
    shape = [1] * x.dim()
    shape[dim] = x.shape[dim]
    return torch.arange(x.shape[dim], device=x.device).reshape(shape)


def _argument(x: Tensor, extreme: Any, dim: int | None, keepdim: bool) -> Tensor:
    """The first place of the greatest or least number, or of the first that is none."""
    if dim is None:
        return NotImplemented
    found = torch.where((x == extreme(dim, True)) | (x != x), _positions(x, dim), x.shape[dim])
    return found.amin(dim, keepdim)


def _at(x: Tensor, dim: int, index: Tensor, keepdim: bool) -> tuple[Tensor, Tensor]:
    values = torch.gather(x, dim, index)
    return (values, index) if keepdim else (values.squeeze(dim), index.squeeze(dim))


def _spread(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """An index [k], counted from the front, as one for each of x's numbers across `dim`."""
    index = torch.where(index < 0, index + x.shape[dim], index)
    shape = [1] * x.dim()
    shape[dim] = index.shape[0]
    sizes = list(x.shape)
    sizes[dim] = index.shape[0]
    return index.reshape(shape).expand(sizes)


def _along(x: Tensor, dim: int, index: Tensor) -> Tensor:
    dim %= x.dim()
    return torch.gather(x, dim, _spread(x, dim, index.reshape(-1)))


def _flat(x: Tensor, indices: Sequence[Tensor | None]) -> tuple[Tensor, int, Tensor] | None:
    """x with the indexed dimensions as one, which that is, and an index into it; None for what is not of this form."""
    given = [k for k, index in enumerate(indices) if index is not None]
    found = [index for index in indices if index is not None]
    sizes = [size for index in found for size in index.shape] + [x.shape[k] for k in given]
    if given != list(range(given[0], given[0] + len(given))) or any(isinstance(size, SymInt) for size in sizes):
        return None
    if any(index.dtype == torch.bool for index in found):
        return None
    total: Any = 0
    for k, index in zip(given, found):
        total = total * x.shape[k] + torch.where(index < 0, index + x.shape[k], index)
    return x.flatten(given[0], given[-1]), given[0], total


def _index(x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    found = _flat(x, indices)
    if found is None:
        return NotImplemented
    flat, dim, index = found
    return _along(flat, dim, index).reshape(*flat.shape[:dim], *index.shape, *flat.shape[dim + 1 :])


def _index_put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    found = _flat(x, indices)
    if found is None or not accumulate:
        return NotImplemented
    flat, dim, index = found
    shape = [*flat.shape[:dim], *index.shape, *flat.shape[dim + 1 :]]
    values = values.expand(shape).reshape(*flat.shape[:dim], -1, *flat.shape[dim + 1 :])
    return _add_along(flat, dim, index.reshape(-1), values).reshape(x.shape)


def _add_along(x: Tensor, dim: int, index: Tensor, values: Tensor) -> Tensor:
    dim %= x.dim()
    return torch.scatter_add(x, dim, _spread(x, dim, index.reshape(-1)), values)


def _index_add(x: Tensor, dim: int, index: Tensor, values: Tensor, *, alpha: float = 1) -> Tensor:
    return _add_along(x, dim, index, values if alpha == 1 else alpha * values)


def _order(x: Tensor, dim: int, descending: bool) -> Tensor:
    """Where the numbers stand that come first, second, ...; what is none counts as greatest."""
    n = x.shape[dim]
    x = x.movedim(dim, -1)
    one, other = x.unsqueeze(-1), x.unsqueeze(-2)
    before = (one < other) | ((other != other) & (one == one))
    if descending:
        before = (one > other) | ((one != one) & (other == other))
    same = (one == other) | ((one != one) & (other != other))
    earlier = torch.arange(n, device=x.device).unsqueeze(-1) < torch.arange(n, device=x.device)
    rank = (before | (same & earlier)).sum(-2)  # [..., n]
    place = torch.arange(n, device=x.device)
    return torch.where(rank.unsqueeze(-2) == place.unsqueeze(-1), place, 0).sum(-1).movedim(-1, dim)


def _small(x: Tensor, dim: int) -> bool:
    return x.dim() > 0 and isinstance(x.shape[dim], int) and x.shape[dim] <= SORTED


def _sort(x: Tensor, dim: int, descending: bool) -> tuple[Tensor, Tensor]:
    return _at(x, dim, _order(x, dim, descending), True) if _small(x, dim) else NotImplemented


def _topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:
    return _at(x, dim, _order(x, dim, largest).narrow(dim, 0, k), True) if _small(x, dim) else NotImplemented


def _kth(x: Tensor, k: int, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    return _at(x, dim, _order(x, dim, False).narrow(dim, k, 1), keepdim) if _small(x, dim) else NotImplemented


def _median(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The lower one of two, or the first that is no number."""
    if not _small(x, dim):
        return NotImplemented
    n = x.shape[dim]
    middle = _order(x, dim, False).narrow(dim, (n - 1) // 2, 1)
    none = torch.where(x != x, _positions(x, dim), n).amin(dim, True)
    return _at(x, dim, torch.where(none < n, none, middle), keepdim)


def _before(x: Tensor) -> Tensor:
    """[n, n]: which numbers of the last dimension stand no later than each."""
    n = x.shape[-1]
    return torch.arange(n, device=x.device) <= torch.arange(n, device=x.device).unsqueeze(-1)


def _running(x: Tensor, dim: int, greatest: bool) -> tuple[Tensor, Tensor]:
    """The greatest or least number so far, and the last place where it stood."""
    moved = x.movedim(dim, -1)
    each = torch.where(_before(moved), moved.unsqueeze(-2), -math.inf if greatest else math.inf)
    extreme = each.amax(-1) if greatest else each.amin(-1)
    found = (moved == extreme) | (moved != moved)
    n = moved.shape[-1]
    place = torch.where(found, torch.arange(n, device=x.device), 0)
    last = torch.where(_before(moved), place.unsqueeze(-2), 0).amax(-1).movedim(-1, dim)
    return torch.gather(x, dim, last), last


def _logcumsumexp(x: Tensor, dim: int) -> Tensor:
    moved = x.movedim(dim, -1)
    return torch.logsumexp(torch.where(_before(moved), moved.unsqueeze(-2), -math.inf), -1).movedim(-1, dim)


def _norm(
    x: Tensor, ord: float = 2, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    if dim is None or dtype is not None:
        return NotImplemented
    size = x.abs()
    if ord in (math.inf, -math.inf):
        return size.amax(list(dim), keepdim) if ord > 0 else size.amin(list(dim), keepdim)
    if ord == 0:
        return (x != 0).sum(list(dim), keepdim).to(x.dtype)
    if ord == 1:
        return size.sum(list(dim), keepdim)
    if ord == 2:
        return torch.sqrt((x * x).sum(list(dim), keepdim))
    return (size**ord).sum(list(dim), keepdim) ** (1 / ord)


def _unfold(x: Tensor, dim: int, size: int, step: int) -> Tensor:
    count = (x.shape[dim] - size) // step + 1
    return torch.stack([x.narrow(dim, k * step, size).movedim(dim, -1) for k in range(count)], dim % x.dim())


def _slice_backward(grad: Tensor, sizes: Sequence[int], dim: int, start: int, end: int, step: int) -> Tensor:
    """With steps, the gradients stand apart."""
    if step == 1 or not isinstance(sizes[dim], int):
        return NotImplemented
    dim %= grad.dim()
    start, _, _ = slice(start, end, step).indices(sizes[dim])
    parts = [grad.unsqueeze(dim + 1)]
    shape = list(parts[0].shape)
    shape[dim + 1] = step - 1
    apart = torch.cat([*parts, grad.new_zeros(shape)], dim + 1).flatten(dim, dim + 1)
    apart = apart.narrow(dim, 0, min(apart.shape[dim], sizes[dim] - start))
    ends = [0, 0] * (grad.dim() - 1 - dim) + [start, sizes[dim] - start - apart.shape[dim]]
    return aten.constant_pad_nd(apart, ends)


def _diagonal_backward(grad: Tensor, sizes: Sequence[int], offset: int, dim1: int, dim2: int) -> Tensor:
    rows, columns = sizes[dim1], sizes[dim2]
    above = max(-offset, 0)
    spread = aten.constant_pad_nd(grad, [above, rows - above - grad.shape[-1]]).unsqueeze(-1)
    on = torch.arange(rows, device=grad.device).unsqueeze(-1) + offset == torch.arange(columns, device=grad.device)
    first, second = dim1 % len(sizes), dim2 % len(sizes)
    return torch.where(on, spread, 0).movedim((-2, -1), (first, second))
