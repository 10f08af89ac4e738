"""Film reviews: numbered word by word, and kept in the cache.

Shapes: T time steps (words).
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from rnnzoo import UserError
from rnnzoo.files import cache_folder, expanded, writing
from rnnzoo.plain import printable

from .blocks import Array, blocks, version_of
from .blocks import kept as kept_in_files
from .download import digest, download
from .review_files import files_of, read_reviews

PADDING, UNKNOWN = 0, 1
"""Numbers of the word that fills up a batch and of all words outside the vocabulary."""

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
LONGEST = 1 << 20
"""Characters of a review that is judged."""
FORMAT = "2"
"""Part of the cache's key; to be raised with any change to how reviews are read."""

AT_ONCE = 1000
"""Reviews that are numbered together."""
SAID = 100_000
"""Reviews after which it is said how many were read."""

T = TypeVar("T")


class Reviews(NamedTuple):
    """Reviews as word numbers: words [N] int32 of these and others end to end, and of each where it begins in them, how
    long it is, and its label, all [reviews].
    """

    words: Tensor
    starts: Tensor
    lengths: Tensor
    labels: Tensor

    def __getitem__(self, row: Any) -> Any:
        return self.words[self.starts[row] : self.starts[row] + self.lengths[row]]

    def of(self, rows: Tensor) -> Reviews:
        """Those of these rows, or where a mask [reviews] is true; the words stay where they are."""
        return Reviews(self.words, self.starts[rows], self.lengths[rows], self.labels[rows])


def tokenize(review: str) -> list[str]:
    """Lower-case words; `<br />` and punctuation are left out, apostrophes inside a word kept."""
    return WORD.findall(review.replace("<br />", " ").lower())


def find(data: str | None) -> Path:
    if data is None:
        return download(
            "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
            "aclImdb_v1.tar.gz",
            "md5:7c2ac02c03563afcf9b574c7e56c153a",
            "task.data=PATH",
            100_000_000,
        )
    path = expanded(data)
    if not path.exists():
        raise UserError(f"task.data={data}: no such file or folder")
    return path


def load_cached(source: Path, vocabulary: int, maxlen: int) -> tuple[list[str], Reviews, Reviews]:
    """Vocabulary, training part and test part, from the cache if these very data were read before.

    The word numbers are mapped into memory, which then holds only those that are being read.
    """
    name = f"reviews_{key_of(source, vocabulary, maxlen)}"
    numbers = cache_folder() / f"{name}.int32"

    def read() -> dict[str, Array]:
        print(printable(f"reading the reviews of {source}"), flush=True)
        with writing(numbers) as partial:
            arrays = encode(read_reviews(source), vocabulary, maxlen, partial)
            return {**arrays, "checksum": np.array(digest(partial))}

    def load(stored: Mapping[str, Array]) -> tuple[list[str], Reviews, Reviews]:
        if digest(numbers) != str(stored["checksum"]):
            raise ValueError(f"{numbers.name} beside it is not what was written")
        return parts_in(stored, numbers)

    return kept(name, read, load)


def key_of(source: Path, *settings: float) -> str:
    """What the cache knows something by that was made of these very data with these settings.

    Of the data it is the file's checksum, or the names, sizes and times of those of a folder that are read.
    """
    if source.is_dir():
        contents = "".join(f"{name} {version_of(path)}\n" for name, path in files_of(source))
    else:
        contents = digest(source)
    # names of files need not be UTF-8
    key = " ".join(map(str, (FORMAT, *settings, contents))).encode("utf-8", "surrogateescape")
    return hashlib.sha256(key).hexdigest()[:16]


