"""The texts of a diagram: equations with marks for italics, subscripts and superscripts, and how wide they are.

A text is laid out in runs of one style, measured in the font that the image is drawn with; Times, which browsers fall
back to, has the same widths.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rnnzoo.explain.expression import Symbol
from rnnzoo.explain.notation import COMBINING, WORDS, Notation, spell

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

SIZE, SMALL = 17, 14
"""Sizes of text: on lines, and of what a sum adds."""

ITALIC, ACCENT, LOWER, UPPER, PLAIN = MARKS = "\ue000\ue001\ue002\ue003\ue004"
"""Marks in a text: what follows is in italics, an accent on the letter before, a subscript, a superscript, or plain."""


class Marked(Notation):
    """Text with marks for italics, subscripts and superscripts."""

    def symbol(self, symbol: Symbol) -> str:
        before, base, accent, below = spell(symbol)
        letter = f"{ITALIC}{base}{PLAIN}"
        if accent in COMBINING:
            composed = unicodedata.normalize("NFC", base + COMBINING[accent])
            letter = f"{ITALIC}{composed}{PLAIN}" if len(composed) == 1 else f"{ITALIC}{base}{ACCENT}{accent}{PLAIN}"
        elif accent:
            letter += accent
        version = f"{UPPER}({symbol.version}){PLAIN}" if symbol.version else ""
        lower = f"{LOWER}{','.join(below).replace('-', '−')}{PLAIN}" if below else ""
        return f"{before} {letter}{version}{lower}".strip()

    def power(self, base: str, exponent: str) -> str:
        return f"{base}{UPPER}{exponent}{PLAIN}"

    def rows(self, matrix: str, rows: str) -> str:
        return f"{matrix}[{rows}]"


TEXT = Marked()


def fonts() -> Path:
    """The folder of the fonts that come with matplotlib."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@cache
def _font(italic: bool) -> FT2Font:
    from matplotlib.ft2font import FT2Font  # of the extra "gallery", which equations do without

    font = FT2Font(str(fonts() / ("STIXGeneralItalic.ttf" if italic else "STIXGeneral.ttf")))
    font.set_size(100, 72)
    return font


@cache
def _advance(letter: str, italic: bool) -> float:
    """Width of a letter of size 1."""
    font = _font(italic and bool(_font(True).get_char_index(ord(letter))))
    return font.load_char(ord(letter)).linearHoriAdvance / 65536 / 100


@dataclass
class Run:
    """Letters of one style: where they begin, how far below the line, how large and how wide."""

    letters: str
    x: float
    drop: float
    size: float
    italic: bool

    @property
    def end(self) -> float:
        return self.x + sum(_advance(letter, self.italic) for letter in self.letters) * self.size


def runs(text: str, size: float) -> list[Run]:
    """A marked text cut into pieces of one style; each has its place, so that no other font can push the next away."""
    drops = {PLAIN: 0.0, ITALIC: 0.0, LOWER: 0.24 * size, UPPER: -0.36 * size}
    found: list[Run] = []
    x = 0.0
    for mark, letters in re.findall(f"([{MARKS}]?)([^{MARKS}]+)", text):
        if mark == ACCENT:
            tall = found[-1].letters.isupper() or found[-1].letters in "bdfhklt"
            accent = Run({"~": "˜", "^": "ˆ"}.get(letters, letters), x, -0.22 * size * tall, size, False)
            accent.x = (found[-1].x + x - (accent.end - x)) / 2
            found.append(accent)
            continue
        drop = drops[mark or PLAIN]
        for piece in re.findall(r"[^\W\d_]+|[\W\d_]+", letters) if drop else [letters]:
            index = piece.isalpha() and len(piece) < 3 and piece not in WORDS
            run = Run(piece, x, drop, 0.72 * size if drop else size, index if drop else mark == ITALIC)
            found.append(run)
            x = run.end
    return found


def width_of(text: str, size: float = SIZE) -> float:
    return max((run.end for run in runs(text, size)), default=0)
