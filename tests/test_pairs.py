"""Steps with complex numbers: compiled as pairs of real ones, they equal the plain loop; what cannot be is named.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rnnzoo import Cell, InputWeight, Recurrent, State, UserError, Weight
from rnnzoo.engine import ENGINES, serial

pytestmark = pytest.mark.usefixtures("shared_kernels", "empty_memory_is_nan")

T, B, I, H = 7, 3, 4, 5  # noqa: E741  I is the input size everywhere in this project


class Turning(Cell):
    """Each unit is a complex number that turns by an angle and decays."""

    log_nu, theta = Weight("hidden", init=-1.0), Weight("hidden", init=lambda t: t.uniform_(0, 3))
    B_re, B_im = InputWeight(), InputWeight()

    def step(self, x: Tensor, re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
        turn = torch.polar(torch.exp(-torch.exp(self.log_nu)), self.theta)
        z = turn * torch.complex(re, im) + (x + 0j) @ torch.complex(self.B_re, self.B_im)
        return z.real, z.imag

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        return torch.complex(*state).abs()


class Saturating(Cell):
    """All units are mixed, and no number leaves the unit circle; the state holds both parts side by side."""

    h = State("hidden", 2)
    U_re, U_im, theta, b = Weight("hidden", "hidden"), Weight("hidden", "hidden"), Weight("hidden"), Weight("hidden")
    B_re, B_im = InputWeight(), InputWeight()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        z = torch.view_as_complex(h) @ torch.complex(self.U_re, self.U_im)
        z = z * torch.exp(1j * self.theta) + torch.complex(x @ self.B_re, x @ self.B_im)
        size = torch.relu(z.abs() + self.b)
        return torch.view_as_real(torch.sgn(z) * size / (1 + size))


def results(kind: type[Cell], engine: str) -> list[Tensor]:
    """Output, last states, and the gradients of input, first states and parameters, of sequences of several lengths."""
    torch.manual_seed(0)
    layer = Recurrent(kind, I, H, engine=engine).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    first = [torch.randn_like(s)[None].requires_grad_() for s in layer.cells[0].initial_state(x[0])]
    output, last = layer(x, tuple(first) if len(first) > 1 else first[0], lengths=[T, 2, 5])
    last = last if isinstance(last, tuple) else (last,)
    loss = (output * torch.randn_like(output)).sum() + sum(s.sum() for s in last)
    return [output, *last, *torch.autograd.grad(loss, [x, *first, *layer.parameters()])]


@pytest.mark.parametrize(("kind", "engine"), [(Turning, "serial"), (Turning, "scan"), (Saturating, "serial")])
def test_equals_the_plain_loop(kind: type[Cell], engine: str) -> None:
    cell = kind(I, H)
    assert ENGINES[engine].refuses(cell) is None and serial.lacks(cell) is None
    for found, expected in zip(results(kind, engine), results(kind, "reference"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_turning_is_what_it_says() -> None:
    """From one state without input: its size decays by exp(-exp(log ν)) a step, its angle grows by θ."""
    layer = Recurrent(Turning, I, H, engine="serial").double()
    first = torch.randn(2, 1, B, H, dtype=torch.float64)
    _, last = layer(torch.zeros(T, B, I, dtype=torch.float64), tuple(first))
    power = torch.exp(T * (1j * layer.cells[0].theta - torch.exp(layer.cells[0].log_nu)))
    torch.testing.assert_close(torch.complex(*last), torch.complex(*first) * power)


class Held(Cell):
    W = InputWeight()

    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.register_buffer("turn", torch.exp(1j * torch.arange(self.hidden_size)))

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return (self.turn * h).real + x @ self.W


class Returned(Cell):
    W = InputWeight()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return 1j * h + x @ self.W


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Held, "it reads complex numbers; declare their parts, as the cell lru does"),
        (Returned, "step returns h as torch.complex64, and was given torch.float32"),
    ],
)
def test_what_cannot_be_pairs_is_named(kind: type[Cell], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Recurrent(kind, I, H, engine="serial")(torch.randn(T, B, I))
