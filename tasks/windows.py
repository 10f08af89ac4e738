"""Windows of one series or several, in parts that follow each other in time, and what simple methods forecast in them.

Windows of T rows over n columns make data of shape [M, T, n], gathered batch by batch, in scaled units.

Shapes: N rows, M windows, T rows of a window (τ), n columns, H rows ahead (the horizon), K targets, m columns known
ahead, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor

from rnnzoo import UserError
from rnnzoo.errors import nearest
from rnnzoo.lightning.arguments import Fraction, Portion
from rnnzoo.lightning.data import SequenceData, in_order, parts_of
from rnnzoo.plain import printable
from rnnzoo.progress import steps

from .blocks import Array, blocks, joined, together
from .calendars import Rhythm, calendar_of
from .forecast_errors import Errors
from .gaps import NEVER, Filled, Missing, Scaling, center_and_scale, completed, ends_of, in_blocks, mean_of, without_end
from .linear import answered, apart, decomposed, relative, ridge
from .numerals import Decimal
from .series import TURN, Series, mackey_glass
from .series_files import read_apart, read_csv

AT_ONCE = 1024
"""Windows evaluated at once."""

MANY = 100
"""Such pieces from which on it is shown how far they are."""

FITTED, TRIED = 1 << 17, 1 << 14
"""Windows that a linear method is fitted to at the most, and those by which its penalty is chosen."""


class Batch(NamedTuple):
    """Windows x [T, B, n] without gaps; what followed, y [H, B, K], NaN where it is not known; and what was known of
    that before, ahead [H, B, m]."""

    x: Tensor
    y: Tensor
    ahead: Tensor


class Windows(SequenceData):
    """Series split by time into training, validation and test part, and the windows in them.

    A window belongs to the part that all of its targets lie in; its input may reach back into the part before, but not
    into another series. Several series are each split by themselves, and share center and scale of their columns.
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
        id: the column that says which series a row is of; None for a file of one.
        known: columns whose rows ahead are known when a forecast is made, and are no targets. Rows at the end without
            any target are left out then.
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
        id: str | None = None,
        known: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.day_first, self.decimal = day_first, decimal
        self.batch_size, self.seed, self.window, self.horizon, self.stride = batch_size, seed, window, horizon, stride
        self.chosen, self.id, self.known_names = (data, date, columns, targets), id, known or []
        self.missing, self.scaling, self.given_season = missing, scaling, season
        self.fractions, self.split = (val_fraction, test_fraction), split
        if data is None:
            said = {"date": date, "columns": columns, "id": id, "day_first": day_first, "decimal": decimal}
            for key, value in said.items():
                if value is not None:
                    raise UserError(f"task.{key} is of a file; give one with task.data=FILE")
        if data is not None and (rows, every) != (None, None):
            raise UserError("task.rows and task.every are of the series made on the spot, with task.data=null")
        self.made = {"rows": rows or 2000, "every": every or 3}

    def read(self) -> None:
        data, *_, targets = self.chosen
        source = f"task.data={data or 'null'}"
        all_of_them = self._read_series(source)
        first = next(iter(all_of_them.values()))
        names = first.columns
        self.targets = [name for name in names if name not in self.known_names] if targets is None else targets
        for key, chosen in (("targets", self.targets), ("known", self.known_names)):
            for name in chosen:
                if name not in names:
                    raise UserError(f"task.{key}: no column {name!r} is read; {nearest(name, names)}")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise UserError("task.targets: name at least one column, and each only once; null for all")
        for name in self.known_names:
            if name in self.targets:
                raise UserError(f"task.known: {name!r} is a target, which is what is not known; leave it out of one")
        self.at, self.known = ([names.index(name) for name in chosen] for chosen in (self.targets, self.known_names))
        if self.known:
            all_of_them = {id: without_end(series, self.at) for id, series in all_of_them.items()}

        self.ids, every = [*all_of_them], [*all_of_them.values()]
        sources = [f"{source}: {self.id}={id}" if self.id else source for id in self.ids]
        parts = [self._parts(series, begin) for series, begin in zip(every, sources)]
        learned = [series.values[: rows[0]] for series, rows in zip(every, parts)]
        self.center, self.scale = center_and_scale(learned, self.scaling)
        filled = [Filled(series.values, self.missing, begin, names) for series, begin in zip(every, sources)]
        self.filled = Filled.joined([each.scaled(self.center, self.scale) for each in filled])
        changes = (
            (after - before)[:, self.at].abs()
            for values in learned
            for after, before in zip(in_blocks([values[self.season :]]), in_blocks([values[: -self.season]]))
        )
        self.naive_error = mean_of(changes)
        self._refuse_what_does_not_change(learned, source)
        self.starts = [*accumulate((len(each.values) for each in filled), initial=0)]
        dates = together([series.dates for series in every])
        self.series = Series(names, self.filled.values, first.date, dates, first.day_first, first.decimal)
        found = [
            [self._origins(start, *part) for part in pairwise(accumulate(rows, initial=0))]
            for start, rows in zip(self.starts, parts)
        ]
        self.has_test = self.fractions[1] > 0
        for begin, of_one, series in zip(sources, found, every):
            for name, part in zip(("train", "validate", "test"), of_one):
                if not len(part) and (name != "test" or self.has_test):
                    raise UserError(
                        f"{begin}: of {len(series.values)} rows, those to {name} on are too few for a horizon of "
                        f"{self.horizon}; lower it, or change task.val_fraction and task.test_fraction"
                    )
        self.train, self.val, self.test = (torch.from_numpy(together(part)) for part in zip(*found))
        several = f" of {len(self.ids)} series" if self.id else ""
        spans = [date for each in every if len(each.dates) for date in each.dates[[0, -1]].tolist()]
        span = f" from {min(spans):%Y-%m-%d} to {max(spans):%Y-%m-%d}" if spans else ""
        rhythm = f", {self.rhythm_name}," if self.rhythm_name else ""
        season = f"a season is {self.season} row{'s' * (self.season > 1)}"
        rows = f"{len(self.filled.values):,} rows{several} of {', '.join(names)}"
        print(printable(f"{source}: {rows}{rhythm}{span}; {season}"))
        fitted, windows = len(thinned(self.train, FITTED)), len(self.train)
        if fitted < windows:
            print(printable(f"{source}: linear methods are fitted to {fitted:,} of {windows:,} windows to train on"))

    def _read_series(self, source: str) -> dict[str, Series]:
        """The series by what the column `id` calls them, with rows for the dates that they lack."""
        data, date, columns, targets = self.chosen
        self.rhythm: Rhythm | None = None
        self.rhythm_name = ""
        if data is None:
            self.season = self.given_season or round(TURN / self.made["every"])
            return {"": mackey_glass(**self.made)}
        form: dict[str, Any] = {"day_first": self.day_first, "decimal": self.decimal}
        kept = [*(targets or ()), *self.known_names]
        if self.id:
            read = read_apart(data, self.id, date=date, columns=columns, targets=kept, **form)
        else:
            read = {"": read_csv(data, date, columns, targets=kept, **form)}
        longest = max(read.values(), key=lambda series: len(series.dates))
        calendar = calendar_of(longest.dates)
        if calendar is None and len(longest.dates) > 1 and self.given_season is None:
            raise UserError(
                f"{source}: the dates of {longest.date!r} come in no rhythm of months, days or hours; say with "
                f"task.season=ROWS, 1 for none, that each row is to follow the one before all the same"
            )
        if calendar is not None:
            self.rhythm, self.rhythm_name = calendar.rhythm, calendar.name
        self.season = self.given_season or (calendar.season if calendar else 1)
        return {
            id: completed(
                series, calendar_of(series.dates, self.rhythm), self.missing,
                f"{source}: {self.id}={id}" if self.id else source,
            )
            for id, series in read.items()
        }  # fmt: skip

    def _refuse_what_does_not_change(self, learned: list[Tensor], source: str) -> None:
        least, largest = (ends[self.at].tolist() for ends in ends_of(in_blocks(learned)))
        for name, error, low, high in zip(self.targets, self.naive_error, least, largest):
            if low == high:
                others = ",".join(other for other in self.targets if other != name)
                raise UserError(
                    f"{source}: {name!r} is always {low:g} in the training part, there is nothing to "
                    f"forecast; "
                    + (f"leave it out with task.targets=[{others}]" if others else "choose another column")
                )
            if not error > 0:
                raise UserError(
                    f"task.season={self.season}: in the training part, {name!r} is never known to differ from a season "
                    f"before, which leaves MASE without a scale; set another task.season"
                )

    def _parts(self, series: Series, source: str) -> tuple[int, int, int]:
        """Rows of a series' training, validation and test part."""
        rows = len(series.values)
        if self.split == "fractions":
            parts = parts_of(rows, *self.fractions)
        else:
            dates = series.dates
            day = round(np.timedelta64(1, "D") / (dates[1] - dates[0])) if len(dates) > 1 else 0
            if not day or 600 * day > rows:
                raise UserError(
                    f"{source}: task.split=ett needs dates and 600 days, of which there are {rows // max(day, 1):,}; "
                    "use task.split=fractions"
                )
            parts = 360 * day, 120 * day, 120 * day
        if parts[0] < self.window + self.horizon:
            raise UserError(
                f"{source}: of {rows} rows, the {parts[0]} to train on are too few for one window of {self.window} and "
                f"a horizon of {self.horizon}; lower task.window or task.horizon, or give more rows"
            )
        if parts[0] <= self.season:
            raise UserError(
                f"{source}: of {rows} rows, the {parts[0]} to train on are no more than a season of {self.season}; "
                f"set task.season, 1 for none, or give more rows"
            )
        return parts

    def _origins(self, start: int, first: int, end: int) -> Array:
        """The first target row of each window of a part, [M]; some target must be known.

        The series begins in row `start`, and its part in the rows from `first` to `end` after that.
        """
        first, last = start + max(first, self.window), start + end - self.horizon

        def pieces() -> Iterator[Array]:
            for block in blocks(last + 1 - first):
                rows = torch.arange(block.start, block.stop)
                values = self.filled.values[first + block.start : first + block.stop + self.horizon - 1, self.at]
                known = F.pad((~values.isnan()).any(1).cumsum(0), (1, 0))  # rows before
                some = known[self.horizon :] > known[: -self.horizon]
                yield (first + rows[some & (rows % self.stride == 0)]).numpy()

        return joined(chain([np.empty(0, np.int64)], pieces()))

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
            "id": self.id,
            "known": self.known_names,
            "center": self.center.tolist(),
            "scale": self.scale.tolist(),
            "naive_error": self.naive_error.tolist(),
        }

    def batch(self, part: Tensor, rows: Tensor) -> Batch:
        return self.windows_at(part[rows])

    def windows_at(self, origins: Tensor) -> Batch:
        """The windows before the rows `origins` [B], what follows them, and what of that is known before."""
        found = self.filled.windows(origins, self.window), self.targets_of(origins), self.ahead_of(origins)
        return Batch(*(part.float() for part in found))

    def targets_of(self, origins: Tensor) -> Tensor:
        """[H, B, K] in float64."""
        found = self.filled.values[origins + torch.arange(self.horizon)[:, None]][:, :, self.at]
        return (found - self.center[self.at]) / self.scale[self.at]

    def ahead_of(self, origins: Tensor) -> Tensor:
        """[H, B, m] in float64."""
        rows = origins + torch.arange(self.horizon)[:, None]
        return self.filled.rows(rows, torch.full_like(origins, NEVER))[:, :, self.known]

    def baselines(self, origins: Tensor) -> dict[str, Tensor]:
        """What simple methods forecast at the rows `origins` [B], each [H, B, K].

        The last value; if there are seasons, the value of the last known one; a linear function of the window and of
        what is known ahead; and for each target a linear function of its own window, the same for all of them, once
        relative to the last value (nlinear) and once apart from its moving average (dlinear).

        The latter two are those of Zeng et al. 2023 (arXiv:2205.13504), here by ridge regression. Without a penalty
        DLinear would be any linear function of the window.
        """
        x = self.filled.windows(origins, self.window)  # [T, B, n]
        last = x[-1:, :, self.at]  # [1, B, K]
        found = {"persistence": last.expand(self.horizon, -1, -1)}
        if self.season > 1:
            ahead = torch.arange(self.horizon)[:, None]
            seasons = ahead // self.season + 1  # back, until a row before the origin
            before = self.filled.rows(origins + ahead - seasons * self.season, torch.zeros_like(origins))
            found["seasonal"] = before[:, :, self.at]
        change = answered(relative(x, self.ahead_of(origins), self.known), self.linear)  # [B, H·K]
        found["linear"] = last + change.unflatten(1, (self.horizon, -1)).transpose(0, 1)
        own = x[:, :, self.at]
        for name, features, weights in (
            ("nlinear", apart(own - last), self.nlinear), ("dlinear", decomposed(apart(own)), self.dlinear),
        ):  # fmt: skip
            answer = answered(features, weights).unflatten(0, (-1, len(self.at))).permute(2, 0, 1)  # [H, B, K]
            found[name] = answer + last if name == "nlinear" else answer
        return found

    @cached_property
    def linear(self) -> Tensor:
        """Weights [T·n + H·m + 1, H·K] of an autoregression over all columns: how the targets change, see `relative`.

        Only windows whose targets are all known take part; the penalty is the best one on the validation part.
        """

        def rows(x: Tensor, y: Tensor, ahead: Tensor) -> tuple[Tensor, Tensor]:
            return relative(x, ahead, self.known), (y - x[-1:, :, self.at]).transpose(0, 1).flatten(1)

        return self._fitted(rows)

    @cached_property
    def nlinear(self) -> Tensor:
        """Weights [T + 1, H] of the change in any target, from its window relative to the last value."""
        return self._fitted(lambda x, y, _: (apart((x - x[-1:])[:, :, self.at]), apart(y - x[-1:, :, self.at])))

    @cached_property
    def dlinear(self) -> Tensor:
        """Weights [2T + 1, H] of any target, from its window's moving average and the rest."""
        return self._fitted(lambda x, y, _: (decomposed(apart(x[:, :, self.at])), apart(y)))

    def _fitted(self, rows: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """The weights by which the features that `rows` makes of windows give the answers, see `ridge`."""

        def pieces(part: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for piece in in_order(len(part), AT_ONCE):
                origins = part[piece]
                window = self.filled.windows(origins, self.window)
                yield rows(window, self.targets_of(origins), self.ahead_of(origins))

        return ridge(lambda: pieces(thinned(self.train, FITTED)), lambda: pieces(thinned(self.val, TRIED)))

    def baseline(self) -> dict[str, float]:
        """The errors of `baselines` in the test part, measured as the model's are, but by one process alone."""
        scale, naive_error = self.scale[self.at].tolist(), self.naive_error.tolist()
        found: dict[str, Errors] = {}
        pieces = in_order(len(self.test), AT_ONCE) if self.has_test else ()
        for rows in steps(pieces, "simple methods", lambda _: "") if len(pieces) > MANY else pieces:
            origins = self.test[rows]
            for name, forecasts in self.baselines(origins).items():
                errors = found.setdefault(name, Errors(self.targets, scale, naive_error, sync_on_compute=False))
                errors.update(forecasts, self.targets_of(origins))
        return {
            f"baseline/{name}_{key}": float(value)
            for name, errors in found.items()
            for key, value in errors.compute().items()
        }


def thinned(part: Tensor, most: int) -> Tensor:
    """Windows of a part as far from each other as is needed for there to be no more than so many."""
    return part[:: max(1, -(-len(part) // most))]
