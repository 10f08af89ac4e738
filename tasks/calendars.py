"""Calendars: in what rhythm the rows of a series come, which of them are missing, and which follow."""

from __future__ import annotations

from calendar import day_abbr, isleap
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .blocks import Array, blocks
from .dates import Moments, moments

DAY, WEEK, YEAR = timedelta(days=1), timedelta(days=7), timedelta(days=365.25)
MONDAY = np.datetime64("0001-01-01", "us")  # as the first day of all was
EDGE = 4
"""Days at a month's end or begin, of which any can be its last or first working day."""


Rhythm: TypeAlias = "list[str | float]"
"""What makes a calendar, in plain values: "months" and how many, "seconds" from row to row, "without" and the day that
leap years lack, or "day" or "week" and the seconds in it at which rows come."""


class Calendar(NamedTuple):
    """The numbers of any dates in it, the dates of any numbers, its rows of a season, its name, and what makes it; the
    numbers of the first and the last date, and how many it has between them besides those that are there."""

    number: Callable[[Moments], Array]
    at: Callable[[Array], Moments]
    season: int
    name: str
    rhythm: Rhythm
    first: int
    last: int
    missing: int


def calendar_of(dates: Sequence[datetime] | Moments, rhythm: Rhythm | None = None) -> Calendar | None:
    """The calendar in which the fewest rows are missing; None for less than two dates and for irregular ones.

    It is steps of months, equal steps, days but for one that leap years lack, the same times every day, or the same
    days and times every week. A season is a day where rows are closer than that, else a year. Irregular are dates of
    which in any calendar more than a third are followed by a gap, or that lack more than they have.

    Where all dates keep a `rhythm` that is known from more of them, it is that.
    """
    there = moments(dates)
    if len(there) < 2:
        return None
    best = _known(there, rhythm) if rhythm else None
    if best:
        return best
    ways: list[Callable[[Moments], Calendar | None]] = [
        _months, _steps, *(partial(_without, left_out=day) for day in LEAP_DAYS), partial(_times, period=DAY),
        partial(_times, period=WEEK),
    ]  # fmt: skip
    for way in ways:  # the simplest of equals
        found = way(there)
        if found and (best is None or found.missing < best.missing) and _is_regular(found, there):
            best = found
        if best and not best.missing:
            break
    return best


def _calendar(
    dates: Moments, number: Callable[[Moments], Array], at: Callable[[Array], Moments], season: float, name: str,
    rhythm: Rhythm,
) -> Calendar:  # fmt: skip
    first, last = (int(end) for end in number(dates[[0, -1]]))
    return Calendar(number, at, max(1, round(season)), name, rhythm, first, last, last - first + 1 - len(dates))


def _is_regular(calendar: Calendar, dates: Moments) -> bool:
    next_to_each_other = sum(int((steps == 1).sum()) for steps in _differences(dates, calendar.number))
    return 3 * next_to_each_other >= 2 * (len(dates) - 1) and calendar.missing <= len(dates)


def _differences(dates: Moments, of: Callable[[Moments], Array]) -> Iterator[Array]:
    """How far each date is from the one before, block by block."""
    return (np.diff(of(dates[block])) for block in blocks(len(dates), 1))


def _known(dates: Moments, rhythm: Rhythm) -> Calendar | None:
    kind, *values = rhythm
    numbers = [float(value) for value in values if not isinstance(value, str)]
    if kind == "months":
        return _months(dates, int(numbers[0]))
    if kind == "seconds":
        return _steps(dates, timedelta(seconds=numbers[0]))
    if kind == "without":
        return _without(dates, (int(numbers[0]), int(numbers[1])), True)
    return _times(dates, {"day": DAY, "week": WEEK}[str(kind)], [timedelta(seconds=number) for number in numbers])


def _clocks(dates: Moments) -> Array:
    return dates - dates.astype("M8[D]")


def _days_of(months: Array) -> Array:
    """How many days they have."""
    return ((months + 1).astype("M8[D]") - months.astype("M8[D]")).astype(np.int64)


def _months(dates: Moments, step: int | None = None) -> Calendar | None:
    first, last = dates[[0, -1]].astype("M8[M]").astype(np.int64).tolist()
    if len(dates) > last - first + 1:  # then two are in the same month
        return None
    months = dates.astype("M8[M]")
    numbers = months.astype(np.int64) - first
    step = step or int(np.diff(numbers).min())
    if step < 1 or (numbers % step).any() or (_clocks(dates) != _clocks(dates)[0]).any():
        return None
    days = (dates.astype("M8[D]") - months.astype("M8[D]")).astype(np.int64) + 1
    left = _days_of(months) - days
    day = int(days.max())  # the largest, for the ends of months differ
    if not ((days == day) | (left == 0)).all() and day > EDGE and left.max() >= EDGE:
        return None
    clock, each = _clocks(dates)[0], step

    def number(dates: Moments) -> Array:
        return (dates.astype("M8[M]").astype(np.int64) - first) // each

    def at(numbers: Array) -> Moments:
        months = (np.asarray(numbers) * each + first).astype("M8[M]")
        return months.astype("M8[D]") + (np.minimum(day, _days_of(months)) - 1) + clock

    name = {1: "every month", 12: "every year"}.get(step, f"every {step} months")
    return _calendar(dates, number, at, 12 / step, name, ["months", step])


