"""Larger operations written in elementary ones, for the graphs that a step is traced to.

torch has such a table of its own; here stands what it lacks, or takes apart too late or otherwise than we need.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, get_decompositions

from rnnzoo.engine.products import products
from rnnzoo.engine.selection import later, selections

aten = torch.ops.aten


@cache
def structure() -> dict[Any, Any]:
    """Operations with several results, and products and shapes in another guise, in elementary operations."""
    return {
        aten.mean.dim: _mean,
        aten.mean.default: lambda x: _mean(x, list(range(x.dim()))),
        aten.var_mean.correction: lambda x, dim, **options: (
            _var(x, dim, **options),
            _mean(x, dim, options.get("keepdim", False)),
        ),
        aten.aminmax.default: lambda x, *, dim, keepdim=False: (x.amin(dim, keepdim), x.amax(dim, keepdim)),
        **products(),
        **selections(),
        aten.split_with_sizes.default: _split,
        aten.split.Tensor: lambda x, size, dim=0: _split(x, [size] * (x.shape[dim] // size), dim),
        aten.unbind.int: lambda x, dim=0: [x.select(dim, k) for k in range(x.shape[dim])],
        aten.roll.default: _roll,
        aten.repeat.default: _repeat,
        aten.stack.default: lambda parts, dim=0: torch.cat([part.unsqueeze(dim) for part in parts], dim),
        aten.constant_pad_nd.default: _pad,
        aten.complex.default: lambda a, b: torch.view_as_complex(torch.stack(torch.broadcast_tensors(a, b), -1)),
        aten.polar.default: _polar,
        aten.native_layer_norm.default: _layer_norm,
        aten.native_group_norm.default: _group_norm,
        aten.slice_scatter.default: _slice_scatter,
        aten.copy.default: lambda x, y, non_blocking=False: y.to(x.dtype).expand(x.shape),
        aten.ldexp.Tensor: lambda x, n: x * torch.exp2(n),
        aten.addcmul.default: _broadcast(aten.addcmul.default),
        aten.addcdiv.default: _broadcast(aten.addcdiv.default),
        # with numbers, too, these are operations on tensors, which alone keep the number of rows open
        aten.add.Scalar: lambda x, y, alpha=1: x + alpha * y,
        aten.sub.Scalar: lambda x, y, alpha=1: x - alpha * y,
        aten.mul.Scalar: lambda x, y: x * y,
        aten.div.Scalar: lambda x, y: x / y,
        aten.sgn.default: lambda x: NotImplemented if x.is_complex() else torch.sign(x),
        aten.lerp.Tensor: lambda a, b, w: torch.where(w.abs() < 0.5, a + w * (b - a), b - (b - a) * (1 - w)),
        aten.lerp.Scalar: lambda a, b, w: a + w * (b - a) if abs(w) < 0.5 else b - (b - a) * (1 - w),
        aten.masked_fill.Scalar: lambda x, mask, value: torch.where(mask, value, x),
        aten.masked_fill.Tensor: lambda x, mask, value: torch.where(mask, value, x),
        aten.log_sigmoid_forward.default: lambda x: (-torch.nn.functional.softplus(-x), x.new_zeros(())),
        aten.select_backward.default: _select_backward,
    }


@cache
def everything() -> dict[Any, Any]:
    """How larger operations are written in elementary ones."""
    table = dict(core_aten_decompositions())
    table.pop(aten.slice_backward.default, None)  # sums of these become concatenations
    names = (
        "_softmax", "_log_softmax", "_softmax_backward_data", "_log_softmax_backward_data", "elu", "elu_backward",
        "leaky_relu", "leaky_relu_backward", "gelu", "gelu_backward", "silu", "silu_backward", "mish", "mish_backward",
        "hardtanh", "hardtanh_backward", "hardsigmoid", "hardsigmoid_backward", "hardswish", "hardswish_backward",
        "softplus", "softplus_backward", "sigmoid_backward", "tanh_backward", "threshold_backward", "logsumexp",
        "log_sigmoid_forward", "log_sigmoid_backward", "hardshrink",
    )  # fmt: skip
    table |= get_decompositions([getattr(aten, name) for name in names])
    return (
        table
        | structure()
        | later()
        | {
            aten.div.Tensor_mode: _divide,
            aten.var.correction: _var,
            aten.clamp.Tensor: _clamp,
            aten.addcmul.default: lambda x, a, b, value=1: x + (a if value == 1 else value * a) * b,
            aten.addcdiv.default: lambda x, a, b, value=1: x + (a if value == 1 else value * a) / b,
            aten.softshrink.default: lambda x, k=0.5: torch.where(x > k, x - k, torch.where(x < -k, x + k, x * 0 + 0)),
            aten.softshrink_backward.default: lambda g, x, k: torch.where((x >= -k) & (x <= k), 0, g),
            aten.hardshrink_backward.default: lambda g, x, k: torch.where((x >= -k) & (x <= k), 0, g),
        }
    )


def _broadcast(operation: Any) -> Any:
    """The operation on tensors of one shape, because torch's own cannot broadcast where a size is open."""

    def broadcast(*tensors: Tensor, **options: Any) -> Tensor:
        # dimensions first: of shapes that differ in them, sizes would be compared all the same, and an open one fixed
        if all(tensor.dim() == tensors[0].dim() and tensor.shape == tensors[0].shape for tensor in tensors):
            return NotImplemented
        found: Tensor = operation(*torch.broadcast_tensors(*tensors), **options)
        return found

    return broadcast


