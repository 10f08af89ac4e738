"""Tables in CSV files: their lines, taken apart."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from rnnzoo import UserError

from .text_files import read_text


def read_lines(path: Path, source: str) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and fields, those of the header first, see `lines_of`.

    Raises `UserError` that begins with `source` for what is no such file.
    """
    if not path.is_file():
        raise UserError(f"{source}: no such file")
    text = read_text(path, source).rstrip("\r\n")
    if not text:
        raise UserError(f"{source}: the file is empty")
    return lines_of(text, delimiter_of(text), source)


def delimiter_of(text: str) -> str:
    """Comma, semicolon or tab, whichever the first line has most of."""
    names = re.sub(r'"[^"]*"', "", text.partition("\n")[0])
    return max(",;\t", key=names.count)


def lines_of(text: str, delimiter: str, source: str, before: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and fields; an empty line is a missing value of a single column.

    `before` is how many lines of the file came before. Raises `UserError` that begins with `source` for what is wrongly
    quoted, and for a field of more than 131,072 characters.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for fields in reader:
            yield before + reader.line_num, [field.strip() for field in fields] or [""]
    except csv.Error as error:
        raise UserError(f"{source}: line {before + reader.line_num}: {error}") from None
