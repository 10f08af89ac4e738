"""Names of a kind: from a class and a start symbol, character by character, to an end symbol (one to many).

The class goes in at every step, an embedding beside the character's. As the initial state it would have to fit states
of every form (matrices, clocks, halves of complex numbers), and a cell could forget it.

Shapes: M names, B batch, T time steps, A characters of the alphabet, C classes.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from rnnzoo import UserError
from rnnzoo.errors import nearest
from rnnzoo.files import expanded
from rnnzoo.lightning.arguments import Fraction, Portion
from rnnzoo.lightning.data import SequenceData, parts_of
from rnnzoo.lightning.verbs import verb
from rnnzoo.play.views import Text
from rnnzoo.recurrent import State

from .char_lm import FORWARD_ONLY, LanguageModel, draw
from .drawn import IGNORED
from .text_files import is_data, read_text

BOUNDARY = 0
"""The start and the end symbol, which no characters stand for: the alphabet's are numbered from 1."""

MODULES = (
    "asyncio", "ctypes", "email", "http", "importlib", "logging", "multiprocessing", "pickle", "tarfile", "typing",
    "unittest", "urllib", "xml",
)  # fmt: skip
"""Parts of Python's library that every version supported has, in source."""


class Batch(NamedTuple):
    """labels [B]; codes [B, T + 1]: the boundary, a name, and boundaries to the end."""

    labels: Tensor
    codes: Tensor


def read_modules() -> dict[str, list[str]]:
    """The identifiers that each of `MODULES` defines, those that begin with an underscore left out, sorted."""
    folder = Path(sysconfig.get_path("stdlib"))
    names = {}
    for module in MODULES:
        paths = [path for path in [folder / f"{module}.py", *folder.glob(f"{module}/**/*.py")] if path.is_file()]
        if not paths:
            raise UserError(f"Python's library in {folder} has no source of {module}; give task.data=FOLDER")
        trees = [ast.parse(path.read_bytes()) for path in paths if not {"test", "tests"} & set(path.parts)]
        found = {name for tree in trees for node in ast.walk(tree) if (name := _defined(node))}
        names[module] = sorted(name for name in found if not name.startswith("_"))
    return names


