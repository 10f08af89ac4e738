"""Long arrays: taken block by block, and kept in files mapped into memory, which then holds only what is being read."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, TypeAlias, TypeVar

import numpy as np

from rnnzoo.files import filling_cache, writing
from rnnzoo.plain import printable

from .download import one_at_a_time

ROWS = 1 << 17
"""Rows of a block."""

LARGE = 1 << 24
"""Bytes above which an array stands in a file."""

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
T = TypeVar("T")


def blocks(rows: int, before: int = 0) -> Iterator[slice]:
    """Slices that cover so many rows in order, each begun `before` rows earlier where there are as many."""
    for start in range(0, rows, ROWS):
        yield slice(max(start - before, 0), min(start + ROWS, rows))


def joined(pieces: Iterable[Array]) -> Array:
    """The pieces, one behind the other; a large array stands in a file of the cache that is gone with the process."""
    held: list[Array] = []
    size, pieces = 0, iter(pieces)
    for piece in pieces:
        held.append(piece)
        size += piece.nbytes
        if size > LARGE:
            break
    else:
        return held[0] if len(held) == 1 else np.concatenate(held)
    with filling_cache() as folder, TemporaryFile(dir=folder) as file:
        rows = _written(file, chain(held, pieces))
        return np.memmap(file, held[0].dtype, "r+", shape=(rows, *held[0].shape[1:]))


def together(parts: Sequence[Array]) -> Array:
    """Arrays, one behind the other; the only one as it is."""
    if len(parts) == 1:
        return parts[0]
    return joined(chain([parts[0][:0]], (part[block] for part in parts for block in blocks(len(part)))))


def save(path: Path, pieces: Iterable[Array]) -> None:
    """Write the pieces, one behind the other, as one array that `np.load` reads."""
    pieces = iter(pieces)
    first = next(pieces)

    def head(rows: int) -> None:
        described = np.lib.format.dtype_to_descr(first.dtype)
        shape = (rows, *first.shape[1:])
        np.lib.format.write_array_header_1_0(file, {"descr": described, "fortran_order": False, "shape": shape})

    with writing(path) as partial, partial.open("wb") as file:
        head(0)  # it has room for any number of rows
        rows = _written(file, chain([first], pieces))
        file.seek(0)
        head(rows)


def _written(file: IO[bytes], pieces: Iterable[Array]) -> int:
    rows = 0
    for piece in pieces:
        file.write(piece.tobytes())
        rows += len(piece)
    file.flush()
    return rows


@one_at_a_time()
def kept(last: Path, make: Callable[[], None], load: Callable[[], T]) -> T:
    """What is loaded from the cache, which is filled the first time.

    What cannot be loaded is damaged; it is made anew, with a warning.

    Args:
        last: the file of the cache that `make` writes last, so that where it is the others are, too.
        make: fills the cache.
        load: reads it, and raises whatever it may for what is not as it was written.
    """
    if last.is_file():
        try:
            return load()
        except Exception as error:  # of a file that may hold anything
            warnings.warn(printable(f"{last} is damaged ({error}) and will be made anew"), stacklevel=4)
    make()
    return load()


def facts_file(numbers: Path) -> Path:
    """Where `note` writes what is to be known of an array in the cache."""
    return numbers.with_suffix(".json")


def note(numbers: Path, **facts: Any) -> None:
    """Write beside an array in the cache what else there is to know of it, as JSON."""
    noted = {**facts, "array": _described(numbers, np.lib.format.open_memmap(numbers, mode="r"))}
    with writing(facts_file(numbers)) as partial:
        partial.write_text(json.dumps({"facts": noted, "checksum": _checksum(noted)}))


def noted(numbers: Path) -> tuple[Array, dict[str, Any]]:
    """An array in the cache, mapped into memory, and what `note` was told of it; what is damaged raises an error.

    Of the array itself, which may be large, only size, type and shape are compared with what they were.
    """
    kept = json.loads(facts_file(numbers).read_text())
    array = np.lib.format.open_memmap(numbers, mode="c")  # copies what is written to, which nobody does
    facts = kept["facts"]
    if _checksum(facts) != kept["checksum"] or facts.pop("array") != _described(numbers, array):
        raise ValueError(f"{numbers.name} beside it, or itself, is not what was written")
    return array, facts


def _described(path: Path, array: Array) -> str:
    return f"{path.stat().st_size} bytes, {array.dtype.descr}, {array.shape}"


def _checksum(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def key_of(path: Path, *further: Any) -> str:
    """What names in the cache what was made of a file, until that is changed; `further` is what else it depends on."""
    facts = path.resolve(), *version_of(path), *further
    return hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def version_of(path: Path) -> tuple[int, int, int]:
    """What of a file differs once it is changed: `touch -r` sets back the time of its contents, but not the last."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
