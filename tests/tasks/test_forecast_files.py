"""Forecasts of files: several series in one, columns known ahead, quantiles, and errors from row after row."""

from __future__ import annotations

import csv
import io
import math
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from ready import ready

from rnnzoo import UserError
from rnnzoo.tasks.forecast import Forecast
from rnnzoo.tasks.forecast_plots import Continued, of_file, of_test
from rnnzoo.tasks.series import Series
from rnnzoo.tasks.windows import Windows

SIZES: dict[str, Any] = {"window": 5, "horizon": 3}
MODEL: dict[str, Any] = {"model": {"hidden_size": 4}}


def shops(tmp_path: Path, **rows: int) -> Path:
    """A file of some shops' sales by days, as many rows as are said, shop after shop: shop k's begin at 1000 k."""
    path = tmp_path / "shops.csv"
    lines = ["shop,day,sales"]
    for k, (shop, count) in enumerate(rows.items()):
        lines += [f"{shop},{date(2020, 1, 1) + timedelta(days=d)},{1000 * k + d + d % 3 / 10}" for d in range(count)]
    path.write_text("\n".join(lines))
    return path


def of_shops(path: Path, **options: Any) -> Windows:
    return ready(Windows(data=str(path), id="shop", season=7, **SIZES, **options))


def said(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# Several series in one file


def test_windows_stay_within_a_series_and_its_parts(tmp_path: Path) -> None:
    data = of_shops(shops(tmp_path, east=60, west=40), scaling="none", val_fraction=0.2)
    assert data.series.columns == ["sales"] and data.ids == ["east", "west"]
    for part, ends in (("train", (36, 24)), ("val", (48, 32)), ("test", (60, 40))):
        origins = getattr(data, part)
        x, y, _ = data.windows_at(origins)
        whole = torch.cat([x, y])[:, :, 0]  # of one window and what follows
        shop = (whole // 1000).int()
        assert (shop == shop[0]).all()
        for number, end in enumerate(ends):
            days = whole[-1, shop[0] == number] % 1000
            assert len(days) and int(days.max()) == end - 1  # the last day of its part
    assert len(data.train) == (36 - 7) + (24 - 7)


def test_several_series_share_a_scale(tmp_path: Path) -> None:
    data = of_shops(shops(tmp_path, east=60, west=40))
    learned = np.concatenate([1000 * k + np.arange(n) + np.arange(n) % 3 / 10 for k, n in enumerate((42, 28))])
    assert data.center.tolist() == pytest.approx([learned.mean()])
    assert data.scale.tolist() == pytest.approx([learned.std()])
    days = [np.arange(n) + np.arange(n) % 3 / 10 for n in (42, 28)]
    naive = np.concatenate([np.abs(values[7:] - values[:-7]) for values in days]).mean()
    assert data.naive_error.tolist() == pytest.approx([naive])
    assert torch.isfinite(torch.tensor([*data.baseline().values()])).all()
    assert len(of_test(data, lambda batch: torch.zeros(3, batch.x.shape[1], 1)).axes) == 2


def test_series_that_cannot_be_are_named(tmp_path: Path) -> None:
    path = shops(tmp_path, east=60, west=8)
    with pytest.raises(UserError, match=r"shops\.csv: shop=west: of 8 rows, the 7 to train on are too few"):
        of_shops(path)
    with pytest.raises(UserError, match=r"task\.id: no column 'store' in .*; known: "):
        ready(Windows(data=str(path), id="store"))
    path.write_text(path.read_text() + "\n,2020-02-01,3")
    with pytest.raises(UserError, match=r"line 70: column 'shop' is empty"):
        of_shops(path)
    lines = shops(tmp_path, east=60, west=40).read_text().splitlines()
    lines[61] = lines[61].rpartition(",")[0] + ","
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match="shop=west: 'sales' begins with a gap"):
        of_shops(path, missing="previous")  # the last value of the shop before is none of its own
    with pytest.raises(UserError, match=r"task\.id is of a file"):
        Windows(id="shop")


def test_each_series_of_a_file_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shops(tmp_path, east=60, west=40)
    data = of_shops(path)
    model = Forecast(**MODEL, **data.facts()).eval()
    model.head.reset_parameters()
    capsys.readouterr()
    model.forecast(path, str(tmp_path / "plot.png"))
    rows = said(capsys.readouterr().out)
    assert [(row["shop"], row["day"]) for row in rows] == [
        ("east", "2020-03-01"), ("east", "2020-03-02"), ("east", "2020-03-03"),
        ("west", "2020-02-10"), ("west", "2020-02-11"), ("west", "2020-02-12"),
    ]  # fmt: skip
    for shop, part in (("east", slice(0, 60)), ("west", slice(60, 100))):
        expected = model.following_rows(data.series.values[part])[:, 0].tolist()
        assert [float(row["sales"]) for row in rows if row["shop"] == shop] == pytest.approx(expected, rel=1e-5)
    assert (tmp_path / "plot.png").stat().st_size > 1000
    for plot in ("", ".", "/", str(tmp_path)):
        with pytest.raises(UserError, match=r"^--plot .*: is a folder; name another file$"):
            model.forecast(path, plot)
    assert not capsys.readouterr().out


def test_a_picture_says_what_it_leaves_out() -> None:
    rows = torch.zeros(3, 2, 1)
    found = [Continued(f"shop {k}", torch.zeros(4, 2), rows, range(7)) for k in range(5)]
    for count, panels, title in ((2, 4, ""), (5, 6, "the first 6 of 10 forecasts")):
        figure = of_file(found[:count], ["a", "b"], 0)
        assert (len(figure.axes), figure.get_suptitle()) == (panels, title)
    for columns, panels, title in ((6, 6, ""), (8, 6, "the first 6 of 8 targets")):
        values = torch.randn(60, columns, generator=torch.Generator().manual_seed(0)).double()
        series = Series([f"c{k}" for k in range(columns)], values, None, np.array([], "M8[us]"))
        with patch("rnnzoo.tasks.windows.read_csv", lambda *_, series=series, **__: series):
            data = ready(Windows(data="file.csv", season=1, **SIZES))
        figure = of_test(data, lambda batch, n=columns: torch.zeros(3, batch.x.shape[1], n))  # type: ignore[misc]
        assert (len(figure.axes), figure.get_suptitle()) == (2 * panels, title)


# Columns known ahead


def prices(tmp_path: Path, rows: int = 80, ahead: int = 0) -> Path:
    """Sales that are 100 less three times the price of the same day, and some days more of which only prices stand."""
    path = tmp_path / "prices.csv"
    price = torch.rand(rows + ahead, generator=torch.Generator().manual_seed(0)).tolist()
    sold = [f"{100 - 3 * p:.6f}" for p in price[:rows]] + [""] * ahead
    days = [date(2020, 1, 1) + timedelta(days=d) for d in range(rows + ahead)]
    path.write_text("\n".join(["day,sales,price", *(f"{d},{s},{p:.6f}" for d, s, p in zip(days, sold, price))]))
    return path


def of_prices(path: Path) -> Windows:
    return ready(Windows(data=str(path), known=["price"], season=1, **SIZES))


def test_what_is_known_ahead_enters_the_forecast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows ahead say all; without them nothing could be said. They stand in the file behind the last sales."""
    data = of_prices(prices(tmp_path, ahead=4))
    assert data.targets == ["sales"] and len(data.series.values) == 80  # no target is known, nor are rows without one
    batch = data.windows_at(data.test)
    rows = data.test + torch.arange(3)[:, None]
    scaled = (data.series.values - data.center) / data.scale
    np.testing.assert_allclose(batch.ahead[..., 0], scaled[rows][..., 1].float())
    found = data.baseline()
    assert found["baseline/linear_mae"] < 0.01 * found["baseline/nlinear_mae"]

    model = Forecast(**MODEL, **data.facts()).eval()
    model.autoregression.copy_(data.linear)
    capsys.readouterr()
    model.forecast(prices(tmp_path, ahead=4), str(tmp_path / "plot.png"))
    answer = said(capsys.readouterr().out)
    price = [float(line.split(",")[2]) for line in prices(tmp_path, ahead=4).read_text().splitlines()[81:84]]
    assert [row["day"] for row in answer] == ["2020-03-21", "2020-03-22", "2020-03-23"]
    assert [float(row["sales"]) for row in answer] == pytest.approx([100 - 3 * p for p in price], abs=0.02)
    model.backtest(prices(tmp_path, ahead=4))
    assert all(float(row["mae"]) < 0.02 for row in said(capsys.readouterr().out))
    path = prices(tmp_path, ahead=4)
    path.write_text(path.read_text().rpartition(",")[0] + ",1e20")
    with pytest.raises(UserError, match=r"'price' is 1e\+20 in row 84, too far"):
        model.forecast(path, str(tmp_path / "plot.png"))
    for ahead in (0, 2):
        with pytest.raises(UserError, match=r"needs 3 rows of price, which are known ahead, after the last row of sal"):
            model.forecast(prices(tmp_path, ahead=ahead), str(tmp_path / "plot.png"))


@pytest.mark.parametrize("options", [{"linear": False}, {"strategy": "recursive"}])
def test_the_head_reads_what_is_known_ahead(tmp_path: Path, options: dict[str, Any]) -> None:
    """At once: all of it moves all rows. Row by row: no row is moved by what comes after it."""
    data = of_prices(prices(tmp_path))
    model = Forecast(**MODEL, **options, **data.facts()).eval()
    x, _, ahead = data.windows_at(data.test[:1])
    moved = torch.autograd.functional.jacobian(lambda a: model(x, a)[:, 0, 0], ahead)[:, :, 0, 0]  # rows by rows ahead
    assert (moved.abs() > 1e-6).equal(torch.ones(3, 3).tril().bool() if model.recursive else torch.ones(3, 3).bool())
    with pytest.raises(UserError, match="what is known ahead, price, has to be given"):
        model(x)


def test_what_cannot_be_known(tmp_path: Path) -> None:
    path = str(prices(tmp_path))
    for options, line in (
        ({"known": ["prize"]}, "task.known: no column 'prize' is read"),
        ({"known": ["sales"], "targets": ["sales"]}, "task.known: 'sales' is a target"),
        ({"known": ["sales", "price"]}, "task.targets: name at least one column"),
    ):
        with pytest.raises(UserError, match=line):
            ready(Windows(data=path, **SIZES, **options))
    with pytest.raises(UserError, match=r"task\.known: task\.strategy=segments reads no rows ahead"):
        Forecast(strategy="segments", **MODEL, **of_prices(Path(path)).facts())


# Quantiles


def test_quantiles_stand_beside_the_median(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = prices(tmp_path)
    data = ready(Windows(data=str(path), season=1, **SIZES))
    model = Forecast(quantiles=[0.1, 0.5, 0.75], **MODEL, **data.facts()).eval()
    capsys.readouterr()
    model.forecast(path, str(tmp_path / "plot.png"))
    out = capsys.readouterr().out
    assert out.startswith("day,sales,sales_0.1,sales_0.75,price,price_0.1,price_0.75\n")
    found = np.array([[float(value) for value in line.split(",")[1:]] for line in out.splitlines()[1:]])
    expected = model.following(data.series.values)[:, :, [1, 0, 2]].flatten(1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    figure = of_test(data, lambda batch: model(batch.x).detach(), 1)
    assert any(collection.get_alpha() for collection in figure.axes[0].collections)  # the band


# Errors from row after row


def test_errors_by_lead_and_by_origin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shops(tmp_path, east=60, west=40)
    data = of_shops(path)
    model = Forecast(quantiles=[0.1, 0.5, 0.9], **MODEL, **data.facts()).eval()
    model.head.reset_parameters()
    errors: dict[str, np.ndarray] = {}
    covered, last = [], []
    for shop, values in (("east", data.series.values[:60]), ("west", data.series.values[60:])):
        origins = range(len(values) - len(values) // 4, len(values) - 2)
        found = torch.stack([model.following(values[:origin])[:, 0] for origin in origins])  # [B, H, Q]
        truth = torch.stack([values[origin : origin + 3, 0] for origin in origins])
        errors[shop] = (found[:, :, 1] - truth).numpy()
        covered.append(((found[:, :, 0] <= truth) & (truth <= found[:, :, 2])).double().numpy())
        last.append(np.abs([values[origin - 1, 0] - values[origin : origin + 3, 0] for origin in origins]))
    capsys.readouterr()
    model.backtest(path, share=0.25)
    leads = said(capsys.readouterr().out)
    error = np.concatenate([*errors.values()])
    assert [row["rows_ahead"] for row in leads] == ["1", "2", "3"] and leads[0]["target"] == "sales"
    for name, expected in (
        ("mae", np.abs(error).mean(0)), ("rmse", np.sqrt((error**2).mean(0))), ("mean_error", error.mean(0)),
        ("persistence_mae", np.concatenate(last).mean(0)), ("coverage", np.concatenate(covered).mean(0)),
    ):  # fmt: skip
        assert [float(row[name]) for row in leads] == pytest.approx(expected, rel=1e-4), name
    model.backtest(path, by="origin", share=0.25)
    rows = said(capsys.readouterr().out)
    assert [row["shop"] for row in rows] == ["east"] * 13 + ["west"] * 8
    assert rows[0]["day"] == "2020-02-15" and rows[13]["day"] == "2020-01-31"
    expected = np.concatenate([np.abs(values).mean(1) for values in errors.values()])
    assert [float(row["mae"]) for row in rows] == pytest.approx(expected, rel=1e-4)
    for options, line in (
        ({"by": "day"}, "--by day: must be lead or origin"), ({"share": 0.0}, "--share 0: must be more than 0"),
        ({"share": 0.01}, r"no row to forecast from in the last 0.01 \(--share\) of it"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=line):
            model.backtest(path, **options)  # type: ignore[arg-type]


def test_a_model_reads_numbers_as_its_first_file_had_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A decimal comma among numbers with three decimals would make thousands of all."""
    path = tmp_path / "points.csv"
    path.write_text("a\n" + "".join(f"{row % 9}.{row:03}\n" for row in range(80)))
    data = ready(Windows(data=str(path), columns=["a"], season=1, **SIZES))
    model = Forecast(**MODEL, **data.facts()).eval()
    path.write_text(path.read_text().replace("4.049", '"4,5"'))
    with pytest.raises(UserError, match=r"line 51, column 'a': '4,5' is not a number; write one like 1234\.5$"):
        model.backtest(path)
    capsys.readouterr()
    assert ready(Windows(data=str(path), columns=["a"], season=1, **SIZES)).series.values[0] == 0
    assert "points.csv: numbers are read with a decimal comma; if they have points" in capsys.readouterr().out


def test_thousands_or_decimals_are_not_guessed_in_a_further_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of plain numbers, a comma tells nothing of what a later one means; where a file does not leave it open, it is."""
    path = tmp_path / "file.csv"

    def persisted(text: str, rows: int = 80) -> float:
        path.write_text("a;b\n" + f"{text};1\n" * rows)
        capsys.readouterr()
        model.forecast(path, str(tmp_path / "plot.png"))
        return float(said(capsys.readouterr().out)[0]["a"])

    path.write_text("a;b\n" + "".join(f"{row % 9}.{row:03};1\n" for row in range(80)))
    facts = ready(Windows(data=str(path), columns=["a"], season=1, **SIZES)).facts()
    model = Forecast(**MODEL, **facts).eval()
    asked = r"file\.csv: line 2, column 'a': '3,035' can be 3035 or 3\.035; the run was trained on plain numbers, w"
    for command in (model.forecast, model.backtest):
        path.write_text("a;b\n" + "3,035;1\n" * 80)
        with pytest.raises(UserError, match=asked):
            command(path)
    assert persisted("3,035.5") == 3035.5 and persisted("3.035") == 3.035
    for decimal, value in (("point", 3035), ("comma", 3.035)):
        model = Forecast(**MODEL, **{**facts, "decimal": decimal}).eval()
        assert persisted("3,035") == value


def test_advice_for_a_further_file_is_of_that_file(tmp_path: Path) -> None:
    """What a run was trained with cannot be said to a command that reads another file."""
    path = tmp_path / "file.csv"
    rows = [f"{date(2020, 1, 1) + timedelta(days=d)},{d % 5},{d % 3}" for d in range(80)]
    path.write_text("\n".join(["day,a,b", *rows]))
    model = Forecast(**MODEL, **ready(Windows(data=str(path), season=1, **SIZES)).facts()).eval()
    for changed, line in (
        ([row.rpartition(",")[0] + "," for row in rows], "column 'b' is empty; the run was trained to read it"),
        ([*rows[:9], "2020-01-10,much,1", *rows[10:]], "line 11, column 'a': 'much' is not a number; write one like"),
        ([f"0{1 + d}/02/2020,1,{d}" for d in range(9)], "days or months can come first; write them like 2001-02-28"),
    ):
        path.write_text("\n".join(["day,a,b", *changed]))
        for command in (model.forecast, model.backtest):
            with pytest.raises(UserError, match=line) as error:
                command(path)
            assert str(error.value).startswith(f"{path}: ") and "task." not in str(error.value)


@pytest.mark.parametrize("id", [None, "shop"])
def test_bad_values_of_a_further_file_are_named_with_it(id: str | None, tmp_path: Path) -> None:
    path = shops(tmp_path, **{"east": 60, **({"west": 60} if id else {})})
    options: dict[str, Any] = {"id": id} if id else {"columns": ["sales"]}
    model = Forecast(**MODEL, **ready(Windows(data=str(path), season=7, **SIZES, **options)).facts()).eval()
    lines = path.read_text().splitlines()
    begin = f"{path}: shop=west: " if id else f"{path}: "
    for value, said in (
        ("", "1 value missing, the first in row 60 of 'sales'; train with task.missing"),
        ("1e25", "'sales' is 1e+25 in row 60, too far from the scale of what is learned from"),
    ):
        path.write_text("\n".join([*lines[:-1], lines[-1].rpartition(",")[0] + "," + value]))
        for command in (model.forecast, model.backtest):
            with pytest.raises(UserError) as error:
                command(path)
            assert str(error.value).startswith(begin + said)
    path.write_text("\n".join([*lines[:-1], lines[-1].rpartition(",")[0] + ",1e400"]))
    with pytest.raises(UserError, match=rf"line {len(lines)}, column 'sales': '1e400' is more than models can"):
        model.forecast(path)


def test_what_a_person_says_of_a_file_is_kept_where_it_makes_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    path.write_text("\n".join(["day,a", *(f"{date(2020, 1, 1) + timedelta(days=d)},{d % 5}" for d in range(80))]))
    told: dict[str, Any] = {"day_first": True, "decimal": "comma"}
    data = ready(Windows(data=str(path), season=1, **told, **SIZES))
    model = Forecast(**MODEL, **told)
    model.learn_from(data)
    assert (model.hparams["day_first"], model.hparams["decimal"]) == (True, "comma")
    with pytest.raises(UserError, match=r"^task\.columns: .*file\.csv needs at least one column besides the dates"):
        ready(Windows(data=str(path), columns=[], season=1, **SIZES))
    for key, value in told.items():
        with pytest.raises(UserError, match=rf"task\.{key} is of a file; give one with task\.data=FILE"):
            Windows(**{key: value})


def test_series_that_are_too_short_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shops(tmp_path, east=60, west=40)
    model = Forecast(**MODEL, **of_shops(path).facts()).eval()
    capsys.readouterr()
    model.backtest(shops(tmp_path, east=60, west=4))
    said_there = capsys.readouterr()
    assert "too short to forecast from, and left out: west" in said_there.err and said(said_there.out)


def test_gaps_are_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gaps.csv"
    path.write_text("a\n" + "\n".join("" if row == 70 else str(row + row % 2) for row in range(80)))
    data = ready(Windows(data=str(path), columns=["a"], season=1, missing="previous", **SIZES))
    model = Forecast(**MODEL, **data.facts()).eval()
    capsys.readouterr()
    model.backtest(path)
    assert all(math.isfinite(float(row["mae"])) for row in said(capsys.readouterr().out))
