"""Where a step's values lie in memory, and how views see them without a copy.

Shapes here leave out the rows: a state [B, H] is (H,).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import SymInt, fx

from rnnzoo.engine.trace import args_of, aten, has_rows, multiple


class Unsupported(Exception):
    """An operation, named in the message, that has no C++ form here."""


class Scattered(Exception):
    """Memory that cannot be seen in another shape without a copy."""


@dataclass(frozen=True)
class Place:
    """Where a value lies in memory: at `base + row * pitch + offset`, element by element with the given strides.

    With `COUNT` as base it is in no memory: the value *is* the offset with the strides, as in 0, 1, 2, ...
    """

    base: str
    pitch: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    boolean: bool = False

    @classmethod
    def dense(cls, base: str, shape: Iterable[int], pitch: int | None = None) -> Place:
        """Numbers one after the other; rows too, unless `pitch` says otherwise."""
        shape = tuple(shape)
        strides = tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))
        return cls(base, math.prod(shape) if pitch is None else pitch, shape, strides)

    def at(self, index: list[str]) -> str:
        """The element at these loop variables, as C++."""
        terms = [f"{i} * {s}" if s != 1 else i for i, s in zip(index, self.strides) if s]
        where = " + ".join([*terms, *([str(self.offset)] if self.offset or not terms else [])])
        return f"S({where})" if self.base == COUNT else f"{self.base}_r[{where}]"

    @property
    def span(self) -> tuple[int, int]:
        """The first position that belongs to it, and the one after the last."""
        ends = [(n - 1) * s for n, s in zip(self.shape, self.strides)]
        return self.offset + sum(min(e, 0) for e in ends), self.offset + sum(max(e, 0) for e in ends) + 1


COUNT = "count"


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape without rows; of a dimension that is rows times something, this remains."""
    return tuple(n for size in node.meta["val"].shape for n in _own(size))


def _own(size: Any) -> list[int]:
    if not isinstance(size, SymInt):
        return [size]
    return [multiple(size)] if multiple(size) != 1 else []


def behind(node: fx.Node) -> int:
    """How many dimensions there are from the rows on, these included; as if they led where there are none."""
    sizes = node.meta["val"].shape
    return len(sizes) - next((d for d, size in enumerate(sizes) if isinstance(size, SymInt)), -1)


def across(node: fx.Node) -> bool:
    """Whether a view mixes rows: a step from one row to the next is not as long as in its operand."""
    return _step(node) != _step(args_of(node)[0])


def _step(node: fx.Node) -> int | None:
    sizes = node.meta["val"].shape
    rows = next((d for d, size in enumerate(sizes) if isinstance(size, SymInt)), None)
    return None if rows is None else multiple(sizes[rows]) * math.prod(sizes[rows + 1 :])


def dimension(node: Any, dim: Any) -> int:
    """A dimension of `node` counted without the rows."""
    sizes = node.meta["val"].shape
    dim %= len(sizes)
    if isinstance(sizes[dim], SymInt):
        raise Unsupported("an operation across the batch")
    return sum(len(_own(size)) for size in sizes[:dim])


def met(place: Place, source: fx.Node, behind: int) -> Place:
    """A value seen beside one with rows: of a value without, the dimension of size 1 that meets the rows falls away."""
    if has_rows(source) or len(place.shape) < behind:
        return place
    k = len(place.shape) - behind
    own, steps = place.shape[:k] + place.shape[k + 1 :], place.strides[:k] + place.strides[k + 1 :]
    return replace(place, shape=own, strides=steps)


def expanded(place: Place, shape: tuple[int, ...]) -> Place:
    """Memory seen in a larger shape, repeated where it has one element for many, or lacks a dimension."""
    missing = len(shape) - len(place.shape)
    assert missing >= 0
    strides = (0,) * missing + tuple(0 if n == 1 else s for n, s in zip(place.shape, place.strides))
    return replace(place, shape=shape, strides=strides)


def viewed(node: fx.Node, place: Place) -> Place:
    """The operand of a view, which lies at `place`, as the view sees it. Raises `Scattered`."""
    source, *arguments = args_of(node)
    shape = shape_of(node)
    if node.target is aten.slice.Tensor:
        given: list[Any] = [*arguments, *(0, 0, None, 1)[len(arguments) :]]
        dim, start, step = given[0], given[1], given[3]
        d = dimension(source, dim)
        start = min(max((start or 0) + ((start or 0) < 0) * place.shape[d], 0), place.shape[d])
        strides = tuple(s * (step if k == d else 1) for k, s in enumerate(place.strides))
        return replace(place, shape=shape, strides=strides, offset=place.offset + start * place.strides[d])
    if node.target is aten.select.int:
        d, index = dimension(source, arguments[0]), arguments[1] % place.shape[dimension(source, arguments[0])]
        strides = place.strides[:d] + place.strides[d + 1 :]
        return replace(place, shape=shape, strides=strides, offset=place.offset + index * place.strides[d])
    if node.target is aten.permute.default:
        sizes = source.meta["val"].shape
        starts = [sum(len(_own(size)) for size in sizes[:d]) for d in range(len(sizes))]
        order = [starts[d] for d in arguments[0] if _own(sizes[d])]
        return replace(place, shape=shape, strides=tuple(place.strides[d] for d in order))
    if node.target is aten.flip.default:
        turned = [dimension(source, d) for d in arguments[0]]
        strides = tuple(-s if k in turned else s for k, s in enumerate(place.strides))
        last = sum((place.shape[d] - 1) * place.strides[d] for d in turned)
        return replace(place, strides=strides, offset=place.offset + last)
    if node.target is aten.diagonal.default:
        wanted: list[int] = [*arguments, *(0, 0, 1)[len(arguments) :]]
        shift, one, other = wanted
        first, second = dimension(source, one), dimension(source, other)
        strides = tuple(s for k, s in enumerate(place.strides) if k not in (first, second))
        start = max(-shift, 0) * place.strides[first] + max(shift, 0) * place.strides[second]
        strides = (*strides, place.strides[first] + place.strides[second])
        return replace(place, shape=shape, strides=strides, offset=place.offset + start)
    if node.target is aten.expand.default:
        return expanded(met(place, source, behind(node)), shape)
    return replace(place, shape=shape, strides=_reshaped(place, shape))


def _reshaped(place: Place, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides with which memory is seen in another shape."""
    old = [(n, s) for n, s in zip(place.shape, place.strides) if n != 1]
    strides: list[int] = []
    for size in reversed(shape):
        if size == 1:
            strides.append(0)
            continue
        if not old:
            raise Unsupported("a view across the batch")
        n, s = old.pop()
        while n < size:  # several dimensions seen as one must lie one after the other
            if not old or old[-1][1] != n * s:
                raise Scattered
            n *= old.pop()[0]
        if n % size:
            raise Scattered
        strides.append(s)
        if n > size:
            old.append((n // size, s * size))
    return tuple(reversed(strides))