def _defined(node: ast.AST) -> str | None:
    """The identifier that a node of a syntax tree defines, if it is one that does."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return node.name
    if isinstance(node, ast.arg):
        return node.arg
    if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
        return node.id if isinstance(node, ast.Name) else node.attr
    return None


LONGEST = 1000
"""Characters of a name: all are kept as wide as the longest, so that one line of a wrong file would fill the memory."""


def read_folder(data: str) -> dict[str, list[str]]:
    """The lines of each text file of a folder, by the file's name without .txt; sorted, each once, blank ones left out.

    Raises `UserError` naming the folder or the file that will not do.
    """
    folder = expanded(data)
    if not folder.is_dir():
        wrong = "is no folder; name the one that holds the files" if folder.exists() else "no such folder"
        raise UserError(f"task.data={data}: {wrong}")
    names = {}
    for path in sorted(path for path in folder.glob("*.txt") if is_data(path.name)):
        source = f"task.data={data}: {path.name}"
        names[path.stem] = sorted({line.strip() for line in read_text(path, source).splitlines()} - {""})
        if not names[path.stem]:
            raise UserError(f"{source} holds no name; write one a line, or remove the file")
        longest = max(map(len, names[path.stem]))
        if longest > LONGEST:
            raise UserError(f"{source} holds a name of {longest:,} characters, more than {LONGEST:,}; write one a line")
    if not names:
        raise UserError(f"task.data={data}: no .txt file there; give one for each class, a name a line")
    return names


class Names(SequenceData):
    """Names by class as rows of characters; a name is in one part only, whatever the number of its classes.

    Args:
        data: a folder with a text file for each class, a name a line; None for Python's own identifiers by module.
        batch_size: names in a batch.
        val_fraction: the share of the different names held out for validation.
        test_fraction: the share held out for the test; 0 for none.
        seed: of held-out names and order.
    """

    def __init__(
        self,
        data: str | None = None,
        batch_size: PositiveInt = 64,
        val_fraction: Portion = 0.1,
        test_fraction: Fraction = 0.1,
        seed: int = 1,
    ) -> None:
        super().__init__()
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.fractions = val_fraction, test_fraction

    def read(self) -> None:
        names = read_modules() if self.data is None else read_folder(self.data)
        self.labels = list(names)
        different = sorted({name for of_class in names.values() for name in of_class})
        self.alphabet = "".join(sorted(set("".join(different))))
        self.longest = max(map(len, different))

        counts = parts_of(len(different), *self.fractions)
        val_fraction, test_fraction = self.fractions
        self.has_test = test_fraction > 0
        if not all(counts[: 2 + self.has_test]):
            raise UserError(
                f"task.val_fraction={val_fraction} and task.test_fraction={test_fraction} of {len(different)} names "
                f"leave {counts[0]} to train on, {counts[1]} to validate on and {counts[2]} to test on; change them, "
                f"or have no test with task.test_fraction=0"
            )
        order = torch.randperm(len(different), generator=torch.Generator().manual_seed(self.seed))
        parts = order.split(counts)
        self.train, self.val, self.test = (self._encode(names, {different[row] for row in part}) for part in parts)
        for label, name in enumerate(self.labels):
            if label not in self.train.labels:
                raise UserError(f"task.data={self.data}: no name of {name} is left to train on; give it more")

    def _encode(self, names: dict[str, list[str]], chosen: set[str]) -> Batch:
        """The chosen names of all classes, the shortest first."""
        found = [(label, name) for label, of in enumerate(names.values()) for name in of if name in chosen]
        found.sort(key=lambda row: len(row[1]))
        number = {character: index for index, character in enumerate(self.alphabet, 1)}
        codes = torch.full((len(found), self.longest + 2), BOUNDARY)
        for row, (_, name) in enumerate(found):
            codes[row, 1 : 1 + len(name)] = torch.tensor([number[character] for character in name])
        return Batch(torch.tensor([label for label, _ in found]), codes)

    def facts(self) -> dict[str, Any]:
        return {"labels": self.labels, "alphabet": self.alphabet, "longest": self.longest}

    def batch(self, part: Batch, rows: Tensor) -> Batch:
        """Some rows, cut where the longest of their names ends."""
        codes = part.codes[rows]
        longest = int((codes != BOUNDARY).sum(1).max())
        return Batch(part.labels[rows], codes[:, : longest + 2])

    def baseline(self) -> dict[str, float]:
        """Nats a character by how often it occurs in the class, alone and after the one before, all counts plus 0.1."""
        if not self.has_test:
            return {}
        size = 1 + len(self.alphabet)
        counts = torch.zeros(len(self.labels), size, size, dtype=torch.float64)
        counts.index_put_(_bigrams(self.train), counts.new_ones(()), accumulate=True)  # [C, A + 1, A + 1]
        losses = {}
        for name, table in (("unigram", counts.sum(1, keepdim=True).expand_as(counts)), ("bigram", counts)):
            likelihood = (table + 0.1) / (table + 0.1).sum(-1, keepdim=True)
            losses[f"baseline/{name}_loss"] = float(-likelihood[_bigrams(self.test)].log().mean())
        return losses


def _scored(codes: Tensor) -> Tensor:
    """Which characters of names [B, T + 1] are to be predicted [B, T]: those up to the end symbol."""
    scored = codes[:, :-1] != BOUNDARY
    scored[:, 0] = True
    return scored


def _bigrams(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Of every character to be predicted: its name's class, the character before, and itself, [characters] each."""
    scored = _scored(batch.codes)
    return batch.labels[:, None].expand_as(scored)[scored], batch.codes[:, :-1][scored], batch.codes[:, 1:][scored]


