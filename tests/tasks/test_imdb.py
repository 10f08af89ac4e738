"""Film reviews: how they are read, numbered, cached and put into batches, and what the model sees.

The reviews are made here: a small aclImdb tree with all that the real one holds besides labelled reviews.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from damaged import change_unnoticed, npy, replace_cached
from hypothesis import given, settings
from hypothesis import strategies as st
from ready import ready
from torch import Tensor

from rnnzoo import UserError
from rnnzoo.tasks import reviews as in_reviews
from rnnzoo.tasks import text_files
from rnnzoo.tasks.csv_files import read_lines
from rnnzoo.tasks.imdb import Batch, Sentiment, Sentiments
from rnnzoo.tasks.reviews import Reviews, encode, hold_out, load_cached, parts_in, tokenize

ADAM = {"name": "adam", "lr": 0.01, "schedule": "constant"}
GOOD, BAD, FILLER = "good lovely great", "bad awful dull", "the film was of a length and had an end"
ROOT = Path(__file__).parents[2]
ARCHIVE = ROOT.parent / "shared" / "data" / "imdb" / "aclImdb_labelled.tar.gz"


def write_tree(folder: Path, reviews: int = 8) -> Path:
    """An aclImdb tree with `reviews` of each class in each part, and with what has to be passed over."""
    for split in ("train", "test"):
        for sentiment, words in (("pos", GOOD.split()), ("neg", BAD.split())):
            place = folder / "aclImdb" / split / sentiment
            place.mkdir(parents=True)
            for number in range(reviews):
                filler = FILLER.split() * (1 + number % 3)
                filler.insert(number % 5, words[number % 3])
                (place / f"{number}_7.txt").write_text(" ".join(filler) + "<br /><br />" + sentiment[0] * 3)
        (folder / "aclImdb" / split / "labeledBow.feat").write_text("9 0:9 1:1")
        (folder / "aclImdb" / split / "urls_pos.txt").write_text("http://example.org/")
    unsup = folder / "aclImdb" / "train" / "unsup"
    unsup.mkdir()
    (unsup / "0_0.txt").write_text("unlabelled " * 1000)
    (folder / "aclImdb" / "imdb.vocab").write_text("the\n")
    (folder / "aclImdb" / "README").write_text("about the data")
    return folder / "aclImdb"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "data")


def pack(tree: Path, path: Path, mode: str = "w:gz") -> Path:
    """The tree as an archive, its members in an order that no folder has."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member in sorted((p for p in tree.rglob("*") if p.is_file()), key=lambda p: p.name[::-1]):
            archive.add(member, f"aclImdb/{member.relative_to(tree).as_posix()}")
    return path


def sentiments(data: Path, **options: Any) -> Sentiments:
    defaults = {"vocabulary": 100, "maxlen": 50, "batch_size": 4, "pool": 2, "val_fraction": 0.25, "seed": 1}
    return ready(Sentiments(str(data), **(defaults | options)))


def texts(reviews: Reviews, vocabulary: list[str]) -> list[tuple[str, int]]:
    return [
        (" ".join(vocabulary[word] for word in reviews[row]), int(label)) for row, label in enumerate(reviews.labels)
    ]


def encoded(*reviews: tuple[str, int, str], vocabulary: int = 100, maxlen: int = 50) -> tuple[list[str], Any, Any]:
    """Vocabulary, and both parts as lists of (words, label)."""
    with tempfile.TemporaryDirectory() as folder:
        numbers = Path(folder) / "numbers"
        words, train, test = parts_in(encode(iter(reviews), vocabulary, maxlen, numbers), numbers)
        return words, texts(train, words), texts(test, words)


