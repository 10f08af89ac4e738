"""What a trained module can be asked from the command line: a method marked as a verb is a command `rnnzoo METHOD RUN`.

    class Waves(SequenceModule):
        @verb
        def continue_wave(self, horizon: int = 100, plot: Path = Path("wave.png")) -> None:
            '''The wave goes on from its own predictions.

            Args:
                horizon: time steps.
                plot: the picture's file.
            '''

Arguments without a default are given by place, the others as options, `--horizon 50`; their help is the docstring's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Method = TypeVar("Method", bound=Callable[..., None])


def verb(method: Method) -> Method:
    """Make a method of a module a command. It prints its answer, and raises `UserError` for bad input."""
    method.is_verb = True  # type: ignore[attr-defined]
    return method


def verbs_of(kind: type) -> list[str]:
    """The names of a module's verbs."""
    return [name for name in dir(kind) if getattr(getattr(kind, name, None), "is_verb", False)]
