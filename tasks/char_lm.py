"""Character language models: predict the next character of a continuous text.

The text is cut into parallel streams, read window by window; the recurrent state is carried from each window to the
next and detached there (truncated back-propagation through time), and starts at zero in every epoch.

Shapes: T time steps, B streams, A characters of the alphabet.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from rnnzoo import UserError
from rnnzoo.lightning.arguments import Fraction, Portion
from rnnzoo.lightning.carried_state import CarriedState, with_states
from rnnzoo.lightning.data import Batches, SequenceData, parts_of, share
from rnnzoo.lightning.module import SequenceModule
from rnnzoo.lightning.pictures.picture import Picture
from rnnzoo.lightning.pictures.unit_page import UnitPage, tracked
from rnnzoo.lightning.verbs import verb
from rnnzoo.plain import printable
from rnnzoo.play.views import Text
from rnnzoo.recurrent import State

from .corpora import characters_of, codes_of
from .dynamic_evaluation import DynamicEvaluation
from .one_hot import OneHot


class Characters(SequenceData):
    """A text as streams of character numbers.

    Args:
        corpus: the name of a text: hello, pydocs, stdlib or tinyshakespeare.
        text: a text file to read instead, in UTF-8 or any UTF that it tells.
        window: characters a window, T.
        streams: parallel streams, B; a text too short for them is cut into fewer, which is said.
        val_fraction: the share of the text held out for validation, before the test's at the text's end.
        test_fraction: the share of the text at its end held out for the test; 0 for none.
    """

    def __init__(
        self,
        corpus: str = "pydocs",
        text: str | None = None,
        window: PositiveInt = 64,
        streams: PositiveInt = 32,
        val_fraction: Portion = 0.1,
        test_fraction: Fraction = 0.1,
    ) -> None:
        super().__init__()
        self.corpus, self.text, self.window, self.streams = corpus, text, window, streams
        self.fractions = val_fraction, test_fraction

    def prepare_data(self) -> None:
        if self.text is None:
            characters_of(self.corpus)

    def read(self) -> None:
        self.alphabet, codes = codes_of(self.text, self.corpus)
        source = f"task.text={self.text}" if self.text else f"task.corpus={self.corpus}"
        if not len(codes):
            raise UserError(f"{source}: the text is empty")
        parts = codes.split(parts_of(len(codes), *self.fractions))
        if len(parts[0]) <= self.window:
            raise UserError(
                f"{source}: {len(parts[0]):,} characters to train on are fewer than a window of {self.window} and the "
                f"character after it; lower task.window or give a longer text"
            )
        if len(parts[1]) < 2:
            raise UserError(f"{source}: {len(parts[1])} characters to validate on are too few; raise task.val_fraction")
        self.has_test = self.fractions[1] > 0
        if self.has_test and len(parts[2]) < 2:
            raise UserError(
                f"{source}: {len(parts[2])} characters to test on are too few; raise task.test_fraction, or set it to "
                f"0 for no test"
            )
        self.train, self.val, self.test = (_streams(part, self.streams, self.window) for part in parts)
        if len(self.train) < self.streams:
            print(printable(f"{source}: {len(codes):,} characters make {len(self.train)} streams, not {self.streams}"))

    def facts(self) -> dict[str, Any]:
        return {"alphabet": self.alphabet}

    def train_dataloader(self) -> Any:
        starts = range(0, self.train.shape[1] - self.window, self.window)
        return Batches(lambda epoch: starts, lambda start: self._window(self.train, start), self.position)

    def _evaluated(self, part: Tensor) -> Any:
        starts = range(0, part.shape[1] - 1, self.window)
        return Batches(lambda epoch: starts, lambda start: self._window(part, start))

    def _window(self, streams: Tensor, start: int) -> Tensor:
        """Characters [B, T + 1] from `start` on, fewer at a stream's end; the last is only a target."""
        return share(streams[:, start : start + self.window + 1].long())


