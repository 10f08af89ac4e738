"""Linear attention: a matrix memory that keys write to and queries read, and each cell forgets in its own way."""

import math

import torch
from torch import Tensor, cos, exp, relu, rsqrt, sigmoid, sin
from torch.nn.functional import layer_norm, logsigmoid, rms_norm, silu, softplus

from rnnzoo.cell import Bias, Cell, InputWeight, RecurrentWeight, State, Weight
from rnnzoo.cells.ssm import soft_steps
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


class _GatedDelta(Cell):
    """Parameters of the gated delta rule; the decay starts as Mamba-2's does."""

    S = State("hidden", "hidden")
    W_q, W_k, W_v, W_g, W_o = InputWeight(), InputWeight(), InputWeight(), InputWeight(), RecurrentWeight()
    b_q, b_k, b_v = Bias(), Bias(), Bias()
    W_beta, W_alpha = Weight("input", 1), Weight("input", 1)
    log_A, b_alpha = Weight(1, init=lambda tensor: tensor.uniform_(1e-3, 16).log_()), Bias(1, init=soft_steps)
    gain = Weight("hidden", init=1.0)


@register(
    "gated_delta_net",
    source="Yang, Kautz, Hatamizadeh 2025, arXiv:2412.06464, the gated delta rule",
    code="github.com/fla-org/flash-linear-attention at bc3b101, fla/layers/gated_deltanet.py and ops/gated_delta_rule",
    seen="none",
)
class GatedDeltaNet(_GatedDelta):
    """Delta rule, one head, with a memory that also decays as a whole, by α, as Mamba-2's does.

    Differs: biases of q, k and v instead of short convolutions, as in DeltaNet.
    """

    def step(self, x: Tensor, S: Tensor) -> Tensor:
        k, v = silu(x @ self.W_k + self.b_k), silu(x @ self.W_v + self.b_v)
        k = k * rsqrt((k * k).sum(-1, keepdim=True) + 1e-6)
        beta = sigmoid(x @ self.W_beta)
        alpha = exp(-exp(self.log_A) * softplus(x @ self.W_alpha + self.b_alpha))
        old = (S * k[:, None, :]).sum(-1)
        return alpha[:, :, None] * S + (beta * (v - alpha * old))[:, :, None] * k[:, None, :]

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        (S,) = state
        q = silu(x @ self.W_q + self.b_q)
        q = q * rsqrt((q * q).sum(-1, keepdim=True) + 1e-6) / math.sqrt(self.hidden_size)
        o = rms_norm((S @ q.unsqueeze(-1)).squeeze(-1), (self.hidden_size,), self.gain, eps=1e-5)
        return (o * silu(x @ self.W_g)) @ self.W_o


def phi(a: Tensor) -> Tensor:
    """The feature map of linear attention, elu(a) + 1: positive."""
    return relu(a) + exp(a.clamp(max=0))


@register(
    "linear_attention",
    source="Katharopoulos et al. 2020, arXiv:2006.16236, the recurrent form",
    code="github.com/idiap/fast-transformers at 2ad36b9, fast_transformers/recurrent/attention/self_attention/",
    seen="none",
)
class LinearAttention(Cell):
    """Attention without softmax, one head: S sums up values under keys, z the keys alone, which normalises.

    Differs: the residual and the feed-forward layer around it are left out.
    """

    S = State("hidden", "hidden")
    W_Q, W_K, W_V, W_O = InputWeight(), InputWeight(), InputWeight(), RecurrentWeight()
    b_Q, b_K, b_V, b_O = Bias(), Bias(), Bias(), Bias()

    def step(self, x: Tensor, S: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        k, v = phi(x @ self.W_K + self.b_K), x @ self.W_V + self.b_V
        return S + k[:, :, None] * v[:, None, :], z + k

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        S, z = state
        q = phi(x @ self.W_Q + self.b_Q)
        y = (q.unsqueeze(-2) @ S).squeeze(-2) / ((q * z).sum(-1, keepdim=True) + 1e-6)
        return y @ self.W_O + self.b_O


@register(
    "hgrn2",
    source="Qin et al. 2024, arXiv:2404.07904",
    code="github.com/Doraemonzzz/hgru2-pytorch at caf92f0, hgru2_pytorch/modules/hgru2_1d.py",
    seen="none",
)
class HGRN2(Cell):
    """HGRN, one head, its state expanded to a matrix: what a row does not keep, 1 - f, is the key that writes to it.

    Differs: γ is given, as in HGRN. V passes through SiLU and the output is normalised, as in the authors' code.
    """

    gamma: float = 0.0
    S = State("hidden", "hidden")
    W_f, b_f = InputWeight(), Bias(role="forget")
    W_i, b_i, W_o, b_o = InputWeight(), Bias(), InputWeight(), Bias()
    scale, shift = Weight("hidden", init=1.0), Bias()
    W_y, b_y = RecurrentWeight(), Bias()

    def step(self, x: Tensor, S: Tensor) -> Tensor:
        i = silu(x @ self.W_i + self.b_i)
        f = self.gamma + (1 - self.gamma) * sigmoid(x @ self.W_f + self.b_f)
        return f[:, :, None] * S + (1 - f)[:, :, None] * i[:, None, :]

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        (S,) = state
        o = sigmoid(x @ self.W_o + self.b_o)
        y = layer_norm((o.unsqueeze(-2) @ S).squeeze(-2), (self.hidden_size,), self.scale, self.shift)
        return y @ self.W_y + self.b_y
