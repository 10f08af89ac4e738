"""An element-wise affine recurrence, h_t = a_t · h_{t-1} + b_t, solved in parallel over time.

Two steps in a row are one of the same kind, (a_2 · a_1, a_2 · b_1 + b_2), and this composition is associative: a scan
(Blelloch 1990, "Prefix sums and their applications", CMU-CS-90-190; for recurrent networks Martin & Cundy 2018,
arXiv:1709.04057). Only this composition is used. The closed forms that divide by cumulative products or take logs of
a fail where a is zero, negative or tiny.

Shapes: T time steps, B batch, N = B · ... elements of a state, L steps of a chunk, C chunks.
"""

from __future__ import annotations

from functools import reduce
from math import isqrt
from typing import Any

import torch
from torch import Tensor


def linear_scan(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    """Solve h_t = a_t · h_{t-1} + b_t for t = 1 ... T, element by element.

    b [T, B, ...] and h0 [B, ...] are real or complex; a broadcasts to b, as [T, B, H], [T, B, d, 1], [T, 1, H], or,
    constant over time, [1, 1, H] or [H]. Returns h [T, B, ...]. Can be differentiated any number of times.
    """
    if len(b) == 0 or h0.shape != b.shape[1:]:
        raise ValueError(f"b {list(b.shape)} must be [T, B, ...] with T > 0, and h0 {list(h0.shape)} be [B, ...]")
    if a.dim() > b.dim() or any(n not in (1, m) for n, m in zip(a.shape[::-1], b.shape[::-1])):
        raise ValueError(f"a {list(a.shape)} does not broadcast to b {list(b.shape)}")
    if not a.dtype == b.dtype == h0.dtype:
        dtype = reduce(torch.promote_types, (a.dtype, b.dtype, h0.dtype))
        a, b, h0 = a.to(dtype), b.to(dtype), h0.to(dtype)
    return _Scan.apply(a[(None,) * (b.dim() - a.dim())], b, h0, False)


class _Scan(torch.autograd.Function):
    """The recurrence, or with `reverse` its adjoint: h_t = a_{t+1} · h_{t+1} + b_t. Each is the other's backward pass.

    a has the dimensions of b. h0 is None where nothing precedes the first step, as in the adjoint.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, h0: Tensor | None, reverse: bool) -> Tensor:
        # addcmul would copy a conjugated view at every step
        a, b = a.resolve_conj(), b.resolve_conj()
        h = torch.empty_like(b)
        first, rest = (-1, slice(-1)) if reverse else (0, slice(1, None))
        h[first] = b[first] if h0 is None else torch.addcmul(b[0], a[0], h0)
        _scan(_between(a, len(b)), b[rest], h[first], h[rest], reverse)
        ctx.save_for_backward(a, h0, h)
        ctx.reverse = reverse
        return h

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, h0, h = ctx.saved_tensors
        g = _Scan.apply(a.conj(), grad, None, not ctx.reverse)  # [T, B, ...]
        grad_h0 = None if h0 is None else g[0] * a[0].conj()
        grad_a = None
        if ctx.needs_input_grad[0]:
            products = g[:-1] * h[1:].conj() if ctx.reverse else g[1:] * h[:-1].conj()  # [T - 1, B, ...]
            products = products.sum_to_size(_between(a, len(h)).shape)
            initial = (torch.zeros_like(g[:1]) if h0 is None else g[:1] * h0.conj()).sum_to_size(a[:1].shape)
            grad_a = initial + products if len(a) < len(h) else torch.cat([initial, products])
        return grad_a, g, grad_h0, None


def _between(a: Tensor, T: int) -> Tensor:
    """The T - 1 transitions between T states; one that is constant over time stands for all."""
    return a if len(a) < T else a[1:]


def _chunk_length(T: int, N: int, device: torch.device) -> int:
    if device.type != "cpu":
        return 4 if N <= 2**20 else T
    if T < 32 or N > 8192 * torch.get_num_threads():
        return T
    return isqrt(T // 3)


def _scan(a: Tensor, b: Tensor, start: Tensor, out: Tensor, reverse: bool) -> None:
    """Write the states that follow `start` into `out`; from the end of time to its beginning if `reverse`.

    Time is cut into chunks of L steps. Compose the steps of each chunk, all chunks at once; scan over the chunks for
    the state that each starts from; run the steps, all chunks at once.
    """
    T = len(b)
    L = _chunk_length(T, start.numel(), b.device)
    order = -1 if reverse else 1
    if L < T:
        C = T // L
        whole, rest = (slice(T - C * L, None), slice(T - C * L)) if reverse else (slice(C * L), slice(C * L, None))
        # step j of every chunk, for each j
        b_steps, h_steps = (x[whole].unflatten(0, (C, L)).unbind(1)[::order] for x in (b, out))
        a_steps = [a] * L if len(a) == 1 else a[whole].unflatten(0, (C, L)).unbind(1)[::order]
        A, B = a_steps[0].clone(), b_steps[0].clone()
        for a_j, b_j in zip(a_steps[1:], b_steps[1:]):
            torch.addcmul(b_j, a_j, B, out=B)
            A.mul_(a_j)

        states = b.new_empty(C + 1, *b.shape[1:])
        before, after = (states[1:], states[:-1]) if reverse else (states[:-1], states[1:])
        before[0 if not reverse else -1] = start
        _scan(A, B, start, after, reverse)
        start = after[-1 if not reverse else 0]
        for a_j, b_j, h_j in zip(a_steps, b_steps, h_steps):
            before = torch.addcmul(b_j, a_j, before, out=h_j)
        a, b, out = a if len(a) == 1 else a[rest], b[rest], out[rest]

    steps = (x.unbind(0)[::order] for x in (a.expand(len(b), *a.shape[1:]), b, out))
    for a_t, b_t, h_t in zip(*steps):
        start = torch.addcmul(b_t, a_t, start, out=h_t)
