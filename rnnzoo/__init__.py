"""rnnzoo: a cell is its equations; everything else is derived from them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnnzoo.cell import Bias, Cell, Diagonal, InputWeight, RawInput, RecurrentWeight, Scalar, State, Weight, gate
    from rnnzoo.errors import UserError
    from rnnzoo.recurrent import Recurrent
    from rnnzoo.registry import get, list_cells, load, register

__version__ = "0.1.0"
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
