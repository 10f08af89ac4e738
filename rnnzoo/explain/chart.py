"""Line charts as SVG that takes its colours from the page around it, light or dark."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 44
"""Margins of the axes; above them there is a line for the names of several curves."""

LEGEND, LETTER = 20, 7
"""Height of a line of the legend, and about the width of a letter; Chinese and Japanese ones are twice as wide."""


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    title: str,
    log: bool = False,
    dots: bool = False,
    faint: Mapping[str, Sequence[Sequence[tuple[float, float]]]] | None = None,
) -> str:
    """A chart of named curves of (x, y); `title` says for those who cannot see it what is to be seen.

    With `log` the y axis is logarithmic; what is not positive is left out. With `dots` points are not joined.
    A curve of one point is a dot. `faint` has further curves by the names in `series`, fainter in the same colours.
    """

    def drawable(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x, math.log10(y) if log else y) for x, y in curve if math.isfinite(y) and (y > 0 or not log)]

    drawn = {name: drawable(curve) for name, curve in series.items()}
    behind = [(k, drawable(curve)) for k, name in enumerate(series) for curve in (faint or {}).get(name, ())]
    points = [point for curve in (*drawn.values(), *(curve for _, curve in behind)) for point in curve] or [(0.0, 0.0)]
    (x_low, x_high), (y_low, y_high) = ((min(values), max(values)) for values in zip(*points))
    x_low, x_high = (x_low, x_high) if x_low < x_high else (x_low - 1, x_high + 1)
    slack = 1e-9 * (x_high - x_low)
    x_ticks = [tick for tick in _ticks(x_low, x_high) if x_low - slack <= tick <= x_high + slack]
    if all(float(x).is_integer() for x, _ in points):  # what is counted, as epochs are, has no halves
        x_ticks = [tick for tick in x_ticks if abs(tick - round(tick)) < slack]
    y_ticks = _ticks(y_low, y_high, log)
    y_low, y_high = y_ticks[0], y_ticks[-1]
    legend = list(_legend(drawn))
    top = TOP + (legend[-1][1] if legend else 0)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - top - BOTTOM),
        )

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>']
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_label(tick, log)}</text>')
    for tick in x_ticks:
        x, y = place(tick, y_low)
        parts.append(f'<text x="{x:.1f}" y="{y + 17:.1f}" text-anchor="middle">{_label(tick)}</text>')
    parts.append(f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    middle = (HEIGHT - BOTTOM + top) / 2
    parts.append(f'<text transform="translate(13 {middle})rotate(-90)" text-anchor="middle">{escape(y_label)}</text>')
    layers = [
        *((k, curve, ' opacity="0.35"') for k, curve in behind),
        *((k, c, "") for k, c in enumerate(drawn.values())),
    ]
    for k, curve, style in layers:
        placed = [place(*point) for point in curve]
        if dots or len(placed) == 1:
            parts += [f'<circle class="series{k}"{style} cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in placed]
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
            parts.append(f'<polyline class="series{k}"{style} points="{path}"/>')
    for k, (name, (x, y)) in enumerate(zip(drawn, legend)):
        parts.append(f'<circle class="series{k}" cx="{x}" cy="{y - 4}" r="4"/>')
        parts.append(f'<text class="series{k}" x="{x + 9}" y="{y}">{escape(name)}</text>')
    return "".join(parts) + "</svg>"


def escape(words: str) -> str:
    """Words for SVG, plain ones even if they are marked as HTML, which escapes what is put into it once more."""
    return html.escape(str(words))


def _legend(names: Mapping[str, object]) -> Iterator[tuple[int, int]]:
    """Where each of several names stands above the axes, from left to right and line by line; nothing for one."""
    x, y = LEFT + 5, TOP + 2
    for name in names if len(names) > 1 else ():
        width = LETTER * sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in name) + 28
        if x > LEFT + 5 and x + width > WIDTH - RIGHT:
            x, y = LEFT + 5, y + LEGEND
        yield x, y
        x += width


def _ticks(low: float, high: float, log: bool = False) -> list[float]:
    """Round numbers from below `low` to above `high`, four to nine of them."""
    if high - low < 1e-12:
        low, high = low - 1, high + 1
    step: float = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= 6)
    if log:
        step = max(1, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, max(last, first + 1) + 1)]


def _label(tick: float, log: bool = False) -> str:
    if log:
        small = str(round(tick)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"10{small}" if abs(tick) > 1.5 else f"{10**tick:g}"
    return f"{tick:.6g}".replace("-", "−")
