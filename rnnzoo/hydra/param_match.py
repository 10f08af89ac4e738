"""Equal sizes for fair comparisons: `param_match=COUNT` chooses the hidden size that gives COUNT parameters.

What is counted is the recurrent layer: the learned parameters of all cells, layers and directions, projections,
layer norm's gains and learned initial states. The embedding before it and the head after it are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from rnnzoo import Cell, Recurrent, UserError, registry
from rnnzoo.lightning.arguments import build
from rnnzoo.lightning.framework import pl

TOLERANCE = 0.01
REACH = 16
"""Sizes either way in which a count may go up and down, or a cell may refuse one; beyond, counts grow."""
LARGEST = 2**26
"""Size where the search ends; the shapes of far larger layers no longer fit into 64 bits."""


def matching_size(target: int, module: type[Any], arguments: Mapping[str, Any]) -> int:
    """The hidden size with which the recurrent layer of a task's module has `target` parameters, within 1 %.

    Args:
        module: the class of the module.
        arguments: its keywords; `model` has any hidden size that the cell takes.

    Prints the choice. Raises `UserError` naming the nearest sizes and their counts when none is near enough.
    """
    with torch.random.fork_rng(devices=[]):  # what is drawn here must not change what the run starts from
        layers = [layer for layer in build(module, arguments, "task").modules() if isinstance(layer, Recurrent)]
    model = {key: value for key, value in arguments["model"].items() if key != "hidden_size"}
    counts = counts_near(
        target, lambda size: sum(count_parameters(size, layer.input_size, **model) for layer in layers)
    )
    size = min(counts, key=lambda size: (abs(counts[size] - target), size))
    count = counts[size]
    if abs(count - target) > TOLERANCE * target:
        raise UserError(f"param_match={target}: {_missed(model['cell'], target, counts)}")
    pl.utilities.rank_zero_only(print)(
        f"param_match={target}: model.hidden_size={size}, {count:,} parameters in the recurrent layer"
    )
    return size


def count_parameters(hidden_size: int, input_size: int, cell: str, **options: Any) -> int:
    """Learned parameters of `Recurrent(cell, input_size, hidden_size, **options)`, which holds no memory meanwhile."""
    kind = registry.get(cell)
    # a cell of a person's own may start from values that the meta device does not have
    bare: type[Cell] = type(kind.__name__, (kind,), {"reset_parameters": lambda self: None})
    with torch.device("meta"):
        layer = Recurrent(bare, input_size, hidden_size, **options)
    return sum(p.numel() for p in layer.parameters() if p.requires_grad)


def counts_near(target: int, count: Callable[[int], int]) -> dict[int, int]:
    """Sizes and their counts, around the size where `count` passes `target`.

    `count` may refuse sizes by `UserError`; raises its error when it refuses `REACH` sizes in a row.
    """
    known: dict[int, int] = {}

    def try_to_count(size: int) -> UserError | None:
        try:
            known[size] = known.get(size) or count(size)
        except UserError as error:
            return error
        return None

    def reaches(size: int) -> bool:
        """Whether the first size from `size` on that is not refused has as many as `target`."""
        for candidate in range(size, size + REACH):
            error = try_to_count(candidate)
            if error is None:
                return known[candidate] >= target
        assert error is not None
        raise error

    low, high = 0, 1
    while not reaches(high) and high < LARGEST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    for size in range(max(high - REACH, 1), high + REACH):
        try_to_count(size)
    return known


def _missed(cell: str, target: int, counts: Mapping[int, int]) -> str:
    """Why no size is near enough, and what to do."""
    if len(set(counts.values())) == 1:
        return (
            f"{cell} has {next(iter(counts.values()))} parameters to learn at any size; give model.hidden_size instead"
        )
    below = [size for size in counts if counts[size] < target]
    above = [size for size in counts if counts[size] > target]
    sides = [max(below, key=lambda size: (counts[size], -size))] if below else []
    sides += [min(above, key=lambda size: (counts[size], size))] if above else []
    text = " and ".join(f"{counts[size]} parameters at model.hidden_size={size}" for size in sides)
    return (
        f"{cell} has {text}{', its smallest' if not below else ''}; none is within 1%, so ask for one of these counts"
    )
