"""Diagrams: what the picture shows is what the cell computes, and it can be read."""

import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from torch.overrides import TorchFunctionMode

from rnnzoo import Cell, list_cells, registry
from rnnzoo.explain.diagram import png, svg
from rnnzoo.explain.equations import gates, read
from rnnzoo.explain.notation import Notation

SVG = "{http://www.w3.org/2000/svg}"
INPUT, HIDDEN = 5, 8


def cell(name):
    torch.manual_seed(0)
    return registry.get(name)(INPUT, HIDDEN)


@cache
def picture(name):
    return ElementTree.fromstring(svg(cell(name)))


def text_of(element):
    return "".join(element.itertext())


def texts(name):
    return [text_of(t) for t in picture(name).iter(f"{SVG}text")]


def plain(symbol):
    """A symbol's letters in the order in which a diagram has them, accents aside."""
    written = Notation().symbol(symbol)
    name, version, index = re.fullmatch(r"(.*?)(?:_\{?(.*?)\}?)?(\^\(\d\))?", written).group(1, 3, 2)
    return re.sub("[\u0302-\u0304]", "", name) + (version or "").removeprefix("^") + (index or "")


def letters(text):
    """What a text says, accents aside, whether they are part of a letter or stand by themselves."""
    return re.sub("[˜ˆ¯]", "", text).translate(str.maketrans("ĩĥĉ", "ihc"))


@cache
def ink(string, size, italic):
    """Left, top, right and bottom of what letters cover, from where they begin."""
    font = FontProperties(family="STIXGeneral", style="italic" if italic else "normal")
    box = TextPath((0, 0), string, size, prop=font).get_extents()
    return box.x0, -box.y1, box.x1, -box.y0


def boxes(name):
    """The rectangle that each text covers."""
    found = []
    for text in picture(name).iter(f"{SVG}text"):
        corners = []
        for span in text:
            size = float(span.get("font-size", text.get("font-size")))
            x, y = float(span.get("x")), float(span.get("y"))
            if span.text.strip():
                left, top, right, bottom = ink(span.text, size, span.get("font-style") == "italic")
                corners.append((x + left, y + top, x + right, y + bottom))
        found.append((*np.min(corners, 0)[:2], *np.max(corners, 0)[2:]))
    return found


def points(path):
    """Points along a path of M, L, H, V, l, h, v, m, q, c and Z, about a pixel apart."""
    at, found = np.zeros(2), []
    for command, arguments in re.findall(r"([MLHVlhvmqcZ])([^MLHVlhvmqcZ]*)", path):
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", arguments)]
        if command == "Z":
            continue
        if command in "HVhv":
            axis = "HhVv".index(command) // 2
            end = at.copy()
            end[axis] = numbers[0] + (at[axis] if command.islower() else 0)
            control = [at, end]
        else:
            control = [at, *(np.reshape(numbers, (-1, 2)) + (at if command.islower() else 0))]
        if command in "Mm":
            control = control[-1:]
        t = np.linspace(0, 1, 2 + int(np.abs(np.subtract(control[-1], control[0])).sum()))[:, None]
        levels = list(control)
        while len(levels) > 1:  # de Casteljau; of a straight line too
            levels = [(1 - t) * a + t * b for a, b in pairwise(levels)]
        found.append(np.broadcast_to(levels[0], (len(t), 2)))
        at = np.asarray(control[-1])
    return np.concatenate(found)


def frame(name):
    left, top, width, height = map(float, picture(name).get("viewBox").split())
    return left, top, left + width, top + height


class Products(TorchFunctionMode):
    """Notes the products of something that varies with a matrix that does not."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.matmul, torch.Tensor.__matmul__, torch.matmul, torch.Tensor.__rmatmul__):
            vector, matrix = args
            if vector.requires_grad and not matrix.requires_grad:
                # the same product written twice is drawn once
                self.found[vector.detach().numpy().tobytes(), matrix.detach().numpy().tobytes()] = True
        return function(*args, **(kwargs or {}))


AGAIN = {"rhn": 2 * 2, "ltc": 0}
"""Products of a round's second and later turns, which are drawn once, for cells whose step has rounds."""


@pytest.mark.parametrize("name", list_cells())
def test_blue_lines_are_the_products_with_matrices(name):
    one = cell(name).requires_grad_(False)
    for weight in one.parameters():  # some start alike
        weight.normal_()
    x = torch.randn(2, INPUT, requires_grad=True)
    state = [torch.randn(s.shape, requires_grad=True) for s in one.initial_state(x)]
    with Products() as products:
        new = one.step(x, *state)
        if type(one).readout is not Cell.readout:
            one.readout(x, *(new if isinstance(new, tuple) else (new,)))
    drawn = [p for p in picture(name).iter(f"{SVG}path") if p.get("class") == "matrix step"]
    assert len(drawn) == len(products.found) - AGAIN.get(name, 0)


@pytest.mark.parametrize("name", list_cells())
def test_values_enter_and_leave_where_they_should(name):
    reading = read(cell(name))
    left, top, right, bottom = frame(name)
    placed = [(letters(t), box) for t, box in zip(texts(name), boxes(name))]
    highest = min(box[3] for _, box in placed)
    heads = [box for t, box in placed if t == plain(reading.output) and box[3] == highest]
    assert heads and highest < top + 40
    for symbol in reading.given:
        if symbol.role == "state":
            assert [box for t, box in placed if t == plain(symbol) and box[0] < left + 100]
        elif symbol.role == "input":
            assert [box for t, box in placed if t == plain(symbol) and box[3] > bottom - 70 and box[1] > heads[0][3]]
    for equation in reading.step:
        (target, *_) = equation.targets
        if target.role == "state":
            assert [box for t, box in placed if t == plain(target) and box[2] > right - 150]


