"""Large CSV files that are written plainly, as programs do: read by Arrow, block by block.

What Arrow takes for a number or a date is the same one to the reader of rows. A block that it refuses is shown to that
reader, which says what is wrong with it; otherwise the file is not plain.

Shapes: N rows, m columns of numbers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import accumulate, chain, pairwise, product
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from rnnzoo.progress import transfer

from .blocks import Array, blocks, joined
from .csv_files import delimiter_of, lines_of
from .dates import moments, numbered
from .numerals import LARGEST, UNKNOWN, Unsettled, is_number
from .series import Form, Table, apart_by, checked, refuse_other_lengths, table_of
from .text_files import pieces, read_blocks

HEAD = 1000
"""Rows by which it is found what a file holds."""

LONGEST = 131_072
"""Characters of a line; as many as the reader of rows allows a field."""

YEARS = np.array(["0001-01-01", "9999-12-31T23:59:59.999999"], "M8[us]")
"""The first and the last date that the reader of rows knows."""

AWAY = re.compile(r"(Z|:\d.*[+-]\d\d(:?\d\d)?)$")
"""How a date ends that says how far it is from UTC."""

MISSING = ["".join(case) for text in UNKNOWN for case in product(*({c, c.upper()} for c in text))]


class NotPlain(Exception):
    """Why a file, which may be right, has to be read row by row."""


def read_plain(
    path: Path, data: str, id: str | None, source: str | None, form: Form
) -> dict[str, Callable[[Form], Table]]:
    """The series of a file by what its column `id` calls them, or its only one by nothing, each as the table of a form.

    Raises `UserError` as the reader of rows does, and `NotPlain` where that has to read the file.
    """
    begin = source or f"task.data={data}"
    parts = _parts(pieces(read_blocks(path, begin), begin))
    first = next(parts, "")
    if not first:
        raise NotPlain("it holds nothing")
    reader = PlainReader(first, data, id, source, form)
    with transfer("reading", path.stat().st_size) as progress:

        def rows() -> Iterator[Array]:
            for text in chain([first.partition("\n")[2]], parts):
                yield reader.read(text)
                progress(len(text))

        return reader.apart(joined(rows()))


def _parts(texts: Iterator[str]) -> Iterator[str]:
    """The same characters, cut where lines end, and without empty lines at the end."""
    left = ""
    for text in texts:
        end = left.rfind("\n", 0, len(left.rstrip("\r\n"))) + 1
        if end:
            yield left[:end]
        left = left[end:] + text
    if left.rstrip("\r\n"):
        yield left.rstrip("\r\n")


class PlainReader:
    """Knows from the beginning of a file, `first`, what it holds; the other arguments are those of `read_plain`."""

    def __init__(self, first: str, data: str, id: str | None, source: str | None, form: Form) -> None:
        self.data, self.id, self.source, self.form = data, id, source, form
        self.begin = source or f"task.data={data}"
        self.delimiter = delimiter_of(first)
        title, _, rest = first.partition("\n")
        if title.count('"') % 2 or not rest:
            raise NotPlain("it begins with very long lines, or a header of several")
        head = "\n".join(self._plain(rest).split("\n", HEAD)[:HEAD])
        lines = chain(self._lines(title + "\n", 0), self._lines(head, 1))
        self.header, self.rows = checked(lines, self.begin)
        header, apart = apart_by(id, self.header, self.rows, data, source)
        rows = next(iter(apart.values()))
        try:
            self.table = table_of(data, header, rows, source, form)
        except Unsettled as error:
            raise NotPlain("its first rows do not tell how numbers and dates are written") from error
        self.names = [*self.table.numbers]
        self.line, self.last, self.latest, self.ids = 2, "", YEARS[0] - 1, dict[str, int]()

        import pyarrow as pa  # late, for it is needed for large files alone

        self.dated = self.table.date is not None
        self.types: dict[str, Any] = {} if id is None else {id: pa.dictionary(pa.int32(), pa.string())}
        if self.table.date is not None:
            text = rows[0][1][header.index(self.table.date)]
            self.dated = not is_number(text)
            if self.dated:
                self.types[self.table.date] = pa.timestamp("us", "UTC" if AWAY.search(text) else None)
            elif self.table.date not in self.names:
                self.names.append(self.table.date)
        self.types |= dict.fromkeys(self.names, pa.float64())

    def read(self, text: str) -> Array:
        """The numbers and the date in each of the lines that follow those read before, and which series it is of."""
        import pyarrow as pa
        from pyarrow import csv

        rows = np.zeros(
            text.count("\n") + (text[-1:] not in ("\n", "")),
            [("id", "i8"), ("date", "M8[us]"), ("values", "f8", len(self.names))],
        )
        if not len(rows):
            return rows
        plain = self._plain(text)
        try:
            table = csv.read_csv(
                pa.py_buffer(plain.encode()),
                csv.ReadOptions(use_threads=False, column_names=self.header),
                csv.ParseOptions(delimiter=self.delimiter, quote_char=False, ignore_empty_lines=False),
                csv.ConvertOptions(
                    column_types=self.types, include_columns=[*self.types], null_values=MISSING,
                    decimal_point="," if self.table.decimal == "comma" else ".",
                ),
            )  # fmt: skip
        except pa.ArrowInvalid:
            table = None
        if table is None or len(table) != len(rows):
            self._refuse(text)
        for at, name in enumerate(self.names):
            column = table[name]
            rows["values"][:, at] = column.to_numpy()
            if (np.abs(rows["values"][:, at]) <= LARGEST).sum() + column.null_count < len(rows):
                self._refuse(text)
        if self.dated:
            column = table[self.table.date]
            rows["date"] = dates = column.cast(pa.int64()).fill_null(0).to_numpy().view("M8[us]")
            rising = self.id is not None or (np.diff(dates, prepend=[self.latest]) > np.timedelta64(0)).all()
            if column.null_count or not rising or dates.min() < YEARS[0] or dates.max() > YEARS[1]:
                self._refuse(text)
            self.latest = dates[-1]
        if self.id is not None:
            column = table[self.id].unify_dictionaries().combine_chunks()
            names = [name.strip() for name in column.dictionary.to_pylist()]
            if column.null_count or "" in names:
                self._refuse(text)
            rows["id"] = np.array([self.ids.setdefault(name, len(self.ids)) for name in names])[column.indices]
        self.line, self.last = self.line + len(rows), plain.rstrip("\r\n").rpartition("\n")[2]
        return rows

    def _lines(self, text: str, before: int) -> Iterator[tuple[int, list[str]]]:
        return lines_of(io.StringIO(text, newline=""), self.delimiter, self.begin, before)

    def _plain(self, text: str) -> str:
        """Lines without quotes; `NotPlain` where quotes or the ends of lines mean more than that."""
        if '"' in text:
            text = re.sub(
                rf'(?<![^{self.delimiter}\n])"([^"{self.delimiter}\r\n]*)"(?![^{self.delimiter}\r\n])', r"\1", text
            )
        if '"' in text or text.count("\r") != text.count("\r\n"):
            raise NotPlain("some fields hold quotes, separators or ends of lines")
        end = 0
        while end + LONGEST < len(text):
            end = text.rfind("\n", end, end + LONGEST) + 1
            if not end:
                raise NotPlain(f"a line has more than {LONGEST:,} characters")
        return text

    def _refuse(self, text: str) -> NoReturn:
        """Raise what the reader of rows says of lines that Arrow refused, or that they are not plain."""
        lines = [*self._lines(text, self.line - 1)]
        refuse_other_lengths(lines, self.header, self.begin)
        before = [*self.rows, *self._lines(self.last, self.line - 2)]  # and they may overlap
        lines = [*{line: fields for line, fields in before if line < self.line}.items(), *lines]
        header, apart = apart_by(self.id, self.header, lines, self.data, self.source)
        form = self.form._replace(date=self.table.date, columns=[*self.table.numbers])
        with suppress(Unsettled):
            for rows in apart.values():
                table_of(self.data, header, rows, self.source, form)
        raise NotPlain(
            f"from line {self.line:,} to {lines[-1][0]:,}, not all are plain numbers and dates like 2001-02-28 12:00"
        )

    def apart(self, rows: Array) -> dict[str, Callable[[Form], Table]]:
        """The series by their names, each as the table of a form, of all rows that were read."""
        if self.id is None:
            return {"": partial(self.made, rows)}
        numbers = rows["id"]
        if any((np.diff(numbers[block]) < 0).any() for block in blocks(len(rows), 1)):
            order = np.argsort(numbers, kind="stable")
            rows = joined(rows[order[block]] for block in blocks(len(rows)))
        ends = accumulate(np.bincount(numbers).tolist(), initial=0)
        return {name: partial(self.made, rows[slice(*ends)]) for name, ends in zip(self.ids, pairwise(ends))}

    def made(self, rows: Array, form: Form) -> Table:
        """The table of a form in all rows of a series."""
        values = {name: rows["values"][:, at] for at, name in enumerate(self.names)}
        numbers = {name: values[name] for name in form.columns or self.table.numbers}
        date, dates = form.date or self.table.date, moments([])
        if date is not None and date in values:
            found = numbered(values[date], named=True)
            if found is None:
                raise NotPlain(f"{date!r} does not hold numbers that stand for dates and rise")
            dates = found
        elif date is not None:
            dates = rows["date"]
            if self.id is not None and not all(
                (np.diff(dates[b]) > np.timedelta64(0)).all() for b in blocks(len(dates), 1)
            ):
                raise NotPlain(f"{date!r} does not rise in each series")
        return Table(numbers, date, dates, self.table.day_first, self.table.decimal)
