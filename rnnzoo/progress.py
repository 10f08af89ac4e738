"""Work that takes more than a moment says on stderr how far it is: a bar where somebody watches, else one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")


def steps(items: Collection[T], what: str, name: Callable[[T], str] = str) -> Iterator[T]:
    """The items, one by one, while a bar says what is done to which of them and how long the rest will take."""
    with _bar(what, len(items), "steps") as (progress, bar):
        for item in items:
            progress.update(bar, description=f"{what} {name(item)}")
            yield item
            progress.advance(bar)


@contextmanager
def transfer(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar for so many bytes, None for an unknown number; yields what is to be told of each piece's size."""
    with _bar(what, total, "bytes") as (progress, bar):
        yield lambda size: progress.advance(bar, size)


@contextmanager
def _bar(what: str, total: int | None, of: str) -> Iterator[tuple[Progress, TaskID]]:
    console = Console(stderr=True)
    counted = DownloadColumn() if of == "bytes" else MofNCompleteColumn()
    if not console.is_terminal:
        print(f"{what}: {total:,} {of}" if total and total > 1 else what, file=sys.stderr, flush=True)
    look = TextColumn("{task.description}"), BarColumn(), counted, TimeRemainingColumn()
    with Progress(*look, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress, progress.add_task(what, total=total)
