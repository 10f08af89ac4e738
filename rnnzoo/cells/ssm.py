"""State space models: linear systems of continuous time, many states to a unit, sampled at steps of learned length."""

import math

import torch
from torch import Tensor, cos, exp, log, nn, sigmoid, sin, tanh
from torch.nn.functional import gelu, rms_norm, silu, softplus

from rnnzoo.cell import Bias, Cell, InputWeight, RecurrentWeight, State, Weight
from rnnzoo.registry import register

MAMBA = "github.com/state-spaces/mamba at e9594ce, mamba_ssm/modules"


def log_steps(tensor: Tensor) -> None:
    """The logarithm of steps Δ between 0.001 and 0.1, as the authors' codes below draw them."""
    tensor.uniform_(math.log(0.001), math.log(0.1))


def soft_steps(tensor: Tensor) -> None:
    """What softplus makes such steps of."""
    log_steps(tensor)
    tensor.exp_().expm1_().log_()


def integers(tensor: Tensor) -> None:
    """log 1, log 2, ... log N in each row."""
    tensor.copy_(torch.arange(1, tensor.shape[-1] + 1).log().expand_as(tensor))


def depthwise(tensor: Tensor) -> None:
    """Uniform in ±1/√K, as torch starts a convolution of each feature on its own over K steps [K, H]."""
    nn.init.uniform_(tensor, -1 / math.sqrt(len(tensor)), 1 / math.sqrt(len(tensor)))


def slide(window: Tensor, latest: Tensor) -> Tensor:
    """The window [B, K, H] moved on by one step: the oldest row falls out, the latest becomes the last."""
    return torch.cat([window[:, 1:], latest.unsqueeze(1)], 1)


class _Selective(Cell):
    """Parameters of a selective model: a window for a short convolution, and steps, keys and queries made of it."""

    order: int = 16
    taps: int = 4
    rank: int = 0
    h, window = State("hidden", "order"), State("taps", "hidden")
    W_x, W_z, W_out = InputWeight(), InputWeight(), RecurrentWeight()
    W_conv, b_conv = Weight("taps", "hidden", init=depthwise), Bias()
    W_r, W_Delta = Weight("hidden", "low"), Weight("low", "hidden", init="keep_variance")
    D = Weight("hidden", init=1.0)

    @property
    def low(self) -> int:
        return self.rank or math.ceil(self.hidden_size / 16)

    def keep_variance(self, tensor: Tensor) -> None:
        nn.init.uniform_(tensor, -(self.low**-0.5), self.low**-0.5)


