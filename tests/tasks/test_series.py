"""Series: files that can and cannot be read, gaps, errors, seasons, and the one made on the spot."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rnnzoo import UserError
from rnnzoo.tasks import series_files
from rnnzoo.tasks.calendars import calendar_of, following
from rnnzoo.tasks.forecast_errors import Errors
from rnnzoo.tasks.gaps import Filled, Missing
from rnnzoo.tasks.series import Series, mackey_glass
from rnnzoo.tasks.series_files import read_csv

NAN = math.nan


def noise(rows: int, columns: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Reading


@pytest.fixture(params=["row by row", "in blocks"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in blocks":
        monkeypatch.setattr(series_files, "LARGE", 0)


def read(tmp_path: Path, text: str | bytes, *arguments: Any, **options: Any) -> Series:
    path = tmp_path / "file.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_csv(str(path), *arguments, **options)


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize(
    "text",
    [
        "day,a,b\n2001-02-27,1,2.5\n2001-02-28,,-4e1\n2001-03-01,nan,6\n",
        "\ufeffday;a;b\r\n2001-02-27;1;2.5\r\n2001-02-28;?;-40\r\n2001-03-01;NA;6",
        '"day"\t"a"\t"b"\n2001-02-27\t1\t2.5\n2001-02-28\t\t-40\n2001-03-01\tnull\t"6"\n\n\n',
        "a, day, b\n1, 2001-02-27, 2.5\n ?, 2001-02-28, -40\n n/a, 2001-03-01, 6",
    ],
)
def test_files_are_read(text: str, tmp_path: Path) -> None:
    series = read(tmp_path, text)
    assert (series.columns, series.date) == (["a", "b"], "day")
    assert np.array_equal(series.values, [[1, 2.5], [NAN, -40], [NAN, 6]], equal_nan=True)
    assert series.dates.tolist() == [datetime(2001, 2, 27), datetime(2001, 2, 28), datetime(2001, 3, 1)]
    assert read(tmp_path, text, None, ["b"]).columns == ["b"]


@pytest.mark.usefixtures("ways")
def test_a_single_column_needs_no_delimiter(tmp_path: Path) -> None:
    series = read(tmp_path, "a\n1\n\n3\n")
    assert np.array_equal(series.values, [[1], [NAN], [3]], equal_nan=True)
    assert (series.date, len(series.dates)) == (None, 0)


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize(
    ("texts", "moments"),
    [
        (["1949-01", "1949-02"], [datetime(1949, 1, 1), datetime(1949, 2, 1)]),
        (["2001-01-01T05:00", "2001-01-01T06:30:05"], [datetime(2001, 1, 1, 5), datetime(2001, 1, 1, 6, 30, 5)]),
        (["2001-01-01 23:00Z", "2001-01-01 23:30-01:00"], [datetime(2001, 1, 1, 23), datetime(2001, 1, 2, 0, 30)]),
        (["01.02.2020", "02.02.2020"], [datetime(2020, 2, 1), datetime(2020, 2, 2)]),
        (["2020/01/01", "2020/1/2 5:00"], [datetime(2020, 1, 1), datetime(2020, 1, 2, 5)]),
        (["1/12/2020", "1/13/2020"], [datetime(2020, 1, 12), datetime(2020, 1, 13)]),
        (["31/01/2020", "01/02/2020"], [datetime(2020, 1, 31), datetime(2020, 2, 1)]),
        (["05/01/2020", "01/02/2020"], [datetime(2020, 1, 5), datetime(2020, 2, 1)]),  # as months first, it would fall
        (["12/2019", "01/2020"], [datetime(2019, 12, 1), datetime(2020, 1, 1)]),
        (
            ["02/02/2020 12:05 AM", "02/02/2020 3:15:30 p.m."],
            [datetime(2020, 2, 2, 0, 5), datetime(2020, 2, 2, 15, 15, 30)],
        ),
        (
            ["2001-01-01 00:00:00.25", "2001-01-01 00:00:00.5"],
            [datetime(2001, 1, 1, 0, 0, 0, 250_000), datetime(2001, 1, 1, 0, 0, 0, 500_000)],
        ),
    ],
)
def test_dates(texts: list[str], moments: list[datetime], tmp_path: Path) -> None:
    text = "a,when\n" + "".join(f"{number},{text}\n" for number, text in enumerate(texts))
    assert read(tmp_path, text).dates.tolist() == moments


@pytest.mark.usefixtures("ways")
def test_dates_that_can_be_either_way_are_asked_about(tmp_path: Path) -> None:
    text = "day;a\n01/02/2020;1\n01/03/2020;2\n"
    with pytest.raises(
        UserError, match=r"'day': in 01/02/2020 to 01/03/2020 days or months .* task\.day_first=true or false"
    ):
        read(tmp_path, text)
    for day_first, second in ((True, datetime(2020, 3, 1)), (False, datetime(2020, 1, 3))):
        series = read(tmp_path, text, day_first=day_first)
        assert series.dates.tolist()[1] == second and series.day_first == day_first


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize(
    ("numbers", "dates"),
    [
        ([1700, 1701, 1702, 1704], [datetime(year, 1, 1) for year in (1700, 1701, 1702, 1704)]),
        ([202011, 202012, 202101], [datetime(2020, 11, 1), datetime(2020, 12, 1), datetime(2021, 1, 1)]),
        ([20200228, 20200229, 20200301], [datetime(2020, 2, 28), datetime(2020, 2, 29), datetime(2020, 3, 1)]),
        ([1577836800, 1577840400, 1577844000], [datetime(2020, 1, 1, hour) for hour in (0, 1, 2)]),
        ([1577836800000, 1577836800500, 1577836801000],
         [datetime(2020, 1, 1) + timedelta(milliseconds=500 * row) for row in range(3)]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("named", [False, True])
def test_numbers_that_are_dates(
    numbers: list[int], dates: list[datetime], named: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "a,when\n" + "".join(f"{row**2 % 3},{number}\n" for row, number in enumerate(numbers))
    series = read(tmp_path, text, "when" if named else None)
    assert (series.columns, series.date, series.dates.tolist()) == (["a"], "when", dates)
    assert named or "'when' is taken for dates" in capsys.readouterr().out
    assert read(tmp_path, text, None, ["when", "a"]).columns == ["when", "a"]


@pytest.mark.usefixtures("ways")
def test_a_spreadsheets_days_are_dates_if_they_are_named(tmp_path: Path) -> None:
    text = "No,a\n" + "".join(f"{43831 + row / 24:.9f},{row % 2}\n" for row in range(5))
    series = read(tmp_path, text, "No")
    assert series.dates.tolist() == [datetime(2020, 1, 1, hour) for hour in range(5)]
    assert read(tmp_path, text).columns == ["a"] and not len(read(tmp_path, text).dates)


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("counted", [[1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4], [1000, 1060, 1120, 1180]])
def test_a_column_that_counts_the_rows_is_left_out(
    counted: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for dated in (False, True):
        text = "No,a,b" + ",day" * dated + "\n"
        for row, (number, value) in enumerate(zip(counted, [4, 5, 7, 8])):
            text += f"{number},{value},{10 - row}" + f",2001-01-0{row + 1}" * dated + "\n"
        assert read(tmp_path, text).columns == ["a", "b"]  # what rises unevenly or falls says something
        said = capsys.readouterr().out
        assert "'No' only counts the rows" in said and "task.columns=[NAME,...] reads it" in said
        assert read(tmp_path, text, None, ["No"]).columns == ["No"]
        assert read(tmp_path, text, targets=["No"]).columns == ["No", "a", "b"]


@pytest.mark.usefixtures("ways")
def test_what_only_grows_is_no_time(tmp_path: Path) -> None:
    text = "people\n2536431000\n2584034000\n2630862000\n2677609000\n2724847000\n"
    assert read(tmp_path, text).columns == ["people"]


# Numbers


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["2,5", "-1,25"], [2.5, -1.25]),
        (["1.234,5", "2.000,0"], [1234.5, 2000]),
        (["1.234.567", "1.000"], [1234567, 1000]),
        (["1,234.5", "999"], [1234.5, 999]),
        (["1,234,567", "1,000"], [1234567, 1000]),
        (["1 234", "12"], [1234, 12]),
        (["1\u202f234,5", "1,234"], [1234.5, 1.234]),
        (["1'234.5", ".5"], [1234.5, 0.5]),
        (["2,5e3", "+1,0"], [2500, 1]),
        (["1.234", "5"], [1.234, 5]),  # as programs write numbers
        ([".", "-"], [NAN, NAN]),
    ],
)
def test_numbers_in_other_notations(texts: list[str], values: list[float], tmp_path: Path) -> None:
    lines = "".join(f"{text};{row}\n" for row, text in enumerate([*texts, "7"]))
    series = read(tmp_path, "a;b\n" + lines, None, ["a"])
    assert series.values[:, 0].tolist() == pytest.approx([*values, 7], nan_ok=True)
    if not math.isnan(values[-1]):  # a further file of the same hand
        further = read(tmp_path, f"a;b\n{texts[-1]};1\n", None, ["a"], decimal=series.decimal)
        assert further.values[0, 0] == pytest.approx(values[-1])


@pytest.mark.usefixtures("ways")
def test_a_number_that_can_be_two_is_asked_about(tmp_path: Path) -> None:
    text = "a;b\n1,234;3\n2,345;7\n"
    with pytest.raises(
        UserError,
        match=r"line 2, column 'a': '1,234' can be 1234 \(task\.decimal=point\) or 1\.234 \(task\.decimal=comma\)",
    ):
        read(tmp_path, text)
    assert read(tmp_path, text, decimal="comma").values[:, 0].tolist() == [1.234, 2.345]
    assert read(tmp_path, text, decimal="point").values[:, 0].tolist() == [1234, 2345]
    assert read(tmp_path, "a\n1.234\n5\n", decimal="comma").values[:, 0].tolist() == [1234, 5]


@pytest.mark.usefixtures("ways")
def test_an_empty_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"column 'b' is empty; leave it out with task\.columns=\[a,c\]"):
        read(tmp_path, "a,b,c\n1,,3\n2,.,3\n")


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        (b"a,b\n", "a header but no row"),
        (b"a,b\n1,2\n3,\xff\n", r"not UTF-8 in line 3 \(byte 10\)"),
        ('a,b\n1,"' + "2" * 200_000, "line 2: field larger than field limit"),
        ("day,a\n2001-01-01,1\n2001-01-02,much\n", r"line 3, column 'a': 'much' is not a number"),
        ("a,b\n1,1e400\n", "line 2, column 'b': '1e400' is more than models can calculate with, 1e\\+30"),
        ("a,b\n1.234,2\n3,-1e300\n", "line 3, column 'b': '-1e300' is more than models can"),
        ("a;b\n1;2,5e400\n", "line 2, column 'b': '2,5e400' is more than models can"),
        ("a,b\n1,inf\n", "line 2, column 'b': 'inf' is not a number"),
        ("a;b\n1;2,5\n1;3.5\n", "line 3, column 'b': '3.5' is written in another way than the numbers before"),
        ("a;b\n1;2,5,1\n", "line 2, column 'b': '2,5,1' is not a number"),
        ("a,b\n1,2\n3\n", "line 3 has 1 fields, but the header 2"),
        ("a,b\n1,2\n\n3,4\n", "line 3 has 1 fields, but the header 2"),
        ("a,b\n1,2,3\n", "line 2 has 3 fields, but the header 2"),
        ("2001-01-01,20.7\n2001-01-02,17.9\n", "line 1 holds values, not the names"),
        ("a,a\n1,2\n", "line 1: columns need names that differ, not 'a', 'a'"),
        ("a,\n1,2\n", "columns need names"),
        (
            "day,a\n2001-01-01,1\n2001-01-03,1\n2001-01-02,1\n",
            "line 4: 2001-01-02 is earlier .* sort the rows by 'day'",
        ),
        ("day,a\n2001-01-01,1\n2001-01-01,1\n", "line 3: 2001-01-01 is there twice"),
        ("day,a\n2001-01-01,1\n2001-02-30,1\n", "line 3, column 'day': '2001-02-30' is not a date"),
        ("day,a\n2001-01-01,1\n,1\n", "line 3, column 'day': '' is not a date"),
        ("day,end,a\n2001-01-01,2001-01-02,1\n", "day and end hold dates; choose with task.date=NAME"),
        ("day\n2001-01-01\n2001-01-02\n", "at least one column besides the dates"),
        ('a,b\n"1\n",2\n1,"2\n3,4\n5,6\n', "line 4: a quote in the row that begins here is never closed"),
        ('a,b\n1,"2\n3,4\n5,"6\n', "line 4: ',' expected after '\"', in a row with quotes that begins in line 2"),
    ],
)
def test_a_file_that_cannot_be_read(text: str | bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as error:
        read(tmp_path, text)
    assert "task." in str(error.value) and "\n" not in str(error.value)


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize(
    ("date", "columns", "said"),
    [
        ("dya", None, r"task\.date: no column 'dya' in .*; did you mean day\?"),
        (None, ["temprature"], r"task\.columns: no column 'temprature' in .*; did you mean temperature\?"),
        (None, ["temperature", "temperature"], "only once"),
        (None, ["station"], "column 'station': 'Bergen' is not a number"),
    ],
)
def test_a_column_that_is_not_there(date: str | None, columns: list[str] | None, said: str, tmp_path: Path) -> None:
    text = "day,station,temperature\n2001-01-01,Bergen,4\n"
    assert read(tmp_path, text, None, ["temperature"]).values.tolist() == [[4]]
    with pytest.raises(UserError, match=said):
        read(tmp_path, text, date, columns)


@pytest.mark.parametrize(
    ("spacing", "rows"),
    [
        (timedelta(minutes=30), 48),
        (timedelta(hours=1), 24),
        (timedelta(days=1), 365),
        (timedelta(days=7), 52),
        (timedelta(days=30.4), 12),
        (timedelta(days=365), 1),
        (timedelta(days=3000), 1),
    ],
)
def test_the_season_of_dates(spacing: timedelta, rows: int) -> None:
    dates = [datetime(2001, 1, 1) + spacing * row for row in range(50) if row % 10 != 5]
    calendar = calendar_of(dates)
    assert calendar is not None and calendar.season == rows and calendar.missing == 5
    assert calendar_of(dates[:1]) is calendar_of([]) is None


def every(hours: int, rows: int, keep: Callable[[datetime], bool]) -> list[datetime]:
    """The first `rows` moments from a Monday on, so many hours apart, that are kept."""
    moments = (datetime(2024, 1, 1) + timedelta(hours=hours * k) for k in count())
    return list(islice(filter(keep, moments), rows))


@pytest.mark.parametrize(
    ("hours", "keep", "season", "name"),
    [
        (24, lambda d: d.weekday() < 5, 261, "Mon, Tue, Wed, Thu, Fri"),
        (24, lambda d: d.weekday() in (0, 2, 4), 157, "Mon, Wed, Fri"),
        (1, lambda d: 9 <= d.hour < 17, 8, "8 times a day"),
        (1, lambda d: 9 <= d.hour < 17 and d.weekday() < 5, 8, "8 times a day, Mon, Tue, Wed, Thu, Fri"),
        (1, lambda d: d.hour in (6, 14), 2, "2 times a day"),
        (24, lambda d: d.day == 1, 12, "every month"),
        (24, lambda d: d.day == 1 and d.month % 3 == 1, 4, "every 3 months"),
        (24, lambda d: d.day == d.month == 1, 1, "every year"),
        (24, lambda d: (d + timedelta(days=1)).day == 1, 12, "every month"),
        (24, lambda d: True, 365, "every day"),
        (8, lambda d: True, 3, "every 8 hours"),
    ],
)
@pytest.mark.parametrize("gap", [0, 3])
def test_calendars(hours: int, keep: Callable[[datetime], bool], season: int, name: str, gap: int) -> None:
    """Found with rows missing, too; and they go on as they would have."""
    dates = every(hours, 204, keep)
    known = dates[:30] + dates[30 + gap : 200]
    calendar = calendar_of(known)
    assert calendar is not None
    assert (calendar.season, calendar.name, calendar.missing) == (season, name, gap)
    assert calendar.at(np.arange(calendar.first, calendar.last + 1)).tolist() == dates[:200]
    assert following(known, 4) == dates[200:]


@pytest.mark.parametrize(
    ("keep", "name"),
    [
        (lambda d: (d.month, d.day) != (2, 29), "every day but February 29"),
        (lambda d: d.timetuple().tm_yday < 366, "every day but December 31 of leap years"),
    ],
)
def test_years_of_365_days(keep: Callable[[datetime], bool], name: str) -> None:
    dates = [day for k in range(4000) if keep(day := datetime(1981, 1, 1, 9) + timedelta(days=k))]
    calendar = calendar_of(dates[:3500])
    assert calendar is not None and (calendar.season, calendar.name, calendar.missing) == (365, name, 0)
    assert following(dates[:3500], 400) == dates[3500:3900]
    assert calendar_of(dates[:40] + dates[45:3500]).missing == 5  # type: ignore[union-attr]
    ordinary = [datetime(2004, 1, 1) + timedelta(days=k) for k in range(500) if not 50 < k < 65]
    assert calendar_of(ordinary).name == "every day"  # type: ignore[union-attr]  # a gap that happens to hold a leap day


@pytest.mark.parametrize(
    ("hours", "keep"),
    [
        (24, lambda d: d.weekday() < 5),
        (1, lambda d: 9 <= d.hour < 17 and d.weekday() < 5),
        (24, lambda d: d.day == 1),
        (24, lambda d: True),
        (24, lambda d: (d.month, d.day) != (2, 29)),
    ],
)
def test_a_rhythm_that_is_known_serves_few_dates(hours: int, keep: Callable[[datetime], bool]) -> None:
    """From any few rows of a longer series, gaps among them or not, it goes on as that did."""
    dates = every(hours, 2000, keep)
    rhythm = json.loads(json.dumps(calendar_of(dates[:1900]).rhythm))  # type: ignore[union-attr]
    for start in (0, 3, 1700):
        few = dates[start : start + 9]
        assert following(few, 30, rhythm) == dates[start + 9 : start + 39]
        calendar = calendar_of([few[0], *few[2::2]], rhythm)
        assert calendar is not None and calendar.missing == 4


def test_working_days_at_the_ends_of_months() -> None:
    dates = [datetime(2024, 1, 31), datetime(2024, 2, 29), datetime(2024, 3, 28), datetime(2024, 4, 30)]
    calendar = calendar_of(dates)
    assert calendar is not None and calendar.name == "every month" and not calendar.missing


def test_dates_without_a_calendar() -> None:
    generator = random.Random(1)
    moments = sorted({datetime(2024, 1, 1) + timedelta(seconds=generator.randrange(10**7)) for _ in range(100)})
    for dates in (moments, moments[:20], [datetime(2024, 1, 1) + timedelta(days=2**k) for k in range(9)]):
        assert calendar_of(dates) is None and len(following(dates, 3)) == 3


@pytest.mark.parametrize(
    ("known", "further"),
    [
        (["2001-02-26", "2001-02-27"], ["2001-02-28", "2001-03-01"]),
        (["2001-01-31", "2001-02-01"], ["2001-02-02"]),  # a day apart, though in two months
        (["2000-11-01", "2000-12-01"], ["2001-01-01", "2001-02-01", "2001-03-01"]),
        (["2000-12-31", "2001-01-31", "2001-02-28"], ["2001-03-31", "2001-04-30"]),
        (["2000-07-15", "2000-10-15"], ["2001-01-15", "2001-04-15"]),
        (["1999-01-01", "2000-01-01"], ["2001-01-01"]),
        (["2001-01-01 22:00", "2001-01-01 23:00", "2001-01-02 00:00", "2001-01-03"], ["2001-01-03 01:00"]),
        (["2001-01-01"], []),
        ([], []),
    ],
)
def test_the_dates_that_follow(known: list[str], further: list[str]) -> None:
    assert following([datetime.fromisoformat(date) for date in known], len(further)) == [
        datetime.fromisoformat(date) for date in further
    ]


def test_the_series_made_on_the_spot_obeys_its_equation() -> None:
    """Integrated once more, in steps a fifth as long; chaos has not yet taken the two apart."""
    lag, x = 850, [1.2] * 851
    for _ in range(50 * 420):
        x.append(x[-1] + 0.02 * (0.2 * x[-1 - lag] / (1 + x[-1 - lag] ** 10) - 0.1 * x[-1]))
    expected = torch.tensor(x[850 + 50 * 300 + 5 :: 150])[:40]
    found = mackey_glass(500).values[:40, 0]
    assert found.std() > 0.2
    assert (found - expected).abs().max() < 0.05


# Gaps and errors


@settings(deadline=None, max_examples=100)
@given(
    gaps=st.lists(st.integers(1, 29), max_size=25),
    missing=st.sampled_from(["previous", "linear"]),
    seed=st.integers(0, 9),
)
def test_gaps_are_filled_from_what_was_known_by_the_windows_end(gaps: list[int], missing: Missing, seed: int) -> None:
    """For each window alone, NumPy interpolates the values before its end, and holds the last of them."""
    values = noise(30, seed=seed)
    values[gaps] = NAN
    filled = Filled(values, missing, "file", ["a"])
    ends = torch.arange(6, 31)
    found = filled.windows(ends, 6)[:, :, 0].T.numpy()
    y = values[:, 0].numpy()
    for end, row in zip(ends.tolist(), found):
        known = np.flatnonzero(~np.isnan(y[:end]))
        if missing == "linear":
            expected = np.interp(np.arange(end), known, y[known])
        else:
            expected = y[[known[known <= row].max() for row in range(end)]]
        assert np.allclose(row, expected[end - 6 :])


def test_errors_are_in_the_datas_units() -> None:
    forecast, target = noise(24, 2).reshape(3, 8, 2), noise(24, 2, seed=1).reshape(3, 8, 2)
    target[0, 2, 1] = NAN
    errors = Errors(["a", "b"], scale=[2.0, 10.0], naive_error=[0.5, 4.0])
    for piece in (slice(0, 3), slice(3, 8)):
        errors.update(forecast[:, piece], target[:, piece])
    found = {name: float(value) for name, value in errors.compute().items()}
    difference = ((forecast - target) * torch.tensor([2, 10])).numpy().reshape(-1, 2)
    mae, rmse = np.nanmean(np.abs(difference), 0), np.sqrt(np.nanmean(difference**2, 0))
    last = np.sqrt(np.nanmean(((forecast - target) * torch.tensor([2, 10])).numpy()[-1] ** 2, 0))
    assert found == pytest.approx(
        {
            "rmse_last_a": last[0], "rmse_last_b": last[1],
            "mae_a": mae[0], "mae_b": mae[1], "rmse_a": rmse[0], "rmse_b": rmse[1],
            "mase_a": mae[0] / 0.5, "mase_b": mae[1] / 4,
            "scaled_mse": float(((forecast - target) ** 2).nanmean()),
            "scaled_mae": float((forecast - target).abs().nanmean()),
        }, rel=1e-5,
    )  # fmt: skip
