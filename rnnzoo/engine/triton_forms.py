"""How elementary operations are written in Triton, and a step's graph lowered with these forms.

Shapes here leave out the rows, as in `lower.py`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import fx

from rnnzoo.engine.lower import Lowering, Operation, Value
from rnnzoo.engine.operations import POINT
from rnnzoo.engine.places import Place, Unsupported, behind, shape_of
from rnnzoo.engine.trace import args_of, aten

SAME = (
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.neg.default, aten.gt.Scalar,
    aten.gt.Tensor, aten.ge.Scalar, aten.ge.Tensor, aten.lt.Scalar, aten.lt.Tensor, aten.le.Scalar, aten.le.Tensor,
    aten.eq.Scalar, aten.eq.Tensor, aten.ne.Scalar, aten.ne.Tensor,
)  # fmt: skip
"""Operations that C++ and Triton write alike."""

FORMS = {target: POINT[target] for target in SAME} | {
    aten.abs.default: "tl.abs({0})", aten.sigmoid.default: "sigmoid({0})", aten.tanh.default: "tanh({0})",
    aten.exp.default: "tl.exp({0})", aten.expm1.default: "expm1({0})", aten.log.default: "tl.log({0})",
    aten.log1p.default: "log1p({0})", aten.erf.default: "tl.erf({0})", aten.sqrt.default: "tl.sqrt({0})",
    aten.log2.default: "tl.log2({0})", aten.exp2.default: "tl.exp2({0})",
    aten.rsqrt.default: "(1 / tl.sqrt({0}))", aten.reciprocal.default: "(1 / {0})",
    aten.sin.default: "tl.sin({0})", aten.cos.default: "tl.cos({0})", aten.tan.default: "(tl.sin({0}) / tl.cos({0}))",
    aten.floor.default: "tl.floor({0})", aten.ceil.default: "tl.ceil({0})", aten.round.default: "nearest({0})",
    aten.trunc.default: "toward_zero({0})",
    aten.sign.default: "(({0} > 0).to(S) - ({0} < 0).to(S))",
    aten.relu.default: "tl.where({0} < 0, 0.0, {0})",
    aten.maximum.default: "largest({0}, {1})", aten.minimum.default: "smallest({0}, {1})",
    aten.fmax.default: "tl.where(({0} != {0}) | ({0} < {1}), {1}, {0})",
    aten.fmin.default: "tl.where(({0} != {0}) | ({0} > {1}), {1}, {0})",
    aten.fmod.Scalar: "fmod({0}, {1})", aten.fmod.Tensor: "fmod({0}, {1})",
    aten.remainder.Scalar: "remainder({0}, {1})", aten.remainder.Tensor: "remainder({0}, {1})",
    aten.isnan.default: "({0} != {0})", aten.isinf.default: '(tl.abs({0}) == float("inf"))',
    aten.where.self: "tl.where({0:b}, {1}, {2}).to(S)",
    aten.logical_and.default: "({0:b} & {1:b})", aten.bitwise_and.Tensor: "({0:b} & {1:b})",
    aten.logical_or.default: "({0:b} | {1:b})", aten.bitwise_or.Tensor: "({0:b} | {1:b})",
    aten.logical_xor.default: "({0:b} ^ {1:b})", aten.bitwise_xor.Tensor: "({0:b} ^ {1:b})",
    aten.logical_not.default: "({0:b} == 0)", aten.bitwise_not.default: "({0:b} == 0)",
    aten._to_copy.default: "{0}",
}  # fmt: skip
"""Element-wise operations and their Triton; `:b` marks operands that are truth values."""

BITWISE = (aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.bitwise_xor.Tensor, aten.bitwise_not.default)
"""Of truth values only: whole numbers are held as others are."""

POWERS = {
    0.5: "tl.sqrt({0})", -0.5: "(1 / tl.sqrt({0}))", -1: "(1 / {0})"
}  # fmt: skip


START = {"sum": "0.0", "prod": "1.0", "max": 'float("-inf")', "min": 'float("inf")'}
COMBINE = {"sum": "plus", "prod": "times", "max": "largest", "min": "smallest"}
"""Reductions: what they begin with, and what takes one more number in."""

WHOLE: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("product", "gather", "cumulative", *START), (0,)), "scatter": (1, 2)
}  # fmt: skip
"""By kind of operation the operands of which it may read all numbers of a row, and not just those that it writes."""

KINDS = ("point S", "point bool", *WHOLE)
"""Of operations that have a form in Triton."""

TIMES = 16
"""A weight is multiplied with so many rows of a row at most: each is a product of its own."""


class Text(str):
    """Triton that stands for numbers, or for truth values if `boolean`; it is formatted as what is asked for."""

    boolean: bool

    def __new__(cls, text: str, boolean: bool = False) -> Text:
        made = super().__new__(cls, text)
        made.boolean = boolean
        return made

    def __format__(self, kind: str) -> str:
        if kind == "b":
            return str(self) if self.boolean else f"({self!s} != 0)"
        return f"{self!s}.to(S)" if self.boolean else str(self)


class TritonLowering(Lowering):
    """The same lowering with the expressions of `FORMS`. Raises `Unsupported`."""

    ROUNDED = "({}).to(tl.float32).to(S)"

    def _value(self, node: fx.Node) -> Value:
        value = super()._value(node)
        if node in self.operations and self.operations[node].kind not in KINDS:
            raise Unsupported(f"{node.target}")
        return value

    def _product(self, node: fx.Node) -> Value:
        """Of a row's own rows a product each."""
        place = super()._product(node)
        operation = self.operations[node]
        (left,), (to,) = operation.operands, operation.stores
        if operation.kind == "product":
            return place
        assert isinstance(left, Place)
        (times, terms), (_, width) = left.shape, to.shape
        if times > TIMES:
            raise Unsupported(f"a product of a weight with {times} rows of a row")
        del self.operations[node]
        for k in range(times):
            one = replace(left, shape=(terms,), strides=(1,), offset=left.offset + k * left.strides[0])
            part = replace(to, shape=(width,), strides=(1,), offset=k * width)
            self.operations[object()] = Operation("product", (width,), [one], operation.expression, stores=[part])
        return place

    def _cumulate(self, node: fx.Node) -> Value:
        place = super()._cumulate(node)
        operation = self.operations[node]
        operation.expression = {"+": "sum", "*": "prod"}[operation.expression]
        return place

    def _scatter(self, node: fx.Node) -> Value:
        place = super()._scatter(node)
        operation = self.operations[node]
        (to,), (d,) = operation.stores, operation.reduced
        if any(n != m for k, (n, m) in enumerate(zip(operation.shape, to.shape)) if k != d):
            raise Unsupported(f"{node.target} to a part of the other dimensions")
        return place

    def _point(self, node: fx.Node) -> Value:
        arguments, target = list(args_of(node)), node.target
        form = FORMS.get(target) if isinstance(target, torch._ops.OpOverload) else None
        boolean = node.meta["val"].dtype == torch.bool
        whole = not (boolean or node.meta["val"].is_floating_point())
        if whole and target in BITWISE:
            form = None
        if node.target is aten.clamp.default:
            low, high = [*arguments, None, None][1:3]
            arguments = [arguments[0], *(bound for bound in (low, high) if bound is not None)]
            form = "{0}"
            if low is not None:
                form = f"tl.where({form} < {{1}}, {{1}}, {form})"
            if high is not None:
                form = f"tl.where({form} > {{{len(arguments) - 1}}}, {{{len(arguments) - 1}}}, {form})"
        elif node.target is aten.pow.Tensor_Scalar:
            exponent = arguments.pop()
            form = POWERS.get(exponent, f"tl.exp({float(exponent)!r} * tl.log({{0}}))")
            if float(exponent).is_integer() and 0 < exponent <= 8:
                form = f"({' * '.join(['{0}'] * int(exponent))})"
        elif node.target is aten.pow.Scalar and arguments[0] > 0:
            form, arguments = f"tl.exp({math.log(arguments[0])!r} * {{0}})", arguments[1:]
        elif node.target is aten._to_copy.default and whole:
            form = "toward_zero({0})"
        if form is None or (node.kwargs and node.target is not aten._to_copy.default):
            raise Unsupported(f"{node.target}")
        shape = shape_of(node)
        if boolean and node.target in (aten.where.self, aten._to_copy.default):
            form = f"({form} != 0)"
        operands = [self._operand(a, shape, behind(node)) for a in arguments]
        stores = list(self._wanted.get(node, ()))
        kind = "point bool" if boolean else "point S"
        self.operations[node] = Operation(kind, shape, operands, form, stores=stores)
        return node

    _check = _point

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return 8 if self._dtype == torch.float64 else 4

    def memory(self, value: Value) -> Place:
        """Where the value lies; what is in registers is stored."""
        return self._memory(value)


def literal(value: float) -> str:
    """A number as Triton, which would round other ones to float32 first."""
    if math.isfinite(value) and torch.tensor(value, dtype=torch.float32).item() == value:
        return repr(float(value))
    text = repr(value) if math.isfinite(value) else f'float("{value}")'
    return f"tl.full([1, 1], {text}, S)"