@register(
    "mamba",
    source="Gu & Dao 2023, arXiv:2312.00752, the selective model (S6)",
    code=f"{MAMBA}/mamba_simple.py, step",
    seen="none",
)
class Mamba(_Selective):
    """Selective state space: the input decides how long a step Δ is, what is written (B) and what is read (C).

    `rank=0` stands for a 16th of H, of the model's width in the authors' code, which is half of H there. The output is
    mixed down to that width there, here to H.
    """

    W_B, W_C = Weight("hidden", "order"), Weight("hidden", "order")
    b_Delta, log_A = Bias(init=soft_steps), Weight("hidden", "order", init=integers)

    def step(self, x: Tensor, h: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
        window = slide(window, x @ self.W_x)
        u = silu((window * self.W_conv).sum(1) + self.b_conv)
        Delta = softplus(u @ self.W_r @ self.W_Delta + self.b_Delta)
        A, B = -exp(self.log_A), u @ self.W_B
        return exp(Delta[:, :, None] * A) * h + (Delta * u)[:, :, None] * B[:, None, :], window

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        h, window = state
        u = silu((window * self.W_conv).sum(-2) + self.b_conv)
        y = (h * (u @ self.W_C).unsqueeze(-2)).sum(-1) + self.D * u
        return (y * silu(x @ self.W_z)) @ self.W_out


@register(
    "longhorn",
    source="Liu et al. 2024, arXiv:2407.14207",
    code="github.com/Cranial-XIX/longhorn at 4ea1745, models/longhorn.py, step",
    seen="none",
)
class Longhorn(_Selective):
    """Online learner: the state moves so far towards recalling u under the key k as the least squares problem asks.

    Differs: as in the authors' code the decay is 1 - Δ k², element by element, where the solution has 1 - Δ k kᵀ.
    """

    W_k, W_q = Weight("hidden", "order"), Weight("hidden", "order")
    b_beta = Bias(role="update")

    def step(self, x: Tensor, h: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
        window = slide(window, x @ self.W_x)
        u = silu((window * self.W_conv).sum(1) + self.b_conv)
        k = u @ self.W_k
        beta = sigmoid(u @ self.W_r @ self.W_Delta + self.b_beta)
        Delta = beta / (1 + beta * (k * k).sum(-1, keepdim=True))
        return (1 - Delta[:, :, None] * (k * k)[:, None, :]) * h + (Delta * u)[:, :, None] * k[:, None, :], window

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        h, window = state
        u = silu((window * self.W_conv).sum(-2) + self.b_conv)
        y = (h * (u @ self.W_q).unsqueeze(-2)).sum(-1) + self.D * u
        return (y * silu(x @ self.W_z)) @ self.W_out


class _Mamba2(Cell):
    """Parameters of Mamba-2: inputs, keys and queries each have a window for a short convolution."""

    order: int = 64
    taps: int = 4
    h, xs, Bs, Cs = State("hidden", "order"), State("taps", "hidden"), State("taps", "order"), State("taps", "order")
    W_x, w_x, b_x = InputWeight(), Weight("taps", "hidden", init=depthwise), Bias()
    W_B, w_B, b_B = Weight("input", "order"), Weight("taps", "order", init=depthwise), Bias("order")
    W_C, w_C, b_C = Weight("input", "order"), Weight("taps", "order", init=depthwise), Bias("order")
    W_Delta, b_Delta = Weight("input", 1), Bias(1, init=soft_steps)
    log_A = Weight(1, init=lambda tensor: tensor.uniform_(1, 16).log_())
    D, gain, W_z, W_out = Weight(1, init=1.0), Weight("hidden", init=1.0), InputWeight(), RecurrentWeight()


@register(
    "mamba2",
    source="Dao & Gu 2024, arXiv:2405.21060, the recurrent form of state space duality",
    code=f"{MAMBA}/mamba2.py, step",
    seen="none",
)
class Mamba2(_Mamba2):
    """Mamba whose decay is one number a head, so that it is linear attention too: C asks, B is the key, x the value.

    Differs: one head. The output is mixed to H, in the authors' code to the model's width, half of H.
    """

    def step(self, x: Tensor, h: Tensor, xs: Tensor, Bs: Tensor, Cs: Tensor) -> tuple[Tensor, ...]:
        xs, Bs, Cs = slide(xs, x @ self.W_x), slide(Bs, x @ self.W_B), slide(Cs, x @ self.W_C)
        u = silu((xs * self.w_x).sum(1) + self.b_x)
        B = silu((Bs * self.w_B).sum(1) + self.b_B)
        Delta = softplus(x @ self.W_Delta + self.b_Delta)
        a = exp(-Delta * exp(self.log_A))
        return a[:, :, None] * h + (Delta * u)[:, :, None] * B[:, None, :], xs, Bs, Cs

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        h, xs, _, Cs = state
        u = silu((xs * self.w_x).sum(-2) + self.b_x)
        C = silu((Cs * self.w_C).sum(-2) + self.b_C)
        y = (h * C.unsqueeze(-2)).sum(-1) + self.D * u
        return rms_norm(y * silu(x @ self.W_z), (self.hidden_size,), self.gain, eps=1e-5) @ self.W_out


def turned(log_r: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """The real and the imaginary part of exp(log_r + i phi)."""
    return exp(log_r) * cos(phi), exp(log_r) * sin(phi)


def over(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """The real and the imaginary part of (a + ib) / (c + id)."""
    inverse = exp(-log(c * c + d * d))  # equations have no sign for the quotient of matrices
    return inverse * (a * c + b * d), inverse * (b * c - a * d)


class _S4D(Cell):
    """Parameters of S4D, with the values of S4D-Lin."""

    order: int = 32
    re, im = State("hidden", "order"), State("hidden", "order")
    W, log_Delta, D = InputWeight(), Weight("hidden", init=log_steps), Weight("hidden", init=nn.init.normal_)
    log_A_re, A_im = Weight("hidden", "order", init=math.log(0.5)), Weight("hidden", "order", init="harmonics")
    C_re, C_im = Weight("hidden", "order", init="part"), Weight("hidden", "order", init="part")
    W_o, b_o, W_g, b_g = RecurrentWeight(), Bias(), RecurrentWeight(), Bias()

    def harmonics(self, tensor: Tensor) -> None:
        tensor.copy_((math.pi * torch.arange(self.order)).expand_as(tensor))

    def part(self, tensor: Tensor) -> None:
        nn.init.normal_(tensor, std=math.sqrt(0.5))


@register(
    "s4d",
    source="Gu, Gupta, Goel, Ré 2022, arXiv:2206.11893, S4D-Lin with zero-order hold",
    code="github.com/state-spaces/s4 at e757cef, models/s4/s4d.py",
    seen="none",
)
class S4D(_S4D):
    """Diagonal state space model: each unit is a filter of `order` pairs of damped oscillations, read by C.

    Differs: a matrix W turns the inputs into H signals; dropout is left out.
    """

    def step(self, x: Tensor, re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
        Delta, A_re = exp(self.log_Delta)[:, None], -exp(self.log_A_re)
        a_re, a_im = turned(Delta * A_re, Delta * self.A_im)
        b_re, b_im = over(a_re - 1, a_im, A_re, self.A_im)
        u = (x @ self.W)[:, :, None]
        return a_re * re - a_im * im + b_re * u, a_im * re + a_re * im + b_im * u

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        re, im = state
        y = gelu(2 * (self.C_re * re - self.C_im * im).sum(-1) + self.D * (x @ self.W))
        return (y @ self.W_o + self.b_o) * sigmoid(y @ self.W_g + self.b_g)


class _S5(Cell):
    """Parameters of S5; Λ starts as the eigenvalues of the normal part of HiPPO-LegS, one of each conjugate pair."""

    re, im = State("pairs"), State("pairs")
    Lambda_re, Lambda_im = Weight("pairs", init=-0.5), Weight("pairs", init="hippo")
    log_Delta = Weight("pairs", init=log_steps)
    B_re, B_im = Weight("input", "pairs", init="part"), Weight("input", "pairs", init="part")
    C_re, C_im = Weight("pairs", "hidden", init="part"), Weight("pairs", "hidden", init="part")
    D, W_g, b_g = InputWeight(init=nn.init.xavier_normal_), RecurrentWeight(), Bias()

    @property
    def pairs(self) -> int:
        return (self.hidden_size + 1) // 2

    def hippo(self, tensor: Tensor) -> None:
        r = torch.sqrt(torch.arange(2 * self.pairs, dtype=torch.float64, device="cpu") + 0.5)
        skew = torch.tril(torch.outer(r, r), -1)
        tensor.copy_(torch.linalg.eigvalsh(1j * (skew - skew.T))[: self.pairs])

    def part(self, tensor: Tensor) -> None:
        """One of two parts of a complex matrix, each with half the variance."""
        nn.init.normal_(tensor, std=math.sqrt(0.5 / len(tensor)))


@register(
    "s5",
    source="Smith, Warrington, Linderman 2023, arXiv:2208.04933, the S5 layer with zero-order hold",
    code="github.com/lindermanlab/S5 at 3c18fdb, s5/ssm.py, s5/ssm_init.py and s5/layers.py",
    seen="none",
)
class S5(_S5):
    """One diagonal state space model for all features together: H state variables, in conjugate pairs.

    Differs: D is a matrix, because I need not be H. One block of eigenvalues; dropout and the norm are left out.
    """

    def step(self, x: Tensor, re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
        Delta = exp(self.log_Delta)
        a_re, a_im = turned(Delta * self.Lambda_re, Delta * self.Lambda_im)
        b_re, b_im = over(a_re - 1, a_im, self.Lambda_re, self.Lambda_im)
        u_re, u_im = x @ self.B_re, x @ self.B_im
        new_re = a_re * re - a_im * im + b_re * u_re - b_im * u_im
        new_im = a_im * re + a_re * im + b_im * u_re + b_re * u_im
        return new_re, new_im

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        re, im = state
        y = gelu(2 * (re @ self.C_re - im @ self.C_im) + x @ self.D)
        return y * sigmoid(y @ self.W_g + self.b_g)


class _LegS(Cell):
    """Parameters of a gated network with a HiPPO-LegS memory, whose matrices are fixed."""

    order: int = 16
    e_x, e_h, e = Weight("input", 1), Weight("hidden", 1), Bias(1)
    W_x, W_c, b = InputWeight(), Weight("order", "hidden"), Bias()
    U_x, U_c, d = InputWeight(), Weight("order", "hidden"), Bias(role="update")
    A, B = Weight("order", "order", init="decay", trainable=False), Weight(1, "order", init="entry", trainable=False)
    c, k = State("order"), State(1)

    def decay(self, tensor: Tensor) -> None:
        r = torch.sqrt(2 * torch.arange(self.order) + 1.0)
        tensor.copy_((torch.tril(torch.outer(r, r), -1) + torch.diag(torch.arange(self.order) + 1.0)).T)

    def entry(self, tensor: Tensor) -> None:
        tensor.copy_(torch.sqrt(2 * torch.arange(self.order) + 1.0))


@register(
    "hippo_legs",
    source="Gu et al. 2020, arXiv:2008.07669, HiPPO-LegS in a gated network, forward Euler",
    code="github.com/HazyResearch/hippo-code at 2011482, model/memory.py and model/op.py",
    seen="none",
)
class HiPPOLegS(_LegS):
    """A memory c of one signal u's whole past, as coefficients of Legendre polynomials stretched over it.

    Differs: the clock k starts at `order`, as if so many zeros had gone before: Euler's rule is then stable from the
    first step on. The authors' code takes the bilinear rule, which needs a system solved at every step.
    """

    def step(self, x: Tensor, h: Tensor, c: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u = x @ self.e_x + h @ self.e_h + self.e
        c = c - (c @ self.A - u @ self.B) / (k + self.order)
        g = sigmoid(x @ self.U_x + c @ self.U_c + self.d)
        return (1 - g) * h + g * tanh(x @ self.W_x + c @ self.W_c + self.b), c, k + 1
