"""Forecasting: what a window holds and what it cannot know, baselines against NumPy, runs, and bad input."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import matplotlib.image
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ready import ready
from torch import Tensor

from rnnzoo import UserError, list_cells
from rnnzoo.cli import main
from rnnzoo.export import export
from rnnzoo.lightning.framework import pl
from rnnzoo.tasks.forecast import Forecast
from rnnzoo.tasks.forecast_plots import of_test
from rnnzoo.tasks.linear import decomposed
from rnnzoo.tasks.series import Series, mackey_glass
from rnnzoo.tasks.windows import Windows

DATA = Path(__file__).parents[3] / "shared" / "data" / "series"
ADAM = {"name": "adam", "lr": 0.01, "schedule": "constant"}
NAN = math.nan


def windows(values: Any, targets: list[str] | None = None, **options: Any) -> Windows:
    """The windows of columns a, b, ... of `values` [N, n], as if they had been read from a file."""
    values = torch.as_tensor(values, dtype=torch.float64)
    series = Series(list("abcdef"[: values.shape[1]]), values, None, [])
    task: dict[str, Any] = {
        "window": 5, "horizon": 3, "stride": 1, "missing": "refuse", "scaling": "none", "season": None,
        "val_fraction": 0.2, "test_fraction": 0.2, "batch_size": 4, "seed": 1,
    }  # fmt: skip
    with patch("rnnzoo.tasks.windows.read_csv", lambda *_, **__: series):
        return ready(Windows(data="file.csv", date=None, columns=None, targets=targets, **(task | options)))


def noise(rows: int, columns: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def module(data: Windows, cell: str = "gru", **options: Any) -> Forecast:
    """A model for these windows."""
    torch.manual_seed(0)
    return Forecast(
        model={"cell": cell, "hidden_size": 4, **options}, optimizer=ADAM, engine="auto", seed=1, **data.facts()
    )


# The data


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(20, 120),
    window=st.integers(1, 12),
    horizon=st.integers(1, 5),
    stride=st.integers(1, 9),
    val=st.floats(0.05, 0.4),
    test=st.floats(0.0, 0.4),
)
def test_windows_are_what_came_before(
    rows: int, window: int, horizon: int, stride: int, val: float, test: float
) -> None:
    """The first column is the row's number, so that values say where they come from."""
    number = np.arange(rows)
    held_out = [int(rows * val), int(rows * test)]
    ends = np.cumsum([0, rows - sum(held_out), *held_out])
    enough = ends[1] >= window + horizon and held_out[0] >= horizon and (held_out[1] >= horizon or test == 0)
    options = {"window": window, "horizon": horizon, "stride": stride, "val_fraction": val, "test_fraction": test}
    values = np.stack([number, -(number**2)], 1)
    if not enough:
        with pytest.raises(UserError, match=r"task\.data=file\.csv: of \d+ rows, .* too few"):
            windows(values, targets=["b"], **options)
        return
    data = windows(values, targets=["b"], **options)
    assert data.has_test == (test > 0)
    for part, first, end in zip((data.train, data.val, data.test), ends, ends[1:]):
        # all windows that the part has, `stride` apart: their targets lie in it, their input may begin before it
        assert part.tolist() == list(range(max(first, window), end - horizon + 1, stride))
        x, y, _ = data.windows_at(part)
        assert x.shape == (window, len(part), 2) and y.shape == (horizon, len(part), 1)
        for b, origin in enumerate(part.tolist()):
            assert x[:, b, 0].tolist() == list(range(origin - window, origin))
            assert y[:, b, 0].tolist() == [-(row**2) for row in range(origin, origin + horizon)]
            assert torch.equal(x[:, b, 1], -(x[:, b, 0] ** 2))


def test_training_takes_every_window_once_in_an_order_of_the_epochs_own() -> None:
    data = windows(np.arange(60)[:, None] + 0.0)
    data.position = lambda: (0, 0)  # type: ignore[method-assign]
    batches = data.train_dataloader()
    epochs = [torch.cat([batches.fetch(rows).y[0, :, 0] for rows in batches.plan(epoch)]) for epoch in (0, 0, 1)]
    assert torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[0], epochs[2])
    assert all(epoch.sort().values.tolist() == data.train.tolist() for epoch in epochs)


