"""Tables in CSV files: their lines, taken apart."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from rnnzoo import UserError

from .text_files import LARGEST, pieces, read_blocks, refuse_no_file


def read_lines(path: Path, source: str, largest: float = LARGEST) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and fields, those of the header first, see `lines_of`; the file is read block by block.

    Raises `UserError` that begins with `source` for what is no such file or one of more than `largest` bytes.
    """
    refuse_no_file(path, source)
    lines = _lines(pieces(read_blocks(path, source, largest), source))
    header = next(lines, None)
    if header is None:
        raise UserError(f"{source}: the file is empty")
    yield from lines_of(chain([header], lines), delimiter_of(header), source)


def delimiter_of(text: str) -> str:
    """Comma, semicolon or tab, whichever the first line has most of."""
    names = re.sub(r'"[^"]*"', "", text.partition("\n")[0])
    return max(",;\t", key=names.count)


def lines_of(lines: Iterable[str], delimiter: str, source: str, before: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and fields of lines with their ends; an empty line is a missing value of a single column.

    `before` is how many lines of the file came before. Raises `UserError` that begins with `source` for what is wrongly
    quoted, and for a field of more than 131,072 characters, with the line where its row begins.
    """
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    begin = before + 1
    try:
        for fields in reader:
            yield before + reader.line_num, [field.strip() for field in fields] or [""]
            begin = before + reader.line_num + 1
    except csv.Error as error:
        line = before + reader.line_num
        if str(error) == "unexpected end of data":
            raise UserError(f"{source}: line {begin}: a quote in the row that begins here is never closed") from None
        where = f", in a row with quotes that begins in line {begin}" if begin < line else ""
        raise UserError(f"{source}: line {line}: {error}{where}") from None


def _lines(parts: Iterator[str]) -> Iterator[str]:
    """The lines of a text that comes in parts, without the empty ones at its end."""
    rest, empty = "", []
    for part in chain(parts, [None]):
        lines = io.StringIO(rest + (part or ""), newline="").readlines()
        rest = lines.pop() if lines and part is not None else ""  # what follows may be more of it
        for line in lines:
            empty.append(line)
            if line.strip("\r\n"):
                yield from empty
                empty.clear()
