"""What an equation is made of, in the notation of papers: vectors are columns, and a matrix stands before its vector.

Shapes: n features of a vector; everything is said for one sequence of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Symbol:
    """A name in an equation.

    Args:
        name: as in the code, with its subscript: `W_f`, `h`, `new_c`.
        time: "t", "t-1", or "" for what does not change over time.
        version: which of the values that a name takes within one step, from 1; 0 where it takes one only; in
            words where it stands for several.
        prime: it is computed, and something given has the same name.
        role: weight, fixed (a weight that is not learned), hyperparameter, size, input, state, local or output.
    """

    name: str
    time: str = ""
    version: int | str = 0
    prime: bool = False
    role: str = "local"


@dataclass(frozen=True)
class Expression:
    """A tree of operations.

    `op` is one of: symbol, number, ones (`detail` says which or how many); add (of any number), negate, scale (by a
    number), hadamard, matmul, divide, power, transpose, diag, call (of the function `detail`), stack, rows (`detail`: a
    pair of first and end, or one row), part (`detail`: the k-th matrix of several), where, compare (`detail`: the
    sign), root, absolute.
    """

    op: str
    args: tuple[Expression, ...] = ()
    detail: Any = None

    def symbols(self) -> Iterator[Symbol]:
        """All symbols in the tree, in reading order, with repetition."""
        if self.op == "symbol":
            yield self.detail
        for arg in self.args:
            yield from arg.symbols()


@dataclass(frozen=True)
class Equation:
    """`targets` = `value`; several targets are the parts that a value is cut into, of equal size."""

    targets: tuple[Symbol, ...]
    value: Expression


def sigmoid(a: Array) -> Array:
    return np.exp(-np.logaddexp(0, -a))


def layer_norm(a: Array) -> Array:
    return (a - a.mean()) / np.sqrt(a.var() + 1e-5)


def rms_norm(a: Array) -> Array:
    return a / np.sqrt((a * a).mean() + 1e-5)


def softmax(a: Array) -> Array:
    exponentials = np.exp(a - a.max())
    return exponentials / exponentials.sum()


def of_torch(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Array], Array]:
    return lambda a: function(torch.from_numpy(np.asarray(a))).numpy()


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "relu": lambda a: np.maximum(a, 0),
    "softplus": lambda a: np.logaddexp(0, a),
    "silu": lambda a: a * sigmoid(a),
    "gelu": of_torch(torch.nn.functional.gelu),
    "exp": np.exp,
    "log": np.log,
    "sin": np.sin,
    "cos": np.cos,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "atan": np.arctan,
    "erf": of_torch(torch.erf),
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "abs": np.abs,
    "min": np.minimum,
    "max": np.maximum,
    "clip": np.clip,
    "mod": np.mod,
    "roll": lambda a, by: np.roll(a, int(by), axis=0),
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "softmax": softmax,
    "matrix_exp": of_torch(torch.linalg.matrix_exp),
    "triu": lambda a, diagonal: np.triu(a, int(diagonal)),
    "tril": lambda a, diagonal: np.tril(a, int(diagonal)),
}
"""What the functions of equations mean."""

COMPARISONS: dict[str, Callable[..., Array]] = {
    "<": np.less, "≤": np.less_equal, ">": np.greater, "≥": np.greater_equal, "=": np.equal, "≠": np.not_equal,
}  # fmt: skip


def evaluate(expression: Expression, values: Mapping[Symbol, Array]) -> Array:
    """The number that an expression stands for; vectors are columns [n, 1], numbers have no dimension.

    Raises `KeyError` for a symbol without a value.
    """
    op, detail = expression.op, expression.detail
    if op == "symbol":
        return values[detail]
    if op == "number":
        return np.asarray(detail)
    if op == "ones":
        return np.ones((detail, 1))
    args = [evaluate(arg, values) for arg in expression.args]
    if op == "add":
        return np.asarray(sum(args[1:], args[0]))
    if op in ("hadamard", "scale"):
        product = args[0]
        for factor in args[1:]:
            product = product * factor
        return product
    if op == "call":
        return FUNCTIONS[detail](*args)
    if op == "compare":
        return COMPARISONS[detail](*args)
    if op == "rows":
        return _rows(args[0], detail)
    simple: dict[str, Callable[..., Array]] = {
        "negate": np.negative,
        "matmul": np.matmul,
        "divide": np.divide,
        "power": np.power,
        "transpose": np.transpose,
        "diag": lambda a: np.diag(a[:, 0]),
        "stack": lambda *parts: np.concatenate(parts),
        "part": lambda a: a[detail],
        "where": np.where,
        "root": np.sqrt,
        "absolute": np.abs,
    }
    return simple[op](*args)


def _rows(matrix: Array, detail: int | tuple[int, int]) -> Array:
    """Some rows of a matrix, or one of them as a column."""
    return matrix[slice(*detail)] if isinstance(detail, tuple) else matrix[detail][:, None]
