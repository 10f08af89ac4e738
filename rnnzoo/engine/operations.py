"""How elementary operations are written in C++; functions that end in _ are those of `kernel.h`."""

import math
from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten

VIEWS = frozenset({
    aten.slice.Tensor, aten.select.int, aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.permute.default, aten.expand.default, aten.alias.default,
    aten.clone.default, aten.detach.default, aten.flip.default, aten.diagonal.default,
})  # fmt: skip
"""Operations that only look at a tensor in another way, or copy it."""

POINT = {
    aten.add.Tensor: "({0} + {1})", aten.sub.Tensor: "({0} - {1})", aten.mul.Tensor: "({0} * {1})",
    aten.div.Tensor: "({0} / {1})", aten.neg.default: "(-{0})", aten.abs.default: "std::abs({0})",
    aten.sigmoid.default: "sigmoid_({0})", aten.tanh.default: "tanh_({0})", aten.exp.default: "exp_({0})",
    aten.expm1.default: "expm1_({0})", aten.log.default: "log_({0})", aten.log1p.default: "log1p_({0})",
    aten.log2.default: "std::log2({0})", aten.log10.default: "std::log10({0})", aten.exp2.default: "std::exp2({0})",
    aten.asinh.default: "std::asinh({0})", aten.acosh.default: "std::acosh({0})", aten.atanh.default: "std::atanh({0})",
    aten.erfc.default: "std::erfc({0})", aten.hypot.default: "std::hypot({0}, {1})",
    aten.copysign.Tensor: "std::copysign({0}, {1})", aten.copysign.Scalar: "std::copysign({0}, {1})",
    aten.fmax.default: "std::fmax({0}, {1})", aten.fmin.default: "std::fmin({0}, {1})",
    aten.isnan.default: "({0} != {0})", aten.isinf.default: "(std::abs({0}) == S(INFINITY))",
    aten.signbit.default: "std::signbit({0})",
    aten.tan.default: "std::tan({0})",
    aten.asin.default: "std::asin({0})", aten.acos.default: "std::acos({0})", aten.atan.default: "std::atan({0})",
    aten.sinh.default: "std::sinh({0})", aten.cosh.default: "std::cosh({0})", aten.erf.default: "std::erf({0})",
    aten.atan2.default: "std::atan2({0}, {1})", aten.sqrt.default: "std::sqrt({0})",
    aten.rsqrt.default: "(S(1) / std::sqrt({0}))", aten.reciprocal.default: "(S(1) / {0})",
    aten.sign.default: "S(({0} > 0) - ({0} < 0))",
    aten.relu.default: "({0} < 0 ? S(0) : {0})", aten.floor.default: "std::floor({0})",
    aten.ceil.default: "std::ceil({0})", aten.round.default: "std::nearbyint({0})",
    aten.trunc.default: "std::trunc({0})",
    aten.maximum.default: "({0} != {0} || {0} > {1} ? {0} : {1})",
    aten.minimum.default: "({0} != {0} || {0} < {1} ? {0} : {1})",
    aten.pow.Tensor_Tensor: "std::pow({0}, {1})", aten.pow.Scalar: "std::pow({0}, {1})",
    aten.where.self: "({0} ? {1} : {2})",
    aten.logical_and.default: "(({0} != 0) & ({1} != 0))", aten.bitwise_and.Tensor: "(({0} != 0) & ({1} != 0))",
    aten.logical_or.default: "(({0} != 0) | ({1} != 0))", aten.bitwise_or.Tensor: "(({0} != 0) | ({1} != 0))",
    aten.logical_xor.default: "(({0} != 0) != ({1} != 0))", aten.bitwise_xor.Tensor: "({0} != {1})",
    aten.logical_not.default: "(!{0})", aten.bitwise_not.default: "(!{0})",
    **{
        getattr(getattr(aten, name), overload): f"({{0}} {sign} {{1}})"
        for name, sign in {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}.items()
        for overload in ("Scalar", "Tensor")
    },
}  # fmt: skip
"""Element-wise operations and their C++."""

_LEFT = "fmod_({0}, {1})", "apart({0}, {1})", "std::fmod({0}, {1})"
_SIGNED = "remainder_({0}, {1})", "apart({0}, {1})", "signed_(std::fmod({0}, {1}), {1})"

CHECKED: dict[Any, tuple[str, str, str]] = {
    aten.sin.default: ("sin_({0})", "far({0})", "std::sin({0})"),
    aten.cos.default: ("cos_({0})", "far({0})", "std::cos({0})"),
    aten.fmod.Scalar: _LEFT, aten.fmod.Tensor: _LEFT, aten.remainder.Scalar: _SIGNED, aten.remainder.Tensor: _SIGNED,
}  # fmt: skip
"""Element-wise operations of which a vector takes most numbers: their C++, for which numbers it is not good, and what
these take one by one."""

POWERS = {
    0.5: "std::sqrt({0})", 1: "{0}", 2: "({0} * {0})", 3: "({0} * {0} * {0})", -0.5: "(S(1) / std::sqrt({0}))",
}  # fmt: skip
"""By exponent, where it is a number."""

FILLED: dict[Any, Callable[[Any], float]] = {
    aten.full_like.default: lambda node: float(node.args[1]),
    aten.zeros_like.default: lambda node: 0.0,
    aten.new_zeros.default: lambda node: 0.0,
    aten.ones_like.default: lambda node: 1.0,
}
"""Operations on tensors of which only the shape counts, and the number that they give."""

REDUCTIONS: dict[Any, str] = {
    aten.sum.dim_IntList: "sum", aten.prod.dim_int: "prod", aten.amax.default: "max", aten.amin.default: "min",
}  # fmt: skip

CUMULATIVE: dict[Any, str] = {aten.cumsum.default: "+", aten.cumprod.default: "*"}
"""What becomes of the numbers before, and the operator with which the next one is taken in."""


def number(value: float) -> str:
    """A number as C++."""
    if math.isfinite(value):
        return f"S({value!r})"
    return "S(NAN)" if math.isnan(value) else f"S({'-' if value < 0 else ''}INFINITY)"


def converted(before: torch.dtype, after: torch.dtype) -> str:
    """Numbers of one type as those of another."""
    if after == torch.bool:
        return "({0} != 0)"
    return "(std::trunc({0}) + 0)" if before.is_floating_point and not after.is_floating_point else "S({0})"
