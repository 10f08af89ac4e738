"""Calendars: in what rhythm the rows of a series come, which of them are missing, and which follow."""

from __future__ import annotations

from calendar import day_abbr, isleap, monthrange
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

DAY, WEEK, YEAR = timedelta(days=1), timedelta(days=7), timedelta(days=365.25)
MONDAY = datetime(1, 1, 1)  # as the first day of all was
EDGE = 4
"""Days at a month's end or begin, of which any can be its last or first working day."""


Rhythm: TypeAlias = "list[str | float]"
"""What makes a calendar, in plain values: "months" and how many, "seconds" from row to row, "without" and the day that
leap years lack, or "day" or "week" and the seconds in it at which rows come."""


class Calendar(NamedTuple):
    """The numbers of the dates in it, its rows of a season, the date of any number, its name, and what makes it."""

    numbers: list[int]
    season: int
    at: Callable[[int], datetime]
    name: str
    rhythm: Rhythm

    @property
    def missing(self) -> int:
        """How many dates the calendar has between the first and the last besides those that are there."""
        return self.numbers[-1] - self.numbers[0] + 1 - len(self.numbers)


def calendar_of(dates: list[datetime], rhythm: Rhythm | None = None) -> Calendar | None:
    """The calendar in which the fewest rows are missing; None for less than two dates and for irregular ones.

    It is steps of months, equal steps, days but for one that leap years lack, the same times every day, or the same
    days and times every week. A season is a day where rows are closer than that, else a year. Irregular are dates of
    which in any calendar more than a third are followed by a gap, or that lack more than they have.

    Where all dates keep a `rhythm` that is known from more of them, it is that.
    """
    if len(dates) < 2:
        return None
    known = _known(dates, rhythm) if rhythm else None
    if known:
        return known
    found = [
        _months(dates), _steps(dates), *(_without(dates, day) for day in LEAP_DAYS), _times(dates, DAY),
        _times(dates, WEEK),
    ]  # fmt: skip
    regular = [calendar for calendar in found if calendar and _is_regular(calendar)]
    return min(regular, key=lambda calendar: calendar.missing, default=None)  # the simplest of equals


def _is_regular(calendar: Calendar) -> bool:
    steps = [after - before for before, after in pairwise(calendar.numbers)]
    return 3 * steps.count(1) >= 2 * len(steps) and calendar.missing <= len(calendar.numbers)


def _known(dates: list[datetime], rhythm: Rhythm) -> Calendar | None:
    kind, *values = rhythm
    numbers = [float(value) for value in values if not isinstance(value, str)]
    if kind == "months":
        return _months(dates, int(numbers[0]))
    if kind == "seconds":
        return _steps(dates, timedelta(seconds=numbers[0]))
    if kind == "without":
        return _without(dates, (int(numbers[0]), int(numbers[1])), True)
    return _times(dates, {"day": DAY, "week": WEEK}[str(kind)], [timedelta(seconds=number) for number in numbers])


