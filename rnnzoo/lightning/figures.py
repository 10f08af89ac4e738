"""Figures as files. A picture is no result: one that fails is a warning, and the numbers stand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnzoo.files import writing
from rnnzoo.plain import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def save(path: Path, make: Callable[[], Figure | None], **options: Any) -> bool:
    """Make a figure and write it as PNG, with keywords of `savefig`; whether there is one now.

    Whatever goes wrong is a warning that names the file.
    """
    try:
        figure = make()
        if figure is None:
            return False
        with writing(path) as partial:
            figure.savefig(partial, format="png", **{"dpi": 120, **options})
    except Exception as error:
        reason = " ".join(str(error).split())
        warnings.warn(printable(f"{path} could not be drawn: {type(error).__name__}: {reason}"), stacklevel=2)
        return False
    return True


def drawn(text: object) -> str:
    """A text as a figure shows it: nothing between dollar signs is a formula, and nothing is a control character."""
    return printable(text).replace("$", r"\$")


def count_along(axes: Axes) -> None:
    """Let the marks of the x axis be whole numbers: there are no half epochs."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
