"""Simple recurrences: one non-linear layer that feeds back, with little or no gating."""

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor, clamp, matrix_exp, nn, relu, remainder, roll, sigmoid, sign, tanh, where
from torch.nn.functional import layer_norm

from rnnzoo.cell import Bias, Cell, Diagonal, InputWeight, RecurrentWeight, State, Weight, finest, gate
from rnnzoo.registry import register


@register("rnn", source="Elman 1990, Finding structure in time, Cognitive Science 14(2)", package="torch.nn.RNNCell")
class RNN(Cell):
    """The new state is a non-linear function of the input and the old state.

    Differs: `relu` is offered beside the tanh of later practice (Elman used the logistic function).
    """

    nonlinearity: Literal["tanh", "relu"] = "tanh"

    W, U, b = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        a = x @ self.W + h @ self.U + self.b
        return tanh(a) if self.nonlinearity == "tanh" else relu(a)


@register("irnn", source="Le, Jaitly, Hinton 2015, arXiv:1504.00941", package="torch.nn.RNNCell")
class IRNN(Cell):
    """A rectified network whose recurrent matrix starts as the identity, so that it first sums up its inputs."""

    W, U, b = InputWeight(init=partial(nn.init.normal_, std=0.001)), RecurrentWeight(init=nn.init.eye_), Bias()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return relu(x @ self.W + h @ self.U + self.b)


@register(
    "indrnn",
    source="Li et al. 2018, arXiv:1803.04831, eq. 2",
    package="torchrecurrent.IndRNNCell",
    code="github.com/Sunnydreamrain/IndRNN_pytorch at 9b9cb4c, IndRNN_onlyrecurrent.py",
)
class IndRNN(Cell):
    """Each unit sees the input and only its own past.

    Differs: the bound on |u|, which the authors enforce after each update, is applied where u is read, and 0 is none;
    they have 2^(1/T) for T steps. A unit beyond it learns no u any more. u starts uniform in (0, 1), as in their code.
    """

    nonlinearity: Literal["relu", "tanh"] = "relu"
    bound: float = 0.0

    W, u, b = InputWeight(), Diagonal(init=nn.init.uniform_), Bias()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        u = clamp(self.u, -self.bound, self.bound) if self.bound else self.u
        a = x @ self.W + u * h + self.b
        return relu(a) if self.nonlinearity == "relu" else tanh(a)


@register("mi_rnn", source="Wu et al. 2016, arXiv:1606.06630, section 2.1")
class MultiplicativeIntegrationRNN(Cell):
    """Input and state meet in a product as well as in a sum, in shares that are learned for each unit."""

    W, U, α = InputWeight(), RecurrentWeight(), Diagonal(init=1.0)
    β_1, β_2, b = Diagonal(init=1.0), Diagonal(init=1.0), Bias()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        Wx = x @ self.W
        Uh = h @ self.U
        return tanh(self.α * Wx * Uh + self.β_1 * Uh + self.β_2 * Wx + self.b)


