"""A page of text coloured by single units of a language model, and what these units keep track of.

Shapes: N characters, T time steps, B streams, H units, A characters of the alphabet.
"""

from __future__ import annotations

import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import font_manager
from matplotlib.figure import Figure
from torch import Tensor

from rnnzoo.explain.tracking import correlations, properties
from rnnzoo.files import writing
from rnnzoo.lightning.pictures.picture import Picture, Seen
from rnnzoo.plain import VISIBLE

CHARACTERS, STREAMS = 4096, 8
"""Validation characters over which units are compared with properties, and the streams that read them."""

SHOWN = 480
"""Characters on the page."""

LIKELY = 5
"""Next characters beneath each."""

COLUMNS, LINES = 80, 4
"""Of the PNG."""

FONT = "DejaVu Sans Mono"
"""Comes with matplotlib; 0.602 em wide."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Units after epoch EPOCH</title>
<style>
:root { color-scheme: light dark; --page: #fff; --ink: #1a1a1a; --positive: 217 95 14; --negative: 33 113 181 }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181c; --ink: #e8e8e8; --positive: 240 130 50; --negative: 80 155 230 }
}
body { background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 2rem }
select { font: inherit; max-width: 100% }
.key { padding: 0 .5em; border-radius: .2em }
#text { font: 15px/1.25 ui-monospace, monospace; margin-top: 1.5rem }
#text > span { display: inline-block; width: 1.15ch; text-align: center; margin-bottom: .7em; vertical-align: top }
#text > span > span { display: block; height: 1.25em; white-space: pre; overflow: hidden }
</style>
<h1>Units after epoch EPOCH</h1>
<p><label>Coloured by <select id="unit"></select></label></p>
<p>A character's colour is the unit's activation once the character was read:
<span class="key" style="background: rgb(var(--negative) / .75)">below zero</span> or
<span class="key" style="background: rgb(var(--positive) / .75)">above</span>, the fuller the further. Beneath it
stand the most likely next characters, the fainter the less likely; ↵ ends a line, · is a blank, → a tab.</p>
<div id="text"></div>
<script type="application/json" id="data">DATA</script>
<script>
const data = JSON.parse(document.getElementById("data").textContent);
const text = document.getElementById("text"), select = document.getElementById("unit");
const visible = VISIBLE;
function put(parent, content) {
  const made = parent.appendChild(document.createElement("span"));
  made.textContent = content;
  return made;
}
const cells = data.text.map((character, t) => {
  const cell = text.appendChild(document.createElement("span"));
  const top = put(cell, character === " " ? " " : visible[character] || character);
  for (const [candidate, probability] of data.next[t]) {
    const made = put(cell, visible[candidate] || candidate);
    made.style.opacity = 0.12 + 0.88 * probability;
    made.title = Math.round(100 * probability) + " %";
  }
  if (character === "\\n") text.appendChild(document.createElement("br"));
  return top;
});
data.units.forEach((unit, index) => select.add(new Option(unit.label, index)));
function colour() {
  data.units[select.value].values.forEach((value, t) => {
    const hue = value < 0 ? "--negative" : "--positive";
    cells[t].style.background = `rgb(var(${hue}) / ${0.75 * Math.abs(value)})`;
    cells[t].title = value;
  });
}
select.addEventListener("change", colour);
colour();
</script>
</html>
"""


class Unit(NamedTuple):
    """The unit that goes with a property most: its number, Pearson's correlation, and its activations [N]."""

    property: str
    number: int
    correlation: float
    activations: Tensor


def compared(units: Tensor, text: str) -> Iterator[tuple[str, Tensor]]:
    """The properties that are not the same all over a text, and the units' correlations [H] with each."""
    kept = {name: values for name, values in properties(text).items() if values.min() < values.max()}
    if kept:
        yield from zip(kept, correlations(units, torch.stack([*kept.values()], 1)))


