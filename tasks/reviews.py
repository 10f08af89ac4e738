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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
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


@one_at_a_time()
def load_cached(source: Path, vocabulary: int, maxlen: int) -> tuple[list[str], Reviews, Reviews]:
    """Vocabulary, training part and test part, from the cache if these very data were read before.

    The key is the file's checksum, or the names, sizes and times of those of a folder that are read, with the
    settings. A cache file that is damaged is made anew, with a warning.
    """
    if source.is_dir():
        files = ((name, path.stat()) for name, path in files_of(source))
        contents = "".join(f"{name} {stat.st_size} {stat.st_mtime_ns}\n" for name, stat in files)
    else:
        contents = digest(source)
    # names of files need not be UTF-8
    settings = f"{FORMAT} {vocabulary} {maxlen} {contents}".encode("utf-8", "surrogateescape")
    key = hashlib.sha256(settings).hexdigest()[:16]
    path = cache_folder() / f"imdb_{key}.npz"
    if path.is_file():
        try:
            with path.open("rb") as cached, np.load(cached) as stored:
                words = str(stored["vocabulary"]).split("\n")
                train, test = (
                    Reviews(*(torch.from_numpy(stored[f"{split}_{field}"]) for field in Reviews._fields))
                    for split in ("train", "test")
                )
                return words, train, test
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            warnings.warn(printable(f"{path} is damaged ({error}) and will be made anew"), stacklevel=2)
    print(printable(f"reading the reviews of {source}"), flush=True)
    words, train, test = encode(read_reviews(source), vocabulary, maxlen)
    arrays = {
        f"{split}_{k}": v.numpy() for split, r in (("train", train), ("test", test)) for k, v in r._asdict().items()
    }
    with writing(path) as partial, partial.open("wb") as file:
        np.savez(file, vocabulary=np.array("\n".join(words)), **arrays)
    return words, train, test


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


def hold_out(reviews: Reviews, fraction: float, seed: int) -> tuple[Reviews, Reviews]:
    """Split off `fraction` of the reviews of each class, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(reviews.labels), dtype=torch.bool)
    for label in (0, 1):
        rows = (reviews.labels == label).nonzero()[:, 0]
        chosen = rows[torch.randperm(len(rows), generator=generator)]
        held_out[chosen[: max(1, round(fraction * len(rows)))]] = True
    if held_out.all():
        raise UserError(f"task.data: {len(held_out)} training reviews are too few to hold some out")
    return _select(reviews, ~held_out), _select(reviews, held_out)


def _select(reviews: Reviews, mask: Tensor) -> Reviews:
    lengths = reviews.lengths
    ends = F.pad(lengths[mask].cumsum(0), (1, 0))
    return Reviews(reviews.words[mask.repeat_interleave(lengths)], ends, reviews.labels[mask])