@pytest.mark.parametrize("scaling", ["standard", "minmax"])
def test_scaling_knows_the_training_part_only(scaling: str) -> None:
    values = noise(50, 3).numpy() * [1, 10, 0] + [0, 5, 7]
    values[3, 1] = NAN
    data = windows(values, targets=["a", "b"], scaling=scaling, missing="previous")
    known = values[:30, :2]
    if scaling == "standard":
        expected = np.nanmean(known, 0), np.nanstd(known, 0)
    else:
        expected = np.nanmin(known, 0), np.nanmax(known, 0) - np.nanmin(known, 0)
    assert np.allclose(data.center[:2], expected[0]) and np.allclose(data.scale[:2], expected[1])
    assert data.scale[2] == 1  # a constant column stays finite
    x, _, _ = data.windows_at(data.test)
    assert np.allclose(x[-1] * data.scale + data.center, values[data.test - 1], atol=1e-5)


@pytest.mark.parametrize("scaling", ["standard", "minmax"])
def test_a_constant_column_has_no_scale_of_its_own(scaling: str) -> None:
    """Nor from what rounding does to its mean: it may take another value in the test part."""
    values = torch.cat([noise(60), torch.full((60, 1), 0.1, dtype=torch.float64)], 1)
    values[50:, 1] = 0.2
    data = windows(values, targets=["a"], scaling=scaling)
    assert data.scale[1] == 1 and float(data.windows_at(data.test[-1:]).x[..., 1].max()) == pytest.approx(0.1)


def test_what_is_too_far_away_to_calculate_with_is_named() -> None:
    values = noise(60, 2)
    values[55, 1] = 1e25
    with pytest.raises(UserError, match=r"task\.data=file\.csv: 'b' is 1e\+25 in row 56, too far .* ±.*; correct it$"):
        windows(values, scaling="standard")
    values[:, 1] = 1e29 * values[:, 0]
    found = windows(values, scaling="standard").baseline()
    assert all(math.isfinite(value) for value in found.values())
    for name in ("mae", "rmse", "rmse_last"):
        expected = 1e29 * found[f"baseline/persistence_{name}_a"]
        assert found[f"baseline/persistence_{name}_b"] == pytest.approx(expected, rel=1e-4)


# Gaps


def test_what_is_not_known_is_not_scored_or_learned() -> None:
    values = noise(60, 2)
    complete = windows(values)
    values[50:55, 1] = NAN
    values[40:44] = NAN
    data = windows(values, missing="previous")
    x, y, _ = data.windows_at(data.test)
    assert not x.isnan().any()
    rows = data.test + torch.arange(3)[:, None]
    assert torch.equal(y.isnan(), values[rows].isnan())
    # the windows of rows 40 to 42 and 41 to 43 have nothing to be learned or scored
    assert set(complete.val.tolist()) - set(data.val.tolist()) == {40, 41}

    model = module(data)
    loss, count, forecasts = model.score(data.windows_at(data.test))[:3]
    error = (forecasts - values[rows].float()).detach().numpy()
    assert count == int((~values[rows].isnan()).sum())
    assert float(loss.detach()) == pytest.approx(np.nanmean(error**2), rel=1e-5)


def test_gaps_are_refused_unless_asked_for() -> None:
    values = noise(60, 2)
    values[[7, 9], 1] = NAN
    with pytest.raises(
        UserError, match=r"2 values missing, the first in row 8 of 'b'; train with task\.missing=previous or linear"
    ):
        windows(values)
    values[0, 0] = NAN
    with pytest.raises(UserError, match="'a' begins with a gap"):
        windows(values, missing="linear")


# Baselines and errors


