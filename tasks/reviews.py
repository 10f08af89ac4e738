"""Film reviews: numbered word by word, and kept in the cache.

Shapes: T time steps (words).
"""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rnnzoo import UserError
from rnnzoo.files import cache_folder, expanded, writing
from rnnzoo.plain import printable

from .download import digest, download, one_at_a_time
from .review_files import files_of, read_reviews

PADDING, UNKNOWN = 0, 1
"""Numbers of the word that fills up a batch and of all words outside the vocabulary."""

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
LONGEST = 1 << 20
"""Characters of a review that is judged."""
SPLITS = "train", "test"
FORMAT = "2"
"""Part of the cache's key; to be raised with any change to how reviews are read."""


class Reviews(NamedTuple):
    """Reviews as word numbers end to end: words [sum of lengths] int32, ends [reviews + 1], labels [reviews]."""

    words: Tensor
    ends: Tensor
    labels: Tensor

    def __getitem__(self, row: Any) -> Any:
        return self.words[self.ends[row] : self.ends[row + 1]]

    @property
    def lengths(self) -> Tensor:
        return self.ends.diff()


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
    """Vocabulary, training part and test part, from the cache if these very data were read before."""

    def read() -> dict[str, NDArray[Any]]:
        print(printable(f"reading the reviews of {source}"), flush=True)
        words, train, test = encode(read_reviews(source), vocabulary, maxlen)
        arrays = {
            f"{split}_{k}": v.numpy() for split, r in (("train", train), ("test", test)) for k, v in r._asdict().items()
        }
        return {"vocabulary": np.array("\n".join(words)), **arrays}

    stored = kept(f"imdb_{key_of(source, vocabulary, maxlen)}", read)
    train, test = (
        Reviews(*(torch.from_numpy(stored[f"{split}_{field}"]) for field in Reviews._fields)) for split in SPLITS
    )
    return str(stored["vocabulary"]).split("\n"), train, test


def key_of(source: Path, *settings: float) -> str:
    """What the cache knows something by that was made of these very data with these settings.

    Of the data it is the file's checksum, or the names, sizes and times of those of a folder that are read.
    """
    if source.is_dir():
        files = ((name, path.stat()) for name, path in files_of(source))
        contents = "".join(f"{name} {stat.st_size} {stat.st_mtime_ns}\n" for name, stat in files)
    else:
        contents = digest(source)
    # names of files need not be UTF-8
    key = " ".join(map(str, (FORMAT, *settings, contents))).encode("utf-8", "surrogateescape")
    return hashlib.sha256(key).hexdigest()[:16]


@one_at_a_time()
def kept(name: str, make: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Arrays from the cache, or as they are made the first time; a damaged file is made anew, with a warning."""
    path = cache_folder() / f"{name}.npz"
    if path.is_file():
        try:
            with path.open("rb") as cached, np.load(cached) as stored:
                return dict(stored)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            warnings.warn(printable(f"{path} is damaged ({error}) and will be made anew"), stacklevel=3)
    arrays = make()
    with writing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return arrays


def number(review: str, vocabulary: Sequence[str], maxlen: int) -> Tensor:
    """The words that are read of a review, by their numbers [T]; `UserError` for none and for too many."""
    if len(review) > LONGEST:
        raise UserError(f"a review of {len(review):,} characters is too long to be judged, {LONGEST:,} are not")
    words = tokenize(review)[-maxlen:]
    if not words:
        raise UserError("a review without a word cannot be judged")
    codes = {word: code for code, word in enumerate(vocabulary)}
    return torch.tensor([codes.get(word, UNKNOWN) for word in words])


def encode(reviews: Iterator[tuple[str, int, str]], vocabulary: int, maxlen: int) -> tuple[list[str], Reviews, Reviews]:
    """Number the words: the vocabulary, of the training part's most frequent words, and both parts' reviews."""
    number: dict[str, int] = {}
    codes = {"train": array("i"), "test": array("i")}
    ends: dict[str, list[int]] = {"train": [0], "test": [0]}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    count: Counter[int] = Counter()
    for split, label, text in reviews:
        tokens = [number.setdefault(word, len(number)) for word in tokenize(text)]
        if split == "train":
            count.update(tokens)
        tokens = tokens[-maxlen:] or [number.setdefault("", len(number))]  # a review without a word is one unknown
        codes[split].extend(tokens)
        ends[split].append(len(codes[split]))
        labels[split].append(label)

    word = list(number)
    # ties in frequency are broken by the alphabet, so that no order of files changes the vocabulary
    frequent = sorted(count, key=lambda code: (-count[code], word[code]))[: vocabulary - 2]
    final = np.full(len(word), UNKNOWN, dtype=np.int32)
    final[frequent] = np.arange(2, 2 + len(frequent), dtype=np.int32)

    def numbered(split: str) -> Reviews:
        words = torch.from_numpy(final[np.frombuffer(codes[split], dtype=np.int32)])
        return Reviews(words, torch.tensor(ends[split]), torch.tensor(labels[split]))

    return ["<padding>", "<unknown>", *(word[code] for code in frequent)], numbered("train"), numbered("test")


def held_out(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Which reviews are held out [reviews]: `fraction` of each class, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for label in (0, 1):
        rows = (labels == label).nonzero()[:, 0]
        chosen = rows[torch.randperm(len(rows), generator=generator)]
        drawn[chosen[: max(1, round(fraction * len(rows)))]] = True
    if drawn.all():
        raise UserError(f"task.data: {len(drawn)} training reviews are too few to hold some out")
    return drawn


def hold_out(reviews: Reviews, fraction: float, seed: int) -> tuple[Reviews, Reviews]:
    """The reviews without and with those that are held out."""
    drawn = held_out(reviews.labels, fraction, seed)
    return _select(reviews, ~drawn), _select(reviews, drawn)


def _select(reviews: Reviews, mask: Tensor) -> Reviews:
    lengths = reviews.lengths
    ends = F.pad(lengths[mask].cumsum(0), (1, 0))
    return Reviews(reviews.words[mask.repeat_interleave(lengths)], ends, reviews.labels[mask])
