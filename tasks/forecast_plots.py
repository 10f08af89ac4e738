"""Pictures of forecasts: at the end of the test part, and behind the last rows of a file.

Shapes: H rows ahead, B windows, K targets, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from torch import Tensor

from rnnzoo.lightning.data import in_order
from rnnzoo.lightning.figures import count_along, drawn

from .windows import AT_ONCE, Batch, Windows, thinned

AVERAGED = 1 << 14
"""Windows over which a plot averages, at the most."""

DRAWN_ROWS, DRAWN_TARGETS = 150, 6
"""What a plot has room for, from the end of a series."""


class Continued(NamedTuple):
    """A series' last rows of the targets [R, K] and what is forecast then [H, K, Q], with the times [R + H] of both."""

    name: str
    before: Tensor
    rows: Tensor
    time: Sequence[Any]


def shown_rows(ahead: int) -> int:
    """How many rows of a series are drawn before those that are forecast."""
    return max(DRAWN_ROWS, 3 * ahead)


def of_test(data: Windows, model: Callable[[Batch], Tensor], median: int | None = None) -> Figure:
    """The end of the test part with forecasts that follow each other, and the mean error by rows ahead.

    `model` makes forecasts [H, B, K], or quantiles [H, B, K, Q] whose median is the one of that number.
    """

    def points(batch: Batch) -> Tensor:
        found = model(batch)
        return found if median is None else found[..., median]

    averaged = thinned(data.test, AVERAGED)
    total: dict[str, Tensor] = {}
    known = torch.zeros(data.horizon, len(data.at))
    for piece in (averaged[rows] for rows in in_order(len(averaged), AT_ONCE)):
        target = data.targets_of(piece)
        known += (~target.isnan()).sum(1)
        for name, found in (data.baselines(piece) | {"model": points(data.windows_at(piece))}).items():
            total[name] = total.get(name, 0) + (found - target).abs().nansum(1)
    errors = {name: sums / known for name, sums in total.items()}  # [H, K] each

    rows = len(data.series.values)
    begin = int(data.test[data.test >= data.starts[-2]][0])  # in the last series
    first = max(begin, rows - max(DRAWN_ROWS, data.horizon))  # one forecast at least
    origins = torch.arange(rows - data.horizon, first - 1, -data.horizon).flip(0)
    forecasts = model(data.windows_at(origins))  # [H, B, K] or [H, B, K, Q]
    time: Any = data.series.dates if len(data.series.dates) else range(rows)
    scale, center = data.scale[data.at], data.center[data.at]
    targets = data.targets[:DRAWN_TARGETS]
    every = -(-len(data.test) // len(averaged))
    whole = "the whole test part" if every == 1 else f"one window in {every} of the test part"
    of_one = f" of {data.ids[-1]}" if data.id else ""
    figure = _figure(12, 3.2, len(targets), len(data.targets), "targets")
    for k, (name, (left, right)) in enumerate(
        zip(targets, figure.subplots(len(targets), 2, width_ratios=(3, 1), squeeze=False))
    ):
        shown = slice(int(origins[0]), rows)
        left.plot(time[shown], data.series.values[shown, data.at[k]], color="0.6", linewidth=3, label="truth")
        for b, origin in enumerate(origins.tolist()):
            label = f"forecasts of {data.horizon} rows" if b == 0 else None
            values = forecasts[:, b, k] * scale[k] + center[k]
            _draw(left, time[origin : origin + data.horizon], values, label, median)
        left.set(ylabel=drawn(name))
        _along_time(left, time)
        left.set_title(f"the end of the test part{drawn(of_one)}", loc="left")
        left.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
        for n, (baseline, error) in enumerate(errors.items()):
            style = {"color": "C3", "linewidth": 2.5} if baseline == "model" else {"color": f"C{n + (n >= 3)}"}
            right.plot(range(1, data.horizon + 1), error[:, k] * scale[k], ".-", label=baseline, **style)
        right.set(xlabel="rows ahead", ylabel="mean absolute error", title=whole)
        count_along(right)
        right.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def of_file(series: Sequence[Continued], targets: Sequence[str], median: int) -> Figure:
    """What is forecast behind the last rows of each of a file's series, as many of them as there is room for."""
    panels = [(each, k) for each in series for k in range(len(targets))]
    shown = panels[: max(DRAWN_TARGETS, len(targets))]
    figure = _figure(10, 3, len(shown), len(panels), "forecasts")
    for (each, k), axes in zip(shown, figure.subplots(len(shown), squeeze=False)[:, 0]):
        ahead = len(each.rows)
        axes.plot(each.time[:-ahead], each.before[:, k], color="0.6", linewidth=2, label=drawn(each.name))
        _draw(axes, each.time[-ahead:], each.rows[:, k], "forecast", median)
        axes.set(ylabel=drawn(targets[k]))
        _along_time(axes, each.time)
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    return figure


def _figure(width: float, height: float, shown: int, whole: int, what: str) -> Figure:
    """A figure with room for the panels that are shown, whose title says so if they are not all."""
    figure = Figure(figsize=(width, height * shown), layout="constrained")
    if shown < whole:
        figure.suptitle(f"the first {shown} of {whole} {what}")
    return figure


def _along_time(axes: Any, time: Sequence[Any]) -> None:
    """Dates along the axis, with room between them, if the times are dates."""
    if isinstance(time[0], (date, np.datetime64)):
        places = AutoDateLocator(maxticks=8)
        axes.xaxis.set_major_locator(places)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(places))


def _draw(axes: Any, time: Any, values: Tensor, label: str | None, median: int | None) -> None:
    """A forecast [H], or its quantiles [H, Q]: the median as a line, and what lies between the outermost ones."""
    line = values if values.dim() == 1 else values[:, median]
    if values.dim() == 2 and values.shape[1] > 1:
        axes.fill_between(time, values[:, 0], values[:, -1], color="C3", alpha=0.2, linewidth=0)
    axes.plot(time, line, ".-", color="C3", linewidth=1.5, label=label)
