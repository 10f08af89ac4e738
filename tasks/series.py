"""Time series: what the fields of a table say of one, and a series made on the spot.

Shapes: N rows, n columns. A missing value is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rnnzoo import UserError
from rnnzoo.errors import nearest

from .blocks import Array, blocks
from .calendars import calendar_of
from .dates import Moments, dates_of, is_date, moments, numbered
from .numerals import Decimal, is_number, numbers_of

COUNTED = 3
"""Rows from which on a column that rises evenly is taken for the rows' number."""

TURN = 51
"""Units of time after which `mackey_glass` looks most like itself."""

Rows = list[tuple[int, list[str]]]
"""Lines of a file with their fields."""


class Series(NamedTuple):
    """Columns of numbers over time: their names, values [N, n] in float64, and the dates' column with its N dates."""

    columns: list[str]
    values: Tensor
    date: str | None
    dates: Moments
    day_first: bool | None = None
    """Whether the file's dates begin with the day, where they could with the month."""
    decimal: Decimal | None = None
    """What stands before the fraction of its numbers, if they are not written plainly."""


def dated(dates: Moments, values: Array) -> Array:
    """Dates [N], if there are any, and values [N, n], row by row, as one array."""
    rows = np.zeros(len(values), [("date", "M8[us]"), ("values", "f8", values.shape[1:])])
    rows["values"] = values
    if len(dates):
        rows["date"] = dates
    return rows


class Form(NamedTuple):
    """What a person says of a file, see `read_csv`."""

    date: str | None = None
    columns: list[str] | None = None
    targets: Collection[str] | None = None
    day_first: bool | None = None
    decimal: Decimal | None = None
    trained: bool = False
    """Whether a run was trained so and reads a further file, about which nothing can be said any more."""


class Table(NamedTuple):
    """The columns of a table that were chosen, with their numbers [N], and the dates' column with its N dates."""

    numbers: dict[str, Array]
    date: str | None
    dates: Moments
    day_first: bool | None = None
    decimal: Decimal | None = None


def checked(lines: Iterable[tuple[int, list[str]]], source: str) -> tuple[list[str], Rows]:
    """The header of a table, and its rows with their lines, each as long as the header."""
    (_, header), *rows = lines
    if "" in header or len(set(header)) < len(header):
        raise UserError(f"{source}: line 1: columns need names that differ, not {', '.join(map(repr, header))}")
    if all(is_number(name) or is_date(name) for name in header):
        raise UserError(f"{source}: line 1 holds values, not the names of columns; put a header line before it")
    if not rows:
        raise UserError(f"{source}: there is a header but no row")
    refuse_other_lengths(rows, header, source)
    return header, rows


def refuse_other_lengths(rows: Rows, header: list[str], source: str) -> None:
    for line, fields in rows:
        if len(fields) != len(header):
            raise UserError(f"{source}: line {line} has {len(fields)} fields, but the header {len(header)}")


def apart_by(
    id: str | None, header: list[str], rows: Rows, data: str, source: str | None
) -> tuple[list[str], dict[str, Rows]]:
    """The header without the column `id`, and the rows by what they say there; all by nothing without such a column."""
    if id is None:
        return header, {"": rows}
    if id not in header:
        raise UserError(f"{'' if source else 'task.id: '}no column {id!r} in {data}; {nearest(id, header)}")
    at = header.index(id)
    apart: dict[str, Rows] = {}
    for line, fields in rows:
        if not fields[at]:
            raise UserError(
                f"{source or f'task.data={data}'}: line {line}: column {id!r} is empty; say there which series the "
                f"row is of"
            )
        apart.setdefault(fields[at], []).append((line, fields[:at] + fields[at + 1 :]))
    return header[:at] + header[at + 1 :], apart


