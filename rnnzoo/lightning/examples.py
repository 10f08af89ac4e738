"""Single sequences of a task's data, to look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rnnzoo.errors import UserError
from rnnzoo.lightning.data import SequenceData
from rnnzoo.play.views import Examples

Lines = list[tuple[str, "str | list[str]"]]
"""What is told of an example: a name, and a text for each time step or one for all."""


def example(data: Any, number: int) -> tuple[Any, int]:
    """The batch of one sequence of the validation part, and how many there are; `UserError` for a number too large."""
    if isinstance(data, SequenceData) and hasattr(data, "val"):
        count = data.count(data.val)
        return data.batch(data.val, torch.tensor([min(number, count - 1)])), count
    count, found = 0, None
    for batch in data.val_dataloader():
        rows = len(batch if isinstance(batch, Tensor) else batch[0])
        if count <= number < count + rows:
            row = slice(number - count, number - count + 1)
            found = batch[row] if isinstance(batch, Tensor) else _like(batch, [part[row] for part in batch])
        count += rows
    if found is None:
        raise UserError(f"there are {count:,} examples, counted from 0")
    return found, count


def _like(batch: Any, parts: list[Any]) -> Any:
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)


def examples(data: Callable[[], Any], tell: Callable[[Any, Any], tuple[list[str], Lines]] | None = None) -> Examples:
    """A view of the validation part's sequences. Without `tell` only the loss is told."""
    return Examples(lambda number: example(data(), number), tell or _loss)


def _loss(module: Any, batch: Any) -> tuple[list[str], Lines]:
    loss, *_ = module.score(batch)
    return [], [("loss", f"{float(loss):.4g}")]


def one_number(module: Any, batch: Any) -> tuple[list[str], Lines]:
    """Of one example [1, T, n], [1] what is read, and what the module answers in the end, beside the truth."""
    answer, truth = float(module(batch.x.transpose(0, 1))), float(batch.y)
    return [" ".join(f"{value:.3g}" for value in row) for row in batch.x[0].tolist()], [
        ("answer", f"{answer:.4g}"), ("truth", f"{truth:.4g}"),
    ]  # fmt: skip
