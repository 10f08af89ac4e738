"""Time series: read from a CSV file and checked, scaled, gaps filled; a series made on the spot.

Shapes: N rows, n columns, K of them targets, T rows of a window, B windows. A missing value is NaN.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from itertools import accumulate, pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

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
    header, rows = _table(data, source or f"task.data={data}")
    return _series(data, header, rows, source, date, columns, targets, day_first, decimal)


def read_apart(data: str, id: str, source: str | None = None, **form: Any) -> dict[str, Series]:
    """The series in a CSV file whose column `id` says to which one a row belongs, by what it says, in their order.

    Columns and the way of writing are found in the first series and are those of all; `form` is as in `read_csv`.
    """
    begin = source or f"task.data={data}"
    header, rows = _table(data, begin)
    if id not in header:
        raise UserError(f"{'' if source else 'task.id: '}no column {id!r} in {data}; {nearest(id, header)}")
    at = header.index(id)
    apart: dict[str, list[tuple[int, list[str]]]] = {}
    for line, fields in rows:
        if not fields[at]:
            raise UserError(f"{begin}: line {line}: column {id!r} is empty; say there which series the row is of")
        apart.setdefault(fields[at], []).append((line, fields[:at] + fields[at + 1 :]))
    header = header[:at] + header[at + 1 :]
    found: dict[str, Series] = {}
    for name, own in apart.items():
        series = found[name] = _series(data, header, own, source=source, **form)
        form |= {key: getattr(series, key) for key in ("date", "columns", "day_first", "decimal")}
    return found


def _table(data: str, source: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header of a CSV file, and its rows with their lines, each as long as the header."""
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
    return header, rows


def _series(
    data: str,
    header: list[str],
    rows: list[tuple[int, list[str]]],
    source: str | None = None,
    date: str | None = None,
    columns: list[str] | None = None,
    targets: Collection[str] | None = None,
    day_first: bool | None = None,
    decimal: Decimal | None = None,
) -> Series:
    """The series in rows of a file, see `read_csv`."""
    key = "" if source else "task."
    source = source or f"task.data={data}"
    if date is None:
        dated = [name for name, text in zip(header, rows[0][1]) if is_date(text) and not is_number(text)]
        if len(dated) > 1:
            raise UserError(f"{source}: {' and '.join(dated)} hold dates; choose with task.date=NAME")
        date = dated[0] if dated else None
    chosen = columns or [name for name in header if name != date]
    for what, names in (("columns", chosen), ("date", [date] if date is not None else [])):
        for name in names:
            if name not in header:
                begin = f"{key}{what}: " if key else ""
                raise UserError(f"{begin}no column {name!r} in {data}; {nearest(name, header)}")
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

    @classmethod
    def joined(cls, parts: Sequence[Filled]) -> Filled:
        """Several series one behind the other, each filled from its own values alone."""
        whole = cls.__new__(cls)
        starts = accumulate((len(part.previous) for part in parts), initial=0)
        whole.previous, whole.linear = (torch.cat([getattr(p, key) for p in parts]) for key in ("previous", "linear"))
        whole.following = torch.cat([part.following + start for part, start in zip(parts, starts)])
        return whole

    def windows(self, ends: Tensor, length: int) -> Tensor:
        """The `length` rows that end before the rows `ends` [B], as [T, B, n]."""
        rows = ends + torch.arange(-length, 0)[:, None]  # [T, B]
        return torch.where(self.following[rows] < ends[:, None], self.linear[rows], self.previous[rows])


def mackey_glass(rows: int = 2000, every: int = 3) -> Series:
    """A chaotic series: dx/dt = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x, from x = 1.2 (Mackey & Glass 1977).

    Euler's method with ten steps a unit of time, as in Jaeger 2001 (GMD report 148, section 6.1); a row every so many
    units, after 300 units to settle.
    """
    x, steps = [1.2] * 171, 10 * every * rows
    for _ in range(3000 + steps):
        x.append(x[-1] + 0.1 * (0.2 * x[-171] / (1 + x[-171] ** 10) - 0.1 * x[-1]))
    return Series(["x"], torch.tensor(x[-steps :: 10 * every], dtype=torch.float64)[:, None], None, [])
