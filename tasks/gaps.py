"""Gaps of series filled, and their columns scaled: block by block and window by window, so that no series is copied.

Shapes: N rows, n columns, T rows of a window, B windows. A missing value is NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rnnzoo import UserError

from .blocks import Array, blocks, joined, together
from .calendars import Calendar
from .series import Series, dated

Missing = Literal["refuse", "previous", "linear"]
Scaling = Literal["standard", "minmax", "none"]

NEVER = 1 << 62
"""The row in which a value is known that never is."""

FAR = 1e15
"""Scaled values whose squares, summed over many windows, are still numbers in single precision."""


def completed(series: Series, calendar: Calendar | None, missing: Missing, source: str) -> Series:
    """The series with a row of gaps for each date that its calendar lacks; itself without a calendar.

    Raises `UserError` naming the first gap when `missing` refuses them.
    """
    if calendar is None or not calendar.missing:
        return series
    numbers = ((block, calendar.number(series.dates[block])) for block in blocks(len(series.dates), 1))
    if missing == "refuse":
        before = next(block.start + int(gaps[0]) for block, n in numbers if len(gaps := (np.diff(n) > 1).nonzero()[0]))
        raise UserError(
            f"{source}: rows come {calendar.name}, {calendar.missing} {'are' if calendar.missing > 1 else 'is'} "
            f"missing, the first after "
            f"{series.dates[before].item():%Y-%m-%d %H:%M}; train with task.missing=previous or linear to fill them"
        )

    def pieces() -> Iterator[Array]:
        for block, there in numbers:
            every = np.arange(there[0] + (block.start > 0), there[-1] + 1)  # the first row was in the block before
            rows = dated(calendar.at(every), np.full((len(every), series.values.shape[1]), np.nan))
            known = there >= every[0]
            rows[there[known] - every[0]] = dated(series.dates[block], series.values[block].numpy())[known]
            yield rows

    rows = joined(pieces())
    return series._replace(values=torch.from_numpy(rows["values"]), dates=rows["date"])


def without_end(series: Series, targets: list[int]) -> Series:
    """The series up to the last row in which a target is known."""
    rows = len(series.values)
    for block in reversed([*blocks(rows)]):
        known = (~series.values[block, targets].isnan()).any(1).nonzero()
        if len(known):
            rows = block.start + int(known[-1]) + 1
            break
    else:
        rows = 0
    return series._replace(values=series.values[:rows], dates=series.dates[:rows])


def in_blocks(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    return (part[block] for part in parts for block in blocks(len(part)))


def mean_of(pieces: Iterable[Tensor]) -> Tensor:
    """Means [n] over all rows of pieces [N, n], of what is known."""
    total: Any = 0.0
    count: Any = 0
    for piece in pieces:
        total, count = total + piece.nansum(0), count + (~piece.isnan()).sum(0)
    return total / count


def ends_of(pieces: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The least and the largest of what is known in each column, [n] each."""
    least, largest = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    for piece in pieces:
        least = torch.minimum(least, piece.nan_to_num(nan=torch.inf).amin(0))
        largest = torch.maximum(largest, piece.nan_to_num(nan=-torch.inf).amax(0))
    return least, largest


def center_and_scale(parts: Sequence[Tensor], scaling: Scaling) -> tuple[Tensor, Tensor]:
    """What to subtract from and then divide by the columns of values [N, n] with gaps, [n] each."""
    center, scale = parts[0].new_zeros(parts[0].shape[1]), parts[0].new_ones(parts[0].shape[1])
    if scaling == "standard":
        center = mean_of(in_blocks(parts))
        scale = mean_of((piece - center).square() for piece in in_blocks(parts)).sqrt()
    elif scaling == "minmax":
        center, largest = ends_of(in_blocks(parts))
        scale = largest - center
    least, largest = ends_of(in_blocks(parts))
    return center, scale.where(largest > least, 1.0)  # a constant column has no scale of its own, but for rounding


def refuse_far(values: Tensor, center: Tensor, scale: Tensor, source: str, columns: list[str]) -> None:
    """Raise `UserError` for one of values [N, n] that is too far away when it is scaled to be calculated with."""
    for block in blocks(len(values)):
        far = (((values[block] - center) / scale).abs() > FAR).nonzero()
        if len(far):
            row, column = (far[0] + torch.tensor([block.start, 0])).tolist()
            begin = f"{source}: " if source else ""
            raise UserError(
                f"{begin}{columns[column]!r} is {values[row, column]:g} in row {row + 1}, too far from the scale of "
                f"what is learned from, {center[column]:.4g} ± {scale[column]:.4g}, to be calculated with; correct it"
            )


