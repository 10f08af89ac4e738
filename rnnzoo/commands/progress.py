"""A bar on stderr for work that takes more than a moment, where somebody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


def steps(items: Iterable[T], what: str, total: int | None = None, name: Callable[[T], str] = str) -> Iterator[T]:
    """The items, one by one, while a bar says what is done to which of them and how long the rest will take."""
    console = Console(stderr=True)
    look = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*look, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=total)
        for item in items:
            progress.update(bar, description=f"{what} {name(item)}")
            yield item
            progress.advance(bar)
