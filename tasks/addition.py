"""Addition by characters: an encoder reads "123+45", and a decoder that starts from its final state writes "168".

The setting of Keras' example addition_rnn, after Sutskever et al. 2014, arXiv:1409.3215: every question and every
answer is filled up with spaces to the same width.

Shapes: M sums, B batch, Q = 2·digits + 1 characters of a question, W = digits + 1 of an answer, A of the alphabet.
"""

from __future__ import annotations

import math
import random
import re
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassExactMatch

from rnnzoo import UserError
from tasks.base import Batches, EvaluationMetrics, SequenceData, SequenceModule, in_order, share, shuffled, writing
from tasks.char_lm import OneHot

ALPHABET = "0123456789+= "
EXAMPLES = 10
"""So many right and so many wrong answers are shown."""

Digits = Annotated[int, Field(ge=1, le=9)]


def draw_sums(digits: int, count: int, seed: int) -> list[tuple[int, int]]:
    """Pairs of numbers below 10^digits, drawn uniformly; of a+b and b+a, which are one question, only one occurs.

    Raises `UserError` when there are not so many questions.
    """
    numbers = 10**digits
    questions = numbers * (numbers + 1) // 2
    if count > questions:
        raise UserError(
            f"task.samples: {count:,} different questions with those held out, but task.digits={digits} makes only "
            f"{questions:,}; lower task.samples or raise task.digits"
        )
    generator = random.Random(seed)
    sums = []
    for question in generator.sample(range(questions), count):
        # the pairs a ≤ b in order of b, then of a: b·(b + 1)/2 of them come before the first with this b
        b = (math.isqrt(8 * question + 1) - 1) // 2
        a = question - b * (b + 1) // 2
        sums.append((a, b) if generator.random() < 0.5 else (b, a))
    return sums


def encode(lines: list[str]) -> Tensor:
    """Lines of one length as numbers of characters [lines, length]."""
    return torch.tensor([[ALPHABET.index(character) for character in line] for line in lines])


def decode(codes: Tensor) -> list[str]:
    """The answers that codes [W, B] spell, without the spaces that fill them up."""
    return ["".join(ALPHABET[code] for code in row).rstrip() for row in codes.T.tolist()]