class Filled:
    """A series, scaled, whose gaps are filled, in each window, from the values that were known by the window's end.

    Only where the gaps are is kept, and none is filled before it is asked for.

    Args:
        values: [N, n].
        missing: refuse gaps, repeat the previous value, or draw a line from that to the following one, which a gap at
            a window's end does not have yet: it gets the previous value then.
        source: what a line about bad input begins with.
        columns: names, n.

    Raises `UserError` for a gap that is refused or has no value before it.
    """

    def __init__(self, values: Tensor, missing: Missing, source: str, columns: list[str]) -> None:
        self.values, self.source, self.columns = values, source, columns
        self.center, self.scale = values.new_zeros(len(columns)), values.new_ones(len(columns))
        found = [  # row and column of each gap, in this order
            (gap + torch.tensor([block.start, 0])) for block in blocks(len(values))
            if len(gap := values[block].isnan().nonzero())
        ]  # fmt: skip
        gaps = torch.cat([torch.empty(0, 2, dtype=torch.long), *found])
        begin = f"{source}: " if source else ""
        if len(gaps) and missing == "refuse":
            row, column = gaps[0].tolist()
            raise UserError(
                f"{begin}{len(gaps)} value{'s' * (len(gaps) > 1)} missing, the first in row {row + 1} of "
                f"{columns[column]!r}; train with task.missing=previous or linear to fill them"
            )
        if len(gaps) and not gaps[0, 0]:
            raise UserError(
                f"{begin}{columns[int(gaps[0, 1])]!r} begins with a gap; remove the rows before its first value"
            )
        # Places that go on from column to column, in each of which a first row is known, tell the gaps apart.
        places = (gaps[:, 1] * len(values) + gaps[:, 0]).sort().values
        begins = places.diff(prepend=places.new_tensor([-2])) > 1
        ends = begins.roll(-1)
        self.column, self.first = places[begins] // max(len(values), 1), places[begins] % max(len(values), 1)
        self.after = places[ends] % max(len(values), 1) + 1
        self.after[(self.after == len(values)) | torch.tensor(missing == "previous")] = NEVER

    def scaled(self, center: Tensor, scale: Tensor) -> Filled:
        """Itself, from now on relative to `center` and divided by `scale`, [n] each, see `refuse_far`."""
        refuse_far(self.values, center, scale, self.source, self.columns)
        self.center, self.scale = center, scale
        return self

    @classmethod
    def joined(cls, parts: Sequence[Filled]) -> Filled:
        """Several series one behind the other, each filled from its own values alone."""
        if len(parts) == 1:
            return parts[0]
        whole = cls.__new__(cls)
        whole.values = torch.from_numpy(together([part.values.numpy() for part in parts]))
        starts = [*accumulate((len(part.values) for part in parts), initial=0)]
        whole.column, whole.first, whole.after = (
            torch.cat([getattr(part, key) + start * shifts for part, start in zip(parts, starts)])
            for key, shifts in (("column", 0), ("first", 1), ("after", 1))
        )
        order = whole.place(whole.column, whole.first).argsort()
        whole.column, whole.first, whole.after = (found[order] for found in (whole.column, whole.first, whole.after))
        whole.center, whole.scale = parts[0].center, parts[0].scale
        return whole

    def place(self, column: Tensor, row: Tensor) -> Tensor:
        return column * len(self.values) + row

    def windows(self, ends: Tensor, length: int) -> Tensor:
        """The `length` rows that end before the rows `ends` [B], as [T, B, n]."""
        return self.rows(ends + torch.arange(-length, 0)[:, None], ends)

    def rows(self, rows: Tensor, ends: Tensor) -> Tensor:
        """The rows [T, B] as they are known before the rows `ends` [B], as [T, B, n]."""
        found = self.values[rows]
        if len(self.first):
            time, batch, column = gaps = found.isnan().nonzero(as_tuple=True)
            row = rows[time, batch]
            firsts = self.place(self.column, self.first)
            gap = torch.searchsorted(firsts, self.place(column, row), right=True) - 1
            before, after = self.first[gap] - 1, self.after[gap]
            previous = self.values[before, column]
            known = after < ends[batch]
            change = self.values[after.where(known, 0), column] - previous
            share = (row - before).double() / (after - before)
            found[gaps] = previous + torch.where(known, share * change, 0.0)
        return (found - self.center) / self.scale
