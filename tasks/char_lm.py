"""Character language models: predict the next character of a continuous text.

The text is cut into parallel streams, read window by window; the recurrent state is carried from each window to the
next and detached there (truncated back-propagation through time), and starts at zero in every epoch.

Shapes: T time steps, B streams, A characters of the alphabet.
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from rnnzoo import UserError
from rnnzoo.errors import nearest
from rnnzoo.recurrent import State
from tasks.base import Batches, EvaluationMetrics, SequenceData, SequenceModule, share, writing
from tasks.download import download

Fraction = Annotated[float, Field(ge=0, lt=1)]


def _hello() -> str:
    return "hello" * 1000


def _pydocs() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(text for _, text in sorted(topics.items()))


def _stdlib() -> str:
    folder = Path(sysconfig.get_path("stdlib"))
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))


def _tinyshakespeare() -> str:
    path = download(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "tinyshakespeare.txt",
        "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        "task.text=FILE",
    )
    return path.read_text(encoding="utf-8")


CORPORA = {"hello": _hello, "pydocs": _pydocs, "stdlib": _stdlib, "tinyshakespeare": _tinyshakespeare}


def read_text(text: str | None, corpus: str) -> str:
    """The characters of the file `text`, or of the named corpus if it is None; `UserError` if it is no UTF-8 text."""
    if text is None:
        if corpus not in CORPORA:
            raise UserError(f"task.corpus={corpus}: unknown; {nearest(corpus, CORPORA)}; or task.text=FILE")
        return CORPORA[corpus]()
    path = Path(text).expanduser()
    if not path.is_file():
        raise UserError(f"task.text={text}: no such file")
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"task.text={text}: not UTF-8 in line {line} (byte {error.start}); convert it first") from None


class Characters(SequenceData):
    """A text as streams of character numbers.

    Args:
        corpus: the name of a text: hello, pydocs, stdlib or tinyshakespeare.
        text: a UTF-8 file to read instead.
        window: characters a window, T.
        streams: parallel streams, B; a text too short for them is cut into fewer, which is said.
        val_fraction: the share of the text held out for validation, before the test's at the text's end.
        test_fraction: the share of the text at its end held out for the test; 0 for none.
    """

    def __init__(
        self,
        corpus: str,
        text: str | None,
        window: PositiveInt,
        streams: PositiveInt,
        val_fraction: Annotated[float, Field(gt=0, lt=1)],
        test_fraction: Fraction,
    ) -> None:
        super().__init__()
        characters = read_text(text, corpus)
        source = f"task.text={text}" if text else f"task.corpus={corpus}"
        if not characters:
            raise UserError(f"{source}: the text is empty")
        self.alphabet = "".join(sorted(set(characters)))
        number = {character: index for index, character in enumerate(self.alphabet)}
        codes = torch.tensor([number[character] for character in characters])
        if val_fraction + test_fraction >= 1:
            raise UserError(
                f"task.val_fraction={val_fraction} and task.test_fraction={test_fraction} leave no training part"
            )
        held_out = [int(len(codes) * fraction) for fraction in (val_fraction, test_fraction)]
        parts = codes.split([len(codes) - sum(held_out), *held_out])
        if len(parts[0]) <= window:
            raise UserError(
                f"{source}: {len(parts[0]):,} characters to train on are fewer than a window of {window} and the "
                f"character after it; lower task.window or give a longer text"
            )
        if len(parts[1]) < 2:
            raise UserError(f"{source}: {len(parts[1])} characters to validate on are too few; raise task.val_fraction")
        self.window = window
        self.has_test = len(parts[2]) > 1
        self.train, self.val, self.test = (_streams(part, streams, window) for part in parts)
        if len(self.train) < streams:
            print(f"{source}: {len(codes):,} characters make {len(self.train)} streams, not {streams}")

    def arguments(self) -> dict[str, Any]:
        return {"alphabet": self.alphabet}

    def train_dataloader(self) -> Any:
        starts = range(0, self.train.shape[1] - self.window, self.window)
        return Batches(lambda epoch: starts, lambda start: self._window(self.train, start), self.position)

    def val_dataloader(self) -> Any:
        return self._in_order(self.val)

    def test_dataloader(self) -> Any:
        return self._in_order(self.test)

    def _in_order(self, streams: Tensor) -> Any:
        starts = range(0, streams.shape[1] - 1, self.window)
        return Batches(lambda epoch: starts, lambda start: self._window(streams, start))

    def _window(self, streams: Tensor, start: int) -> Tensor:
        """Characters [B, T + 1] from `start` on, fewer at a stream's end; the last is only a target."""
        return share(streams[:, start : start + self.window + 1])


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


