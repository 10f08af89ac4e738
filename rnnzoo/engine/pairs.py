"""Complex numbers as pairs: a step's graph in which each complex tensor is two real ones, before it is differentiated.

Each operation, and its gradient, is written as torch computes it. A real tensor beside a complex one has an imaginary
part of zeros, as it has in torch, where infinity times that is no number. What is not finite there need not be the same
infinity, or none, here: torch adds by multiplying with a complex 1, and has zeros for the gradient of an unread part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_any, tree_map

from rnnzoo.engine.gradients import OPENED, operation
from rnnzoo.errors import UserError

aten = torch.ops.aten


class Pair(NamedTuple):
    """The two parts of a complex tensor, or of a complex number."""

    re: Any
    im: Any


def complex_numbers(graph: fx.Graph) -> bool:
    """Whether a graph has any."""
    return any(isinstance(v := node.meta.get("val"), Tensor) and v.is_complex() for node in graph.nodes)


class Paired(fx.Interpreter):
    """Runs a graph on real tensors, with pairs in place of its complex values.

    Raises `UserError` for what has no form as pairs, by name.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)

    def run_node(self, node: fx.Node) -> Any:
        known = self._part(node)
        if known is not None:
            return known
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        made = isinstance(value := node.meta.get("val"), Tensor) and value.is_complex()
        if node.op == "placeholder" and made:
            raise UserError(
                "it reads complex numbers; declare their parts, as the cell lru does, and put them together"
            )
        if node.op == "output" and _any(args):
            raise UserError("it returns complex numbers; return their parts, .real and .imag, as states")
        target: Any = node.target
        if node.op != "call_function" or not (made or _any((args, kwargs)) or target is aten._neg_view.default):
            return super().run_node(node)
        if made and kwargs.get("dtype") is not None:
            kwargs = {**kwargs, "dtype": kwargs["dtype"].to_real()}
        if target is aten.sym_size.int:
            return target(args[0].re, *args[1:])
        if target is aten._to_copy.default:
            return _each(target, _pair(args[0]), **kwargs) if made else target(args[0].re, **kwargs)
        if target in FORMS:
            return FORMS[target](*args, **kwargs)
        if target in ALIKE or target.is_view:
            return _each(target, *args, **kwargs)
        what = "a gradient of one's own" if target in OPENED else target
        raise UserError(f"{what} of complex numbers has no form; write it with their parts, .real and .imag")

    def _part(self, node: fx.Node) -> Any:
        """What is put together and taken apart again, as it was before."""
        source: Any = node.args[0] if node.args else None
        if node.target is aten.view_as_complex.default and source.target is aten.cat.default:
            last, parts = (-1, source.meta["val"].dim() - 1), source.args[0]
            if len(parts) == 2 and all(p.target is aten.unsqueeze.default and p.args[1] in last for p in parts):
                return Pair(*(self.env[part.args[0]] for part in parts))
        taken = node.target is aten.select.int and source.target is aten.view_as_real.default
        if taken and node.args[1] in (-1, source.meta["val"].dim() - 1):
            return self.env[source.args[0]][node.args[2]]
        return None


def _paired(value: Any) -> bool:
    return isinstance(value, Pair)


def _any(values: Any) -> bool:
    return tree_any(_paired, values, is_leaf=_paired)


def _pair(value: Any) -> Pair:
    """A tensor or a number with what it has beside its real part."""
    if isinstance(value, Pair):
        return value
    return Pair(value, torch.zeros_like(value)) if isinstance(value, Tensor) else Pair(value.real, float(value.imag))


def _each(target: Any, *args: Any, **kwargs: Any) -> Pair:
    """The operation on each of the two parts."""

    def part(k: int) -> Any:
        some, others = tree_map(lambda v: v[k] if isinstance(v, Pair) else v, (args, kwargs), is_leaf=_paired)
        return target(*some, **others)

    return Pair(part(0), part(1))


def _add(a: Any, b: Any, alpha: Any = 1) -> Pair:
    a, b = _pair(a), _pair(b if alpha == 1 else _mul(alpha, b))
    return Pair(a.re + b.re, a.im + b.im)


def _sub(a: Any, b: Any, alpha: Any = 1) -> Pair:
    a, b = _pair(a), _pair(b if alpha == 1 else _mul(alpha, b))
    return Pair(a.re - b.re, a.im - b.im)


def _mul(a: Any, b: Any) -> Pair:
    a, b = _pair(a), _pair(b)
    return Pair(a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re)


