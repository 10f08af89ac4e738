"""Every operation that has a C++ form gives what torch gives, for special values too, forwards and backwards.

Values: zeros of both signs, subnormal, tiny, ordinary, whole, tenths, huge, infinite, and none at all. All operations
stand in one step, each on features of its own, so that one kernel has them all.
Shapes: V values, P pairs of values, B rows.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rnnzoo import Bias, Cell, InputWeight, Recurrent, RecurrentWeight, State
from rnnzoo.engine import scan, serial
from rnnzoo.engine.operations import CHECKED, POINT, REDUCTIONS
from rnnzoo.engine.plan import plan
from rnnzoo.engine.trace import aten

pytestmark = pytest.mark.usefixtures("shared_kernels", "empty_memory_is_nan", "as_users_compile")

HALVES = [
    0.0, 1e-310, 1e-40, 1.2e-38, 1e-30, 1e-10, 1e-3, 0.05, 0.1, 0.25, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 7.3,
    10.0, 19.9, 50.0, 86.0, 88.0, 95.0, 110.0, 1e3, 12345.6, 99999.0, 1e5, 123456.7, 8388608.5, 1e8, 3.3e9, 1e15, 1e20,
    1e30, 3e38, 1e200, math.inf,
]  # fmt: skip
VALUES = [*HALVES, *(-v for v in HALVES), math.nan]
PAIRED = [0.0, -0.0, 1e-40, 0.1, -0.1, 0.3, 1.0, -1.0, 2.5, -3.0, 7.3, -7.3, 1e8, -3e38, math.inf, -math.inf, math.nan]

UNARY: dict[Any, Callable[[Tensor], Tensor]] = {
    "add": lambda x: aten.add.Scalar(x, 0.1),
    "sub": lambda x: aten.sub.Scalar(x, 0.1),
    "mul": lambda x: aten.mul.Scalar(x, 0.1),
    "div": lambda x: aten.div.Scalar(x, 0.1),
    aten.neg.default: torch.neg,
    aten.abs.default: torch.abs,
    aten.sigmoid.default: torch.sigmoid,
    aten.tanh.default: torch.tanh,
    aten.exp.default: torch.exp,
    aten.expm1.default: torch.expm1,
    aten.log.default: torch.log,
    aten.log1p.default: torch.log1p,
    aten.sin.default: torch.sin,
    aten.cos.default: torch.cos,
    aten.log2.default: torch.log2,
    aten.log10.default: torch.log10,
    aten.exp2.default: torch.exp2,
    aten.tan.default: torch.tan,
    aten.asinh.default: torch.asinh,
    aten.acosh.default: torch.acosh,
    aten.atanh.default: torch.atanh,
    aten.erfc.default: torch.erfc,
    aten.isnan.default: lambda x: x.isnan() * 1.0,
    aten.isinf.default: lambda x: x.isinf() * 1.0,
    aten.signbit.default: lambda x: x.signbit() * 1.0,
    aten.copysign.Scalar: lambda x: torch.copysign(x, -0.0),
    aten.asin.default: torch.asin,
    aten.acos.default: torch.acos,
    aten.atan.default: torch.atan,
    aten.sinh.default: torch.sinh,
    aten.cosh.default: torch.cosh,
    aten.erf.default: torch.erf,
    aten.sqrt.default: torch.sqrt,
    aten.rsqrt.default: torch.rsqrt,
    aten.reciprocal.default: torch.reciprocal,
    aten.sign.default: torch.sign,
    "sgn": torch.sgn,
    aten.relu.default: torch.relu,
    aten.floor.default: torch.floor,
    aten.ceil.default: torch.ceil,
    aten.round.default: torch.round,
    aten.trunc.default: torch.trunc,
    aten.remainder.Scalar: lambda x: torch.remainder(x, 0.1),
    aten.fmod.Scalar: lambda x: torch.fmod(x, 0.1),
    aten.pow.Scalar: lambda x: torch.pow(0.3, x),
    aten.logical_not.default: lambda x: torch.logical_not(x) * 1.0,
    aten.bitwise_not.default: lambda x: ~(x > 0.1) * 1.0,
    **{
        getattr(aten, name).Scalar: lambda x, name=name: getattr(torch, name)(x, 0.1) * x
        for name in ("gt", "ge", "lt", "le", "eq", "ne")
    },
    "clamp": lambda x: x.clamp(-0.3, 2.5),
    "clamp below": lambda x: x.clamp(min=0.1),
    "clamp to infinity": lambda x: x.clamp(-math.inf, math.inf),
    "add inf": lambda x: x + math.inf,
    "where nan": lambda x: torch.where(x > 0.1, x, math.nan),
    "where inf": lambda x: torch.where(x > 0.1, x, -math.inf),
    "remainder of a whole": lambda x: torch.remainder(x, 3),
    "remainder below zero": lambda x: torch.remainder(x, -0.7),
    "remainder of infinity": lambda x: torch.remainder(x, math.inf),
    "isfinite": lambda x: x.isfinite() * 1.0,
    "nan_to_num": torch.nan_to_num,
    "frac": torch.frac,
    "square": torch.square,
    "sinc": torch.sinc,
    "logit": lambda x: torch.logit(x, 0.01),
    "round to tenths": lambda x: torch.round(x, decimals=1),
    "to whole numbers": lambda x: x.clamp(-1e6, 1e6).nan_to_num(0).long() * 0.5,
    "to truth": lambda x: x.bool() * 0.5,
    "lerp": lambda x: torch.lerp(x, 0.3 * x, 0.7),
    "masked_fill": lambda x: x.masked_fill(x > 0.3, 0.1),
    "threshold": lambda x: F.threshold(x, 0.1, 0.5),
    "relu6": F.relu6,
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.7),
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "mish": F.mish,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "hardswish": F.hardswish,
    "elu": F.elu,
    "softplus": F.softplus,
    "leaky_relu": F.leaky_relu,
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "logsigmoid": F.logsigmoid,
    "pad": lambda x: F.pad(x[:, 1:], (1, 0), value=0.7) + 0 * x,
    **{f"pow {e}": lambda x, e=e: x**e for e in (0.5, 1, 2, 3, -1, -0.5, 0.1, 4, 0, 2.5)},
}
"""Under what they must become, where they are elementary."""

BINARY: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.mul.Tensor: torch.mul,
    aten.div.Tensor: torch.div,
    aten.atan2.default: torch.atan2,
    aten.maximum.default: torch.maximum,
    aten.minimum.default: torch.minimum,
    aten.remainder.Tensor: torch.remainder,
    aten.fmod.Tensor: torch.fmod,
    aten.fmax.default: torch.fmax,
    aten.fmin.default: torch.fmin,
    aten.hypot.default: torch.hypot,
    aten.copysign.Tensor: torch.copysign,
    aten.logical_xor.default: lambda x, y: torch.logical_xor(x, y) * 1.0,
    aten.bitwise_xor.Tensor: lambda x, y: ((x > 0.1) ^ (y < 1)) * 1.0,
    "logaddexp": torch.logaddexp,
    "logaddexp2": torch.logaddexp2,
    "xlogy": torch.xlogy,
    "clamp between": lambda x, y: torch.clamp(x, y, y + 1),
    "addcmul": lambda x, y: torch.addcmul(x, x, y, value=0.3),
    "addcdiv": lambda x, y: torch.addcdiv(x, x, y, value=0.3),
    "isclose": lambda x, y: torch.isclose(x, y, equal_nan=True) * 1.0,
    "divide downwards": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "divide towards zero": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    aten.pow.Tensor_Tensor: torch.pow,
    aten.where.self: lambda x, y: torch.where(x > y, x, y),
    aten.logical_and.default: lambda x, y: torch.logical_and(x, y) * 1.0,
    aten.bitwise_and.Tensor: lambda x, y: ((x > 0.1) & (y < 1)) * 1.0,
    aten.logical_or.default: lambda x, y: torch.logical_or(x, y) * 1.0,
    aten.bitwise_or.Tensor: lambda x, y: ((x > 0.1) | (y < 1)) * 1.0,
    **{
        getattr(aten, name).Tensor: lambda x, y, name=name: getattr(torch, name)(x, y) * x
        for name in ("gt", "ge", "lt", "le", "eq", "ne")
    },
}

REDUCED: dict[Any, Callable[[Tensor], Tensor]] = {
    aten.sum.dim_IntList: lambda x: x.sum(-1),
    aten.prod.dim_int: lambda x: x.prod(-1),
    aten.amax.default: lambda x: x.amax(-1),
    aten.amin.default: lambda x: x.amin(-1),
    "largest of the middle": lambda x: x.unflatten(-1, (4, 4)).amax(-2).sum(-1),
    "softmax": lambda x: torch.softmax(x, -1).amax(-1),
    "logsumexp": lambda x: torch.logsumexp(x, -1),
}
"""Of rows of sixteen."""

ROWS = [
    [0.1 * k for k in range(16)],
    [0.1 * k if k != 5 else math.nan for k in range(16)],
    [-0.1 * k if k else math.nan for k in range(16)],
    [0.3 if k < 15 else math.nan for k in range(16)],
    [0.3 * k if k != 7 else math.inf for k in range(16)],
    [0.3 * k if k != 7 else -math.inf for k in range(16)],
    [math.inf if k == 3 else -math.inf for k in range(16)],
    [-math.inf] * 16,
    [math.nan] * 16,
    [-1e30 * k for k in range(16)],
]

V, P = len(VALUES), len(PAIRED) ** 2
ROUGH = {"gelu": 2e-6, "gelu by tanh": 1e-6, "tanhshrink": 1e-7, "logaddexp2": 1e-7, "sinc": 1e-4}
"""How far torch itself is from what is right, where little is left of a difference."""
WAVES = {aten.sin.default, aten.cos.default}


class Every(Cell):
    """The operations, one beside the other, on values that are a state, because the loop has no others."""

    y, v = State(V * len(UNARY) + P * len(BINARY)), State(V * len(UNARY) + 2 * P * len(BINARY))

    def step(self, x: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        start, pieces = 0, []
        for operation in UNARY.values():
            pieces.append(operation(v[:, start : start + V]))
            start += V
        for binary in BINARY.values():
            pieces.append(binary(v[:, start : start + P], v[:, start + P : start + 2 * P]))
            start += 2 * P
        return torch.cat(pieces, -1), v


class EveryRow(Cell):
    y, v = State(len(REDUCED)), State(16 * len(REDUCED))

    def step(self, x: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        parts = v.unflatten(-1, (-1, 16)).unbind(1)
        each = zip(REDUCED.values(), parts, strict=True)
        return torch.stack([operation(part) for operation, part in each], -1), v


def run(kind: type[Cell], engine: str, values: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and gradients for values [B, n]."""
    layer = Recurrent(kind, 1, 1, engine=engine).to(values.dtype)
    assert serial.lacks(layer.cells[0], values) is None
    y, _ = layer.cells[0].initial_state(values)
    asking = values[None].clone().requires_grad_()  # added to zero, -0 would no longer be there
    output, _ = layer(values.new_zeros(1, len(values), 1), (y[None], asking))
    return output.detach()[0], torch.autograd.grad(output.sum(), asking)[0][0]


