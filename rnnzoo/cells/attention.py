"""Linear attention: a matrix memory that keys write to and queries read, and each cell forgets in its own way."""

import math

import torch
from torch import Tensor, cos, exp, rsqrt, sigmoid, sin
from torch.nn.functional import layer_norm, logsigmoid, rms_norm, silu

from rnnzoo.cell import Bias, Cell, InputWeight, RecurrentWeight, State, Weight
from rnnzoo.registry import register


class _Memory(Cell):
    """Parameters of a matrix memory of one head; keys are half as wide as values, as in both papers below."""

    S = State("key_size", "hidden")
    W_Q, W_K = Weight("input", "key_size"), Weight("input", "key_size")
    b_Q, b_K, b_V, b_G = Bias("key_size"), Bias("key_size"), Bias(), Bias()
    W_V, W_G, W_O = InputWeight(), InputWeight(), RecurrentWeight()

    @property
    def key_size(self) -> int:
        return 2 * math.ceil(self.hidden_size / 4)


@register(
    "gla",
    source="Yang et al. 2023, arXiv:2312.06635",
    code="github.com/berlino/gated_linear_attention at 9d83fa0, gla.py",
)
class GLA(_Memory):
    """Gated linear attention, one head: a matrix memory whose rows decay at rates that see the input.

    Differs: biases of q, k and v, without which little is left of a single feature once o is normalised. Keys scale by
    (d_model / heads)^(-1/2) as in the authors' code, where q, k and α start smaller, with a gain of 2^(-2.5).
    """

    rank: int = 16
    tau: float = 16.0
    W_1, W_2 = Weight("input", "rank"), Weight("rank", "key_size")
    b_alpha = Bias("key_size", role="forget")

    def step(self, x: Tensor, S: Tensor) -> Tensor:
        k, v = (x @ self.W_K + self.b_K) / math.sqrt(self.hidden_size), x @ self.W_V + self.b_V
        alpha = exp(logsigmoid(x @ self.W_1 @ self.W_2 + self.b_alpha) / self.tau)
        return alpha[:, :, None] * S + k[:, :, None] * v[:, None, :]

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        (S,) = state
        o = ((x @ self.W_Q + self.b_Q).unsqueeze(-2) @ S).squeeze(-2)
        return (silu(x @ self.W_G + self.b_G) * layer_norm(o, (self.hidden_size,))) @ self.W_O


def rotate(a: Tensor, angle: Tensor) -> Tensor:
    """Turn the pairs (a_k, a_{k + n/2}) by their angles."""
    first, second = a.chunk(2, -1)
    return a * cos(angle) + torch.cat([-second, first], -1) * sin(angle)


@register(
    "retention",
    source="Sun et al. 2023, arXiv:2307.08621, section 2.1 and 2.2",
    code="github.com/microsoft/torchscale at 4d1e0e8, torchscale/component/multiscale_retention.py",
)
class Retention(_Memory):
    """Retention, one head: a matrix memory with a fixed decay; keys and queries turn with the time n.

    Differs: γ is that of the paper's first head; biases as in GLA. In the authors' code pairs are neighbours, the norm
    is an RMS norm, the memory is scaled down as it fills, and matrices start smaller, by gains of 2^(-2.5), W_O of 1/2.
    """

    gamma: float = 1 - 2**-5
    n, theta = State(1), Weight("key_size", init="angles", trainable=False)

    def angles(self, tensor: Tensor) -> None:
        tensor.copy_(10000 ** -torch.linspace(0, 1, len(tensor) // 2).repeat(2))

    def step(self, x: Tensor, S: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        n = n + 1
        k = rotate(x @ self.W_K + self.b_K, n * self.theta) / math.sqrt(self.key_size)
        v = x @ self.W_V + self.b_V
        return self.gamma * S + k[:, :, None] * v[:, None, :], n

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        S, n = state
        q = rotate(x @ self.W_Q + self.b_Q, n * self.theta)
        o = (q.unsqueeze(-2) @ S).squeeze(-2)
        return (silu(x @ self.W_G + self.b_G) * layer_norm(o, (self.hidden_size,))) @ self.W_O


@register(
    "delta_net",
    source="Yang et al. 2024, arXiv:2406.06484",
    code="github.com/fla-org/flash-linear-attention at bc3b101, fla/layers/delta_net.py",
)
class DeltaNet(Cell):
    """Delta rule, one head: a matrix memory in which what is stored under a key moves towards its new value.

    Differs: biases as in GLA instead of the short convolutions that precede q, k and v in the paper, as their code has
    it without those but for the biases: v passes through SiLU too, and q is scaled before the output is normalised.
    """

    S = State("hidden", "hidden")
    W_q, W_k, W_v, W_beta = InputWeight(), InputWeight(), InputWeight(), Weight("input", 1)
    b_q, b_k, b_v = Bias(), Bias(), Bias()
    gain, W_o = Weight("hidden", init=1.0), RecurrentWeight()

    def step(self, x: Tensor, S: Tensor) -> Tensor:
        k, v = silu(x @ self.W_k + self.b_k), silu(x @ self.W_v + self.b_v)
        k = k * rsqrt((k * k).sum(-1, keepdim=True) + 1e-6)
        beta = sigmoid(x @ self.W_beta)
        old = (S * k[:, None, :]).sum(-1)
        return S + (beta * (v - old))[:, :, None] * k[:, None, :]

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        (S,) = state
        q = silu(x @ self.W_q + self.b_q)
        q = q * rsqrt((q * q).sum(-1, keepdim=True) + 1e-6) / math.sqrt(self.hidden_size)
        return rms_norm((S @ q.unsqueeze(-1)).squeeze(-1), (self.hidden_size,), self.gain, eps=1e-5) @ self.W_o
