"""Tables in CSV files: their lines, taken apart."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from rnnzoo import UserError

from .text_files import LARGEST, blocks, pieces


def read_lines(path: Path, source: str, largest: float = LARGEST) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and fields, those of the header first; an empty line is a missing value of a single column.

    Fields are separated by commas, semicolons or tabs, whichever the header has most of. Raises `UserError` that begins
    with `source` for what is no such file or one of more than `largest` bytes, and for a field of more than 131,072
    characters. The file is read block by block.
    """
    if not path.is_file():
        raise UserError(f"{source}: no such file")
    lines = _lines(pieces(blocks(path, source, largest), source))
    header = next(lines, None)
    if header is None:
        raise UserError(f"{source}: the file is empty")
    names = re.sub(r'"[^"]*"', "", header)
    delimiter = max(",;\t", key=names.count)
    reader = csv.reader(chain([header], lines), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for fields in reader:
            yield reader.line_num, [field.strip() for field in fields] or [""]
    except csv.Error as error:
        raise UserError(f"{source}: line {reader.line_num}: {error}") from None


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
