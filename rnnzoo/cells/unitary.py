"""Recurrent matrices that keep the state's length, as products of layers of rotations in planes of two units.

States hold the first of each pair of units in their first half and the second in the other, e and o. A layer turns the
pairs (e_k, o_k), the next one (o_k, e_{k+1}), without the two ends of the row. An odd H is rounded up.
"""

import math

import torch
from torch import Tensor, cos, nn, relu, roll, sigmoid, sign, sin, sqrt

from rnnzoo.cell import Bias, Cell, State, Weight
from rnnzoo.registry import register


def angles(tensor: Tensor) -> None:
    nn.init.uniform_(tensor, -math.pi, math.pi)


def small(tensor: Tensor) -> None:
    nn.init.uniform_(tensor, -0.01, 0.01)


def turned(a: Tensor, b: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """The points (a, b) turned by an angle."""
    return cos(angle) * a - sin(angle) * b, sin(angle) * a + cos(angle) * b


def _small_gate(bias: float) -> tuple[Weight, Weight, Bias]:
    return Weight("input", "units", init=small), Weight("units", "units", init=small), Bias("units", init=bias)


class _Rotations(Cell):
    """The angles of `capacity` layers; in every other one the last pair, made of the row's ends, is not turned."""

    capacity: int = 2
    pairs = property(lambda self: (self.hidden_size + 1) // 2)
    units = property(lambda self: 2 * self.pairs)
    theta = Weight("capacity", "pairs", init=angles)
    turns = Weight("capacity", "pairs", init="but_ends", trainable=False)

    def but_ends(self, tensor: Tensor) -> None:
        tensor.fill_(1)[1::2, -1] = 0


@register(
    "goru",
    source="Jing et al. 2017, arXiv:1706.02761",
    code="github.com/jingli9111/GORU-tensorflow at 0ea3c04, goru.py, tunable",
    seen="none",
)
class GORU(_Rotations):
    """Gated orthogonal recurrent unit: a GRU that rotates its state where a GRU multiplies it, and forgets by gates.

    Differs: modReLU without the 0.001 that the code adds to |z|; b_g starts at 0.
    """

    h = State("units")
    U_c, b_c = Weight("input", "units", init=small), Bias("units", init=0.01)
    U_r, W_r, b_r = _small_gate(2.0)
    U_g, W_g, b_g = _small_gate(0.0)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        r = sigmoid(x @ self.U_r + h @ self.W_r + self.b_r)
        g = sigmoid(x @ self.U_g + h @ self.W_g + self.b_g)
        e, o = h.chunk(2, -1)
        for k in range(self.capacity):
            theta = self.theta[k] * self.turns[k]
            a, b = (e, o) if k % 2 == 0 else (o, roll(e, -1, -1))
            a, b = turned(a, b, theta)
            e, o = (a, b) if k % 2 == 0 else (roll(b, 1, -1), a)
        z = r * torch.cat([e, o], -1) + x @ self.U_c
        return g * h + (1 - g) * sign(z) * relu(z.abs() + self.b_c)


class _EUNN(_Rotations):
    """Parameters of the unitary network: rotations with phases phi, phases omega of the units, and inputs."""

    re, im = State("units"), State("units")
    phi, omega = Weight("capacity", "pairs", init=angles), Weight("units", init=angles)
    U_re, U_im, b = Weight("input", "units", init=small), Weight("input", "units", init=small), Bias("units", init=0.01)


@register(
    "eunn",
    source="Jing et al. 2017, arXiv:1612.05231",
    code="github.com/jingli9111/EUNN-tensorflow at 33d749d, eunn.py, tunable",
    seen="none",
)
class EUNN(_EUNN):
    """A complex state that a unitary matrix turns, tunable in capacity; modReLU follows. The output is [re, im].

    Differs: |z|² has 1e-6 added under modReLU's root, where the code adds 0.01 to |z|.
    """

    def step(self, x: Tensor, re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
        (e, o), (e_im, o_im) = re.chunk(2, -1), im.chunk(2, -1)
        for k in range(self.capacity):
            theta, phi = self.theta[k] * self.turns[k], self.phi[k] * self.turns[k]
            a, b, a_im, b_im = (e, o, e_im, o_im) if k % 2 == 0 else (o, roll(e, -1, -1), o_im, roll(e_im, -1, -1))
            b, b_im = turned(b, b_im, phi)
            (a, b), (a_im, b_im) = turned(a, b, theta), turned(a_im, b_im, theta)
            e, o, e_im, o_im = (a, b, a_im, b_im) if k % 2 == 0 else (roll(b, 1, -1), a, roll(b_im, 1, -1), a_im)
        h, h_im = turned(torch.cat([e, o], -1), torch.cat([e_im, o_im], -1), self.omega)
        z, z_im = h + x @ self.U_re, h_im + x @ self.U_im
        norm = sqrt(z * z + z_im * z_im + 1e-6)
        scale = relu(norm + self.b) / norm
        return scale * z, scale * z_im

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        return torch.cat(state, -1)

    output_size = property(lambda self: 2 * self.units)
