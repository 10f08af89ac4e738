"""Where film reviews lie: in the tree of the Large Movie Review Dataset, in its tar archive, or in CSV files."""

from __future__ import annotations

import math
import posixpath
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rnnzoo import UserError
from rnnzoo.files import cache_folder
from rnnzoo.plain import printable

from .archives import UNREADABLE, Archive
from .csv_files import read_lines
from .text_files import PLAIN, decode, files_in, is_data, read_bytes

REVIEW = re.compile(r"(?:^|/)(train|test)/(pos|neg)/[^/]+\.txt$")
FOLDER = re.compile(r"(?:^|/)(train|test)(/(pos|neg))?$")
OF_A_WORD = re.compile(r"[^\W_]")
LARGEST = 1 << 20
"""Bytes of a review; the longest of the data set has some 14,000."""
LARGEST_TOGETHER = 1 << 31
"""Bytes that an archive unpacks to, of which a few kilobytes can have any number."""

TABLES = ("train.csv", "test.csv")
TEXTS, LABELS = ("text", "review"), ("label", "sentiment")
MEANING = {"0": 0, "neg": 0, "negative": 0, "1": 1, "pos": 1, "positive": 1}
EVERY = 5
"""Of reviews that come without a split, one in so many of each class is for the test."""

BEGINNINGS = {
    b"PK": "a zip archive; unpack it and name the folder",
    b"PAR1": "a Parquet file; write it as CSV with the columns text and label",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it and name the folder",
    b"Rar!": "a rar archive; unpack it and name the folder",
    b"{": "JSON; write it as CSV with the columns text and label",
    b"[": "JSON; write it as CSV with the columns text and label",
    b"<": "a web page; fetch the file itself",
}


def files_of(source: Path) -> list[tuple[str, Path]]:
    """Names and paths of the files in a folder that hold its reviews, in order of their names.

    Both what is read and what a cache is known by: no file may count for one and not for the other. Raises `UserError`
    for a link that leads nowhere.
    """
    if all((source / name).is_file() for name in TABLES):
        return [(name, source / name) for name in TABLES]
    files = [(name, path) for name, path in _texts(source) if REVIEW.search(name)]
    for name, path in files:
        if not path.is_file():
            raise UserError(f"task.data={source}: {name} is a link that leads nowhere; remove it or give the file")
    return files


def read_reviews(source: Path) -> Iterator[tuple[str, int, str]]:
    """(split, label, text) of every labelled review, in order of the files' names.

    Args:
        source: an aclImdb folder or tar archive; a CSV file with the columns text and label (or review and sentiment,
            and perhaps split); or a folder with train.csv and test.csv.

    Raises `UserError` saying what a source is that is none of these, for an archive that is cut off or holds unsafe
    paths, and for a split that lacks a class, or has no word in its reviews of one.
    """
    tables = [source] if source.is_file() and source.suffix.lower() in (".csv", ".tsv") else []
    if source.is_dir():
        tables = [path for name, path in files_of(source) if name in TABLES]
    seen, telling = set(), set()
    for split, label, text in _from_tables(tables, source) if tables else _from_tree(source):
        seen.add((split, label))
        if OF_A_WORD.search(text):
            telling.add((split, label))
        yield split, label, text
    for split in ("train", "test"):
        for label, sentiment in ((1, "pos"), (0, "neg")):
            if (split, label) in seen - telling:
                raise UserError(f"task.data={source}: no review in {split}/{sentiment}/ has a word; give their texts")
            if (split, label) not in seen:
                raise UserError(
                    f"task.data={source}: no reviews in {split}/{sentiment}/; {_instead(source, bool(tables))}"
                )


def _instead(source: Path, tables: bool) -> str:
    """What there is where a class of a split was not found."""
    if tables:
        return "a CSV needs both labels in both parts"
    names = [name for name, _ in _texts(source)] if source.is_dir() else _names_in(source)
    folders = sorted({posixpath.dirname(name) for name in names} - {""})
    others = [folder for folder in folders if not folder.endswith("/unsup")][:6]
    hint = f"; its texts lie in {', '.join(others)}" if others else ""
    return f"is it the aclImdb tree, with pos and neg in train and in test?{hint}"


def _names_in(archive: Path) -> list[str]:
    with Archive.open(archive) as opened:
        return [member.name for member in opened if member.name.endswith(".txt") and is_data(member.name)]


def _texts(source: Path) -> list[tuple[str, Path]]:
    try:
        return files_in(source, ".txt")
    except OSError as error:
        raise UserError(f"task.data={error.filename}: {error.strerror}") from None


def _from_tree(source: Path) -> Iterator[tuple[str, int, str]]:
    encodings: Counter[str] = Counter()
    tree = None
    for name, raw in _folder(source) if source.is_dir() else _archive(source):
        found = REVIEW.search(name)
        assert found is not None
        above = name[: found.start(1)]
        if tree is not None and above != tree:
            raise UserError(
                f"task.data={source}: holds two trees, {tree or './'} and {above or './'}; name one of them"
            )
        tree = above
        text = decode(raw, f"task.data={source}: {name}")
        encodings[text.found] += 1
        yield found[1], int(found[2] == "pos"), text.characters
    del encodings[PLAIN]
    for encoding, count in encodings.items():
        print(printable(f"task.data={source}: {count} reviews were read as {encoding}"), file=sys.stderr)


