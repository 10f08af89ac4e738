"""Windows of a series, in parts that follow each other in time, and what simple methods forecast in them.

Windows of T rows over n columns make data of shape [M, T, n], gathered batch by batch, in scaled units.

Shapes: N rows, M windows, T rows of a window (τ), n columns, H rows ahead (the horizon), K targets, B batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor

from rnnzoo import UserError
from rnnzoo.errors import nearest
from rnnzoo.lightning.arguments import Fraction, Portion
from rnnzoo.lightning.data import SequenceData, in_order, parts_of
from rnnzoo.plain import printable

from .calendars import Rhythm, calendar_of
from .numerals import Decimal
from .series import TURN, Errors, Filled, Missing, Scaling, center_and_scale, completed, mackey_glass, read_csv

AT_ONCE = 1024
"""Windows evaluated at once."""

PENALTIES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the linear autoregression, as shares of its features' mean square."""


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
        columns: those read, the input; None for all but the dates and what only counts the rows.
        targets: those of them that are forecast; None for all.
        window: rows of input, T.
        horizon: rows ahead that are forecast, H.
        stride: rows from a window to the next one.
        missing: refuse gaps and missing rows, or fill those of the input, see `Filled`.
        scaling: to mean 0 and deviation 1, or to [0, 1], over the training part; or none.
        season: rows of a season, for seasonal persistence and MASE; None for that of the dates, see `calendar_of`.
        val_fraction: the share of the rows held out for validation, before the test's at the end.
        test_fraction: the share of the rows at the end held out for the test; 0 for none.
        split: by these fractions, or as the literature on the ETT series has it (ett): months of 30 days, 12 to train
            on, then 4 for validation and 4 for the test; what follows is left out.
        batch_size: windows in a batch.
        seed: of the order.
        day_first: whether dates begin with the day, where they can with the month; None to find it.
        decimal: what stands before a number's fraction, in a file where that is not plain; None to find it.
        rows: of the series that is made on the spot; None for 2000.
        every: units of time from one of them to the next; None for 3.
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
        val_fraction: Portion = 0.1,
        test_fraction: Fraction = 0.2,
        batch_size: PositiveInt = 32,
        seed: int = 1,
        day_first: bool | None = None,
        decimal: Decimal | None = None,
        rows: PositiveInt | None = None,
        every: PositiveInt | None = None,
        split: Literal["fractions", "ett"] = "fractions",
    ) -> None:
        super().__init__()
        self.day_first, self.decimal = day_first, decimal
        self.batch_size, self.seed, self.window, self.horizon, self.stride = batch_size, seed, window, horizon, stride
        self.chosen = data, date, columns, targets
        self.missing, self.scaling, self.given_season = missing, scaling, season
        self.fractions, self.split = (val_fraction, test_fraction), split
        if data is None and (date, columns) != (None, None):
            raise UserError("task.date and task.columns choose from a file; give one with task.data=FILE")
        if data is not None and (rows, every) != (None, None):
            raise UserError("task.rows and task.every are of the series made on the spot, with task.data=null")
        self.made = {"rows": rows or 2000, "every": every or 3}

    def read(self) -> None:
        data, date, columns, targets = self.chosen
        window, horizon = self.window, self.horizon
        source = f"task.data={data or 'null'}"
        self.rhythm: Rhythm | None = None
        self.season = self.given_season or 1
        if data is None:
            self.season = self.given_season or round(TURN / self.made["every"])
            self.series, rhythm = mackey_glass(**self.made), ""
        else:
            read = read_csv(data, date, columns, targets=targets, day_first=self.day_first, decimal=self.decimal)
            calendar = calendar_of(read.dates)
            self.rhythm = calendar.rhythm if calendar else None
            if calendar is None and len(read.dates) > 1 and self.given_season is None:
                raise UserError(
                    f"{source}: the dates of {read.date!r} come in no rhythm of months, days or hours; say with "
                    f"task.season=ROWS, 1 for none, that each row is to follow the one before all the same"
                )
            self.series, rhythm = (
                completed(read, calendar, self.missing, source),
                f", {calendar.name}," if calendar else "",
            )
            self.season = self.given_season or (calendar.season if calendar else 1)
        values, names = self.series.values, self.series.columns
        self.targets = names if targets is None else targets
        for name in self.targets:
            if name not in names:
                raise UserError(f"task.targets: no column {name!r} is read; {nearest(name, names)}")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise UserError("task.targets: name at least one column, and each only once; null for all")
        self.at = [names.index(name) for name in self.targets]

        rows, held_out, tested = self._parts(len(values), source)
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
        for name, error, at in zip(self.targets, self.naive_error, self.at):
            known = values[:rows, at][~values[:rows, at].isnan()]
            if len(known) and (known == known[0]).all():
                others = ",".join(other for other in self.targets if other != name)
                raise UserError(
                    f"{source}: {name!r} is always {float(known[0]):g} in the training part, there is nothing to "
                    f"forecast; "
                    + (f"leave it out with task.targets=[{others}]" if others else "choose another column")
                )
            if not error > 0:
                raise UserError(
                    f"task.season={self.season}: in the training part, {name!r} is never known to differ from a season "
                    f"before, which leaves MASE without a scale; set another task.season"
                )
        ends = [0, rows, rows + held_out, rows + held_out + tested]
        self.train, self.val, self.test = (self._origins(*part) for part in pairwise(ends))
        self.has_test = self.fractions[1] > 0
        for name, part in (("train", self.train), ("validate", self.val), ("test", self.test)):
            if not len(part) and (name != "test" or self.has_test):
                raise UserError(
                    f"{source}: of {len(values)} rows, those to {name} on are too few for a horizon of {horizon}; "
                    f"lower it, or change task.val_fraction and task.test_fraction"
                )
        span = f" from {self.series.dates[0]:%Y-%m-%d} to {self.series.dates[-1]:%Y-%m-%d}" if self.series.dates else ""
        found = f"{len(values):,} rows of {', '.join(names)}{rhythm}{span}"
        print(printable(f"{source}: {found}; a season is {self.season} row{'s' * (self.season > 1)}"))

    def _parts(self, rows: int, source: str) -> tuple[int, int, int]:
        """Rows of the training, validation and test part."""
        if self.split == "fractions":
            return parts_of(rows, *self.fractions)
        dates = self.series.dates
        day = round(86400 / (dates[1] - dates[0]).total_seconds()) if len(dates) > 1 else 0
        if not day or 600 * day > rows:
            raise UserError(
                f"{source}: task.split=ett needs dates and 600 days, of which there are {rows // max(day, 1):,}; use "
                "task.split=fractions"
            )
        return 360 * day, 120 * day, 120 * day

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
            "day_first": self.series.day_first,
            "decimal": self.series.decimal,
            "rhythm": self.rhythm,
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
