"""`rnnzoo list`: the registered cells in a table."""

from __future__ import annotations

import inspect

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rnnzoo import registry
from rnnzoo.errors import UserError, nearest
from rnnzoo.plain import printable

SIZES = (8, 16)
"""Input and hidden size of the cells whose kind is told."""


def list_cells(pattern: str, family: str | None, kind: str | None, fidelity: bool) -> None:
    entries = [registry.entry(name) for name in registry.list_cells(pattern)]
    if not entries:
        raise UserError(f"no cell matches {pattern!r}; `rnnzoo list` shows all")
    families = {entry.family for entry in entries}
    if family is not None and family not in families:
        raise UserError(f"--family {family}: no such family; {nearest(family, sorted(families))}")
    entries = [entry for entry in entries if family in (None, entry.family)]
    entries = [e for e in entries if kind is None or _kind(e).startswith(kind)]
    if not entries:
        raise UserError(f"no cell among them is {kind}; leave --kind out to see them")
    of_fidelity = ("oracle", "compared with", "authors' code read", "paper's text seen")
    checked = of_fidelity if fidelity else ("states", "what it is")
    table = Table("cell", "family", *checked, "source")
    for entry in entries:
        shown = fidelity_of(entry) if fidelity else (" ".join(entry.cell.state_names), _first_line(entry.cell))
        table.add_row(*(escape(printable(text)) for text in (entry.name, entry.family, *shown, entry.source)))
    console = Console()
    if not console.is_terminal:  # in a pipe, rich would fold the columns to 80
        console.width = max(console.width, 200)
    console.print(table)
    console.print(f"{len(entries)} cell{'s' * (len(entries) != 1)}", highlight=False)


def _kind(entry: registry.Entry) -> str:
    from rnnzoo import engine  # takes seconds, and is needed for no other column

    return engine.kind(entry.cell(*SIZES))


def fidelity_of(entry: registry.Entry) -> tuple[str, str, str, str]:
    """Where the equations stand once more, the package it was run beside, and what was read."""
    own = entry.module.startswith("rnnzoo.cells.")
    package = entry.package + ("" if entry.independent else ", from the same secondary source")
    return (f"tests/oracles/{entry.family}.py" if own else "–", package or "–", entry.code or "–", entry.seen or "–")


def _first_line(cell: type) -> str:
    return (inspect.getdoc(cell) or "").partition("\n")[0]