def test_persistence_and_seasonal_persistence() -> None:
    values = noise(60, 2)
    data = windows(values, targets=["b"], horizon=5, season=2)
    found = data.baselines(data.test)
    for b, origin in enumerate(data.test.tolist()):
        assert (found["persistence"][:, b, 0] == values[origin - 1, 1]).all()
        # the last two rows over and over
        expected = [float(values[origin - 2 + ahead % 2, 1]) for ahead in range(5)]
        assert found["seasonal"][:, b, 0].tolist() == pytest.approx(expected)
    assert "seasonal" not in windows(values, season=1).baselines(data.test)


def test_the_linear_autoregression_finds_a_linear_law() -> None:
    """Two sines obey x[t] = Σ w_k x[t-k] with four weights, at every horizon; the other column is noise."""
    t = torch.arange(200)
    values = torch.stack([3 + torch.sin(0.3 * t) + torch.sin(0.71 * t), noise(200)[:, 0]], 1)
    data = windows(values, targets=["a"])
    truth = values[data.test + torch.arange(3)[:, None], :1]
    assert torch.allclose(data.baselines(data.test)["linear"], truth, atol=1e-3)
    assert data.baseline()["baseline/linear_mae"] < 1e-3

    # the test part has no part in it
    values[170:] = 9.0
    assert torch.allclose(windows(values, targets=["a"]).linear, data.linear, atol=1e-4)


def test_the_linear_autoregression_is_least_squares() -> None:
    values = noise(400, 2)
    data = windows(values, targets=["b"])
    x, y = (part.double() for part in data.windows_at(data.train)[:2])
    features = np.concatenate([x.transpose(0, 1).flatten(1), np.ones((len(data.train), 1))], 1)
    weights = np.linalg.lstsq(features, y[:, :, 0].T.numpy(), rcond=None)[0]
    with patch("rnnzoo.tasks.linear.PENALTIES", (0.0,)):
        found = data.baselines(data.val)["linear"]
    x, _, _ = data.windows_at(data.val)
    features = np.concatenate([x.transpose(0, 1).flatten(1), np.ones((len(data.val), 1))], 1)
    assert np.allclose(found[:, :, 0].T, features @ weights, atol=1e-5)


def test_nlinear_and_dlinear_are_least_squares() -> None:
    """The same weights for all columns; the decomposition adds nothing to what a linear function can say."""
    data = windows(noise(200, 2).cumsum(0), window=6)
    x, y = (part.double() for part in data.windows_at(data.train)[:2])
    own, after = (part.permute(1, 2, 0).flatten(0, 1).numpy() for part in (x, y))  # [B·K, T], [B·K, H]
    test = data.windows_at(data.test).x.double().permute(1, 2, 0).flatten(0, 1).numpy()

    def expected(relative: bool) -> np.ndarray:
        last, last_of_test = (values[:, -1:] * relative for values in (own, test))
        features = np.concatenate([own - last, np.ones((len(own), 1))], 1)
        weights = np.linalg.lstsq(features, after - last, rcond=None)[0]
        return np.concatenate([test - last_of_test, np.ones((len(test), 1))], 1) @ weights + last_of_test

    with patch("rnnzoo.tasks.linear.PENALTIES", (1e-12,)):
        found = data.baselines(data.test)
    for name, relative in (("nlinear", True), ("dlinear", False)):
        np.testing.assert_allclose(found[name].permute(1, 2, 0).flatten(0, 1), expected(relative), atol=1e-4)


def test_a_moving_average_is_what_dlinear_takes_apart() -> None:
    rows = noise(3, 40)
    padded = np.pad(rows.numpy(), ((0, 0), (12, 12)), "edge")
    trend = np.stack([np.convolve(row, np.full(25, 1 / 25), "valid") for row in padded])
    np.testing.assert_allclose(decomposed(rows), np.concatenate([trend, rows.numpy() - trend], 1))