def _steps(dates: Moments, step: timedelta | None = None) -> Calendar | None:
    every = np.timedelta64(step or min(found.min() for found in _differences(dates, moments)).item(), "us")
    if any(((dates[block] - dates[0]) % every).astype(bool).any() for block in blocks(len(dates))):
        return None
    step = every.item()
    season = (DAY if step < DAY else YEAR) / step

    def number(some: Moments) -> Array:
        return (some - dates[0]) // every

    return _calendar(
        dates, number, lambda numbers: dates[0] + numbers * every, season, f"every {_said(step)}",
        ["seconds", step.total_seconds()],
    )  # fmt: skip


LEAP_DAYS = ((2, 29), (12, 31))
"""Month and day of what is left out where each year is to have 365 days."""


def _without(dates: Moments, left_out: tuple[int, int], known: bool = False) -> Calendar | None:
    """All days but one in leap years, if the days beside each such are there or the calendar is known."""
    first, last = dates[[0, -1]].astype("M8[D]")
    if len(dates) > (last - first).astype(int) + 1 or (_clocks(dates) != _clocks(dates)[0]).any():
        return None
    clock, place = _clocks(dates)[0], {(2, 29): 59, (12, 31): 365}[left_out]  # in a leap year

    def parts(dates: Moments) -> tuple[Array, Array, Array]:
        """Years, days before each in its year, and which years are leap years."""
        years = dates.astype("M8[Y]")
        before = (dates.astype("M8[D]") - years.astype("M8[D]")).astype(np.int64)
        return years.astype(np.int64) + 1970, before, _leap(years)

    def number(dates: Moments) -> Array:
        years, before, leap = parts(dates)
        return 365 * years + before - (leap & (before > place))

    def at(numbers: Array) -> Moments:
        years, before = np.divmod(np.asarray(numbers), 365)
        years = (years - 1970).astype("M8[Y]")
        return years.astype("M8[D]") + (before + (_leap(years) & (before >= place))) + clock

    _, before, leap = parts(dates)
    if (leap & (before == place)).any():
        return None
    years = range(first.item().year, last.item().year + 1)
    days = [np.datetime64(f"{year:04}-{left_out[0]:02}-{left_out[1]:02}", "D") for year in years if isleap(year)]
    beside = [day + way for day in days if first < day < last for way in (-1, 1)]
    if not known and not (beside and np.isin(beside, dates.astype("M8[D]")).all()):
        return None
    named = {(2, 29): "every day but February 29", (12, 31): "every day but December 31 of leap years"}[left_out]
    return _calendar(dates, number, at, 365, named, ["without", *left_out])


def _leap(years: Array) -> Array:
    return ((years + 1).astype("M8[D]") - years.astype("M8[D]")).astype(np.int64) == 366


def _said(step: timedelta) -> str:
    for unit, name in ((DAY, "day"), (DAY / 24, "hour"), (DAY / 1440, "minute")):
        if not step % unit:
            return name if step == unit else f"{step // unit} {name}s"
    return f"{step.total_seconds():g} seconds"


def _times(dates: Moments, period: timedelta, known: list[timedelta] | None = None) -> Calendar | None:
    """Those times of a day or of a week at which there ever was a row, or which are known."""
    each = np.timedelta64(period, "us")
    if not known and dates[-1] - dates[0] < 2 * each:
        return None
    times = np.array(sorted(known or ()), "m8[us]")
    for block in blocks(len(dates)):
        found = np.union1d(times, (dates[block] - MONDAY) % each)
        if known and len(found) > len(times):
            return None
        times = found
        if not known and 2 * len(times) > len(dates):
            return None
    if len(times) < 2 and not known:
        return None

    def number(dates: Moments) -> Array:
        return (dates - MONDAY) // each * len(times) + times.searchsorted((dates - MONDAY) % each)

    def at(numbers: Array) -> Moments:
        periods, place = np.divmod(np.asarray(numbers), len(times))
        return MONDAY + periods * each + times[place]

    plain: list[timedelta] = times.tolist()
    days = sorted({time // DAY for time in plain})
    a_day = len({time % DAY for time in plain})
    season = YEAR / period * len(plain) if a_day == 1 else len(plain) / len(days)
    often = [f"{a_day} times a day"] if a_day > 1 else []
    named = [", ".join(day_abbr[day] for day in days)] if period == WEEK else []
    rhythm: Rhythm = ["week" if period == WEEK else "day", *(time.total_seconds() for time in plain)]
    return _calendar(dates, number, at, season, ", ".join([*often, *named]), rhythm)


def following(dates: Sequence[datetime] | Moments, count: int, rhythm: Rhythm | None = None) -> list[datetime]:
    """The next `count` dates of the calendar, for irregular dates as far apart as most of them; none after one."""
    there = moments(dates)
    if len(there) < 2:
        return []
    ahead = np.arange(1, count + 1)
    calendar = calendar_of(there, rhythm)
    if calendar:
        found: list[datetime] = calendar.at(calendar.last + ahead).tolist()
        return found
    middle = (len(there) - 1) // 2  # of the distances: their median
    spacing = np.partition(np.diff(there), middle)[middle]
    found = (there[-1] + ahead * spacing).tolist()
    return found


def written(moments: Sequence[Any]) -> list[str]:
    """Dates as a file has them, without the time of day if all are at midnight; numbers of rows as they are."""
    days = all(isinstance(m, datetime) and m.time() == m.time().min for m in moments)
    return [f"{moment:%Y-%m-%d}" if days else str(moment) for moment in moments]
