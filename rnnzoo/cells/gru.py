"""The gated recurrent unit, its reductions and its mutations."""

from functools import partial

import torch
from torch import Tensor, exp, nn, relu, sigmoid, tanh
from torch.nn.functional import layer_norm

from rnnzoo.cell import Bias, Cell, InputWeight, RawInput, RecurrentWeight, State, Weight, gate
from rnnzoo.registry import register


@register(
    "gru", source="Cho et al. 2014, arXiv:1406.1078v1, section 2.3, with biases as in cuDNN", package="torch.nn.GRUCell"
)
class GRU(Cell):
    """One state, an update gate z that keeps or replaces it, a reset gate r after the product.

    Differs: biases, which the paper leaves out; c_n stands inside the reset, as cuDNN and torch have it.
    """

    W_r, U_r, b_r = gate()
    W_z, U_z, b_z = gate(role="forget")
    W_n, U_n, b_n = gate()
    c_n = Bias()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        r = sigmoid(x @ self.W_r + h @ self.U_r + self.b_r)
        z = sigmoid(x @ self.W_z + h @ self.U_z + self.b_z)
        n = tanh(x @ self.W_n + self.b_n + r * (h @ self.U_n + self.c_n))
        return z * h + (1 - z) * n


@register(
    "gru_reset_before",
    source="Cho et al. 2014, arXiv:1406.1078v3, section 2.3; Chung et al. 2014, arXiv:1412.3555, section 3.2",
)
class ResetBeforeGRU(Cell):
    """The gated recurrent unit of the final paper: the reset gate acts on the state before the product.

    Differs: biases, which the papers leave out. z keeps the old state, as in Cho et al.; Chung et al. write 1 - z.
    """

    W_r, U_r, b_r = gate()
    W_z, U_z, b_z = gate(role="forget")
    W, U, b = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        r = sigmoid(x @ self.W_r + h @ self.U_r + self.b_r)
        z = sigmoid(x @ self.W_z + h @ self.U_z + self.b_z)
        n = tanh(x @ self.W + (r * h) @ self.U + self.b)
        return z * h + (1 - z) * n


@register("gru1", source="Dey & Salem 2017, arXiv:1701.05923, variant 1")
class GRU1(Cell):
    """A gated recurrent unit whose gates see the state and a bias, not the input."""

    U_z, b_z = RecurrentWeight(), Bias(role="update")
    U_r, b_r = RecurrentWeight(), Bias()
    W_h, U_h, b_h = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        z = sigmoid(h @ self.U_z + self.b_z)
        r = sigmoid(h @ self.U_r + self.b_r)
        c = tanh(x @ self.W_h + (r * h) @ self.U_h + self.b_h)
        return (1 - z) * h + z * c


@register("gru2", source="Dey & Salem 2017, arXiv:1701.05923, variant 2")
class GRU2(Cell):
    """A gated recurrent unit whose gates see the state alone."""

    U_z, U_r = RecurrentWeight(), RecurrentWeight()
    W_h, U_h, b_h = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        z = sigmoid(h @ self.U_z)
        r = sigmoid(h @ self.U_r)
        c = tanh(x @ self.W_h + (r * h) @ self.U_h + self.b_h)
        return (1 - z) * h + z * c


@register("gru3", source="Dey & Salem 2017, arXiv:1701.05923, variant 3")
class GRU3(Cell):
    """A gated recurrent unit whose gates are learned constants, one for each unit."""

    b_z, b_r = Bias(role="update"), Bias()
    W_h, U_h, b_h = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        z = sigmoid(self.b_z)
        r = sigmoid(self.b_r)
        c = tanh(x @ self.W_h + (r * h) @ self.U_h + self.b_h)
        return (1 - z) * h + z * c


