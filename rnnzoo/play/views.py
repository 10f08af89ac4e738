"""The views that several tasks have in common: text that goes on, a series that goes on, and examples.

Shapes: T time steps, B = 1 sequence, A symbols of an alphabet, n columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from rnnzoo.errors import UserError
from rnnzoo.plain import VISIBLE
from rnnzoo.play.view import LONGEST, Request, Session, View, number_in, rows_in, text_in, whole_in
from rnnzoo.states import State

LIKELY = 5
"""Next symbols that are shown."""


class Text(View):
    """A text that a language model goes on with.

    Args:
        alphabet: the characters that may be read.
        symbols: what the logits are of; characters, and a sign for an end if there is one.
        ahead: from module, text, place to begin at, choice and state to logits [T, 1, A] and the new state.
        draw: from logits [1, A], generator, temperature, top_k and top_p to a symbol's number.
        prime: a text to begin with.
        choices: among which the text is of one, such as its kind.
        begins: the label of a step before the first character, if there is such a step.
        tracked: from module to what its units keep track of: a property's name, and units with their correlations.
    """

    kind = "text"

    def __init__(
        self,
        alphabet: str,
        symbols: Sequence[str],
        ahead: Callable[[Any, str, int, str, Any], tuple[Tensor, Any]],
        draw: Callable[..., Tensor],
        prime: str,
        choices: Sequence[str] = (),
        begins: str = "",
        tracked: Callable[[Any], list[tuple[str, list[tuple[int, float]]]]] | None = None,
    ) -> None:
        self.alphabet, self.symbols, self.ahead, self.draw = alphabet, list(symbols), ahead, draw
        self.prime, self.choices, self.begins, self.tracked = prime, list(choices), begins, tracked

    def about(self) -> dict[str, Any]:
        given = {"text": self.prime, "choice": self.choices[0] if self.choices else ""}
        offset = {"choices": self.choices, "tracks": self.tracked is not None, "offset": len(self.begins)}
        return {"given": given, "alphabet": self.alphabet, "symbols": self.symbols, "longest": LONGEST, **offset}

    def read(self, request: Request) -> dict[str, Any]:
        text, choice = text_in(request, "text"), text_in(request, "choice")
        unknown = sorted(set(text) - set(self.alphabet))
        if unknown:
            raise UserError(f"the model has never seen {', '.join(map(repr, unknown[:5]))}")
        if choice not in (self.choices or ("",)):
            raise UserError(f"choice: must be one of {', '.join(self.choices[:24])}")
        if not text and not self.begins:
            raise UserError("write something for the model to go on from")
        return {"text": text, "choice": choice}

    def shared(self, before: dict[str, Any], given: dict[str, Any]) -> int:
        if before["choice"] != given["choice"] or not given["text"]:
            return 0
        pairs = zip(before["text"], given["text"][:-1])
        return bool(self.begins) + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def cut(self, given: dict[str, Any], found: Any, steps: int, state: State) -> tuple[dict[str, Any], Any]:
        return {**given, "text": given["text"][: steps - bool(self.begins)]}, (found[0][:steps], state)

    def run(self, module: nn.Module, given: dict[str, Any], before: Session | None = None) -> tuple[list[str], Any]:
        text, known = given["text"], 0 if before is None else len(before.given["text"])
        state = None if before is None else before.found[1]
        logits, state = self.ahead(module, text, known, given["choice"], state)
        labels = [VISIBLE.get(character, character) for character in text[known:]]
        return [*([self.begins] if self.begins and before is None else []), *labels], (logits[:, 0], state)

    def joined(self, before: Any, found: Any) -> Any:
        return torch.cat([before[0], found[0]]), found[1]

    def reply(self, session: Session, request: Request, have: int) -> dict[str, Any]:
        logits: Tensor = session.found[0]
        best = logits[have:].softmax(-1).topk(min(LIKELY, logits.shape[-1]))
        likely = [
            [[int(code), round(float(share), 5)] for code, share in zip(*row)]
            for row in zip(best.indices.tolist(), best.values.tolist())
        ]
        return {"likely": likely, "drawn": self._drawn(logits[-1:], session, request)}

    def _drawn(self, logits: Tensor, session: Session, request: Request) -> int | None:
        """The number of the next symbol, drawn as the request wants it; seed and place in the text decide."""
        how = request.get("draw")
        if not isinstance(how, dict):
            return None
        top_k = whole_in(how, "top_k", 0, len(self.symbols), 0)
        seed, place = whole_in(how, "seed", 0, 2**31, 1), len(session.given["text"])
        generator = torch.Generator().manual_seed(hash((seed, place)) % 2**63)
        temperature, top_p = number_in(how, "temperature", 0, 100, 1.0), number_in(how, "top_p", 0.001, 1, 1.0)
        return int(self.draw(logits, generator, temperature, top_k or None, top_p))

    def more(self, module: nn.Module, given: dict[str, Any], request: Request) -> dict[str, Any]:
        if request.get("what") != "units" or self.tracked is None:
            return super().more(module, given, request)
        return {"units": self.tracked(module)}


class Series(View):
    """Rows of numbers that a person draws, or drops as a file, and how a model goes on with them.

    Args:
        columns: their names.
        rows: an example to begin with, [T, n]; and
        truth: what followed in it, [H, k], if that is known.
        onwards: from module and rows [T, n] to what comes next, [H, k], or [H, k, Q] with further quantiles behind it,
            called where all of it is recorded; None for a model that only reads.
        targets: names of the k columns that are forecast.
        fewest: rows that it needs.
        most: rows of which the last are read.
    """

    kind = "series"

    def __init__(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[float]],
        onwards: Callable[[Any, Tensor], Tensor] | None,
        truth: Sequence[Sequence[float]] = (),
        targets: Sequence[str] = (),
        fewest: int = 1,
        most: int = 500,
    ) -> None:
        self.columns, self.rows, self.truth, self.onwards = list(columns), rows, truth, onwards
        self.targets, self.fewest, self.most = list(targets), fewest, most

    def about(self) -> dict[str, Any]:
        sizes = {"fewest": self.fewest, "most": self.most, "goes_on": self.onwards is not None}
        names = {"columns": self.columns, "targets": self.targets}
        return {"given": {"rows": self.rows}, "truth": self.truth, **names, **sizes}

    def read(self, request: Request) -> dict[str, Any]:
        return {"rows": rows_in(request, "rows", len(self.columns), self.fewest)[-self.most :]}

    def run(self, module: nn.Module, given: dict[str, Any], before: Session | None = None) -> tuple[list[str], Any]:
        rows = torch.tensor(given["rows"], dtype=torch.float64)
        if self.onwards is None:
            module(rows[:, None].float())
            return [f"{row[0]:.3g}" for row in given["rows"]], [[]]
        found = self.onwards(module, rows)
        following, *quantiles = (found[..., None] if found.dim() == 2 else found).movedim(-1, 0).tolist()
        return [f"{row[0]:.3g}" for row in (*given["rows"], *following)], [following, *quantiles]

    def reply(self, session: Session, request: Request, have: int) -> dict[str, Any]:
        following, *quantiles = session.found
        return {"following": following, "quantiles": quantiles}


class Examples(View):
    """Sequences of a task's own data, by their number.

    Args:
        batch: from a number to a batch of that one sequence, and how many there are.
        tell: from module and batch to the labels of the time steps, and lines to show: a name and a text for each
            step, or one text.
    """

    kind = "examples"

    def __init__(
        self,
        batch: Callable[[int], tuple[Any, int]],
        tell: Callable[[Any, Any], tuple[list[str], list[tuple[str, str | list[str]]]]],
    ) -> None:
        self.batch, self.tell = batch, tell

    def about(self) -> dict[str, Any]:
        return {"given": {"number": 0}}

    def read(self, request: Request) -> dict[str, Any]:
        return {"number": whole_in(request, "number", 0, 10**9)}

    def run(self, module: nn.Module, given: dict[str, Any], before: Session | None = None) -> tuple[list[str], Any]:
        number = given["number"]
        batch, count = self.batch(number)
        if number >= count:
            raise UserError(f"there are {count:,} examples, counted from 0")
        labels, lines = self.tell(module, batch)
        return labels, (lines, count)

    def reply(self, session: Session, request: Request, have: int) -> dict[str, Any]:
        lines, count = session.found
        return {"lines": lines, "count": count}


class Asked(View):
    """A question in words, answered in words.

    Args:
        question: to begin with.
        answer: from module and question to labels of the time steps and lines to show, as `Examples` has them.
        longest: characters of a question.
    """

    kind = "asked"

    def __init__(
        self,
        question: str,
        answer: Callable[[Any, str], tuple[list[str], list[tuple[str, str | list[str]]]]],
        longest: int = 100,
    ) -> None:
        self.question, self.answer, self.longest = question, answer, longest

    def about(self) -> dict[str, Any]:
        return {"given": {"text": self.question}, "longest": self.longest}

    def read(self, request: Request) -> dict[str, Any]:
        return {"text": text_in(request, "text", self.longest)}

    def run(self, module: nn.Module, given: dict[str, Any], before: Session | None = None) -> tuple[list[str], Any]:
        return self.answer(module, given["text"])

    def reply(self, session: Session, request: Request, have: int) -> dict[str, Any]:
        return {"lines": session.found}
