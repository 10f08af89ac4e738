"""Forecasting: from the last rows of a series of numbers to the next ones, beside what simple methods forecast.

Windows of T rows over n columns make data of shape [M, T, n], gathered batch by batch. All but the metrics is in
scaled units.

Shapes: N rows, M windows, T rows of a window (τ), n columns, H rows ahead (the horizon), K targets, B batch.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from rnnzoo import UserError
from rnnzoo.errors import nearest
from rnnzoo.files import writing
from rnnzoo.lightning.data import SequenceData, in_order
from rnnzoo.lightning.module import SequenceModule
from rnnzoo.lightning.verb import verb

from .series import (
    TURN,
    Errors,
    Filled,
    Missing,
    Scaling,
    center_and_scale,
    following,
    mackey_glass,
    read_csv,
    season_of,
)

Fraction = Annotated[float, Field(ge=0, lt=1)]

AT_ONCE = 1024
"""Windows evaluated at once."""

PENALTIES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the linear autoregression, as shares of its features' mean square."""

DRAWN_ROWS, DRAWN_TARGETS = 150, 6
"""What a plot has room for, from the end of the test part."""


class Batch(NamedTuple):
    """Windows x [T, B, n] without gaps, and what followed, y [H, B, K], NaN where it is not known."""

    x: Tensor
    y: Tensor


