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
from inspect import signature
from typing import TypeVar

Method = TypeVar("Method", bound=Callable[..., None])


def verb(method: Method) -> Method:
    """Make a method of a module a command. It prints its answer, and raises `UserError` for bad input."""
    method.is_verb = True  # type: ignore[attr-defined]
    return method


def verbs_of(kind: type) -> dict[str, list[str]]:
    """The names of a module's verbs, and of each the arguments that have to be given."""
    methods = {name: getattr(kind, name, None) for name in dir(kind)}
    return {
        name: [key for key, given in signature(method).parameters.items() if given.default is given.empty][1:]
        for name, method in methods.items()
        if method is not None and getattr(method, "is_verb", False)
    }
