"""What an essay is, and the forms that all of them give to numbers, figures and symbols."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, TemplateNotFound
from markupsafe import Markup

from rnnzoo.errors import UserError, nearest
from rnnzoo.explain import chart
from rnnzoo.explain.card import templates
from rnnzoo.explain.expression import Symbol
from rnnzoo.explain.notation import MathML
from rnnzoo.registry import list_cells

TEXTS = Path(__file__).parents[1] / "templates" / "texts"
"""Where each language has its file of texts, each text a macro that may name what a page has found."""

Found = Mapping[str, Any]
"""What the experiments of a page have found, by the names that its texts and its template have for it."""


@dataclass(frozen=True)
class Essay:
    """A page of the gallery.

    Args:
        name: of its template, and what its texts begin with.
        file: that it is written to.
        found: runs its experiments, takes seconds, and leaves the global random state as it was; or returns what they
            found before.
        pictures: draws what was found in the words of a language, by the names that the template has for it.
    """

    name: str
    file: str
    found: Callable[[], Found]
    pictures: Callable[[Any, Found], Found]

    def body(self, language: str = "en") -> str:
        """The page as HTML, from `<h1>` on, for the site's shell; the same text every time."""
        found = {**self.found(), "number": number, "math": symbol, "zoo": list_cells()}
        say = texts(language, found)
        page = strict().get_template(f"essays/{self.name}.html")
        return page.render({**found, **self.pictures(say, found), "say": say, "pace": lambda factor: pace(say, factor)})


@cache
def strict() -> Environment:
    """The site's templates, where to name what nobody has found is an error, not a gap in a sentence."""
    return templates().overlay(undefined=StrictUndefined)


def languages() -> list[str]:
    """Those that there are texts in."""
    return sorted(path.stem for path in TEXTS.glob("*.html"))


def texts(language: str, found: Found | None = None) -> Any:
    """A language's texts, as methods, which name what was `found`.

    Raises `UserError` for a language that there are none in.
    """
    try:
        return strict().get_template(f"texts/{language}.html").make_module(dict(found or {}))
    except TemplateNotFound:
        raise UserError(f"--language {language}: no such texts; {nearest(language, languages())}") from None


def number(value: float, digits: int = 3) -> Markup:
    """A number for the text, rounded to so many digits; whole numbers in full.

    >>> number(-1234), number(0.66668), number(4.44e-16, 2), number(math.inf)
    (Markup('−1,234'), Markup('0.667'), Markup('4.4 × 10<sup>−16</sup>'), Markup('∞'))
    """
    if math.isnan(value):
        written = "–"
    elif isinstance(value, int):
        written = f"{value:,}"
    elif math.isinf(value):
        written = "∞" if value > 0 else "-∞"
    elif value == 0 or 1e-3 <= abs(value) < 1e4:
        written = f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"
    else:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        written = f"{mantissa} × 10<sup>{int(exponent)}</sup>"
    return Markup(written.replace("-", "−"))


def pace(say: Any, factor: float) -> str:
    """In words how many steps halve or double what each step multiplies by `factor`."""
    if abs(factor - 1) < 1e-6:
        return say.pace_stays()
    if factor == 0:
        return say.pace_cut_off()
    steps = abs(math.log(2) / math.log(factor))
    return (say.pace_halved if factor < 1 else say.pace_doubled)(steps)


def symbol(name: str, time: str = "") -> Markup:
    return Markup(f"<math>{MathML().symbol(Symbol(name, time))}</math>")


def curves(
    series: Mapping[str, Sequence[float]],
    x_label: str,
    y_label: str,
    title: str,
    log: bool = False,
    starts: Sequence[int] = (),
) -> Markup:
    """A chart of values that follow one another, each series from 0 or from its number in `starts`."""
    firsts = starts or [0] * len(series)
    points = {
        name: [(float(first + k), float(value)) for k, value in enumerate(values)]
        for first, (name, values) in zip(firsts, series.items())
    }
    return Markup(chart.lines(points, x_label, y_label, title, log))