def test_mase_is_relative_to_the_seasons_of_the_training_part() -> None:
    """A series that rises by 1 a row differs by 4 from a season of 4 before; 1, 2 and 3 ahead, persistence by 2."""
    data = windows(np.arange(60)[:, None] * 1.0, season=4, scaling="standard")
    assert data.naive_error.tolist() == [4]
    found = data.baseline()
    assert [found[f"baseline/persistence_{name}"] for name in ("mae", "rmse", "mase")] == pytest.approx(
        [2, math.sqrt(14 / 3), 0.5], rel=1e-5
    )
    assert found["baseline/seasonal_mase"] == pytest.approx(1, rel=1e-5)
    assert found["baseline/linear_mae"] < 0.01


def test_a_season_without_change_is_refused() -> None:
    with pytest.raises(UserError, match=r"task\.season=3: .*'a' is never known to differ"):
        windows(np.array([1.0, 2.0, 3.0] * 20)[:, None], season=3)


def test_a_constant_target_is_named() -> None:
    values = noise(60, 3)
    values[:40, 1] = 7
    with pytest.raises(
        UserError, match=r"'b' is always 7 in the training part, .* leave it out with task\.targets=\[a,c\]"
    ):
        windows(values)
    windows(values, targets=["a", "c"])
    with pytest.raises(UserError, match=r"'a' is always 2 in the training part, .* choose another column"):
        windows(np.full((60, 1), 2.0))


# Calendars


def file(tmp_path: Path, dates: list[datetime], drop: range = range(0)) -> str:
    """A file of noise at these dates, without some of its rows."""
    rows = [f"{date},{value}" for date, value in zip(dates, noise(len(dates))[:, 0].tolist())]
    (tmp_path / "file.csv").write_text("\n".join(["when,a", *(row for k, row in enumerate(rows) if k not in drop)]))
    return str(tmp_path / "file.csv")


