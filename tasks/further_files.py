"""Files that a trained run reads, written and gone about as the one that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .calendars import calendar_of
from .gaps import completed, refuse_far
from .series import Series
from .series_files import read_apart, read_csv


def read_further(data: Path, told: Mapping[str, Any]) -> dict[str, Series]:
    """The series in a file by what its column `id` says, with rows for the dates that they lack.

    `told` are the arguments of the run's `Forecast`. Raises `UserError` that names the file for what cannot be read,
    and for values too far from those learned from.
    """
    form = {key: told[key] for key in ("date", "columns", "day_first", "decimal")}
    id, source = told["id"], str(data)
    read = read_apart(source, id, source, **form) if id else {"": read_csv(source, source=source, **form)}
    center, scale = (torch.tensor(told[key], dtype=torch.float64) for key in ("center", "scale"))
    for name, series in read.items():
        begin = named(data, id, name)
        read[name] = completed(series, calendar_of(series.dates, told["rhythm"]), told["missing"], begin)
        refuse_far(read[name].values, center, scale, begin, series.columns)
    return read


def named(data: Path, id: str | None, name: str) -> str:
    """How a line begins about a file, or about that one of its series which the column `id` calls so."""
    return f"{data}: {id}={name}" if id else str(data)
