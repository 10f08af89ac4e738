"""Text from files, the same for all tasks: which files are data, how they are encoded, and how much of them is read."""

from __future__ import annotations

import math
import os
import sys
import unicodedata
from codecs import (
    BOM_UTF8,
    BOM_UTF16_BE,
    BOM_UTF16_LE,
    BOM_UTF32_BE,
    BOM_UTF32_LE,
    getincrementaldecoder,
)
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from rnnzoo import UserError
from rnnzoo.plain import printable

LARGEST = 1 << 30
"""Bytes of a file that is read at once; training on more would need tens of gigabytes of memory."""

BLOCK = 1 << 24
"""Bytes of a file that are read at a time."""

MARKS = {  # the longer ones first: UTF-32's begins with UTF-16's
    BOM_UTF32_LE: "utf-32-le", BOM_UTF32_BE: "utf-32-be", BOM_UTF8: "utf-8", BOM_UTF16_LE: "utf-16-le",
    BOM_UTF16_BE: "utf-16-be",
}  # fmt: skip
WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
PLAIN = "UTF-8"

LEFT_BY_SYSTEMS = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r"}


class Text(NamedTuple):
    """The characters of a file, and the encoding they were found in."""

    characters: str
    found: str


def is_data(name: str) -> bool:
    """Whether a file of this name, relative to a person's folder, can be data.

    Hidden files and those that file managers leave behind are not: macOS puts `._x` beside each `x` on other file
    systems and in archives.
    """
    parts = PurePosixPath(name).parts
    return not any(part.startswith(".") or part.lower() in LEFT_BY_SYSTEMS for part in parts)


def files_in(folder: Path, ending: str) -> list[tuple[str, Path]]:
    """Names relative to a folder, and paths, of all data files below it that end so; links are followed.

    Raises `OSError` for a folder that cannot be read, for the reader of a half must not take it for the whole.
    """
    return sorted((name, path) for name, path in _walk(folder, frozenset()) if name.endswith(ending) and is_data(name))


def _walk(folder: Path, above: frozenset[str]) -> Iterator[tuple[str, Path]]:
    place = os.path.realpath(folder)
    if place in above:  # a link to a folder that it lies in
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir():
                yield entry.name, folder / entry.name
            elif is_data(entry.name):
                below = _walk(folder / entry.name, above | {place})
                yield from ((f"{entry.name}/{name}", path) for name, path in below)


def refuse_no_file(path: Path, source: str) -> None:
    """Raise `UserError` that begins with `source` where there is no file to be read, which may be more than once."""
    if path.is_dir():
        raise UserError(f"{source}: is a folder; name a file in it")
    if not path.exists():
        raise UserError(f"{source}: no such file")
    if not path.is_file():
        raise UserError(f"{source}: a pipe or a device, of which nothing is left to be read again; write it to a file")


def read_bytes(path: Path, source: str, largest: int = LARGEST) -> bytes:
    """A file's contents; `UserError` that begins with `source` for what cannot be read or is larger than that."""
    return b"".join(read_blocks(path, source, largest))


def read_blocks(path: Path, source: str, largest: float = math.inf) -> Iterator[bytes]:
    """The same block by block."""
    count = 0  # not the file's size: of a pipe or of /dev/zero that says nothing
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                count += len(block)
                if count > largest:
                    cure = "cut it into parts, or see whether it is the right one"
                    raise UserError(f"{source}: larger than {largest:,} bytes; {cure}")
                yield block
    except OSError as error:
        raise UserError(f"{source}: {error.strerror or error}") from None


def read_text(path: Path, source: str) -> str:
    """The characters of a text file; an encoding other than plain UTF-8 is said on stderr.

    Raises `UserError` that begins with `source` for what is no text.
    """
    return "".join(pieces(iter([read_bytes(path, source)]), source))


def pieces(blocks: Iterator[bytes], source: str, quiet: bool = False) -> Iterator[str]:
    """The characters of a text file that is read block by block, as `decode` finds them.

    The first block tells the encoding; it should be large. What is not plain UTF-8 is said at the end unless `quiet`.
    """
    found = PLAIN
    for text in _decoded(blocks, source):
        found = text.found
        yield text.characters
    if found != PLAIN and not quiet:
        print(printable(f"{source}: read as {found}"), file=sys.stderr)


def decode(raw: bytes, source: str) -> Text:
    """The characters that bytes stand for: UTF-8, or UTF-16 or UTF-32 with a byte order mark or told by their zeros.

    Byte order marks are no characters of the text, wherever they are: files put together keep each one's own.
    Raises `UserError` naming the line of the first byte that does not fit.
    """
    [text] = _decoded(iter([raw]), source)
    return text


def _decoded(blocks: Iterator[bytes], source: str) -> Iterator[Text]:
    """Of each block the characters that end in it, and what the encoding is, as far as it is known."""
    block, following = next(blocks, b""), next(blocks, None)
    mark = next((mark for mark in MARKS if block.startswith(mark)), b"")
    encoding, found = MARKS.get(mark, "utf-8"), PLAIN
    if mark:
        found = f"{encoding.upper()} with a byte order mark"
    elif b"\0" in block:
        encoding = _told_by_zeros(block, source, following is None)
        found = f"{encoding.upper()} without a byte order mark"
    decoder = getincrementaldecoder(encoding)()
    block, start, lines = block[len(mark) :], len(mark), 1
    while True:
        try:
            characters = decoder.decode(block, following is None)
        except UnicodeDecodeError as error:
            place = start + len(block) - len(error.object) + error.start  # what was left of the block before is in it
            line = lines + error.object.count(b"\n", 0, error.start)
            name = PLAIN if encoding == "utf-8" else encoding.upper()
            iconv = "; convert it first, as by iconv -f WINDOWS-1252 -t UTF-8"
            cure = iconv if encoding == "utf-8" else "; it is damaged"
            raise UserError(f"{source}: not {name} in line {line} (byte {place}){cure}") from None
        if "\0" in characters:
            raise UserError(f"{source}: holds the character NUL, as no text does; is it the right file?")
        lines += characters.count("\n")
        if "\ufeff" in characters:
            characters = characters.replace("\ufeff", "")
            found = f"{encoding.upper()} with byte order marks"
        yield Text(characters, found)
        if following is None:
            return
        start, block, following = start + len(block), following, next(blocks, None)


def _told_by_zeros(raw: bytes, source: str, final: bool) -> str:
    """The wide encoding in which the bytes are text."""
    fitting = {}
    for encoding in WIDE:
        try:  # a block may end within a character
            different = set(getincrementaldecoder(encoding)().decode(raw, final))
        except UnicodeDecodeError:
            continue
        if not any(unicodedata.category(c) in ("Cc", "Cn", "Co") and c not in "\t\n\v\f\r\x85" for c in different):
            # Bytes taken in the wrong order are spread over many blocks; of a language's own letters that is not so.
            fitting[encoding] = len({ord(character) >> 8 for character in different})
    if not fitting:
        line = raw.count(b"\n", 0, raw.index(b"\0")) + 1
        raise UserError(f"{source}: holds zero bytes, as no text does, the first in line {line}; is it the right file?")
    return min(fitting, key=lambda encoding: fitting[encoding])
