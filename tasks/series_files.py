"""Series in CSV files: row by row, or from the cache, into which a large file is read block by block.

Shapes: N rows, n columns.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rnnzoo.files import cache_folder, expanded
from rnnzoo.plain import printable

from .blocks import blocks, facts_file, kept, key_of, note, noted, save
from .csv_files import read_lines
from .numerals import Decimal
from .plain_csv import NotPlain, read_plain
from .series import Form, Series, Table, apart_by, checked, dated, settled, table_of

LARGE = 1 << 22
"""Bytes of a file above which it is read into the cache."""

FORMAT = "2"
"""Part of the cache's key; to be raised with any change to how files are read."""


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
        source: for a trained run that reads a further file: what a line about bad input begins with.
        targets: columns that are read even if they seem to count the rows.
        day_first: whether dates begin with the day, where they can with the month; None to find it.
        decimal: what stands before a number's fraction; None to find it.

    Raises `UserError` with file and line for what is no number or date, for rows of another length than the header,
    and for dates that are not in order or come twice.
    """
    [series] = _read(data, None, source, Form(date, columns, targets, day_first, decimal, source is not None)).values()
    return series


def read_apart(data: str, id: str, source: str | None = None, **form: Any) -> dict[str, Series]:
    """The series in a CSV file whose column `id` says to which one a row belongs, by what it says, in their order.

    Columns and the way of writing are found in the first series and are those of all; `form` is as in `read_csv`.
    """
    return _read(data, id, source, Form(**form, trained=source is not None))


def _read(data: str, id: str | None, source: str | None, form: Form) -> dict[str, Series]:
    begin = source or f"task.data={data}"
    path = expanded(data)
    if path.is_file() and path.stat().st_size > LARGE:
        try:
            return _kept(path, data, id, source, form)
        except NotPlain as reason:
            print(printable(f"{begin}: {reason}; it is read row by row, which takes time and memory"), file=sys.stderr)
    header, rows = checked(read_lines(path, begin), begin)
    header, apart = apart_by(id, header, rows, data, source)
    made = {name: partial(table_of, data, header, own, source) for name, own in apart.items()}
    tables, said = settled(made, begin, form)
    _say(said, begin)
    return {
        name: Series([*table.numbers], torch.from_numpy(np.stack([*table.numbers.values()], 1)), *table[1:])
        for name, table in tables.items()
    }


def _kept(path: Path, data: str, id: str | None, source: str | None, form: Form) -> dict[str, Series]:
    """The same of a file in the cache, read into it unless this very file was before."""
    begin = source or f"task.data={data}"
    rows = cache_folder() / f"series_{key_of(path, FORMAT, id, form)}.npy"

    def make() -> None:
        print(printable(f"{begin}: reading it into {rows}"), file=sys.stderr)
        tables, said = settled(read_plain(path, data, id, source, form), begin, form)
        save(
            rows,
            (
                dated(table.dates[block], np.stack([column[block] for column in table.numbers.values()], 1))
                for table in tables.values()
                for block in blocks(_rows(table))
            ),
        )
        one = next(iter(tables.values()))
        facts = {"columns": [*one.numbers], "date": one.date, "day_first": one.day_first, "decimal": one.decimal}
        note(rows, facts=facts, said=said, sizes={name: _rows(table) for name, table in tables.items()})

    def load() -> tuple[dict[str, Series], list[str]]:
        whole, about = noted(rows)
        parts = [whole[slice(*ends)] for ends in pairwise(accumulate(about["sizes"].values(), initial=0))]
        facts = about["facts"]
        return {
            name: Series(
                values=torch.from_numpy(part["values"]), dates=part["date"][: len(part) * (facts["date"] is not None)],
                **facts,
            )
            for name, part in zip(about["sizes"], parts)
        }, about["said"]  # fmt: skip

    found, said = kept(facts_file(rows), make, load)
    _say(said, begin)
    return found


def _rows(table: Table) -> int:
    return len(next(iter(table.numbers.values())))


def _say(lines: list[str], begin: str) -> None:
    for line in lines:
        print(printable(f"{begin}: {line}"))
