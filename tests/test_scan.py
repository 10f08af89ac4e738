"""Pairs of states that are the parts of a complex one: which are recognised, and that they equal the plain loop.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, exp, sigmoid

from rnnzoo import Cell, Recurrent, get
from rnnzoo.cell import Diagonal, InputWeight, RecurrentWeight, Scalar
from rnnzoo.engine import kind, scan

B, I, H = 3, 2, 4  # noqa: E741

pytestmark = pytest.mark.usefixtures("empty_memory_is_nan")


class Turning(Cell):
    """Parameters of the cells below."""

    W, V, U = InputWeight(), InputWeight(), RecurrentWeight()
    c, s, d, k = Diagonal(init=0.6), Diagonal(init=0.7), Diagonal(init=0.5), Scalar(init=0.4)

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        return state[0] + 2 * state[1]


class Plain(Turning):
    def step(self, x: Tensor, re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
        return self.c * re - self.s * im + x @ self.W, self.s * re + self.c * im + x @ self.V


class Backwards(Turning):
    """The parts the other way round, factors in another order, and a sign within."""

    def step(self, x: Tensor, im: Tensor, re: Tensor) -> tuple[Tensor, Tensor]:
        return im * self.c + re * self.s + x @ self.V, -(im * self.s - (x @ self.W)) + re * self.c


class Gated(Turning):
    """A gate before the bracket, so that both factors are products; im is only turned, nothing is added."""

    def step(self, x: Tensor, re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
        f = sigmoid(x @ self.W)
        return f * (self.c * re - self.s * im) + (1 - f) * (x @ self.V), f * (self.s * re + self.c * im)


class Quarter(Turning):
    """Turned by a right angle and halved: factors that are numbers."""

    def step(self, x: Tensor, re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
        return -0.5 * im + x @ self.W, 0.5 * re + x @ self.V


class Followed(Turning):
    """A state behind the pair that reads both of its parts, and one before it."""

    def step(self, x: Tensor, g: Tensor, re: Tensor, im: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        g = self.d * g + x @ self.W
        new_re, new_im = self.c * re - self.s * im + g, self.s * re + self.c * im + x @ self.V
        return g, new_re, new_im, exp(-self.k) * h + new_re @ self.U * im


class Mirrored(Turning):
    """[c, s; s, -c] mirrors: not the product by a complex number."""

    def step(self, x: Tensor, re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
        return self.c * re + self.s * im + x @ self.W, self.s * re - self.c * im + x @ self.V


class Sheared(Turning):
    def step(self, x: Tensor, re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
        return self.c * re - self.s * im + x @ self.W, self.s * re + self.d * im + x @ self.V


class Bent(Turning):
    def step(self, x: Tensor, re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
        return self.c * re - self.s * im * re + x @ self.W, self.s * re + self.c * im


PAIRS = [Plain, Backwards, Gated, Quarter, Followed, *map(get, ("lru", "hgrn", "s4d", "s5"))]


@pytest.mark.parametrize("cell", PAIRS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("T", [1, 7, 200])
@pytest.mark.parametrize("form", ["plain", "lengths", "resets"])
def test_a_complex_state_equals_its_parts(cell: type[Cell], T: int, form: str) -> None:
    """Outputs, states and every gradient in float64, from states drawn at random, also in chunks."""
    torch.manual_seed(0)
    layer = Recurrent(cell, I, H).double()
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    state = [torch.randn(s.shape, dtype=torch.float64, requires_grad=True) for s in layer(x)[1]]
    options = {
        "plain": {},
        "lengths": {"lengths": torch.tensor([T, 1, (T + 1) // 2])},
        "resets": {"resets": torch.rand(T, B) < 0.2},
    }[form]
    found = []
    for engine in ("reference", "scan"):
        layer.engine = engine
        output, final = layer(x, tuple(state), **options)
        weights = [torch.randn(part.shape, generator=torch.Generator().manual_seed(1)) for part in (output, *final)]
        loss = sum((part * weight).sum() for part, weight in zip((output, *final), weights))
        wanted = [x, *state, *(p for p in layer.parameters() if p.requires_grad)]
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        found.append([output, *final, *(g if g is not None else torch.zeros(()) for g in gradients)])
    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(
            actual, expected, rtol=1e-9, atol=1e-10 * max(1, float(expected.detach().abs().max()))
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_keeps_the_type_of_its_parts(dtype: torch.dtype) -> None:
    layer = Recurrent("lru", I, H, engine="scan").to(dtype)
    output, state = layer(torch.randn(9, B, I, dtype=dtype))
    assert {part.dtype for part in (output, *state)} == {dtype}


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        (Mirrored, "not as parts of a complex number"),
        (Sheared, "not as parts of a complex number"),
        (Bent, "re and im is multiplied or divided by itself"),
        (get("lem"), "depend on each other|applied to"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_complex_state_is_refused(cell: type[Cell], why: str) -> None:
    refused = scan.refuses(cell(I, H))
    assert refused is not None and any(part in refused for part in why.split("|"))


def test_it_is_called_parallel() -> None:
    assert all(kind(cell(I, H)) == "parallel" for cell in PAIRS)
