"""Cells derived from dynamical systems: oscillators, antisymmetric and delayed flows, bistable and liquid neurons."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn, sigmoid, tanh
from torch.nn.functional import softplus

from rnnzoo.cell import Bias, Cell, Diagonal, InputWeight, RecurrentWeight, State, Weight, gate
from rnnzoo.registry import register


def _normal(tensor: Tensor) -> None:
    nn.init.normal_(tensor, std=1 / math.sqrt(len(tensor)))


def _within(width: float) -> Callable[[Tensor], object]:
    """Uniform in ±width/√rows."""
    return lambda tensor: nn.init.uniform_(tensor, -width / math.sqrt(len(tensor)), width / math.sqrt(len(tensor)))


def _between(low: float, high: float) -> Callable[[Tensor], object]:
    return lambda tensor: nn.init.uniform_(tensor, low, high)


def _positive(low: float, high: float) -> Callable[[Tensor], object]:
    """Uniform in [low, high] after softplus."""
    return lambda tensor: nn.init.uniform_(tensor, low, high).expm1_().log_()


def _sign(tensor: Tensor) -> None:
    tensor.bernoulli_(2 / 3).mul_(2).sub_(1)


@register(
    "antisymmetric",
    source="Chang et al. 2019, arXiv:1902.09689, the form with diffusion; initial values of appendix C",
    package="torchrecurrent.AntisymmetricRNNCell",
)
class Antisymmetric(Cell):
    """Euler steps of a flow whose matrix is antisymmetric, so that it neither grows nor shrinks, up to a diffusion.

    The paper tries epsilon 0.01, 0.1 and 1, gamma 0.001 to 1: small ones suit long sequences, large ones short ones.
    """

    epsilon: float = 0.3
    gamma: float = 0.3

    V_h, W_h, b_h = InputWeight(init=_normal), RecurrentWeight(init=_normal), Bias()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        flow = h @ (self.W_h - self.W_h.T) - self.gamma * h
        return h + self.epsilon * tanh(flow + x @ self.V_h + self.b_h)


@register(
    "gated_antisymmetric",
    source="Chang et al. 2019, arXiv:1902.09689, the form with gating; initial values of appendix C",
    package="torchrecurrent.GatedAntisymmetricRNNCell",
)
class GatedAntisymmetric(Cell):
    """An antisymmetric flow whose step size is gated; the gate shares the flow's matrix."""

    epsilon: float = 1.0
    gamma: float = 1.0

    V_h, W_h, b_h = InputWeight(init=_normal), RecurrentWeight(init=_normal), Bias()
    V_z, b_z = InputWeight(init=_normal), Bias(role="input")

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        flow = h @ (self.W_h - self.W_h.T) - self.gamma * h
        z = sigmoid(flow + x @ self.V_z + self.b_z)
        return h + self.epsilon * z * tanh(flow + x @ self.V_h + self.b_h)


@register(
    "lipschitz",
    source="Erichson et al. 2021, arXiv:2006.12070, the Euler scheme",
    code="github.com/erichson/LipschitzRNN at df6552e, models.py, driver.py and README.md",
)
class Lipschitz(Cell):
    """Euler steps of a linear flow A plus a tanh, with A and the matrix W inside the tanh held near antisymmetric.

    Differs: A and W share one beta and one gamma, as in the authors' code. epsilon and gamma are its driver's; beta is
    that of its README (the driver: 0.7), which takes epsilon 0.03 for 784 steps.
    """

    epsilon: float = 0.1
    beta: float = 0.75
    gamma: float = 0.001

    M_A = RecurrentWeight(init=lambda tensor: nn.init.normal_(tensor, std=0.1 / len(tensor)))
    M_W = RecurrentWeight(init=lambda tensor: nn.init.normal_(tensor, std=0.1 / len(tensor)))
    U, b = InputWeight(), Bias()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        A = (1 - self.beta) * (self.M_A + self.M_A.T) + self.beta * (self.M_A - self.M_A.T)
        W = (1 - self.beta) * (self.M_W + self.M_W.T) + self.beta * (self.M_W - self.M_W.T)
        z = h @ W - self.gamma * h + x @ self.U + self.b
        return h + self.epsilon * (h @ A - self.gamma * h + tanh(z))