@register("mgu", source="Zhou et al. 2016, arXiv:1603.09420", package="torchrecurrent.MGUCell")
class MGU(Cell):
    """Minimal gated unit: one gate both forgets and resets."""

    W_f, U_f, b_f = gate(role="update")
    W_h, U_h, b_h = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        f = sigmoid(x @ self.W_f + h @ self.U_f + self.b_f)
        c = tanh(x @ self.W_h + (f * h) @ self.U_h + self.b_h)
        return (1 - f) * h + f * c


@register("mgu1", source="Heck & Salem 2017, arXiv:1701.03452, MGU1")
class MGU1(Cell):
    """A minimal gated unit whose gate sees the state and a bias, not the input."""

    U_f, b_f = RecurrentWeight(), Bias(role="update")
    W_h, U_h, b_h = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        f = sigmoid(h @ self.U_f + self.b_f)
        c = tanh(x @ self.W_h + (f * h) @ self.U_h + self.b_h)
        return (1 - f) * h + f * c


@register("mgu2", source="Heck & Salem 2017, arXiv:1701.03452, MGU2")
class MGU2(Cell):
    """A minimal gated unit whose gate sees the state alone."""

    U_f = RecurrentWeight()
    W_h, U_h, b_h = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        f = sigmoid(h @ self.U_f)
        c = tanh(x @ self.W_h + (f * h) @ self.U_h + self.b_h)
        return (1 - f) * h + f * c


@register("mgu3", source="Heck & Salem 2017, arXiv:1701.03452, MGU3")
class MGU3(Cell):
    """A minimal gated unit whose gate is a learned constant, one for each unit."""

    b_f = Bias(role="update")
    W_h, U_h, b_h = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        f = sigmoid(self.b_f)
        c = tanh(x @ self.W_h + (f * h) @ self.U_h + self.b_h)
        return (1 - f) * h + f * c


@register(
    "mut1",
    source="Jozefowicz, Zaremba, Sutskever 2015, An empirical exploration of recurrent network architectures, MUT1",
)
class MUT1(Cell):
    """First of three units found by mutation: z does not see the state, the candidate adds the raw input's tanh.

    Differs: the raw input is folded or padded to the hidden size where the two sizes differ.
    """

    W_xz, b_z = InputWeight(), Bias(role="update")
    W_xr, W_hr, b_r = gate()
    raw, W_hh, b_h = RawInput(), RecurrentWeight(), Bias()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        z = sigmoid(x @ self.W_xz + self.b_z)
        r = sigmoid(x @ self.W_xr + h @ self.W_hr + self.b_r)
        return tanh((r * h) @ self.W_hh + tanh(x @ self.raw) + self.b_h) * z + h * (1 - z)


@register(
    "mut2",
    source="Jozefowicz, Zaremba, Sutskever 2015, An empirical exploration of recurrent network architectures, MUT2",
)
class MUT2(Cell):
    """Second of three units found by mutation: the reset gate adds the raw input.

    Differs: the raw input is folded or padded to the hidden size where the two sizes differ.
    """

    W_xz, W_hz, b_z = gate(role="update")
    raw, W_hr, b_r = RawInput(), RecurrentWeight(), Bias()
    W_xh, W_hh, b_h = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        z = sigmoid(x @ self.W_xz + h @ self.W_hz + self.b_z)
        r = sigmoid(x @ self.raw + h @ self.W_hr + self.b_r)
        return tanh((r * h) @ self.W_hh + x @ self.W_xh + self.b_h) * z + h * (1 - z)


@register(
    "mut3",
    source="Jozefowicz, Zaremba, Sutskever 2015, An empirical exploration of recurrent network architectures, MUT3",
    package="torchrecurrent.MUT3Cell",
)
class MUT3(Cell):
    """Third of three units found by mutation: the update gate sees the state's tanh."""

    W_xz, W_hz, b_z = gate(role="update")
    W_xr, W_hr, b_r = gate()
    W_xh, W_hh, b_h = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        z = sigmoid(x @ self.W_xz + tanh(h) @ self.W_hz + self.b_z)
        r = sigmoid(x @ self.W_xr + h @ self.W_hr + self.b_r)
        return tanh((r * h) @ self.W_hh + x @ self.W_xh + self.b_h) * z + h * (1 - z)


