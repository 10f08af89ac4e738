"""Models of networks of neurons as neuroscience fits them to tasks and to recordings."""

import math
from typing import Literal

import torch
from torch import Tensor, nn, relu, tanh
from torch.nn.functional import softplus

from rnnzoo.cell import Bias, Cell, Diagonal, InputWeight, RecurrentWeight, State, Weight, gate
from rnnzoo.errors import UserError
from rnnzoo.registry import register
from rnnzoo.surrogate import Spike


@register(
    "leaky",
    source="Yang & Wang 2020, arXiv:2006.01001, the discretised rate network",
    code="github.com/gyyang/nn-brain at 100931c, RNN_tutorial.ipynb",
    seen="none",
)
class Leaky(Cell):
    """Continuous-time rate network: rates r leak towards what drives them, each with its own learned time constant.

    dt and tau, where all time constants start, are in milliseconds. Differs: time constants are learned, as dt +
    softplus(theta), and noise is left out. The equations are the notebook's; its program takes the ReLU of all of r.
    """

    dt: float = 20.0
    tau: float = 100.0
    nonlinearity: Literal["relu", "tanh"] = "relu"

    W_x, W_r, b_r = gate()
    theta = Weight("hidden", init="start")

    def start(self, tensor: Tensor) -> None:
        if not self.tau > self.dt > 0:
            raise UserError(f"Leaky: tau must be above dt and dt above 0, not {self.tau} and {self.dt}")
        tensor.fill_(math.log(math.expm1(self.tau - self.dt)) if self.tau - self.dt < 30 else self.tau - self.dt)

    def step(self, x: Tensor, r: Tensor) -> Tensor:
        f = relu if self.nonlinearity == "relu" else tanh
        alpha = self.dt / (self.dt + softplus(self.theta))
        return (1 - alpha) * r + alpha * f(r @ self.W_r + x @ self.W_x + self.b_r)


DURSTEWITZ = "github.com/DurstewitzLab/dendPLRNN at 368ed04, BPTT_TF/bptt/PLRNN_model.py"


SNNTORCH = "github.com/jeshraghian/snntorch at 0110f9f, snntorch/_neurons/rleaky.py"


@register("lif", source="Neftci et al. 2019, arXiv:1901.09948, synapses instantaneous", code=SNNTORCH, seen="none")
class LIF(Cell):
    """Leaky integrate-and-fire neurons: a potential u leaks, and a spike s, at 1, takes 1 off it a step later.

    What a spike takes off has no gradient. Differs: the paper's currents act a step later; a spike's gradient is that
    of Zenke & Ganguli 2018, in the file by default an arctangent's; beta is not learned.
    """

    beta: float = 0.9
    W, V, b = gate()

    def step(self, x: Tensor, s: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        u = self.beta * u + x @ self.W + s @ self.V + self.b - s.detach()
        spike: Tensor = Spike.apply(u - 1)
        return spike, u


@register("surnn", source="Yin et al. 2026, arXiv:2603.02226, as torchrecurrent at a358eb0 has it", seen="none")
class SelectiveUpdate(Cell):
    """Selective-update network: a unit's own clock, a sum of sines, says at which steps it is open; else it keeps h.

    Differs: the gate has a spike's gradient, in the package none (the paper's was not to be had); phases phi start
    uniform: from 0, with frequency pi, all sines are zero.
    """

    harmonics: int = 1
    W, U, b = gate()
    a, alpha = Bias(), Weight("hidden", "harmonics", init=nn.init.ones_)
    phi, omega = Weight("hidden", "harmonics", init="phases"), Weight("harmonics", init="spaced")
    h, t = State("hidden"), State(1)

    def phases(self, tensor: Tensor) -> None:
        nn.init.uniform_(tensor, -math.pi, math.pi)

    def spaced(self, tensor: Tensor) -> None:
        tensor.copy_(torch.arange(1, len(tensor) + 1) * (math.pi / len(tensor)))

    def step(self, x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        sines = (self.alpha * torch.sin(self.omega * t[:, :, None] + self.phi)).sum(-1)
        g: Tensor = Spike.apply(self.a + sines)
        return h + g * (tanh(x @ self.W + h @ self.U + self.b) - h), t + 1


class _PLRNN(Cell):
    """Parameters of piecewise linear networks; A + W starts near the identity, its largest eigenvalue 1."""

    W, A = RecurrentWeight(init="near_identity"), Diagonal(init="own")
    C, h_0 = InputWeight(), Bias(init="offset")

    def near_identity(self, tensor: Tensor) -> None:
        R = torch.randn_like(tensor)
        AW = torch.eye(len(R)) + R.T @ R / len(R)
        tensor.copy_(AW / torch.linalg.eigvalsh(AW).max())

    def own(self, tensor: Tensor) -> None:
        tensor.copy_(self.W.diagonal())

    def offset(self, tensor: Tensor) -> None:
        nn.init.uniform_(tensor, -1 / math.sqrt(len(tensor)), 1 / math.sqrt(len(tensor)))


@register("plrnn", source="Durstewitz 2017, PLOS Computational Biology 13(6):e1005542", code=DURSTEWITZ, seen="none")
class PLRNN(_PLRNN):
    """Piecewise linear network: each unit keeps a share A of itself and hears what is positive of the others.

    Only what lies off W's diagonal is used. Differs: inputs drive the latent states, as the paper's s_t do; noise and
    observations, which make it a model of data, are left out.
    """

    def step(self, x: Tensor, z: Tensor) -> Tensor:
        W = self.W.triu(1) + self.W.tril(-1)
        return self.A * z + relu(z) @ W + self.h_0 + x @ self.C


@register("dend_plrnn", source="Brenner et al. 2022, arXiv:2207.02542", code=DURSTEWITZ, seen="none")
class DendriticPLRNN(_PLRNN):
    """Piecewise linear network whose units have dendrites: what it says is a sum of ramps with own thresholds theta.

    Differs: as plrnn does; theta starts from N(0, 1), the code's value without data.
    """

    bases: int = 20
    alpha, theta = Weight("bases", init="offset"), Weight("hidden", "bases", init=nn.init.normal_)

    def step(self, x: Tensor, z: Tensor) -> Tensor:
        W = self.W.triu(1) + self.W.tril(-1)
        phi = (self.alpha * relu(z[:, :, None] - self.theta)).sum(-1)
        return self.A * z + phi @ W + self.h_0 + x @ self.C
