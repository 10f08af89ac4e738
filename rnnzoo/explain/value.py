"""Stand-ins for tensors and numbers, which note what is done to them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rnnzoo.errors import UserError
from rnnzoo.explain.expression import Symbol


class Value:
    """A stand-in for a tensor or a number: what it is, and the operation that it came from.

    `number` is what it stands for; `rows` tells whether its first dimension is the batch.
    """

    def __init__(self, op: str, args: Sequence[Any], number: Any, rows: bool, symbol: Symbol | None = None) -> None:
        self.op, self.args, self.number, self.rows, self.symbol = op, tuple(args), number, rows, symbol

    @property
    def dims(self) -> tuple[int, ...]:
        """Its shape without the batch."""
        return tuple(self.number.shape[self.rows :]) if isinstance(self.number, Tensor) else ()

    @property
    def operands(self) -> list[Value]:
        """The stand-ins that it was computed from."""
        return _inside((*self.args, *(tuple(a.values()) for a in self.args if isinstance(a, dict))))

    @property
    def is_scalar(self) -> bool:
        return math.prod(self.dims) == 1

    @property
    def T(self) -> Any:
        if self.rows and len(self.dims) < 2:
            raise UserError("it turns the batch into columns; write x @ W for rows x")
        return apply("transpose", lambda a: a.mT, self)

    mT = T

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return apply(func.__name__, func, *args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not isinstance(self.number, Tensor):
            raise AttributeError(name)
        found = getattr(self.number, name)
        if isinstance(found, Tensor):
            return apply(name, operator.attrgetter(name), self)
        return (lambda *a, **k: apply(name, getattr(Tensor, name), self, *a, **k)) if callable(found) else found

    def __getitem__(self, index: Any) -> Any:
        return apply("index", operator.getitem, self, index)

    def __len__(self) -> int:
        return len(self.number)

    def __bool__(self) -> bool:
        if isinstance(self.number, Tensor):
            raise UserError("it branches on data")
        return bool(self.number)

    def __index__(self) -> int:
        return operator.index(self._plain())

    def __float__(self) -> float:
        return float(self._plain())

    def _plain(self) -> Any:
        if isinstance(self.number, Tensor):
            raise UserError("it makes a Python number of a tensor")
        return self.number

    __hash__ = None  # type: ignore[assignment]


def _operator(name: str, function: Callable[..., Any], swapped: bool = False) -> Callable[..., Any]:
    def method(self: Value, other: Any = None) -> Any:
        operands = (self,) if other is None else (other, self) if swapped else (self, other)
        return apply(name, function, *operands)

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"):
    setattr(Value, f"__{_name}__", _operator(_name, getattr(operator, _name)))
    setattr(Value, f"__r{_name}__", _operator(_name, getattr(operator, _name), swapped=True))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "neg", "abs"):
    setattr(Value, f"__{_name}__", _operator(_name, getattr(operator, _name)))


def _bare(value: Any) -> Any:
    """What stand-ins stand for, also inside tuples and lists."""
    if isinstance(value, Value):
        return value.number
    if isinstance(value, slice):
        return slice(*map(_bare, (value.start, value.stop, value.step)))
    if isinstance(value, Tensor):
        raise UserError("it computes with a tensor that is no declared weight")
    return type(value)(map(_bare, value)) if isinstance(value, (tuple, list)) else value


def _inside(args: Any) -> list[Value]:
    return [
        v for a in args for v in (_inside(a) if isinstance(a, (tuple, list)) else [a] if isinstance(a, Value) else [])
    ]


DEFINED: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "div": operator.truediv,
    "divide": operator.truediv,
    "true_divide": operator.truediv,
    "negative": operator.neg,
    "remainder": operator.mod,
    "t": lambda a: a.T,
    "linear": lambda x, weight, bias=None: x @ weight.T if bias is None else x @ weight.T + bias,
    "addmm": lambda bias, x, weight: bias + x @ weight,
    "addcmul": lambda a, b, c: a + b * c,
    "lerp": lambda a, b, weight: a + weight * (b - a),
    "mean": lambda a, dim, keepdim=False: a.sum(dim, keepdim) / a.shape[dim],
    "square": lambda a: a**2,
    "reciprocal": lambda a: 1 / a,
    "rsqrt": lambda a: 1 / torch.sqrt(a),
    "expm1": lambda a: torch.exp(a) - 1,
    "log1p": lambda a: torch.log(1 + a),
    "log_sigmoid": lambda a: torch.log(torch.sigmoid(a)),
    "hardsigmoid": lambda a: torch.clamp(a / 6 + 0.5, 0, 1),
    "softsign": lambda a: a / (1 + abs(a)),
}
"""Operations that are said in terms of others."""

SIZES = ("size", "dim", "ndimension", "numel", "is_floating_point")
"""Methods that tell nothing of a tensor's elements."""

UNSEEN = ("double", "float", "to", "type_as", "contiguous", "clone", "detach")
"""Methods that no equation tells of."""


def apply(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Do an operation on what stand-ins stand for, and note it.

    Raises `UserError` for what an equation cannot tell: writing in place, and numbers taken from a tensor.
    """
    if kwargs.get("inplace") is False:
        del kwargs["inplace"]
    bare, bare_kwargs = _bare(args), {k: _bare(v) for k, v in kwargs.items()}
    if name in DEFINED and function is not DEFINED[name]:
        return DEFINED[name](*args, **kwargs)
    operands = _inside((args, tuple(kwargs.values())))
    tensors = [v.number for v in operands if isinstance(v.number, Tensor)]
    versions = [tensor._version for tensor in tensors]
    number = function(*bare, **bare_kwargs)
    if versions != [tensor._version for tensor in tensors]:
        raise UserError(f"it writes in place, with {name}")
    if name in SIZES:
        return number
    pieces = number if isinstance(number, (tuple, list)) else (number,)
    if tensors and not all(isinstance(piece, Tensor) for piece in pieces):
        raise UserError(f"it makes a Python number of a tensor, with {name}")
    rows = any(v.rows for v in operands)
    if name in UNSEEN:
        if tensors[0].is_floating_point() and not number.is_floating_point():
            raise UserError(f"it drops decimals, with {name}")
        return Value("same", args[:1], number, rows)
    if pieces is number:
        whole = Value(name, (*args, kwargs), number[0], rows)
        return tuple(Value("piece", (whole, k, len(number)), piece, rows) for k, piece in enumerate(number))
    return Value(name, (*args, kwargs) if kwargs else args, number, rows)
