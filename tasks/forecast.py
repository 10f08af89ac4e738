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
from pydantic import PositiveInt
from torch import Tensor, nn

from rnnzoo import UserError
from rnnzoo.files import refuse_as_file, writing
from rnnzoo.lightning.arguments import Fraction
from rnnzoo.lightning.data import in_order
from rnnzoo.lightning.module import SequenceModule
from rnnzoo.lightning.verbs import verb
from rnnzoo.plain import csv_cell, printable
from rnnzoo.play import views

from .backtest import all_rolled, write_errors
from .calendars import following, written
from .forecast_errors import Errors, QuantileErrors
from .forecast_plots import Continued, of_file, of_test, shown_rows
from .further_files import named, read_further
from .gaps import Filled, Missing, without_end
from .linear import answered, relative
from .numerals import Decimal
from .quantiles import check, median_first, middle, opening, ordered, pinball
from .segments import Segments
from .windows import AT_ONCE, Batch, Windows, thinned

PICTURES = ("png", "pdf", "svg")
"""What a forecast's picture may be, by its name."""


class Forecast(SequenceModule):
    """A recurrent layer reads a window; a linear head on its last output says how much will have changed since.

    To forecast the change since the last value makes a series of any level alike. All rows at once are forecast by a
    linear autoregression that is fitted before training; what it leaves over is what the layer learns, which reads the
    window relative to its last row and begins by saying nothing.

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
        id: name of the column that says which series a row is of.
        known: names of those columns whose rows ahead are known. The head reads them beside the layer's output.
        strategy: to forecast all rows at once (direct), or one row, which is then read as if it had come true, and so
            on (recursive); the latter forecasts all that it reads. Or segment by segment, see `Segments`.
        linear: whether the layer is to learn what a linear autoregression leaves over, where strategy is direct.
        segment: rows of a segment.
        dropout: of the layer's outputs before the head.
        loss: mean square error (mse) or mean absolute error (mae).
        quantiles: to forecast these, by the pinball loss; the median is the forecast then. None for one value.
        base: see `SequenceModule`.
    """

    autoregression: Tensor

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
        id: str | None = None,
        known: list[str] | None = None,
        strategy: Literal["direct", "recursive", "segments"] = "direct",
        linear: bool = True,
        segment: PositiveInt = 24,
        dropout: Fraction = 0.5,
        loss: Literal["mse", "mae"] = "mse",
        quantiles: list[float] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.start()

    def build(self) -> None:
        columns, targets, scale = (self.hparams[key] for key in ("columns", "targets", "scale"))
        known, strategy, horizon = self.hparams["known"] or [], self.hparams["strategy"], self.hparams["horizon"]
        self.at, self.known = ([columns.index(name) for name in names] for names in (targets, known))
        self.recursive = strategy == "recursive"
        if self.recursive and targets != [name for name in columns if name not in known]:
            raise UserError(
                f"task.strategy=recursive: forecasts are read as the next input, so that task.targets must be all "
                f"columns{' that are not known ahead' * bool(known)}, {', '.join(n for n in columns if n not in known)}"
            )
        self.quantiles: list[float] = self.hparams["quantiles"] or []
        if self.quantiles:
            check(self.quantiles)
            if self.recursive:
                raise UserError(
                    "task.quantiles: a recursive forecast reads its median as if it had come true, which says nothing "
                    "of how far it may be off; choose task.strategy=direct or segments"
                )
        self.median = middle(self.quantiles) if self.quantiles else 0
        answers = max(len(self.quantiles), 1)
        self.segments: Segments | None = None
        self.after_linear = strategy == "direct" and self.hparams["linear"]
        if strategy == "segments":
            if known:
                raise UserError("task.known: task.strategy=segments reads no rows ahead; choose direct or recursive")
            rows, dropout = self.hparams["segment"], self.hparams["dropout"]
            layer = self.recurrent(self.features, "task.strategy=segments goes on from the state after the window")
            self.segments = Segments(layer, len(columns), self.hparams["window"], horizon, rows, dropout, answers)
        else:
            self.layer = self.recurrent(len(columns), "task.strategy=recursive reads on" if self.recursive else "")
            at_once = 1 if self.recursive else horizon
            read = self.layer.output_size * (1 + self.layer.bidirectional) + at_once * len(known)
            ridge = self.hparams["optimizer"]["name"] == "ridge"  # which is to see all that the head will
            self.dropout = nn.Dropout(0.0 if ridge else self.hparams["dropout"])
            self.head = nn.Linear(read, at_once * len(targets) * answers)
        if self.after_linear:
            for parameter in self.head.parameters():
                nn.init.zeros_(parameter)
            features = self.hparams["window"] * len(columns) + horizon * len(known)
            self.register_buffer("autoregression", torch.zeros(features + 1, horizon * len(targets)))
        of_errors = targets, [scale[column] for column in self.at], self.hparams["naive_error"]
        self.add_metrics(errors=QuantileErrors(self.quantiles, *of_errors) if self.quantiles else Errors(*of_errors))

    @classmethod
    def renewed(cls, checkpoint: Any) -> dict[str, Any]:
        return {"linear": False, **super().renewed(checkpoint)}  # which earlier runs had not

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if stage != "fit" or not isinstance(data, Windows):
            return
        if self.after_linear and not self.autoregression.any():
            self.autoregression.copy_(data.linear)
            if self.quantiles:  # begin as far apart as what the autoregression leaves over is
                self.head.bias.data = opening(self.left_over(data), self.quantiles).flatten().to(self.head.bias)
        if self.segments is not None and self.quantiles:
            self.segments.open(self.left_over(data), self.quantiles)

    @property
    def features(self) -> int:
        """Of a segment's embedding: as many as the layer has units."""
        sizes = self._own[0].hidden_size if self._own else self.hparams["model"]["hidden_size"]
        return int(sizes[0] if isinstance(sizes, (list, tuple)) else sizes)

    def forward(self, x: Tensor, ahead: Tensor | None = None) -> Tensor:
        """Windows x [T, B, n], and the columns known ahead [H, B, m], to forecasts [H, B, K], or [H, B, K, Q]."""
        if ahead is None:
            if self.known:
                raise UserError(f"what is known ahead, {', '.join(self.hparams['known'])}, has to be given")
            ahead = x.new_zeros(self.hparams["horizon"], x.shape[1], 0)
        if self.segments is not None:
            last, change = x[-1:], self.single(self.segments(x))  # [H, B, n, Q]
            return self.answer(last[:, :, self.at], change[:, :, self.at])
        if not self.recursive:
            change = self.single(self.head(self.read(x, ahead)[0]))
            change = change.unflatten(1, (self.hparams["horizon"], len(self.at), -1)).transpose(0, 1)  # [H, B, K, Q]
            return self.answer(self.before_layer(x, ahead), change)
        last, rows = x[-1], list[Tensor]()
        read, state = self.read(x, ahead[:1])
        order = sorted(range(x.shape[2]), key=[*self.at, *self.known].__getitem__)
        while True:
            rows.append(last[:, self.at] + self.single(self.head(read)))
            if len(rows) == self.hparams["horizon"]:
                return torch.stack(rows)
            last = torch.cat([rows[-1], ahead[len(rows) - 1].to(rows[-1].dtype)], 1)[:, order]
            output, state = self.layer.step(last.to(read.dtype), state)
            read = torch.cat([self.dropout(output), ahead[len(rows)].to(output.dtype)], 1)

    def answer(self, base: Tensor, change: Tensor) -> Tensor:
        """Forecasts [H, B, K] or [H, B, K, Q], from what the head said, [H, B, K, Q], and what that is added to."""
        if not self.quantiles:
            return base + change[..., 0]
        return base[..., None] + ordered(change, self.median)

    def before_layer(self, x: Tensor, ahead: Tensor) -> Tensor:
        """What is forecast without the layer, [H, B, K] or [1, B, K]: by the autoregression, or the last value."""
        last = x[-1:, :, self.at]
        if not self.after_linear:
            return last
        window = self.hparams["window"]
        place = torch.arange(window, device=x.device) + (x.shape[0] - window)
        rows = x[place.clamp(min=0)]  # before a window that is too short it was as in its first row
        weights = self.autoregression.to(torch.promote_types(x.dtype, self.autoregression.dtype))
        change = answered(relative(rows, ahead, self.known).to(weights), weights)
        return last + change.unflatten(1, (self.hparams["horizon"], -1)).transpose(0, 1)

    def left_over(self, data: Windows) -> Tensor:
        """What is forecast without the layer is off by this in some windows of the training part, [B, H, K]."""
        x, y, ahead = data.windows_at(thinned(data.train, AT_ONCE))
        return (y - self.before_layer(x, ahead)).transpose(0, 1)

    def read(self, x: Tensor, ahead: Tensor) -> tuple[Tensor, Any]:
        """What the head reads of windows x [T, B, n] and rows ahead, [B, F], and the layer's state after the former."""
        if self.after_linear:
            moving = x.new_ones(x.shape[2])
            moving[self.known] = 0.0  # what is known ahead speaks by its level
            x = x - x[-1:] * moving
        output, state = self.layer(x.to(self.head.weight.dtype))
        read = output[-1]
        if self.layer.bidirectional:  # the backward direction has read all of the window at its first row
            read = torch.cat([output[-1], output[0]], -1)
        return torch.cat([self.dropout(read), ahead.transpose(0, 1).flatten(1).to(read.dtype)], 1), state

    @torch.no_grad()
    def regression(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features and changes of those windows whose targets are all known."""
        if self.segments is not None:
            raise UserError("optimizer=ridge: task.strategy=segments has more to learn than a head; choose direct")
        if self.quantiles:
            raise UserError("optimizer=ridge: least squares lead to means; leave out task.quantiles")
        ahead, rows = (batch.ahead[:1], batch.y[:1]) if self.recursive else (batch.ahead, batch.y)
        read, _ = self.read(batch.x, ahead)
        change = (rows - self.before_layer(batch.x, batch.ahead)).transpose(0, 1).flatten(1)  # [B, H·K], or [B, K]
        known = ~change.isnan().any(1)
        return read[known], change[known].to(read.dtype)

    def view(self, data: Callable[[], Any]) -> views.Series:
        """Begins with the last window whose future is known, or if the data are not there, with a wave.

        What is known ahead is what followed that window.
        """
        columns, targets, window = (self.hparams[key] for key in ("columns", "targets", "window"))
        center, scale = (torch.tensor(self.hparams[key], dtype=torch.float64) for key in ("center", "scale"))
        wave = torch.sin(torch.arange(window + self.hparams["horizon"], dtype=torch.float64) * 2 * torch.pi / 24)
        rows = center + scale * wave[:, None]
        with suppress(UserError):
            known = data().series.values[-len(rows) :]
            rows = known if len(known) == len(rows) and bool(known.isfinite().all()) else rows
        ahead = rows[window:]

        def onwards(module: Forecast, rows: Tensor) -> Tensor:
            return module.following(rows, ahead[:, module.known])[..., median_first(module.quantiles)]

        truth = ahead[:, self.at].tolist()
        return views.Series(columns, rows[:window].tolist(), onwards, truth, targets, window, window)

    def score(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The loss over the known targets; also forecasts [H, B, K], or [H, B, K, Q], and truth [H, B, K]."""
        forecasts = self(batch.x, batch.ahead)
        known = ~batch.y.isnan()
        points = forecasts[..., self.median] if self.quantiles else forecasts
        # what is unknown is made right and not left out: for its number a GPU would be waited for
        truth, count = torch.where(known, batch.y, points.detach()), known.sum()
        if self.quantiles:
            error = pinball(forecasts, truth, forecasts.new_tensor(self.quantiles)).mean(-1).where(known, 0).sum()
        else:
            error = (F.mse_loss if self.hparams["loss"] == "mse" else F.l1_loss)(points, truth, reduction="sum")
        return error / count, count, forecasts, batch.y

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, Windows):
            median = self.median if self.quantiles else None

            def model(batch: Batch) -> Tensor:
                return self(batch.x.to(self.device), batch.ahead.to(self.device)).cpu()

            self.draw("forecast", lambda: of_test(data, model, median))

    @verb
    def forecast(self, data: Path, plot: str = "forecast.png") -> None:
        """The rows that follow those of a CSV file, as CSV and in a picture behind the file's last rows.

        Args:
            data: a CSV file with the columns that the run was trained on.
            plot: the picture's file, a PNG, or a PDF or SVG by its name.

        What is known ahead stands in the file's rows after the last known target. Raises `UserError` for a file that
        lacks a column or rows of the run's, or holds what is no number.
        """
        kind = Path(plot).suffix.lower().removeprefix(".") or "png"
        if kind not in PICTURES:
            raise UserError(f"--plot {plot}: a picture's name ends in {' or '.join(f'.{each}' for each in PICTURES)}")
        refuse_as_file("--plot", Path(plot))
        targets, horizon = self.hparams["targets"], self.hparams["horizon"]
        found: dict[str, Continued] = {}
        for id, series in read_further(data, self.hparams).items():
            before = without_end(series, self.at) if self.known else series
            rows = len(before.values)
            try:
                forecasts = self.following(before.values, series.values[rows : rows + horizon, self.known])
            except UserError as error:
                raise UserError(f"{named(data, self.hparams['id'], id)}: {error}") from None
            dates = following(before.dates, horizon, self.hparams["rhythm"])
            shown = slice(max(rows - shown_rows(horizon), 0), rows)
            numbers = [*range(shown.start + 1, rows + horizon + 1)]
            time: list[Any] = [*before.dates[shown].tolist(), *dates] if dates else numbers
            found[id] = Continued(id or data.name, before.values[shown, self.at], forecasts, time)
        figure = of_file([*found.values()], targets, self.median)
        with writing(Path(plot)) as partial:
            figure.savefig(partial, dpi=120, format=kind)
        print(printable(f"written: {plot}"), file=sys.stderr)
        kept = median_first(self.quantiles)
        names = [name + (f"_{self.quantiles[k]:g}" if k != self.median else "") for name in targets for k in kept]
        head = [self.hparams["id"]] if self.hparams["id"] else []
        lines = csv.writer(sys.stdout, lineterminator="\n")
        lines.writerow([csv_cell(name) for name in (*head, self.hparams["date"] or "row", *names)])
        moments = iter(written([moment for each in found.values() for moment in each.time[-horizon:]]))
        for id, each in found.items():
            for row in each.rows[:, :, kept].flatten(1).tolist():
                lines.writerow([*([csv_cell(id)] if head else []), next(moments), *(f"{v:.6g}" for v in row)])

    @verb
    def backtest(self, data: Path, by: str = "lead", share: float = 0.2) -> None:
        """Errors of forecasts from every row of a CSV file's end, as CSV; the model stays as it is.

        Args:
            data: a CSV file with the columns that the run was trained on.
            by: lead for a line for each number of rows ahead, origin for one for each first row of a forecast.
            share: how much of each series, at its end, is forecast.

        Beside the mean absolute error, the root mean square error and the mean error stands the mean absolute error of
        the last value. Raises `UserError` as `forecast` does, and where there is no row to forecast.
        """
        if by not in ("lead", "origin"):
            raise UserError(f"--by {by}: must be lead or origin")
        if not 0 < share <= 1:
            raise UserError(f"--share {share:g}: must be more than 0 and at most 1")
        found = all_rolled(self, read_further(data, self.hparams), share, data)
        head = [self.hparams["id"]] if self.hparams["id"] else [], self.hparams["date"] or "row"
        write_errors(sys.stdout, by, found, head, self.hparams["targets"], self.quantiles)

    def following_rows(self, values: Tensor, ahead: Tensor | None = None) -> Tensor:
        """The next H rows of the targets [H, K], from at least T rows of the columns [N, n], in the data's units.

        `ahead` is what is known of those rows, [H, m]. Raises `UserError` for fewer rows or other columns, and for gaps
        unless `missing` says how they are filled.
        """
        return self.following(values, ahead)[:, :, self.median]

    def following(self, values: Tensor, ahead: Tensor | None = None) -> Tensor:
        """The same with all quantiles, [H, K, Q]; Q is 1 without them."""
        window, horizon, columns = (self.hparams[key] for key in ("window", "horizon", "columns"))
        if values.dim() != 2 or len(values) < window or values.shape[1] != len(columns):
            raise UserError(
                f"a forecast needs at least {window} rows of {', '.join(columns)}, and here are "
                f"{' × '.join(map(str, values.shape))}"
            )
        if not self.known:
            ahead = values.new_zeros(horizon, 0)
        if ahead is None or len(ahead) < horizon or bool(ahead.isnan().any()):
            raise UserError(
                f"a forecast needs {horizon} rows of {', '.join(self.hparams['known'])}, which are known ahead, after "
                f"the last row of {', '.join(self.hparams['targets'])}"
            )
        return self.at_origins(values, torch.tensor([len(values)]), ahead[:, None])[:, 0]

    @torch.no_grad()
    def at_origins(self, values: Tensor, origins: Tensor, ahead: Tensor) -> Tensor:
        """Forecasts [H, B, K, Q] from the windows of values [N, n] before the rows `origins` [B], in the data's units.

        `ahead` [H, B, m] is what is known of the rows from there on.
        """
        center, scale = (torch.tensor(self.hparams[name], dtype=torch.float64) for name in ("center", "scale"))
        missing, columns = self.hparams["missing"], self.hparams["columns"]
        filled = Filled(values.double(), missing, "", columns).scaled(center, scale)
        ahead = (ahead.double() - center[self.known]) / scale[self.known]
        training, _ = self.training, self.eval()
        pieces = [
            self(filled.windows(origins[rows], self.hparams["window"]).float().to(self.device),
                 ahead[:, rows].float().to(self.device)).cpu().double()
            for rows in in_order(len(origins), AT_ONCE)
        ]  # fmt: skip
        self.train(training)
        found = torch.cat(pieces, 1)
        found = found if self.quantiles else found[..., None]
        return found * scale[self.at, None] + center[self.at, None]
