"""Text from files and people as it may be shown: without control characters, passwords, and what a reader executes."""

from __future__ import annotations

import re
import unicodedata

HIDDEN = "***"

VISIBLE = {"\n": "↵", " ": "·", "\t": "→"}
"""What stands for characters that cannot be seen, where each has a place of its own."""


def printable(text: object) -> str:
    """A text whose control characters are spelt out, so that no terminal obeys them; line ends and tabs stay."""
    return "".join(_spelt(c) if c not in "\n\t" and _is_control(c) else c for c in str(text))


def _spelt(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _is_control(character: str) -> bool:
    """Control characters, those that turn the direction of writing, and halves of characters."""
    return unicodedata.category(character) in ("Cc", "Cs") or unicodedata.bidirectional(character) in (
        "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI",
    )  # fmt: skip


def masked(text: object) -> str:
    """A text in which the passwords of URLs are hidden."""
    hidden = re.sub(r"(://[^:/@\s]*:)\S*(?=@)", rf"\g<1>{HIDDEN}", str(text))
    return re.sub(r"(?i)([?&][^=&\s]*(?:pass|pwd|secret|token)[^=&\s]*=)[^&\s'\"]*", rf"\g<1>{HIDDEN}", hidden)


def markdown(text: object) -> str:
    """A text as Markdown shows it, in a table's cell too: nothing in it is HTML, a link, or the end of a cell."""
    escaped = re.sub(r"([\\`*\[\]|])", r"\\\1", printable(text).replace("\n", " "))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def csv_cell(value: object) -> object:
    """A value for a CSV file, which a spreadsheet must not take for a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text[:1] in tuple("=+-@\t") and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
