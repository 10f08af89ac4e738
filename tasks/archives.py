"""Tar archives of strangers, read member by member: what `tarfile` takes a header's word for has bounds here."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from typing import IO

LARGEST_HEADER = 1 << 16
"""Bytes of a member's headers, its name and whatever else is told of it. Each may claim any size, and is read at once;
and each may follow another, which is read within the other's call."""

UNREADABLE = (
    tarfile.TarError, EOFError, OSError, ValueError, ArithmeticError, LookupError, zlib.error, lzma.LZMAError,
    MemoryError,
)  # fmt: skip
"""What reading a damaged archive ends in; errors of arithmetic and look-up come from numbers that no archive has."""


class Archive(tarfile.TarFile):
    """To be opened by `Archive.open`, and iterated over once: members are not remembered."""

    def next(self) -> tarfile.TarInfo | None:
        """The next member. Raises `ValueError` for headers that are too large or do not lead forward."""
        file = self.fileobj
        self.fileobj = _Header(file)  # type: ignore[assignment, arg-type]
        try:
            member = super().next()
        finally:
            self.fileobj = file
        self.members.clear()  # type: ignore[attr-defined]
        if member is not None and (member.size < 0 or self.offset <= member.offset):
            raise ValueError(f"a member of {member.size} bytes")
        return member


class _Header:
    """An archive from which so much is read as a member's headers may have."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self.file, self.left = file.seek, file.tell, file, LARGEST_HEADER

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:  # below zero it would be all there is
            raise ValueError(f"a member's headers have more than {LARGEST_HEADER:,} bytes")
        self.left -= size
        return self.file.read(size)