@pytest.mark.parametrize("name", list_cells())
def test_every_name_of_the_code_is_shown(name):
    reading, shown = read(cell(name)), {letters(t) for t in texts(name)}
    for symbol, variable in reading.variables.items():
        named = plain(symbol)
        untimed = re.sub(",?t$", "", named)
        if name in AGAIN:  # r(2) of the second turn is the r that is drawn once
            untimed = re.sub(r"\(\d+\)$", "", untimed)
        written = {t for t in shown if t in (named, untimed) or t.startswith(f"{named} = ")}
        assert written, f"{variable} is not shown as {untimed}"
    assert set(gates(cell(name))) <= set(reading.variables.values())


@pytest.mark.parametrize("name", list_cells())
def test_nothing_lies_on_a_text(name):
    left, top, right, bottom = frame(name)
    covered = boxes(name)
    for k, (x0, y0, x1, y1) in enumerate(covered):
        assert left <= x0 and x1 <= right and top <= y0 and y1 <= bottom, texts(name)[k]
        for j, (u0, v0, u1, v1) in enumerate(covered[:k]):
            apart = x1 < u0 or u1 < x0 or y1 < v0 or v1 < y0
            assert apart, f"{texts(name)[k]} lies on {texts(name)[j]}"
    lines = [points(p.get("d")) for p in picture(name).iter(f"{SVG}path")]
    drawn = np.concatenate(lines)
    inside = (drawn >= [left, top]) & (drawn <= [right, bottom])
    assert inside.all()
    for k, (x0, y0, x1, y1) in enumerate(covered):
        crossed = (drawn > [x0, y0]) & (drawn < [x1, y1])
        assert not crossed.all(1).any(), f"a line runs through {texts(name)[k]}"


def test_an_lstm_has_its_sums_products_and_functions():
    classes = Counter(e.get("class") for e in picture("lstm").iter() if e.get("class"))
    assert classes["node sum"] == 5  # four of x and h, one that makes c
    assert classes["node product"] == 3
    assert classes["matrix step"] == 8
    assert classes["dot"] == 4
    shown = Counter(texts("lstm"))
    assert shown["σ"] == 3 and shown["tanh"] == 2
    assert [shown[f"+b{gate}"] for gate in "ifgo"] == [1, 1, 1, 1]
    assert [shown[gate] for gate in "ifgo"] == [1, 1, 1, 1]


def test_subtraction_is_marked():
    assert "−" in texts("atr")  # p − q
    assert "1−" in texts("gru")


def test_an_outer_product_is_not_a_norm():
    assert "‖·‖2" not in texts("fast_weights")
    assert "‖·‖2" in texts("delta_net")


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_text_is_readable_at_800_pixels(name):
    width = float(picture(name).get("width"))
    sizes = [float(e.get("font-size")) for e in picture(name).iter() if e.get("font-size")]
    assert min(sizes) * 800 / width >= 11


def test_text_is_never_small_at_natural_size():
    for name in list_cells():
        left, top, right, bottom = frame(name)
        assert float(picture(name).get("width")) == right - left
        assert float(picture(name).get("height")) == bottom - top
        assert min(float(t.get("font-size")) for t in picture(name).iter(f"{SVG}text")) >= 14


def test_it_stands_alone_and_in_a_page():
    shown = svg(cell("gru"))
    assert picture("gru").find(f"{SVG}title").text == "One step of GRU"
    assert "prefers-color-scheme:dark" in shown and "var(--diagram-ink," in shown
    assert not re.search(r'href=|url\(|\bid="|<script', shown)
    style = picture("gru").find(f"{SVG}style").text.replace("@media(prefers-color-scheme:dark){", "")
    rules = re.findall(r"([^{}]+)\{", style)
    assert all(part.strip().startswith(".rnnzoo-diagram") for rule in rules for part in rule.split(","))


def test_it_is_the_same_every_time():
    code = "import sys; from rnnzoo import registry; from rnnzoo.explain.diagram import svg; "
    code += f"sys.stdout.reconfigure(encoding='utf-8'); print(svg(registry.get('fgr')({INPUT}, {HIDDEN})), end='')"
    other = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    assert other.stdout == svg(cell("fgr"))


@pytest.mark.parametrize("dark", [False, True])
def test_png(tmp_path, dark):
    png(cell("lstm"), tmp_path / "lstm.png", width=900, dark=dark)
    image = matplotlib.image.imread(tmp_path / "lstm.png")[..., :3]
    assert image.shape[1] == 900
    assert (image[0, 0] < 0.2).all() if dark else (image[0, 0] == 1).all()
    red, _, blue = np.moveaxis(image, -1, 0)
    assert (np.abs(image - image[0, 0]).max(-1) > 0.3).mean() > 0.01
    assert (blue - red > 0.3).sum() > 500 and (red - blue > 0.3).sum() > 200
    # letters are there, not only lines: at the right of h_t, beyond the arrows
    assert (np.abs(image[:, -40:] - image[0, 0]).max(-1) > 0.3).any()