def _months(dates: list[datetime], step: int | None = None) -> Calendar | None:
    months = [12 * date.year + date.month - 1 for date in dates]
    step = step or min(after - before for before, after in pairwise(months))
    if step < 1 or any((month - months[0]) % step for month in months) or len({date.time() for date in dates}) > 1:
        return None
    day = max(date.day for date in dates)  # the largest, for the ends of months differ
    left = [monthrange(date.year, date.month)[1] - date.day for date in dates]
    same = all(date.day == day or not rest for date, rest in zip(dates, left))
    if not same and day > EDGE and max(left) >= EDGE:
        return None

    def at(number: int) -> datetime:
        year, month = divmod(number * step + months[0], 12)
        return dates[-1].replace(year=year, month=month + 1, day=min(day, monthrange(year, month + 1)[1]))

    numbers = [(month - months[0]) // step for month in months]
    name = {1: "every month", 12: "every year"}.get(step, f"every {step} months")
    return Calendar(numbers, max(1, round(12 / step)), at, name, ["months", step])


def _steps(dates: list[datetime], step: timedelta | None = None) -> Calendar | None:
    step = step or min(after - before for before, after in pairwise(dates))
    if any((date - dates[0]) % step for date in dates):
        return None
    season = max(1, round((DAY if step < DAY else YEAR) / step))
    numbers = [(date - dates[0]) // step for date in dates]
    rhythm: Rhythm = ["seconds", step.total_seconds()]
    return Calendar(numbers, season, lambda number: dates[0] + number * step, f"every {_said(step)}", rhythm)


LEAP_DAYS = ((2, 29), (12, 31))
"""Month and day of what is left out where each year is to have 365 days."""


def _without(dates: list[datetime], left_out: tuple[int, int], known: bool = False) -> Calendar | None:
    """All days but one in leap years, if the days beside each such are there or the calendar is known."""
    clock = dates[0] - dates[0].replace(hour=0, minute=0, second=0, microsecond=0)
    days = {date.date() for date in dates}
    lacking = [
        day for year in range(dates[0].year, dates[-1].year + 1) if isleap(year)
        for day in [date(year, *left_out)] if dates[0].date() < day < dates[-1].date()
    ]  # fmt: skip
    if any(moment.time() != dates[0].time() for moment in dates) or any(
        isleap(day.year) and (day.month, day.day) == left_out for day in days
    ):
        return None
    if not known and not (lacking and all({day - DAY, day + DAY} <= days for day in lacking)):
        return None

    def number(day: date) -> int:
        before = isleap(day.year) and (day.month, day.day) > left_out
        return 365 * day.year + (day - date(day.year, 1, 1)).days - before

    def at(number: int) -> datetime:
        year, rest = divmod(number, 365)
        first = datetime(year, 1, 1)
        return first + rest * DAY + (isleap(year) and (first + rest * DAY) >= datetime(year, *left_out)) * DAY + clock

    named = {(2, 29): "every day but February 29", (12, 31): "every day but December 31 of leap years"}[left_out]
    return Calendar([number(moment.date()) for moment in dates], 365, at, named, ["without", *left_out])


def _said(step: timedelta) -> str:
    for unit, name in ((DAY, "day"), (DAY / 24, "hour"), (DAY / 1440, "minute")):
        if not step % unit:
            return name if step == unit else f"{step // unit} {name}s"
    return f"{step.total_seconds():g} seconds"


def _times(dates: list[datetime], period: timedelta, known: list[timedelta] | None = None) -> Calendar | None:
    """Those times of a day or of a week at which there ever was a row, or which are known."""
    if not known and dates[-1] - dates[0] < 2 * period:
        return None
    found = {(date - MONDAY) % period for date in dates}
    times = sorted(known or found)
    if not found <= set(times) or (not known and (len(times) < 2 or 2 * len(times) > len(dates))):
        return None
    place = {time: index for index, time in enumerate(times)}
    numbers = [(date - MONDAY) // period * len(times) + place[(date - MONDAY) % period] for date in dates]

    def at(number: int) -> datetime:
        return MONDAY + number // len(times) * period + times[number % len(times)]

    days = sorted({time // DAY for time in times})
    a_day = len({time % DAY for time in times})
    season = round(YEAR / period * len(times)) if a_day == 1 else round(len(times) / len(days))
    often = [f"{a_day} times a day"] if a_day > 1 else []
    named = [", ".join(day_abbr[day] for day in days)] if period == WEEK else []
    rhythm: Rhythm = ["week" if period == WEEK else "day", *(time.total_seconds() for time in times)]
    return Calendar(numbers, season, at, ", ".join([*often, *named]), rhythm)


def following(dates: list[datetime], count: int, rhythm: Rhythm | None = None) -> list[datetime]:
    """The next `count` dates of the calendar, for irregular dates as far apart as most of them; none after one."""
    if len(dates) < 2:
        return []
    calendar = calendar_of(dates, rhythm)
    if calendar:
        return [calendar.at(calendar.numbers[-1] + row) for row in range(1, count + 1)]
    spacing = sorted(after - before for before, after in pairwise(dates))[(len(dates) - 1) // 2]  # the median
    return [dates[-1] + row * spacing for row in range(1, count + 1)]


def written(moments: Sequence[Any]) -> list[str]:
    """Dates as a file has them, without the time of day if all are at midnight; numbers of rows as they are."""
    days = all(isinstance(m, datetime) and m.time() == m.time().min for m in moments)
    return [f"{moment:%Y-%m-%d}" if days else str(moment) for moment in moments]
