"""A cell's card: all there is to say about it, as a page, in a notebook, or as text for terminals and papers."""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import dataclass
from functools import cache, cached_property
from html import escape
from typing import Any

import torch
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from rnnzoo import registry
from rnnzoo.cell import Cell
from rnnzoo.errors import UserError
from rnnzoo.explain import chart, diagram
from rnnzoo.explain.equations import Reading, gates, read
from rnnzoo.explain.expression import Symbol
from rnnzoo.explain.measure import Cost, Flow, Row, cost, gradient_flow, shapes
from rnnzoo.explain.notation import LaTeX, MathML, Notation
from rnnzoo.explain.relatives import composite
from rnnzoo.explain.rounds import lines
from rnnzoo.recurrent import Recurrent

SIZES = (64, 128)
"""I and H of the numbers on a card where nothing else is said."""

FLOW_SIZES = (16, 32)
"""I and H of the cell whose gradients are followed: the curves hardly depend on them."""

LINKS = (
    (r"arXiv:(\d{4}\.\d{4,5}(?:v\d+)?)", "https://arxiv.org/abs/"),
    (r"doi:(10\.\S+)", "https://doi.org/"),
    (r"(github\.com/[\w.-]+/[\w.-]+)", "https://"),
)

CODE = re.compile(r"`([^`]+)`")
SIGN = re.compile(
    r"(?<![\w.'])([B-Zb-zΑ-ω]|(?<=[^.] )A|a(?= =|\^))(?:_(\w+))?"
    r"(?:\^?([²³ᵀ]|(?<=\^)(?:\([^)]*\)|-?\w+)))?(?![\w°]|\.\w)"
    r"|(?<=[\d)])\^(?P<power>\([^)]*\)|-?\w+)"
)
"""A letter with what stands below and above it, and a power of a number; `a` is mostly the article, as A is at the
beginning of a sentence."""

RAISED = str.maketrans({"²": "2", "³": "3", "ᵀ": "⊤", "-": "−"})

LEGEND = {
    "ones": "𝟏 is a vector of ones",
    "rows": "numbers in brackets count rows",
    "part": "a number in brackets tells which matrix of several",
    "stack": "[a; b] stands one below the other",
    "compare": "a comparison in brackets is 1 or 0",
}


@dataclass(frozen=True)
class Card:
    """A registered cell of some size. What is costly is computed when it is asked for, once."""

    entry: registry.Entry
    input_size: int = SIZES[0]
    hidden_size: int = SIZES[1]

    @cached_property
    def cell(self) -> Cell:
        return self._made(self.input_size, self.hidden_size)

    def _made(self, input_size: int, hidden_size: int) -> Cell:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.entry.cell(input_size, hidden_size)

    @cached_property
    def reading(self) -> Reading:
        return read(self.cell)

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.entry.cell) or "").partition("\n\n")[0].replace("\n", " ")

    @property
    def remarks(self) -> list[str]:
        """What the docstring says after its first paragraph."""
        return [" ".join(p.split()) for p in (inspect.getdoc(self.entry.cell) or "").split("\n\n")[1:]]

    @property
    def year(self) -> int | None:
        """The first year in the source."""
        found = re.search(r"\b(?:19|20)\d\d\b", self.entry.source)
        return int(found[0]) if found else None

    @cached_property
    def gates(self) -> list[str]:
        """The variables of `step` that are gates: values between 0 and 1."""
        return [name for name, function in gates(self.cell).items() if "sigmoid" in function]

    @cached_property
    def cost(self) -> Cost:
        return cost(self.cell)

    @cached_property
    def flow(self) -> Flow:
        return gradient_flow(self._made(*FLOW_SIZES))

    @property
    def hyperparameters(self) -> list[tuple[Symbol, str, Any, str]]:
        """Symbol, name in the code, value, and what it may be."""
        declared = self.entry.cell.hyperparameters
        return [
            (
                Symbol(name, role="hyperparameter"),
                name,
                getattr(self.cell, name),
                " or ".join(map(str, h.choices)) if h.choices else h.type.__name__,
            )
            for name, h in declared.items()
        ]

    @cached_property
    def rows(self) -> list[Row]:
        return shapes(self.cell)

    @property
    def output_dims(self) -> str:
        """The width of the output by name."""
        return next(row.dims for row in self.rows if row.symbol == self.reading.output)

    @cached_property
    def diagram(self) -> str:
        return diagram.svg(self.cell)

    @property
    def code(self) -> str:
        kind = self.entry.cell
        methods = [kind.step, kind.readout] if kind.readout is not Cell.readout else [kind.step]
        return "\n".join(textwrap.dedent(inspect.getsource(method)) for method in methods)

    @property
    def code_html(self) -> Markup:
        return Markup(highlight(self.code, PythonLexer(), HtmlFormatter(nowrap=True)))

    def equations(self, notation: Notation) -> list[str]:
        return lines(self.reading, notation)

    def math(self, symbol: Symbol) -> Markup:
        return Markup(f"<math>{MathML().symbol(symbol)}</math>")

    @property
    def source_html(self) -> Markup:
        """The source, its identifiers as links."""
        text = escape(self.entry.source)
        for pattern, address in LINKS:
            text = re.sub(pattern, rf'<a href="{address}\1">\g<0></a>', text)
        return Markup(text)

    @property
    def legend(self) -> list[str]:
        """What signs mean that not every reader knows, of those that occur."""
        found = {part.op for equation in self.reading.equations for part in composite(equation.value)}
        return [meaning for op, meaning in LEGEND.items() if op in found]

    @property
    def flow_chart(self) -> Markup:
        norms = self.flow.norms
        title = (
            f"Gradient flow of {self.name}: the norm is {norms[0]:.2g} after one step and {norms[-1]:.2g} after "
            f"{len(norms)}"
        )
        points = {self.name: [(float(lag), norm) for lag, norm in enumerate(norms, 1)]}
        return Markup(chart.lines(points, "lag k in time steps", "‖∂ output(T) / ∂ states(T − k)‖", title, log=True))