def test_missing_rows_are_missing_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twenty days of gap: refused as missing values are, or filled in the input and neither learned nor scored."""
    path = file(tmp_path, [datetime(2001, 1, 1) + timedelta(days=row) for row in range(200)], drop=range(90, 110))
    options: dict[str, Any] = {"window": 5, "horizon": 3, "season": 7}
    with pytest.raises(
        UserError,
        match=r"rows come every day, 20 are missing, the first after 2001-03-31 00:00; train with task",
    ):
        ready(Windows(path, **options))
    data = ready(Windows(path, missing="previous", **options))
    assert len(data.series.dates) == 200 and data.series.values[90:110].isnan().all()
    assert not set(range(90, 108)) & set(data.train.tolist())  # whose targets all lie in the gap
    x, _, _ = data.windows_at(torch.tensor([112]))
    assert (
        x[:, 0, 0].tolist()
        == ((data.series.values[[89, 89, 89, 110, 111], 0] - data.center) / data.scale).float().tolist()
    )
    assert "200 rows of a, every day, from 2001-01-01 to 2001-07-19; a season is 7 rows" in capsys.readouterr().out


def test_irregular_dates_are_asked_about(tmp_path: Path) -> None:
    dates = [datetime(2001, 1, 1) + timedelta(hours=row**2 % 97 + 100 * row) for row in range(100)]
    path = file(tmp_path, dates)
    with pytest.raises(UserError, match=r"the dates of 'when' come in no rhythm .*task\.season=ROWS, 1 for none"):
        ready(Windows(path, window=5))
    data = ready(Windows(path, window=5, season=4))
    assert data.season == 4 and data.series.dates.tolist() == dates


def test_a_season_longer_than_the_training_part_is_refused() -> None:
    with pytest.raises(UserError, match="the 36 to train on are no more than a season of 36"):
        windows(noise(60), season=36)
    windows(noise(60), season=35)


# The model


def test_segments_equal_the_papers_steps() -> None:
    """One column of one window at a time: segments relative to the last value, then one step for each segment ahead."""
    data = windows(noise(60, 2) * 3 + 100, targets=["b"], scaling="standard", window=6, horizon=5)
    torch.manual_seed(0)
    model = Forecast(model={"cell": "lstm", "hidden_size": 4}, strategy="segments", segment=2, **data.facts()).eval()
    x = data.windows_at(torch.tensor([20, 31, 40])).x
    with torch.no_grad():
        found, parts = model(x), model.segments
        assert parts is not None and found.shape == (5, 3, 1)
        for b in range(3):
            series = x[:, b, 1]
            read = torch.stack([parts.embed(piece - series[-1]).relu() for piece in series.split(2)])
            _, state = parts.layer(read)  # one sequence, without a batch
            ahead = []
            for place in parts.places:
                asked = torch.cat([place[0], parts.columns[0, 1]])
                output, _ = parts.layer(asked[None], state)
                ahead.append(parts.head(output[0]) + series[-1])
            torch.testing.assert_close(found[:, b, 0], torch.cat(ahead)[:5])


def test_segments_that_do_not_fit_are_refused() -> None:
    facts = windows(noise(60)).facts()
    for options, said in (
        ({"segment": 2}, "task.segment=2: must divide task.window=5"),
        ({"segment": 5, "model": {"hidden_size": 3}}, "model.hidden_size=3: must be even"),
        ({"segment": 5, "model": {"hidden_size": 4, "bidirectional": True}}, "model.bidirectional=true"),
    ):
        with pytest.raises(UserError, match=said):
            Forecast(strategy="segments", **facts, **options)  # type: ignore[arg-type]


def test_the_split_of_the_literature(tmp_path: Path) -> None:
    """Hourly rows: 8,640 to train on, 2,880 to validate and to test on, the rest unused (Zhou et al. 2021)."""
    path = tmp_path / "hours.csv"
    start = datetime(2016, 7, 1)
    rows = [f"{start + timedelta(hours=k)},{math.sin(k / 4) + k % 7}" for k in range(15_000)]
    path.write_text("\n".join(["date,OT", *rows]))
    data = ready(Windows(data=str(path), window=96, horizon=48, split="ett"))
    assert [(int(part[0]), int(part[-1]) + 48) for part in (data.train, data.val, data.test)] == [
        (96, 8640), (8640, 11520), (11520, 14400),
    ]  # fmt: skip
    path.write_text("\n".join(["date,OT", *rows[:9000]]))
    with pytest.raises(UserError, match=r"task\.split=ett needs dates and 600 days, of which there are 375"):
        ready(Windows(data=str(path), window=96, horizon=48, split="ett"))


def test_a_model_begins_as_the_linear_autoregression() -> None:
    data = windows(noise(60, 2), targets=["b"])
    model = module(data)
    model.trainer = pl.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    model.trainer.datamodule = data  # type: ignore[attr-defined]
    expected = data.baselines(data.test)["linear"]
    for _ in range(2):  # what is there is not fitted again
        model.setup("fit")
        found = model(data.windows_at(data.test).x).detach().double()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        vars(data)["linear"] = torch.zeros_like(data.linear)
    rows = noise(3, 2).float()[:, None]
    before = torch.cat([rows[:1].expand(2, -1, -1), rows])  # a short window was always as in its first row
    nothing = rows.new_zeros(3, 1, 0)
    torch.testing.assert_close(model.before_layer(rows, nothing), model.before_layer(before, nothing))


def test_a_model_is_exported_with_its_linear_part() -> None:
    """Windows of any length may be given to the file."""
    data = windows(noise(60, 2))
    model = Forecast(model={"hidden_size": 4}, quantiles=[0.2, 0.5], **data.facts()).eval()
    model.autoregression.copy_(data.linear)
    program = torch.export.load(io.BytesIO(export(model, "pt2"))).module()
    for x in (data.windows_at(data.test).x, data.windows_at(data.test[:2]).x[2:]):
        torch.testing.assert_close(program(x), model(x), atol=1e-5, rtol=1e-5)


def test_a_head_that_says_nothing_is_persistence() -> None:
    data = windows(noise(60, 2) * 3 + 100, targets=["b"], scaling="standard")
    model = module(data)  # to which no autoregression was fitted
    values = noise(9, 2, seed=5) + 50
    assert torch.allclose(model.following_rows(values), values[-1, 1].expand(3, 1), atol=1e-4)


def test_a_forecast_reads_the_last_window_in_the_datas_units() -> None:
    data = windows(noise(60, 2) * 3 + 100, targets=["b"], scaling="minmax")
    model = module(data).train()
    values = data.series.values
    found = model.following_rows(values[:40])
    assert model.training and found.shape == (3, 1)
    expected = model(data.windows_at(torch.tensor([40])).x)[:, 0].detach().double() * data.scale[1] + data.center[1]
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.equal(model.following_rows(values[35:40]), found)
    gap = values[:40].clone()
    gap[37, 0] = NAN
    with pytest.raises(UserError, match=r"^1 value missing, the first in row 38 of 'a'; train with task\.missing"):
        model.following_rows(gap)
    for wrong in (values[:4], values[:, :1], values[0]):
        with pytest.raises(UserError, match="at least 5 rows of a, b, and here are"):
            model.following_rows(wrong)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "projection": 3}])
def test_both_directions_have_read_the_whole_window(options: dict[str, Any]) -> None:
    """Each row of the window moves each forecast."""
    model = module(windows(noise(60)), **options)
    model.head.reset_parameters()
    x = noise(5, 1).float()[:, None].requires_grad_()
    change = model(x) - x[-1:]
    [gradient] = torch.autograd.grad(change.sum(), x)
    assert (gradient.abs() > 1e-6).all()


def test_every_cell_forecasts() -> None:
    data = windows(noise(60, 2), scaling="standard")
    for cell in list_cells():
        forecasts = module(data, cell)(data.windows_at(data.test).x)
        assert forecasts.shape == (3, len(data.test), 2) and forecasts.isfinite().all(), cell


# Runs

SMALL = ("hardware=cpu", "task=forecast", "task.window=20", "task.horizon=3")


def metrics(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "summary.json").read_text())["metrics"]
    return found


def test_training_beats_the_baselines(train: Callable[..., Path]) -> None:
    folder = train(*SMALL, "task.stride=3", "model.hidden_size=32", "trainer.max_epochs=12", "optimizer.lr=1e-2")
    found = metrics(folder)
    for baseline in ("persistence", "seasonal", "linear"):
        for name in ("mae", "rmse", "mase"):
            assert found[f"test/{name}"] < 0.7 * found[f"baseline/{baseline}_{name}"]

    # the same from the checkpoint alone, window by window, in the data's units
    model = Forecast.load_from_checkpoint(folder / "checkpoints" / "best.ckpt", weights_only=True)
    values = mackey_glass().values
    origins = range(1600, 1998, 3)
    forecasts = torch.stack([model.following_rows(values[:origin]) for origin in origins])[:, :, 0]
    error = forecasts - torch.stack([values[origin : origin + 3, 0] for origin in origins])
    assert found["test/mae"] == pytest.approx(float(error.abs().mean()), rel=1e-3)
    assert found["test/rmse"] == pytest.approx(float(error.square().mean().sqrt()), rel=1e-3)
    season = (values[17:1400] - values[: 1400 - 17]).abs().mean()
    assert found["test/mase"] == pytest.approx(float(error.abs().mean() / season), rel=1e-3)
    assert matplotlib.image.imread(folder / "plots" / "forecast.png")[:, :, :3].std() > 0.05  # not a blank one


def test_columns_may_have_any_name(
    tmp_path: Path, train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables of metrics take none of it for markup or for a terminal's commands."""
    names = ["[/bold]", "[b]x$", "\x1b[31mred$_$"]
    rows = [[math.sin(k), math.cos(k), k % 7] for k in range(90)]
    (tmp_path / "odd.csv").write_text("\n".join(",".join(map(str, row)) for row in [names, *rows]))
    folder = train(*SMALL, f"task.data={tmp_path / 'odd.csv'}", "task.season=1", "trainer.max_epochs=1")
    assert main(["eval", str(folder)]) == 0
    said = capsys.readouterr().out
    assert (
        all(said.count(name) >= 2 for name in ("mae_[/bold]", "mae_[b]x$", "mae_\\x1b[31mred$_$"))
        and "\x1b" not in said
    )