class CharLM(LanguageModel):
    """Characters through an embedding (or one-hot), a recurrent layer and a linear head to the next one's logits.

    Args:
        alphabet: all characters, in the order of their numbers.
        embedding: features of a character; 0 for one-hot input.
        dropout: probability of dropping an output of the recurrent layer, the same ones throughout a window.
        restart: the chance, at each window, that a stream's state starts from zero again. Without it the model knows
            how to go on but not how to begin: its samples, which begin from zero, come out as noise.
        sample_prime: text that a sample begins with; characters outside the alphabet are an error.
        sample_length: characters a sample adds, after each epoch; 0 for none.
        temperature: the logits of a sample are divided by it: below 1 safer, above 1 wilder.
    """

    picture = "tasks.unit_page.UnitPage"

    def __init__(
        self,
        model: dict[str, Any],
        optimizer: dict[str, Any],
        engine: str,
        seed: int,
        alphabet: str,
        embedding: NonNegativeInt,
        dropout: Fraction,
        restart: Fraction,
        sample_prime: str,
        sample_length: NonNegativeInt,
        temperature: PositiveFloat,
    ) -> None:
        super().__init__(model, optimizer, engine, seed)
        unknown = sorted(set(sample_prime) - set(alphabet))
        if unknown:
            raise UserError(f"task.sample_prime: {''.join(unknown)!r} not in the text; choose another beginning")
        size = len(alphabet)
        self.embed = nn.Embedding(size, embedding) if embedding else OneHot(size)
        self.layer = self.recurrent(embedding or size)
        if self.layer.bidirectional:
            raise UserError("model.bidirectional=true: a language model must not see the characters it predicts")
        self.head = nn.Linear(self.layer.output_size, size)
        self.carried: State | None = None
        self.add_metrics()

    def forward(self, codes: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Characters [T, B] and the state so far to logits of the next ones [T, B, A] and the new state."""
        output, state = self.layer(self.embed(codes), state)
        if self.training:
            # One mask a window (Gal & Ghahramani 2016): on a CPU, one a step would cost half as much as the layer.
            output = output * F.dropout(output.new_ones(output.shape[1:]), self.hparams["dropout"])
        return self.single(self.head(output)), state

    def on_train_epoch_start(self) -> None:
        self.carried = None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.carried is not None:
            keep = torch.rand(len(batch)) >= self.hparams["restart"]  # [B]
            self.carried = _with_states(
                self.carried, lambda state: state * keep.to(state).view(-1, *[1] * (state.dim() - 2))
            )
        loss, self.carried = self._loss(batch, self.carried)
        return self.training_loss(loss, batch[:, 1:].numel())

    def on_validation_epoch_start(self) -> None:
        self.evaluated: State | None = None

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self._evaluate(self.val_metrics, batch)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self._evaluate(self.test_metrics, batch)

    def _evaluate(self, metrics: EvaluationMetrics, batch: Tensor) -> None:
        loss, self.evaluated = self._loss(batch, self.evaluated)
        metrics.update(loss, batch[:, 1:].numel())

    def _loss(self, batch: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Mean cross-entropy in nats over windows [B, T + 1], and the state at their end, detached."""
        codes = batch.T
        logits, state = self(codes[:-1], state)
        loss = F.cross_entropy(logits.flatten(0, 1), codes[1:].flatten())
        return loss, _with_states(state, Tensor.detach)

    def on_validation_epoch_end(self) -> None:
        self.log_metrics("val")
        if self.hparams["sample_length"] and self.trainer.is_global_zero and not self.trainer.sanity_checking:
            text = self.hparams["sample_prime"] + "".join(self.sample())
            path = Path(self.trainer.default_root_dir) / "samples" / f"epoch_{self.current_epoch + 1:03d}.txt"
            with writing(path) as partial:
                partial.write_text(text + "\n", encoding="utf-8")
            print(f"sample after epoch {self.current_epoch + 1}: {text[:200]!r}", flush=True)

    def sample(self) -> Iterator[str]:
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
            code = draw(logits.cpu() / temperature, generator, top_k, top_p)  # [1]
            yield alphabet[int(code)]
            logits = self.single(self.head(stepper(code.to(self.device))))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)

        # Each process carries its own streams, not always as many: all are saved, in order of the processes.
        carried = [self.carried]
        if self.trainer.world_size > 1:
            carried = carried * self.trainer.world_size
            torch.distributed.all_gather_object(carried, self.carried)
        checkpoint["carried"] = carried

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.carried = checkpoint["carried"][self.global_rank]


def draw(logits: Tensor, generator: torch.Generator, top_k: int | None = None, top_p: float = 1.0) -> Tensor:
    """One of A codes for each row of logits [B, A]: [B]. For `top_k` and `top_p` see `CharLM.generate`."""
    if top_k == 1:
        return logits.argmax(-1)
    codes = None
    if top_k is not None or top_p < 1:
        logits, codes = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1]))  # the likeliest first
    probabilities = torch.softmax(logits, -1)
    if top_p < 1:
        before = probabilities.cumsum(-1) - probabilities  # the probability of all that are likelier
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    # The first of exponential clocks with these rates to ring, which torch.multinomial takes four times as long for.
    drawn = (probabilities / torch.empty_like(probabilities).exponential_(generator=generator)).argmax(-1)
    return drawn if codes is None else codes.gather(-1, drawn[:, None])[:, 0]


def _with_states(state: State, change: Callable[[Tensor], Tensor]) -> State:
    """The state with each of its tensors changed."""
    return change(state) if isinstance(state, Tensor) else tuple(change(tensor) for tensor in state)


class OneHot(nn.Module):
    """Codes [...] to vectors [..., size] of zeros with a single one."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.eye(size), persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.rows)  # type: ignore[arg-type]