def _divided(a: Pair, b: Pair) -> Pair:
    """As NumPy and torch divide: by the greater part of b first, so that no square overflows or vanishes."""
    first = b.re.abs() >= b.im.abs()
    great, small = torch.where(first, b.re, b.im), torch.where(first, b.im, b.re)
    one, other = torch.where(first, a.re, a.im), torch.where(first, a.im, a.re)
    part = small / great
    scale = 1 / (great + small * part)
    re, im = (one + other * part) * scale, (other - one * part) * scale
    zero = _zero(b)
    return Pair(
        torch.where(zero, a.re / b.re.abs(), re), torch.where(zero, a.im / b.re.abs(), torch.where(first, im, -im))
    )


class _Quotient(torch.autograd.Function):
    AS_TORCH = True

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(*parts)
        return torch.stack(_divided(Pair(*parts[:2]), Pair(*parts[2:])), -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        a, b, g = Pair(*ctx.saved_tensors[:2]), Pair(*ctx.saved_tensors[2:]), Pair(*gradient.unbind(-1))
        slope = _divided(_divided(a, b), b)
        return *_divided(g, _conj(b)), *_mul(Pair(-g.re, -g.im), _conj(slope))


class _Function(torch.autograd.Function):
    """One of `FUNCTIONS`, and torch's gradient of it."""

    AS_TORCH = True

    @staticmethod
    def forward(ctx: Any, re: Tensor, im: Tensor, name: str) -> Tensor:
        ctx.save_for_backward(re, im)
        ctx.name = name
        found = FUNCTIONS[name][0](Pair(re, im))
        return torch.stack(found, -1) if isinstance(found, Pair) else found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        function, slope = FUNCTIONS[ctx.name]
        z = Pair(*ctx.saved_tensors)
        result = function(z)
        return *slope(Pair(*gradient.unbind(-1)) if isinstance(result, Pair) else gradient, z, result), None


def _div(a: Any, b: Any) -> Pair:
    a, b = _pair(a), _pair(b)
    tensor = a.re if isinstance(a.re, Tensor) else b.re
    parts = [v if isinstance(v, Tensor) else torch.scalar_tensor(v, dtype=tensor.dtype) for v in (*a, *b)]
    return _split(operation(_Quotient, *torch.broadcast_tensors(*parts)))


def _split(x: Tensor) -> Pair:
    return Pair(x.select(-1, 0), x.select(-1, 1))


def _conj(z: Pair) -> Pair:
    return Pair(z.re, -z.im)


def _zero(z: Pair) -> Tensor:
    return (z.re == 0) & (z.im == 0)


def _sgn(z: Pair) -> Pair:
    zero = _zero(z)
    size = torch.hypot(torch.where(zero, 1.0, z.re), z.im)
    return Pair(torch.where(zero, 0.0, z.re / size), torch.where(zero, 0.0, z.im / size))


def _turn(gradient: Tensor, z: Pair) -> Pair:
    """The gradient of the angle, which for zero is zero in torch."""
    size, zero = torch.hypot(*z), _zero(z)
    found = _mul(_divided(_mul(gradient, z), _pair(size * size)), 1j)
    return Pair(torch.where(zero, 0.0, found.re), torch.where(zero, 0.0, found.im))


def _exp(z: Pair) -> Pair:
    """Where the size is zero or infinite, the angle need not be a number."""
    size = torch.exp(z.re)
    re, im = size * torch.cos(z.im), size * torch.sin(z.im)
    re = torch.where((size == torch.inf) & ~z.im.isfinite(), size, re)
    im = torch.where((size == torch.inf) & (z.im == 0), z.im, im)
    return Pair(torch.where(size == 0, size, re), torch.where(size == 0, size, im))


def _sigmoid(z: Pair) -> Pair:
    return _divided(Pair(torch.ones_like(z.re), torch.zeros_like(z.im)), _add(1, _exp(Pair(-z.re, -z.im))))


def _sin(z: Pair) -> Pair:
    return Pair(torch.sin(z.re) * torch.cosh(z.im), torch.cos(z.re) * torch.sinh(z.im))


def _cos(z: Pair) -> Pair:
    return Pair(torch.cos(z.re) * torch.cosh(z.im), -torch.sin(z.re) * torch.sinh(z.im))


def _tanh(z: Pair) -> Pair:
    re = torch.tanh(z.re)
    im = torch.where(re.abs() == 1, 0.0, torch.tan(z.im))
    return _divided(Pair(re, im), Pair(torch.ones_like(re), re * im))


def _reciprocal(z: Pair) -> Pair:
    return _divided(Pair(torch.ones_like(z.re), torch.zeros_like(z.re)), z)


FUNCTIONS: dict[str, tuple[Callable[[Pair], Any], Callable[[Any, Pair, Any], Pair]]] = {
    "abs": (lambda z: torch.hypot(*z), lambda g, z, y: _mul(g, _sgn(z))),
    "angle": (lambda z: torch.atan2(z.im, z.re), lambda g, z, y: _turn(g, z)),
    "exp": (_exp, lambda g, z, y: _mul(g, _conj(y))),
    "log": (
        lambda z: Pair(torch.log(torch.hypot(*z)), torch.atan2(z.im, z.re)),
        lambda g, z, y: _divided(g, _conj(z)),
    ),
    "sin": (_sin, lambda g, z, y: _mul(g, _conj(_cos(z)))),
    "cos": (_cos, lambda g, z, y: _mul(_mul(-1, g), _conj(_sin(z)))),
    "tanh": (_tanh, lambda g, z, y: _mul(g, _conj(_sub(1, _mul(y, y))))),
    "sigmoid": (_sigmoid, lambda g, z, y: _mul(g, _conj(_mul(_sub(1, y), y)))),
    "reciprocal": (_reciprocal, lambda g, z, y: _mul(_mul(-1, g), _conj(_mul(y, y)))),
}
"""Functions of a complex number z, and the gradient by z from that of the result y, as torch has them."""


def _function(name: str, z: Pair) -> Any:
    made = operation(_Function, *z, name)
    return made if name in ("abs", "angle") else _split(made)


def _power(z: Pair, exponent: float) -> Pair:
    if exponent not in (1, 2, 3):
        raise UserError(f"the power {exponent} of complex numbers has no form; write it by torch.exp and torch.log")
    return z if exponent == 1 else _mul(z, _power(z, exponent - 1))


def _mm(a: Any, b: Any) -> Pair:
    return Pair(a.re @ b.re - a.im @ b.im, a.re @ b.im + a.im @ b.re)


def _equal(a: Any, b: Any) -> Any:
    a, b = _pair(a), _pair(b)
    return (a.re == b.re) & (a.im == b.im)


def _where(condition: Tensor, a: Any, b: Any) -> Pair:
    a, b = _pair(a), _pair(b)
    return Pair(torch.where(condition, a.re, b.re), torch.where(condition, a.im, b.im))


def _cat(parts: Sequence[Any], dim: int = 0) -> Pair:
    return Pair(*(torch.cat(each, dim) for each in zip(*map(_pair, parts))))


def _filled(target: Any, at: int) -> Callable[..., Pair]:
    """What makes tensors of one number, which is the argument `at`."""

    def fill(*args: Any, **kwargs: Any) -> Pair:
        parts = ((*args[:at], part, *args[at + 1 :]) for part in _pair(args[at]))
        return Pair(*(target(*(a.re if isinstance(a, Pair) else a for a in some), **kwargs) for some in parts))

    return fill


FORMS: dict[Any, Callable[..., Any]] = {
    aten.view_as_complex.default: _split,
    aten.view_as_real.default: lambda z: torch.stack(z, -1),
    **dict.fromkeys((aten._conj.default, aten._conj_physical.default), _conj),
    aten._neg_view.default: lambda x: -x,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _sub,
    aten.mul.Tensor: _mul,
    aten.div.Tensor: _div,
    aten.mm.default: _mm,
    aten.sgn.default: _sgn,
    **{getattr(aten, name).default: partial(_function, name) for name in FUNCTIONS},
    aten.pow.Tensor_Scalar: _power,
    **dict.fromkeys((aten.eq.Tensor, aten.eq.Scalar), _equal),
    **dict.fromkeys((aten.ne.Tensor, aten.ne.Scalar), lambda a, b: ~_equal(a, b)),
    aten.where.self: _where,
    aten.cat.default: _cat,
    aten.full.default: _filled(aten.full.default, 1),
    aten.full_like.default: _filled(aten.full_like.default, 1),
    aten.scalar_tensor.default: _filled(aten.scalar_tensor.default, 0),
    aten.ones.default: lambda sizes, **options: _filled(aten.full.default, 1)(sizes, 1, **options),
    aten.ones_like.default: lambda z, **options: _filled(aten.full_like.default, 1)(z, 1, **options),
}
"""Operations on pairs, or that make such."""

ALIKE = {
    aten.clone.default, aten._unsafe_view.default, aten.neg.default, aten.flip.default,
    aten.sum.dim_IntList, aten.cumsum.default, aten.gather.default, aten.scatter_add.default,
    aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default, aten.tril.default, aten.triu.default,
}  # fmt: skip
"""Operations that do the same to both parts, beside those that only look at them in another way."""
