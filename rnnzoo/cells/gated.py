"""Gated recurrences that are neither LSTM nor GRU."""

from typing import Literal

from torch import Tensor, clamp, exp, maximum, relu, sigmoid, tanh, where
from torch.nn.functional import softplus

from rnnzoo.cell import Bias, Cell, InputWeight, RawInput, RecurrentWeight, Scalar, Weight, gate
from rnnzoo.registry import register


@register("minimal_rnn", source="Chen 2017, arXiv:1711.06788", package="torchrecurrent.MinimalRNNCell")
class MinimalRNN(Cell):
    """Minimal RNN: one gate chooses between the old state and a latent z of the input alone, and sees both.

    Differs: the paper leaves the map from x to z open; here it is its own choice, one tanh layer.
    """

    W_x, b_z = InputWeight(), Bias()
    U_h, U_z, b_u = RecurrentWeight(), Weight("hidden", "hidden"), Bias(role="forget")

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        z = tanh(x @ self.W_x + self.b_z)
        u = sigmoid(h @ self.U_h + z @ self.U_z + self.b_u)
        return u * h + (1 - u) * z


@register(
    "ugrnn",
    source="Collins, Sohl-Dickstein, Sussillo 2017, arXiv:1611.09913, eq. 2-4",
    package="torchrecurrent.UGRNNCell",
    code="github.com/tensorflow/tensorflow at 9aca4c6, tensorflow/contrib/rnn/python/ops/rnn_cell.py",
)
class UGRNN(Cell):
    """Update gate RNN: a simple recurrent network whose one gate g keeps or replaces the state.

    Differs: the paper's b^fg is where b_g starts, at 1 as in the code (the paper tunes it).
    """

    nonlinearity: Literal["tanh", "relu"] = "tanh"

    W_c, U_c, b_c = gate()
    W_g, U_g, b_g = gate(bias=1.0, role="forget")

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        s = tanh if self.nonlinearity == "tanh" else relu
        c = s(h @ self.U_c + x @ self.W_c + self.b_c)
        g = sigmoid(h @ self.U_g + x @ self.W_g + self.b_g)
        return g * h + (1 - g) * c


