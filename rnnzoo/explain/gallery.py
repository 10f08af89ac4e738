"""The gallery: a static site of all cells that needs no network and no server."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rnnzoo import registry
from rnnzoo.errors import UserError
from rnnzoo.explain.card import SIZES, Card, stylesheet, templates
from rnnzoo.explain.essays import claims, gates, league, scan, start, units, vanishing
from rnnzoo.explain.essays.page import Essay, texts
from rnnzoo.explain.notation import MathML
from rnnzoo.explain.relatives import Anatomy, anatomy, differences, likeness, relatives
from rnnzoo.explain.rounds import lines
from rnnzoo.files import refuse_missing_parent
from rnnzoo.play import save, untrained
from rnnzoo.progress import steps

RESULTS = Path(__file__).parents[2] / "RESULTS.md"
"""Where measured results stand in a clone; an installed package has none."""

ANATOMY_SIZES = (5, 7)
"""I and H of the equations that are compared: different, so that a past input is told from a state."""


FIRST = ("rnn", "lstm", "gru")
"""The cells that the index begins with, and whose pages move."""

PLAYED = (8, 24)
"""Units and time steps of the session that is replayed there."""


class Table(NamedTuple):
    """Rows of a table of results that are about one cell."""

    title: str
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Relative:
    """Another cell beside this one: both cells' equations in MathML, what differs marked."""

    name: str
    percent: int
    mine: list[str]
    its: list[str]


def essays() -> list[Essay]:
    """The essays in the order in which they are to be read; those on claims and league once they have been tried."""
    found = [start.ESSAY, vanishing.ESSAY, gates.ESSAY, scan.ESSAY, units.ESSAY]
    return [*found, *(page.ESSAY for page in (claims, league) if page.RESULTS.is_file())]


def build(out: Path, results: Path | None = None, language: str = "en") -> dict[str, str]:
    """Write the site of all registered cells to the folder `out`.

    Returns the cells that had to be left out, because their equations cannot be read, with the reason.

    `results` is a Markdown file; the rows of its tables whose first column is headed "cell" stand on the cells' pages.
    Index and essays are in `language`, the cells' pages, as their docstrings, in English.

    Raises `UserError` when `out` holds something else than a gallery, or cannot be written, and for a language that
    there are no texts in.
    """
    texts(language)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder for the gallery")
    if out.is_dir() and any(out.iterdir()) and not (out / "gallery.js").is_file():
        raise UserError(f"{out}: holds other files; name a folder that is empty, new, or a gallery")
    refuse_missing_parent("gallery", out)
    tables = read_results(results or RESULTS) if results or RESULTS.is_file() else {}
    cards, anatomies, left_out = [], {}, {}
    for name in steps(registry.list_cells(), "reading"):
        entry = registry.entry(name)
        try:
            anatomies[name] = anatomy(Card(entry, *ANATOMY_SIZES).reading)
            cards.append(Card(entry))
        except UserError as error:
            left_out[name] = str(error)
    try:
        # beside its place until it is whole, so that a failure leaves nothing half-written
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".gallery-") as made:
            _write(Path(made), cards, anatomies, tables, language)
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(made, out)
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror}; name a folder that can be written") from error
    return left_out


def _write(
    folder: Path, cards: list[Card], anatomies: dict[str, Anatomy], tables: dict[str, list[Table]], language: str
) -> None:
    pages = templates()

    def write(name: str, template: str, **values: Any) -> None:
        page = pages.get_template(template).render({"language": language, "say": texts(language, values), **values})
        (folder / name).write_text(page, encoding="utf-8")

    (folder / "diagrams").mkdir()
    (folder / "style.css").write_text(stylesheet(), encoding="utf-8")
    for script in ("gallery.js", "table.js"):
        text, _, _ = pages.loader.get_source(pages, script)  # type: ignore[union-attr]
        (folder / script).write_text(text, encoding="utf-8")
    tried = claims.found()["tried"] if claims.RESULTS.is_file() else []
    places = league.places()
    for card in steps(cards, "drawing", lambda card: card.name):
        (folder / "diagrams" / f"{card.name}.svg").write_text(card.diagram, encoding="utf-8")
        playing = f"{card.name}_play.html" if card.name in FIRST else ""
        if playing:
            machine = untrained.machine(card.name, *PLAYED)
            (folder / playing).write_text(save.page([machine], {}), encoding="utf-8")
        write(
            f"{card.name}.html",
            "cell.html",
            card=card,
            places=places.get(card.name, []),
            claims=[claim for claim in tried if card.name in claim.cells.split()],
            results=tables.get(card.name, []),
            relatives=list(_relatives(card.name, anatomies)),
            playing=playing,
        )
    years = [card.year for card in cards if card.year is not None]
    written = essays()
    write(
        "index.html",
        "index.html",
        cards=sorted(cards, key=_acquaintance),
        count=len(cards),
        families=sorted({card.entry.family for card in cards}),
        kinds=sorted({card.cost.kind for card in cards}),
        gates=sorted({len(card.gates) for card in cards}),
        years=(min(years, default=1990), max(years, default=2030)),
        sizes=SIZES,
        essays=written,
    )
    around = [None, *written, None]
    for k, essay in enumerate(steps(written, "writing", lambda essay: essay.name)):
        body = essay.body(language)
        write(essay.file, "essays/page.html", essay=essay, body=body, before=around[k], after=around[k + 2])


def _acquaintance(card: Card) -> tuple[int, int, str]:
    """The order in which a student meets cells: those that are taught first, then as they were published."""
    first = FIRST.index(card.name) if card.name in FIRST else len(FIRST)
    return first, card.year or 9999, card.name


def _relatives(name: str, anatomies: dict[str, Anatomy]) -> Iterator[Relative]:
    mine = anatomies[name]
    for other in relatives(name, anatomies):
        its = anatomies[other]
        marked = differences(mine, its), differences(its, mine)
        yield Relative(
            other,
            round(100 * likeness(mine, its)),
            lines(mine.reading, MathML(), marked[0]),
            lines(its.reading, MathML(), marked[1]),
        )


def read_results(path: Path) -> dict[str, list[Table]]:
    """Per cell the rows about it in the tables of a Markdown file whose first column is "cell".

    Raises `UserError` when the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--results {path}: cannot be read ({error})") from None
    found: dict[str, list[Table]] = {}
    title, columns = "", None
    for line in lines:
        if line.startswith("#"):
            title = line.lstrip("# ").replace("`", "")
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            columns = None
        elif columns is None:
            columns = cells
        elif columns[0] == "cell" and not set(line) <= set("|-: "):
            tables = found.setdefault(cells[0].strip("`"), [])
            if not tables or tables[-1].title != title or tables[-1].columns != columns[1:]:
                tables.append(Table(title, columns[1:], []))
            tables[-1].rows.append(cells[1:])
    return found
