"""Linear recurrences: the old state enters the new one linearly, through gates that see only the input."""

import math
from typing import Literal

import torch
from torch import Tensor, cos, exp, expm1, rsqrt, sigmoid, sin, sqrt, tanh
from torch.nn.functional import layer_norm, logsigmoid, rms_norm, silu, softplus

from rnnzoo.cell import Bias, Cell, Diagonal, InputWeight, RawInput, RecurrentWeight, State, Weight
from rnnzoo.registry import register


class _Window(Cell):
    """Parameters of three gates that see this input (W) and the previous one (V), which is a state."""

    prev = State("input")
    W_z, V_z, b_z = InputWeight(), InputWeight(), Bias()
    W_f, V_f, b_f = InputWeight(), InputWeight(), Bias(role="forget")
    W_o, V_o, b_o = InputWeight(), InputWeight(), Bias()


@register(
    "qrnn",
    source="Bradbury et al. 2016, arXiv:1611.01576, section 2",
    code="github.com/salesforce/pytorch-qrnn, torchqrnn/qrnn.py",
)
class QRNN(_Window):
    """Quasi-recurrent: gates from a convolution over two inputs; all that recurs is an average over time.

    Differs: biases, as in the authors' code. f keeps the old state as in the paper; in the code it admits the new.
    """

    def step(self, x: Tensor, h: Tensor, c: Tensor, prev: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = tanh(prev @ self.V_z + x @ self.W_z + self.b_z)
        f = sigmoid(prev @ self.V_f + x @ self.W_f + self.b_f)
        o = sigmoid(prev @ self.V_o + x @ self.W_o + self.b_o)
        c = f * c + (1 - f) * z
        h = o * c
        return h, c, x


def whole(tensor: Tensor, variance: float = 1.0) -> None:
    """Uniform, such that inputs of variance 1 give sums of this variance."""
    bound = math.sqrt(3 * variance / (len(tensor) if tensor.dim() > 1 else 1))
    torch.nn.init.uniform_(tensor, -bound, bound)


def half(tensor: Tensor) -> None:
    whole(tensor, 0.5)


@register("sru_parallel", source="Lei & Zhang 2017, arXiv:1709.02755v1", code="github.com/asappresearch/sru, sru/")
class ParallelSRU(Cell):
    """Simple recurrent unit as first published: its gates see only the input.

    Differs: x is scaled by the later version's α; where I ≠ H, RawInput stands for the matrix that the authors learn.
    """

    activation: Literal["tanh", "identity"] = "tanh"
    highway_bias: float = 0.0
    W, W_f, W_r = InputWeight(init=whole), InputWeight(init=whole), InputWeight(init=whole)
    b_f, b_r = Bias(role="forget"), Bias(init="highway_bias")
    X = RawInput()

    def step(self, x: Tensor, c: Tensor) -> Tensor:
        f = sigmoid(x @ self.W_f + self.b_f)
        return f * c + (1 - f) * (x @ self.W)

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        (c,) = state
        g = tanh(c) if self.activation == "tanh" else c
        alpha = math.sqrt(1 + 2 * math.exp(self.highway_bias))
        r = sigmoid(x @ self.W_r + self.b_r)
        return r * g + (1 - r) * alpha * (x @ self.X)


@register("sru", source="Lei et al. 2018, arXiv:1709.02755, section 2", code="github.com/asappresearch/sru, sru/ops.py")
class SRU(Cell):
    """Simple recurrent unit: an average of inputs and a highway past it; both gates also see the old state.

    Differs: where I ≠ H, RawInput stands for the matrix that the authors learn.
    """

    highway_bias: float = 0.0
    W, W_f, W_r = InputWeight(init=whole), InputWeight(init=half), InputWeight(init=half)
    v_f, v_r = Diagonal(init=half), Diagonal(init=half)
    b_f, b_r = Bias(role="forget"), Bias(init="highway_bias")
    X = RawInput()

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        alpha = math.sqrt(1 + 2 * math.exp(self.highway_bias))
        f = sigmoid(x @ self.W_f + self.v_f * c + self.b_f)
        r = sigmoid(x @ self.W_r + self.v_r * c + self.b_r)
        c = f * c + (1 - f) * (x @ self.W)
        h = r * c + (1 - r) * alpha * (x @ self.X)
        return h, c


def positive(a: Tensor) -> Tensor:
    """g of the minimal units: continuous and increasing, and above zero, so that a logarithm can be taken."""
    return torch.where(a >= 0, a + 0.5, sigmoid(a))


@register(
    "min_gru",
    source="Feng et al. 2024, arXiv:2410.01201, algorithms 1 and 5",
    code="github.com/BorealisAI/minRNNs, models/minRNNs.py",
)
class MinGRU(Cell):
    """A GRU whose gate sees only the input; the candidate is positive as in appendix B, or linear as in the text."""

    candidate: Literal["positive", "linear"] = "positive"
    W_z, b_z = InputWeight(), Bias(role="update")
    W_h, b_h = InputWeight(), Bias()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        z = sigmoid(x @ self.W_z + self.b_z)
        a = x @ self.W_h + self.b_h
        return (1 - z) * h + z * (positive(a) if self.candidate == "positive" else a)


@register(
    "min_lstm",
    source="Feng et al. 2024, arXiv:2410.01201, algorithms 3 and 7",
    code="github.com/BorealisAI/minRNNs, models/minRNNs.py",
)
class MinLSTM(Cell):
    """An LSTM whose gates see only the input and are scaled to sum to one; candidates as in the minimal GRU.

    Differs: f / (f + i) is written so that two closed gates are not 0 / 0.
    """

    candidate: Literal["positive", "linear"] = "positive"
    W_f, b_f = InputWeight(), Bias(role="forget")
    W_i, b_i = InputWeight(), Bias(role="input")
    W_h, b_h = InputWeight(), Bias()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        f = sigmoid(logsigmoid(x @ self.W_f + self.b_f) - logsigmoid(x @ self.W_i + self.b_i))
        a = x @ self.W_h + self.b_h
        return f * h + (1 - f) * (positive(a) if self.candidate == "positive" else a)


@register("t_rnn", source="Balduzzi & Ghifary 2016, arXiv:1602.02218, T-RNN", package="torchrecurrent.TRNNCell")
class TRNN(Cell):
    """Strongly-typed RNN: a running average of linear features; the gate sees only the input."""

    W = InputWeight()
    W_f, b_f = InputWeight(), Bias(role="forget")

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        z = x @ self.W
        f = sigmoid(x @ self.W_f + self.b_f)
        return f * h + (1 - f) * z


@register("t_gru", source="Balduzzi & Ghifary 2016, arXiv:1602.02218, T-GRU", package="torchrecurrent.TGRUCell")
class TGRU(_Window):
    """Strongly-typed GRU: gates see this and the previous input instead of the state."""

    def step(self, x: Tensor, h: Tensor, prev: Tensor) -> tuple[Tensor, Tensor]:
        z = prev @ self.V_z + x @ self.W_z + self.b_z
        f = sigmoid(prev @ self.V_f + x @ self.W_f + self.b_f)
        o = tanh(prev @ self.V_o + x @ self.W_o + self.b_o)
        h = f * h + z * o
        return h, x


@register("t_lstm", source="Balduzzi & Ghifary 2016, arXiv:1602.02218, T-LSTM", package="torchrecurrent.TLSTMCell")
class TLSTM(_Window):
    """Strongly-typed LSTM: a running average read through a gate; gates see this and the previous input."""

    def step(self, x: Tensor, h: Tensor, c: Tensor, prev: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = prev @ self.V_z + x @ self.W_z + self.b_z
        f = sigmoid(prev @ self.V_f + x @ self.W_f + self.b_f)
        o = tanh(prev @ self.V_o + x @ self.W_o + self.b_o)
        c = f * c + (1 - f) * z
        h = c * o
        return h, c, x


class _LRU(Cell):
    """Parameters of the linear recurrent unit; λ starts on a ring in the complex plane."""

    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 6.28
    log_nu, log_theta = Weight("hidden", init="ring"), Weight("hidden", init="phase")
    log_gamma = Weight("hidden", init="norm")
    B_re, B_im, D = InputWeight(), InputWeight(), InputWeight()
    C_re, C_im = (
        RecurrentWeight(init=torch.nn.init.xavier_uniform_),
        RecurrentWeight(init=torch.nn.init.xavier_uniform_),
    )

    def ring(self, tensor: Tensor) -> None:
        """|λ|² is uniform between r_min² and r_max², short of 0 and 1, where logarithms end."""
        tensor.uniform_(max(self.r_min**2, 1e-6), min(self.r_max**2, 1 - 1e-6)).log_().mul_(-0.5).log_()

    def phase(self, tensor: Tensor) -> None:
        tensor.uniform_(1e-6, self.max_phase).log_()

    def norm(self, tensor: Tensor) -> None:
        """γ² = 1 - |λ|², so that the state has the variance of its input."""
        tensor.copy_(torch.log(-expm1(-2 * exp(self.log_nu))) / 2)


@register("lru", source="Orvieto et al. 2023, arXiv:2303.06349, section 3")
class LRU(_LRU):
    """Linear recurrent unit: each unit is a complex number that turns and decays at its own learned rate.

    Differs: D is a matrix, because I need not be H.
    """

    def step(self, x: Tensor, re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
        r, theta, gamma = exp(-exp(self.log_nu)), exp(self.log_theta), exp(self.log_gamma)
        lambda_re, lambda_im = r * cos(theta), r * sin(theta)
        new_re = lambda_re * re - lambda_im * im + gamma * (x @ self.B_re)
        new_im = lambda_im * re + lambda_re * im + gamma * (x @ self.B_im)
        return new_re, new_im

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        re, im = state
        return re @ self.C_re - im @ self.C_im + x @ self.D


@register(
    "rg_lru",
    source="De et al. 2024, arXiv:2402.19427, section 2.4",
    code="github.com/google-deepmind/recurrentgemma, recurrentgemma/torch/layers.py",
)
class RGLRU(Cell):
    """Real-gated linear recurrent unit: a leaky sum of gated inputs, whose leak is gated too.

    Differs: x W stands for x, as in the paper's block. a = sigmoid(-Λ) as in the authors' code, which lets the first
    input in unscaled, has block-diagonal gates, and starts a, not a^c, in [0.9, 0.999]; 1e-12 bounds the root's slope.
    """

    c: float = 8.0
    W, Lambda = InputWeight(), Weight("hidden", init="ring")
    W_a, b_a = Weight("hidden", "hidden"), Bias()
    W_x, b_x = Weight("hidden", "hidden"), Bias(role="input")

    def ring(self, tensor: Tensor) -> None:
        tensor.uniform_(0.9, 0.999).log_().div_(-self.c).expm1_().log_()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        x = x @ self.W
        r = sigmoid(x @ self.W_a + self.b_a)
        i = sigmoid(x @ self.W_x + self.b_x)
        log_a = -self.c * softplus(self.Lambda) * r
        return exp(log_a) * h + sqrt(1e-12 - expm1(2 * log_a)) * (i * x)


class _HGRN(Cell):
    """Parameters of the hierarchically gated recurrent network."""

    Gamma, theta = Weight("hidden", init=0.0), Weight("hidden", init="angles")
    W_re, b_re, W_im, b_im = InputWeight(), Bias(), InputWeight(), Bias()
    W_mu, b_mu = InputWeight(), Bias(role="forget")
    W_g, b_g = Weight("input", "doubled"), Weight("doubled")
    scale, shift = Weight("doubled", init=1.0), Weight("doubled")
    W_o, b_o = Weight("doubled", "hidden"), Bias()

    @property
    def doubled(self) -> int:
        return 2 * self.hidden_size

    def angles(self, tensor: Tensor) -> None:
        tensor.copy_(10000 ** (-2 * torch.arange(len(tensor)) / len(tensor)))


@register(
    "hgrn", source="Qin et al. 2023, arXiv:2311.04823", code="github.com/Doraemonzzz/hgru-pytorch, hgru/hgru1d.py"
)
class HGRN(_HGRN):
    """Hierarchically gated: a complex state turns at fixed rates and is forgotten no faster than a bound γ allows.

    Differs: γ = sigmoid(Gamma) is each layer's own, the paper's is summed up over the layers so that it grows with
    depth; the output is normalised before its gate, as in the authors' code.
    """

    def step(self, x: Tensor, re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
        c_re = silu(x @ self.W_re + self.b_re)
        c_im = silu(x @ self.W_im + self.b_im)
        mu = sigmoid(x @ self.W_mu + self.b_mu)
        gamma = sigmoid(self.Gamma)
        decay = gamma + (1 - gamma) * mu
        new_re = decay * (cos(self.theta) * re - sin(self.theta) * im) + (1 - decay) * c_re
        new_im = decay * (sin(self.theta) * re + cos(self.theta) * im) + (1 - decay) * c_im
        return new_re, new_im

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        g = silu(x @ self.W_g + self.b_g)
        return (g * layer_norm(torch.cat(state, -1), (self.doubled,), self.scale, self.shift)) @ self.W_o + self.b_o


class _Memory(Cell):
    """Parameters of a matrix memory of one head; keys are half as wide as values, as in both papers below."""

    S = State("key_size", "hidden")
    W_Q, W_K = Weight("input", "key_size"), Weight("input", "key_size")
    b_Q, b_K, b_V, b_G = Bias("key_size"), Bias("key_size"), Bias(), Bias()
    W_V, W_G, W_O = InputWeight(), InputWeight(), RecurrentWeight()

    @property
    def key_size(self) -> int:
        return 2 * math.ceil(self.hidden_size / 4)


@register("gla", source="Yang et al. 2023, arXiv:2312.06635", code="github.com/berlino/gated_linear_attention, gla.py")
class GLA(_Memory):
    """Gated linear attention, one head: a matrix memory whose rows decay at rates that see the input.

    Differs: biases of q, k and v, without which little is left of a single feature once o is normalised.
    """

    rank: int = 16
    tau: float = 16.0
    W_1, W_2 = Weight("input", "rank"), Weight("rank", "key_size")
    b_alpha = Bias("key_size", role="forget")

    def step(self, x: Tensor, S: Tensor) -> Tensor:
        k, v = (x @ self.W_K + self.b_K) / math.sqrt(self.key_size), x @ self.W_V + self.b_V
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
    code="github.com/microsoft/torchscale, torchscale/component/multiscale_retention.py",
)
class Retention(_Memory):
    """Retention, one head: a matrix memory with a fixed decay; keys and queries turn with the time n.

    Differs: γ is that of the paper's first head; biases as in GLA. The authors' code has an RMS norm.
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
    code="github.com/fla-org/flash-linear-attention, fla/layers/delta_net.py",
)
class DeltaNet(Cell):
    """Delta rule, one head: a matrix memory in which what is stored under a key moves towards its new value.

    Differs: biases as in GLA instead of the short convolutions that precede q, k and v in the paper.
    """

    S = State("hidden", "hidden")
    W_q, W_k, W_v, W_beta = InputWeight(), InputWeight(), InputWeight(), Weight("input", 1)
    b_q, b_k, b_v = Bias(), Bias(), Bias()
    gain, W_o = Weight("hidden", init=1.0), RecurrentWeight()

    def step(self, x: Tensor, S: Tensor) -> Tensor:
        k, v = silu(x @ self.W_k + self.b_k), x @ self.W_v + self.b_v
        k = k * rsqrt((k * k).sum(-1, keepdim=True) + 1e-6)
        beta = sigmoid(x @ self.W_beta)
        old = (S * k[:, None, :]).sum(-1)
        return S + (beta * (v - old))[:, :, None] * k[:, None, :]

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        (S,) = state
        q = silu(x @ self.W_q + self.b_q)
        q = q * rsqrt((q * q).sum(-1, keepdim=True) + 1e-6)
        return rms_norm((S @ q.unsqueeze(-1)).squeeze(-1), (self.hidden_size,), self.gain, eps=1e-5) @ self.W_o