# Words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A fine Film.", ["a", "fine", "film"]),
        ("end.<br /><br />Start", ["end", "start"]),
        ("don't 'quoted' dogs' rock'n'roll", ["don't", "quoted", "dogs", "rock'n'roll"]),
        ("well-made, 10/10 (1980's)", ["well", "made", "10", "10", "1980's"]),
        ("snake_case __init__", ["snake", "case", "init"]),
        ("Éclair ÜBER naïve 映画", ["éclair", "über", "naïve", "映画"]),
        ("", []),
        (" ... !!! <br />", []),
        ("a\tb\nc\u00a0d", ["a", "b", "c", "d"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert tokenize(text) == words


def test_the_vocabulary_is_the_training_parts() -> None:
    words, train, test = encoded(
        ("train", 1, "b b b a a c c d"), ("train", 0, "b e"), ("test", 1, "z z z z a b"), ("test", 0, "d")
    )
    # by frequency, ties by the alphabet; the test part's words count for nothing
    assert words == ["<padding>", "<unknown>", "b", "a", "c", "d", "e"]
    assert train == [("b b b a a c c d", 1), ("b e", 0)]
    assert test == [(" ".join(["<unknown>"] * 4) + " a b", 1), ("d", 0)]


@pytest.mark.parametrize("size", [3, 4, 5])
def test_a_vocabulary_is_limited(size: int) -> None:
    words, train, _ = encoded(("train", 1, "b b b d c a a d"), ("train", 0, "b"), vocabulary=size)
    assert words == ["<padding>", "<unknown>", "b", "a", "d"][:size]
    unknown = {3: "b b b ? ? ? ? ?", 4: "b b b ? ? a a ?", 5: "b b b d ? a a d"}[size]
    assert train[0][0] == unknown.replace("?", "<unknown>")


def test_the_last_words_are_kept() -> None:
    words, train, test = encoded(("train", 1, "a b c d e"), ("test", 0, "e d c b a"), maxlen=2)
    assert train == [("d e", 1)] and test == [("b a", 0)]
    # a frequency is that of whole reviews
    assert sorted(words[2:]) == list("abcde")


def test_a_review_without_words_is_one_unknown_word() -> None:
    words, train, test = encoded(("train", 1, "..."), ("train", 0, "a"), ("test", 1, ""))
    assert words == ["<padding>", "<unknown>", "a"]
    assert train == [("<unknown>", 1), ("a", 0)] and test == [("<unknown>", 1)]


def test_reviews_are_numbered_block_by_block(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same as at once, and long reading says how far it is."""
    drawn = np.random.default_rng(0)
    reviews = [
        (split, label, " ".join(drawn.choice(list("abcdefgh"), size)))
        for split in ("train", "test") for label in (0, 1) for size in drawn.integers(0, 9, 8)
    ]  # fmt: skip
    expected = encoded(*reviews, vocabulary=6, maxlen=4)
    for name, value in (("AT_ONCE", 3), ("SAID", 15)):
        monkeypatch.setattr(in_reviews, name, value)
    monkeypatch.setattr("rnnzoo.tasks.blocks.ROWS", 5)
    assert encoded(*reviews, vocabulary=6, maxlen=4) == expected
    assert capsys.readouterr().out == "15 reviews read\n30 reviews read\n"


@settings(deadline=None, max_examples=40)
@given(
    reviews=st.lists(
        st.tuples(st.sampled_from(["train", "test"]), st.integers(0, 1), st.text("ab c.'é\n", max_size=30)),
        max_size=12,
    ),
    vocabulary=st.integers(3, 12),
    maxlen=st.integers(1, 6),
)
def test_encoding_agrees_with_counting(reviews: list[tuple[str, int, str]], vocabulary: int, maxlen: int) -> None:
    reviews = [("train", 1, "a"), ("test", 0, "b"), *reviews]
    words, train, test = encoded(*reviews, vocabulary=vocabulary, maxlen=maxlen)
    count = Counter(word for split, _, text in reviews if split == "train" for word in tokenize(text))
    known = sorted(count, key=lambda word: (-count[word], word))[: vocabulary - 2]
    assert words == ["<padding>", "<unknown>", *known]
    for part, found in (("train", train), ("test", test)):
        expected = [
            (" ".join(w if w in known else "<unknown>" for w in tokenize(text)[-maxlen:]) or "<unknown>", label)
            for split, label, text in reviews
            if split == part
        ]
        assert found == expected


# Reading


def test_folder_and_archive_give_the_same_data(tree: Path, tmp_path: Path) -> None:
    found = [load_cached(tree, 100, 50)]
    for name, mode in (("a.tar.gz", "w:gz"), ("a.tar", "w"), ("a.tar.xz", "w:xz")):
        found.append(load_cached(pack(tree, tmp_path / name, mode), 100, 50))
    words, train, test = found[0]
    for other_words, *parts in found[1:]:
        assert other_words == words
        for part, other in zip((train, test), parts):
            assert all(torch.equal(a, b) for a, b in zip(part, other))
    # hand count: 8 reviews a class; nothing of what is not a labelled review
    assert len(train.labels) == len(test.labels) == 16
    assert train.labels.sum() == test.labels.sum() == 8
    assert set(words[2:]) == {*GOOD.split(), *BAD.split(), *FILLER.split(), "ppp", "nnn"}
    for text, label in texts(train, words) + texts(test, words):
        assert text.split()[-1] == ("ppp" if label else "nnn")
        assert bool(set(text.split()) & set(GOOD.split())) == bool(label)


def test_the_folder_above_will_do_as_well(tree: Path) -> None:
    words, train, _ = load_cached(tree, 100, 50)
    above_words, above, _ = load_cached(tree.parent, 100, 50)
    assert words == above_words and torch.equal(train.words, above.words)


def test_what_is_read_is_what_the_cache_is_known_by(tmp_path: Path) -> None:
    """From the folder above a tree, too: another tree there has reviews and a vocabulary of its own."""
    one, two = write_tree(tmp_path / "one"), write_tree(tmp_path / "two")
    for path in two.rglob("*.txt"):
        path.write_text(path.read_text().replace("film", "book"))
    words = [load_cached(folder.parent, 100, 50)[0] for folder in (one, two)]
    assert "film" in words[0] and "film" not in words[1] and "book" in words[1]
    (two / "train" / "pos" / "9_9.txt").write_text("new")
    assert "new" in load_cached(two.parent, 100, 50)[0]


def test_two_trees_are_not_taken_for_one(tmp_path: Path) -> None:
    write_tree(tmp_path / "one"), write_tree(tmp_path / "two")
    with pytest.raises(UserError, match="holds two trees, one/aclImdb/ and two/aclImdb/; name one of them"):
        sentiments(tmp_path)
    with pytest.raises(UserError, match="holds two trees"):
        sentiments(pack(tmp_path, tmp_path / "a.tar"))


def damage(archive: Path, keep: float) -> None:
    raw = archive.read_bytes()
    archive.write_bytes(raw[: int(len(raw) * keep)])


@pytest.mark.parametrize("name", ["cut.tar.gz", "cut.tar"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9])
def test_an_archive_cut_off_is_refused(name: str, keep: float, tree: Path, tmp_path: Path) -> None:
    archive = pack(tree, tmp_path / name, "w:gz" if name.endswith("gz") else "w")
    damage(archive, keep)
    with pytest.raises(UserError) as error:
        sentiments(archive)
    assert str(error.value).startswith(f"task.data={archive}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a tar archive at all" * 100, b"PK\x03\x04"])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "reviews.zip"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"task\.data=.*reviews\.zip: .*not a tar archive"):
        sentiments(path)


@pytest.mark.parametrize("name", ["aclImdb/train/../../evil.txt", "/etc/evil.txt", "../train/pos/evil.txt"])
def test_an_archive_with_unsafe_paths_is_refused(name: str, tree: Path, tmp_path: Path) -> None:
    archive = pack(tree, tmp_path / "unsafe.tar", "w")
    with tarfile.open(archive, "a") as file:
        member = tarfile.TarInfo(name)
        member.size = 4
        file.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(UserError, match=r"unsafe path '.*evil\.txt'"):
        sentiments(archive)


def same(one: tuple[list[str], Reviews, Reviews], other: tuple[list[str], Reviews, Reviews]) -> bool:
    """Whether vocabulary and both parts are equal."""
    return one[0] == other[0] and all(
        torch.equal(a, b) for part, twin in zip(one[1:], other[1:]) for a, b in zip(part, twin)
    )


def link(archive: Path, name: str, kind: bytes, leads_to: str) -> None:
    with tarfile.open(archive, "a") as file:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, leads_to
        file.addfile(member)


@pytest.mark.parametrize("leads_to", ["/etc/passwd", "99_9.txt", "../unsup/0_0.txt"])
def test_a_link_out_of_an_archives_reviews_is_refused_by_name(leads_to: str, tree: Path, tmp_path: Path) -> None:
    archive = pack(tree, tmp_path / "linked.tar", "w")
    link(archive, "aclImdb/train/pos/99_9.txt", tarfile.SYMTYPE, leads_to)
    with pytest.raises(UserError, match=r"aclImdb/train/pos/99_9\.txt is a link to .*, which is no review"):
        sentiments(archive)


@pytest.mark.parametrize("name", ["aclImdb/train", "aclImdb/test/neg"])
def test_a_link_in_place_of_an_archives_folder_is_refused_by_name(name: str, tree: Path, tmp_path: Path) -> None:
    archive = pack(tree, tmp_path / "linked.tar", "w")
    link(archive, name, tarfile.SYMTYPE, "/elsewhere")
    with pytest.raises(UserError, match=rf"{name} is a link to /elsewhere, .* tar --dereference"):
        sentiments(archive)


def test_links_are_read_as_their_twins(tree: Path, tmp_path: Path) -> None:
    copied, folder = tmp_path / "copied", tmp_path / "folder"
    for other in (copied, folder):
        shutil.copytree(tree, other)
    archive = pack(tree, tmp_path / "linked.tar", "w")
    for number, name in enumerate(("0_7.txt", "1_7.txt"), 80):
        shutil.copy(tree / "train" / "pos" / name, copied / "train" / "pos" / f"{number}_9.txt")
    link(archive, "aclImdb/train/pos/80_9.txt", tarfile.SYMTYPE, "../pos/0_7.txt")
    link(archive, "aclImdb/train/pos/81_9.txt", tarfile.LNKTYPE, "aclImdb/train/pos/1_7.txt")
    (folder / "train" / "pos" / "80_9.txt").symlink_to(tree / "train" / "pos" / "0_7.txt")
    (folder / "train" / "pos" / "81_9.txt").hardlink_to(tree / "train" / "pos" / "1_7.txt")
    shutil.rmtree(folder / "test")
    (folder / "test").symlink_to(tree / "test", target_is_directory=True)
    (folder / "test2").symlink_to(folder, target_is_directory=True)  # in a circle
    expected = load_cached(copied, 100, 50)
    assert len(expected[1].labels) == 18
    assert same(load_cached(archive, 100, 50), expected)
    assert same(load_cached(folder, 100, 50), expected)
    (tree / "train" / "pos" / "0_7.txt").unlink()
    with pytest.raises(UserError, match=r"train/pos/80_9\.txt is a link that leads nowhere"):
        sentiments(folder)


APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X        \0\2\0\0\0\t\0\0\0\x32\0\0\0\x16"


def test_files_that_are_not_data_are_passed_over(tree: Path, tmp_path: Path) -> None:
    """In a folder and in an archive: what macOS, Windows and editors leave beside the reviews."""
    expected = load_cached(tree, 100, 50)
    for name in ("train/pos/._0_7.txt", "__MACOSX/train/pos/0_7.txt", "train/neg/.0_7.txt", ".git/train/pos/1_1.txt",
                 "train/pos/.DS_Store", "train/pos/Thumbs.db", "train/pos/__MACOSX/x.txt"):  # fmt: skip
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(APPLE_DOUBLE)
    assert same(load_cached(tree, 100, 50), expected)
    assert same(load_cached(pack(tree, tmp_path / "a.tar.gz"), 100, 50), expected)


@pytest.mark.parametrize("missing", ["train/pos", "train/neg", "test/pos", "test/neg"])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_a_class_that_is_missing_is_named(missing: str, packed: bool, tree: Path, tmp_path: Path) -> None:
    shutil.rmtree(tree / missing)
    source = pack(tree, tmp_path / "a.tar") if packed else tree
    with pytest.raises(UserError, match=rf"task\.data=.*: no reviews in {missing}/"):
        sentiments(source)


def test_other_mistakes_in_the_source(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task\.data=.*missing: no such file or folder"):
        sentiments(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no reviews in train/pos/"):
        sentiments(tmp_path / "empty")
    (tree / "train" / "pos" / "0_7.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"train/pos/0_7\.txt: not UTF-8 in line 1 \(byte 3\)"):
        sentiments(tree)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04....", "a zip archive; unpack it and name the folder"),
        (b"PAR1....", "a Parquet file; write it as CSV"),
        (b"<!DOCTYPE html><html>", "a web page; fetch the file itself"),
        (b'[{"text": "good"}]', "JSON; write it as CSV"),
        (b"a text", "give a CSV file with the columns text and label"),
    ],
)
def test_what_is_no_archive_is_called_what_it_is(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "reviews").write_bytes(content)
    with pytest.raises(UserError, match=rf"task\.data=.*reviews: .*not a tar archive.* {said}"):
        sentiments(tmp_path / "reviews")


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_classes_of_other_names_are_named(packed: bool, tree: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tree / split / "pos").rename(tree / split / "positive")
    with pytest.raises(UserError, match=r"no reviews in train/pos/; .* lie in .*train/neg, .*train/positive"):
        sentiments(pack(tree, tmp_path / "a.tar.gz") if packed else tree)


def test_larger_than_a_review_is_refused(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that unpacks to a gigabyte is not unpacked."""
    archive = pack(tree, tmp_path / "a.tar", "w")
    with monkeypatch.context() as patch:
        patch.setattr("rnnzoo.tasks.review_files.LARGEST_TOGETHER", 1000)
        with pytest.raises(UserError, match=r"a\.tar: unpacks to more than 1,000 bytes; .* unpack it"):
            sentiments(archive)
    with tarfile.open(archive, "a") as file:
        member = tarfile.TarInfo("aclImdb/train/pos/99_9.txt")
        member.size = 1 << 20
        file.addfile(member, io.BytesIO(bytes(1 << 20)))
        member = tarfile.TarInfo("aclImdb/train/pos/99_8.txt")
        member.size = (1 << 20) + 1
        file.addfile(member, io.BytesIO(bytes(member.size)))
    with pytest.raises(UserError, match=r"99_8\.txt has 1,048,577 bytes, more than a review's"):
        sentiments(archive)
    (tree / "train" / "pos" / "99_8.txt").write_bytes(b"a" * ((1 << 20) + 1))
    with pytest.raises(UserError, match=r"99_8\.txt: larger than 1,048,576 bytes"):
        sentiments(tree)


def test_encodings_are_told_and_said(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = load_cached(tree, 100, 50)
    for number, encoding in enumerate(("utf-8-sig", "utf-16", "utf-16-le", "utf-32")):
        path = tree / "train" / "pos" / f"{number}_7.txt"
        path.write_text(path.read_text(), encoding=encoding)
    assert same(load_cached(tree, 100, 50), expected)
    assert "1 reviews were read as UTF-16-LE without a byte order mark" in capsys.readouterr().err


# Tables


ROWS = [("so good, really", "1"), ("bad", "0"), ("fine", "positive"), ("awful", "neg")] * 5


def table(path: Path, rows: list[tuple[str, ...]], *header: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header or ("text", "label"), *rows])
    return path


def test_a_table_of_reviews(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a split every fifth review of each label is for the test, by hand: one of ten pairs in five."""
    words, train, test = load_cached(table(tmp_path / "a.csv", ROWS, "Review", "Sentiment"), 100, 50)
    assert train.labels.tolist() == [1, 0, 1, 0] * 4 and test.labels.tolist() == [1, 0] * 2
    assert texts(train, words)[:2] == [("so good really", 1), ("bad", 0)]
    assert "every 5th review of a label is for the test" in capsys.readouterr().err

    both = [(split, text, label) for split in ("train", "test") for text, label in ROWS]
    split = load_cached(table(tmp_path / "b.csv", both, "split", "text", "label"), 100, 50)
    for name in ("train", "test"):
        table(tmp_path / "two" / f"{name}.csv", ROWS)
    assert same(load_cached(tmp_path / "two", 100, 50), split) and len(split[1].labels) == len(split[2].labels) == 20


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("block", [5, 6, 7, 64])
def test_a_table_is_read_block_by_block(end: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that end in one block or between two, empty ones within and at the end, and quoted ones."""
    monkeypatch.setattr(text_files, "BLOCK", block)
    rows = ["text;label", f'"é;{end}{end}b";1', "", "c;0", "", ""]
    (tmp_path / "a.csv").write_bytes(end.join(rows).encode())
    found = [fields for _, fields in read_lines(tmp_path / "a.csv", "here")]
    assert found == [["text", "label"], [f"é;{end}{end}b", "1"], [""], ["c", "0"]]
    (tmp_path / "b.csv").write_bytes(3 * end.encode())
    with pytest.raises(UserError, match="here: the file is empty"):
        next(read_lines(tmp_path / "b.csv", "here"))
    with pytest.raises(UserError, match="here: larger than 9 bytes"):
        list(read_lines(tmp_path / "a.csv", "here", 9))


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        (ROWS, ("text", "stars"), "no column label or sentiment but text, stars; rename one"),
        ([("good", "5")], (), "line 2: the label '5' is none of 0, neg, negative, 1, pos, positive"),
        ([("good", "1", "1")], (), "line 2 has 3 fields, but the header 2"),
        ([("good", "1")] * 9, (), r"no reviews in train/neg/; a CSV needs both labels in both parts"),
        ([("good", "1", "dev")], ("text", "label", "split"), "line 2: the split 'dev' is not train or test"),
        ([("good", "a", "1")], ("text", "text", "label"), "the columns text and text may each be the text; rename or"),
        ([("good", "a", "1")], ("text", "Review", "label"), "the columns text and Review may each be the text"),
        ([("good", "1", "0")], ("text", "label", "sentiment"), "the columns label and sentiment may each be the label"),
        ([("... _", label) for _, label in ROWS], (), r"no review in train/pos/ has a word"),
        ([("" if label == "0" else text, label) for text, label in ROWS[:2] * 9], (), "no review in train/neg/ has a"),
    ],
)
def test_a_table_that_will_not_do(
    rows: list[tuple[str, ...]], header: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"task\.data=.*a\.csv: {said}") as error:
        sentiments(table(tmp_path / "a.csv", rows, *header))
    assert "\n" not in str(error.value)


def test_a_table_of_a_part_that_says_another(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", [(*row, "test") for row in ROWS], "text", "label", "split")
    table(tmp_path / "test.csv", ROWS)
    with pytest.raises(UserError, match=r"train\.csv: line 2: the split 'test' is not train"):
        sentiments(tmp_path)


# The cache


def cached(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*"))


def said_reading(capsys: pytest.CaptureFixture[str]) -> bool:
    return "reading the reviews" in capsys.readouterr().out


def test_the_second_time_nothing_is_read(
    tree: Path, tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for source in (tree, pack(tree, tmp_path / "a.tar.gz")):
        words, train, test = load_cached(source, 100, 50)
        assert said_reading(capsys)
        with monkeypatch.context() as patch:
            patch.delattr("rnnzoo.tasks.reviews.read_reviews")
            again_words, again_train, again_test = load_cached(source, 100, 50)
        assert not said_reading(capsys)
        assert words == again_words
        for first, second in ((train, again_train), (test, again_test)):
            assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(first, second))
    assert len(cached(own_cache)) == 4  # the numbers, and what else there is to know, of each source


def test_settings_and_content_make_other_caches(
    tree: Path, tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_cached(tree, 100, 50)
    for vocabulary, maxlen in ((99, 50), (100, 49)):
        load_cached(tree, vocabulary, maxlen)
    assert len(cached(own_cache)) == 2 * 3
    capsys.readouterr()

    review = tree / "train" / "pos" / "0_7.txt"
    stamp = review.stat().st_mtime_ns
    changes: list[Callable[[], object]] = [
        lambda: change_unnoticed(review, review.read_bytes().upper()[::-1]),
        lambda: review.write_text(review.read_text() + " more"),
        lambda: os.utime(review, ns=(stamp + 10**9, stamp + 10**9)),
        lambda: review.rename(review.with_name("9_9.txt")),
        lambda: (tree / "test" / "neg" / "1_7.txt").unlink(),
    ]
    for number, change in enumerate(changes):
        change()
        load_cached(tree, 100, 50)
        assert said_reading(capsys)
        assert len(cached(own_cache)) == 2 * (4 + number)

    # an archive is known by its contents, wherever it is
    archive = pack(tree, tmp_path / "a.tar")
    load_cached(archive, 100, 50)
    assert said_reading(capsys)
    archive.rename(tmp_path / "b.tar")
    load_cached(tmp_path / "b.tar", 100, 50)
    assert not said_reading(capsys)


@pytest.mark.parametrize("kind", ["int32", "npz"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.7, 0.99])
def test_a_damaged_cache_is_made_anew_with_a_warning(
    kind: str, keep: float, tree: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, train, _ = load_cached(tree, 100, 50)
    found = cached(own_cache)
    [path] = own_cache.glob(f"*.{kind}")
    whole = path.read_bytes()
    path.unlink()  # what was mapped stays
    path.write_bytes(whole[: int(len(whole) * keep)])
    capsys.readouterr()
    with pytest.warns(UserWarning, match="is damaged"):
        again_words, again, _ = load_cached(tree, 100, 50)
    assert said_reading(capsys)
    assert words == again_words and torch.equal(train.words, again.words)
    assert cached(own_cache) == found and len(path.read_bytes()) == len(whole)


def test_a_cache_with_a_wrong_byte_is_noticed(tree: Path, own_cache: Path) -> None:
    load_cached(tree, 100, 50)
    [path], [numbers] = own_cache.glob("*.npz"), own_cache.glob("*.int32")
    with np.load(path) as stored:
        needle = stored["lengths"].tobytes()
    for damaged, at in ((numbers, 8), (path, path.read_bytes().index(needle) + 8)):
        raw = bytearray(damaged.read_bytes())
        raw[at] ^= 1
        damaged.unlink()  # what was mapped stays
        damaged.write_bytes(bytes(raw))
        with pytest.warns(UserWarning, match="is damaged"):
            load_cached(tree, 100, 50)


@pytest.mark.parametrize("field", ["checksum", "vocabulary", "lengths", "labels", "test"])
def test_a_cache_that_lacks_something_is_made_anew(field: str, tree: Path, own_cache: Path) -> None:
    expected = load_cached(tree, 100, 50)
    [path] = own_cache.glob("*.npz")
    with np.load(path) as stored:
        arrays = dict(stored)
    del arrays[field]
    np.savez(path, **arrays)
    with pytest.warns(UserWarning, match=f"is damaged.*{field}"):
        assert same(load_cached(tree, 100, 50), expected)
    [path] = own_cache.glob("*.int32")
    path.unlink()
    with pytest.warns(UserWarning, match="is damaged.*No such file"):
        assert same(load_cached(tree, 100, 50), expected)


@pytest.mark.parametrize("content", [npy(7), npy(["a"]), b"[]", b"PK\3\4"])
def test_a_cache_of_another_kind_is_made_anew(content: bytes, tree: Path, own_cache: Path) -> None:
    expected = load_cached(tree, 100, 50)
    replace_cached(own_cache, "npz", lambda whole: content)
    with pytest.warns(UserWarning, match=r"npz is damaged .* will be made anew"):
        assert same(load_cached(tree, 100, 50), expected)


def test_a_source_that_is_refused_leaves_no_cache(tree: Path, own_cache: Path) -> None:
    shutil.rmtree(tree / "test" / "neg")
    with pytest.raises(UserError):
        sentiments(tree)
    assert cached(own_cache) == []


# Batches


def rows(reviews: Reviews) -> list[tuple[int, ...]]:
    return [(*reviews[row].tolist(), int(label)) for row, label in enumerate(reviews.labels)]


def rows_of(batches: list[Batch]) -> list[tuple[int, ...]]:
    return [
        (*batch.words[: batch.lengths[row], row].tolist(), int(batch.labels[row]))
        for batch in batches
        for row in range(len(batch.labels))
    ]


def test_the_held_out_part_is_stratified(tree: Path) -> None:
    whole = load_cached(tree, 100, 50)[1]
    for fraction, held_out in ((0.25, 2), (0.5, 4), (0.01, 1), (0.9, 7)):
        data = sentiments(tree, val_fraction=fraction)
        assert data.val.labels.tolist().count(1) == data.val.labels.tolist().count(0) == held_out
        assert len(data.train.labels) == 16 - 2 * held_out
        assert sorted(rows(data.train) + rows(data.val)) == sorted(rows(whole))
    assert rows(sentiments(tree, seed=1).val) == rows(sentiments(tree, seed=1).val)
    assert any(rows(sentiments(tree, seed=1).val) != rows(sentiments(tree, seed=seed).val) for seed in (2, 3, 4))


def test_parts_are_rows_of_what_is_mapped() -> None:
    """Held out and not, and the batches of both: by NumPy's own splitting of the words."""
    reviews = random_reviews([int(n) for n in np.random.default_rng(1).integers(1, 9, 40)])
    alone = np.split(reviews.words.numpy(), reviews.lengths.cumsum(0)[:-1].numpy())
    parts = hold_out(reviews, 0.3, 5, Path("here"))
    starts = torch.cat([part.starts for part in parts]).sort().values
    assert torch.equal(starts, reviews.starts)
    row_of = {int(start): row for row, start in enumerate(reviews.starts)}
    for part in parts:
        assert part.words.data_ptr() == reviews.words.data_ptr()
        rows = [row_of[int(start)] for start in part.starts]
        assert rows == sorted(rows) and part.labels.tolist() == reviews.labels[rows].tolist()
        assert all(part[at].tolist() == alone[row].tolist() for at, row in enumerate(rows))
        assert part.lengths.tolist() == [len(alone[row]) for row in rows]


def test_too_few_reviews_to_hold_some_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task\.data=.*few/aclImdb: 1 training reviews in neg are too few to"):
        sentiments(write_tree(tmp_path / "few", reviews=1))


def test_a_fraction_that_leaves_nothing_to_learn_from(tree: Path) -> None:
    """Of one class, too: the other's eight reviews more leave something."""
    for number in range(8):
        (tree / "train" / "pos" / f"{number}_0.txt").write_text("fine")
    said = rf"task\.val_fraction=0\.95 of the 8 training reviews in neg of {tree} leaves none to learn from; lower it"
    with pytest.raises(UserError, match=said):
        sentiments(tree, val_fraction=0.95)


def random_reviews(lengths: list[int], seed: int = 0) -> Reviews:
    generator = torch.Generator().manual_seed(seed)
    ends = torch.tensor(lengths).cumsum(0)
    words = torch.randint(1, 9, (int(ends[-1]),), generator=generator, dtype=torch.int32)
    labels = torch.randint(0, 2, (len(lengths),), generator=generator)
    return Reviews(words, ends - torch.tensor(lengths), torch.tensor(lengths), labels)


@pytest.fixture(scope="module")
def any_data(tmp_path_factory: pytest.TempPathFactory) -> Sentiments:
    return sentiments(write_tree(tmp_path_factory.mktemp("any")))


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60),
    batch_size=st.integers(1, 9),
    pool=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
def test_every_review_once_an_epoch(
    any_data: Sentiments, lengths: list[int], batch_size: int, pool: int, epoch: int
) -> None:
    reviews = random_reviews(lengths)
    any_data.train = any_data.val = any_data.test = reviews
    any_data.folds = torch.zeros_like(reviews.labels)
    any_data.batch_size, any_data.pool = batch_size, pool
    training = any_data.train_dataloader()
    keys = training.plan(epoch)
    assert len(keys) == len(training)
    batches = [training.fetch(key) for key in keys]
    assert sorted(rows_of(batches)) == sorted(rows(reviews))
    assert max(len(batch.labels) for batch in batches) <= batch_size
    for loader in (any_data.val_dataloader(), any_data.test_dataloader()):
        assert sorted(rows_of(list(loader))) == sorted(rows(reviews))
    for batch in batches:
        assert len(batch.words) == batch.lengths.max()
        past = torch.arange(len(batch.words))[:, None] >= batch.lengths
        assert batch.words[past].eq(0).all() and batch.words[~past].ne(0).all()


def test_order_depends_on_seed_and_epoch(tree: Path) -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, ...]]:
        data = sentiments(tree, val_fraction=0.1, batch_size=2)
        data.seed = seed
        batches = data.train_dataloader()
        return rows_of([batches.fetch(key) for key in batches.plan(epoch)])

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_little_is_padding(any_data: Sentiments) -> None:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 400, (2000,), generator=generator).tolist()
    any_data.train = any_data.val = random_reviews(lengths)
    any_data.folds = torch.zeros_like(any_data.train.labels)
    any_data.batch_size, any_data.pool = 16, 20
    training = any_data.train_dataloader()
    for batches in ([training.fetch(key) for key in training.plan(0)], list(any_data.val_dataloader())):
        padded = sum(batch.words.numel() for batch in batches)
        # at random nearly half of a batch of 16 would be padding: its longest review has some 375 words of 400
        assert 1 - sum(lengths) / padded < 0.1


# The model


def model(pooling: str, bidirectional: bool, dropout: float = 0.0, words: float = 0.0) -> Sentiment:
    torch.manual_seed(0)
    layer = {"cell": "gru", "hidden_size": 4, "bidirectional": bidirectional}
    return (
        Sentiment(
            model=layer,
            optimizer=ADAM,
            engine="auto",
            seed=1,
            words=list("abcdefghijkl"),
            maxlen=400,
            embedding=3,
            pooling=pooling,
            word_dropout=words,
            embedding_dropout=0.0,
            dropout=dropout,
        )
        .double()
        .eval()
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("pooling", ["max", "mean", "last"])
def test_padding_is_not_seen(pooling: str, bidirectional: bool) -> None:
    """Reviews in a batch get what each gets alone, pooled here by hand."""
    module = model(pooling, bidirectional)
    lengths = [7, 1, 4, 7, 2]
    generator = torch.Generator().manual_seed(2)
    reviews = [torch.randint(1, 12, (length,), generator=generator) for length in lengths]

    def alone(words: Tensor) -> Tensor:
        output, _ = module.layer(module.embed(words)[:, None])  # [T, 1, D·H]
        output = output[:, 0]
        if pooling == "max":
            pooled = output.max(0).values
        elif pooling == "mean":
            pooled = output.mean(0)
        else:  # each direction's output where it has read all of the review
            pooled = torch.cat([output[-1, :4], output[0, 4:]])
        return module.head(pooled)[0]

    words = torch.nn.utils.rnn.pad_sequence(reviews)
    logits = module(words, torch.tensor(lengths))
    assert torch.allclose(logits, torch.stack([alone(review) for review in reviews]), atol=1e-12)
    # more padding changes nothing
    padded = torch.cat([words, torch.zeros(3, 5, dtype=words.dtype)])
    assert torch.allclose(module(padded, torch.tensor(lengths)), logits, atol=1e-12)


def test_dropped_words_are_unknown_ones_and_only_in_training() -> None:
    module = model("mean", True, words=0.999_999)
    words, lengths = torch.tensor([[3, 5], [4, 2]]), torch.tensor([2, 1])
    unknown = module(torch.full_like(words, 1), lengths)
    assert not torch.allclose(module(words, lengths), unknown)
    assert torch.allclose(module.train()(words, lengths), unknown)


def test_the_adversarial_change_is_the_worst_of_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    module = model("mean", True)
    words, lengths, labels = torch.tensor([[3, 5, 7], [4, 2, 8], [6, 0, 9]]), torch.tensor([3, 2, 3]), [1, 0, 0]
    batch = Batch(words, lengths, torch.tensor(labels))
    read: list[Tensor] = []
    judge = module.of_features
    monkeypatch.setattr(module, "of_features", lambda x, lengths: read.append(x.detach()) or judge(x, lengths))
    plain, *_ = module.train().score(batch)
    module.hparams["adversarial"] = size = 1e-3
    both, *_ = module.score(batch)
    change = read[2] - read[1]
    assert len(read) == 3 and torch.equal(read[0], read[1]) and change[2, 1].eq(0).all()  # the padding
    torch.testing.assert_close(change.square().sum((0, 2)).sqrt(), torch.full((3,), size).double())
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        other = torch.randn(change.shape, generator=generator).double()
        other *= size / other.square().sum((0, 2), keepdim=True).sqrt()
        loss = F.binary_cross_entropy_with_logits(judge(read[1] + other, lengths), torch.tensor(labels).double())
        assert loss < both - plain
    module.eval()
    torch.testing.assert_close(module.score(batch)[0], plain)


def test_padding_reaches_no_gradient() -> None:
    module = model("mean", True).train()
    words = torch.tensor([[3, 5], [4, 0]])
    module(words, torch.tensor([2, 1])).sum().backward()
    assert module.embed.weight.grad[0].eq(0).all()
    assert module.embed.weight.grad[4].ne(0).any()


def test_metrics_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    module = model("max", False)
    logits = torch.tensor([2.0, 1.0, -1.0, -2.0, 0.5, -3.0])
    labels = torch.tensor([1, 0, 1, 0, 1, 0])
    answers = iter(logits.split(4))
    monkeypatch.setattr(module, "of_features", lambda *_: next(answers))
    for part in labels.split(4):
        module.test_step(Batch(torch.ones(1, len(part), dtype=torch.long), torch.ones(len(part)), part), 0)
    found = {name: float(value) for name, value in module.test_metrics.compute().items()}

    probabilities = [1 / (1 + math.exp(-logit)) for logit in logits.tolist()]
    losses = [-math.log(p if label else 1 - p) for p, label in zip(probabilities, labels.tolist())]
    assert found["loss"] == pytest.approx(sum(losses) / 6)
    # said positive: 1st, 2nd, 5th; of these 1st and 5th are, and the 3rd was missed
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["f1"] == pytest.approx(2 * (2 / 3) * (2 / 3) / (2 / 3 + 2 / 3))
    # pairs of a positive and a negative review in the right order: 2.0 beats all three, 0.5 and -1.0 two each
    assert found["auroc"] == pytest.approx(7 / 9, abs=0.01)
    # every probability lies in a bin of its own, so that each bin's gap is that of one review
    gaps = [abs(p - label) for p, label in zip(probabilities, labels.tolist())]
    assert len({math.floor(15 * p) for p in probabilities}) == 6
    assert found["calibration_error"] == pytest.approx(sum(gaps) / 6, abs=1e-5)


# Runs


TOY = (
    "hardware=cpu", "task=imdb", "task.batch_size=8", "task.embedding=8", "task.vocabulary=50", "task.dropout=0.1",
    "model.hidden_size=8", "optimizer.lr=0.02",
)  # fmt: skip


def test_a_run_learns_and_leaves_its_baseline(tmp_path: Path, train: Callable[..., Path]) -> None:
    data = pack(write_tree(tmp_path / "data", reviews=40), tmp_path / "reviews.tar.gz")
    folder = train(*TOY, f"task.data={data}", "trainer.max_epochs=4")
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    names = ("loss", "accuracy", "f1", "auroc", "calibration_error")
    expected = {f"{split}/{name}" for split in ("val", "test") for name in names}
    assert metrics.keys() == expected | {"baseline/val_accuracy", "baseline/test_accuracy"}
    assert metrics["baseline/test_accuracy"] == metrics["baseline/val_accuracy"] == 1
    assert metrics["test/accuracy"] > 0.95 and metrics["test/auroc"] > 0.95
    module = Sentiment.load_from_checkpoint(folder / "checkpoints" / "best.ckpt", weights_only=True)
    # padding, unknown, and hand-counted words of the tree
    assert module.embed.num_embeddings == 2 + len({*GOOD.split(), *BAD.split(), *FILLER.split(), "ppp", "nnn"})
    assert not list(tmp_path.glob("**/*.partial"))


def test_another_vocabulary_is_not_a_continuation(
    tree: Path, tmp_path: Path, train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """As many words, but others: their numbers mean something else."""
    folder = train(*TOY, f"task.data={tree}", "trainer.max_epochs=1")
    for path in tree.rglob("*.txt"):
        path.write_text(path.read_text().replace("awful", "terrible"))
    with pytest.raises(SystemExit) as end:
        train(f"resume={folder}", "trainer.max_epochs=2")
    error = capsys.readouterr().err
    assert end.value.code == 1 and error.count("\n") == 1
    assert "last.ckpt was trained with words=" in error and "terrible" in error
    with pytest.raises(SystemExit) as end:
        train(*TOY, f"task.data={tree}", "test_only=true", f"ckpt={folder / 'checkpoints' / 'best.ckpt'}")
    assert "best.ckpt was trained with words=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("task.data=/nowhere", "task.data=/nowhere: no such file or folder"),
        ("task.vocabulary=2", "task.vocabulary=2: should be greater than 2"),
        ("task.pooling=median", "task.pooling=median: should be 'max', 'mean' or 'last'"),
        ("task.maxlen=0", "task.maxlen=0: should be greater than 0"),
        ("task.val_fraction=1", "task.val_fraction=1: should be less than 1"),
        ("task.pool=0", "task.pool=0: should be greater than 0"),
        ("task.buckets=512", "task.buckets=512: changes nothing without task.ngrams; set that as well"),
    ],
)
def test_bad_input_ends_in_one_line(
    argument: str, said: str, tree: Path, train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        train(*TOY, f"task.data={tree}", argument)
    error = capsys.readouterr().err
    assert end.value.code == 1
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(not ARCHIVE.is_file(), reason="the real reviews are not here")
def test_the_real_reviews() -> None:
    """The counts of the data set's own README."""
    data = sentiments(ARCHIVE, vocabulary=20_000, maxlen=400, val_fraction=0.1)
    assert len(data.vocabulary) == 20_000
    assert [len(part.labels) for part in (data.train, data.val, data.test)] == [22_500, 2_500, 25_000]
    assert [int(part.labels.sum()) for part in (data.train, data.val, data.test)] == [11_250, 1_250, 12_500]
    assert data.vocabulary[2:5] == ["the", "and", "a"]
