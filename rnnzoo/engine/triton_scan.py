"""The recurrence h_t = a_t · h_{t-1} + b_t as Triton kernels, and what calls them; this module needs triton.

A program takes a block of lanes through time, one number of the states of all rows each. Where lanes are too few to
occupy a GPU, time is cut into chunks: `compose` makes of each chunk one step, `walk` takes these, and then, all chunks
at once, the steps within them. `triton_cost` says into how many.

Shapes: T time steps, C chunks of L steps; lanes are counted through [B, ...]. Of complex numbers both parts lie side by
side. A lane n finds its number of a, which may be the same for several, at n // q % m * s + n % e.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rnnzoo.engine.triton_blocks import LANES, STAGES
from rnnzoo.engine.triton_cost import chunks

POINTERS = ("a", "b", "marks", "first", "h"), ("a", "b", "marks", "A", "B", "M")
NUMBERS = ("T", "L", "lanes", "far", "q", "m", "s", "e", "apart", "r")
"""Parameters of `walk` and `compose`, and of both. `far` and `apart` are how far the numbers of two time steps lie from
each other in a and in marks, of which lane n reads n // r."""

FLAGS = ("REVERSE", "COMPLEX", "ANEW")


@triton.jit  # type: ignore[untyped-decorator]
def load(base, at, here, COMPLEX: tl.constexpr):  # type: ignore[no-untyped-def]
    """Numbers by their real and imaginary parts; real ones twice."""
    if COMPLEX:
        re = tl.load(base + 2 * at, mask=here, other=0.0)
        im = tl.load(base + 2 * at + 1, mask=here, other=0.0)
    else:
        re = tl.load(base + at, mask=here, other=0.0)
        im = re
    return re, im