def test_a_file_with_gaps_and_several_targets(
    train: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = noise(120, 3).numpy()
    rows = [f"{datetime(2001, 1, 1) + timedelta(hours=6 * row)},{a},{b},{c}" for row, (a, b, c) in enumerate(values)]
    rows[50] = rows[50].rpartition(",")[0] + ","
    path = tmp_path / "file.csv"
    path.write_text("\n".join(["when,wind,rain,sun", *rows]))
    toy = ("model.hidden_size=4", "trainer.max_epochs=1", f"task.data={path}", "task.missing=linear")
    found = metrics(train(*SMALL, *toy, "task.targets=[sun,wind]", "model.bidirectional=true"))
    # a loss and ten errors of validation, and the training's loss, of which a line shows eight
    assert re.search(r"^epoch 1/1  val/loss \S+ .* and 4 more  train/loss \S+  \S+ s$", capsys.readouterr().out, re.M)
    expected = {f"{name}_{target}" for name in ("mae", "rmse", "rmse_last", "mase") for target in ("sun", "wind")}
    expected |= {"scaled_mse", "scaled_mae"}
    assert expected == {name.removeprefix("test/") for name in found if name.startswith("test/")} - {"loss"}
    for baseline in ("persistence", "seasonal", "linear", "nlinear", "dlinear"):
        assert {f"baseline/{baseline}_{name}" for name in expected} <= found.keys()
    assert not any(name.startswith("baseline") for name in metrics(train(*SMALL, *toy, "task.test_fraction=0")))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"targets": ["c"]}, r"task\.targets: no column 'c' is read; known: a, b"),
        ({"targets": []}, r"task\.targets: name at least one column"),
        ({"targets": ["a", "a"]}, "each only once"),
        ({"window": 34}, "the 36 to train on are too few for one window of 34 and a horizon of 3"),
        ({"val_fraction": 0.04}, "those to validate on are too few for a horizon of 3"),
        ({"test_fraction": 0.8}, "leave no training part"),
    ],
)
def test_windows_that_cannot_be_had(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        windows(noise(60, 2), **options)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task.window=90", "the 71 to train on are too few for one window of 90 and a horizon of 3"),
        ("task.missing=ignore", "task.missing=ignore: should be 'refuse', 'previous' or 'linear'"),
        ("task.data=null", "task.columns is of a file; give one with task.data=FILE"),
        ("task.data=nowhere.csv", "task.data=nowhere.csv: no such file"),
        ("task.data=/", "task.data=/: is a folder; name a file in it"),
        ("seed=2", "line 102, column 'a': '100 00' is not a number"),
    ],
)
def test_bad_input_ends_in_one_line(
    override: str, said: str, train: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = "100 00" if override == "seed=2" else "100000"
    path = tmp_path / "file.csv"
    path.write_text("a\n" + "".join(f"{row % 7}\n" for row in range(100)) + last)
    with pytest.raises(SystemExit) as end:
        train(*SMALL, f"task.data={path}", "task.columns=[a]", override)
    error = capsys.readouterr().err
    assert end.value.code == 1
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the real data are not here")
def test_the_default_does_not_lose_to_the_baselines_on_real_temperatures(train: Callable[..., Path]) -> None:
    found = metrics(
        train("hardware=cpu", "task=forecast", f"task.data={DATA / 'daily-min-temperatures.csv'}",
              "trainer.max_epochs=4")
    )  # fmt: skip
    for name in ("mae", "rmse", "mase"):
        for baseline in ("persistence", "seasonal", "nlinear", "dlinear"):
            assert found[f"test/{name}"] < found[f"baseline/{baseline}_{name}"]
        assert found[f"test/{name}"] < 1.002 * found[f"baseline/linear_{name}"]  # as good, where it has less to learn


def test_a_horizon_longer_than_the_picture_is_drawn() -> None:
    data = ready(Windows(window=8, horizon=168))
    figure = of_test(data, lambda batch: torch.zeros(168, batch.x.shape[1], 1))
    drawn = [line for line in figure.axes[0].lines if line.get_label() == "forecasts of 168 rows"]
    assert [len(line.get_xdata()) for line in drawn] == [168]
