"""Files from the network, kept in a cache: resumed when interrupted, checked, and never half there."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from rnnzoo.errors import UserError
from rnnzoo.files import cache_folder
from rnnzoo.progress import transfer

TIMEOUT_SECONDS = 30


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The checksum of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        checksum = hashlib.new(algorithm)
        while block := file.read(1 << 20):
            checksum.update(block)
        return checksum.hexdigest()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Lets only one process at a time fill the cache, so that others find there what it has made."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


@one_at_a_time()
def download(url: str, name: str, checksum: str, instead: str) -> Path:
    """The file at `url`, from the cache if it is there.

    Args:
        url: where it is.
        name: what it is called in the cache.
        checksum: "algorithm:hexadecimal" of its contents.
        instead: the override with which a person names a copy they have, for the error message.

    Raises `UserError` when it cannot be had or its contents are not the expected ones.
    """
    target = cache_folder() / name
    if target.is_file():
        return target
    partial = target.with_name(target.name + ".partial")
    print(f"downloading {url} to {target}", flush=True)
    try:
        _fetch(url, partial)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"cannot download {url}: {reason}; try again to go on, or name your copy: {instead}") from error
    algorithm, expected = checksum.split(":")
    found = digest(partial, algorithm)
    if found != expected:
        partial.unlink()
        raise UserError(f"{url}: {algorithm} is {found}, not {expected}; the download was dropped, try again")
    partial.replace(target)
    return target


def _fetch(url: str, partial: Path) -> None:
    """Append what is missing of `url` to `partial`, or start it anew if the server cannot go on."""
    have = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # all of it was there already
            return
        raise
    with response, partial.open("ab" if response.status == http.HTTPStatus.PARTIAL_CONTENT else "wb") as file:
        expected = response.length
        received = 0
        with transfer(f"downloading {Path(url).name}", expected) as progress:
            while block := response.read(1 << 16):
                file.write(block)
                received += len(block)
                progress(len(block))
    if expected is not None and received < expected:
        raise http.client.IncompleteRead(b"", expected - received)
