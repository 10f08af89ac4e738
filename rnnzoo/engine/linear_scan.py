"""The element-wise affine recurrence h_t = a_t · h_{t-1} + b_t, solved in parallel over time.

Two steps in a row are a step again, (a_2 · a_1, a_2 · b_1 + b_2), whichever two are put together first: a scan
(Blelloch 1990, "Prefix sums and their applications", CMU-CS-90-190; for recurrent networks Martin & Cundy 2018,
arXiv:1709.04057). Nothing else is used. The closed forms that divide by cumulative products, or take logs of a, fail
where a is zero, negative or tiny. What remains is overflow: a product of a that leaves the range of the floats may
give NaN where the plain loop, multiplying a state of zero, stays finite.

Shapes: T time steps, B batch, C chunks of L steps; `...` is one or more dimensions of a state.
"""

from __future__ import annotations

from functools import reduce
from math import isqrt
from typing import Any

import torch
from torch import Tensor


def linear_scan(a: Tensor, b: Tensor, h0: Tensor, anew: Tensor | None = None, kernel: bool = False) -> Tensor:
    """Solve h_t = a_t · h_{t-1} + b_t for t = 1 ... T, element by element; returns h [T, B, ...].

    b [T, B, ...] and h0 [B, ...] are real or complex. a broadcasts to b: [T, B, H], [T, B, d, 1], [T, 1, H], or, for
    a transition that is constant over time, [1, 1, H] or [H]. Can be differentiated any number of times.

    Where `anew` [T, B, ...], which broadcasts to b too, is true, h_t = b_t: nothing comes from before, be it NaN.
    `kernel` has it solved by Triton, in float32 or float64, in place of torch's operations.
    """
    if len(b) == 0 or h0.shape != b.shape[1:]:
        raise ValueError(f"expected b [T, B, ...] with T > 0 and h0 [B, ...], not {list(b.shape)} and {list(h0.shape)}")
    if a.dim() > b.dim() or any(n not in (1, m) for n, m in zip(a.shape[::-1], b.shape[::-1])):
        raise ValueError(f"a {list(a.shape)} does not broadcast to b {list(b.shape)}")
    if not a.dtype == b.dtype == h0.dtype:
        dtype = reduce(torch.promote_types, (a.dtype, b.dtype, h0.dtype))
        a, b, h0 = a.to(dtype), b.to(dtype), h0.to(dtype)
    anew = None if anew is None else anew.expand_as(b)
    return _Scan.apply(a[(None,) * (b.dim() - a.dim())], b, h0, anew, False, kernel)


class _Scan(torch.autograd.Function):
    """The recurrence or, with `reverse`, its adjoint h_t = a_{t+1} · h_{t+1} + b_t: each is the other's backward pass.

    a has as many dimensions as b. h0 [B, ...] is None where nothing comes before the first step, as in the adjoint.
    Past time steps that start `anew` [T, B, ...] nothing is taken in either direction.
    """

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, h0: Tensor | None, anew: Tensor | None, reverse: bool, kernel: bool
    ) -> Tensor:
        solve = _scan
        if kernel:
            from rnnzoo.engine.triton_scan import solve  # needs triton
        h = torch.empty_like(b, memory_format=torch.contiguous_format)
        first, others = (-1, slice(-1)) if reverse else (0, slice(1, None))
        start, between = (None, None) if anew is None else (anew[0], anew[1:])
        h[first] = b[first] if h0 is None else _advance(a[0], b[0], start, h0)
        # a view that conjugates would be copied at every use
        solve(_between(a, len(b)).resolve_conj(), b[others].resolve_conj(), between, h[first], h[others], reverse)
        ctx.save_for_backward(a, h0, h, anew)
        ctx.reverse, ctx.kernel = reverse, kernel
        return h

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, h0, h, anew = ctx.saved_tensors
        g = _Scan.apply(a.conj(), grad, None, anew, not ctx.reverse, ctx.kernel)  # [T, B, ...]
        grad_h0 = None if h0 is None else g[0] * a[0].conj()
        if grad_h0 is not None and anew is not None:
            grad_h0 = grad_h0.masked_fill(anew[0], 0)
        if not ctx.needs_input_grad[0]:
            return None, g, grad_h0, None, None, None

        # the gradient of each transition is a product of what it leads to and what it comes from
        x, y = (g[:-1], h[1:].conj()) if ctx.reverse else (g[1:], h[:-1].conj())  # [T - 1, B, ...]
        initial = torch.zeros_like(g[:1]) if h0 is None else g[:1] * h0.conj()
        if anew is not None:
            x, initial = x.masked_fill(anew[1:], 0), initial.masked_fill(anew[:1], 0)
            y = y.masked_fill(anew[1:], 0)
        if a.shape == h.shape and not torch.is_grad_enabled():
            # spares the copy that cat makes, a sixth of all time where T is long
            grad_a = torch.empty_like(h)
            grad_a[:1] = initial
            torch.mul(x, y, out=grad_a[1:])
        else:
            initial = initial.sum_to_size(a[:1].shape)
            products = (x * y).sum_to_size(_between(a, len(h)).shape)
            grad_a = initial + products if len(a) < len(h) else torch.cat([initial, products])
        return grad_a, g, grad_h0, None, None, None


