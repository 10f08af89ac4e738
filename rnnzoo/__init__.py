"""rnnzoo: a cell is its equations; everything else is derived from them."""

from rnnzoo.cell import Bias, Cell, Diagonal, InputWeight, RecurrentWeight, Scalar, Weight, gate
from rnnzoo.errors import UserError
from rnnzoo.recurrent import Recurrent
from rnnzoo.registry import get, list_cells, load, register

__version__ = "0.1.0"
__all__ = [
    "Bias", "Cell", "Diagonal", "InputWeight", "Recurrent", "RecurrentWeight", "Scalar", "UserError", "Weight",
    "gate", "get", "list_cells", "load", "register",
]  # fmt: skip
