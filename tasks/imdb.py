"""Sentiment of film reviews: the Large Movie Review Dataset of Maas et al. 2011 in its official split.

Shapes: T time steps (words), B batch, V vocabulary, E features of a word.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from rich.console import Console
from torch import Tensor, nn
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryCalibrationError, BinaryF1Score

from rnnzoo.errors import UserError
from rnnzoo.lightning.arguments import Fraction, Portion
from rnnzoo.lightning.data import SequenceData, in_order, shuffled
from rnnzoo.lightning.module import SequenceModule
from rnnzoo.lightning.pictures.picture import Picture, Seen, fading, panels
from rnnzoo.lightning.verbs import verb
from rnnzoo.plain import printable

from .nb_svm import MeansAccuracy, nb_svm
from .ratios import Ratios, folds_of
from .review_lm import pretrain
from .review_view import Words
from .reviews import LONGEST, PADDING, UNKNOWN, Reviews, find, hold_out, load_cached, number, tokenize
from .text_files import decode, read_text


class Batch(NamedTuple):
    """words [T, B] filled up with `PADDING`, lengths [B], labels [B] (1 for a positive review).

    Of training reviews also the fold [B], see `Ratios`; of others, where they are to be combined, NB-SVM's logit [B].
    """

    words: Tensor
    lengths: Tensor
    labels: Tensor
    folds: Tensor | None = None
    baseline: Tensor | None = None


class Sentiments(SequenceData):
    """The reviews as word numbers, in batches of similar length.

    Args:
        data: the `aclImdb` folder or tar archive, or CSV files, see `read_reviews`; None downloads it into the cache.
        vocabulary: most frequent words of the training part that are told apart.
        maxlen: words of a review that are read, its last ones, where the verdict stands.
        batch_size: reviews a batch.
        pool: batches whose reviews are sorted by length together: larger wastes less, smaller mixes better.
        val_fraction: the share of the training part held out, stratified, for choosing the epoch.
        seed: of held-out reviews and order.
        combine: whether reviews that are evaluated bring along what NB-SVM says of them.
    """

    def __init__(
        self,
        data: str | None = None,
        vocabulary: Annotated[int, Field(gt=2)] = 20000,
        maxlen: PositiveInt = 400,
        batch_size: PositiveInt = 64,
        pool: PositiveInt = 100,
        val_fraction: Portion = 0.1,
        seed: int = 1,
        combine: bool = False,
    ) -> None:
        super().__init__()
        self.data, self.size, self.maxlen, self.val_fraction = data, vocabulary, maxlen, val_fraction
        self.batch_size, self.pool, self.seed, self.combine = batch_size, pool, seed, combine

    def prepare_data(self) -> None:
        find(self.data)

    def read(self) -> None:
        self.vocabulary, train, self.test = load_cached(find(self.data), self.size, self.maxlen)
        self.train, self.val = hold_out(train, self.val_fraction, self.seed, find(self.data))
        self.folds = folds_of(self.train.labels)
        self.judged = self._judged() if self.combine else {}

    def facts(self) -> dict[str, Any]:
        return {"words": self.vocabulary, "maxlen": self.maxlen}

    def baseline(self) -> dict[str, float]:
        """A linear classifier of words, pairs and triples: see `nb_svm`."""
        return {
            f"baseline/{split}_accuracy": float(((logit > 0) == getattr(self, split).labels).double().mean())
            for split, logit in (self.judged or self._judged()).items()
        }

    def _judged(self) -> dict[str, Tensor]:
        return dict(zip(("val", "test"), nb_svm(find(self.data), self.val_fraction, self.seed)))

    def count(self, part: Reviews) -> int:
        return len(part.labels)

    def training_plan(self, epoch: int) -> Sequence[Tensor]:
        lengths = self.train.lengths
        batches: list[Tensor] = []
        for pool in shuffled(len(lengths), self.pool * self.batch_size, self.seed, epoch):
            by_length = pool[lengths[pool].argsort(stable=True)]
            batches += [by_length[batch] for batch in in_order(len(pool), self.batch_size)]
        [order] = shuffled(len(batches), len(batches), self.seed + 1, epoch)
        return [batches[index] for index in order]

    def evaluation_plan(self, part: Reviews) -> Sequence[Tensor]:
        order = part.lengths.argsort(stable=True)
        return [order[rows] for rows in super().evaluation_plan(part)]

    def batch(self, part: Reviews, rows: Tensor) -> Batch:
        words = nn.utils.rnn.pad_sequence([part[row] for row in rows], padding_value=PADDING)
        folds = self.folds[rows] if part is self.train else None
        judged = [logit[rows] for split, logit in self.judged.items() if part is getattr(self, split)]
        return Batch(words, part.lengths[rows], part.labels[rows], folds, *judged)


class Sentiment(SequenceModule):
    """Words through an embedding, a recurrent layer, pooling over time and a linear head to one logit.

    Args:
        words: the vocabulary, by their numbers, V; the data tell.
        maxlen: words of a review that are read, its last ones; the data tell.
        embedding: features of a word, E.
        pooling: of the outputs over time: their maximum, their mean, or the last state of each direction.
        word_dropout: probability that a word is taken for an unknown one.
        embedding_dropout: probability of dropping a feature of a word.
        dropout: probability of dropping a feature of the pooled output.
        ngrams: words of the longest n-gram whose log-count ratios are features of its last word, N; see `Ratios`.
        buckets: cells of the table of counts for each length.
        pretrain_epochs: epochs in which embedding and layer learn to tell a review's words before it is judged.
        combine: whether the accuracy of a weighted mean with NB-SVM is measured, too; validation chooses the weight.
        adversarial: length of the change to what the layer reads of a review under which it is to be judged as well:
            the worst one, as far as the gradient tells (Miyato, Dai & Goodfellow 2017, arXiv:1605.07725, equation 3).
            Twice the time; 0 for none.
        base: see `SequenceModule`.
    """

    monitor = "val/accuracy"
    told = ("words", "maxlen")
    idle_without: ClassVar = {"buckets": "ngrams"}
    chosen: Tensor

    def __init__(
        self,
        words: list[str] | None = None,
        maxlen: PositiveInt | None = None,
        embedding: PositiveInt = 128,
        pooling: Literal["max", "mean", "last"] = "max",
        word_dropout: Fraction = 0.05,
        embedding_dropout: Fraction = 0.3,
        dropout: Fraction = 0.4,
        ngrams: NonNegativeInt = 0,
        buckets: PositiveInt = 2**21,
        pretrain_epochs: NonNegativeInt = 0,
        combine: bool = False,
        adversarial: NonNegativeFloat = 0.0,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.start()

    def build(self) -> None:
        embedding = self.hparams["embedding"]
        self.embed = nn.Embedding(len(self.hparams["words"]), embedding)
        # Small, so that a rare word stays near nothing: at torch's scale of 1 it keeps the noise that it starts from.
        nn.init.normal_(self.embed.weight, std=0.1)
        self.ratios = Ratios(self.hparams["ngrams"], self.hparams["buckets"]) if self.hparams["ngrams"] else None
        self.layer = self.recurrent(embedding + (self.ratios.features if self.ratios is not None else 0))
        self.drop = nn.Dropout(self.hparams["dropout"])
        self.head = nn.Linear(self.layer.output_size, 1)
        self.add_metrics(
            accuracy=BinaryAccuracy(validate_args=False),
            f1=BinaryF1Score(validate_args=False),
            auroc=BinaryAUROC(thresholds=500, validate_args=False),  # fixed thresholds keep memory flat
            calibration_error=BinaryCalibrationError(n_bins=15, validate_args=False),
        )
        if self.hparams["combine"]:
            self.combined = MeansAccuracy()
            self.register_buffer("chosen", torch.tensor(0))  # weight of the mean

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.ratios is not None and stage == "fit":
            self.ratios.count(self.trainer.datamodule.train)  # type: ignore[attr-defined]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.hparams["pretrain_epochs"] and self.trainer.ckpt_path is None:
            if self.trainer.world_size > 1:  # whose weights would drift apart
                raise UserError("task.pretrain_epochs: pretraining takes one process; choose hardware=cpu or gpu")
            pretrain(self, self.trainer.datamodule, self.hparams["pretrain_epochs"])  # type: ignore[attr-defined]

    @classmethod
    def renewed(cls, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        given = super().renewed(checkpoint)
        if "words" not in given:  # version 0.1 left the vocabulary to the data module
            given["words"] = checkpoint["Sentiments"]["vocabulary"]
        return given

    def facts(self) -> dict[str, Any]:
        return {"vocabulary": self.hparams["words"], "maxlen": self.hparams["maxlen"]}

    def view(self, data: Any) -> Words:
        return Words(self.hparams["words"], self.hparams["maxlen"])

    def pictures(self) -> list[Picture]:
        return [RunningScore()]

    def example_inputs(self, steps: int, batch: int) -> dict[str, Tensor]:
        return {"words": torch.randint(2, len(self.hparams["words"]), (steps, batch))}

    def forward(self, words: Tensor, lengths: Tensor, folds: Tensor | None = None) -> Tensor:
        """Words [T, B] and lengths [B] to the logit of a positive review [B].

        `folds` are those [B] of training reviews, see `Ratios`.
        """
        return self.of_features(self.features(words, folds), lengths)

    def features(self, words: Tensor, folds: Tensor | None = None) -> Tensor:
        """Words [T, B] to what the layer reads of each [T, B, E + N·S]."""
        known = words
        if self.training:
            unknown = torch.rand(words.shape, device=words.device) < self.hparams["word_dropout"]
            known = words.masked_fill(unknown, UNKNOWN)
        features = F.dropout(self.embed(known), self.hparams["embedding_dropout"], self.training)
        if self.ratios is None:
            return features
        return torch.cat([features, self.ratios(words, folds).to(features.dtype)], -1)

    def of_features(self, features: Tensor, lengths: Tensor) -> Tensor:
        """What the layer reads [T, B, E + N·S] to the logit [B]."""
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

    @verb
    def predict(self, text: str | None = None, file: Path | None = None, running: bool = False) -> None:
        """Whether reviews are positive.

        Args:
            text: one review, shown with the score along it.
            file: a review a line, answered by a line of JSON each, also those without a word; - for standard input.
            running: add the words and the score along them to the JSON, as if each beginning were a review.

        Raises `UserError` for a text without a word and for a file that cannot be read.
        """
        if (text is None) == (file is None):
            raise UserError("give one of --text TEXT and --file FILE")
        if file is None:
            codes = number(text or "", self.hparams["words"], self.hparams["maxlen"])
            _show(tokenize(text or "")[-len(codes) :], self.judge(codes.to(self.device), running=True))
            return
        plain = not (sys.stdout.encoding or "").lower().startswith("utf")
        for line, review in enumerate(_lines(file), 1):
            try:
                found = self._answer(review, running)
            except UserError as error:  # the other lines are judged all the same, and each answer is in its line
                print(printable(f"line {line}: {error}"), file=sys.stderr)
                found = {"label": None, "probability": None, "error": str(error)}
            print(json.dumps(found, ensure_ascii=plain), flush=True)

    def _answer(self, review: str, running: bool) -> dict[str, Any]:
        codes = number(review, self.hparams["words"], self.hparams["maxlen"])
        scores = self.judge(codes.to(self.device), running)
        found: dict[str, Any] = {"label": _label(scores), "probability": round(scores[-1], 4)}
        if running:
            words = tokenize(review)[-len(codes) :]
            found |= {"words": words, "running": [round(score, 4) for score in scores]}
        return found

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

    def score(self, batch: Batch) -> tuple[Tensor, int, Tensor, Tensor]:
        """Also how probable it is that each review is positive, and the labels [B].

        In training, the loss is the sum of that of the review as it is and that of its `adversarial` change.
        """
        features = self.features(batch.words, batch.folds if self.training else None)
        logit, labels = self.of_features(features, batch.lengths), batch.labels
        if self.hparams["combine"] and batch.baseline is not None:
            self.combined.update(logit, batch.baseline, labels)
        targets = labels.to(logit.dtype)
        loss = F.binary_cross_entropy_with_logits(logit, targets)
        if self.training and self.hparams["adversarial"]:
            [gradient] = torch.autograd.grad(loss, features, retain_graph=True)
            length = torch.linalg.vector_norm(gradient, dim=(0, 2), keepdim=True)
            changed = features + self.hparams["adversarial"] * gradient / length.clamp(min=1e-12)
            loss = loss + F.binary_cross_entropy_with_logits(self.of_features(changed, batch.lengths), targets)
        # probabilities, not logits: torchmetrics takes all values within [0, 1] for probabilities already
        return loss, len(logit), logit.sigmoid(), labels

    def on_validation_epoch_start(self) -> None:
        if self.hparams["combine"]:
            self.combined.reset()

    on_test_epoch_start = on_validation_epoch_start

    def log_metrics(self, split: Literal["val", "test"]) -> dict[str, float]:
        found = super().log_metrics(split)
        if self.hparams["combine"]:
            accuracy = self.combined.compute()
            if split == "val":
                self.chosen.fill_(accuracy.argmax())
            found[f"{split}/combined_accuracy"] = float(accuracy[self.chosen])
            self.log(f"{split}/combined_accuracy", accuracy[self.chosen], sync_dist=True)
        return found


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file, or of standard input for "-", where they are read as they come."""
    if str(path) != "-":
        yield from (line.rstrip("\n") for line in io.StringIO(read_text(path, f"--file {path}"), newline=None))
        return
    # bytes, because a text would be decoded as the terminal's locale has it, where it may be anything
    for line, raw in enumerate(iter(lambda: sys.stdin.buffer.readline(LONGEST + 1), b""), 1):
        if len(raw) > LONGEST:
            raise UserError(f"--file -: line {line} is longer than {LONGEST:,} bytes; write a review a line")
        yield decode(raw, f"--file -: line {line}").characters.rstrip("\r\n")


