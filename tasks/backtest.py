"""Forecasts from one row of a series after the other, and their errors by rows ahead or by the row they begin at.

Shapes: B rows forecast from (origins), H rows ahead, K targets, Q quantiles.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor

from rnnzoo.errors import UserError
from rnnzoo.plain import csv_cell, printable

from .calendars import written
from .further_files import named
from .gaps import Filled, without_end
from .quantiles import middle, pinball
from .series import Series


class Rolled(NamedTuple):
    """Times of a series' B origins; forecasts [H, B, K, Q], truth [H, B, K], NaN where it is not known, and the last
    value before each [1, B, K]."""

    times: list[str]
    forecasts: Tensor
    truth: Tensor
    last: Tensor


def all_rolled(module: Any, series: Mapping[str, Series], share: float, data: Path) -> dict[str, Rolled]:
    """Those of the series in the file `data` that are long enough, see `rolled`; `UserError` if none is."""
    found = {}
    for id, each in series.items():
        try:
            found[id] = rolled(module, each, share)
        except UserError as error:
            raise UserError(f"{named(data, module.hparams['id'], id)}: {error}") from None
    short = [id for id, each in found.items() if not each.times]
    if len(short) == len(found):
        raise UserError(
            f"{data}: there is no row to forecast from in the last {share:g} (--share) of it; before it must be "
            f"{module.hparams['window']} rows, and from it on {module.hparams['horizon']}"
        )
    if short:
        print(printable(f"{data}: too short to forecast from, and left out: {', '.join(short)}"), file=sys.stderr)
    return {id: each for id, each in found.items() if each.times}


def rolled(module: Any, series: Series, share: float) -> Rolled:
    """What a `Forecast` says of the future of each row of the last `share` of a series on which all H rows follow."""
    series = without_end(series, module.at) if module.known else series
    values, horizon = series.values, module.hparams["horizon"]
    first = max(module.hparams["window"], len(values) - int(share * len(values)))
    origins = torch.arange(first, max(first, len(values) - horizon + 1))
    rows = origins + torch.arange(horizon)[:, None]  # [H, B]
    known = ~values[rows][:, :, module.known].isnan().any(2).any(0)
    origins, rows = origins[known], rows[:, known]
    if not len(origins):
        return Rolled([], values, values, values)
    last = Filled(values, module.hparams["missing"], "", module.hparams["columns"]).windows(origins, 1)
    forecasts = module.at_origins(values, origins, values[rows][:, :, module.known])
    moments = series.dates[origins].tolist() if len(series.dates) else (origins + 1).tolist()
    return Rolled(written(moments), forecasts, values[rows][:, :, module.at], last[:, :, module.at])


def errors(of: Rolled, quantiles: Sequence[float], over: int) -> dict[str, Tensor]:
    """Means over one dimension, 0 for rows ahead and 1 for origins, of what is known: [B, K] or [H, K] each."""
    points = of.forecasts[..., middle(quantiles) if quantiles else 0]
    error = points - of.truth
    found = {
        "mae": error.abs().nanmean(over),
        "rmse": error.square().nanmean(over).sqrt(),
        "mean_error": error.nanmean(over),
        "persistence_mae": (of.last - of.truth).abs().nanmean(over),
    }
    if quantiles:
        levels = torch.tensor(quantiles, dtype=error.dtype)
        found["pinball"] = pinball(of.forecasts, of.truth, levels).mean(-1).nanmean(over)
        within = (of.forecasts[..., 0] <= of.truth) & (of.truth <= of.forecasts[..., -1])
        found["coverage"] = within.double().where(~error.isnan(), torch.nan).nanmean(over)
    return found


def write_errors(
    out: TextIO,
    by: str,
    found: Mapping[str, Rolled],
    head: tuple[list[str], str],
    targets: Sequence[str],
    quantiles: Sequence[float],
) -> None:
    """Write a line for each number of rows ahead (by lead), over all series, or for each origin, as CSV.

    `head` names the columns of series, if there are several, and of times.
    """
    (ids, date), lead = head, by == "lead"
    tables: list[tuple[list[Any], list[str], dict[str, Tensor]]]
    if lead:
        whole = Rolled([], *(torch.cat(parts, 1) for parts in zip(*(each[1:] for each in found.values()))))
        tables = [([], [str(ahead + 1) for ahead in range(len(whole.truth))], errors(whole, quantiles, 1))]
    else:
        tables = [
            ([csv_cell(id)] if ids else [], each.times, errors(each, quantiles, 0))
            for id, each in found.items()
        ]  # fmt: skip
    lines = csv.writer(out, lineterminator="\n")
    names = [*tables[0][2]]
    lines.writerow([csv_cell(name) for name in (*(["rows_ahead"] if lead else [*ids, date]), "target", *names)])
    for begin, times, values in tables:
        for row, time in enumerate(times):
            for k, target in enumerate(targets):
                lines.writerow([*begin, time, csv_cell(target), *(f"{values[name][row, k]:.6g}" for name in names)])
