"""Long arrays: taken block by block, and kept in files mapped into memory, which then holds only what is being read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, TypeAlias

import numpy as np

from rnnzoo import UserError
from rnnzoo.files import cache_folder, writing

ROWS = 1 << 17
"""Rows of a block."""

LARGE = 1 << 24
"""Bytes above which an array stands in a file."""

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


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
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            rows = _written(file, chain(held, pieces))
            return np.memmap(file, held[0].dtype, "r+", shape=(rows, *held[0].shape[1:]))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}; RNNZOO_CACHE names another") from error


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


def key_of(path: Path, *further: Any) -> str:
    """What names in the cache what was made of a file, until that is changed; `further` is what else it depends on."""
    facts = path.resolve(), path.stat().st_size, path.stat().st_mtime_ns, *further
    return hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()[:16]
