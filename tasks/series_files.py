"""Series in CSV files: read row by row, or large files block by block into the cache, from where they are mapped.

Shapes: N rows, n columns.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from codecs import BOM_UTF8
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from rnnzoo import UserError
from rnnzoo.errors import nearest
from rnnzoo.files import cache_folder, expanded, writing
from rnnzoo.plain import printable

from .blocks import Array, blocks, joined, save
from .csv_files import delimiter_of, lines_of, read_lines
from .dates import moments, numbered
from .download import one_at_a_time
from .numerals import UNKNOWN, Decimal, Unsettled, is_number
from .series import Form, Rows, Series, Table, checked, judged, table_of


def read_csv(
    data: str,
    date: str | None = None,
    columns: list[str] | None = None,
    source: str | None = None,
    targets: Collection[str] | None = None,
    day_first: bool | None = None,
    decimal: Decimal | None = None,
) -> Series:
    """The series in a CSV file with a header line, its fields separated by commas, semicolons or tabs.

    Args:
        data: the file.
        date: the column of dates (YYYY, YYYY-MM, YYYY-MM-DD, DD.MM.YYYY, MM/DD/YYYY, with a time or not, or numbers as
            `numbered` has them); None for the one whose first value is a date, if there is one.
        columns: those to read, in this order; None for all but the dates and what only counts the rows.
        source: what a line about bad input begins with, if not with the key of the configuration.
        targets: columns that are read even if they seem to count the rows.
        day_first: whether dates begin with the day, where they can with the month; None to find it.
        decimal: what stands before a number's fraction; None to find it.

    Raises `UserError` with file and line for what is no number or date, for rows of another length than the header,
    and for dates that are not in order or come twice.
    """
    form = Form(date, columns, targets, day_first, decimal)
    header, rows = checked(read_lines(expanded(data), source or f"task.data={data}"), source or f"task.data={data}")
    return _series(table_of(data, header, rows, source, form), source or f"task.data={data}", form)


def read_apart(data: str, id: str, source: str | None = None, **form: Any) -> dict[str, Series]:
    """The series in a CSV file whose column `id` says to which one a row belongs, by what it says, in their order.

    Columns and the way of writing are found in the first series and are those of all; `form` is as in `read_csv`.
    """
    begin = source or f"task.data={data}"
    header, rows = checked(read_lines(expanded(data), begin), begin)
    if id not in header:
        raise UserError(f"{'' if source else 'task.id: '}no column {id!r} in {data}; {nearest(id, header)}")
    at = header.index(id)
    apart: dict[str, Rows] = {}
    for line, fields in rows:
        if not fields[at]:
            raise UserError(f"{begin}: line {line}: column {id!r} is empty; say there which series the row is of")
        apart.setdefault(fields[at], []).append((line, fields[:at] + fields[at + 1 :]))
    header = header[:at] + header[at + 1 :]
    found: dict[str, Series] = {}
    for name, own in apart.items():
        series = found[name] = _series(table_of(data, header, own, source, Form(**form)), begin, Form(**form))
        form |= {key: getattr(series, key) for key in ("date", "columns", "day_first", "decimal")}
    return found


def _series(table: Table, source: str, form: Form) -> Series:
    table, said = judged(table, source, form)
    for line in said:
        print(printable(line))
    values = torch.from_numpy(np.stack([*table.numbers.values()], 1))
    return Series([*table.numbers], values, *table[1:])
