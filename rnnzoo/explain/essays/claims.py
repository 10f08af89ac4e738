"""What papers claimed of their cells and what came of it here, read from the table that `rnnzoo claims` writes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

from rnnzoo.errors import UserError
from rnnzoo.explain.essays.page import Essay, Found

RESULTS = Path(__file__).parents[1] / "claims.csv"
"""The table of the last time that all of them were tried."""


class Tried(NamedTuple):
    """A claim and its trial, as texts, in the order of the table's columns."""

    claim: str
    cells: str
    paper: str
    says: str
    there: str
    setting: str
    metric: str
    here: str
    held: str
    seconds: str


COLUMNS = (
    "claim", "cells", "paper", "says", "figure there", "tried here", "metric", "figures here", "held", "seconds",
)  # fmt: skip


def read(path: Path) -> list[Tried]:
    """The lines of the table. Raises `UserError` naming the file for one that is no such table."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
            if tuple(header) != COLUMNS:
                raise ValueError(f"columns are {', '.join(COLUMNS)}")
            return [Tried(*row) for row in rows]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def found() -> dict[str, Any]:
    tried = read(RESULTS)
    return {
        "tried": tried,
        "held": sum(row.held == "yes" for row in tried),
        "minutes": sum(float(row.seconds) for row in tried) / 60,
    }


def pictures(say: Any, found: Found) -> Found:
    return {}


ESSAY = Essay("claims", "essay_claims.html", found, pictures)