@register(
    "scrn",
    source="Mikolov et al. 2015, arXiv:1412.7753",
    code="github.com/facebookarchive/SCRNNs at 75582d4, mfactory.lua",
)
class SCRN(Cell):
    """A slow context s, a moving average of the inputs, stands beside a fast hidden state and feeds it.

    The paper's output is a function of U h + V s: here both are handed on, [h, s], and the next layer holds U and V.
    Differs: h sees the new context, as in the paper; in the authors' code it sees the old one.
    """

    context_size: int = 40
    alpha: float = 0.95

    A, R = InputWeight(), RecurrentWeight()
    B, P = Weight("input", "context_size"), Weight("context_size", "hidden")
    s = State("context_size")

    def step(self, x: Tensor, h: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        s = (1 - self.alpha) * (x @ self.B) + self.alpha * s
        h = sigmoid(s @ self.P + x @ self.A + h @ self.R)
        return h, s

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        return torch.cat(state, -1)

    @property
    def output_size(self) -> int:
        return self.hidden_size + self.context_size


@register(
    "clockwork",
    source="Koutník et al. 2014, arXiv:1402.3511",
    code="github.com/IDSIA/brainstorm at 8f1fc88, brainstorm/layers/clockwork_layer.py",
)
class ClockworkRNN(Cell):
    """Module g of the units moves only at every 2^g-th step and hears itself and the slower modules.

    The units are dealt out to the modules as evenly as can be, the fastest first.

    Differs: biases, as in the authors' code, which leaves the periods to its user and every unit hearing all others.
    """

    groups: int = 8

    W, U, b = gate()
    T = Weight("hidden", init="periods", trainable=False)
    clock = State(1)

    def periods(self, tensor: Tensor) -> None:
        unit = torch.arange(self.hidden_size, device=tensor.device)
        tensor.copy_(2 ** (unit * self.groups // self.hidden_size))

    def step(self, x: Tensor, h: Tensor, clock: Tensor) -> tuple[Tensor, Tensor]:
        U = where(self.T.unsqueeze(1) >= self.T, self.U, 0.0)  # from row to column
        proposed = tanh(x @ self.W + h @ U + self.b)
        active = remainder(clock + 0.5, self.T) < 1  # clock mod T = 0, whatever its rounding
        return where(active, proposed, h), clock + 1


@register(
    "rhn",
    source="Zilly et al. 2017, arXiv:1607.03474",
    code="github.com/jzilly/RecurrentHighwayNetworks at 9ab03a3, rhn.py",
)
class RecurrentHighwayNetwork(Cell):
    """A highway network of some depth carries the state on; its gates are coupled, c = 1 - t, as the authors' are."""

    depth: int = 4

    W_H, W_T = InputWeight(), InputWeight()
    R_H = Weight("depth", "hidden", "hidden", init="orthogonal")
    R_T = Weight("depth", "hidden", "hidden", init="orthogonal")
    b_H, b_T = Bias("depth", "hidden"), Bias("depth", "hidden", init=-2.0, role="update")

    def orthogonal(self, tensor: Tensor) -> None:
        for matrix in tensor:
            nn.init.orthogonal_(matrix)

    def step(self, x: Tensor, s: Tensor) -> Tensor:
        for k in range(self.depth):
            h = tanh((x @ self.W_H if k == 0 else 0) + s @ self.R_H[k] + self.b_H[k])
            t = sigmoid((x @ self.W_T if k == 0 else 0) + s @ self.R_T[k] + self.b_T[k])
            s = h * t + s * (1 - t)
        return s


@register(
    "shuffling",
    source="Rotman & Wolf 2021, arXiv:2007.07324",
    code="github.com/rotmanmi/SRNN at 94b98f1, models/SRNN.py",
)
class ShufflingRNN(Cell):
    """The state is permuted by a fixed cycle, and a gated two-layer network of the input is added to it."""

    hyper_size: int = 64

    W_1, b_1 = Weight("input", "hyper_size"), Weight("hyper_size")
    W_2, b_2 = Weight("hyper_size", "hidden"), Bias()
    W_s, b_s = InputWeight(), Bias(role="input")

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        f = relu(x @ self.W_1 + self.b_1) @ self.W_2 + self.b_2
        s = sigmoid(x @ self.W_s + self.b_s)
        return relu(f * s + roll(h, 1, -1))


@register(
    "orthogonal",
    source="Lezcano-Casado & Martínez-Rubio 2019, arXiv:1901.08428",
    code="github.com/lezcano/expRNN at 830ec83, orthogonal.py and initialization.py",
)
class OrthogonalRNN(Cell):
    """The recurrent matrix stays orthogonal: it is the exponential of a skew-symmetric one (expRNN).

    Only what lies above A's diagonal is used. It starts as turns by random angles in planes of two units: `initial`
    names how they are drawn: `henaff` in the authors' copying and TIMIT tasks, `cayley` on MNIST. modReLU follows.
    Differs: what the exponential is taken from stays the identity; in their code's default mode, dtriv, it moves along.
    """

    initial: Literal["henaff", "cayley"] = "henaff"

    T = InputWeight(init=partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"))
    A, b = RecurrentWeight(init="angles"), Bias(init=partial(nn.init.uniform_, a=-0.01, b=0.01))

    def angles(self, tensor: Tensor) -> None:
        φ = tensor.zero_().diagonal(1)[::2]
        if self.initial == "henaff":
            φ.uniform_(-math.pi, math.pi)
        else:
            φ.uniform_(0, math.pi / 2).copy_(-torch.sqrt((1 - torch.cos(φ)) / (1 + torch.cos(φ))))

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        A = self.A.triu(1).to(finest(self.A))  # in single precision the exponential's gradient is poor
        z = x @ self.T + h @ matrix_exp(A - A.T).to(h.dtype)
        return sign(z) * relu(z.abs() + self.b)


@register("esn", source="Jaeger 2001, The echo state approach, GMD report 148; leak as in Lukoševičius 2012")
class EchoStateNetwork(Cell):
    """A random network that is never trained: all learning is left to what reads its input and state, [x, h].

    Differs: no feedback from the output; the recurrent weights are dense; `leak` below 1 makes leaky integrators.
    """

    spectral_radius: float = 0.9
    leak: float = 1.0
    input_scale: float = 1.0

    W_in = Weight("input", "hidden", init="uniform", trainable=False)
    W = Weight("hidden", "hidden", init="reservoir", trainable=False)

    def uniform(self, tensor: Tensor) -> None:
        nn.init.uniform_(tensor, -self.input_scale, self.input_scale)

    def reservoir(self, tensor: Tensor) -> None:
        nn.init.uniform_(tensor, -1, 1)
        tensor *= self.spectral_radius / torch.linalg.eigvals(tensor).abs().max()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return (1 - self.leak) * h + self.leak * tanh(x @ self.W_in + h @ self.W)

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        return torch.cat((x, *state), -1)

    @property
    def output_size(self) -> int:
        return self.input_size + self.hidden_size


@register("fast_weights", source="Ba et al. 2016, arXiv:1610.06258, eq. 1, 2 and 5")
class FastWeights(Cell):
    """A matrix of fast weights stores the recent states and pulls each new one towards those it resembles."""

    decay: float = 0.95
    rate: float = 0.5
    inner_steps: int = 1

    C, W, gain = InputWeight(init="uniform"), RecurrentWeight(init="small_identity"), Diagonal(init=1.0)
    bias = Bias()
    A = State("hidden", "hidden")

    def uniform(self, tensor: Tensor) -> None:
        nn.init.uniform_(tensor, -1 / math.sqrt(self.hidden_size), 1 / math.sqrt(self.hidden_size))

    def small_identity(self, tensor: Tensor) -> None:
        nn.init.eye_(tensor).mul_(0.05)

    def step(self, x: Tensor, h: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
        A = self.decay * A + self.rate * h.unsqueeze(2) * h.unsqueeze(1)
        sustained = h @ self.W + x @ self.C
        h = relu(sustained)
        for _ in range(self.inner_steps):
            recalled = (A @ h.unsqueeze(2)).squeeze(2)
            h = relu(layer_norm(sustained + recalled, (self.hidden_size,), self.gain, self.bias))
        return h, A
