"""Archives whose headers are made to do harm, before both readers: refused in one line, soon and in little memory."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rnnzoo import UserError
from rnnzoo.tasks import archives
from rnnzoo.tasks.archives import Archive
from rnnzoo.tasks.review_files import read_reviews
from rnnzoo.tasks.scifar import read_archive

REVIEW = "aclImdb/train/pos/0_7.txt"
READERS: dict[str, Callable[[Path], Any]] = {"images": read_archive, "reviews": lambda path: [*read_reviews(path)]}


def header(kind: bytes = tarfile.REGTYPE, size: int = 0, pax: dict[str, str] = {}, name: str = REVIEW) -> bytes:  # noqa: B006
    """A member's headers alone; sizes that octal digits cannot say are written as GNU tar writes them."""
    member = tarfile.TarInfo(name)
    member.type, member.size, member.pax_headers = kind, size, pax
    return member.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


LONG = 2 << 20
SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": REVIEW, "GNU.sparse.realsize": "9"}
HOSTILE = {
    "back to itself": header(size=-512),
    "back to the one before": header(size=-1024),
    "no whole block back": header(size=-1),
    "back by an extended header": header(size=-512, pax={"size": "-1024"}),
    "back by a sparse file's size": header(pax={"GNU.sparse.realsize": "-5"}),
    "everything as its name": header(tarfile.GNUTYPE_LONGNAME, -512) + header(),
    "a name without end": header(tarfile.GNUTYPE_LONGNAME, LONG) + b"a" * LONG + header(),
    "a link without end": header(tarfile.GNUTYPE_LONGLINK, LONG) + b"a" * LONG + header(),
    "records without end": header(tarfile.XHDTYPE, LONG) + padded(b"%d a=" % LONG + b"b" * LONG)[:LONG] + header(),
    "records for all without end": header(tarfile.XGLTYPE, LONG) + bytes(LONG) + header(),
    "3,000 names": header(tarfile.GNUTYPE_LONGNAME) * 3000 + header(),
    "3,000 extended headers": header(tarfile.XHDTYPE) * 3000 + header(),
    "holes without end": header(size=LONG, pax=SPARSE) + padded(b"9" * 6 + b"\n" + b"0\n" * (LONG // 2)),
    "holes cut off": header(tarfile.GNUTYPE_SPARSE)[:482] + b"\1" + header(tarfile.GNUTYPE_SPARSE)[483:],
    "larger than any": header(size=1 << 80) + header(),
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("behind", [False, True], ids=["first", "behind another"])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused_in_a_line(
    case: str, reader: str, behind: bool, compressed: bool, tmp_path: Path
) -> None:
    content = header(name="readme.txt") * behind + _summed(HOSTILE[case])
    path = tmp_path / "hostile.tar"
    path.write_bytes(gzip.compress(content, 1) if compressed else content)
    with pytest.raises(UserError, match=r"damaged or not a tar archive|unpack") as error:
        READERS[reader](path)
    assert str(error.value).startswith(f"task.data={path}: ") and "\n" not in str(error.value)


def _summed(content: bytes) -> bytes:
    """With the first header's checksum as it must be."""
    first = content[:148] + b" " * 8 + content[156:512]
    return first[:148] + b"%06o\0 " % sum(first) + first[156:] + content[512:]


def test_usual_headers_are_read(tmp_path: Path) -> None:
    """Long names, in both ways, and links; what is read is what tarfile itself reads."""
    path = tmp_path / "a.tar.xz"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(path, "w:xz", format=form) as made:
            for name in ("a", "é" * 300, "b/" * 2000 + "c"):
                member = tarfile.TarInfo(name)
                member.size, member.mtime = 700, 0.5
                made.addfile(member, io.BytesIO(bytes(700)))
                member.type, member.linkname, member.size = tarfile.SYMTYPE, name * 2, 0
                made.addfile(member)
        with tarfile.open(path) as plain, Archive.open(path) as own:
            expected = [(member.name, member.size, member.linkname, member.offset) for member in plain]
            assert [(m.name, m.size, m.linkname, m.offset) for m in own] == expected and len(expected) == 6


def test_headers_have_as_much_as_they_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(header(tarfile.GNUTYPE_LONGNAME, 512) + padded(b"name") + header() + bytes(1024))
    for largest, allowed in ((3 * 512, True), (3 * 512 - 1, False)):
        monkeypatch.setattr(archives, "LARGEST_HEADER", largest)
        if allowed:
            with Archive.open(path) as opened:
                assert [member.name for member in opened] == ["name"]
        else:
            with pytest.raises(ValueError, match="headers have more than 1,535 bytes"):
                Archive.open(path)
