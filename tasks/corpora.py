"""Texts by name, and texts from files of a person's own."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rnnzoo import UserError
from rnnzoo.errors import nearest
from rnnzoo.files import cache_folder, expanded, writing
from rnnzoo.plain import printable

from .blocks import facts_file, kept, key_of, note, noted
from .download import download
from .text_files import is_data, pieces, read_blocks, read_text, refuse_no_file

LARGE = 1 << 24
"""Bytes of a file above which its numbers are kept in the cache."""

FORMAT = "2"
"""Part of the cache's key; to be raised with any change to how texts are read."""


def _hello() -> str:
    return "hello" * 1000


def _pydocs() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(text for _, text in sorted(topics.items()))


def _stdlib() -> str:
    folder = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in sorted(folder.glob("*.py")) if is_data(path.name)]
    return "\n".join(read_text(path, str(path)) for path in paths)


def _tinyshakespeare() -> str:
    path = download(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "tinyshakespeare.txt",
        "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        "task.text=FILE",
        2_000_000,
    )
    return read_text(path, str(path))


CORPORA = {"hello": _hello, "pydocs": _pydocs, "stdlib": _stdlib, "tinyshakespeare": _tinyshakespeare}


def characters_of(corpus: str) -> str:
    """The characters of a corpus by name."""
    if corpus not in CORPORA:
        raise UserError(f"task.corpus={corpus}: unknown; {nearest(corpus, CORPORA)}; or task.text=FILE")
    return CORPORA[corpus]()


def codes_of(text: str | None, corpus: str) -> tuple[str, Tensor]:
    """All different characters in order, and the text as their numbers [N], in the smallest type that has room.

    Those of the file `text`, or of the named corpus if it is None. Of a large file the numbers stand in the cache and
    are mapped into memory, which then holds only what is being read. Raises `UserError` for what is no text.
    """
    if text is None:
        characters = characters_of(corpus)
    else:
        path, source = expanded(text), f"task.text={text}"
        refuse_no_file(path, source)
        if path.stat().st_size > LARGE:
            return _mapped(path, source)
        characters = read_text(path, source)
    return _numbered(lambda again: iter([characters]), np.empty)


def _mapped(path: Path, source: str) -> tuple[str, Tensor]:
    """The same of a file in the cache, made there unless this very file was numbered before."""
    numbers = cache_folder() / f"text_{key_of(path, FORMAT)}.npy"

    def make() -> None:
        print(printable(f"{source}: numbering its characters in {numbers}"), flush=True)

        def made(count: int, dtype: np.dtype[Any]) -> Any:
            return np.lib.format.open_memmap(partial, "w+", dtype, (count,))

        with writing(numbers) as partial:
            alphabet, _ = _numbered(lambda again: pieces(read_blocks(path, source), source, quiet=again), made)
        note(numbers, alphabet=alphabet)

    def load() -> tuple[str, Tensor]:
        codes, facts = noted(numbers)
        return facts["alphabet"], torch.from_numpy(codes)

    return kept(facts_file(numbers), make, load)


def _numbered(read: Callable[[bool], Iterator[str]], make: Callable[[int, np.dtype[Any]], Any]) -> tuple[str, Tensor]:
    """Read a text once to see what characters there are, and again to write their numbers into what is made."""
    seen, count = np.zeros(sys.maxunicode + 1, bool), 0
    for points in map(_points, read(False)):
        seen[points] = True
        count += len(points)
    known = seen.nonzero()[0]
    dtype = np.dtype(np.uint8 if len(known) <= 256 else np.int32)
    number, numbers, done = np.zeros(len(seen), dtype), make(count, dtype), 0
    number[known] = np.arange(len(known))
    for points in map(_points, read(True)):
        numbers[done : done + len(points)] = number[points]
        done += len(points)
    return "".join(map(chr, known)), torch.from_numpy(numbers)


def _points(characters: str) -> np.ndarray[Any, np.dtype[np.uint32]]:
    return np.frombuffer(characters.encode("utf-32-le", "surrogatepass"), "<u4")