class Windows(SequenceData):
    """A series split by time into training, validation and test part, and the windows in it.

    A window belongs to the part that all of its targets lie in; its input may reach back into the part before.
    Gaps are filled in the input only: what is not known is neither learned nor scored.

    Args:
        data: a CSV file, see `read_csv`; None for a chaotic series that is made on the spot.
        date: the column of dates; None to find it.
        columns: those read, the input; None for all but the dates.
        targets: those of them that are forecast; None for all.
        window: rows of input, T.
        horizon: rows ahead that are forecast, H.
        stride: rows from a window to the next one.
        missing: refuse gaps, or fill those of the input, see `Filled`.
        scaling: to mean 0 and deviation 1, or to [0, 1], over the training part; or none.
        season: rows of a season, for seasonal persistence and MASE; None for that of the dates, see `season_of`.
        val_fraction: the share of the rows held out for validation, before the test's at the end.
        test_fraction: the share of the rows at the end held out for the test; 0 for none.
        batch_size: windows in a batch.
        seed: of the order.
    """

    at_once = AT_ONCE

    def __init__(
        self,
        data: str | None = None,
        date: str | None = None,
        columns: list[str] | None = None,
        targets: list[str] | None = None,
        window: PositiveInt = 60,
        horizon: PositiveInt = 7,
        stride: PositiveInt = 1,
        missing: Missing = "refuse",
        scaling: Scaling = "standard",
        season: PositiveInt | None = None,
        val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1,
        test_fraction: Fraction = 0.2,
        batch_size: PositiveInt = 32,
        seed: int = 1,
    ) -> None:
        super().__init__()
        self.batch_size, self.seed, self.window, self.horizon, self.stride = batch_size, seed, window, horizon, stride
        self.chosen = data, date, columns, targets
        self.missing, self.scaling, self.given_season = missing, scaling, season
        self.fractions = val_fraction, test_fraction
        if data is None and (date, columns) != (None, None):
            raise UserError("task.date and task.columns choose from a file; give one with task.data=FILE")
        if val_fraction + test_fraction >= 1:
            raise UserError(
                f"task.val_fraction={val_fraction} and task.test_fraction={test_fraction} leave no training part"
            )

    def read(self) -> None:
        data, date, columns, targets = self.chosen
        window, horizon = self.window, self.horizon
        source = f"task.data={data or 'null'}"
        self.series = mackey_glass() if data is None else read_csv(data, date, columns)
        values, names = self.series.values, self.series.columns
        self.targets = names if targets is None else targets
        for name in self.targets:
            if name not in names:
                raise UserError(f"task.targets: no column {name!r} is read; {nearest(name, names)}")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise UserError("task.targets: name at least one column, and each only once; null for all")
        self.at = [names.index(name) for name in self.targets]

        held_out = [int(len(values) * fraction) for fraction in self.fractions]
        rows = len(values) - sum(held_out)  # of the training part
        self.season = self.given_season or (TURN if data is None else season_of(self.series.dates))
        if rows < window + horizon:
            raise UserError(
                f"{source}: of {len(values)} rows, the {rows} to train on are too few for one window of {window} and a "
                f"horizon of {horizon}; lower task.window or task.horizon, or give more rows"
            )
        if rows <= self.season:
            raise UserError(
                f"{source}: of {len(values)} rows, the {rows} to train on are no more than a season of {self.season}; "
                f"set task.season, 1 for none, or give more rows"
            )
        self.center, self.scale = center_and_scale(values[:rows], self.scaling)
        scaled = (values - self.center) / self.scale
        self.filled, self.y = Filled(scaled, self.missing, source, names), scaled[:, self.at]
        self.naive_error = (values[self.season : rows] - values[: rows - self.season]).abs().nanmean(0)[self.at]
        for name, error in zip(self.targets, self.naive_error):
            if not error > 0:
                raise UserError(
                    f"task.season={self.season}: in the training part, {name!r} is never known to differ from a season "
                    f"before, which leaves MASE without a scale; set another task.season"
                )
        ends = [0, rows, rows + held_out[0], len(values)]
        self.train, self.val, self.test = (self._origins(*part) for part in pairwise(ends))
        self.has_test = self.fractions[1] > 0
        for name, part in (("train", self.train), ("validate", self.val), ("test", self.test)):
            if not len(part) and (name != "test" or self.has_test):
                raise UserError(
                    f"{source}: of {len(values)} rows, those to {name} on are too few for a horizon of {horizon}; "
                    f"lower it, or change task.val_fraction and task.test_fraction"
                )
        span = f" from {self.series.dates[0]:%Y-%m-%d} to {self.series.dates[-1]:%Y-%m-%d}" if self.series.dates else ""
        print(f"{source}: {len(values):,} rows of {', '.join(names)}{span}; a season is {self.season} rows")

    def _origins(self, first: int, end: int) -> Tensor:
        """The first target row of each window of the part from row `first` to `end`, [M]; some target must be known."""
        origins = torch.arange(max(first, self.window), max(first, self.window, end - self.horizon + 1), self.stride)
        return origins[~self.targets_of(origins).isnan().all(2).all(0)]

    def facts(self) -> dict[str, Any]:
        return {
            "window": self.window,
            "horizon": self.horizon,
            "missing": self.missing,
            "columns": self.series.columns,
            "targets": self.targets,
            "date": self.series.date,
            "center": self.center.tolist(),
            "scale": self.scale.tolist(),
            "naive_error": self.naive_error.tolist(),
        }

    def batch(self, part: Tensor, rows: Tensor) -> Batch:
        return self.windows_at(part[rows])

    def windows_at(self, origins: Tensor) -> Batch:
        """The windows before the rows `origins` [B], and what follows them."""
        return Batch(self.filled.windows(origins, self.window).float(), self.targets_of(origins).float())

    def targets_of(self, origins: Tensor) -> Tensor:
        """[H, B, K] in float64."""
        return self.y[origins + torch.arange(self.horizon)[:, None]]

    def baselines(self, origins: Tensor) -> dict[str, Tensor]:
        """What simple methods forecast at the rows `origins` [B], each [H, B, K].

        The last value; if there are seasons, the value of the last known one; and a linear function of the window.
        """
        last = self.filled.windows(origins, 1)[:, :, self.at]  # [1, B, K]
        found = {"persistence": last.expand(self.horizon, -1, -1)}
        if self.season > 1:
            ahead = torch.arange(self.horizon)[:, None]
            seasons = ahead // self.season + 1  # back, until a row before the origin
            found["seasonal"] = self.filled.previous[origins + ahead - seasons * self.season][:, :, self.at]
        change = self._features(origins) @ self.linear  # [B, H·K]
        found["linear"] = last + change.unflatten(1, (self.horizon, -1)).transpose(0, 1)
        return found

    @cached_property
    def linear(self) -> Tensor:
        """Weights [T·n + 1, H·K] of a linear autoregression, by ridge regression on the training windows.

        Only windows whose targets are all known take part; the penalty is the best one on the validation part.
        """
        gram: Any = 0
        product: Any = 0
        for origins, change in self._changes(self.train):
            complete = ~change.isnan().any(1)
            features = self._features(origins)[complete]
            gram, product = gram + features.T @ features, product + features.T @ change[complete]

        def fitted(penalty: float) -> Tensor:
            ridge = penalty * gram.diagonal().mean() * torch.eye(len(gram))
            return torch.linalg.lstsq(gram + ridge, product).solution

        def error(weights: Tensor) -> float:
            found = (self._features(origins) @ weights - change for origins, change in self._changes(self.val))
            return float(sum(residual.square().nansum() for residual in found))

        return min(map(fitted, PENALTIES), key=error)

    def _changes(self, part: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Origins [B] and how the targets changed since the last value [B, H·K], piece by piece."""
        for rows in in_order(len(part), AT_ONCE):
            last = self.filled.windows(part[rows], 1)[:, :, self.at]
            yield part[rows], (self.targets_of(part[rows]) - last).transpose(0, 1).flatten(1)

    def _features(self, origins: Tensor) -> Tensor:
        """The windows and a constant, [B, T·n + 1] in float64."""
        return F.pad(self.filled.windows(origins, self.window).transpose(0, 1).flatten(1), (0, 1), value=1.0)

    def baseline(self) -> dict[str, float]:
        """The errors of `baselines` in the test part, measured as the model's are, but by one process alone."""
        scale, naive_error = self.scale[self.at].tolist(), self.naive_error.tolist()
        found: dict[str, Errors] = {}
        for rows in in_order(len(self.test), AT_ONCE) if self.has_test else ():
            origins = self.test[rows]
            for name, forecasts in self.baselines(origins).items():
                errors = found.setdefault(name, Errors(self.targets, scale, naive_error, sync_on_compute=False))
                errors.update(forecasts, self.targets_of(origins))
        return {
            f"baseline/{name}_{key}": float(value)
            for name, errors in found.items()
            for key, value in errors.compute().items()
        }


class Forecast(SequenceModule):
    """A recurrent layer reads a window; a linear head on its last output says how much will have changed since.

    To forecast the change since the last value makes a series of any level alike, and persistence the answer of a
    head that says nothing.

    Args:
        window: rows of input, T. This and all that follows the data tell.
        horizon: rows ahead, H.
        missing: what `following_rows` does with gaps, see `Filled`.
        columns: names of the input.
        targets: names of those that are forecast.
        date: name of the column of dates; with `columns`, what `read_csv` needs to read a file again.
        center: what was subtracted from each column.
        scale: what it was divided by then.
        naive_error: of each target, see `Errors`.
        base: see `SequenceModule`.
    """

    told = ("window", "horizon", "missing", "columns", "targets", "center", "scale", "naive_error")

    def __init__(
        self,
        window: PositiveInt | None = None,
        horizon: PositiveInt | None = None,
        missing: Missing | None = None,
        columns: list[str] | None = None,
        targets: list[str] | None = None,
        date: str | None = None,
        center: list[float] | None = None,
        scale: list[float] | None = None,
        naive_error: list[float] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.start()

    def build(self) -> None:
        columns, targets, scale = (self.hparams[key] for key in ("columns", "targets", "scale"))
        self.at = [columns.index(name) for name in targets]
        self.layer = self.recurrent(len(columns))
        read = self.layer.output_size * (1 + self.layer.bidirectional)
        self.head = nn.Linear(read, self.hparams["horizon"] * len(targets))
        errors = Errors(targets, [scale[column] for column in self.at], self.hparams["naive_error"])
        self.add_metrics(errors=errors)

    def forward(self, x: Tensor) -> Tensor:
        """Windows x [T, B, n] to forecasts [H, B, K]."""
        output, _ = self.layer(x.to(self.head.weight.dtype))
        read = output[-1]
        if self.layer.bidirectional:  # the backward direction has read all of the window at its first row
            read = torch.cat([read, output[0]], -1)
        change = self.single(self.head(read)).unflatten(1, (self.hparams["horizon"], -1))  # [B, H, K]
        return x[-1:, :, self.at] + change.transpose(0, 1)

    def score(self, batch: Batch) -> tuple[Tensor, int, Tensor, Tensor]:
        """Mean square error over the known targets; also forecasts and truth [H, B, K]."""
        forecasts = self(batch.x)
        known = ~batch.y.isnan()
        return F.mse_loss(forecasts[known], batch.y[known]), int(known.sum()), forecasts, batch.y

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, Windows):
            self.draw("forecast", lambda: _figure(data, lambda x: self(x.to(self.device)).cpu()))

    @verb
    def forecast(self, data: Path, plot: str = "forecast.png") -> None:
        """The rows that follow those of a CSV file, as CSV and in a picture behind the file's last rows.

        Args:
            data: a CSV file with the columns that the run was trained on.
            plot: the picture's file.

        Raises `UserError` for a file that lacks a column or rows of the run's, or holds what is no number.
        """
        targets = self.hparams["targets"]
        series = read_csv(str(data), self.hparams["date"], self.hparams["columns"], source=str(data))
        try:
            rows = self.following_rows(series.values).tolist()
        except UserError as error:
            raise UserError(f"{data}: {error}") from None
        dates = following(series.dates, len(rows))
        time: list[Any] = [*series.dates, *dates] if dates else [*range(1, len(series.values) + len(rows) + 1)]
        figure = Figure(figsize=(10, 3 * len(targets)), layout="constrained")
        shown = slice(max(len(series.values) - max(DRAWN_ROWS, 3 * len(rows)), 0), len(series.values))
        for k, (name, axes) in enumerate(zip(targets, figure.subplots(len(targets), squeeze=False)[:, 0])):
            before = series.values[shown, self.at[k]]
            axes.plot(time[shown], before, color="0.6", linewidth=2, label=data.name)
            axes.plot(time[-len(rows) :], [row[k] for row in rows], ".-", color="C3", label="forecast")
            axes.set(ylabel=name)
            axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
        with writing(Path(plot)) as partial:
            figure.savefig(partial, dpi=120, format="png")
        print(f"written: {plot}", file=sys.stderr)
        clock = all(date == date.replace(hour=0, minute=0, second=0, microsecond=0) for date in dates)
        written = csv.writer(sys.stdout, lineterminator="\n")
        written.writerow([series.date or "row", *targets])
        for moment, row in zip(time[-len(rows) :], rows):
            written.writerow([f"{moment:%Y-%m-%d}" if dates and clock else moment, *(f"{v:.6g}" for v in row)])

    @torch.no_grad()
    def following_rows(self, values: Tensor) -> Tensor:
        """The next H rows of the targets [H, K], from at least T rows of the columns [N, n], in the data's units.

        Raises `UserError` for fewer rows or other columns, and for gaps unless `missing` says how they are filled.
        """
        window, columns = self.hparams["window"], self.hparams["columns"]
        if values.dim() != 2 or len(values) < window or values.shape[1] != len(columns):
            raise UserError(
                f"a forecast needs at least {window} rows of {', '.join(columns)}, not values of shape "
                f"{list(values.shape)}"
            )
        center, scale = (torch.tensor(self.hparams[name], dtype=torch.float64) for name in ("center", "scale"))
        filled = Filled((values.double() - center) / scale, self.hparams["missing"], "values", columns)
        x = filled.windows(torch.tensor([len(values)]), window)  # [T, 1, n]
        training = self.training
        self.eval()
        scaled = self(x.float().to(self.device))[:, 0].double().cpu()
        self.train(training)
        return scaled * scale[self.at] + center[self.at]


def _figure(data: Windows, model: Callable[[Tensor], Tensor]) -> Figure:
    """The end of the test part with forecasts that follow each other, and the mean error by rows ahead."""
    pieces = [data.test[rows] for rows in in_order(len(data.test), AT_ONCE)]
    target = torch.cat([data.targets_of(piece) for piece in pieces], 1)
    of_model = torch.cat([model(data.windows_at(piece).x) for piece in pieces], 1)
    of_others = [data.baselines(piece) for piece in pieces]
    errors = {
        name: (torch.cat([found[name] for found in of_others], 1) - target).abs().nanmean(1) for name in of_others[0]
    } | {"model": (of_model - target).abs().nanmean(1)}  # [H, K] each

    rows = len(data.y)
    first = max(int(data.test[0]), rows - DRAWN_ROWS)
    origins = torch.arange(rows - data.horizon, first - 1, -data.horizon).flip(0)
    forecasts = model(data.windows_at(origins).x)  # [H, B, K]
    time: Any = data.series.dates or range(rows)
    scale, center = data.scale[data.at], data.center[data.at]
    targets = data.targets[:DRAWN_TARGETS]
    figure = Figure(figsize=(12, 3.2 * len(targets)), layout="constrained")
    for k, (name, (left, right)) in enumerate(
        zip(targets, figure.subplots(len(targets), 2, width_ratios=(3, 1), squeeze=False))
    ):
        shown = slice(int(origins[0]), rows)
        left.plot(time[shown], data.series.values[shown, data.at[k]], color="0.6", linewidth=3, label="truth")
        for b, origin in enumerate(origins.tolist()):
            label = f"forecasts of {data.horizon} rows" if b == 0 else None
            values = forecasts[:, b, k] * scale[k] + center[k]
            left.plot(time[origin : origin + data.horizon], values, ".-", color="C3", linewidth=1.5, label=label)
        left.set(ylabel=name)
        left.set_title("the end of the test part", loc="left")
        left.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
        for baseline, error in errors.items():
            style = {"color": "C3", "linewidth": 2.5} if baseline == "model" else {}
            right.plot(range(1, data.horizon + 1), error[:, k] * scale[k], ".-", label=baseline, **style)
        right.set(xlabel="rows ahead", ylabel="mean absolute error", title="the whole test part")
        right.xaxis.get_major_locator().set_params(integer=True)
        right.legend(frameon=False)
    return figure
