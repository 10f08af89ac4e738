"""Texts by name, and texts from files of a person's own."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from rnnzoo import UserError
from rnnzoo.errors import nearest
from rnnzoo.files import expanded

from .download import download
from .text_files import is_data, read_text


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


def characters_of(text: str | None, corpus: str) -> str:
    """The characters of the file `text`, or of the named corpus if it is None; `UserError` for what is no text."""
    if text is None:
        if corpus not in CORPORA:
            raise UserError(f"task.corpus={corpus}: unknown; {nearest(corpus, CORPORA)}; or task.text=FILE")
        return CORPORA[corpus]()
    path = expanded(text)
    if not path.is_file():
        raise UserError(f"task.text={text}: no such file")
    return read_text(path, f"task.text={text}")