def kept(name: str, make: Callable[[], dict[str, Array]], load: Callable[[Mapping[str, Array]], T]) -> T:
    """What is loaded from arrays in the cache, or as they are made the first time; see `blocks.kept`."""
    path = cache_folder() / f"{name}.npz"

    def store() -> None:
        arrays = make()
        with writing(path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def stored() -> T:
        with path.open("rb") as cached, np.load(cached) as arrays:
            return load(arrays)

    return kept_in_files(path, store, stored)


def number(review: str, vocabulary: Sequence[str], maxlen: int) -> Tensor:
    """The words that are read of a review, by their numbers [T]; `UserError` for none and for too many."""
    if len(review) > LONGEST:
        raise UserError(f"a review of {len(review):,} characters is too long to be judged, {LONGEST:,} are not")
    words = tokenize(review)[-maxlen:]
    if not words:
        raise UserError("a review without a word cannot be judged")
    codes = {word: code for code, word in enumerate(vocabulary)}
    return torch.tensor([codes.get(word, UNKNOWN) for word in words])


class Numbered(NamedTuple):
    """What was read of reviews whose tokens were numbered: all different ones, and how often each stands in the
    training part, both by number; of each review how many were kept, its label, and whether it is for the test.
    """

    tokens: list[str]
    counts: Array
    lengths: Array
    labels: Array
    test: Array


def number_all(
    reviews: Iterator[tuple[str, int, str]], tokens_of: Callable[[str], list[str]], maxlen: int | None, numbers: Path
) -> Numbered:
    """Write each review's last tokens as numbers, int32 and end to end, to a file; "", of number 0, where it has none.

    Args:
        reviews: split, label and text of each.
        tokens_of: the tokens of a text.
        maxlen: tokens kept of a review; None for all.
        numbers: the file.
    """
    number: defaultdict[str, int] = defaultdict()
    number.default_factory = number.__len__
    number[""]  # is 0
    counts, lengths, labels, test = np.zeros(1, np.int64), array("q"), array("b"), array("b")
    with numbers.open("wb") as file:
        while some := list(islice(reviews, AT_ONCE)):
            splits, of_some, texts = zip(*some)
            found = [tokens_of(text) or [""] for text in texts]
            codes = np.fromiter(map(number.__getitem__, chain.from_iterable(found)), np.int32)
            sizes = np.array([len(tokens) for tokens in found])
            is_test = np.array([split == "test" for split in splits])
            added = np.bincount(codes[~is_test.repeat(sizes)], minlength=len(number))
            added[: len(counts)] += counts
            counts = added
            if maxlen is not None:
                to_end = sizes.cumsum().repeat(sizes) - np.arange(len(codes))
                codes, sizes = codes[to_end <= maxlen], sizes.clip(max=maxlen)
            file.write(codes.tobytes())
            lengths.extend(sizes.tolist())
            labels.extend(of_some)
            test.extend(is_test.tolist())
            if len(labels) % SAID == 0:
                print(f"{len(labels):,} reviews read", flush=True)
    counts[0] = 0
    return Numbered(list(number), counts, np.array(lengths), np.array(labels), np.array(test, dtype=bool))


def encode(reviews: Iterator[tuple[str, int, str]], vocabulary: int, maxlen: int, numbers: Path) -> dict[str, Array]:
    """Number the words by the vocabulary, of the training part's most frequent ones, into a file.

    Returns what `parts_in` needs beside it. Texts are read once: words are numbered as they come, and anew in the file.
    """
    word, counts, lengths, labels, test = number_all(reviews, tokenize, maxlen, numbers)
    # ties in frequency are broken by the alphabet, so that no order of files changes the vocabulary
    frequent = sorted(counts.nonzero()[0].tolist(), key=lambda code: (-counts[code], word[code]))[: vocabulary - 2]
    final = np.full(len(word), UNKNOWN, dtype=np.int32)
    final[frequent] = np.arange(2, 2 + len(frequent))
    codes = np.memmap(numbers, np.int32, "r+")
    for block in blocks(len(codes)):
        codes[block] = final[codes[block]]
    codes.flush()
    words = ["<padding>", "<unknown>", *(word[code] for code in frequent)]
    return {"vocabulary": np.array("\n".join(words)), "lengths": lengths, "labels": labels, "test": test}


def parts_in(stored: Mapping[str, Array], numbers: Path) -> tuple[list[str], Reviews, Reviews]:
    """Vocabulary, training part and test part of what `encode` has given and written."""
    # copies what is written to, which nobody does: torch has no tensors that may not be
    words = torch.from_numpy(np.memmap(numbers, np.int32, "c"))
    lengths, labels, test = (torch.from_numpy(stored[field]) for field in ("lengths", "labels", "test"))
    whole = Reviews(words, lengths.cumsum(0) - lengths, lengths, labels.long())
    return str(stored["vocabulary"]).split("\n"), whole.of(~test), whole.of(test)


def held_out(labels: Tensor, fraction: float, seed: int, source: Path) -> Tensor:
    """Which reviews are held out [reviews]: `fraction` of each class, drawn at random, at least one.

    Raises `UserError` where that leaves none of a class.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for label in (0, 1):
        rows = (labels == label).nonzero()[:, 0]
        chosen = rows[torch.randperm(len(rows), generator=generator)]
        count = max(1, round(fraction * len(rows)))
        if count >= len(rows):
            of_class = f"training reviews in {('neg', 'pos')[label]}"
            raise UserError(
                f"task.val_fraction={fraction} of the {len(rows)} {of_class} of {source} leaves none to learn from; "
                "lower it"
                if len(rows) > 1
                else f"task.data={source}: {len(rows)} {of_class} are too few to hold some out"
            )
        drawn[chosen[:count]] = True
    return drawn


def hold_out(reviews: Reviews, fraction: float, seed: int, source: Path) -> tuple[Reviews, Reviews]:
    """The reviews without and with those that are held out, see `held_out`."""
    drawn = held_out(reviews.labels, fraction, seed, source)
    return reviews.of(~drawn), reviews.of(drawn)
