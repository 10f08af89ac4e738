"""RWKV: linear attention whose keys and values see a mixture of this and the previous input."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, exp, maximum, nn, rsqrt, sigmoid, tanh, where

from rnnzoo.cell import Cell, InputWeight, RecurrentWeight, State, Weight
from rnnzoo.registry import register

RWKV = "github.com/BlinkDL/RWKV-LM at 524481d, "


def rising(power: float) -> Callable[[Tensor], object]:
    """From 0 to 1 over the features, to this power."""
    return lambda tensor: tensor.copy_((torch.arange(len(tensor)) / len(tensor)) ** power)


def falling(power: float) -> Callable[[Tensor], object]:
    return lambda tensor: tensor.copy_(1 - (torch.arange(len(tensor)) / len(tensor)) ** power)


class _RWKV4(Cell):
    """Parameters of RWKV-4, with the values that its authors start the first layer from."""

    prev = State("input")
    mu_r, mu_k = Weight("input", init=rising(0.5)), Weight("input", init=rising(1))
    mu_v = Weight("input", init=rising(1))
    W_r, W_k, W_v, W_o = InputWeight(), InputWeight(), InputWeight(), RecurrentWeight()
    log_w, u = Weight("hidden", init="speeds"), Weight("hidden", init="bonus")

    def speeds(self, tensor: Tensor) -> None:
        tensor.copy_(8 * torch.linspace(0, 1, len(tensor)) ** 0.7 - 5)

    def bonus(self, tensor: Tensor) -> None:
        tensor.copy_(math.log(0.3) + 0.5 * ((torch.arange(len(tensor)) + 1) % 3 - 1))


@register(
    "rwkv4",
    source="Peng et al. 2023, arXiv:2305.13048, time mixing, in its stable form",
    code=f"{RWKV}RWKV-v4/src/model_run.py and model.py",
    seen="none",
)
class RWKV4(_RWKV4):
    """An average of all values so far, weighted by exp(k) and by time; a and b are its sums, both divided by exp(p).

    Differs: matrices do not start at zero; where b is 0 the exponent p starts anew, for the authors' p = -∞ at first.
    """

    def step(self, x: Tensor, o: Tensor, a: Tensor, b: Tensor, p: Tensor, prev: Tensor) -> tuple[Tensor, ...]:
        r = (self.mu_r * x + (1 - self.mu_r) * prev) @ self.W_r
        k = (self.mu_k * x + (1 - self.mu_k) * prev) @ self.W_k
        v = (self.mu_v * x + (1 - self.mu_v) * prev) @ self.W_v
        q = where(b == 0, self.u + k, maximum(p, self.u + k))
        e_1, e_2 = exp((p - q).clamp(max=0)), exp(self.u + k - q)
        wkv = (e_1 * a + e_2 * v) / (e_1 * b + e_2)
        q = where(b == 0, k, maximum(p - exp(self.log_w), k))
        e_1, e_2 = exp((p - exp(self.log_w) - q).clamp(max=0)), exp(k - q)
        return sigmoid(r) * wkv, e_1 * a + e_2 * v, e_1 * b + e_2, q, x

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        return state[0] @ self.W_o


class _Start(Cell):
    """The values that the authors start the first layer of RWKV-7 from; z runs from -1 to 1 over the head."""

    def speeds(self, tensor: Tensor) -> None:
        z = torch.linspace(-1, 1, len(tensor))
        tensor.copy_(6 * (z + 1) / 2 - 5.5 + 2.5 * z * z.abs())

    def rates(self, tensor: Tensor) -> None:
        z = torch.linspace(-1, 1, len(tensor))
        tensor.copy_(0.3 * z * z.abs() + 0.2 * z - 0.19)

    def keys(self, tensor: Tensor) -> None:
        tensor.copy_(0.71 - 0.05 * torch.linspace(-1, 1, len(tensor)))

    def small(self, tensor: Tensor) -> None:
        nn.init.orthogonal_(tensor, gain=0.1)


class _RWKV7(_Start):
    """Parameters of RWKV-7; `rank` is that of its low-rank maps."""

    rank: int = 32
    S, prev = State("hidden", "hidden"), State("input")
    mu_r, mu_g = Weight("input", init=falling(0.2)), Weight("input", init=falling(0.2))
    mu_k, mu_v = Weight("input", init=falling(0.7)), Weight("input", init=falling(0.7))
    mu_w, mu_a = Weight("input", init=falling(0.9)), Weight("input", init=falling(0.9))
    W_r, W_k, W_v, W_o = InputWeight(), InputWeight(), InputWeight(), RecurrentWeight()
    w_0, w_1, w_2 = Weight("hidden", init="speeds"), Weight("input", "rank"), Weight("rank", "hidden", init="small")
    a_0, a_1, a_2 = Weight("hidden", init="rates"), Weight("input", "rank"), Weight("rank", "hidden", init="small")
    g_1, g_2 = Weight("input", "rank"), Weight("rank", "hidden")
    k_k, k_a, r_k = Weight("hidden", init="keys"), Weight("hidden", init=1.02), Weight("hidden", init=-0.04)
    scale, shift = Weight("hidden", init=1.0), Weight("hidden")


@register(
    "rwkv7",
    source="Peng et al. 2025, arXiv:2503.14456, time mixing",
    code=f"{RWKV}RWKV-v7/rwkv_v7_numpy.py and train_temp/src/model.py",
    seen="none",
)
class RWKV7(_RWKV7):
    """A generalised delta rule, one head: units decay at their own rates w, are overwritten at rates a, and k is apart.

    Differs: the share of the first layer's values is left out. r, k, v, o and the first low-rank maps do not start at
    (or near) zero; 1e-12 bounds the slope of the norm of keys.
    """

    def step(self, x: Tensor, y: Tensor, S: Tensor, prev: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r, k, v = (x + mu * (prev - x) for mu in (self.mu_r, self.mu_k, self.mu_v))
        w, a, g = (x + mu * (prev - x) for mu in (self.mu_w, self.mu_a, self.mu_g))
        r, k, v = r @ self.W_r, k @ self.W_k, v @ self.W_v
        w = exp(-math.exp(-0.5) * sigmoid(self.w_0 + tanh(w @ self.w_1) @ self.w_2))
        a, g = sigmoid(self.a_0 + a @ self.a_1 @ self.a_2), sigmoid(g @ self.g_1) @ self.g_2
        kappa = k * self.k_k
        kappa, k = kappa * rsqrt((kappa * kappa).sum(-1, keepdim=True) + 1e-12), k * (1 + (a - 1) * self.k_a)
        old = (S * kappa[:, None, :]).sum(-1)
        S = S * w[:, None, :] - old[:, :, None] * (kappa * a)[:, None, :] + v[:, :, None] * k[:, None, :]
        y = (S * r[:, None, :]).sum(-1)
        y = y - y.mean(-1, keepdim=True)
        y = y * rsqrt((y * y).mean(-1, keepdim=True) + 64e-5) * self.scale + self.shift
        return g * (y + (r * k * self.r_k).sum(-1, keepdim=True) * v), S, x

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        return state[0] @ self.W_o
