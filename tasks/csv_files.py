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
    """Line numbers and fields, those of the header first; an empty line is a missing value of a single column.

    Fields are separated by commas, semicolons or tabs, whichever the header has most of. Raises `UserError` that begins
    with `source` for what is no such file, and for a field of more than 131,072 characters.
    """
    if not path.is_file():
        raise UserError(f"{source}: no such file")
    text = read_text(path, source).rstrip("\r\n")
    if not text:
        raise UserError(f"{source}: the file is empty")
    names = re.sub(r'"[^"]*"', "", text.partition("\n")[0])
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=max(",;\t", key=names.count), skipinitialspace=True, strict=True)
    try:
        for fields in reader:
            yield reader.line_num, [field.strip() for field in fields] or [""]
    except csv.Error as error:
        raise UserError(f"{source}: line {reader.line_num}: {error}") from None
