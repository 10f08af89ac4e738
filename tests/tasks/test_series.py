"""Series: files that can and cannot be read, gaps, errors, seasons, and the one made on the spot."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rnnzoo import UserError
from rnnzoo.tasks.series import Errors, Filled, Missing, Series, following, mackey_glass, read_csv, season_of

NAN = math.nan


def noise(rows: int, columns: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Reading


def read(tmp_path: Path, text: str | bytes, *arguments: Any) -> Series:
    path = tmp_path / "file.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_csv(str(path), *arguments)


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
    assert series.dates == [datetime(2001, 2, 27), datetime(2001, 2, 28), datetime(2001, 3, 1)]
    assert read(tmp_path, text, None, ["b"]).columns == ["b"]


def test_a_single_column_needs_no_delimiter(tmp_path: Path) -> None:
    series = read(tmp_path, "a\n1\n\n3\n")
    assert np.array_equal(series.values, [[1], [NAN], [3]], equal_nan=True)
    assert (series.date, series.dates) == (None, [])


@pytest.mark.parametrize(
    ("texts", "moments"),
    [
        (["1949-01", "1949-02"], [datetime(1949, 1, 1), datetime(1949, 2, 1)]),
        (["2001-01-01T05:00", "2001-01-01T06:30:05"], [datetime(2001, 1, 1, 5), datetime(2001, 1, 1, 6, 30, 5)]),
        (["2001-01-01 23:00Z", "2001-01-01 23:30-01:00"], [datetime(2001, 1, 1, 23), datetime(2001, 1, 2, 0, 30)]),
    ],
)
def test_dates(texts: list[str], moments: list[datetime], tmp_path: Path) -> None:
    text = "a,when\n" + "".join(f"{number},{text}\n" for number, text in enumerate(texts))
    assert read(tmp_path, text).dates == moments


def test_years_are_numbers_unless_named_as_dates(tmp_path: Path) -> None:
    text = "year,a\n1700,5\n1701,11\n"
    assert read(tmp_path, text).columns == ["year", "a"]
    series = read(tmp_path, text, "year")
    assert series.columns == ["a"] and series.dates == [datetime(1700, 1, 1), datetime(1701, 1, 1)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        (b"a,b\n", "a header but no row"),
        (b"a,b\n1,2\n3,\xff\n", r"not UTF-8 \(byte 10\)"),
        ("day,a\n2001-01-01,1\n2001-01-02,much\n", r"line 3, column 'a': 'much' is not a number"),
        ("a,b\n1,inf\n", "line 2, column 'b': 'inf' is not a number"),
        ("a;b\n1;2,5\n", "line 2, column 'b': '2,5' is not a number"),
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
        ('a,b\n1,"2\n3,4\n', "line 3: unexpected end of data"),
    ],
)
def test_a_file_that_cannot_be_read(text: str | bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as error:
        read(tmp_path, text)
    assert "task." in str(error.value) and "\n" not in str(error.value)


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
    assert season_of(dates) == rows
    assert season_of(dates[:1]) == season_of([]) == 1


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
    assert found == pytest.approx(
        {
            "mae_a": mae[0], "mae_b": mae[1], "rmse_a": rmse[0], "rmse_b": rmse[1],
            "mase_a": mae[0] / 0.5, "mase_b": mae[1] / 4,
        }, rel=1e-5,
    )  # fmt: skip
