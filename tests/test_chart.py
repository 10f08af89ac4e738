"""Charts: points stand where a linear map puts them, ticks are round, and nothing leaves the picture."""

import math
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from rnnzoo.explain import chart


def drawn(series, **options):
    return ET.fromstring(chart.lines(series, "x", "y", "a title", **options))


def polylines(svg):
    return [[tuple(map(float, p.split(","))) for p in e.get("points").split()] for e in svg.iter("polyline")]


def slope(pairs):
    """Of the line through pairs of (value, position); fails where they do not lie on one."""
    (v0, p0), (v1, p1) = pairs[0], pairs[-1]
    found = (p1 - p0) / (v1 - v0)
    for value, position in pairs:
        assert position == pytest.approx(p0 + found * (value - v0), abs=0.11)  # written with one decimal
    return found


def ticks(svg, anchor):
    """Numbers at the axis, read from the picture, with their positions."""
    texts = [e for e in svg.iter("text") if e.get("text-anchor") == anchor and "series" not in e.get("class", "")]
    found = []
    for e in texts:
        number = e.text.replace("−", "-")
        if number.lstrip("-").replace(".", "").isdigit():
            found.append((float(number), float(e.get("x" if anchor == "middle" else "y"))))
    return found


@pytest.mark.parametrize("last", [1, 2, 3, 7])
def test_what_is_counted_has_no_halves(last):
    marks = [tick for tick, _ in ticks(drawn({"a": [(x, 0.5 * x) for x in range(1, last + 1)]}), "middle")]
    assert marks and all(mark == round(mark) for mark in marks)
    assert any(tick != round(tick) for tick, _ in ticks(drawn({"a": [(0.5, 1), (2, 2)]}), "middle"))


def test_points_and_ticks_share_one_linear_map():
    points = [(1.0, -3.0), (2.0, 4.5), (5.0, 7.0), (9.0, 0.0)]
    svg = drawn({"one": points})
    (curve,) = polylines(svg)
    right = slope([(x, px) for (x, _), (px, _) in zip(points, curve)])
    down = slope([(y, py) for (_, y), (_, py) in zip(points, curve)])
    assert right > 0 > down
    assert slope([*ticks(svg, "middle"), (5.0, curve[2][0])]) == pytest.approx(right, rel=0.01)
    assert slope([*((v, p - 4) for v, p in ticks(svg, "end")), (7.0, curve[2][1])]) == pytest.approx(down, rel=0.01)


def test_logarithmic_axis_is_linear_in_exponents():
    (curve,) = polylines(drawn({"one": [(k, 10.0**-k) for k in range(6)]}, log=True))
    assert slope([(k, y) for k, (_, y) in enumerate(curve)]) > 0


def test_what_cannot_be_drawn_is_left_out():
    points = [(0, 1.0), (1, 0.0), (2, -1.0), (3, math.nan), (4, math.inf), (5, 2.0)]
    assert [len(curve) for curve in polylines(drawn({"one": points}, log=True))] == [2]
    assert [len(curve) for curve in polylines(drawn({"one": points}))] == [4]


@pytest.mark.parametrize("points", [[], [(2.0, 3.0)], [(0.0, 1.0), (5.0, 1.0)], [(1e-9, 1e9), (2e-9, -1e9)]])
@pytest.mark.parametrize("log", [False, True])
def test_everything_is_inside_the_picture(points, log):
    svg = drawn({"one": points, "two": points}, log=log)
    width, height = map(float, svg.get("viewBox").split()[2:])
    for x, y in (point for curve in polylines(svg) for point in curve):
        assert 0 <= x <= width and 0 <= y <= height
    for text in svg.iter("text"):
        assert text.get("x") is None or 0 <= float(text.get("x")) <= width


def test_dots_are_not_joined():
    svg = drawn({"one": [(0, 0), (1, 1), (2, 4)]}, dots=True)
    assert not polylines(svg)
    assert len(list(svg.iter("circle"))) == 3


def test_names_stand_above_the_axes_without_overlap():
    names = [f"a curve of a rather long name {k}" for k in range(5)]
    svg = drawn({name: [(0, 0), (1, k)] for k, name in enumerate(names)})
    texts = {e.text: (float(e.get("x")), float(e.get("y"))) for e in svg.iter("text") if "series" in e.get("class", "")}
    assert list(texts) == names
    top = min(y for curve in polylines(svg) for _, y in curve)
    assert max(y for _, y in texts.values()) < top
    for one, other in pairwise(names):
        (x0, y0), (x1, y1) = texts[one], texts[other]
        assert y1 > y0 or x1 > x0 + 6 * len(one)
        assert x1 + 6 * len(other) < float(svg.get("viewBox").split()[2])


def test_one_curve_needs_no_name():
    assert not [e for e in drawn({"one": [(0, 0), (1, 1)]}).iter("text") if "series" in e.get("class", "")]


def test_texts_are_escaped():
    svg = ET.fromstring(chart.lines({"<b>": [(0, 1)], "&": [(0, 1)]}, "x < y", "a & b", "<title>"))
    assert svg.find("title").text == "<title>"
    assert {"<b>", "&", "x < y", "a & b"} <= {e.text for e in svg.iter("text")}


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 7), (0.12, 0.13), (0, 1e6), (-1, -1), (2, 9)])
def test_ticks_are_round_few_and_enclose(low, high):
    found = chart._ticks(low, high)
    step = found[1] - found[0]
    assert 2 <= len(found) <= 9
    assert found[0] <= low and found[-1] >= high
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-6