def read(module: Any, data: Any) -> tuple[str, Tensor]:
    """The beginning of the validation text, and the layer's outputs over it [T, B, H]."""
    codes = data.val.flatten()[:CHARACTERS].long()
    streams = STREAMS if len(codes) >= STREAMS * SHOWN else 1
    codes = codes[: len(codes) // streams * streams]
    output, _ = module.layer(module.embed(codes.reshape(streams, -1).T.to(module.device)))
    return "".join(module.hparams["alphabet"][code] for code in codes.tolist()), output


def of_characters(output: Tensor) -> Tensor:
    """Outputs [T, B, H] in the order of the text [N, H]."""
    return output.transpose(0, 1).flatten(0, 1).float().cpu()


@torch.no_grad()
def tracked(module: Any, data: Any, count: int = 5) -> list[tuple[str, list[tuple[int, float]]]]:
    """For each property the units that go with it most, with their correlations."""
    text, output = read(module, data)
    found = []
    for name, of_units in compared(of_characters(output), text):
        best = of_units.abs().topk(min(count, len(of_units))).indices.tolist()
        found.append((name, [(unit, round(float(of_units[unit]), 3)) for unit in best]))
    return sorted(found, key=lambda of: -abs(of[1][0][1]))


class UnitPage(Picture):
    """An HTML page of validation text, to be coloured by any unit that keeps track of something, and a PNG of its
    beginning. Beneath each character stand the most likely next ones."""

    name = "unit_page"

    @torch.no_grad()
    def measure(self, seen: Seen) -> dict[str, float]:
        module, alphabet = seen.module, seen.module.hparams["alphabet"]
        text, output = read(module, seen.data)
        units = of_characters(output)

        likely = module.head(output[:SHOWN, 0]).float().softmax(-1).topk(min(LIKELY, len(alphabet)))
        self.epoch, self.text = seen.epoch, text[:SHOWN]
        self.next = [
            [(alphabet[code], round(probability, 3)) for code, probability in zip(*row)]
            for row in zip(likely.indices.tolist(), likely.values.tolist())
        ]
        self.units = []
        for name, of_units in compared(units, text):
            best = int(of_units.abs().argmax())
            self.units.append(Unit(name, best, float(of_units[best]), units[:SHOWN, best]))
        self.units.sort(key=lambda unit: -abs(unit.correlation))
        return {unit.property: abs(unit.correlation) for unit in self.units}

    def draw(self, png: Path) -> Figure | None:
        if not self.units:
            return None
        with writing(png.with_suffix(".html")) as partial:
            partial.write_text(self.page(), encoding="utf-8")
        return self.figure()

    def page(self) -> str:
        """The page, complete in itself: it asks no network for anything."""
        units = [
            {
                "label": _label(unit),
                "values": [round(value, 3) for value in _scaled(unit.activations).tolist()],
            }
            for unit in self.units
        ]
        data = {"text": list(self.text), "next": self.next, "units": units}
        # inside a script element only "<" could end it early; the script itself sets text as text, never as HTML
        page = PAGE.replace("EPOCH", str(self.epoch + 1)).replace("VISIBLE", json.dumps(VISIBLE))
        return page.replace("DATA", json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))

    def figure(self) -> Figure:
        """The text's first lines in the colours of a unit that correlates well and does not keep still in them."""
        rows = 1 + LIKELY
        places, line, column = [], 0, 0  # where each character stands
        for character in self.text:
            if column == COLUMNS:
                line, column = line + 1, 0
            if line == LINES:
                break
            places.append((line, column))
            line, column = (line + 1, 0) if character == "\n" else (line, column + 1)
        height = rows * (places[-1][0] + 1)
        telling = [abs(u.correlation) * float(_scaled(u.activations)[: len(places)].std()) for u in self.units]
        unit = self.units[int(np.argmax(telling))]

        colour = np.zeros((height, COLUMNS))
        # one string for each row and shade, blank where another shade's stands: thousands of single characters are slow
        strings: dict[tuple[int, float], list[str]] = defaultdict(lambda: [" "] * COLUMNS)
        for (line, column), character, value, following in zip(
            places, self.text, _scaled(unit.activations).tolist(), self.next
        ):
            colour[line * rows, column] = value
            strings[line * rows, 0.0][column] = " " if character == " " else _printable(character)
            for rank, (candidate, probability) in enumerate(following, 1):
                shade = 0.2 if probability > 0.4 else 0.5 if probability > 0.1 else 0.8
                strings[line * rows + rank, shade][column] = _printable(candidate)

        wide, high = 10, 15  # pixels of a character at 100 dots an inch
        inches = (COLUMNS * wide + 20) / 100, (height * high + 45) / 100
        figure = Figure(figsize=inches, dpi=100)
        axes = figure.add_axes((0.1 / inches[0], 0.1 / inches[1], 1 - 0.2 / inches[0], 1 - 0.45 / inches[1]))
        # a scale beyond ±1, so that black letters are read on all of its colours
        axes.imshow(colour, cmap="PuOr_r", vmin=-1.8, vmax=1.8, aspect="auto", extent=(0, COLUMNS, height, 0))
        size = wide / 0.602 * 72 / 100
        for (row, shade), characters in strings.items():
            axes.text(
                0, row + 0.5, "".join(characters), color=str(shade), family=FONT, size=size,
                verticalalignment="center_baseline", parse_math=False,
            )  # fmt: skip
        axes.set_axis_off()
        axes.set_title(f"epoch {self.epoch + 1}, {_label(unit)}")
        return figure


def _label(unit: Unit) -> str:
    return f"{unit.property}: unit {unit.number}, correlation {unit.correlation:+.2f}"


def _scaled(activations: Tensor) -> Tensor:
    """Activations with the largest at 1 or -1."""
    return activations / activations.abs().max().clamp(min=1e-9)


def _printable(character: str) -> str:
    """What stands for a character in the PNG: one that the font has, one cell wide."""
    character = VISIBLE.get(character, character)
    font = font_manager.get_font(font_manager.findfont(FONT))
    plain = character.isprintable()
    return character if plain and not unicodedata.combining(character) and font.get_char_index(ord(character)) else "□"
