"""Functions that generated Triton kernels call; compiled with them, so this module needs triton.

A kernel's programs each keep a block of rows and a part of the features of these rows.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + exp(-x))."""
    return 1 / (1 + tl.exp(-x))


@triton.jit
def expm1(x):  # type: ignore[no-untyped-def]
    """exp(x) - 1, near zero by its series."""
    series = x * (1 + x * (0.5 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x / 5040))))))
    return tl.where(tl.abs(x) < 0.25, series, tl.exp(x) - 1)


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    """The hyperbolic tangent, near zero by its series; exp never overflows."""
    z = x * x
    series = x * (1 - z * (1 / 3 - z * (2 / 15 - z * (17 / 315 - z * (62 / 2835 - z * 1382 / 155925)))))
    e = tl.exp(-2 * tl.abs(x))
    y = (1 - e) / (1 + e)
    return tl.where(tl.abs(x) < 0.25, series, tl.where(x < 0, -y, y))


@triton.jit
def log1p(x):  # type: ignore[no-untyped-def]
    """log(1 + x), what rounding added to 1 + x taken off again."""
    u = 1 + x
    y = tl.log(u)
    return tl.where(x == 0, x, tl.where((u > 3e38) | (u <= 0), y, y - (u - 1 - x) / u))


@triton.jit
def toward_zero(x):  # type: ignore[no-untyped-def]
    """The whole number that is next on the side of zero."""
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def nearest(x):  # type: ignore[no-untyped-def]
    """The whole number that is next, of two the even one."""
    down = tl.floor(x)
    left = x - down
    odd = down - 2 * tl.floor(down / 2)
    return tl.where((left > 0.5) | ((left == 0.5) & (odd != 0)), down + 1, down)


@triton.jit
def fmod(x, y):  # type: ignore[no-untyped-def]
    """What is left of x by y, with the sign of x, also where x / y was rounded up to a whole number."""
    left = x % y
    return tl.where((left != 0) & ((left < 0) != (x < 0)), left + tl.where((x < 0) == (y < 0), y, -y), left)


@triton.jit
def remainder(x, y):  # type: ignore[no-untyped-def]
    """What is left of x by y, with the sign of y."""
    left = fmod(x, y)
    return tl.where((left != 0) & ((left < 0) != (y < 0)), left + y, left)


@triton.jit
def plus(x, y):  # type: ignore[no-untyped-def]
    """The sum."""
    return x + y


@triton.jit
def times(x, y):  # type: ignore[no-untyped-def]
    """The product."""
    return x * y


@triton.jit
def largest(x, y):  # type: ignore[no-untyped-def]
    """The greater one, or NaN where either is."""
    return tl.where((x != x) | (x > y), x, y)


@triton.jit
def smallest(x, y):  # type: ignore[no-untyped-def]
    """The lesser one, or NaN where either is."""
    return tl.where((x != x) | (x < y), x, y)


@triton.jit
def meet(counter, goal):  # type: ignore[no-untyped-def]
    """Wait until all programs of these rows have written what the others read: `goal` arrivals in all."""
    tl.debug_barrier()  # all threads have written before one tells
    tl.atomic_add(counter, 1, sem="release", scope="gpu")
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < goal:
        pass
    tl.debug_barrier()