def text(card: Card) -> str:
    """Equations for a terminal, with the values of hyperparameters."""
    values = ", ".join(f"{Notation().symbol(symbol)} = {value}" for symbol, _, value, _ in card.hyperparameters)
    return "\n".join([*card.equations(Notation()), *([f"with {values}"] if values else [])])


def latex(card: Card) -> str:
    """Equations for a paper, aligned at their equals signs; needs amsmath and amssymb."""
    lines = [line.replace(" = ", " &= ", 1) for line in card.equations(LaTeX())]
    values = "".join(f"% {LaTeX().symbol(symbol)} = {value}\n" for symbol, _, value, _ in card.hyperparameters)
    body = " \\\\\n".join(f"  {line}" for line in lines)
    return f"% {card.name}: {card.entry.source}\n{values}\\begin{{align}}\n{body}\n\\end{{align}}"


def prose(words: str) -> Markup:
    """A docstring's text for a page: what stands in backticks as code, letters that are symbols as mathematics."""

    def sign(found: re.Match[str]) -> str:
        letter, below, above = (escape(part) if part else "" for part in found.groups()[:3])
        above = (escape(found["power"]) if found["power"] else above).translate(RAISED)
        set_ = f"<i>{letter}</i>" if letter else ""
        return set_ + (f"<sub>{below}</sub>" if below else "") + (f"<sup>{above.strip('()')}</sup>" if above else "")

    pieces = CODE.split(words)
    for at, piece in enumerate(pieces):
        if at % 2:
            pieces[at] = f"<code>{escape(piece)}</code>"
            continue
        piece = piece.replace(" - ", " − ")
        end, done = 0, list[str]()
        for found in SIGN.finditer(piece):
            done += [escape(piece[end : found.start()], quote=False), sign(found)]
            end = found.end()
        pieces[at] = "".join([*done, escape(piece[end:], quote=False)])
    return Markup("".join(pieces))


@cache
def templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("rnnzoo.explain"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["svg"] = environment.filters["mathml"] = Markup
    environment.filters["prose"] = prose
    environment.globals.update(MathML=MathML(), flow_sizes=FLOW_SIZES)
    return environment


@cache
def stylesheet() -> str:
    """The site's style, with that of highlighted code in light and in dark."""
    light, dark = (HtmlFormatter(style=style).get_style_defs(".code") for style in ("friendly", "github-dark"))
    own, _, _ = templates().loader.get_source(templates(), "style.css")  # type: ignore[union-attr]
    return f"{own}\n{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"


def html(card: Card) -> str:
    """A page that stands alone."""
    return templates().get_template("cell.html").render(card=card, style=Markup(stylesheet()), results=[], relatives=[])


def in_notebook(kind: type) -> str | None:
    """What a notebook shows for a class: a cell's card in a frame of its own; None for a class that is no cell."""
    return _framed(Card(registry.entry_of(kind))) if issubclass(kind, Cell) and kind.state_names else None


def instance_in_notebook(cell: Cell) -> str:
    """What a notebook shows for a cell: the card of its class, at its own sizes and hyperparameters."""
    card = Card(registry.entry_of(type(cell)), cell.input_size, cell.hidden_size)
    vars(card)["cell"] = cell
    return _framed(card)


def layer_in_notebook(layer: Recurrent) -> str:
    """What a notebook shows for a layer: its stack with sizes and parameters, the engine, and the card of its cells."""
    rows = []
    for index, cell in enumerate(layer._cells()):
        level, backward = divmod(index, 1 + layer.bidirectional)
        sizes = f"{cell.input_size} → {cell.output_size}"
        count = sum(p.numel() for p in cell.parameters())
        values = (f"{level + 1}{' backward' * backward}", registry.entry_of(type(cell)).name, sizes, f"{count:,}")
        rows.append(f"<tr>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>")
    total = sum(p.numel() for p in layer.parameters())
    head = "".join(f"<th>{name}</th>" for name in ("layer", "cell", "features", "parameters"))
    return (
        f"<p>Recurrent, {total:,} parameters, engine {escape(layer.engine)}</p><table>{head}{''.join(rows)}</table>"
        f"<details><summary>the cell</summary>{instance_in_notebook(layer._cell(0))}</details>"
    )


def _framed(card: Card) -> str:
    try:
        page = escape(html(card))
    except UserError as error:
        return f"<p>{escape(str(error))}</p>"
    return f'<iframe title="{card.name}" srcdoc="{page}" style="width: 100%; height: 40rem; border: 0"></iframe>'