def given(dtype: torch.dtype) -> Tensor:
    values = torch.tensor(VALUES, dtype=torch.float64).to(dtype)
    pairs = torch.cartesian_prod(*[torch.tensor(PAIRED, dtype=torch.float64).to(dtype)] * 2).T
    return torch.cat([values.repeat(len(UNARY)), pairs.flatten().repeat(len(BINARY))])[None]


@functools.cache
def results(dtype: torch.dtype) -> dict[str, dict[Any, tuple[Tensor, ...]]]:
    """By engine and operation: inputs, outputs, and gradients of the inputs."""
    x = given(dtype)
    found: dict[str, dict[Any, tuple[Tensor, ...]]] = {}
    for engine in ("serial", "reference"):
        output, gradient = run(Every, engine, x)
        parts = []
        for values in (x[0], gradient[0]):
            one, two = values.split([V * len(UNARY), 2 * P * len(BINARY)])
            parts.append([*one.split(V), *two.unflatten(0, (-1, 2, P)).unbind(0)])
        sizes = [V] * len(UNARY) + [P] * len(BINARY)
        each = zip(parts[0], output[0].split(sizes), parts[1], strict=True)
        found[engine] = dict(zip([*UNARY, *BINARY], each, strict=True))
    return found


def differing(a: Tensor, b: Tensor, rtol: float, atol: float) -> Tensor:
    """Where numbers differ, or their signs where they are zero."""
    close = torch.isclose(a, b, rtol, atol, equal_nan=True) & (a.isinf() == b.isinf())
    return ~close | ((a == 0) & (b == 0) & (torch.signbit(a) != torch.signbit(b)))


