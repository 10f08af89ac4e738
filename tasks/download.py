"""Files from the network, kept in a cache: resumed when interrupted, checked, and never half there."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from rnnzoo.errors import UserError
from rnnzoo.files import cache_folder, filling_cache
from rnnzoo.plain import printable
from rnnzoo.progress import transfer

TIMEOUT_SECONDS = 30
SLOWEST = 1000
"""Bytes a second, below which a server is given up: one that sends a byte now and then never times out."""


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The checksum of a file's contents, in hexadecimal; of what it unpacks to for "gzip-sha256" and the like.

    What does not unpack has a checksum that no file has.
    """
    inside, algorithm = algorithm.startswith("gzip-"), algorithm.removeprefix("gzip-")
    checksum = hashlib.new(algorithm)
    try:
        with gzip.open(path) if inside else path.open("rb") as file:
            while block := file.read(1 << 20):
                checksum.update(block)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return "that of no gzip file"
    return checksum.hexdigest()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Lets only one process at a time fill the cache, so that others find there what it has made."""
    with filling_cache() as folder:
        lock = FileLock(folder / ".lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@one_at_a_time()
def download(url: str, name: str, checksum: str, instead: str, largest: int) -> Path:
    """The file at `url`, from the cache if it is there and as it should be.

    Args:
        url: where it is.
        name: what it is called in the cache.
        checksum: "algorithm:hexadecimal" of its contents, as `digest` has them; "gzip-..." lets a copy count that
            another program has compressed.
        instead: the override with which a person names a copy they have, for the error message.
        largest: more bytes than the file has; a server that sends as many has another file, or no end.

    Raises `UserError` when it cannot be had or its contents are not the expected ones.
    """
    target = cache_folder() / name
    algorithm, expected = checksum.split(":")
    if target.is_file():
        if digest(target, algorithm) == expected:
            return target
        print(printable(f"{target}: is not what was once downloaded there, so it is fetched again"), flush=True)
    partial = target.with_name(target.name + ".partial")
    print(printable(f"downloading {url} to {target}"), flush=True)
    try:
        _fetch(url, partial, largest)
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", None) or error).split())
        raise UserError(f"cannot download {url}: {reason}; try again to go on, or name your copy: {instead}") from error
    found = digest(partial, algorithm)
    if found != expected:
        partial.unlink()
        raise UserError(f"{url}: {algorithm} is {found}, not {expected}; the download was dropped, try again")
    partial.replace(target)
    return target


def _fetch(url: str, partial: Path, largest: int) -> None:
    """Append what is missing of `url` to `partial`, or start it anew if the server cannot go on."""
    have = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = _open(request)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # all of it was there already
            return
        raise
    going_on = response.status == http.HTTPStatus.PARTIAL_CONTENT
    with response, partial.open("ab" if going_on else "wb") as file:
        expected = response.length
        received, size = 0, have if going_on else 0
        since, of = time.monotonic(), 0
        with transfer(f"downloading {Path(url).name}", expected) as progress:
            # what has come, not whole blocks, for which a slow server could be waited for without end
            while (expected is None or received < expected) and (block := response.read1(1 << 16)):
                if size + received + max(len(block), (expected or 0) - received) > largest:
                    file.truncate(0)
                    raise UserError(
                        f"{url}: sends more than {largest:,} bytes, so it is another file, which was dropped"
                    )
                file.write(block)
                received += len(block)
                progress(len(block))
                now = time.monotonic()
                if now - since > TIMEOUT_SECONDS:
                    if received - of < SLOWEST * TIMEOUT_SECONDS:
                        raise TimeoutError(f"only {received - of:,} bytes in {now - since:.0f} seconds")
                    since, of = now, received
    if expected is not None and received < expected:
        raise http.client.IncompleteRead(b"", expected - received)


def _open(request: urllib.request.Request) -> http.client.HTTPResponse:
    """A server's answer; in a thread, because one that sends its headers byte by byte keeps to any timeout of each."""
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * TIMEOUT_SECONDS)
    answer = found[0] if found else TimeoutError(f"no answer in {2 * TIMEOUT_SECONDS} seconds")
    if isinstance(answer, Exception):
        raise answer
    return answer
