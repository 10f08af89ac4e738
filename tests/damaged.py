"""What may stand in the cache in place of what was written there, and a file changed so that its time does not tell."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _as(change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    """Another array in place of the one that was written."""
    return lambda whole: npy(change(np.load(io.BytesIO(whole))))


def _without(name: str) -> Callable[[bytes], bytes]:
    def changed(whole: bytes) -> bytes:
        kept = json.loads(whole)
        del kept["facts"][name]
        return json.dumps(kept).encode()

    return changed


ARRAYS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "cut off": lambda whole: whole[:-1],
    "cut off in its head": lambda whole: whole[:50],
    "longer": lambda whole: whole + b"0",
    "foreign": lambda whole: b"no numbers",
    "hostile": lambda whole: whole[:10] + b"(" * (len(whole) - 10),
    "a row less": _as(lambda array: array[1:]),
    "of bytes": _as(lambda array: np.frombuffer(array.tobytes(), "S1")),
    "in two columns": _as(lambda array: np.stack([array, array], 1)),
    "of one number": lambda whole: npy(7),
}
FACTS: dict[str, Callable[[bytes], bytes]] = {
    **{
        text: lambda whole, text=text: text.encode()
        for text in ("", "[]", "null", "7", '"text"', "{}", "\xff", "[" * 9999)
    },
    "no UTF-8": lambda whole: b"\xff",
    "cut off": lambda whole: whole[:-1],
    "another letter": lambda whole: whole.replace(b"a", b"b", 1),
    "no array": _without("array"),
}


def replace_cached(folder: Path, ending: str, change: Callable[[bytes], bytes]) -> None:
    """Put something else in the place of the file of that ending; what is mapped stays."""
    [path] = folder.glob(f"*.{ending}")
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(change(whole))


def change_unnoticed(path: Path, content: bytes) -> None:
    """Write as many bytes as there are, and set back the time, as `touch -r` does."""
    before = path.stat()
    assert len(content) == before.st_size
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # a clock's tick may take some milliseconds
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