def excused(operation: Any, values: Tensor, expected: Tensor) -> Tensor | bool:
    """Where torch itself is wrong: of a division, if the quotient overflows, of the sign of zero, of gelu's ends."""
    if "remainder" in str(operation) or "fmod" in str(operation):
        return values.isfinite().reshape(-1, values.shape[-1]).all(0) & expected.isnan()
    if operation == "gelu":
        return (values.abs() > 1e38) & (values.dtype == torch.float32)
    return (expected == 0) if operation == "logsigmoid" else False


def operations(*tables: dict[Any, Any]) -> list[Any]:
    return [pytest.param(key, id=str(key)) for table in tables for key in table]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("operation", operations(UNARY, BINARY))
def test_values_are_those_of_torch(operation, dtype):
    values, found, _ = results(dtype)["serial"][operation]
    _, expected, _ = results(dtype)["reference"][operation]
    rtol = 3e-6 if dtype == torch.float32 else 1e-14
    atol = 2e-7 if operation in WAVES and dtype == torch.float32 else 2 * torch.finfo(dtype).tiny
    atol *= 100 if operation in ("silu", "mish") else 1  # what is too small to be normal, times x
    atol = max(atol, ROUGH.get(operation, 0.0)) if dtype == torch.float32 else atol
    wrong = differing(found, expected, rtol, atol) & ~torch.as_tensor(excused(operation, values, expected))
    assert not wrong.any(), [values[..., wrong], found[wrong], expected[wrong]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("operation", operations(UNARY, BINARY))
def test_gradients_are_those_of_torch(operation, dtype):
    values, _, found = results(dtype)["serial"][operation]
    _, _, expected = results(dtype)["reference"][operation]
    rtol = 1e-5 if dtype == torch.float32 else 1e-13
    rtol = 1e-7 if operation == "hardsigmoid" and dtype == torch.float64 else rtol  # torch's own 1 / 6 is in float32
    atol = 2e-7 if dtype == torch.float32 else 1e-15
    atol = max(atol, ROUGH.get(operation, 0.0)) if dtype == torch.float32 or operation == "sinc" else atol
    wrong = differing(found + 0, expected + 0, rtol, atol)
    if operation == "logit":  # of what is no number torch has two formulas
        wrong &= ~values.isnan()
    assert not wrong.any(), [values[..., wrong.reshape(-1, wrong.shape[-1]).any(0)], found[wrong], expected[wrong]]


def test_every_operation_with_a_form_is_in_the_table():
    assert {*POINT, *CHECKED, *REDUCTIONS} <= {*UNARY, *BINARY, *REDUCED}
    found = {node.target for node in plan(Every(1, 1)).recur.nodes}
    named = {key for key in {**UNARY, **BINARY} if not isinstance(key, str)}
    # these are written with others, and come up in gradients only
    assert {str(key) for key in named - found} <= {"aten.bitwise_not.default"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rows_are_reduced_as_by_torch(dtype):
    x = torch.tensor(ROWS, dtype=dtype).repeat(1, len(REDUCED))
    found = {engine: run(EveryRow, engine, x) for engine in ("serial", "reference")}
    for actual, expected in zip(found["serial"], found["reference"], strict=True):
        torch.testing.assert_close(actual, expected, equal_nan=True)


BIG = 12582912.0


class Rounded(Cell):
    """To whole numbers by way of a large one, as it was done before there was an instruction for it."""

    W, U = InputWeight(), RecurrentWeight()
    c = Bias(init=BIG)

    def rounded(self, u: Tensor) -> Tensor:
        return (u + BIG) - BIG

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return self.rounded(x @ self.W + 3 * h)


class RoundedByWeight(Rounded):
    def rounded(self, u: Tensor) -> Tensor:
        return (u + self.c) - self.c


class RoundedState(Rounded):
    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return self.rounded(3 * h) + x @ self.W


class Overflowing(Rounded):
    """Beyond the largest number and back is not where it was."""

    def rounded(self, u: Tensor) -> Tensor:
        return (u * 1e30) * 1e-30 * 1e-30


class Vanishing(Rounded):
    def rounded(self, u: Tensor) -> Tensor:
        return (u * 1e-30) * 1e-20 * 1e30 * 1e20


class Bfloat(Rounded):
    def rounded(self, u: Tensor) -> Tensor:
        return u.bfloat16().to(u.dtype)


class Half(Rounded):
    def rounded(self, u: Tensor) -> Tensor:
        return u.half().to(u.dtype)


class Wide(Rounded):
    def rounded(self, u: Tensor) -> Tensor:
        return (u.double() + 1e-12).sin().to(u.dtype)


class Narrow(Rounded):
    def rounded(self, u: Tensor) -> Tensor:
        return u.float().to(u.dtype)


class BfloatWeight(Rounded):
    def rounded(self, u: Tensor) -> Tensor:
        return u @ self.U.bfloat16().to(u.dtype)


ROUNDING = [Rounded, RoundedByWeight, RoundedState, Overflowing, Vanishing, Bfloat, Half, Wide, Narrow, BfloatWeight]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ROUNDING, ids=lambda kind: kind.__name__)
def test_rounding_is_never_dropped(kind, dtype, monkeypatch):
    torch.manual_seed(0)
    layer = Recurrent(kind, 3, 4, engine="auto").to(dtype)
    layer.expected_calls = 10**6
    x = torch.randn(2, 5, 3, dtype=dtype) * (1e12 if kind is Overflowing else 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of cells that have no kernel
        output, _ = layer(x)
    layer.engine = "reference"
    # in one order or another, products are rounded; what is lost here is more
    torch.testing.assert_close(output, layer(x)[0], rtol=1e-5, atol=1e-5, equal_nan=True)
    layer.engine = "scan"
    if scan.refuses(layer.cells[0]) is None:
        torch.testing.assert_close(layer(x)[0], output, rtol=1e-5, atol=1e-5, equal_nan=True)


class Gated(Cell):
    """One product of the input has a bias and the other has none."""

    W, V, b = InputWeight(), InputWeight(), Bias()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.sigmoid(x @ self.W + self.b) * h + torch.sigmoid(x @ self.V)


class Padded(Cell):
    W = InputWeight()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(F.pad((x @ self.W)[:, 1:], (1, 0), value=0.3)) + 0.5 * h


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", ["W", "V"])
@pytest.mark.parametrize("kind", [Gated, Padded], ids=lambda kind: kind.__name__)
def test_what_is_infinite_stays_where_it_is(kind, name, value):
    found = {}
    if name not in kind.weights:
        return
    for engine in ("serial", "scan", "reference"):
        torch.manual_seed(0)
        layer = Recurrent(kind, 3, 4, engine=engine)
        with torch.no_grad():
            getattr(layer.cells[0], name)[:, 1] = value
        output, _ = layer(torch.rand(3, 2, 3) + 0.1)
        (gradient,) = torch.autograd.grad(output.nan_to_num(0).sum(), [getattr(layer.cells[0], name)])
        found[engine] = output.detach(), gradient
    for engine in ("serial", "scan"):
        torch.testing.assert_close(found[engine], found["reference"], equal_nan=True)