def _folder(source: Path) -> Iterator[tuple[str, bytes]]:
    for name, path in files_of(source):
        yield name, read_bytes(path, f"task.data={source}: {name}", LARGEST)


def _archive(source: Path) -> Iterator[tuple[str, bytes]]:
    # The order in an archive is whatever the packer's was; names make it the same as a folder's.
    with tempfile.TemporaryFile(dir=cache_folder()) as unpacked:
        for name, (start, size) in sorted(_unpack(source, unpacked).items()):
            unpacked.seek(start)
            yield name, unpacked.read(size)


def _unpack(source: Path, to: IO[bytes]) -> dict[str, tuple[int, int]]:
    """Write an archive's reviews to a file: where in it each begins, and its size, by name."""
    reviews: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    together = 0
    try:
        with Archive.open(source) as archive:
            for member in archive:
                if max(together, archive.offset) > LARGEST_TOGETHER:
                    raise UserError(
                        f"task.data={source}: unpacks to more than {LARGEST_TOGETHER:,} bytes; if they are expected, "
                        f"unpack it and name the folder"
                    )
                if member.name.startswith("/") or ".." in member.name.split("/"):
                    raise UserError(f"task.data={source}: unsafe path {member.name!r} in the archive; do not use it")
                if member.issym() and FOLDER.search(member.name):
                    raise UserError(
                        f"task.data={source}: {member.name} is a link to {member.linkname}, whose reviews are not in "
                        f"the archive under that name; pack it with tar --dereference"
                    )
                if not REVIEW.search(member.name) or not is_data(member.name):
                    continue
                if member.islnk() or member.issym():  # a hard link names its file from the archive's root
                    beside = posixpath.dirname(member.name) if member.issym() else ""
                    links[member.name] = posixpath.normpath(posixpath.join(beside, member.linkname))
                elif member.isfile():
                    together += member.size
                    if member.size > LARGEST:
                        raise UserError(
                            f"task.data={source}: {member.name} has {member.size:,} bytes, more than a review's; "
                            f"do not use the archive"
                        )
                    file = archive.extractfile(member)
                    assert file is not None
                    reviews[member.name] = to.tell(), to.write(file.read())
    except UNREADABLE as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"task.data={source}: {_what_it_is(source, error)}") from error
    whole = {posixpath.normpath(name): name for name in reviews}
    for name, leads_to in links.items():
        if leads_to not in whole:
            raise UserError(
                f"task.data={source}: {name} is a link to {leads_to}, which is no review in the archive; pack it with "
                f"tar --dereference --hard-dereference"
            )
        reviews[name] = reviews[whole[leads_to]]
    return reviews


def _what_it_is(source: Path, error: Exception) -> str:
    """Of a file that does not read as a tar archive."""
    with source.open("rb") as file:
        beginning = file.read(64).lstrip()
    for start, what in BEGINNINGS.items():
        if beginning.startswith(start):
            return f"not a tar archive, but {what}"
    reason = " ".join(str(error).split()) or type(error).__name__
    return (
        f"damaged or not a tar archive ({reason}); fetch it again, or give a CSV file with the columns text and label"
    )


def _from_tables(paths: list[Path], source: Path) -> Iterator[tuple[str, int, str]]:
    for path in paths:
        where = f"task.data={path}"
        lines = read_lines(path, where, math.inf)
        _, header = next(lines)
        names = [name.lower() for name in header]
        columns: dict[str, int] = {}
        for key, known in (("text", TEXTS), ("label", LABELS), ("split", ("split",))):
            found = [at for at, name in enumerate(names) if name in known]
            if len(found) > 1:
                which = " and ".join(header[at] for at in found)
                raise UserError(f"{where}: the columns {which} may each be the {key}; rename or remove all but one")
            if found:
                columns[key] = found[0]
            elif key != "split":
                raise UserError(f"{where}: no column {' or '.join(known)} but {', '.join(header)}; rename one")
        splits = ("train", "test") if path == source else (path.stem,)
        count: Counter[int] = Counter()
        for line, fields in lines:
            row = {key: fields[at] for key, at in columns.items() if at < len(fields)}
            if len(fields) != len(header):
                raise UserError(f"{where}: line {line} has {len(fields)} fields, but the header {len(header)}")
            label = MEANING.get(row["label"].lower())
            if label is None:
                raise UserError(
                    f"{where}: line {line}: the label {row['label'][:40]!r} is none of {', '.join(MEANING)}"
                )
            if "split" in row:
                split = row["split"].lower()
                if split not in splits:
                    raise UserError(f"{where}: line {line}: the split {split[:40]!r} is not {' or '.join(splits)}")
            elif path != source:
                split = path.stem
            else:
                split = "test" if count[label] % EVERY == EVERY - 1 else "train"
            count[label] += 1
            yield split, label, row["text"]
        if path == source and "split" not in columns:
            what = f"{where}: no column split; every {EVERY}th review of a label is for the test"
            print(printable(what), file=sys.stderr)
