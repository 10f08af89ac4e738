"""Sentiment of film reviews: the Large Movie Review Dataset of Maas et al. 2011 in its official split.

Shapes: T time steps (words), B batch, V vocabulary, E features of a word.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
import warnings
import zipfile
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryCalibrationError, BinaryF1Score

from rnnzoo import UserError
from tasks.bag_of_words import bag_of_words
from tasks.base import Batches, EvaluationMetrics, SequenceData, SequenceModule, in_order, share, shuffled, writing
from tasks.download import cache_folder, digest, download, one_at_a_time

PADDING, UNKNOWN = 0, 1
"""Numbers of the word that fills up a batch and of all words outside the vocabulary."""

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
REVIEW = re.compile(r"(?:^|/)(train|test)/(pos|neg)/[^/]+\.txt$")
Fraction = Annotated[float, Field(ge=0, lt=1)]
FORMAT = "1"
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


class Batch(NamedTuple):
    """words [T, B] filled up with `PADDING`, lengths [B], labels [B] (1 for a positive review)."""

    words: Tensor
    lengths: Tensor
    labels: Tensor


def tokenize(review: str) -> list[str]:
    """Lower-case words; `<br />` and punctuation are left out, apostrophes inside a word kept."""
    return WORD.findall(review.replace("<br />", " ").lower())


def read_reviews(source: Path) -> Iterator[tuple[str, int, str]]:
    """(split, label, text) of every labelled review of an aclImdb folder or tar archive, in order of their names.

    Raises `UserError` for an archive that is cut off or holds unsafe paths, and for a split that lacks a class.
    """
    seen = set()
    for name, raw in _folder(source) if source.is_dir() else _archive(source):
        found = REVIEW.search(name)
        if not found:
            continue
        split, sentiment = found.groups()
        seen.add((split, sentiment))
        try:
            yield split, int(sentiment == "pos"), raw.decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"task.data={source}: {name} is not UTF-8") from None
    for split in ("train", "test"):
        for sentiment in ("pos", "neg"):
            if (split, sentiment) not in seen:
                raise UserError(f"task.data={source}: no reviews in {split}/{sentiment}/; is it the aclImdb tree?")


def _folder(source: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(source.glob("**/*.txt")):
        yield path.relative_to(source).as_posix(), path.read_bytes()


def _archive(source: Path) -> Iterator[tuple[str, bytes]]:
    reviews = []
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                if member.name.startswith("/") or ".." in member.name.split("/"):
                    raise UserError(f"task.data={source}: unsafe path {member.name!r} in the archive; do not use it")
                if member.isfile() and REVIEW.search(member.name):
                    file = archive.extractfile(member)
                    assert file is not None
                    reviews.append((member.name, file.read()))
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"task.data={source}: damaged or not a tar archive ({reason}); fetch it again") from error
    # The order in an archive is whatever the packer's was; names make it the same as a folder's.
    yield from sorted(reviews)


class Sentiments(SequenceData):
    """The reviews as word numbers, in batches of similar length.

    Args:
        data: the `aclImdb` folder or tar archive; None downloads it into the cache.
        vocabulary: most frequent words of the training part that are told apart.
        maxlen: words of a review that are read, its last ones, where the verdict stands.
        batch_size: reviews a batch.
        pool: batches whose reviews are sorted by length together: larger wastes less, smaller mixes better.
        val_fraction: the share of the training part held out, stratified, for choosing the epoch.
        seed: of held-out reviews and order.
    """

    def __init__(
        self,
        data: str | None,
        vocabulary: Annotated[int, Field(gt=2)],
        maxlen: PositiveInt,
        batch_size: PositiveInt,
        pool: PositiveInt,
        val_fraction: Annotated[float, Field(gt=0, lt=1)],
        seed: int,
    ) -> None:
        super().__init__()
        self.batch_size, self.pool, self.seed = batch_size, pool, seed
        self.vocabulary, train, self.test = load_cached(_source(data), vocabulary, maxlen)
        self.train, self.val = _hold_out(train, val_fraction, seed)

    def arguments(self) -> dict[str, Any]:
        return {"vocabulary_size": len(self.vocabulary)}

    def state_dict(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["vocabulary"] != self.vocabulary:
            raise UserError("task.data: its vocabulary is not the one that the checkpoint was trained with")

    def train_dataloader(self) -> Any:
        return Batches(self._pooled, lambda rows: self._batch(self.train, rows), self.position)

    def val_dataloader(self) -> Any:
        return self._by_length(self.val)

    def test_dataloader(self) -> Any:
        return self._by_length(self.test)

    def baseline(self) -> dict[str, float]:
        """A linear classifier on the same words, trained in seconds: see `bag_of_words`."""
        return bag_of_words(self.train, self.val, self.test, len(self.vocabulary))

    def _pooled(self, epoch: int) -> Sequence[Tensor]:
        lengths = self.train.lengths
        batches: list[Tensor] = []
        for pool in shuffled(len(lengths), self.pool * self.batch_size, self.seed, epoch):
            by_length = pool[lengths[pool].argsort(stable=True)]
            batches += [by_length[batch] for batch in in_order(len(pool), self.batch_size)]
        [order] = shuffled(len(batches), len(batches), self.seed + 1, epoch)
        return [batches[index] for index in order]

    def _by_length(self, reviews: Reviews) -> Any:
        order = reviews.lengths.argsort(stable=True)
        batches = in_order(len(order), 4 * self.batch_size)
        return Batches(lambda epoch: batches, lambda rows: self._batch(reviews, order[rows]))

    def _batch(self, reviews: Reviews, rows: Tensor) -> Batch:
        rows = share(rows)
        words = nn.utils.rnn.pad_sequence([reviews[row] for row in rows], padding_value=PADDING)
        return Batch(words, reviews.lengths[rows], reviews.labels[rows])


def _source(data: str | None) -> Path:
    if data is None:
        return download(
            "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
            "aclImdb_v1.tar.gz",
            "md5:7c2ac02c03563afcf9b574c7e56c153a",
            "task.data=PATH",
        )
    path = Path(data).expanduser()
    if not path.exists():
        raise UserError(f"task.data={data}: no such file or folder")
    return path


@one_at_a_time()
def load_cached(source: Path, vocabulary: int, maxlen: int) -> tuple[list[str], Reviews, Reviews]:
    """Vocabulary, training part and test part, from the cache if these very data were read before.

    The key is the archive's checksum, or the names, sizes and times of a folder's files, with the settings. A cache
    file that is damaged is made anew, with a warning.
    """
    if source.is_dir():
        files = ((p.relative_to(source).as_posix(), p.stat()) for p in sorted(source.glob("t*/*/*.txt")))
        contents = "".join(f"{name} {stat.st_size} {stat.st_mtime_ns}\n" for name, stat in files)
    else:
        contents = digest(source)
    key = hashlib.sha256(f"{FORMAT} {vocabulary} {maxlen} {contents}".encode()).hexdigest()[:16]
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
            warnings.warn(f"{path} is damaged ({error}) and will be made anew", stacklevel=2)
    print(f"reading the reviews of {source}", flush=True)
    words, train, test = encode(read_reviews(source), vocabulary, maxlen)
    arrays = {
        f"{split}_{k}": v.numpy() for split, r in (("train", train), ("test", test)) for k, v in r._asdict().items()
    }
    with writing(path) as partial, partial.open("wb") as file:
        np.savez(file, vocabulary=np.array("\n".join(words)), **arrays)
    return words, train, test


def number(review: str, vocabulary: Sequence[str], maxlen: int) -> Tensor:
    """The words that are read of a review, by their numbers [T]; `UserError` if it has none."""
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


def _hold_out(reviews: Reviews, fraction: float, seed: int) -> tuple[Reviews, Reviews]:
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


class Sentiment(SequenceModule):
    """Words through an embedding, a recurrent layer, pooling over time and a linear head to one logit.

    Args:
        vocabulary_size: V.
        embedding: features of a word, E.
        pooling: of the outputs over time: their maximum, their mean, or the last state of each direction.
        word_dropout: probability that a word is taken for an unknown one.
        embedding_dropout: probability of dropping a feature of a word.
        dropout: probability of dropping a feature of the pooled output.
    """

    monitor, picture = "val/accuracy", "tasks.pictures.RunningScore"

    def __init__(
        self,
        model: dict[str, Any],
        optimizer: dict[str, Any],
        engine: str,
        seed: int,
        vocabulary_size: int,
        embedding: PositiveInt,
        pooling: Literal["max", "mean", "last"],
        word_dropout: Fraction,
        embedding_dropout: Fraction,
        dropout: Fraction,
    ) -> None:
        super().__init__(model, optimizer, engine, seed)
        self.embed = nn.Embedding(vocabulary_size, embedding)
        # Small, so that a rare word stays near nothing: at torch's scale of 1 it keeps the noise that it starts from.
        nn.init.normal_(self.embed.weight, std=0.1)
        self.layer = self.recurrent(embedding)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(self.layer.output_size, 1)
        self.add_metrics(
            accuracy=BinaryAccuracy(validate_args=False),
            f1=BinaryF1Score(validate_args=False),
            auroc=BinaryAUROC(thresholds=500, validate_args=False),  # fixed thresholds keep memory flat
            calibration_error=BinaryCalibrationError(n_bins=15, validate_args=False),
        )

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """Words [T, B] and lengths [B] to the logit of a positive review [B]."""
        if self.training:
            unknown = torch.rand(words.shape, device=words.device) < self.hparams["word_dropout"]
            words = words.masked_fill(unknown, UNKNOWN)
        features = F.dropout(self.embed(words), self.hparams["embedding_dropout"], self.training)  # [T, B, E]
        output, _ = self.layer(features, lengths=lengths)  # [T, B, D·H]
        return self.single(self.head(self.drop(self._pool(output, lengths))).squeeze(-1))

    @torch.no_grad()
    def judge(self, words: Tensor, running: bool = False) -> list[float]:
        """How probable it is that a review of words [T] is positive, if `running` after each of its words.

        Each beginning is read on its own, so that a backward direction and pooling see what they would of a review.
        """
        lengths = torch.arange(1, len(words) + 1, device=words.device) if running else words.new_tensor([len(words)])
        found = [self(words[: max(part), None].expand(-1, len(part)), part) for part in lengths.split(50)]
        return torch.cat(found).sigmoid().tolist()

    def _pool(self, output: Tensor, lengths: Tensor) -> Tensor:
        """Outputs [T, B, D·H], zero past each length, to [B, D·H]."""
        if self.hparams["pooling"] == "mean":
            return output.sum(0) / lengths[:, None]
        if self.hparams["pooling"] == "max":
            past = torch.arange(output.shape[0], device=output.device)[:, None] >= lengths  # [T, B]
            return output.masked_fill(past[:, :, None], float("-inf")).amax(0)
        last = output[lengths - 1, torch.arange(output.shape[1], device=output.device)]
        if not self.layer.bidirectional:
            return last
        size = self.layer.hidden_size  # the backward direction has read all of a review at its first word
        return torch.cat([last[:, :size], output[0, :, size:]], -1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logit = self(batch.words, batch.lengths)
        loss = F.binary_cross_entropy_with_logits(logit, batch.labels.to(logit.dtype))
        return self.training_loss(loss, len(logit))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(self.val_metrics, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(self.test_metrics, batch)

    def _evaluate(self, metrics: EvaluationMetrics, batch: Batch) -> None:
        logit = self(batch.words, batch.lengths)
        loss = F.binary_cross_entropy_with_logits(logit, batch.labels.to(logit.dtype))
        # probabilities, not logits: torchmetrics takes all values within [0, 1] for probabilities already
        metrics.update(loss, len(logit), logit.sigmoid(), batch.labels)