@register(
    "cornn",
    source="Rusch & Mishra 2021, arXiv:2010.00951, eq. 3",
    package="torchrecurrent.coRNNCell",
    code="github.com/tk-rusch/coRNN at afd8174, sMNIST/network.py",
)
class CoRNN(Cell):
    """A network of coupled, driven and damped oscillators with positions y and velocities z.

    The damping sees the old velocity, as in the authors' code; the paper allows the new one too (damping="implicit").
    The step suits short sequences; the authors take dt=0.042, gamma=2.7, epsilon=4.7 for sequential MNIST.
    """

    dt: float = 0.5
    gamma: float = 1.0
    epsilon: float = 1.0
    damping: Literal["explicit", "implicit"] = "explicit"

    V, W, b = gate()
    W_z = RecurrentWeight()

    def step(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        force = tanh(y @ self.W + z @ self.W_z + x @ self.V + self.b) - self.gamma * y
        if self.damping == "explicit":
            z = z + self.dt * (force - self.epsilon * z)
        else:
            z = (z + self.dt * force) / (1 + self.dt * self.epsilon)
        return y + self.dt * z, z


@register(
    "unicornn",
    source="Rusch & Mishra 2021, arXiv:2103.05487, one layer",
    package="torchrecurrent.UnICORNNCell",
    code="github.com/tk-rusch/unicornn at 35b243d, psMNIST/network.py",
)
class UnICORNN(Cell):
    """Undamped oscillators, independent of one another within a layer, each with its own learned time step.

    The initial values are the authors' code's. The step suits short sequences; the authors take dt=0.19, alpha=30.65
    for permuted sequential MNIST.
    """

    dt: float = 1.0
    alpha: float = 1.0

    V, w, b = InputWeight(init=_within(math.sqrt(6 / 65))), Diagonal(init=nn.init.uniform_), Bias()
    c = Weight("hidden", init=_between(-0.1, 0.1))

    def step(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        dt = self.dt * sigmoid(self.c)
        z = z - dt * (tanh(self.w * y + x @ self.V + self.b) + self.alpha * y)
        y = y + dt * z
        return y, z


@register(
    "lem",
    source="Rusch et al. 2022, arXiv:2110.04744, the time-discrete form",
    code="github.com/tk-rusch/LEM at 833da6b, src/sMNIST/network.py",
)
class LEM(Cell):
    """Long expressive memory: y is driven by the new z; dt=0.0242 and initializer="torch" suit long sequences."""

    dt: float = 1.0

    V_1, W_1, b_1 = gate(role="update")
    V_2, W_2, b_2 = gate(role="update")
    V_z, W_z, b_z = gate()
    V_y, W_y, b_y = gate()

    def step(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        dt_z = self.dt * sigmoid(y @ self.W_1 + x @ self.V_1 + self.b_1)
        dt_y = self.dt * sigmoid(y @ self.W_2 + x @ self.V_2 + self.b_2)
        z = (1 - dt_z) * z + dt_z * tanh(y @ self.W_z + x @ self.V_z + self.b_z)
        y = (1 - dt_y) * y + dt_y * tanh(z @ self.W_y + x @ self.V_y + self.b_y)
        return y, z


@register(
    "tau_gru",
    source="Erichson, Lim, Mahoney 2022, arXiv:2212.00228, the time-discrete form",
    package="torchrecurrent.tauGRUCell",
    seen="none",
)
class TauGRU(Cell):
    """A gated unit that is also fed its own state of tau steps ago, kept in a delay line.

    Differs: biases. The paper chooses tau for each task. In a file that is likely the authors' (a class tauGRU, without
    a name to cite), the input is delayed too, a sees the delayed pair, and a tau of 1 delays nothing: ours plus 1.
    """

    tau: int = 2

    U_1, W_1, b_1 = gate()
    U_2, W_2, b_2 = gate()
    U_3, W_3, b_3 = gate(role="update")
    U_4, W_4, b_4 = gate(role="input")
    delayed = State("tau", "hidden")

    def step(self, x: Tensor, h: Tensor, delayed: Tensor) -> tuple[Tensor, Tensor]:
        u = tanh(h @ self.W_1 + x @ self.U_1 + self.b_1)
        z = tanh(delayed[:, 0] @ self.W_2 + x @ self.U_2 + self.b_2)
        g = sigmoid(h @ self.W_3 + x @ self.U_3 + self.b_3)
        a = sigmoid(h @ self.W_4 + x @ self.U_4 + self.b_4)
        return (1 - g) * h + g * (u + a * z), torch.cat([delayed[:, 1:], h.unsqueeze(1)], 1)


@register(
    "brc",
    source="Vecoven, Ernst, Drion 2021, arXiv:2006.05252, BRC",
    package="torchrecurrent.BRCell",
    code="github.com/nvecoven/BRC at 1b99539, cells/cells.py",
)
class BRC(Cell):
    """Bistable recurrent cell: every unit sees only itself, and holds one of two values where its gain a exceeds 1.

    Differs: the gates have biases and their recurrent weights start at 1, as in the authors' code.
    """

    U_a, w_a, b_a = InputWeight(), Diagonal(init=1.0), Bias()
    U_c, w_c, b_c = InputWeight(), Diagonal(init=1.0), Bias(role="forget")
    U = InputWeight()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        a = 1 + tanh(x @ self.U_a + self.w_a * h + self.b_a)
        c = sigmoid(x @ self.U_c + self.w_c * h + self.b_c)
        return c * h + (1 - c) * tanh(x @ self.U + a * h)


@register(
    "nbrc",
    source="Vecoven, Ernst, Drion 2021, arXiv:2006.05252, nBRC",
    package="torchrecurrent.NBRCell",
    code="github.com/nvecoven/BRC at 1b99539, cells/cells.py",
)
class NBRC(Cell):
    """Recurrently neuromodulated bistable cell: all units together decide each unit's gain and memory.

    Differs: the gates have biases, as in the authors' code.
    """

    U_a, W_a, b_a = gate()
    U_c, W_c, b_c = gate(role="forget")
    U = InputWeight()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        a = 1 + tanh(x @ self.U_a + h @ self.W_a + self.b_a)
        c = sigmoid(x @ self.U_c + h @ self.W_c + self.b_c)
        return c * h + (1 - c) * tanh(x @ self.U + a * h)


def _delay(order: int, theta: float) -> Tensor:
    """[order + 1, order]: transposed A and B of the Legendre delay of theta steps, under zero-order hold."""
    j = torch.arange(order, dtype=torch.float64, device="cpu")
    i = j[:, None]
    A = (2 * i + 1) * torch.where(i < j, -1.0, (-1.0) ** (i - j + 1))
    B = (2 * i + 1) * (-1.0) ** i
    system = nn.functional.pad(torch.cat([A, B], 1) / theta, (0, 0, 0, 1))
    return torch.linalg.matrix_exp(system)[:order].T


@register(
    "lmu",
    source="Voelker, Kajić, Eliasmith 2019, Legendre memory units, NeurIPS 32, memory: eq. 1",
    code="github.com/abr/neurips2019 at a456a00, code/lmu.py",
)
class LMU(Cell):
    """Legendre memory unit: a fixed linear memory m of the last theta steps of one signal, beside a simple network.

    Discretised by a zero-order hold, and with initial values, as in the authors' code.
    """

    order: int = 16
    theta: float = 64.0

    e_x, e_h = Weight("input", 1, init=_within(math.sqrt(3))), Weight("hidden", 1, init=_within(math.sqrt(3)))
    W_x, W_h = InputWeight(init=nn.init.xavier_normal_), RecurrentWeight(init=nn.init.xavier_normal_)
    e_m, W_m = Weight("order", 1, init=0.0), Weight("order", "hidden", init=nn.init.xavier_normal_)
    A, B = Weight("order", "order", init="fill_A", trainable=False), Weight(1, "order", init="fill_B", trainable=False)
    m = State("order")

    def fill_A(self, tensor: Tensor) -> None:
        tensor.copy_(_delay(self.order, self.theta)[:-1])

    def fill_B(self, tensor: Tensor) -> None:
        tensor.copy_(_delay(self.order, self.theta)[-1:])

    def step(self, x: Tensor, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        u = x @ self.e_x + h @ self.e_h + m @ self.e_m
        m = m @ self.A + u @ self.B
        return tanh(x @ self.W_x + h @ self.W_h + m @ self.W_m), m


@register(
    "ltc",
    source="Hasani et al. 2021, arXiv:2006.04439, the fused solver",
    code="github.com/mlech26l/ncps at 695ec22, ncps/torch/ltc_cell.py and ncps/wirings/wirings.py",
)
class LTC(Cell):
    """Liquid time-constant neurons: synapses set both where the potential v goes and how fast.

    Of synapses from input (s) and neurons (r): gain w, steepness k, threshold m, potential E; leak g, E; capacity C.
    Differs: softplus keeps w, g and C positive; the authors' code, whose initial values these are (E of synapses is +1
    two times in three, as in its FullyConnected), clips by default. Its affine map of the output is left out.
    """

    unfolds: int = 6

    a, b, C = Weight("input", init=1.0), Weight("input", init=0.0), Weight("hidden", init=_positive(0.4, 0.6))
    g, E = Weight("hidden", init=_positive(0.001, 1)), Weight("hidden", init=_between(-0.2, 0.2))
    w_s, w_r = Weight("input", "hidden", init=_positive(0.001, 1)), Weight("hidden", "hidden", init=_positive(0.001, 1))
    k_s, k_r = Weight("input", "hidden", init=_between(3, 8)), Weight("hidden", "hidden", init=_between(3, 8))
    m_s, m_r = Weight("input", "hidden", init=_between(0.3, 0.8)), Weight("hidden", "hidden", init=_between(0.3, 0.8))
    E_s, E_r = Weight("input", "hidden", init=_sign), Weight("hidden", "hidden", init=_sign)

    def step(self, x: Tensor, v: Tensor) -> Tensor:
        g, C, w_s, w_r = softplus(self.g), self.unfolds * softplus(self.C), softplus(self.w_s), softplus(self.w_r)
        s = w_s * sigmoid(self.k_s * ((self.a * x + self.b).unsqueeze(2) - self.m_s))  # [B, I, H]
        pull, speed = (s * self.E_s).sum(1) + g * self.E, s.sum(1) + g
        for _ in range(self.unfolds):
            r = sigmoid(self.k_r * v.unsqueeze(2) - self.k_r * self.m_r)  # [B, H, H], from and to
            v = (C * v + pull + (r * (w_r * self.E_r)).sum(1)) / (C + speed + (r * w_r).sum(1))
        return v


@register(
    "cfc",
    source="Hasani et al. 2022, arXiv:2106.13898, the gated form",
    code="github.com/mlech26l/ncps at 695ec22, ncps/torch/cfc_cell.py",
)
class CfC(Cell):
    """Closed-form continuous-time cell: a backbone f of input and state feeds two heads and the gate between them.

    Differs: the gate has a term of its own, f_b, beside the one that time multiplies, as in the authors' code.
    """

    backbone_units: int = 128
    ts: float = 1.0

    W, U, b = Weight("input", "backbone_units"), Weight("hidden", "backbone_units"), Weight("backbone_units")
    W_g, b_g = Weight("backbone_units", "hidden"), Bias()
    W_h, b_h = Weight("backbone_units", "hidden"), Bias()
    W_a, b_a = Weight("backbone_units", "hidden"), Bias()
    W_b, b_b = Weight("backbone_units", "hidden"), Bias()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        f = 1.7159 * tanh(0.666 * (x @ self.W + h @ self.U + self.b))
        g = tanh(f @ self.W_g + self.b_g)
        h_hat = tanh(f @ self.W_h + self.b_h)
        t = sigmoid((f @ self.W_a + self.b_a) * self.ts + f @ self.W_b + self.b_b)
        return (1 - t) * g + t * h_hat
