"""Calendars: in what rhythm the rows of a series come, which of them are missing, and which follow."""

from __future__ import annotations

from calendar import day_abbr, monthrange
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

DAY, WEEK, YEAR = timedelta(days=1), timedelta(days=7), timedelta(days=365.25)
MONDAY = datetime(1, 1, 1)  # as the first day of all was
EDGE = 4
"""Days at a month's end or begin, of which any can be its last or first working day."""


class Calendar(NamedTuple):
    """A rhythm: the numbers of the dates in it, its rows of a season, the date of any number, and what to call it."""

    numbers: list[int]
    season: int
    at: Callable[[int], datetime]
    name: str

    @property
    def missing(self) -> int:
        """How many dates the calendar has between the first and the last besides those that are there."""
        return self.numbers[-1] - self.numbers[0] + 1 - len(self.numbers)


def calendar_of(dates: list[datetime]) -> Calendar | None:
    """The calendar in which the fewest rows are missing; None for less than two dates and for irregular ones.

    It is steps of months, equal steps, the same times every day, or the same days and times every week. A season is a
    day where rows are closer than that, else a year. Irregular are dates of which in any calendar more than a third are
    followed by a gap, or that lack more than they have.
    """
    if len(dates) < 2:
        return None
    found = [_months(dates), _steps(dates), _times(dates, DAY), _times(dates, WEEK)]
    regular = [calendar for calendar in found if calendar and _is_regular(calendar)]
    return min(regular, key=lambda calendar: calendar.missing, default=None)  # the simplest of equals


def _is_regular(calendar: Calendar) -> bool:
    steps = [after - before for before, after in pairwise(calendar.numbers)]
    return 3 * steps.count(1) >= 2 * len(steps) and calendar.missing <= len(calendar.numbers)


def _months(dates: list[datetime]) -> Calendar | None:
    months = [12 * date.year + date.month - 1 for date in dates]
    step = min(after - before for before, after in pairwise(months))
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
    return Calendar(numbers, max(1, round(12 / step)), at, name)


def _steps(dates: list[datetime]) -> Calendar | None:
    step = min(after - before for before, after in pairwise(dates))
    if any((date - dates[0]) % step for date in dates):
        return None
    season = max(1, round((DAY if step < DAY else YEAR) / step))
    numbers = [(date - dates[0]) // step for date in dates]
    return Calendar(numbers, season, lambda number: dates[0] + number * step, f"every {_said(step)}")


def _said(step: timedelta) -> str:
    for unit, name in ((DAY, "day"), (DAY / 24, "hour"), (DAY / 1440, "minute")):
        if not step % unit:
            return name if step == unit else f"{step // unit} {name}s"
    return f"{step.total_seconds():g} seconds"


def _times(dates: list[datetime], period: timedelta) -> Calendar | None:
    """Those times of a day or of a week at which there ever was a row."""
    if dates[-1] - dates[0] < 2 * period:
        return None
    times = sorted({(date - MONDAY) % period for date in dates})
    if len(times) < 2 or 2 * len(times) > len(dates):
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
    return Calendar(numbers, season, at, ", ".join([*often, *named]))


def following(dates: list[datetime], count: int) -> list[datetime]:
    """The next `count` dates of the calendar, for irregular dates as far apart as most of them; none after one."""
    if len(dates) < 2:
        return []
    calendar = calendar_of(dates)
    if calendar:
        return [calendar.at(calendar.numbers[-1] + row) for row in range(1, count + 1)]
    spacing = sorted(after - before for before, after in pairwise(dates))[(len(dates) - 1) // 2]  # the median
    return [dates[-1] + row * spacing for row in range(1, count + 1)]