def table_of(data: str, header: list[str], rows: Rows, source: str | None, form: Form) -> Table:
    """What the rows of a file say, see `read_csv`."""
    date, columns, _, day_first, decimal, trained = form
    key = "" if trained else "task."
    source = source or f"task.data={data}"
    if date is None:
        dated = [name for name, text in zip(header, rows[0][1]) if is_date(text) and not is_number(text)]
        if len(dated) > 1 and not trained:
            raise UserError(f"{source}: {' and '.join(dated)} hold dates; choose with task.date=NAME")
        date = dated[0] if len(dated) == 1 else None
    chosen = [name for name in header if name != date] if columns is None else columns
    for what, names in (("columns", chosen), ("date", [date] if date is not None else [])):
        for name in names:
            if name not in header:
                begin = f"{key}{what}: " if key else ""
                raise UserError(f"{begin}no column {name!r} in {data}; {nearest(name, header)}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise UserError(f"task.columns: {data} needs at least one column besides the dates, and each only once")

    def texts(name: str) -> list[tuple[int, str]]:
        return [(line, fields[header.index(name)]) for line, fields in rows]

    found, decimal = numbers_of({name: texts(name) for name in chosen}, source, decimal, trained)
    numbers = {name: np.array(column) for name, column in zip(chosen, found)}
    if date is None:
        return Table(numbers, None, moments([]), day_first, decimal)
    return Table(numbers, date, *dates_of(texts(date), source, date, day_first, trained), decimal)


def settled(
    series: Mapping[str, Callable[[Form], Table]], source: str, form: Form
) -> tuple[dict[str, Table], list[str]]:
    """The tables of some series, made of the form that is found in the first, and what is to be said of them."""
    found: dict[str, Table] = {}
    said: list[str] = []
    for name, made in series.items():
        table, further = judged(made(form), source, form)
        if found and (table.decimal, form.decimal) == ("comma", None):
            raise UserError(f"{source}: {name!r} has decimal commas, the series before do not; say task.decimal=comma")
        found[name], said = table, said + further
        form = form._replace(
            date=table.date, columns=[*table.numbers], day_first=table.day_first, decimal=table.decimal
        )
    return found, said


def judged(table: Table, source: str, form: Form) -> tuple[Table, list[str]]:
    """The table with what its columns stand for: none that only counts the rows, dates where numbers are some; and
    what is to be said of that."""
    numbers, said = table.numbers, list[str]()
    for name, column in numbers.items():
        if all(np.isnan(column[block]).all() for block in blocks(len(column))):
            others = ",".join(other for other in numbers if other != name)
            cure = "the run was trained to read it" if form.trained else f"leave it out with task.columns=[{others}]"
            raise UserError(f"{source}: column {name!r} is empty; {cure}")
    if table.decimal == "comma" and form.decimal is None:
        said.append("numbers are read with a decimal comma; if they have points, say task.decimal=point")
    if form.columns is not None:
        return table, said
    if table.date is None:
        table = _with_time(table)
        if table.date is not None:
            what = f"{table.date!r} is taken for dates; if it is none, name the columns with task.columns=[NAME,...]"
            said.append(what)
    counts = [
        name for name, values in numbers.items() if name not in (table.date, *(form.targets or ())) and _counts(values)
    ]
    for name in counts:
        few = ", ".join(f"{value:.15g}" for value in numbers[name][:COUNTED])
        what = f"{name!r} only counts the rows ({few}, ...) and is left out; task.columns=[NAME,...] reads it"
        said.append(what)
    left = {name: values for name, values in numbers.items() if name not in (table.date, *counts)}
    if not left:
        raise UserError(
            f"{source}: {' and '.join(numbers)} only count the rows, there is nothing to forecast; name the columns "
            f"with task.columns=[NAME,...] if it is meant"
        )
    return table._replace(numbers=left), said


def _with_time(table: Table) -> Table:
    """The table with the dates that the first column of numbers stands for that stand for any."""
    for name, values in table.numbers.items():
        dates = numbered(values) if len(values) >= COUNTED else None
        if dates is not None and calendar_of(dates):  # what merely grows, as a population does, keeps no rhythm
            return table._replace(date=name, dates=dates)
    return table


def _counts(values: Array) -> bool:
    """Whether values rise, and evenly; a missing one does not."""
    if len(values) < COUNTED or not all((np.diff(values[block]) > 0).all() for block in blocks(len(values), 1)):
        return False
    first, last = values[[0, -1]].tolist()
    size = max(abs(first), abs(last))  # values are rounded in proportion to it, by double precision or a file
    mean = (last - first) / (len(values) - 1)
    off = 1e-6 * mean + 1e-12 * size
    return all((np.abs(np.diff(values[block]) - mean) <= off).all() for block in blocks(len(values), 1))


def mackey_glass(rows: int = 2000, every: int = 3) -> Series:
    """A chaotic series: dx/dt = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x, from x = 1.2 (Mackey & Glass 1977).

    Euler's method with ten steps a unit of time, as in Jaeger 2001 (GMD report 148, section 6.1); a row every so many
    units, after 300 units to settle.
    """
    x, steps = [1.2] * 171, 10 * every * rows
    for _ in range(3000 + steps):
        x.append(x[-1] + 0.1 * (0.2 * x[-171] / (1 + x[-171] ** 10) - 0.1 * x[-1]))
    return Series(["x"], torch.tensor(x[-steps :: 10 * every], dtype=torch.float64)[:, None], None, moments([]))
