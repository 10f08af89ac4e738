"""Forecasting: from the last rows of a series of numbers to the next ones, beside what simple methods forecast.

Windows of T rows over n columns make data of shape [M, T, n], gathered batch by batch. All but the metrics is in
scaled units.

Shapes: N rows, M windows, T rows of a window (τ), n columns, H rows ahead (the horizon), K targets, B batch.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from pydantic import PositiveInt
from torch import Tensor, nn

from rnnzoo import UserError
from rnnzoo.files import refuse_missing_parent, writing
from rnnzoo.lightning.arguments import Fraction
from rnnzoo.lightning.data import in_order
from rnnzoo.lightning.figures import count_along, drawn
from rnnzoo.lightning.module import SequenceModule
from rnnzoo.lightning.verbs import verb
from rnnzoo.plain import csv_cell, printable
from rnnzoo.play import views

from .calendars import calendar_of, following
from .numerals import Decimal
from .segments import Segments
from .series import Errors, Filled, Missing, completed, read_csv
from .windows import AT_ONCE, Batch, Windows

DRAWN_ROWS, DRAWN_TARGETS = 150, 6
"""What a plot has room for, from the end of the test part."""


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
        date: name of the column of dates; with `columns` and what follows below, what `read_csv` needs for a file.
        center: what was subtracted from each column.
        scale: what it was divided by then.
        naive_error: of each target, see `Errors`.
        day_first: whether dates begin with the day.
        decimal: what stands before a number's fraction.
        rhythm: of the dates, see `calendar_of`.
        strategy: to forecast all rows at once (direct), or one row, which is then read as if it had come true, and so
            on (recursive); the latter forecasts all that it reads. Or segment by segment, see `Segments`.
        segment: rows of a segment.
        dropout: of the layer's outputs before the head, in segments.
        loss: mean square error (mse) or mean absolute error (mae).
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
        day_first: bool | None = None,
        decimal: Decimal | None = None,
        rhythm: list[Any] | None = None,
        strategy: Literal["direct", "recursive", "segments"] = "direct",
        segment: PositiveInt = 24,
        dropout: Fraction = 0.0,
        loss: Literal["mse", "mae"] = "mse",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.start()

    def build(self) -> None:
        columns, targets, scale = (self.hparams[key] for key in ("columns", "targets", "scale"))
        self.at = [columns.index(name) for name in targets]
        self.recursive = self.hparams["strategy"] == "recursive"
        if self.recursive and targets != columns:
            raise UserError(
                f"task.strategy=recursive: forecasts are read as the next input, so that task.targets must be all "
                f"columns, {', '.join(columns)}"
            )
        if self.hparams["strategy"] == "segments":
            rows, dropout = self.hparams["segment"], self.hparams["dropout"]
            layer = self.recurrent(self.features, "task.strategy=segments goes on from the state after the window")
            sizes = self.hparams["window"], self.hparams["horizon"]
            self.segments: Segments | None = Segments(layer, len(columns), *sizes, rows, dropout)
        else:
            self.segments = None
            self.layer = self.recurrent(len(columns), "task.strategy=recursive reads on" if self.recursive else "")
            read = self.layer.output_size * (1 + self.layer.bidirectional)
            self.head = nn.Linear(read, (1 if self.recursive else self.hparams["horizon"]) * len(targets))
        errors = Errors(targets, [scale[column] for column in self.at], self.hparams["naive_error"])
        self.add_metrics(errors=errors)

    @property
    def features(self) -> int:
        """Of a segment's embedding: as many as the layer has units."""
        sizes = self._own[0].hidden_size if self._own else self.hparams["model"]["hidden_size"]
        return int(sizes[0] if isinstance(sizes, (list, tuple)) else sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Windows x [T, B, n] to forecasts [H, B, K]."""
        if self.segments is not None:
            return self.single(self.segments(x))[:, :, self.at]
        read, state = self.read(x)
        if not self.recursive:
            change = self.single(self.head(read)).unflatten(1, (self.hparams["horizon"], -1))  # [B, H, K]
            return x[-1:, :, self.at] + change.transpose(0, 1)
        rows = [x[-1] + self.single(self.head(read))]
        while len(rows) < self.hparams["horizon"]:
            read, state = self.layer.step(rows[-1].to(read.dtype), state)
            rows.append(rows[-1] + self.single(self.head(read)))
        return torch.stack(rows)

    def read(self, x: Tensor) -> tuple[Tensor, Any]:
        """What the head reads of windows x [T, B, n], [B, F], and the layer's state after them."""
        output, state = self.layer(x.to(self.head.weight.dtype))
        if self.layer.bidirectional:  # the backward direction has read all of the window at its first row
            return torch.cat([output[-1], output[0]], -1), state
        return output[-1], state

    @torch.no_grad()
    def regression(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features and changes of those windows whose targets are all known."""
        if self.segments is not None:
            raise UserError("optimizer=ridge: task.strategy=segments has more to learn than a head; choose direct")
        read, _ = self.read(batch.x)
        rows = batch.y[:1] if self.recursive else batch.y
        change = (rows - batch.x[-1:, :, self.at]).transpose(0, 1).flatten(1)  # [B, H·K], or [B, K]
        known = ~change.isnan().any(1)
        return read[known], change[known].to(read.dtype)

    def view(self, data: Callable[[], Any]) -> views.Series:
        """Begins with the last window whose future is known, or if the data are not there, with a wave."""
        columns, targets, window = (self.hparams[key] for key in ("columns", "targets", "window"))
        center, scale = (torch.tensor(self.hparams[key], dtype=torch.float64) for key in ("center", "scale"))
        wave = torch.sin(torch.arange(window + self.hparams["horizon"], dtype=torch.float64) * 2 * torch.pi / 24)
        rows = center + scale * wave[:, None]
        with suppress(UserError):
            known = data().series.values[-len(rows) :]
            rows = known if len(known) == len(rows) and bool(known.isfinite().all()) else rows
        ahead = rows[window:, self.at].tolist()
        return views.Series(columns, rows[:window].tolist(), Forecast.following_rows, ahead, targets, window, window)

    def score(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The loss over the known targets; also forecasts and truth [H, B, K]."""
        forecasts = self(batch.x)
        known = ~batch.y.isnan()
        # what is unknown is made right and not left out: for its number a GPU would be waited for
        truth, count = torch.where(known, batch.y, forecasts.detach()), known.sum()
        loss = F.mse_loss if self.hparams["loss"] == "mse" else F.l1_loss
        return loss(forecasts, truth, reduction="sum") / count, count, forecasts, batch.y

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
        form = {key: self.hparams[key] for key in ("date", "columns", "day_first", "decimal")}
        series = read_csv(str(data), source=str(data), **form)
        rhythm = self.hparams["rhythm"]
        series = completed(series, calendar_of(series.dates, rhythm), self.hparams["missing"], str(data))
        try:
            rows = self.following_rows(series.values).tolist()
        except UserError as error:
            raise UserError(f"{data}: {error}") from None
        dates = following(series.dates, len(rows), rhythm)
        time: list[Any] = [*series.dates, *dates] if dates else [*range(1, len(series.values) + len(rows) + 1)]
        figure = Figure(figsize=(10, 3 * len(targets)), layout="constrained")
        shown = slice(max(len(series.values) - max(DRAWN_ROWS, 3 * len(rows)), 0), len(series.values))
        for k, (name, axes) in enumerate(zip(targets, figure.subplots(len(targets), squeeze=False)[:, 0])):
            before = series.values[shown, self.at[k]]
            axes.plot(time[shown], before, color="0.6", linewidth=2, label=drawn(data.name))
            axes.plot(time[-len(rows) :], [row[k] for row in rows], ".-", color="C3", label="forecast")
            axes.set(ylabel=drawn(name))
            axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
        refuse_missing_parent("--plot", Path(plot))
        with writing(Path(plot)) as partial:
            figure.savefig(partial, dpi=120, format="png")
        print(printable(f"written: {plot}"), file=sys.stderr)
        clock = all(date == date.replace(hour=0, minute=0, second=0, microsecond=0) for date in dates)
        written = csv.writer(sys.stdout, lineterminator="\n")
        written.writerow([csv_cell(name) for name in (series.date or "row", *targets)])
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
        scaled = self(x.float().to(self.device))[:, 0].cpu().double()
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
    first = max(int(data.test[0]), rows - max(DRAWN_ROWS, data.horizon))  # one forecast at least
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
        left.set(ylabel=drawn(name))
        left.set_title("the end of the test part", loc="left")
        left.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
        for baseline, error in errors.items():
            style = {"color": "C3", "linewidth": 2.5} if baseline == "model" else {}
            right.plot(range(1, data.horizon + 1), error[:, k] * scale[k], ".-", label=baseline, **style)
        right.set(xlabel="rows ahead", ylabel="mean absolute error", title="the whole test part")
        count_along(right)
        right.legend(frameon=False)
    return figure