class Sums(SequenceData):
    """Questions and answers as rows of characters, "123+45 =168 ", [M, Q + 1 + W].

    Args:
        digits: of the largest numbers.
        samples: questions to train on; a tenth as many again are made for validation, and for the test. All differ.
        batch_size: sums in a batch.
        seed: of questions and order.
    """

    def __init__(self, digits: Digits, samples: PositiveInt, batch_size: PositiveInt, seed: int) -> None:
        super().__init__()
        self.batch_size, self.seed, self.width = batch_size, seed, digits + 1
        held_out = max(samples // 10, 2)
        sums = draw_sums(digits, samples + 2 * held_out, seed)
        rows = encode([f"{f'{a}+{b}':<{2 * digits + 1}}={a + b:<{self.width}}" for a, b in sums])
        self.train, self.val, self.test = rows.split([samples, held_out, held_out])

    def train_dataloader(self) -> Any:
        return Batches(
            lambda epoch: shuffled(len(self.train), self.batch_size, self.seed, epoch),
            lambda rows: self.train[share(rows)],
            self.position,
        )

    def val_dataloader(self) -> Any:
        return self._in_order(self.val)

    def test_dataloader(self) -> Any:
        return self._in_order(self.test)

    def baseline(self) -> dict[str, float]:
        """Always the training part's most frequent answer."""
        answers, counts = self.train[:, -self.width :].unique(dim=0, return_counts=True)
        hits = (self.test[:, -self.width :] == answers[counts.argmax()]).all(1)
        return {"baseline/most_frequent_exact": float(hits.double().mean())}

    def _in_order(self, rows: Tensor) -> Any:
        return Batches(lambda epoch: in_order(len(rows), 1024), lambda numbers: rows[share(numbers)])


class Addition(SequenceModule):
    """An encoder and a decoder of the same kind, and a linear head to the logits of the answer's next character.

    The decoder is taught by the true characters before (teacher forcing).

    Args:
        digits: of the largest numbers.
        reverse: the encoder reads the question from its last character to its first.
    """

    monitor = "val/exact"

    def __init__(
        self, model: dict[str, Any], optimizer: dict[str, Any], engine: str, seed: int, digits: Digits, reverse: bool
    ) -> None:
        super().__init__(model, optimizer, engine, seed)
        size = len(ALPHABET)
        self.embed = OneHot(size)
        self.encoder = self.recurrent(size)
        self.decoder = self.recurrent(size)
        if self.encoder.bidirectional:
            raise UserError("model.bidirectional=true: the decoder must not see the characters it predicts")
        if model.get("learn_initial_state"):
            raise UserError("model.learn_initial_state=true: the decoder starts from the encoder's state; leave it out")
        self.head = nn.Linear(self.decoder.output_size, size)
        self.add_metrics(
            exact=MulticlassExactMatch(size, validate_args=False),
            character_accuracy=MulticlassAccuracy(size, average="micro", validate_args=False),
        )

    def forward(self, rows: Tensor) -> Tensor:
        """Questions with their answers [B, Q + 1 + W] to logits of the answers' characters [W, B, A]."""
        codes = rows.T
        start = -self.hparams["digits"] - 2  # the equals sign, which the answer's first character follows
        output, _ = self.decoder(self.embed(codes[start:-1]), self._read(codes[:start]))
        return self.single(self.head(output))

    def _read(self, questions: Tensor) -> Any:
        """The encoder's state after questions [Q, B]."""
        x = self.embed(questions)
        _, state = self.encoder(x.flip(0) if self.hparams["reverse"] else x)
        return state

    @torch.no_grad()
    def answer(self, questions: list[str]) -> list[str]:
        """What the model answers to questions like "123+45", each character the likeliest after those before.

        Raises `UserError` for a question that is not two numbers of at most `digits` digits.
        """
        digits = self.hparams["digits"]
        for question in questions:
            if not re.fullmatch(rf"(0|[1-9]\d{{0,{digits - 1}}})\+(0|[1-9]\d{{0,{digits - 1}}})", question, re.ASCII):
                raise UserError(f"question {question!r}: must be two numbers of at most {digits} digits, as in 12+3")
        codes = encode([question.ljust(2 * digits + 1) for question in questions]).to(self.device)
        return decode(self._write(codes.T))

    def _write(self, questions: Tensor) -> Tensor:
        """The likeliest answers' characters [W, B] to questions [Q, B], each fed back in."""
        training = self.training
        self.eval()
        state = self._read(questions)
        code = torch.full_like(questions[0], ALPHABET.index("="))
        answer = []
        for _ in range(self.hparams["digits"] + 1):
            output, state = self.decoder.step(self.embed(code), state)
            code = self.head(output).argmax(-1)
            answer.append(code)
        self.train(training)
        return torch.stack(answer)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        _, loss, target = self._scored(batch)
        return self.training_loss(loss, target.numel())

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self._evaluate(self.val_metrics, batch)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self._evaluate(self.test_metrics, batch)

    def _evaluate(self, metrics: EvaluationMetrics, batch: Tensor) -> None:
        # Given the true characters before, the likeliest are all right just if those are that `answer` writes: up to
        # its first mistake it has written, and been fed, the true ones.
        logits, loss, target = self._scored(batch)
        metrics.update(loss, target.numel(), logits.argmax(-1).T, target.T)

    def _scored(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [W, B, A], the mean cross-entropy in nats, and the true characters [W, B] of rows [B, Q + 1 + W]."""
        logits = self(batch)
        target = batch.T[-len(logits) :]
        return logits, F.cross_entropy(logits.flatten(0, 1), target.flatten()), target

    def on_validation_epoch_end(self) -> None:
        self.log_metrics("val")
        self._show_examples(self.trainer.datamodule.val, f"epoch_{self.current_epoch + 1:03d}")  # type: ignore[attr-defined]

    def on_test_epoch_end(self) -> None:
        self.log_metrics("test")
        self._show_examples(self.trainer.datamodule.test, "test")  # type: ignore[attr-defined]

    @torch.no_grad()
    def _show_examples(self, rows: Tensor, name: str) -> None:
        """Write the first right and the first wrong answers to rows [M, Q + 1 + W] into samples/, in one process."""
        if not self.trainer.is_global_zero:
            return
        width = self.hparams["digits"] + 1
        answers = decode(self._write(rows[:, : -width - 1].T.to(self.device)))
        questions, truths = decode(rows[:, : -width - 1].T), decode(rows[:, -width:].T)
        found: dict[bool, list[str]] = {True: [], False: []}
        for question, answer, truth in zip(questions, answers, truths):
            found[answer == truth].append(f"{question} = {answer}" + (f"    it is {truth}" if answer != truth else ""))
        lines = [f"{len(found[True]):,} of {len(rows):,} right, among them", *found[True][:EXAMPLES]]
        lines += ["", f"{len(found[False]):,} wrong, among them", *found[False][:EXAMPLES]]
        with writing(Path(self.trainer.default_root_dir) / "samples" / f"{name}.txt") as partial:
            partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
