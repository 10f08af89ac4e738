"""One process at a time in a run's folder: two would write their checkpoints and metrics over each other's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rnnzoo.errors import UserError

_held: set[Path] = set()
"""Folders that this process has to itself already."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep `folder` to this process while within. Raises `UserError` if another one has it.

    The system lets go of a lock when its process ends, however that ends, so that a dead one's does not count. Folders
    that had to be made are taken back if nothing has been written to them.
    """
    place = folder.resolve() / ".hydra"
    if place in _held:
        yield
        return
    made = [path for path in (place, *place.parents) if not path.exists()]
    place.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{folder}: another process trains there at this moment; wait for its end, or name another folder"
        ) from None
    _held.add(place)
    try:
        yield
    finally:
        _held.discard(place)
        with suppress(OSError):
            if [path.name for path in place.iterdir()] == ["lock"]:
                (place / "lock").unlink()
            for path in made:
                path.rmdir()  # raises where something is in it
        lock.release()
