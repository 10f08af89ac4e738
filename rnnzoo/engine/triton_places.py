"""Where a program's numbers lie, as the text of Triton kernels says it.

Shapes here leave out the rows, as in `lower.py`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeAlias

from rnnzoo.engine.lower import Operation
from rnnzoo.engine.places import Place
from rnnzoo.engine.triton_forms import START

Key: TypeAlias = "tuple[str, int, tuple[int, ...], tuple[int, ...]]"
"""Base, offset, shape and strides of a place: what is read just as it was written is still in registers."""


def key(place: Place) -> Key:
    """Where the numbers of a place lie, whatever dimensions of size 1 it has."""
    sides = [(n, s) for n, s in zip(place.shape, place.strides) if n != 1]
    return place.base, place.offset, tuple(n for n, _ in sides), tuple(s for _, s in sides)


def dense(place: Place) -> bool:
    """Whether its numbers lie one after the other."""
    *_, shape, strides = key(place)
    return all(s == math.prod(shape[k + 1 :]) for k, s in enumerate(strides))


def kept(operation: Operation) -> list[Place]:
    """What a program has in registers after an operation: its part of numbers one after the other."""
    if operation.kind in START:
        own = (n for k, n in enumerate(operation.shape) if k not in operation.reduced)
        return [Place.dense(operation.stores[0].base, own)]
    if operation.kind == "cumulative":
        (place,) = operation.stores
        return [permuted(place, in_memory(place))]
    return operation.stores


def in_memory(place: Place) -> list[int]:
    """Its dimensions in the order in which they lie there."""
    return sorted(range(len(place.shape)), key=lambda k: -place.strides[k])


def permuted(place: Place, order: list[int]) -> Place:
    """The same numbers, dimensions in this order."""
    shape, strides = (tuple(sides[k] for k in order) for sides in (place.shape, place.strides))
    return replace(place, shape=shape, strides=strides)


def outside(d: int, index: str, shape: tuple[int, ...], place: Place) -> str:
    """Where the element of a running number over `shape` lies in `place`, its dimension `d` left out."""
    return spread(index, [(n, 0 if k == d else s) for k, (n, s) in enumerate(zip(shape, place.strides))])


def spread(index: str, sides: list[tuple[int, int]]) -> str:
    """Where the element of a running number lies, by the sizes and strides of its dimensions."""
    terms, behind = [], 1
    for size, stride in reversed(sides):
        if stride:
            terms.append(f"{index} // {behind} % {size} * {stride}")
        behind *= size
    return f"({' + '.join(terms) or f'{index} * 0'})"