class NameLM(LanguageModel):
    """Embeddings of class and character, a recurrent layer and a linear head to the next character's logits.

    Args:
        labels: the classes' names; the data tell.
        alphabet: all characters, numbered from 1; the data tell.
        longest: characters of the longest name, as many as one that is generated can have; the data tell.
        embedding: features of a character.
        label_embedding: features of a class.
        dropout: probability of dropping an output of the recurrent layer.
        samples: names of each class generated after each epoch; 0 for none.
        base: see `SequenceModule`.
    """

    told = ("labels", "alphabet", "longest")

    def __init__(
        self,
        labels: list[str] | None = None,
        alphabet: str | None = None,
        longest: PositiveInt | None = None,
        embedding: PositiveInt = 64,
        label_embedding: PositiveInt = 16,
        dropout: Fraction = 0.4,
        samples: NonNegativeInt = 5,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.start()

    def build(self) -> None:
        labels, alphabet = self.hparams["labels"], self.hparams["alphabet"]
        embedding, label_embedding = self.hparams["embedding"], self.hparams["label_embedding"]
        self.embed = nn.Embedding(1 + len(alphabet), embedding)
        self.label_embed = nn.Embedding(len(labels), label_embedding)
        self.layer = self.recurrent(embedding + label_embedding, FORWARD_ONLY)
        self.head = nn.Linear(self.layer.output_size, 1 + len(alphabet))
        self.add_metrics()

    def example_inputs(self, steps: int, batch: int) -> dict[str, Tensor]:
        return {
            "labels": torch.arange(batch) % len(self.hparams["labels"]),
            "codes": torch.randint(1 + len(self.hparams["alphabet"]), (steps, batch)),
        }

    def view(self, data: Any) -> Text:
        alphabet = self.hparams["alphabet"]

        def ahead(module: NameLM, text: str, start: int, label: str, state: Any) -> tuple[Tensor, State]:
            labels, codes = module._numbers(label, text)
            return module(labels, codes[1 + start if state is not None else 0 :], state)

        symbols = ["■", *alphabet]
        return Text(alphabet, symbols, ahead, draw, "", self.hparams["labels"], begins="□")

    def forward(self, labels: Tensor, codes: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Classes [B], characters [T, B] and the state so far to the next ones' logits [T, B, A + 1] and the state."""
        of_class = self.label_embed(labels).expand(codes.shape[0], -1, -1)
        output, state = self.layer(torch.cat([self.embed(codes), of_class], -1), state)
        return self.single(self.head(F.dropout(output, self.hparams["dropout"], self.training))), state

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy in nats over the characters of a batch, end symbols included, and their number."""
        scored = _scored(batch.codes)
        logits, _ = self(batch.labels, batch.codes.T[:-1])
        # what is not scored is marked and not left out: for its number a GPU would be waited for
        targets = batch.codes[:, 1:].masked_fill(~scored, IGNORED)
        loss = F.cross_entropy(logits.transpose(0, 1).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        return loss, scored.sum()

    def on_validation_epoch_end(self) -> None:
        self.log_metrics("val")
        if not (self.hparams["samples"] and self.trainer.is_global_zero):
            return
        generator = torch.Generator().manual_seed(self.hparams["seed"])
        drawn = {
            label: ["".join(self.generate(label, generator=generator)) for _ in range(self.hparams["samples"])]
            for label in self.hparams["labels"]
        }
        lines = (f"{label}: {', '.join(names)}" for label, names in drawn.items())
        self.write_sample(f"epoch_{self.current_epoch + 1:03d}", "\n".join(lines))

    @verb
    def sample(
        self, label: str = "", prime: str = "", count: int = 10, temperature: float = 1.0, seed: int | None = None
    ) -> None:
        """Names of a class, or of each of them.

        Args:
            label: the class.
            prime: what every name begins with.
            count: names of a class.
            temperature: below 1 safer, above 1 wilder, 0 always the likeliest.
            seed: the same names each time.

        Raises `UserError` for an unknown class, for unknown characters, and for numbers out of range.
        """
        if count < 1:
            raise UserError(f"--count {count}: must be positive")
        generator = torch.Generator()
        generator.seed() if seed is None else generator.manual_seed(seed)
        for kind in [label] if label else self.hparams["labels"]:
            for _ in range(count):
                name = prime + "".join(self.generate(kind, prime, temperature, generator))
                print(name if label else f"{kind}\t{name}", flush=True)

    @torch.no_grad()
    def generate(
        self, label: str, prime: str = "", temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Iterator[str]:
        """The characters of a name of a class after those of `prime`, drawn one by one up to the end symbol.

        Args:
            temperature: the logits are divided by it: below 1 safer, above 1 wilder; 0 for the likeliest.
            generator: what they are drawn with, on the CPU; torch's own if left out.

        Raises `UserError` for an unknown class, for characters outside the alphabet, and for a negative temperature.
        """
        if not temperature >= 0:
            raise UserError(f"temperature={temperature}: must not be negative")
        labels, codes = self._numbers(label, prime)
        training = self.training
        self.eval()
        try:
            state = None
            for _ in range(self.hparams["longest"] - len(prime)):
                logits, state = self(labels, codes, state)
                code = draw(logits[-1].cpu(), generator or torch.default_generator, temperature)  # [1]
                if code == BOUNDARY:
                    return
                yield self.hparams["alphabet"][int(code) - 1]
                codes = code[None].to(self.device)
        finally:
            self.train(training)

    @torch.no_grad()
    def log_likelihood(self, name: str, label: str) -> float:
        """The logarithm of the probability, in nats, that a name of the class is this one.

        Raises `UserError` for an unknown class and for characters outside the alphabet.
        """
        labels, codes = self._numbers(label, name)
        training = self.training
        self.eval()
        loss, count = self.score(Batch(labels, F.pad(codes.T, (0, 1), value=BOUNDARY)))
        self.train(training)
        return -float(loss) * int(count)

    def _numbers(self, label: str, text: str) -> tuple[Tensor, Tensor]:
        """A class [1], and the boundary with the characters after it [T, 1]."""
        labels, alphabet = self.hparams["labels"], self.hparams["alphabet"]
        if label not in labels:
            raise UserError(f"class {label!r}: unknown; {nearest(label, labels)}")
        outside = sorted(set(text) - set(alphabet))
        if outside:
            raise UserError(f"{text!r}: {''.join(outside)!r} not in the names that the model knows")
        codes = [[BOUNDARY], *([1 + alphabet.index(character)] for character in text)]
        return torch.tensor([labels.index(label)], device=self.device), torch.tensor(codes, device=self.device)