def _divide(x: Tensor, y: Tensor, *, rounding_mode: str | None = None) -> Tensor:
    """Division rounded as torch does it: downwards by way of what is left, because the quotient itself is rounded."""
    if rounding_mode != "floor":
        return x / y if rounding_mode is None else torch.trunc(x / y)
    y = torch.as_tensor(y, dtype=x.dtype, device=x.device)
    left = torch.fmod(x, y)
    whole = (x - left) / y
    whole = torch.where((left != 0) & ((y < 0) != (left < 0)), whole - 1, whole)
    floor = torch.floor(whole)
    floor = torch.where(whole - floor > 0.5, floor + 1, floor)
    return torch.where(y == 0, x / y, torch.where(whole == 0, 0 * (x / y), floor))


def _split(x: Tensor, sizes: Sequence[int], dim: int = 0) -> list[Tensor]:
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    parts = [x.narrow(dim, start, size) for start, size in zip(starts, sizes)]
    rest = x.shape[dim] - sum(sizes)
    return [*parts, x.narrow(dim, sum(sizes), rest)] if rest else parts


def _repeat(x: Tensor, repeats: Sequence[int]) -> Tensor:
    x = x.reshape(*[1] * (len(repeats) - x.dim()), *x.shape)
    for dim, count in enumerate(repeats):
        x = x if count == 1 else torch.cat([x] * count, dim)
    return x


def _pad(x: Tensor, pad: Sequence[int], value: float = 0) -> Tensor:
    for k in range(len(pad) // 2):
        dim = x.dim() - 1 - k
        column = torch.full_like(x.narrow(dim, 0, 1), value)
        ends = [[column] * count for count in pad[2 * k : 2 * k + 2]]
        x = torch.cat([*ends[0], x, *ends[1]], dim) if ends[0] or ends[1] else x
    return x


def _clamp(x: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Tensor:
    x = x if min is None else torch.maximum(x, min)
    return x if max is None else torch.minimum(x, max)


def _select_backward(grad: Tensor, sizes: Sequence[int], dim: int, index: int) -> Tensor:
    index %= sizes[dim]
    return aten.slice_backward(grad.unsqueeze(dim), sizes, dim, index, index + 1, 1)


def _roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Tensor:
    for shift, dim in zip(shifts, dims):
        size = x.shape[dim]
        if shift % size:
            x = torch.cat(
                [x.narrow(dim, size - shift % size, shift % size), x.narrow(dim, 0, size - shift % size)], dim
            )
    return x


def _polar(size: Tensor, angle: Tensor) -> Tensor:
    """What is no size, because it is zero or less, has in torch its sign times the gradient of one."""
    size = torch.where(size == 0, size.detach(), torch.where(size < 0, 2 * size.detach() - size, size))
    return torch.complex(size * torch.cos(angle), size * torch.sin(angle))


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dims = list(range(x.dim() - len(shape), x.dim()))
    mean = _mean(x, dims, True)
    scale = torch.rsqrt(_var(x, dims, 0, True) + eps)
    y = (x - mean) * scale
    y = y if weight is None else y * weight
    return y if bias is None else y + bias, mean, scale


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, N: Any, C: int, HxW: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    parts = x.reshape(x.shape[0], groups, -1)
    mean = _mean(parts, [-1], True)
    scale = torch.rsqrt(_var(parts, [-1], 0, True) + eps)
    y = ((parts - mean) * scale).reshape(x.shape)
    each = [C, *[1] * (x.dim() - 2)]
    y = y if weight is None else y * weight.reshape(each)
    return y if bias is None else y + bias.reshape(each), mean.squeeze(-1), scale.squeeze(-1)


def _slice_scatter(
    x: Tensor, part: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    size = x.shape[dim]
    if step != 1 or not isinstance(size, int):
        whole = step == 1 and not start and (end is None or end >= 2**62)
        return part if whole else NotImplemented
    start, end, _ = slice(start, end).indices(size)
    return torch.cat([x.narrow(dim, 0, start), part, x.narrow(dim, end, size - end)], dim)


def _mean(x: Tensor, dim: list[int], keepdim: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    count = 1
    for d in dim:
        count = count * x.shape[d]
    return x.sum(dim, keepdim) / count


def _var(x: Tensor, dim: list[int], correction: float | None = None, keepdim: bool = False) -> Tensor:
    centred = x - _mean(x, dim, True)
    count = 1
    for d in dim:
        count = count * x.shape[d]
    return (centred * centred).sum(dim, keepdim) / (count - (1 if correction is None else correction))
