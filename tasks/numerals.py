"""Numbers as files write them: with decimal points or commas, and with thousands apart or not."""

from __future__ import annotations

import math
import re
from typing import Literal, NamedTuple

from rnnzoo import UserError

Decimal = Literal["point", "comma"]


class Unsettled(UserError):
    """What is written can be meant in two ways, of which further rows could say which."""


UNKNOWN = ("", "na", "n/a", "nan", "null", "none", "?", ".", "-", "--", "#n/a", "<na>")
"""What stands for a missing value, in lower case."""

LARGEST = 1e30
"""The largest number that is read: models calculate in single precision, which ends at 3e38."""

SPACES = re.compile("[\u00a0\u2007\u2009\u202f]")  # those that keep a number together


class Notation(NamedTuple):
    """What stands before the fraction, and between thousands."""

    decimal: Decimal
    between: str

    def read(self, text: str) -> float | None:
        """The number that the text is in this notation, None if it is none."""
        point = re.escape("." if self.decimal == "point" else ",")
        whole = rf"\d{{1,3}}(?:{re.escape(self.between)}\d{{3}})+|\d*" if self.between else r"\d*"
        found = re.fullmatch(rf"([+-]?)({whole})(?:{point}(\d*))?([eE][+-]?\d+)?", SPACES.sub(" ", text))
        if not found or not (found[2] or found[3]):
            return None
        digits = found[2].replace(self.between, "") if self.between else found[2]
        return float(f"{found[1]}{digits or 0}.{found[3] or 0}{found[4] or ''}")


NOTATIONS = [Notation(decimal, between) for decimal in ("point", "comma") for between in ("", " ", "'", ",", ".")
             if (decimal, between) not in (("point", "."), ("comma", ","))]  # fmt: skip


def is_number(text: str) -> bool:
    """Whether the text is a number as programs write them, be it too large for them as 1e400; infinity is none."""
    try:
        return "_" not in text and (math.isfinite(float(text)) or text[-1].isdigit())
    except ValueError:
        return False


def numbers_of(
    columns: dict[str, list[tuple[int, str]]], source: str, decimal: Decimal | None = None, trained: bool = False
) -> tuple[list[list[float]], Decimal | None]:
    """The numbers of each column's (line, text), NaN where one is missing; and the decimal sign if it is no plain file.

    All are taken to be in one notation: that of programs if they can be, or else the only one that fits.

    Args:
        columns: by their names.
        source: what a line about bad input begins with.
        decimal: what stands before the fraction; None to find it.
        trained: whether a run reads them that was trained before; without `decimal`, on a plain file.

    Raises `UserError` naming line and column of what is no number, is too large, or can be one number as well as
    another.
    """
    cells = [(name, line, text) for name, texts in columns.items() for line, text in texts if not _missing(text)]
    if decimal != "comma" and all(is_number(text) for _, _, text in cells):
        plain = [[math.nan if _missing(text) else float(text) for _, text in texts] for texts in columns.values()]
        _refuse_large(columns, plain, source)
        return plain, decimal
    fitting = [notation for notation in NOTATIONS if decimal in (None, notation.decimal)]
    allowed = [notation for notation in fitting if not trained or notation.decimal == (decimal or "point")]
    for name, line, text in cells:
        where = f"{source}: line {line}, column {name!r}"
        if all(notation.read(text) is None for notation in allowed):
            like = "1234,5" if decimal == "comma" else "1234.5"
            cure = f"write one like {like}" if trained else "name the columns of numbers with task.columns=[NAME,...]"
            raise UserError(f"{where}: {text[:60]!r} is not a number; {cure}")
        left = [notation for notation in fitting if notation.read(text) is not None]
        if not {*left} & {*allowed}:
            raise UserError(f"{where}: {text!r} is written in another way than the numbers before; write all alike")
        fitting = left
    for name, line, text in cells:
        values = {notation.read(text): notation.decimal for notation in fitting}
        if len(values) > 1:
            where, key = f"{source}: line {line}, column {name!r}", "" if trained else " (task.decimal={})"
            meant = " or ".join(f"{value:.15g}{key.format(kind)}" for value, kind in values.items())
            cure = "the run was trained on plain numbers, write it as one of these" if trained else "say which"
            raise Unsettled(f"{where}: {text!r} can be {meant}; {cure}")
    read = fitting[0].read
    found = [[math.nan if _missing(text) else read(text) or 0.0 for _, text in texts] for texts in columns.values()]
    _refuse_large(columns, found, source)
    return found, fitting[0].decimal


def _refuse_large(columns: dict[str, list[tuple[int, str]]], found: list[list[float]], source: str) -> None:
    for (name, texts), values in zip(columns.items(), found):
        for (line, text), value in zip(texts, values):
            if abs(value) > LARGEST:
                raise UserError(
                    f"{source}: line {line}, column {name!r}: {text[:60]!r} is more than models can calculate with, "
                    f"{LARGEST:g}; correct it, or write the column in a larger unit"
                )


def _missing(text: str) -> bool:
    return text.lower() in UNKNOWN