@register(
    "ligru",
    source="Ravanelli et al. 2018, arXiv:1803.10225, section III",
    code="github.com/speechbrain/speechbrain at 9c826ef, speechbrain/nnet/RNN.py",
)
class LiGRU(Cell):
    """Light gated recurrent unit: no reset gate, a rectified candidate, normalised products with the input.

    Differs: the layer normalisation over both products together that the authors' code offers, where the paper has
    batch normalisation, which mixes the rows of a batch. It would leave of a single feature only the sign: hence
    biases b before it, which do not start at zero. Dropout of the candidate is left out.
    """

    W_h, U_h, b_h = gate(bias=partial(nn.init.normal_, std=0.3))
    W_z, U_z, b_z = gate(bias=partial(nn.init.normal_, std=0.3))
    gamma_h, gamma_z = Weight("hidden", init=1.0), Weight("hidden", init=1.0)
    beta_h, beta_z = Bias(), Bias(role="forget")

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        w = torch.cat([x @ self.W_h + self.b_h, x @ self.W_z + self.b_z], -1)
        w_h, w_z = layer_norm(w, w.shape[-1:]).chunk(2, -1)
        z = sigmoid(w_z * self.gamma_z + self.beta_z + h @ self.U_z)
        c = relu(w_h * self.gamma_h + self.beta_h + h @ self.U_h)
        return z * h + (1 - z) * c


@register(
    "light_ru",
    source="Ye et al. 2024, Light recurrent unit, Electronics 13(16):3204, eq. 3",
    package="torchrecurrent.LightRUCell",
)
class LightRU(Cell):
    """Light recurrent unit: one gate, and a candidate that sees the input alone."""

    W_h = InputWeight()
    W_f, U_f, b_f = gate(role="update")

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        c = tanh(x @ self.W_h)
        f = sigmoid(x @ self.W_f + h @ self.U_f + self.b_f)
        return (1 - f) * h + f * c


@register(
    "miru1",
    source="Zyarah & Kudithipudi 2025, arXiv:2503.06175, MiRU1",
    package="torchrecurrent.MiRU1Cell",
    seen="none",
)
class MiRU1(Cell):
    """Minion recurrent unit with a reset gate: the update gate is a fixed number, λ in the paper."""

    W_r, U_r, b_r = gate()
    W_h, U_h, b_h = gate()
    update_coefficient: float = 0.5

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        r = sigmoid(x @ self.W_r + h @ self.U_r + self.b_r)
        c = tanh(x @ self.W_h + (r * h) @ self.U_h + self.b_h)
        return self.update_coefficient * h + (1 - self.update_coefficient) * c


@register(
    "miru2",
    source="Zyarah & Kudithipudi 2025, arXiv:2503.06175, MiRU2",
    package="torchrecurrent.MiRU2Cell",
    seen="none",
)
class MiRU2(Cell):
    """Minion recurrent unit: fixed numbers in the places of the update and the reset gate, λ and θ in the paper."""

    W_h, U_h, b_h = gate()
    update_coefficient: float = 0.5
    reset_coefficient: float = 0.5

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        c = tanh(x @ self.W_h + (self.reset_coefficient * h) @ self.U_h + self.b_h)
        return self.update_coefficient * h + (1 - self.update_coefficient) * c


