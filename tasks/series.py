"""Time series: read from a CSV file and checked, scaled, gaps filled; forecasts' errors; a series made on the spot.

Shapes: N rows, n columns, K of them targets, T rows of a window, B windows. A missing value is NaN.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from rnnzoo import UserError
from rnnzoo.errors import nearest
from rnnzoo.files import expanded
from rnnzoo.plain import printable

from .calendars import Calendar, calendar_of
from .csv_files import read_lines
from .dates import dates_of, is_date, numbered
from .numerals import Decimal, is_number, numbers_of

Missing = Literal["refuse", "previous", "linear"]
Scaling = Literal["standard", "minmax", "none"]

COUNTED = 3
"""Rows from which on a column that rises evenly is taken for the rows' number."""

TURN = 51
"""Units of time after which `mackey_glass` looks most like itself."""


class Series(NamedTuple):
    """Columns of numbers over time: their names, values [N, n] in float64, and the dates' column with its N dates."""

    columns: list[str]
    values: Tensor
    date: str | None
    dates: list[datetime]
    day_first: bool | None = None
    """Whether the file's dates begin with the day, where they could with the month."""
    decimal: Decimal | None = None
    """What stands before the fraction of its numbers, if they are not written plainly."""


def read_csv(
    data: str,
    date: str | None = None,
    columns: list[str] | None = None,
    source: str | None = None,
    targets: Collection[str] | None = None,
    day_first: bool | None = None,
    decimal: Decimal | None = None,
) -> Series:
    """The series in a CSV file with a header line, its fields separated by commas, semicolons or tabs.

    Args:
        data: the file.
        date: the column of dates (YYYY, YYYY-MM, YYYY-MM-DD, DD.MM.YYYY, MM/DD/YYYY, with a time or not, or numbers as
            `numbered` has them); None for the one whose first value is a date, if there is one.
        columns: those to read, in this order; None for all but the dates and what only counts the rows.
        source: what a line about bad input begins with, if not with the key of the configuration.
        targets: columns that are read even if they seem to count the rows.
        day_first: whether dates begin with the day, where they can with the month; None to find it.
        decimal: what stands before a number's fraction; None to find it.

    Raises `UserError` with file and line for what is no number or date, for rows of another length than the header,
    and for dates that are not in order or come twice.
    """
    source = source or f"task.data={data}"
    lines = read_lines(expanded(data), source)
    _, header = next(lines)
    rows = list(lines)
    if "" in header or len(set(header)) < len(header):
        raise UserError(f"{source}: line 1: columns need names that differ, not {', '.join(map(repr, header))}")
    if all(is_number(name) or is_date(name) for name in header):
        raise UserError(f"{source}: line 1 holds values, not the names of columns; put a header line before it")
    if not rows:
        raise UserError(f"{source}: there is a header but no row")
    for line, fields in rows:
        if len(fields) != len(header):
            raise UserError(f"{source}: line {line} has {len(fields)} fields, but the header {len(header)}")

    if date is None:
        dated = [name for name, text in zip(header, rows[0][1]) if is_date(text) and not is_number(text)]
        if len(dated) > 1:
            raise UserError(f"{source}: {' and '.join(dated)} hold dates; choose with task.date=NAME")
        date = dated[0] if dated else None
    chosen = columns or [name for name in header if name != date]
    for key, names in (("columns", chosen), ("date", [date] if date is not None else [])):
        for name in names:
            if name not in header:
                key = f"task.{key}: " if source == f"task.data={data}" else ""
                raise UserError(f"{key}no column {name!r} in {data}; {nearest(name, header)}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise UserError(f"task.columns: {data} needs at least one column besides the dates, and each only once")

    def texts(name: str) -> list[tuple[int, str]]:
        return [(line, fields[header.index(name)]) for line, fields in rows]

    found, decimal = numbers_of({name: texts(name) for name in chosen}, source, decimal)
    numbers = dict(zip(chosen, found))
    for name, column in numbers.items():
        if all(value != value for value in column):
            others = ",".join(other for other in chosen if other != name)
            raise UserError(f"{source}: column {name!r} is empty; leave it out with task.columns=[{others}]")
    dates: list[datetime] = []
    if date is not None:
        dates, day_first = dates_of(texts(date), source, date, day_first)
    elif columns is None:
        date, dates = _time_among(numbers, source)
    if columns is None:
        numbers = _without_counts(numbers, {date}, targets or (), source)
    values = torch.tensor([*numbers.values()], dtype=torch.float64).T
    return Series(list(numbers), values, date, dates, day_first, decimal)


def _time_among(numbers: dict[str, list[float]], source: str) -> tuple[str | None, list[datetime]]:
    """The first column of numbers that stand for dates, and those."""
    for name, values in numbers.items():
        dates = numbered(values) if len(values) >= COUNTED else None
        if dates and calendar_of(dates):  # what merely grows, as a population does, keeps no rhythm
            what = f"{name!r} is taken for dates; if it is none, name the columns with task.columns=[NAME,...]"
            print(printable(f"{source}: {what}"))
            return name, dates
    return None, []


def _without_counts(
    numbers: dict[str, list[float]], time: Collection[str | None], kept: Collection[str], source: str
) -> dict[str, list[float]]:
    """Those columns that say more than how many rows went before, or are to be kept."""
    counts = [name for name, values in numbers.items() if name not in (*time, *kept) and _counts(values)]
    for name in counts:
        few = ", ".join(f"{value:.15g}" for value in numbers[name][:COUNTED])
        what = f"{name!r} only counts the rows ({few}, ...) and is left out; task.columns=[NAME,...] reads it"
        print(printable(f"{source}: {what}"))
    left = {name: values for name, values in numbers.items() if name not in (*time, *counts)}
    if not left:
        raise UserError(
            f"{source}: {' and '.join(numbers)} only count the rows, there is nothing to forecast; name the columns "
            f"with task.columns=[NAME,...] if it is meant"
        )
    return left


def _counts(values: list[float]) -> bool:
    """Whether values rise, and evenly; a missing one does not."""
    steps = [after - before for before, after in pairwise(values)]
    if len(values) < COUNTED or not all(step > 0 for step in steps):
        return False
    size = max(abs(values[0]), abs(values[-1]))  # values are rounded in proportion to it, by double precision or a file
    mean = (values[-1] - values[0]) / len(steps)
    return all(abs(step - mean) <= 1e-6 * mean + 1e-12 * size for step in steps)


def completed(series: Series, calendar: Calendar | None, missing: Missing, source: str) -> Series:
    """The series with a row of gaps for each date that its calendar lacks; itself without a calendar.

    Raises `UserError` naming the first gap when `missing` refuses them.
    """
    if calendar is None or not calendar.missing:
        return series
    if missing == "refuse":
        before = next(k for k, (n, after) in enumerate(pairwise(calendar.numbers)) if after > n + 1)
        raise UserError(
            f"{source}: rows come {calendar.name}, {calendar.missing} {'are' if calendar.missing > 1 else 'is'} "
            f"missing, the first after "
            f"{series.dates[before]:%Y-%m-%d %H:%M}; task.missing=previous or linear fills them"
        )
    first, rows = calendar.numbers[0], calendar.numbers[-1] - calendar.numbers[0] + 1
    there = torch.tensor(calendar.numbers) - first
    values = series.values.new_full((rows, series.values.shape[1]), torch.nan).index_copy(0, there, series.values)
    dates = [calendar.at(first + row) for row in range(rows)]
    for row, date in zip(there.tolist(), series.dates):
        dates[row] = date
    return series._replace(values=values, dates=dates)


def center_and_scale(values: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """What to subtract from and then divide by the columns of values [N, n] with gaps, [n] each."""
    center, scale = values.new_zeros(values.shape[1]), values.new_ones(values.shape[1])
    if scaling == "standard":
        center = values.nanmean(0)
        scale = (values - center).square().nanmean(0).sqrt()
    elif scaling == "minmax":
        center = values.nan_to_num(nan=torch.inf).amin(0)
        scale = values.nan_to_num(nan=-torch.inf).amax(0) - center
    return center, scale.where(scale > 0, 1.0)  # a constant column has no scale of its own


class Filled:
    """A series whose gaps are filled, in each window, from the values that were known by the window's end.

    Args:
        values: [N, n].
        missing: refuse gaps, repeat the previous value, or draw a line from that to the following one, which a gap at
            a window's end does not have yet: it gets the previous value then.

    Raises `UserError` for a gap that is refused or has no value before it; `source` begins the line, and `columns` are
    the names it uses.
    """

    def __init__(self, values: Tensor, missing: Missing, source: str, columns: list[str]) -> None:
        known = ~values.isnan()
        gaps = (~known).nonzero().tolist()
        if gaps and missing == "refuse":
            row, column = gaps[0]
            raise UserError(
                f"{source}: {len(gaps)} value{'s' * (len(gaps) > 1)} missing, the first in row {row + 1} of "
                f"{columns[column]!r}; task.missing=previous or linear fills them"
            )
        row = torch.arange(len(values))[:, None].expand(values.shape)
        before = row.where(known, -1).cummax(0).values
        if (before < 0).any():
            raise UserError(
                f"{source}: {columns[gaps[0][1]]!r} begins with a gap; remove the rows before its first value"
            )
        self.following = row.where(known, len(values)).flip(0).cummin(0).values.flip(0)
        self.previous = self.linear = values.gather(0, before)
        if missing == "linear":
            after = values.gather(0, self.following.clamp(max=len(values) - 1))
            share = (row - before).double() / (self.following - before).clamp(min=1)
            self.linear = self.previous + share * (after - self.previous)

    def windows(self, ends: Tensor, length: int) -> Tensor:
        """The `length` rows that end before the rows `ends` [B], as [T, B, n]."""
        rows = ends + torch.arange(-length, 0)[:, None]  # [T, B]
        return torch.where(self.following[rows] < ends[:, None], self.linear[rows], self.previous[rows])


class Errors(Metric):
    """Mean absolute error, root mean square error, and MASE of scaled forecasts, in the data's units, by target.

    MASE is the mean absolute error divided by that of the value a season before, over the training part (Hyndman &
    Koehler 2006). `rmse_last` is the root mean square error of the last row ahead alone. With several targets the names
    of the errors end in theirs. `scaled_mse` and `scaled_mae` are means over all targets in scaled units, as benchmarks
    of long horizons report them.

    Args:
        targets: names, K.
        scale: what the target was divided by, K.
        naive_error: mean absolute change over a season in the training part, K.
        options: keywords of `Metric`.
    """

    total_absolute: Tensor
    total_square: Tensor
    count: Tensor
    last_square: Tensor
    last_count: Tensor
    scale: Tensor
    naive_error: Tensor

    def __init__(self, targets: list[str], scale: list[float], naive_error: list[float], **options: Any) -> None:
        super().__init__(**options)
        self.suffixes = [f"_{name}" for name in targets] if len(targets) > 1 else [""]
        self.register_buffer("scale", torch.tensor(scale), persistent=False)
        self.register_buffer("naive_error", torch.tensor(naive_error), persistent=False)
        for name in ("total_absolute", "total_square", "count", "last_square", "last_count"):
            dtype = torch.long if name.endswith("count") else torch.float
            self.add_state(name, torch.zeros(len(targets), dtype=dtype), dist_reduce_fx="sum")

    def update(self, forecast: Tensor, target: Tensor) -> None:
        """Add a batch [H, ..., K] of either; what is not known of the target is left out."""
        known = ~target.isnan()
        error = ((forecast - target) * self.scale).where(known, 0)
        over = tuple(range(error.dim() - 1))
        self.total_absolute += error.abs().sum(over)
        self.total_square += error.square().sum(over)
        self.count += known.sum(over)
        self.last_square += error[-1:].square().sum(over)
        self.last_count += known[-1:].sum(over)

    def compute(self) -> dict[str, Tensor]:
        mae = self.total_absolute / self.count
        errors = {
            "mae": mae,
            "rmse": (self.total_square / self.count).sqrt(),
            "rmse_last": (self.last_square / self.last_count).sqrt(),
            "mase": mae / self.naive_error,
        }
        count = self.count.sum()
        scaled = {
            "scaled_mse": (self.total_square / self.scale.square()).sum() / count,
            "scaled_mae": (self.total_absolute / self.scale).sum() / count,
        }
        by_target = {name + s: value[k] for name, value in errors.items() for k, s in enumerate(self.suffixes)}
        return by_target | scaled


def mackey_glass(rows: int = 2000, every: int = 3) -> Series:
    """A chaotic series: dx/dt = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x, from x = 1.2 (Mackey & Glass 1977).

    Euler's method with ten steps a unit of time, as in Jaeger 2001 (GMD report 148, section 6.1); a row every so many
    units, after 300 units to settle.
    """
    x, steps = [1.2] * 171, 10 * every * rows
    for _ in range(3000 + steps):
        x.append(x[-1] + 0.1 * (0.2 * x[-171] / (1 + x[-171] ** 10) - 0.1 * x[-1]))
    return Series(["x"], torch.tensor(x[-steps :: 10 * every], dtype=torch.float64)[:, None], None, [])