TICKS = "▁▂▃▄▅▆▇█"


def _label(scores: list[float]) -> str:
    return "positive" if scores[-1] > 0.5 else "negative"


def _show(words: list[str], scores: list[float]) -> None:
    """The verdict, and the words with a bar after each: how probable it was there that the review is positive."""
    console = Console(highlight=False)
    console.print(f"[bold]{_label(scores)}[/bold], P(positive) = {scores[-1]:.3f}, along the {len(words)} words read:")
    marks = (f"{word}{TICKS[min(int(8 * score), 7)]}" for word, score in zip(words, scores))
    console.print(" ".join(marks), markup=False)


SHOWN = 60
"""Words of a review that fit on the picture's page."""


class RunningScore(Picture):
    """What a classifier of reviews says after each word: two positive and two negative ones, read from the start."""

    name = "running_score"

    @torch.no_grad()
    def measure(self, seen: Seen) -> dict[str, float]:
        reviews, self.words, self.labels, scores = seen.data.val, [], [], []
        for label in (1, 0):
            rows = (reviews.labels == label).nonzero()[:, 0]
            for row in rows[(reviews.lengths[rows] - SHOWN * 2 // 3).abs().argsort(stable=True)[:2]]:
                codes = reviews[row][-SHOWN:].long().to(seen.module.device)  # [T]
                scores.append(seen.module.judge(codes, running=True))
                self.words.append([seen.data.vocabulary[code] for code in codes.tolist()])
                self.labels.append("positive" if label else "negative")
        self.history[seen.epoch] = scores
        return {f"review_{number}": score[-1] for number, score in enumerate(scores, 1)}

    def draw(self, png: Path) -> Figure | None:
        figure, rows = panels(len(self.words), 1, 11, 2.4, bottom=0.9)
        for index, ((axes,), words) in enumerate(zip(rows, self.words)):
            for epoch, look in fading(self.history):
                axes.plot(self.history[epoch][index], **look)
            axes.axhline(0.5, color="0.6", linestyle=":")
            axes.set(
                ylim=(0, 1), xlim=(-0.5, len(words) - 0.5), title=f"a {self.labels[index]} review, prefix by prefix"
            )
            axes.set_ylabel("P(positive)")
            shown = ["·" if word == "<unknown>" else word for word in words]
            axes.set_xticks(range(len(words)), shown, rotation=90, fontsize=7, parse_math=False)
            axes.legend(frameon=False, ncols=2, loc="lower left")
        return figure