@triton.jit  # type: ignore[untyped-decorator]
def store(base, at, re, im, here, COMPLEX: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write numbers."""
    if COMPLEX:
        tl.store(base + 2 * at, re, mask=here)
        tl.store(base + 2 * at + 1, im, mask=here)
    else:
        tl.store(base + at, re, mask=here)


@triton.jit  # type: ignore[untyped-decorator]
def product(a_re, a_im, re, im, COMPLEX: tl.constexpr):  # type: ignore[no-untyped-def]
    """a · h."""
    if COMPLEX:
        x_re = a_re * re - a_im * im
        x_im = a_re * im + a_im * re
    else:
        x_re = a_re * re
        x_im = x_re
    return x_re, x_im


@triton.jit(do_not_specialize=[*POINTERS[0], *NUMBERS])  # type: ignore[untyped-decorator]
def walk(  # type: ignore[no-untyped-def]
    a, b, marks, first, h, T, L, lanes, far, q, m, s, e, apart, r,
    REVERSE: tl.constexpr, COMPLEX: tl.constexpr, ANEW: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Write h [T, lanes], from `first` [C, lanes], the states before each chunk."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = n < lanes
    of_a = n // q % m * s + n % e
    width, far, apart = lanes.to(tl.int64), far.to(tl.int64), apart.to(tl.int64)
    start = tl.program_id(1) * L
    re, im = load(first, tl.program_id(1) * width + n, here, COMPLEX)
    for i in tl.range(start, tl.minimum(start + L, T), num_stages=AHEAD):
        t = T - 1 - i if REVERSE else i
        a_re, a_im = load(a, t * far + of_a, here, COMPLEX)
        b_re, b_im = load(b, t * width + n, here, COMPLEX)
        re, im = product(a_re, a_im, re, im, COMPLEX)
        re, im = re + b_re, im + b_im
        if ANEW:
            anew = tl.load(marks + t * apart + n // r, mask=here, other=0.0) != 0
            re, im = tl.where(anew, b_re, re), tl.where(anew, b_im, im)
        store(h, t * width + n, re, im, here, COMPLEX)


@triton.jit(do_not_specialize=[*POINTERS[1], *NUMBERS])  # type: ignore[untyped-decorator]
def compose(  # type: ignore[no-untyped-def]
    a, b, marks, A, B, M, T, L, lanes, far, q, m, s, e, apart, r,
    REVERSE: tl.constexpr, COMPLEX: tl.constexpr, ANEW: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Write A and B [C, lanes], the steps of each chunk as one, and M [C, lanes], whether one of them starts anew."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = n < lanes
    of_a = n // q % m * s + n % e
    width, far, apart = lanes.to(tl.int64), far.to(tl.int64), apart.to(tl.int64)
    start = tl.program_id(1) * L
    t = T - 1 - start if REVERSE else start
    A_re, A_im = load(a, t * far + of_a, here, COMPLEX)
    B_re, B_im = load(b, t * width + n, here, COMPLEX)
    if ANEW:
        some = tl.load(marks + t * apart + n // r, mask=here, other=0.0)
    for i in tl.range(start + 1, tl.minimum(start + L, T), num_stages=AHEAD):
        t = T - 1 - i if REVERSE else i
        a_re, a_im = load(a, t * far + of_a, here, COMPLEX)
        b_re, b_im = load(b, t * width + n, here, COMPLEX)
        A_re, A_im = product(a_re, a_im, A_re, A_im, COMPLEX)
        B_re, B_im = product(a_re, a_im, B_re, B_im, COMPLEX)
        B_re, B_im = B_re + b_re, B_im + b_im
        if ANEW:
            anew = tl.load(marks + t * apart + n // r, mask=here, other=0.0)
            B_re, B_im = tl.where(anew != 0, b_re, B_re), tl.where(anew != 0, b_im, B_im)
            some = tl.where(anew != 0, anew, some)
    at = tl.program_id(1) * width + n
    store(A, at, A_re, A_im, here, COMPLEX)
    store(B, at, B_re, B_im, here, COMPLEX)
    if ANEW:
        tl.store(M + at, some, mask=here)


def solve(a: Tensor, b: Tensor, anew: Tensor | None, start: Tensor, out: Tensor, reverse: bool) -> None:
    """As `linear_scan._scan`; `out` [T, ...] must hold its numbers one after the other."""
    T, lanes = len(b), start.numel()
    if T == 0 or lanes == 0:
        return
    a, b, start = (x.resolve_neg().resolve_conj() for x in (a, b, start))
    a, far, of_a = _lanes(a, start.shape)
    flags = {"REVERSE": reverse, "COMPLEX": b.is_complex(), "ANEW": anew is not None}
    b, first = _parts(b), _parts(start)
    marks, apart, r = b, 0, 1
    if anew is not None:
        marks, apart, r = _marks(anew, start.shape, b.dtype)
    C = chunks(T, lanes, start.itemsize)
    L = -(-T // C)
    C = -(-T // L)
    given = (_parts(a), b, marks)
    numbers = (T, L, lanes, far, *of_a, apart, r)
    with torch.cuda.device(b.device) if b.is_cuda else nullcontext():
        if C > 1:
            A, B, states = (start.new_empty(n, lanes) for n in (C, C, C + 1))
            M = marks.new_empty(C, lanes)
            states[0] = start.flatten()
            steps = (_parts(A), _parts(B), M)
            _launch(compose, C, lanes, (*given, *steps), numbers, flags)
            together = (C, C, lanes, lanes, 1, 1, 0, lanes, lanes, 1)
            rest = (_parts(states), _parts(states[1:]))
            _launch(walk, 1, lanes, (*steps, *rest), together, {**flags, "REVERSE": False})
            first = rest[0]
        _launch(walk, C, lanes, (*given, first, _parts(out)), numbers, flags)


def ready(dtype: torch.dtype, device: torch.device, anew: bool, reverse: bool) -> None:
    """Compile what `solve` may need for states of this type. Raises what Triton raises."""
    key = (dtype, device, anew, reverse)
    if key in _ready or device.type != "cuda":
        return
    real = torch.empty((), dtype=dtype).real.dtype
    for way in {False, reverse}:
        flags = {"REVERSE": way, "COMPLEX": dtype.is_complex, "ANEW": anew}
        with torch.cuda.device(device):
            for kernel, pointers in zip((walk, compose), POINTERS):
                kernel.warmup(*[real] * len(pointers), *[2] * len(NUMBERS), grid=(1,), **flags, **OPTIONS)
    _ready.add(key)


_ready: set[Any] = set()

OPTIONS = {"BLOCK": LANES, "AHEAD": STAGES, "num_warps": LANES // 32}


def _launch(
    kernel: Any, C: int, lanes: int, tensors: Sequence[Tensor], numbers: Sequence[int], flags: dict[str, bool]
) -> None:
    kernel[(-(-lanes // LANES), C)](*tensors, *numbers, **flags, **OPTIONS)


def _parts(x: Tensor) -> Tensor:
    """The numbers one after the other, of complex ones the parts."""
    x = x.contiguous()
    return torch.view_as_real(x) if x.is_complex() else x


def _once(x: Tensor) -> Tensor:
    """x [T, ...] without what only repeats it, its numbers one after the other."""
    return x[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in x.stride())].contiguous()


def _lanes(x: Tensor, shape: Sequence[int]) -> tuple[Tensor, int, tuple[int, int, int, int]]:
    """x [T or 1, ...], how far its time steps lie apart, and q, m, s, e for states of this shape."""
    x = _once(x)
    sides = [(n == size, size) for n, size in zip(x.shape[1:], shape) if size != 1]
    runs = [(own, math.prod(size for _, size in run)) for own, run in groupby(sides, lambda side: side[0])]
    if sum(own for own, _ in runs) > 1 + (bool(runs) and runs[-1][0]):
        x = x.expand(-1, *shape).contiguous()
        runs = [(True, math.prod(shape))]
    e = runs.pop()[1] if runs and runs[-1][0] else 1
    q, m, s = e, 1, 0
    while runs:
        own, size = runs.pop()
        if own:
            m, s = size, e
            break
        q *= size
    return x, x[0].numel() if len(x) > 1 else 0, (q, m, s, e)


def _marks(anew: Tensor, shape: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, int, int]:
    """`anew` [T, ...] as numbers, which can be read ahead, how far its time steps lie apart, and r."""
    x, apart, (q, m, _, e) = _lanes(anew, shape)
    lanes = math.prod(shape)
    if e in (1, lanes) and m * q in (1, lanes):  # the same for all that follow one another, or for none
        return x.to(dtype), apart, 1 if e == lanes else q
    return anew.to(dtype).contiguous(), lanes, 1
