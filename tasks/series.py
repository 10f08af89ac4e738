"""Time series: read from a CSV file and checked, scaled, gaps filled; forecasts' errors; a series made on the spot.

Shapes: N rows, n columns, K of them targets, T rows of a window, B windows. A missing value is NaN.
"""

from __future__ import annotations

import csv
import io
import math
import re
from calendar import monthrange
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from rnnzoo import UserError
from rnnzoo.errors import nearest

Missing = Literal["refuse", "previous", "linear"]
Scaling = Literal["standard", "minmax", "none"]

DATE = re.compile(r"\d{4}(-\d{2}(-\d{2}([T ].+)?)?)?")
UNKNOWN = ("", "na", "n/a", "nan", "null", "none", "?")
"""What stands for a missing value, in lower case."""

DAY, YEAR = 86_400, 365.25 * 86_400  # seconds

TURN = 17
"""Rows after which `mackey_glass` looks most like itself."""


class Series(NamedTuple):
    """Columns of numbers over time: their names, values [N, n] in float64, and the dates' column with its N dates."""

    columns: list[str]
    values: Tensor
    date: str | None
    dates: list[datetime]


def read_csv(data: str, date: str | None = None, columns: list[str] | None = None, source: str | None = None) -> Series:
    """The series in a CSV file with a header line, its fields separated by commas, semicolons or tabs.

    Args:
        data: the file.
        date: the column of dates (YYYY, YYYY-MM, YYYY-MM-DD, or with a time); None for the one whose first value
            is a date and no number, if there is one.
        columns: those to read, in this order; None for all but the dates.
        source: what a line about bad input begins with, if not with the key of the configuration.

    Raises `UserError` with file and line for what is no number or date, for rows of another length than the header,
    and for dates that are not in order or come twice.
    """
    source = source or f"task.data={data}"
    lines = _read_lines(Path(data).expanduser(), source)
    _, header = next(lines)
    rows = list(lines)
    if "" in header or len(set(header)) < len(header):
        raise UserError(f"{source}: line 1: columns need names that differ, not {', '.join(map(repr, header))}")
    if all(_is_number(name) or _date(name) for name in header):
        raise UserError(f"{source}: line 1 holds values, not the names of columns; put a header line before it")
    if not rows:
        raise UserError(f"{source}: there is a header but no row")
    for line, fields in rows:
        if len(fields) != len(header):
            raise UserError(f"{source}: line {line} has {len(fields)} fields, but the header {len(header)}")

    if date is None:
        dated = [name for name, text in zip(header, rows[0][1]) if _date(text) and not _is_number(text)]
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

    at = [header.index(name) for name in chosen]
    values = [[_number(fields[i], f"{source}: line {line}, column {header[i]!r}") for i in at] for line, fields in rows]
    dates = []
    if date is not None:
        dates = _ordered_dates([(line, fields[header.index(date)]) for line, fields in rows], source, date)
    return Series(list(chosen), torch.tensor(values, dtype=torch.float64), date, dates)


