"""Dates as files write them, and numbers that stand for dates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from rnnzoo import UserError

from .blocks import Array, blocks, joined
from .numerals import Unsettled, is_number

Moments: TypeAlias = "np.ndarray[Any, np.dtype[np.datetime64]]"
"""Dates as numbers of microseconds."""

CLOCK = (
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d+))?)?)?"
    r"(?: ?(?P<half>[AaPp])\.?[Mm]\.?)?(?: ?(?P<zone>Z|UTC|[+-]\d{2}(?::?\d{2})?))?"
)
ORDERS = {
    "ymd": r"(?P<year>\d{4})(?:[-/](?P<month>\d{1,2})|(?P<by>[-/.])(?P<month2>\d{1,2})(?P=by)(?P<day>\d{1,2}))?",
    "dmy": r"(?:(?P<day>\d{1,2})(?P<by>[-/.])(?P<month>\d{1,2})(?P=by)|(?P<month2>\d{1,2})[-/])(?P<year>\d{4})",
    # between dots, days come first everywhere
    "mdy": r"(?:(?P<month>\d{1,2})(?P<by>[-/])(?P<day>\d{1,2})(?P=by)|(?P<month2>\d{1,2})[-/])(?P<year>\d{4})",
}
PATTERNS = {order: re.compile(rf"{day}(?:[T ] ?{CLOCK})?", re.ASCII) for order, day in ORDERS.items()}

LIKE = "2001-02-28"
YEARS = range(1500, 2201)
"""Those that numbers are taken for without being told."""
EXCEL = np.datetime64("1899-12-30", "us")
UNIX = np.datetime64("1970-01-01", "us")


class Dates(NamedTuple):
    """The dates of a column, and whether days came first where that could be either way, or what was said of it."""

    dates: Moments
    day_first: bool | None = None


def moments(dates: Sequence[datetime] | Moments) -> Moments:
    return np.asarray(dates, "M8[us]")


def read_date(text: str, order: str) -> datetime | None:
    """The moment that the text names, in UTC where it has an offset; None if it is no date in this order."""
    found = PATTERNS[order].fullmatch(text)
    if not found:
        return None
    part = found.groupdict()
    hour, half = int(part["hour"] or 0), (part["half"] or "").lower()
    if half:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + 12 * (half == "p")
    try:
        moment = datetime(
            int(part["year"]),
            int(part["month"] or part["month2"] or 1),
            int(part["day"] or 1),
            hour,
            int(part["minute"] or 0),
            int(part["second"] or 0),
            int((part["fraction"] or "0").ljust(6, "0")[:6]),
        )
        zone = part["zone"]
        if zone in (None, "Z", "UTC"):
            return moment
        digits = zone[1:].replace(":", "").ljust(4, "0")
        away = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
        return moment + away if zone[0] == "-" else moment - away
    except (ValueError, OverflowError):  # the first hours of the year 1 can be before all dates in UTC
        return None


def is_date(text: str) -> bool:
    """Whether the text is a date in any order."""
    return any(read_date(text, order) for order in ORDERS)


def dates_of(
    texts: list[tuple[int, str]], source: str, column: str, day_first: bool | None = None, trained: bool = False
) -> Dates:
    """The dates that (line, text) name, which must rise.

    Raises `UserError` naming the line of what is no date, is there twice or comes too late, and for dates in which days
    or months can come first; `day_first` says which, unless a `trained` run reads them that was not told.
    """
    if all(is_number(text) for _, text in texts):
        told = numbered(np.array([float(text) for _, text in texts]), named=True)
        if told is not None:
            return Dates(told, day_first)
    orders = ["ymd"] if texts[0][1][:4].isdigit() else ["dmy", "mdy"]
    if len(orders) > 1 and day_first is not None:
        orders = ["dmy" if day_first else "mdy"]
    read: dict[str, list[datetime]] = {}
    problems: list[tuple[int, str]] = []
    for order in orders:
        found = _rising(texts, order, column)
        if isinstance(found, list):
            read[order] = found
        else:
            problems.append(found)
    if not read:
        line, problem = max(problems)  # that of the order which went furthest
        raise UserError(f"{source}: line {line}{problem}")
    if len(read) > 1 and read["dmy"] != read["mdy"]:
        cure = f"write them like {LIKE}" if trained else "say task.day_first=true or false"
        raise Unsettled(
            f"{source}: {column!r}: in {texts[0][1]} to {texts[-1][1]} days or months can come first; {cure}"
        )
    return Dates(moments(next(iter(read.values()))), day_first if orders == ["ymd"] else "dmy" in read)


def _rising(texts: list[tuple[int, str]], order: str, column: str) -> list[datetime] | tuple[int, str]:
    """The dates, or the line of the first that will not do and what is wrong with it."""
    dates: list[datetime] = []
    for line, text in texts:
        date = read_date(text, order)
        if date is None:
            return (
                line,
                f", column {column!r}: {text[:60]!r} is not a date like {LIKE}, 28.02.2001 or 02/28/2001 3:15 PM",
            )
        if dates and date <= dates[-1]:
            wrong = "is there twice" if date == dates[-1] else "is earlier than the line before"
            return line, f": {text} {wrong}; sort the rows by {column!r}, each date once"
        dates.append(date)
    return dates


def numbered(values: Array, named: bool = False) -> Moments | None:
    """The dates that rising numbers stand for, None if they stand for none.

    They are years, YYYYMM, YYYYMMDD, or seconds or milliseconds since 1970; days of a spreadsheet only if `named` as
    dates, since they look like any count.
    """
    first, last = values[[0, -1]].tolist()
    if first != first or not all((np.diff(values[block]) > 0).all() for block in blocks(len(values), 1)):
        return None
    if first >= YEARS[0] and last < YEARS[-1] * 10_000 and not (values % 1).any():
        for digits in (0, 2, 4):  # behind the year
            low, high = ((year * 10**digits) for year in (YEARS[0], YEARS[-1]))
            if first >= low and (last < high or (last == high and not digits)):
                return _in_digits(values.astype(np.int64) * 10 ** (4 - digits), digits)
    for unit in (1, 1000):
        if 1e8 * unit <= first and last <= 7e9 * unit:  # from 1973 on
            pieces = (np.rint(values[block] * 1e6 / unit).astype("m8[us]") for block in blocks(len(values)))
            return joined(UNIX + piece for piece in pieces)
    if named and first >= 20_000 and last <= 75_000:  # 1954 to 2105
        return EXCEL + np.rint(values * 86_400).astype("m8[s]")
    return None


def _in_digits(numbers: Array, digits: int) -> Moments | None:
    """The dates that YYYYMMDD stands for, with as many digits behind the year as count, the others being 0."""
    month, day = numbers // 100 % 100 - 1 * (digits >= 2), numbers % 100 - 1 * (digits == 4)
    months = (numbers // 10_000 * 12 + month - 1970 * 12).astype("M8[M]")
    dates = months.astype("M8[D]") + day
    if (month < 0).any() or (month > 11).any() or (dates.astype("M8[M]") != months).any():
        return None
    return dates.astype("M8[us]")
