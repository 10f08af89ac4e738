"""What a page can do with a model: read an input that a person gives, and answer.

A task's module says by its method `view` which one is its own; `rnnzoo.play.views` has those for text, series and
examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from rnnzoo.errors import UserError
from rnnzoo.play.session import Hold, Recorded
from rnnzoo.states import State

Request = Mapping[str, Any]
"""What a page sends: plain values that anybody may have written."""

LONGEST = 2000
"""Characters of a text, and rows of a series."""


@dataclass
class Session:
    """A model's run over an input.

    Attributes:
        given: the input, as the view understood it.
        holds: what was held at a value.
        labels: of the time steps.
        found: what the view made of the model's output.
        cells: what they did.
    """

    given: dict[str, Any]
    holds: tuple[Hold, ...]
    labels: list[str]
    found: Any
    cells: list[Recorded]


class View:
    """Base of the views. `kind` is the name of the page's part that belongs to it."""

    kind: ClassVar[str] = ""

    def about(self) -> dict[str, Any]:
        """What the page has to know at its beginning; `given` is an input to begin with."""
        return {}

    def read(self, request: Request) -> dict[str, Any]:
        """The input in a request, checked; two equal ones have the same session. Raises `UserError`."""
        raise NotImplementedError

    def run(self, module: nn.Module, given: dict[str, Any], before: Session | None = None) -> tuple[list[str], Any]:
        """Run a model over an input, recorded: labels of the time steps, and what came out.

        `before` is a session of this one's beginning; the run then goes on from its end, and says of new steps alone.
        """
        raise NotImplementedError

    def shared(self, before: dict[str, Any], given: dict[str, Any]) -> int:
        """How many steps at the beginning of an input were done for another one; less than all of its own."""
        return 0

    def cut(self, given: dict[str, Any], found: Any, steps: int, state: State) -> tuple[dict[str, Any], Any]:
        """The first steps of an input, and what `run` would have found in them; `state` is the layer's after them."""
        raise NotImplementedError

    def joined(self, before: Any, found: Any) -> Any:
        """What `run` found in both parts of an input."""
        raise NotImplementedError

    def reply(self, session: Session, request: Request, have: int) -> dict[str, Any]:
        """What the page shows beside the states; of the steps from `have` on, which it has not seen."""
        return {}

    def more(self, module: nn.Module, given: dict[str, Any], request: Request) -> dict[str, Any]:
        """What takes longer, asked for by `request["what"]`; not recorded."""
        raise UserError(f"there is no more to say of {request.get('what')!r}")


def text_in(request: Request, key: str, longest: int = LONGEST, default: str = "") -> str:
    value = request.get(key, default)
    if not isinstance(value, str):
        raise UserError(f"{key}: must be a text")
    if len(value) > longest:
        raise UserError(f"{key}: {len(value):,} characters are more than {longest:,}")
    return value


def number_in(request: Request, key: str, low: float, high: float, default: float | None = None) -> float:
    value = request.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise UserError(f"{key}: must be a number from {low:g} to {high:g}")
    return value


def whole_in(request: Request, key: str, low: int, high: int, default: int | None = None) -> int:
    value = number_in(request, key, low, high, default)
    if value != int(value):
        raise UserError(f"{key}: must be a whole number")
    return int(value)


def rows_in(request: Request, key: str, columns: int, fewest: int = 1, most: int = LONGEST) -> list[list[float]]:
    """Rows of numbers."""
    value = request.get(key)
    if not isinstance(value, list) or not all(isinstance(row, list) and len(row) == columns for row in value):
        raise UserError(f"{key}: must be rows of {columns} number{'s' * (columns > 1)}")
    if not fewest <= len(value) <= most:
        raise UserError(f"{key}: must be {fewest:,} to {most:,} rows, not {len(value):,}")
    numbers = [number for row in value for number in row]
    plain = all(isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
    if not plain or any(abs(n) > 1e30 for n in numbers):
        raise UserError(f"{key}: must be finite numbers")
    return [[float(number) for number in row] for row in value]


def holds_in(request: Request, cells: int) -> tuple[Hold, ...]:
    """What is to be held; at most 64 things."""
    value = request.get("holds", [])
    if not isinstance(value, list) or len(value) > 64 or not all(isinstance(hold, dict) for hold in value):
        raise UserError("holds: must be a list of at most 64")
    return tuple(_hold(hold, cells) for hold in value)


def _hold(hold: Request, cells: int) -> Hold:
    def place(key: str) -> int | None:
        return None if hold.get(key) is None else whole_in(hold, key, 0, 10**9)

    return Hold(
        whole_in(hold, "cell", 0, cells - 1), text_in(hold, "name", 100), number_in(hold, "value", -1e6, 1e6),
        place("unit"), place("start") or 0, place("stop"),
    )  # fmt: skip
