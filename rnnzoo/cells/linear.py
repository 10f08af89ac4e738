"""Linear recurrences: the old state enters the new one linearly, through gates that see only the input."""

import math
from typing import Literal

import torch
from torch import Tensor, cos, exp, expm1, sigmoid, sin, sqrt, tanh
from torch.nn.functional import layer_norm, logsigmoid, silu, softplus

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
    code="github.com/salesforce/pytorch-qrnn at 1634991, torchqrnn/qrnn.py",
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


@register(
    "sru_parallel", source="Lei & Zhang 2017, arXiv:1709.02755v1", code="github.com/asappresearch/sru at 9ddc8da, sru/"
)
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


@register(
    "sru",
    source="Lei et al. 2018, arXiv:1709.02755, section 2",
    code="github.com/asappresearch/sru at 9ddc8da, sru/ops.py",
)
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
    code="github.com/BorealisAI/minRNNs at ff52e9d, models/minRNNs.py",
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
    code="github.com/BorealisAI/minRNNs at ff52e9d, models/minRNNs.py",
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
    B_re, B_im, D = InputWeight(init="part"), InputWeight(init="part"), InputWeight(init="normal")
    C_re, C_im = RecurrentWeight(init="normal"), RecurrentWeight(init="normal")

    def part(self, tensor: Tensor) -> None:
        """One of two parts of a complex matrix that gives sums of variance 1 of inputs of variance 1."""
        torch.nn.init.normal_(tensor, std=math.sqrt(0.5 / len(tensor)))

    def normal(self, tensor: Tensor) -> None:
        torch.nn.init.normal_(tensor, std=math.sqrt(1 / len(tensor)))

    def ring(self, tensor: Tensor) -> None:
        """|λ|² is uniform between r_min² and r_max², short of 0 and 1, where logarithms end."""
        tensor.uniform_(max(self.r_min**2, 1e-6), min(self.r_max**2, 1 - 1e-6)).log_().mul_(-0.5).log_()

    def phase(self, tensor: Tensor) -> None:
        tensor.uniform_(1e-6, self.max_phase).log_()

    def norm(self, tensor: Tensor) -> None:
        """γ² = 1 - |λ|², so that the state has the variance of its input."""
        tensor.copy_(torch.log(-expm1(-2 * exp(self.log_nu))) / 2)


@register(
    "lru",
    source="Orvieto et al. 2023, arXiv:2303.06349, section 3",
    code="github.com/NicolasZucchet/minimal-LRU at bbd71b1, lru/model.py; not the authors'",
)
class LRU(_LRU):
    """Linear recurrent unit: each unit is a complex number that turns and decays at its own learned rate.

    Differs: D is a matrix, because I need not be H. B, C and D start normal, as in minimal-LRU, and so that the state
    and both terms of the output have the variance of the input.
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
    code="github.com/google-deepmind/recurrentgemma at 2efa84d, recurrentgemma/torch/layers.py",
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

    gamma: float = 0.0
    theta = Weight("hidden", init="angles")
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
    "hgrn",
    source="Qin et al. 2023, arXiv:2311.04823",
    code="github.com/Doraemonzzz/hgru-pytorch at 09f4ed2, hgru/hgru1d.py",
)
class HGRN(_HGRN):
    """Hierarchically gated: a complex state turns at fixed rates and is forgotten no faster than a bound γ allows.

    Differs: γ is given, by default the 0 of the paper's first layer; in layer k it is there a sum of what all layers
    learn together, (k - 1)/layers at first. The output is normalised before its gate, as in the authors' code.
    """

    def step(self, x: Tensor, re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
        c_re = silu(x @ self.W_re + self.b_re)
        c_im = silu(x @ self.W_im + self.b_im)
        mu = sigmoid(x @ self.W_mu + self.b_mu)
        decay = self.gamma + (1 - self.gamma) * mu
        new_re = decay * (cos(self.theta) * re - sin(self.theta) * im) + (1 - decay) * c_re
        new_im = decay * (sin(self.theta) * re + cos(self.theta) * im) + (1 - decay) * c_im
        return new_re, new_im

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        g = silu(x @ self.W_g + self.b_g)
        return (g * layer_norm(torch.cat(state, -1), (self.doubled,), self.scale, self.shift)) @ self.W_o + self.b_o
