"""Files that are whole or not there, and the folder where what was fetched or compiled is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rnnzoo.errors import UserError


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Write a file so that it is whole or not there: yields the file to write, then moves it to `path`.

    Folders that are missing above it are made; of a link it is what it leads to that is written. Raises `UserError`
    naming `path` when it cannot be written, or is there and no regular file, as a device is.
    """
    target = _target(path, str(path))
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # or it could be a link, which would lead what is written elsewhere
        yield partial
        partial.replace(target)
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):  # torch's writer buries a full disk in others
            cause = cause.__context__
        if cause is None:
            raise
        raise UserError(f"cannot write {path}: {cause.strerror or cause}") from error
    finally:
        with suppress(OSError):  # gone already, or never made
            partial.unlink()


def _target(path: Path, said: str) -> Path:
    """Where a file is written that is named so. Raises `UserError` where that is no regular file."""
    target = Path(os.path.realpath(path))
    if os.path.lexists(target) and not target.is_file():
        what = "a folder" if target.is_dir() else "no regular file"
        raise UserError(f"{said}: is {what}; name another file")
    return target


def refuse_as_file(option: str, path: Path) -> None:
    """Raise `UserError` before any work is done where `writing` could not write: what it refuses, and no folder."""
    refuse_missing_parent(option, _target(path, f"{option} {path}"))


def refuse_missing_parent(option: str, path: Path) -> None:
    """Raise `UserError` where the folder that `path` would be written into does not exist: it may be misspelt."""
    parent = path.absolute().parent
    if not parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {parent}; make it, or name another")


def make_folder(option: str, folder: Path) -> None:
    """Make a folder and those above it before the work for it begins. Raises `UserError` where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option} {folder}: {error.strerror}; name a folder that can be made") from None


def expanded(path: str | Path) -> Path:
    """The path from a home folder if it begins with ~; as it is where there is no such home, for it to be not found."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def cache_folder() -> Path:
    """$RNNZOO_CACHE, else rnnzoo/ in the user's cache folder. Raises `UserError` where a user has none."""
    own = os.environ.get("RNNZOO_CACHE")
    if own:
        return expanded(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rnnzoo"
    except RuntimeError:
        raise UserError("there is no home folder to keep a cache in; set RNNZOO_CACHE to a folder") from None


@contextmanager
def filling_cache() -> Iterator[Path]:
    """The cache's folder, made if it is not there. What cannot be written there raises `UserError` that says how to."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot write to {folder}: {reason}; set RNNZOO_CACHE to a folder that can be written"
        ) from error