@register(
    "intersection_rnn",
    source="Collins, Sohl-Dickstein, Sussillo 2017, arXiv:1611.09913, eq. 15-20",
    package="torchrecurrent.IntersectionRNNCell",
    code="github.com/tensorflow/tensorflow at 9aca4c6, tensorflow/contrib/rnn/python/ops/rnn_cell.py",
)
class IntersectionRNN(Cell):
    """+RNN: one gate carries the state h through time, another the raw input to the output y, through depth.

    Differs: where x is not as wide as h, it is padded with zeros or folded in the depth path; the paper forbids it,
    the code then projects x first. Gate biases start at the code's 1. The old y is not used.
    """

    identity = RawInput()
    W_y, U_y, b_y = gate()
    W_h, U_h, b_h = gate()
    W_gy, U_gy, b_gy = gate(bias=1.0)
    W_gh, U_gh, b_gh = gate(bias=1.0, role="forget")

    def step(self, x: Tensor, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y_in = relu(h @ self.U_y + x @ self.W_y + self.b_y)
        h_in = tanh(h @ self.U_h + x @ self.W_h + self.b_h)
        g_y = sigmoid(h @ self.U_gy + x @ self.W_gy + self.b_gy)
        g_h = sigmoid(h @ self.U_gh + x @ self.W_gh + self.b_gh)
        y = g_y * (x @ self.identity) + (1 - g_y) * y_in
        h = g_h * h + (1 - g_h) * h_in
        return y, h


@register(
    "ran",
    source="Lee, Levy, Zettlemoyer 2017, arXiv:1705.07393",
    package="torchrecurrent.RANCell",
    code="github.com/kentonl/ran at bcee2c8, ran.py",
)
class RAN(Cell):
    """Recurrent additive network: the memory c is a gated sum of linear inputs, the state h its tanh."""

    nonlinearity: Literal["tanh", "identity"] = "tanh"

    W_c = InputWeight()
    W_i, U_i, b_i = gate(role="input")
    W_f, U_f, b_f = gate(role="forget")

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        content = x @ self.W_c
        i = sigmoid(h @ self.U_i + x @ self.W_i + self.b_i)
        f = sigmoid(h @ self.U_f + x @ self.W_f + self.b_f)
        c = i * content + f * c
        h = tanh(c) if self.nonlinearity == "tanh" else c
        return h, c


@register(
    "cfn",
    source="Laurent & von Brecht 2017, arXiv:1612.06212, eq. 1-2, biases from section 3",
    package="torchrecurrent.CFNCell",
)
class CFN(Cell):
    """Chaos-free network: without input every state decays to zero.

    Differs: matrices start Glorot-uniform and orthogonal, not uniform in ±0.07, which was chosen for one width.
    """

    W = InputWeight()
    V_theta, U_theta, b_theta = gate(bias=1.0, role="forget")
    V_eta, U_eta, b_eta = gate(bias=-1.0, role="input")

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        theta = sigmoid(h @ self.U_theta + x @ self.V_theta + self.b_theta)
        eta = sigmoid(h @ self.U_eta + x @ self.V_eta + self.b_eta)
        return theta * tanh(h) + eta * tanh(x @ self.W)


@register(
    "atr",
    source="Zhang et al. 2018, arXiv:1810.12546",
    package="torchrecurrent.ATRCell",
    code="github.com/bzhangGo/ATR at 4283f69, lm/tensorflow-lm/atr.py and lm/pytorch-lm/rnn/atr.py",
)
class ATR(Cell):
    """Addition-subtraction twin gates: sum and difference of one product of x and one of h open the gates."""

    W, U = InputWeight(), RecurrentWeight()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        p = x @ self.W
        q = h @ self.U
        i = sigmoid(p + q)
        f = sigmoid(p - q)
        return i * p + f * h


@register(
    "star",
    source="Turkoglu et al. 2021, arXiv:1911.11033, fig. 3",
    package="torchrecurrent.STARCell",
    code="github.com/0zgur0/STAckable-Recurrent-network at acc5523, star.py",
)
class STAR(Cell):
    """Stackable recurrent cell: one gate k mixes the old state with a function of x alone, tanh squashes the mixture.

    Differs: `beta=1` is the code's form, where the new comes in by more than the old goes. b_k starts at the code's
    value for no known length, -1 (its default is chrono=784).
    """

    beta: float = 0.0

    W_z, b_z = InputWeight(), Bias()
    W_k, U_k, b_k = gate(bias=-1.0, role="update")

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        z = tanh(x @ self.W_z + self.b_z)
        k = x @ self.W_k + h @ self.U_k + self.b_k
        return tanh((1 - sigmoid(k)) * h + sigmoid(k + self.beta) * z)


@register(
    "sgrn",
    source="Zu & Wei 2020, IET Generation, Transmission & Distribution 15(4), doi:10.1049/gtd2.12056",
    package="torchrecurrent.SGRNCell",
    seen="none",
)
class SGRN(Cell):
    """Simple gated recurrent network: one gate, and the input's product is both seen by it and let in by it."""

    W, U, b = gate(role="forget")

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        content = x @ self.W
        f = sigmoid(content + h @ self.U + self.b)
        i = 1 - f
        return tanh(i * content + f * h)


def _hard_sigmoid(a: Tensor) -> Tensor:
    """Theano's, of slope 1/5; torch's has 1/6."""
    return clamp(0.2 * a + 0.5, 0.0, 1.0)


@register(
    "sgu",
    source="Gao & Glowacka 2016, arXiv:1604.02910",
    package="torchrecurrent.SGUCell",
    code="github.com/gaoyuankidult/einstein at 775f036, einstein/layers/recurrent.py",
)
class SGU(Cell):
    """Simple gated unit: x multiplies the state before its product, and that product multiplies the state again."""

    W_g, U_g, b_g = gate()
    W_z, U_z, b_z = gate(role="update")

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        x_g = x @ self.W_g + self.b_g
        z_g = tanh((x_g * h) @ self.U_g)
        z_out = softplus(z_g * h)
        z = _hard_sigmoid(x @ self.W_z + h @ self.U_z + self.b_z)
        return (1 - z) * h + z * z_out


@register(
    "dsgu",
    source="Gao & Glowacka 2016, arXiv:1604.02910",
    package="torchrecurrent.DSGUCell",
    code="github.com/gaoyuankidult/einstein at 775f036, einstein/layers/recurrent.py",
)
class DSGU(Cell):
    """Deep simple gated unit: the gated state passes one more matrix and a sigmoid."""

    W_g, U_g, b_g = gate()
    U_o = RecurrentWeight()
    W_z, U_z, b_z = gate(role="update")

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        x_g = x @ self.W_g + self.b_g
        z_g = tanh((x_g * h) @ self.U_g)
        z_out = sigmoid((z_g * h) @ self.U_o)
        z = _hard_sigmoid(x @ self.W_z + h @ self.U_z + self.b_z)
        return (1 - z) * h + z * z_out


@register(
    "fast_rnn",
    source="Kusupati et al. 2018, arXiv:1901.02358, eq. 2",
    package="torchrecurrent.FastRNNCell",
    code="github.com/microsoft/EdgeML at 81025fc, pytorch/edgeml_pytorch/graph/rnn.py",
)
class FastRNN(Cell):
    """A simple recurrent network with a residual: two learned numbers in (0, 1) weigh the new and the old state.

    Differs: b starts at 0, matrices Glorot-uniform and orthogonal; in the code at 1 and 0.1 N(0, 1).
    """

    nonlinearity: Literal["tanh", "relu", "sigmoid"] = "tanh"

    W, U, b = gate()
    alpha, beta = Scalar(init=-3.0), Scalar(init=3.0)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        phi = {"tanh": tanh, "relu": relu, "sigmoid": sigmoid}[self.nonlinearity]
        candidate = phi(x @ self.W + h @ self.U + self.b)
        return sigmoid(self.alpha) * candidate + sigmoid(self.beta) * h


@register(
    "fast_grnn",
    source="Kusupati et al. 2018, arXiv:1901.02358, eq. 6-7",
    package="torchrecurrent.FastGRNNCell",
    code="github.com/microsoft/EdgeML at 81025fc, pytorch/edgeml_pytorch/graph/rnn.py",
)
class FastGRNN(Cell):
    """FastRNN with a gate that shares W and U with the candidate; rank r > 0 makes them products A B^T, stacked [B, A].

    Differs: b_h starts at 0, matrices as in FastRNN; sparsity and quantisation are left out.
    """

    w_rank: int = 0
    u_rank: int = 0

    w_rows = property(lambda self: self.input_size + self.hidden_size * (self.w_rank > 0))
    w_columns = property(lambda self: self.w_rank or self.hidden_size)
    u_rows = property(lambda self: self.hidden_size + self.hidden_size * (self.u_rank > 0))
    u_columns = property(lambda self: self.u_rank or self.hidden_size)
    W, U = InputWeight("w_rows", "w_columns"), RecurrentWeight("u_rows", "u_columns")
    b_z, b_h = Bias(init=1.0, role="forget"), Bias()
    zeta, nu = Scalar(init=1.0), Scalar(init=-4.0)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        Wx = x @ self.W[: self.input_size] @ self.W[self.input_size :].T if self.w_rank else x @ self.W
        Uh = h @ self.U[: self.hidden_size] @ self.U[self.hidden_size :].T if self.u_rank else h @ self.U
        z = sigmoid(Wx + Uh + self.b_z)
        candidate = tanh(Wx + Uh + self.b_h)
        return (sigmoid(self.zeta) * (1 - z) + sigmoid(self.nu)) * candidate + z * h


@register(
    "rwa",
    source="Ostmeyer & Cowell 2017, arXiv:1703.01253",
    code="github.com/jostmey/rwa at 33d3546, adding_problem_100/rwa_model/train.py",
    seen="none",
)
class RWA(Cell):
    """Recurrent weighted average of all that was seen, weighted by exp(a); n and d are its sums, divided by exp(p).

    Differs: the exponent p is the largest a so far, in the code their sum above 0: the same average, never 0/0. The
    initial state is zero unless the layer learns it; the code's matrices start √3 times as wide.
    """

    W_u, b_u = InputWeight(), Bias()
    W_g, U_g, b_g = gate()
    W_a, U_a = InputWeight(), RecurrentWeight()

    def step(self, x: Tensor, h: Tensor, n: Tensor, d: Tensor, p: Tensor) -> tuple[Tensor, ...]:
        z = (x @ self.W_u + self.b_u) * tanh(x @ self.W_g + h @ self.U_g + self.b_g)
        a = x @ self.W_a + h @ self.U_a
        top = where(d == 0, a, maximum(p, a))
        keep, weight = exp((p - top).clamp(max=0)), exp(a - top)
        n, d = keep * n + weight * z, keep * d + weight
        return tanh(n / d), n, d, top
