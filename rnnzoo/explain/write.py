"""From operations on rows, as code has them, to expressions on columns, as papers have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from rnnzoo.errors import UserError
from rnnzoo.explain.expression import COMPARISONS, Array, Expression, Symbol
from rnnzoo.explain.value import Value

ELEMENTWISE = (
    "tanh", "sigmoid", "relu", "softplus", "silu", "gelu", "exp", "log", "sin", "cos", "sinh", "cosh", "atan", "erf",
    "sign", "floor", "ceil",
)  # fmt: skip
SIGNS = dict(zip(("lt", "le", "gt", "ge", "eq", "ne"), COMPARISONS))


def number(value: float) -> Expression:
    return Expression("number", (), value)


def call(name: str, *args: Expression) -> Expression:
    return Expression("call", args, name)


def add(*terms: Expression) -> Expression:
    flat = [t for term in terms for t in (term.args if term.op == "add" else (term,))]
    flat = [t for t in flat if not (t.op == "number" and t.detail == 0)] or [number(0)]
    return flat[0] if len(flat) == 1 else Expression("add", tuple(flat))


def negate(term: Expression) -> Expression:
    return term.args[0] if term.op == "negate" else Expression("negate", (term,))


def product(op: str, *factors: Expression) -> Expression:
    """`scale`, numbers first, or `hadamard`, of as many factors as there are."""
    if factors[0].op == "negate":
        return negate(product(op, factors[0].args[0], *factors[1:]))
    flat = [f for factor in factors for f in (factor.args if factor.op == op else (factor,))]
    return Expression(op, tuple(sorted(flat, key=lambda f: op == "scale" and f.op != "number")))


def matmul(left: Expression, right: Expression) -> Expression:
    if left.op == "scale":
        return product("scale", *left.args[:-1], matmul(left.args[-1], right))
    return Expression("matmul", (left, right))


def transpose(matrix: Expression) -> Expression:
    if matrix.op == "matmul":
        left, right = matrix.args
        return matmul(transpose(right), transpose(left))
    return matrix.args[0] if matrix.op == "transpose" else Expression("transpose", (matrix,))


class Writer:
    """Writes values as expressions.

    Args:
        symbols: what each variable, (name, version), is called.
        definitions: the value that each variable was given.
    """

    def __init__(self, symbols: Mapping[Any, Symbol], definitions: Mapping[Any, Value]) -> None:
        self.symbols, self.definitions = symbols, definitions
        self.turned: set[Any] = set()
        self.seen: dict[Symbol, tuple[Any, Value]] = {}
        for value in definitions.values():
            self._find_maps(value)

    def shape(self, name: Any, value: Value) -> tuple[int, ...]:
        """The shape of a symbol as the equations have it."""
        size = () if value.is_scalar else value.dims
        return (*size[:-2], size[-1], size[-2]) if len(size) > 1 and name in self.turned else size

    def array(self, name: Any, value: Value, sequence: int) -> Array:
        """What a symbol stands for in one sequence of the batch."""
        if not isinstance(value.number, Tensor):
            return np.asarray(value.number)
        tensor = value.number[sequence] if value.rows else value.number
        if tensor.dim() == 1:
            tensor = tensor[:, None]
        found: Array = (tensor.mT if tensor.dim() > 1 and name in self.turned else tensor).numpy()
        return found

    def write(self, value: Value, turned: bool = False) -> Expression:
        """A number, a vector as a column, or a matrix; a matrix is transposed if `turned`."""
        op, args = value.op, list(value.args)
        if op in ("leaf", "local"):
            return self._name(value, turned)
        if op == "number":
            return number(value.number)
        options: dict[str, Any] = {}
        if args and isinstance(args[-1], dict):
            *args, options = args
        if op == "mul":
            return self._product(value, _stand_in(args[0]), _stand_in(args[1]), turned)
        if op in ("unsqueeze", "squeeze") or (op == "index" and _reshapes(value)):
            return self._reshaped(value, turned)
        if op in ("matmul", "bmm", "mm"):
            return self._matmul(args[0], args[1], turned)
        if op == "transpose":
            return self.write(args[0], not turned)
        if op == "sum":
            return self._sum(args[0], options.get("dim", args[1] if len(args) > 1 else None))
        if op == "index":
            return self._index(value, turned)
        if op in ("layer_norm", "rms_norm"):
            return self._norm(op, args, options)
        if op in ("cat", "concat", "concatenate"):
            return self._stack(value, args, options, turned)
        if op == "same":
            return self.write(args[0], turned)
        if op in ("triu", "tril"):
            diagonal = int(options.get("diagonal", args[1] if len(args) > 1 else 0))
            other = {"triu": "tril", "tril": "triu"}[op]
            name, diagonal = (other, -diagonal) if turned else (op, diagonal)
            return call(name, self.write(args[0], turned), number(diagonal))
        if op == "matrix_exp":
            return call(op, self.write(args[0], turned))
        if op in ("roll", "softmax"):
            if len(value.dims) != 1:
                raise UserError(f"there is no notation for {op} of something that is no vector")
            shifts = [] if op == "softmax" else [number(int(options.get("shifts", args[1] if len(args) > 1 else 0)))]
            return call(op, self.write(args[0]), *shifts)
        return self._elementwise(value, op, args, options, turned)

    def _elementwise(
        self, value: Value, op: str, args: Sequence[Any], options: Mapping[str, Any], turned: bool
    ) -> Expression:
        if op == "clamp":
            low, high = (options.get(key, args[k] if len(args) > k else None) for k, key in ((1, "min"), (2, "max")))
            clamped = self.write(args[0], turned)
            if low is not None and high is not None:
                return call("clip", clamped, self._operand(value, low, turned), self._operand(value, high, turned))
            if low is high is None:
                raise UserError("it clamps without a bound")
            bound = self._operand(value, high if low is None else low, turned)
            return call("min" if low is None else "max", clamped, bound)
        if options or any(isinstance(arg, (tuple, list)) for arg in args):
            raise UserError(f"there is no notation for {op} with {', '.join(options) or 'a list'}")
        is_matrix = len(value.dims) > 1
        if is_matrix and op == "pow" and args[1] == 2:
            return product("hadamard", self.write(args[0], turned), self.write(args[0], turned))
        if is_matrix and (op in ("pow", "sqrt") or (op == "truediv" and not _stand_in(args[1]).is_scalar)):
            raise UserError(f"there is no notation for an element-wise {op} of matrices")
        if is_matrix and op in ("add", "sub"):  # 1 + A would be read as the sum with the identity
            shown = [self._filled(value, arg, turned) for arg in args]
        else:
            shown = [self._operand(value, arg, turned) for arg in args]
        if op in ELEMENTWISE and len(shown) == 1:
            return call(op, *shown)
        if op in SIGNS:
            return Expression("compare", tuple(shown), SIGNS[op])
        known: dict[str, Callable[..., Expression]] = {
            "add": add,
            "sub": lambda a, b: add(a, negate(b)),
            "neg": negate,
            "truediv": lambda a, b: Expression("divide", (a, b)),
            "floordiv": lambda a, b: call("floor", Expression("divide", (a, b))),
            "mod": lambda a, b: call("mod", a, b),
            "pow": lambda a, b: Expression("root", (a,)) if b == number(0.5) else Expression("power", (a, b)),
            "sqrt": lambda a: Expression("root", (a,)),
            "abs": lambda a: call("abs", a) if is_matrix else Expression("absolute", (a,)),
            "maximum": lambda a, b: call("max", a, b),
            "minimum": lambda a, b: call("min", a, b),
            "where": lambda *parts: Expression("where", parts),
        }
        if op not in known:
            raise UserError(f"there is no notation for {op}")
        return known[op](*shown)

    def _find_maps(self, value: Value) -> None:
        if value.op in ("matmul", "mm") and value.args[0].rows and not value.args[1].rows:
            self._turn(value.args[1])
        for arg in value.operands:
            self._find_maps(arg)

    def _turn(self, value: Value) -> None:
        """A matrix that multiplies rows: what it is made of is to be shown transposed."""
        if len(value.dims) < 2 or value.op == "transpose":  # h @ W.T is W h, whatever W is elsewhere
            return
        if isinstance(value.symbol, Symbol):
            self.turned.add(value.symbol)
        elif value.op == "local":
            self.turned.add(value.args[0])
            self._turn(self.definitions[value.args[0]])
        for arg in value.operands:
            self._turn(arg)

    def target(self, key: Any) -> Expression:
        """What the variable `key` was given, as wide as its symbol."""
        value = self.definitions[key]
        if value.op in ("chunk", "split", "unbind"):
            return self.write(value.args[0])
        return self.write(value, key in self.turned)

    def _name(self, value: Value, turned: bool) -> Expression:
        key: Any = value.symbol if value.op == "leaf" else value.args[0]
        symbol = self.symbols[key] if value.op == "local" else key
        self.seen[symbol] = key, value
        shown = Expression("symbol", (), symbol)
        return transpose(shown) if len(value.dims) > 1 and turned != (key in self.turned) else shown

    def _matmul(self, a: Value, b: Value, turned: bool) -> Expression:
        if len(a.dims) == 1 and len(b.dims) == 2:
            return matmul(self.write(b, True), self.write(a))
        if len(a.dims) == len(b.dims) == 2:
            left, right = self.write(a, turned), self.write(b, turned)
            return matmul(right, left) if turned else matmul(left, right)
        if len(b.dims) == 1 and not b.rows and len(a.dims) in (1, 2):
            left = self.write(a) if len(a.dims) == 2 else transpose(self.write(a))
            return matmul(left, self.write(b))
        raise UserError("it multiplies matrices in a way that has no notation")

    def _product(self, value: Value, a: Value, b: Value, turned: bool) -> Expression:
        if b.is_scalar and not a.is_scalar:
            a, b = b, a
        if a.is_scalar:
            return product("scale", self.write(a), self.write(b, turned))
        if len(value.dims) < 2:
            return product("hadamard", self.write(a), self.write(b))
        kinds = {_orientation(a, value), _orientation(b, value)}
        if kinds == {"full"}:
            return product("hadamard", self.write(a, turned), self.write(b, turned))
        if _orientation(a, value) == "row" or _orientation(b, value) == "column":
            a, b = b, a
        if kinds == {"row", "column"}:
            left, right = self._vector(a), self._vector(b)
            return matmul(right, transpose(left)) if turned else matmul(left, transpose(right))
        left_is_vector = "column" in kinds
        vector, matrix = (a, b) if _orientation(a, value) != "full" else (b, a)
        diagonal, shown = Expression("diag", (self._vector(vector),)), self.write(matrix, turned)
        return matmul(diagonal, shown) if left_is_vector != turned else matmul(shown, diagonal)

    def _vector(self, value: Value) -> Expression:
        """A row or a column as a column."""
        return self.write(value, len(value.dims) == 2 and value.dims[0] == 1)

    def _operand(self, result: Value, value: Any, turned: bool) -> Expression:
        """An operand of something element-wise, widened to a matrix if the result is one."""
        value = _stand_in(value)
        if len(result.dims) < 2 or value.is_scalar or _orientation(value, result) == "full":
            return self.write(value, turned)
        rows, columns = result.dims
        if (_orientation(value, result) == "column") != turned:
            ones = Expression("ones", (), rows if turned else columns)
            return matmul(self._vector(value), transpose(ones))
        return matmul(Expression("ones", (), columns if turned else rows), transpose(self._vector(value)))

    def _filled(self, result: Value, value: Any, turned: bool) -> Expression:
        """An operand of a sum that is a matrix: a number is added to each of its elements."""
        if result.is_scalar or not _stand_in(value).is_scalar:
            return self._operand(result, value, turned)
        rows, columns = result.dims[::-1] if turned else result.dims
        ones = matmul(Expression("ones", (), rows), transpose(Expression("ones", (), columns)))
        return ones if isinstance(value, int) and value == 1 else product("scale", self.write(_stand_in(value)), ones)

    def _reshaped(self, value: Value, turned: bool) -> Expression:
        inner = value.args[0]
        if value.is_scalar:
            return self.write(inner)
        if len(value.dims) == 2 and len(inner.dims) == 1:
            column = value.dims[1] == 1
            return self.write(inner) if column != turned else transpose(self.write(inner))
        if len(value.dims) == 1 and len(inner.dims) == 2:
            return self._vector(inner)
        raise UserError(f"there is no notation for {value.op} to the shape {list(value.dims)}")

    def _index(self, value: Value, turned: bool) -> Expression:
        inner, index = value.args
        items = index if isinstance(index, tuple) else (index,)
        chosen = [(d - inner.rows, i) for d, i in enumerate(items) if not _is_everything(i)]
        if len(chosen) != 1 or chosen[0][0] != 0 or not isinstance(chosen[0][1], (int, slice, Value)):
            raise UserError("it picks elements in a way that has no notation")
        item = chosen[0][1]
        if isinstance(item, slice):
            if item.step is not None or len(inner.dims) > 2:
                raise UserError("it picks elements in a way that has no notation")
            start, stop, _ = item.indices(inner.dims[0])
            alone = len(inner.dims) == 1 and stop == start + 1
            rows = Expression("rows", (self.write(inner),), start if alone else (start, stop))
            return transpose(rows) if turned else rows
        which = int(item) % inner.dims[0]
        if len(inner.dims) == 3 and inner.symbol is not None:
            key = inner.symbol
            self.seen[key] = key, inner
            part = Expression("part", (Expression("symbol", (), key),), which)
            return part if turned == (key in self.turned) else transpose(part)
        return Expression("rows", (self.write(inner),), which)

    def _sum(self, inner: Value, dim: Any) -> Expression:
        """A sum over one dimension of something is its product with ones, or with what it was multiplied by."""
        if dim is None or isinstance(dim, (tuple, list)):
            raise UserError("it sums over more than one dimension")
        over = int(dim) % (len(inner.dims) + inner.rows) - inner.rows
        if over < 0:
            raise UserError("it sums over the batch")
        if len(inner.dims) == 1:
            if inner.op == "mul" and all(_stand_in(arg).dims == inner.dims for arg in inner.args):
                left, right = (self.write(_stand_in(arg)) for arg in inner.args)
                return matmul(transpose(left), right)
            return matmul(transpose(Expression("ones", (), inner.dims[0])), self.write(inner))
        wanted = "row" if over == 1 else "column"
        if inner.op == "mul":
            for vector, matrix in (inner.args, inner.args[::-1]):
                if _orientation(vector, inner) == wanted and _orientation(matrix, inner) == "full":
                    return matmul(self._simpler(matrix, over == 0), self._vector(vector))
        return matmul(self._simpler(inner, over == 0), Expression("ones", (), inner.dims[over]))

    def _simpler(self, matrix: Value, turned: bool) -> Expression:
        """A matrix, transposed as a whole or in its parts."""
        ways = [self.write(matrix, turned)] + ([transpose(self.write(matrix))] if turned else [])
        return min(ways, key=lambda way: str(way).count("transpose"))

    def _norm(self, op: str, args: Sequence[Any], options: Mapping[str, Any]) -> Expression:
        names = ("input", "normalized_shape", "weight", "bias", "eps") if op == "layer_norm" else (
            "input", "normalized_shape", "weight", "eps")  # fmt: skip
        given = {**dict(zip(names, args)), **options}
        if given.get("eps", 1e-5 if op == "layer_norm" else None) != 1e-5:
            raise UserError(f"{op} has another eps than 1e-5")
        if len(given["input"].dims) != 1:
            raise UserError(f"there is no notation for {op} of something that is no vector")
        shown = call(op, self.write(given["input"]))
        if given.get("weight") is not None:
            shown = product("hadamard", self.write(given["weight"]), shown)
        return shown if given.get("bias") is None else add(shown, self.write(given["bias"]))

    def _stack(self, value: Value, args: Sequence[Any], options: Mapping[str, Any], turned: bool) -> Expression:
        dim = int(options.get("dim", args[1] if len(args) > 1 else 0)) % (len(value.dims) + value.rows) - value.rows
        if dim != 0 or turned:
            raise UserError("it puts matrices side by side, which has no notation")
        parts = [self.write(part) for part in map(_stand_in, args[0]) if part.dims[0]]
        return parts[0] if len(parts) == 1 else Expression("stack", tuple(parts))


def _stand_in(value: Any) -> Value:
    if isinstance(value, Value):
        return value
    if not isinstance(value, (int, float)):
        raise UserError(f"there is no notation for {value!r}")
    return Value("number", (), value, False)


def _orientation(value: Any, result: Value) -> str:
    """How an operand lies in a matrix that it is widened to: row, column or full."""
    size = _stand_in(value).dims
    if size == result.dims:
        return "full"
    return "column" if len(size) == 2 and size[1] == 1 else "row"


def _is_everything(item: Any) -> bool:
    return isinstance(item, slice) and (item.start, item.stop, item.step) == (None, None, None)


def _reshapes(value: Value) -> bool:
    """Whether an index only adds dimensions, or drops one of size 1."""
    return len(value.dims) != len(value.args[0].dims) and value.number.numel() == value.args[0].number.numel()
