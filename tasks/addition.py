"""Addition by characters: an encoder reads "123+45", and a decoder that starts from its final state writes "168".

The setting of Keras' example addition_rnn, after Sutskever et al. 2014, arXiv:1409.3215: every question and every
answer is filled up with spaces to the same width. Other than there, a question to learn from comes in either order.

Shapes: M sums, B batch, Q = 2·digits + 1 characters of a question, W = digits + 1 of an answer, A of the alphabet.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassExactMatch

from rnnzoo import UserError
from rnnzoo.lightning.data import SequenceData, shuffled
from rnnzoo.lightning.examples import Lines
from rnnzoo.lightning.module import SequenceModule
from rnnzoo.play.views import Asked

from .one_hot import OneHot

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

    at_once = 1024

    def __init__(
        self, digits: Digits = 3, samples: PositiveInt = 50000, batch_size: PositiveInt = 128, seed: int = 1
    ) -> None:
        super().__init__()
        self.digits, self.samples, self.width = digits, samples, digits + 1
        self.batch_size, self.seed = batch_size, seed

    def read(self) -> None:
        held_out = max(self.samples // 10, 2)
        sums = draw_sums(self.digits, self.samples + 2 * held_out, self.seed)
        self.train, self.val, self.test = self._rows(sums).split([self.samples, held_out, held_out])
        self.swapped = self._rows([(b, a) for a, b in sums[: self.samples]])

    def _rows(self, sums: list[tuple[int, int]]) -> Tensor:
        return encode([f"{f'{a}+{b}':<{2 * self.digits + 1}}={a + b:<{self.width}}" for a, b in sums])

    def training_plan(self, epoch: int) -> Sequence[Tensor]:
        """Each question once, half of them, drawn anew, with their numbers swapped: M is added to their rows then."""
        count = len(self.train)
        [order] = shuffled(count, count, self.seed + 1, epoch)
        return [rows + count * (order[rows] % 2) for rows in super().training_plan(epoch)]

    def batch(self, part: Tensor, rows: Tensor) -> Tensor:
        if part is not self.train:
            return part[rows]
        at = rows % len(part)
        return torch.where((rows < len(part))[:, None], part[at], self.swapped[at])

    def facts(self) -> dict[str, Any]:
        return {"digits": self.digits}

    def baseline(self) -> dict[str, float]:
        """Always the training part's most frequent answer."""
        answers, counts = self.train[:, -self.width :].unique(dim=0, return_counts=True)
        hits = (self.test[:, -self.width :] == answers[counts.argmax()]).all(1)
        return {"baseline/most_frequent_exact": float(hits.double().mean())}


class Addition(SequenceModule):
    """An encoder and a decoder of the same kind, and a linear head to the logits of the answer's next character.

    The decoder is taught by the true characters before (teacher forcing).

    Args:
        digits: of the largest numbers; the data tell.
        reverse: the encoder reads the question from its last character to its first.
        base: see `SequenceModule`.
    """

    monitor = "val/exact"
    told = ("digits",)

    def __init__(self, digits: Digits | None = None, reverse: bool = True, **base: Any) -> None:
        super().__init__(**base)
        self.start()

    def build(self) -> None:
        size = len(ALPHABET)
        self.embed = OneHot(size)
        why = "the decoder must not see the characters it predicts"
        self.encoder, self.decoder = self.recurrent(size, why), self.recurrent(size, why)
        if any(name.rpartition(".")[2].startswith("initial_") for name, _ in self.decoder.named_parameters()):
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

    def view(self, data: Any) -> Asked:
        digits = self.hparams["digits"]

        def answer(module: Addition, question: str) -> tuple[list[str], Lines]:
            [found] = module.answer([question])
            read, written = question.ljust(2 * digits + 1), found.ljust(digits + 1)
            labels = [*(read[::-1] if self.hparams["reverse"] else read), *f"={written}"[: digits + 1]]
            return labels, [("answer", found), ("truth", str(sum(map(int, question.split("+")))))]

        return Asked(f"{10 ** (digits - 1) * 4}+{10 ** (digits - 1) * 3}", answer, 2 * digits + 1)

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

    def variables(self, batch: Tensor) -> dict[str, Tensor]:
        """The sum, and for the decoder at each step the carry into the digit that it is to write; 0 past the last."""
        width = self.hparams["digits"] + 1
        pairs = [[int(number) for number in text.split("+")] for text in decode(batch[:, : -width - 1].T)]
        a, b = torch.tensor(pairs).T  # [B]
        length = (batch[:, -width:] != ALPHABET.index(" ")).sum(1)
        unit = 10 ** (length - 1 - torch.arange(width)[:, None]).clamp(min=0)  # of each digit [W, B]
        return {"sum": (a + b).float(), "carry": (a % unit + b % unit >= unit).float()}

    def score(self, batch: Tensor) -> tuple[Tensor, int, Tensor, Tensor]:
        """Of rows [B, Q + 1 + W] the mean cross-entropy in nats, and the likeliest and the true characters [B, W]."""
        # Given the true characters before, the likeliest are all right just if those are that `answer` writes: up to
        # its first mistake it has written, and been fed, the true ones.
        logits = self(batch)  # [W, B, A]
        target = batch.T[-len(logits) :]
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        return loss, target.numel(), logits.argmax(-1).T, target.T

    def on_validation_epoch_end(self) -> None:
        self.log_metrics("val")
        self._show_examples("val", f"epoch_{self.current_epoch + 1:03d}")

    def on_test_epoch_end(self) -> None:
        self.log_metrics("test")
        self._show_examples("test", "test")

    @torch.no_grad()
    def _show_examples(self, part: str, name: str) -> None:
        """Write the first right and the first wrong answers to a part's questions into samples/, in one process."""
        rows = getattr(getattr(self.trainer, "datamodule", None), part, None)  # [M, Q + 1 + W]
        if rows is None or not self.trainer.is_global_zero:
            return
        width = self.hparams["digits"] + 1
        answers = decode(self._write(rows[:, : -width - 1].T.to(self.device)))
        questions, truths = decode(rows[:, : -width - 1].T), decode(rows[:, -width:].T)
        found: dict[bool, list[str]] = {True: [], False: []}
        for question, answer, truth in zip(questions, answers, truths):
            found[answer == truth].append(f"{question} = {answer}" + (f"    it is {truth}" if answer != truth else ""))
        lines = [f"{len(found[True]):,} of {len(rows):,} right, among them", *found[True][:EXAMPLES]]
        lines += ["", f"{len(found[False]):,} wrong, among them", *found[False][:EXAMPLES]]
        self.write_sample(name, "\n".join(lines))
