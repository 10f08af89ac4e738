"""Large CSV files: read by Arrow as they are row by row, or refused alike; the cache; windows block by block."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damaged import ARRAYS, FACTS, change_unnoticed, replace_cached
from ready import ready

from rnnzoo import UserError
from rnnzoo.files import cache_folder
from rnnzoo.tasks import blocks, plain_csv, series_files, text_files
from rnnzoo.tasks.series import Series
from rnnzoo.tasks.series_files import read_apart, read_csv
from rnnzoo.tasks.windows import Windows

ROW_BY_ROW = "it is read row by row"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large, and its blocks, are small here."""
    monkeypatch.setattr(series_files, "LARGE", 0)
    monkeypatch.setattr(text_files, "BLOCK", 64)
    monkeypatch.setattr(plain_csv, "HEAD", 3)
    monkeypatch.setattr(blocks, "ROWS", 7)
    monkeypatch.setattr(blocks, "LARGE", 0)


def facts(series: Series) -> tuple[Any, ...]:
    values = [[None if value != value else value for value in row] for row in series.values.tolist()]
    return series.columns, values, series.date, series.dates.tolist(), series.day_first, series.decimal


def outcome(path: Path, **options: Any) -> Any:
    """What a file holds, or the line about what is wrong with it."""
    try:
        if "id" in options:
            return {name: facts(series) for name, series in read_apart(str(path), **options).items()}
        return facts(read_csv(str(path), **options))
    except UserError as error:
        return str(error)


def both(path: Path, text: str, **options: Any) -> tuple[Any, Any]:
    """The outcome of Arrow's blocks, and row by row."""
    path.write_text(text, newline="")
    in_blocks = outcome(path, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series_files, "LARGE", 1 << 30)
        return in_blocks, outcome(path, **options)


def lines(rows: int = 40, change: Callable[[int, list[str]], list[str]] = lambda _, fields: fields) -> str:
    """A plain table of days and two columns, whose fields may be changed row by row."""
    start = datetime(2001, 1, 1)
    table = [[str(start + timedelta(hours=k)), f"{k * 7 % 11}.25", f"{-k % 3}e-1"] for k in range(rows)]
    return "\n".join(["when,a,b", *(",".join(change(k, fields)) for k, fields in enumerate(table))]) + "\n"


