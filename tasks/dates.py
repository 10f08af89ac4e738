"""Dates as files write them, and numbers that stand for dates."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

from rnnzoo import UserError

from .numerals import is_number

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
EXCEL = datetime(1899, 12, 30)
UNIX = datetime(1970, 1, 1)


class Dates(NamedTuple):
    """The dates of a column, and whether days came first where that could be either way."""

    dates: list[datetime]
    day_first: bool | None = None


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


def dates_of(texts: list[tuple[int, str]], source: str, column: str, day_first: bool | None = None) -> Dates:
    """The dates that (line, text) name, which must rise.

    Raises `UserError` naming the line of what is no date, is there twice or comes too late, and for dates in which days
    or months can come first; `day_first` says which.
    """
    if all(is_number(text) for _, text in texts):
        told = numbered([float(text) for _, text in texts], named=True)
        if told is not None:
            return Dates(told)
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
        raise UserError(
            f"{source}: {column!r}: in {texts[0][1]} to {texts[-1][1]} days or months can come first; say "
            f"task.day_first=true or false"
        )
    return Dates(next(iter(read.values())), None if orders == ["ymd"] else "dmy" in read)


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


def numbered(values: list[float], named: bool = False) -> list[datetime] | None:
    """The dates that rising numbers stand for, None if they stand for none.

    They are years, YYYYMM, YYYYMMDD, or seconds or milliseconds since 1970; days of a spreadsheet only if `named` as
    dates, since they look like any count.
    """
    if any(after <= before for before, after in pairwise(values)) or any(value != value for value in values):
        return None
    first, last = values[0], values[-1]
    try:
        if all(value.is_integer() for value in values):
            if first >= YEARS[0] and last <= YEARS[-1]:
                return [datetime(int(value), 1, 1) for value in values]
            if first >= YEARS[0] * 100 and last < YEARS[-1] * 100:
                return [datetime(int(value) // 100, int(value) % 100, 1) for value in values]
            if first >= YEARS[0] * 10_000 and last < YEARS[-1] * 10_000:
                return [datetime.strptime(f"{value:.0f}", "%Y%m%d") for value in values]
        for unit in (1, 1000):
            if 1e8 * unit <= first and last <= 7e9 * unit:  # from 1973 on
                return [UNIX + timedelta(microseconds=round(value * 1e6 / unit)) for value in values]
        if named and first >= 20_000 and last <= 75_000:  # 1954 to 2105
            return [EXCEL + timedelta(seconds=round(value * 86_400)) for value in values]
    except ValueError:
        return None
    return None