@register(
    "mtgru",
    source="Kim, Singh, Lee 2016, arXiv:1607.00718",
    code="github.com/dennissm/mtgru at 21cdb58, MTGRU.py",
    seen="none",
)
class MTGRU(Cell):
    """Multiple timescale GRU: all of a GRU's change is slowed down by a factor τ; layers of a stack differ in it.

    Differs: tau slows down as its name says, by 1 / tau; the code's tau is that share itself.
    """

    tau: float = 1.25
    W_r, U_r, b_r = gate()
    W_z, U_z, b_z = gate(role="forget")
    W_u, U_u, b_u = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        r = sigmoid(x @ self.W_r + h @ self.U_r + self.b_r)
        z = sigmoid(x @ self.W_z + h @ self.U_z + self.b_z)
        u = tanh(x @ self.W_u + (r * h) @ self.U_u + self.b_u)
        return (1 - 1 / self.tau) * h + (z * h + (1 - z) * u) / self.tau


class _GRUD(Cell):
    """What GRU-D reads of its input, fixed matrices that pick values X, masks M and the time gap G, and its decays.

    The first half of the I features, D of them, are values, the last feature is the gap, between them are masks.
    """

    values = property(lambda self: max(1, self.input_size // 2))
    last, overdue = State("values"), State("values")
    X, M = (
        Weight("input", "values", init="pick_values", trainable=False),
        Weight("input", "values", init="pick_masks", trainable=False),
    )
    G = Weight("input", 1, init="pick_gap", trainable=False)
    always = Weight("values", init="unmasked", trainable=False)
    w_x, b_x = Weight("values", init=0.1), Weight("values", init=0.1)
    W_gamma, b_gamma = Weight("values", "hidden"), Bias(init=0.1)

    def pick_values(self, tensor: Tensor) -> None:
        tensor.zero_()[: self.values] = torch.eye(self.values)

    def pick_masks(self, tensor: Tensor) -> None:
        rows = tensor.zero_()[self.values : -1]
        rows.copy_(torch.eye(*rows.shape))

    def pick_gap(self, tensor: Tensor) -> None:
        tensor.zero_()[-1] = self.input_size > 1

    def unmasked(self, tensor: Tensor) -> None:
        tensor.copy_(1 - self.M.sum(0))


@register(
    "gru_d",
    source="Che et al. 2018, arXiv:1606.01865, Scientific Reports 8:6085, GRU-D",
    code="github.com/PeterChe1990/GRU-D at 861fc49, nn_utils/grud_layers.py",
    seen="none",
)
class GRUD(_GRUD):
    """A GRU for series with gaps: x is [values, masks (1: seen), time since the step before]; what is unseen decays.

    `last` is each value last seen, `overdue` the time for which it is missing. For D values I is 2 D + 1; with I even
    the last value has no mask and is always seen. Differs: an unseen value decays to 0, the mean of standardised data.
    The code decays the state that enters gates and candidate alone, keeps h by z, feeds 1 - m for m, and has a sigmoid
    for tanh. Decays start at 0.1, not 0.
    """

    W_r, U_r, V_r, b_r = Weight("values", "hidden"), RecurrentWeight(), Weight("values", "hidden"), Bias()
    W_z, U_z, V_z, b_z = Weight("values", "hidden"), RecurrentWeight(), Weight("values", "hidden"), Bias(role="update")
    W, U, V, b = Weight("values", "hidden"), RecurrentWeight(), Weight("values", "hidden"), Bias()

    def step(self, x: Tensor, h: Tensor, last: Tensor, overdue: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, m, delta = x @ self.X, x @ self.M + self.always, x @ self.G + overdue
        x_hat = m * value + (1 - m) * exp(-relu(self.w_x * delta + self.b_x)) * last
        h = exp(-relu(delta @ self.W_gamma + self.b_gamma)) * h
        r = sigmoid(x_hat @ self.W_r + h @ self.U_r + m @ self.V_r + self.b_r)
        z = sigmoid(x_hat @ self.W_z + h @ self.U_z + m @ self.V_z + self.b_z)
        c = tanh(x_hat @ self.W + (r * h) @ self.U + m @ self.V + self.b)
        return (1 - z) * h + z * c, m * value + (1 - m) * last, (1 - m) * delta