def _between(a: Tensor, T: int) -> Tensor:
    """The T - 1 transitions between T states; a single one, constant over time, stands for them all."""
    return a if len(a) < T else a[1:]


def _chunk_length(T: int, state: Tensor) -> int:
    """L for T steps of `state`; T itself stands for the plain loop.

    On a CPU a call costs 2-3 µs, and the chunks take three times the loop's arithmetic in 3 L + T / L calls instead of
    T; L = sqrt(T / 3) makes them fewest. Measured in float32, float64 and complex64 with 1 and 2 threads, the two
    broke even at T = 40-64 for small states and, where T is long, at states of 16 KiB a thread.
    On other devices, not measured: L = 4 takes about 10 log_4(T) calls, near the fewest, and little memory beside the
    result; the loop is kept for states that fill the device by themselves.
    """
    if state.device.type == "cpu":
        return isqrt(T // 3) if T >= 60 and state.nbytes <= 2**14 * torch.get_num_threads() else T
    return 4 if T >= 32 and state.nbytes <= 2**22 else T


def _advance(a: Tensor, b: Tensor, anew: Tensor | None, h: Tensor, out: Tensor | None = None) -> Tensor:
    """One step: a · h + b, or b alone where it starts anew."""
    after = torch.addcmul(b, a, h, out=out)
    return after if anew is None else torch.where(anew, b, after, out=out)


def _scan(a: Tensor, b: Tensor, anew: Tensor | None, start: Tensor, out: Tensor, reverse: bool) -> None:
    """Write into `out` the states that follow `start`; with `reverse`, from the end of time to its beginning."""
    T, L = len(b), _chunk_length(len(b), start)
    order, first, last = (-1, -1, 0) if reverse else (1, 0, -1)
    if L < T:
        C = T // L
        whole, rest = (slice(-C * L, None), slice(-C * L)) if reverse else (slice(C * L), slice(C * L, None))
        # entry j is step j of every chunk [C, ...]
        a_steps, b_steps, out_steps = (
            [x] * L if len(x) == 1 else x[whole].unflatten(0, (C, L)).unbind(1)[::order] for x in (a, b, out)
        )
        chunks = None if anew is None else anew[whole].unflatten(0, (C, L))
        anew_steps = [None] * L if chunks is None else chunks.unbind(1)[::order]
        # compose the steps of each chunk
        A, B = a_steps[0].clone(), b_steps[0].clone()
        for a_j, b_j, anew_j in zip(a_steps[1:], b_steps[1:], anew_steps[1:]):
            _advance(a_j, b_j, anew_j, B, out=B)
            A.mul_(a_j)
        # scan over the chunks
        states = b.new_empty(C + 1, *b.shape[1:])
        before, after = (states[1:], states[:-1]) if reverse else (states[:-1], states[1:])
        before[first] = start
        _scan(A, B, None if chunks is None else chunks.any(1), start, after, reverse)
        # take the steps, from where each chunk starts
        for a_j, b_j, anew_j, out_j in zip(a_steps, b_steps, anew_steps, out_steps):
            before = _advance(a_j, b_j, anew_j, before, out=out_j)
        start = after[last]
        a, b, out = a if len(a) == 1 else a[rest], b[rest], out[rest]
        anew = None if anew is None else anew[rest]

    a = a.expand(len(b), *a.shape[1:])
    steps = [None] * len(b) if anew is None else anew.unbind(0)[::order]
    for a_t, b_t, anew_t, out_t in zip(a.unbind(0)[::order], b.unbind(0)[::order], steps, out.unbind(0)[::order]):
        start = _advance(a_t, b_t, anew_t, start, out=out_t)
