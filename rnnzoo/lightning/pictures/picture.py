"""What a picture of a network in training is, and how its figures are laid out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from matplotlib.figure import Figure

from rnnzoo.lightning.pictures.activity import Observed


class Seen(NamedTuple):
    """What pictures are made from.

    Args:
        module: in evaluation mode.
        data: its data module.
        epoch: number of the epoch.
        cells: what each cell of the layers did, by name.
        batch: the first of validation, which they did it on.
    """

    module: Any
    data: Any
    epoch: int
    cells: dict[str, Observed]
    batch: Any = None


class Picture:
    """A kind of picture, over the epochs.

    `measure` keeps an epoch's numbers in `history`, which checkpoints save, and returns those that loggers get; `draw`
    makes the figure of all so far, or None if there is nothing to show, and whatever else belongs beside its PNG.
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        self.history: dict[int, Any] = {}

    def measure(self, seen: Seen) -> dict[str, float]:
        raise NotImplementedError

    def draw(self, png: Path) -> Figure | None:
        raise NotImplementedError


def panels(rows: int, columns: int, width: float, height: float, bottom: float = 0.5) -> tuple[Figure, Any]:
    """A figure of axes [rows, columns], sizes in inches; laid out by hand, which takes half of matplotlib's time."""
    figure = Figure(figsize=(width * columns, height * rows), dpi=100)
    axes = figure.subplots(rows, columns, squeeze=False)
    inner = height - bottom - 0.35
    figure.subplots_adjust(
        left=0.7 / width / columns, right=1 - 0.15 / width / columns, wspace=0.7 / (width - 0.85),
        bottom=bottom / height / rows, top=1 - 0.35 / height / rows, hspace=(bottom + 0.35) / inner,
    )  # fmt: skip
    return figure, axes


def fading(history: dict[int, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The epochs measured, and how to draw each: grey and fainter the older, the last one red."""
    *older, last = sorted(history)
    greys = [str(round(0.9 - 0.5 * (index + 1) / len(older), 2)) for index in range(len(older))]
    looks = [(epoch, {"color": grey, "linewidth": 1.2}) for epoch, grey in zip(older, greys)]
    looks.append((last, {"color": "C3", "linewidth": 1.8}))
    for epoch, look in (looks[0], looks[-1]):
        look["label"] = f"epoch {epoch + 1}"
    return looks
