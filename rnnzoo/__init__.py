"""rnnzoo: a cell is its equations; everything else is derived from them."""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnnzoo.cell import Bias, Cell, Diagonal, InputWeight, RawInput, RecurrentWeight, Scalar, State, Weight, gate
    from rnnzoo.errors import UserError
    from rnnzoo.recurrent import Recurrent
    from rnnzoo.registry import get, list_cells, load, register

__version__ = "0.2.0"

if not (Path(__file__).parent / "tasks").is_dir():
    # a clone, in which tasks/ and conf/ lie beside this package and not, as in a wheel, inside it
    __path__.append(str(Path(__file__).parents[1]))

__all__ = [
    "Bias", "Cell", "Diagonal", "InputWeight", "RawInput", "Recurrent", "RecurrentWeight", "Scalar", "State",
    "UserError", "Weight", "gate", "get", "list_cells", "load", "register",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: most need torch, which takes seconds."""
    if name in __all__:
        for module in ("errors", "registry", "cell", "recurrent"):
            found = getattr(importlib.import_module(f"rnnzoo.{module}"), name, None)
            if found is not None:
                globals()[name] = found
                return found
    raise AttributeError(f"module 'rnnzoo' has no attribute {name!r}")


def _card(kind: type) -> str | None:
    """What a notebook shows for a class: the card of a cell, nothing for another class."""
    if "rnnzoo.cell" not in sys.modules:
        return None
    from rnnzoo.explain.card import in_notebook

    return in_notebook(kind)


def _shown(name: str) -> Any:
    """A function of `rnnzoo.explain.card`, imported when something is to be shown."""
    return lambda shown: getattr(importlib.import_module("rnnzoo.explain.card"), name)(shown)


_shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
if _shell is not None:  # a method of the class would not do: IPython asks only instances for theirs
    _pages = _shell.display_formatter.formatters["text/html"]
    _pages.for_type(type, _card)
    _pages.for_type_by_name("rnnzoo.cell", "Cell", _shown("instance_in_notebook"))
    _pages.for_type_by_name("rnnzoo.recurrent", "Recurrent", _shown("layer_in_notebook"))