def at(row: int, column: int, field: str) -> Callable[[int, list[str]], list[str]]:
    return lambda k, fields: [field if (k, c) == (row, column) else old for c, old in enumerate(fields)]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (lines(), {}),
        (lines().replace("\n", "\r\n") + "\r\n\r\n", {}),
        (lines().replace(",", ";").replace(".", ","), {}),
        (lines().replace(",", "\t"), {"columns": ["b", "a"]}),
        ("\ufeff" + lines(change=at(30, 2, "NaN")), {"date": "when"}),
        (lines(change=lambda k, f: [f'"{f[0]}"', f[1], f'" {f[2]}"']), {}),
        (lines(change=lambda k, f: [f[0].replace(" ", "T") + "+01:00", *f[1:]]), {}),
        (lines(change=lambda k, f: [f[0] + "Z", *f[1:]]), {"day_first": True}),
        (lines(change=lambda k, f: [str(1_000_000_000 + 60 * k), *f[1:]]), {}),
        (lines(change=lambda k, f: [str(1_000_000_000 + 60 * k), *f[1:]]), {"date": "when"}),
        (lines(change=lambda k, f: [str(k), *f[1:]]), {}),
        (lines(change=lambda k, f: [str(k), *f[1:]]), {"targets": ["when"]}),
        (lines(change=lambda k, f: [*f[:2], ("é", "?")[k % 2]]), {"columns": ["a"]}),
        ("a\n1\n\n3\n" * 20, {"columns": ["a"]}),
        ("a\n" + "\n".join("1,?,na,-"[k % 8] if k % 8 in (0, 2) else "" for k in range(60)), {}),
    ],
)
def test_plain_files_need_no_reader_of_rows(
    text: str, options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, expected = both(tmp_path / "file.csv", text, **options)
    assert found == expected
    assert isinstance(found, str) or ROW_BY_ROW not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "column", "field", "said"),
    [
        (37, 1, "much", "line 39, column 'a': 'much' is not a number"),
        (0, 1, "much", "line 2, column 'a': 'much' is not a number"),
        (20, 2, "1e400", "line 22, column 'b': '1e400' is more than models can calculate with"),
        (37, 1, "-1e39", "line 39, column 'a': '-1e39' is more than models can calculate with"),
        (20, 2, "inf", "line 22, column 'b': 'inf' is not a number"),
        (20, 2, "1,2", "line 22 has 4 fields, but the header 3"),
        (20, 0, "2001-02-30", "line 22, column 'when': '2001-02-30' is not a date"),
        (20, 0, "", "line 22, column 'when': '' is not a date"),
        (20, 0, "2001-01-01 19:00", "line 22: 2001-01-01 19:00 is there twice"),
        (39, 0, "2001-01-01 05:00", "line 41: 2001-01-01 05:00 is earlier than the line before"),
        (20, 0, "0000-01-01", "line 22, column 'when': '0000-01-01' is not a date"),
    ],
)
def test_what_is_wrong_is_said_as_soon_as_it_is_met(
    row: int, column: int, field: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.csv"
    found, expected = both(path, lines(change=at(row, column, field)))
    assert found == expected and said in found and found.startswith(f"task.data={path}: ")
    assert ROW_BY_ROW not in capsys.readouterr().err


FIELDS = [
    "2001-01-02", "2001-01-02 24:00", "2001-01-01T20", "2001-01-01 20:00:00.1234567", "2001-01-01 20:00:00,5", "1 2",
    "2001/01/01 20:00", "01.01.2001 20:00", "2001-01-01 8:00 PM", "2001-01-01 20:00Z", "2001-01-01 20:00 UTC", "-nan",
    "2001-01-01 20:00+99", "2001-01-01T20:00-0130", "1_0", "0x1", "1.", ".5", "+5", "1.5E3", "nan(1)", "١", " 7 ",
    "\t7", "1e999", "\u00a07", "N/A", "<Na>", "--", "-", "'5", '"5"', '" 5"', '"5', '5"', '"a""b"', '"1\n2"', "1.234,5",
    "", "9999-12-31 23:59-01", "\ufeff1", "\r", "\x0b3", "20010102", "2001", "infinity", "1e-400", "1d5",
    "None", "nUll",
]  # fmt: skip


def test_odd_fields_are_judged_alike(tmp_path: Path) -> None:
    """Any field in any column, in the head or behind it, in files of several ways of writing."""
    generator = random.Random(0)
    for number, field in enumerate(3 * FIELDS):
        row = generator.randrange(40)
        text = lines(change=at(row, number // len(FIELDS), field))
        options: dict[str, Any] = generator.choice([{}, {"columns": ["b"]}, {"date": "when"}, {"decimal": "point"}])
        if generator.random() < 0.3:
            text = text.replace(",", ";")
        found, expected = both(tmp_path / "file.csv", text, **options)
        assert found == expected, (field, row, options)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("when", ["dates", "numbers", "nothing"])
def test_several_series_are_told_apart(
    mixed: bool, when: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for shop, count in (("west", 30), ("é ast", 12), ("na", 5)):
        for k in range(count):
            moment = {"dates": str(datetime(2020, 1, 1) + timedelta(days=k)), "numbers": str(20200101 + k)}.get(
                when, "?"
            )
            rows.append((k if mixed else 0, f"{moment},{shop},{k * k % 7},{k}"))
    text = "\n".join(["day,shop,a,No", *(row for _, row in sorted(rows, key=lambda pair: pair[0]))])
    options: dict[str, Any] = {"id": "shop"} | ({"columns": ["a"]} if when == "nothing" else {})
    found, expected = both(tmp_path / "file.csv", text, **options)
    assert found == expected and [*found] == ["west", "é ast", "na"]
    assert ROW_BY_ROW not in capsys.readouterr().err
    for wrong, said in ((",,1,1", "line 49: column 'shop' is empty"), ("2019-01-01,west,1,1", "is earlier")):
        found, expected = both(tmp_path / "file.csv", f"{text}\n{wrong}", **options)
        assert found == expected and (said in found or when != "dates")


def test_series_of_a_file_have_one_decimal_sign(tmp_path: Path) -> None:
    """After decimal points, 1.049 must not be read as a thousand because of a comma in another series."""
    text = "shop;a\n" + "east;3\n" * 9 + "west;1.049\nwest;4,5\n"
    found, expected = both(tmp_path / "file.csv", text, id="shop", columns=["a"])
    assert found == expected and found.endswith(
        "'west' has decimal commas, the series before do not; say task.decimal=comma"
    )
    assert both(tmp_path / "file.csv", text, id="shop", columns=["a"], decimal="comma")[0]["west"][1] == [[1049], [4.5]]


def test_a_file_is_read_once_until_it_is_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file.csv"
    for text in (lines(), lines(50, lambda k, fields: [*fields[:2], str(k)])):
        path.write_text(text)
        seen = []
        for begin in (f"task.data={path}: reading it into {cache_folder()}", ""):
            seen.append(facts(read_csv(str(path))))
            said = capsys.readouterr()
            assert said.err.startswith(begin) and bool(begin) == bool(said.err)
            assert ("'b' only counts the rows" in said.out) == (len(seen[0][1]) == 50)
        assert seen[0] == seen[1]
    assert read_csv(str(path), columns=["b"]).columns == ["b"]
    path.write_text(lines())
    read_csv(str(path))
    change_unnoticed(path, lines().replace("7.25", "8.25").encode())
    assert facts(read_csv(str(path)))[1][1][0] == 8.25


@pytest.mark.parametrize(
    ("ending", "change"), [*(("npy", change) for change in ARRAYS.values()), *(("json", c) for c in FACTS.values())]
)
def test_a_damaged_cache_is_made_anew(
    ending: str, change: Callable[[bytes], bytes], tmp_path: Path, own_cache: Path
) -> None:
    path = tmp_path / "file.csv"
    path.write_text(lines())
    before = facts(read_csv(str(path)))
    replace_cached(own_cache, ending, change)
    with pytest.warns(UserWarning, match=r"series_\w+\.json is damaged .* will be made anew"):
        assert facts(read_csv(str(path))) == before
    assert facts(read_csv(str(path))) == before  # with no warning, as it would be an error


@pytest.mark.parametrize("missing", ["refuse", "previous", "linear"])
def test_windows_are_the_same_block_by_block(missing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rows and values missing, and rows ahead that are known."""
    path, found = tmp_path / "file.csv", []
    gaps = missing != "refuse"
    values = np.random.default_rng(0).normal(size=(150, 3)).round(3).tolist()
    rows = [[str(datetime(2020, 1, 1) + timedelta(days=k)), *map(str, row)] for k, row in enumerate(values)]
    for k, column in [(5, 1), (6, 1), (7, 1), (13, 2), (80, 1), (81, 1), (144, 2), (149, 1)] * gaps:
        rows[k][column] = ""
    kept = [row for k, row in enumerate(rows) if not gaps or not (20 <= k < 30 or k == 62)]
    path.write_text("\n".join(["day,a,b,c", *map(",".join, kept)]))
    for large in (False, True):
        with monkeypatch.context() as patch:
            if not large:
                patch.setattr(series_files, "LARGE", 1 << 30)
                patch.setattr(blocks, "LARGE", 1 << 30)
                patch.setattr(blocks, "ROWS", 1 << 20)
            options = {"targets": ["a", "b"], "known": ["c"], "window": 5, "horizon": 3, "season": 7, "stride": 2}
            found.append(ready(Windows(str(path), missing=missing, **options)))  # type: ignore[arg-type]
    small, large_one = found
    assert isinstance(large_one.series.dates.base, np.memmap) or isinstance(large_one.series.dates, np.memmap)
    assert small.series.dates.tolist() == large_one.series.dates.tolist()
    for name in ("train", "val", "test"):
        origins = getattr(small, name)
        assert torch.equal(origins, getattr(large_one, name)) and len(origins)
        for one, other in zip(small.windows_at(origins), large_one.windows_at(origins)):
            torch.testing.assert_close(one, other, equal_nan=True)
    for name, value in small.baseline().items():
        assert large_one.baseline()[name] == pytest.approx(value, rel=1e-5)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = tmp_path / "file.csv", tmp_path / "cache"
    path.write_text(lines())
    cache.write_text("a file")
    monkeypatch.setenv("RNNZOO_CACHE", str(cache))
    for use in (lambda: read_csv(str(path)), lambda: blocks.joined([np.zeros(3)] * 2)):
        with pytest.raises(UserError, match=f"^cannot write to {cache}: File exists; set RNNZOO_CACHE to a folder"):
            use()
    assert cache.read_text() == "a file"