def _read_lines(path: Path, source: str) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and fields, those of the header first; an empty line is a missing value of a single column."""
    if not path.is_file():
        raise UserError(f"{source}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 (byte {error.start}); convert it first") from None
    if not text:
        raise UserError(f"{source}: the file is empty")
    names = re.sub(r'"[^"]*"', "", text.partition("\n")[0])
    reader = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=names.count), skipinitialspace=True, strict=True)
    try:
        for fields in reader:
            yield reader.line_num, [field.strip() for field in fields] or [""]
    except csv.Error as error:
        raise UserError(f"{source}: line {reader.line_num}: {error}") from None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def _number(text: str, where: str) -> float:
    if text.lower() in UNKNOWN:
        return math.nan
    if not _is_number(text):
        raise UserError(f"{where}: {text!r} is not a number; name the columns of numbers with task.columns=[NAME,...]")
    return float(text)


def _date(text: str) -> datetime | None:
    """The moment that the text names, in UTC where it has an offset; None if it is no date."""
    if not DATE.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text.removesuffix("Z") + {4: "-01-01", 7: "-01"}.get(len(text), ""))
        return moment.astimezone(timezone.utc).replace(tzinfo=None) if moment.tzinfo else moment
    except (ValueError, OverflowError):  # the first hours of the year 1 can be before all dates in UTC
        return None


def _ordered_dates(texts: list[tuple[int, str]], source: str, column: str) -> list[datetime]:
    dates: list[datetime] = []
    for line, text in texts:
        date = _date(text)
        if date is None:
            raise UserError(f"{source}: line {line}, column {column!r}: {text!r} is not a date like 2001-02-28")
        if dates and date <= dates[-1]:
            wrong = "is there twice" if date == dates[-1] else "is earlier than the line before"
            raise UserError(f"{source}: line {line}: {text} {wrong}; sort the rows by {column!r}, each date once")
        dates.append(date)
    return dates


def season_of(dates: list[datetime]) -> int:
    """Rows of a day if they are closer than that, else of a year; 1 for years and without dates."""
    if len(dates) < 2:
        return 1
    spacing = median((after - before).total_seconds() for before, after in pairwise(dates))
    return max(1, round((DAY if spacing < DAY else YEAR) / spacing))


def following(dates: list[datetime], count: int) -> list[datetime]:
    """The next `count` dates, as many months apart as those are, or as far apart as most of them; none after one."""
    if len(dates) < 2:
        return []
    spacing = sorted(after - before for before, after in pairwise(dates))[(len(dates) - 1) // 2]  # the median
    last, months = dates[-1], [12 * date.year + date.month - 1 for date in dates]
    steps = {after - before for before, after in pairwise(months)}
    if len(steps) > 1 or spacing < timedelta(days=28):
        return [last + row * spacing for row in range(1, count + 1)]
    day, step = max(date.day for date in dates), steps.pop()  # the largest, for the ends of months differ
    ahead = [divmod(months[-1] + row * step, 12) for row in range(1, count + 1)]
    return [
        last.replace(year=year, month=month + 1, day=min(day, monthrange(year, month + 1)[1])) for year, month in ahead
    ]


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
                f"{source}: {len(gaps)} values missing, the first in row {row + 1} of {columns[column]!r}; "
                f"task.missing=previous or linear fills them"
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
    Koehler 2006). With several targets the names of the errors end in theirs.

    Args:
        targets: names, K.
        scale: what the target was divided by, K.
        naive_error: mean absolute change over a season in the training part, K.
        options: keywords of `Metric`.
    """

    total_absolute: Tensor
    total_square: Tensor
    count: Tensor
    scale: Tensor
    naive_error: Tensor

    def __init__(self, targets: list[str], scale: list[float], naive_error: list[float], **options: Any) -> None:
        super().__init__(**options)
        self.suffixes = [f"_{name}" for name in targets] if len(targets) > 1 else [""]
        self.register_buffer("scale", torch.tensor(scale), persistent=False)
        self.register_buffer("naive_error", torch.tensor(naive_error), persistent=False)
        for name, dtype in (("total_absolute", torch.float), ("total_square", torch.float), ("count", torch.long)):
            self.add_state(name, torch.zeros(len(targets), dtype=dtype), dist_reduce_fx="sum")

    def update(self, forecast: Tensor, target: Tensor) -> None:
        """Add a batch [..., K] of either; what is not known of the target is left out."""
        known = ~target.isnan()
        error = ((forecast - target) * self.scale).where(known, 0).flatten(0, -2)
        self.total_absolute += error.abs().sum(0)
        self.total_square += error.square().sum(0)
        self.count += known.flatten(0, -2).sum(0)

    def compute(self) -> dict[str, Tensor]:
        mae = self.total_absolute / self.count
        errors = {"mae": mae, "rmse": (self.total_square / self.count).sqrt(), "mase": mae / self.naive_error}
        return {name + s: value[k] for name, value in errors.items() for k, s in enumerate(self.suffixes)}


def mackey_glass(rows: int = 2000) -> Series:
    """A chaotic series: dx/dt = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x, from x = 1.2 (Mackey & Glass 1977).

    Euler's method with ten steps a unit of time; a row every three units, after 300 units to settle.
    """
    x = [1.2] * 171
    for _ in range(3000 + 30 * rows):
        x.append(x[-1] + 0.1 * (0.2 * x[-171] / (1 + x[-171] ** 10) - 0.1 * x[-1]))
    return Series(["x"], torch.tensor(x[-30 * rows :: 30], dtype=torch.float64)[:, None], None, [])