def _streams(codes: Tensor, streams: int, window: int) -> Tensor:
    """Cut codes [N] into at most `streams` rows of equal length, each longer than a window if that can be had."""
    rows = max(1, min(streams, len(codes) // (window + 1)))
    return codes[: len(codes) // rows * rows].reshape(rows, -1)


class LanguageModel(SequenceModule):
    """What predicts characters, with a loss in nats a character."""

    def log_metrics(self, split: Literal["val", "test"]) -> dict[str, float]:
        values = super().log_metrics(split)
        loss = values[f"{split}/loss"]
        further = {f"{split}/perplexity": math.exp(min(loss, 700)), f"{split}/bits_per_character": loss / math.log(2)}
        self.log_dict(further, sync_dist=True)
        return values | further


FORWARD_ONLY = "a language model must not see the characters it predicts"


class CharLM(CarriedState, LanguageModel):
    """Characters through an embedding (or one-hot), a recurrent layer and a linear head to the next one's logits.

    Args:
        alphabet: all characters, in the order of their numbers; the data tell.
        embedding: features of a character; 0 for one-hot input.
        dropout: probability of dropping an output of the recurrent layer, the same ones throughout a window.
        tied: let the head's weights be the embedding's (Inan et al. 2017, arXiv:1611.01462; Press & Wolf 2017,
            arXiv:1608.05859), which start as a head's do; both must have as many features.
        activation_penalty: what the mean square of the outputs, after dropout, costs in training.
        change_penalty: what the mean square of their change from one step to the next, before dropout, costs. Both are
            of Merity et al. 2017 (arXiv:1708.01009), there alpha and beta; `train/loss` is without them.
        dynamic_rate: learning rate of a copy that goes on learning while it is evaluated, whose loss is logged as
            `dynamic_loss`, see `DynamicEvaluation`; 0 for none.
        restart: the chance, at each window, that a stream's state starts from zero again. Without it the model knows
            how to go on but not how to begin: its samples, which begin from zero, come out as noise.
        sample_prime: text that a sample begins with; characters outside the alphabet are an error.
        sample_length: characters a sample adds, after each epoch; 0 for none.
        temperature: the logits of a sample are divided by it: below 1 safer, above 1 wilder; 0 for the likeliest.
        base: see `SequenceModule`.
    """

    told = ("alphabet",)
    penalty: Tensor | float = 0.0
    adapted: DynamicEvaluation | None = None
    column: Tensor
    """Positions in the line where the last window of `variables` ended, [B]."""

    def __init__(
        self,
        alphabet: str | None = None,
        embedding: NonNegativeInt = 64,
        dropout: Fraction = 0.25,
        tied: bool = False,
        activation_penalty: NonNegativeFloat = 0.0,
        change_penalty: NonNegativeFloat = 0.0,
        dynamic_rate: NonNegativeFloat = 0.0,
        restart: Fraction = 0.02,
        sample_prime: str = "",
        sample_length: NonNegativeInt = 300,
        temperature: NonNegativeFloat = 0.8,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.start()

    def build(self) -> None:
        alphabet, embedding, prime = (self.hparams[key] for key in ("alphabet", "embedding", "sample_prime"))
        unknown = sorted(set(prime) - set(alphabet))
        if unknown:
            raise UserError(f"task.sample_prime: {''.join(unknown)!r} not in the text; choose another beginning")
        size = len(alphabet)
        self.embed = nn.Embedding(size, embedding) if embedding else OneHot(size)
        self.layer = self.recurrent(embedding or size, FORWARD_ONLY)
        self.head = nn.Linear(self.layer.output_size, size)
        if self.hparams["tied"]:
            if embedding != self.layer.output_size:
                raise UserError(
                    f"task.tied=true: task.embedding={embedding} must equal the {self.layer.output_size} features that "
                    f"the layer gives; change it or model.projection"
                )
            self.embed.weight = self.head.weight
        self.add_metrics()

    def view(self, data: Any) -> Text:
        alphabet = self.hparams["alphabet"]

        def ahead(module: CharLM, text: str, start: int, choice: str, state: Any) -> tuple[Tensor, State]:
            codes = [[alphabet.index(character)] for character in text[start:]]
            return module(torch.tensor(codes), state)

        prime = self.hparams["sample_prime"] or "".join(c for c in "The " if c in alphabet) or alphabet[0]
        return Text(alphabet, alphabet, ahead, draw, prime, tracked=lambda module: tracked(module, data()))

    def pictures(self) -> list[Picture]:
        return [UnitPage()]

    def example_inputs(self, steps: int, batch: int) -> dict[str, Tensor]:
        return {"codes": torch.randint(len(self.hparams["alphabet"]), (steps, batch))}

    def forward(self, codes: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Characters [T, B] and the state so far to logits of the next ones [T, B, A] and the new state."""
        output, state = self.layer(self.embed(codes), state)
        if self.training:
            raw = output
            # One mask a window (Gal & Ghahramani 2016): on a CPU, one a step would cost half as much as the layer.
            output = output * F.dropout(output.new_ones(output.shape[1:]), self.hparams["dropout"])
            self.penalty = self._penalty(raw, output)
        return self.single(self.head(output)), state

    def _penalty(self, raw: Tensor, dropped: Tensor) -> Tensor | float:
        """What outputs [T, B, H] cost in training, before and after dropout."""
        large, changing = self.hparams["activation_penalty"], self.hparams["change_penalty"]
        penalty: Tensor | float = large * dropped.square().mean() if large else 0.0
        return penalty + changing * raw.diff(dim=0).square().mean() if changing and len(raw) > 1 else penalty

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.carried is not None:
            keep = torch.rand(len(batch), device=batch.device) >= self.hparams["restart"]  # [B]
            self.carry(
                with_states(self.carried, lambda state: state * keep.to(state).view(-1, *[1] * (state.dim() - 2)))
            )
        loss = super().training_step(batch, batch_idx) + self.penalty
        self.penalty = 0.0  # without its graph, so that the module can be copied
        return loss

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._begin_adapting()

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self._begin_adapting()

    def _begin_adapting(self) -> None:
        rate = self.hparams["dynamic_rate"]
        self.adapted = DynamicEvaluation(self, rate) if rate else None

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        if self.adapted is not None:
            self.adapted.read(batch)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        if self.adapted is not None:
            self.adapted.read(batch)

    def log_metrics(self, split: Literal["val", "test"]) -> dict[str, float]:
        values = super().log_metrics(split)
        if self.adapted is not None:
            values[f"{split}/dynamic_loss"] = self.adapted.loss
            self.log(f"{split}/dynamic_loss", self.adapted.loss, sync_dist=True)
            self.adapted = None
        return values

    def variables(self, batch: Tensor) -> dict[str, Tensor]:
        """The position in the line, which goes on from window to window as the state does, and what comes next."""
        codes, alphabet = batch.T, self.hparams["alphabet"]
        kinds = {"next is a letter": str.isalpha, "next is a blank": " ".__eq__, "next ends the line": "\n".__eq__}
        found = {
            name: torch.tensor([float(holds(character)) for character in alphabet])[codes[1:]]
            for name, holds in kinds.items()
        }
        column = torch.zeros(len(batch)) if self.carried is None else self.column
        columns = []
        for code in codes[:-1]:
            column = torch.where(code == alphabet.find("\n"), 0.0, column + 1)
            columns.append(column)
        self.column = column
        return {"position in the line": torch.stack(columns), **found}

    def score(self, batch: Tensor) -> tuple[Tensor, int]:
        """Mean cross-entropy in nats over windows [B, T + 1], which go on from those before."""
        codes = batch.T
        logits, state = self(codes[:-1], self.carried)
        self.carry(state)
        return F.cross_entropy(logits.flatten(0, 1), codes[1:].flatten()), codes[1:].numel()

    @verb
    def sample(
        self,
        prime: str = "",
        length: int = 500,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        greedy: bool = False,
        seed: int | None = None,
    ) -> None:
        """Text that goes on from a beginning, as it comes.

        Args:
            prime: what it goes on from.
            length: characters.
            temperature: below 1 safer, above 1 wilder, 0 always the likeliest.
            top_k: only from so many of the likeliest characters.
            top_p: only from the likeliest, of this probability together.
            greedy: always the likeliest character.
            seed: the same text each time.

        Raises `UserError` for characters that the model does not know, and for numbers out of range.
        """
        unknown = sorted(set(prime) - set(self.hparams["alphabet"]))
        if unknown:
            raise UserError(f"--prime: the model has never seen {', '.join(map(repr, unknown))}")
        for name, value, good in (
            ("temperature", temperature, temperature >= 0),
            ("length", length, length >= 0),
            ("top-k", top_k, top_k is None or top_k > 0),
            ("top-p", top_p, 0 < top_p <= 1),
        ):
            if not good:
                further = {"top-p": "be positive, and at most 1", "top-k": "be positive"}
                raise UserError(f"--{name} {value}: must {further.get(name, 'not be negative')}")
        generator = torch.Generator()
        generator.seed() if seed is None else generator.manual_seed(seed)
        sys.stdout.write(prime)
        for character in islice(self.generate(prime, generator, temperature, 1 if greedy else top_k, top_p), length):
            sys.stdout.write(character)
            sys.stdout.flush()
        sys.stdout.write("\n")

    def on_validation_epoch_end(self) -> None:
        self.log_metrics("val")
        if self.hparams["sample_length"] and self.trainer.is_global_zero and not self.trainer.sanity_checking:
            text = self.hparams["sample_prime"] + "".join(self.continuation())
            self.write_sample(f"epoch_{self.current_epoch + 1:03d}", text)
            print(printable(f"sample after epoch {self.current_epoch + 1}: {text[:200]!r}"), flush=True)

    def continuation(self) -> Iterator[str]:
        """Characters drawn one by one after the prime text, the same for the same weights and seed."""
        generator = torch.Generator().manual_seed(self.hparams["seed"])
        prime, length = (self.hparams[f"sample_{key}"] for key in ("prime", "length"))
        training = self.training
        self.eval()
        yield from islice(self.generate(prime, generator, self.hparams["temperature"]), length)
        self.train(training)

    @torch.inference_mode()
    def generate(
        self,
        prime: str,
        generator: torch.Generator,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
    ) -> Iterator[str]:
        """Characters drawn one by one after the prime text, without end; the module must be in evaluation mode.

        Args:
            prime: characters of the alphabet; empty for its first character.
            generator: of random numbers, on the CPU.
            temperature: see the class.
            top_k: draw from the k likeliest characters only; 1 takes the likeliest.
            top_p: draw from the fewest of the likeliest characters that together have at least this probability.
        """
        alphabet = self.hparams["alphabet"]
        codes = torch.tensor([[alphabet.index(character)] for character in prime or alphabet[0]], device=self.device)
        logits, state = self(codes)
        characters = torch.arange(len(alphabet), device=self.device)
        logits, stepper = logits[-1], self.layer.stepper(state, self.embed(characters))  # [1, A]
        while True:
            code = draw(logits.cpu(), generator, temperature, top_k, top_p)  # [1]
            yield alphabet[int(code)]
            logits = self.single(self.head(stepper(code.to(self.device))))


def draw(
    logits: Tensor,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
) -> Tensor:
    """One of A codes for each row of logits [B, A]: [B]. For the other arguments see `CharLM.generate`."""
    if top_k == 1 or temperature == 0:
        return logits.argmax(-1)
    # From the largest down and in double precision, so that no temperature makes inf - inf of what softmax subtracts.
    below = logits.double() - logits.amax(-1, keepdim=True)
    logits, codes = (below / temperature).to(logits.dtype), None
    if top_k is not None or top_p < 1:
        logits, codes = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1]))  # the likeliest first
    probabilities = torch.softmax(logits, -1)
    if top_p < 1:
        before = probabilities.cumsum(-1) - probabilities  # the probability of all that are likelier
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    # The first of exponential clocks with these rates to ring, which torch.multinomial takes four times as long for.
    drawn = (probabilities / torch.empty_like(probabilities).exponential_(generator=generator)).argmax(-1)
    return drawn if codes is None else codes.gather(-1, drawn[:, None])[:, 0]
