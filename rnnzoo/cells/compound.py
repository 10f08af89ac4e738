"""Long short-term memory put together with more of its kind, and with other ways for input and state to meet."""

import torch
from torch import Tensor, nn, sigmoid, softmax, tanh

from rnnzoo.cell import Bias, Cell, Diagonal, InputWeight, RecurrentWeight, Role, State, Weight
from rnnzoo.registry import register


def each(tensor: Tensor) -> None:
    """Every matrix of a stack orthogonal."""
    for matrix in tensor:
        nn.init.orthogonal_(matrix)


def glorot(tensor: Tensor) -> None:
    """Every matrix of a stack Glorot-uniform."""
    for matrix in tensor:
        nn.init.xavier_uniform_(matrix)


def _faint(tensor: Tensor) -> None:
    nn.init.normal_(tensor, std=0.01)


def forget_one(tensor: Tensor) -> None:
    """Biases of i, f, g and o: that of f is 1."""
    tensor.zero_()[1] = 1


def _gates(before: str = "input", width: str = "hidden") -> tuple[Weight, Weight, Bias]:
    """Stacks for the four gates of an LSTM."""
    return Weight(4, before, width, init=glorot), Weight(4, width, width, init=each), Bias(4, width, init=forget_one)


def lstm(x: Tensor, h: Tensor, c: Tensor, W: Tensor, U: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A step of a plain LSTM; W, U and b are stacks for i, f, g and o."""
    new = sigmoid(x @ W[0] + h @ U[0] + b[0]) * tanh(x @ W[2] + h @ U[2] + b[2])
    c = sigmoid(x @ W[1] + h @ U[1] + b[1]) * c + new
    return sigmoid(x @ W[3] + h @ U[3] + b[3]) * tanh(c), c


class _Mogrifier(Cell):
    """Parameters of a mogrifier: of the scales in odd and even rounds, and of the gates i, f, j and o."""

    rounds: int = 5
    odd = property(lambda self: (self.rounds + 1) // 2)
    even = property(lambda self: self.rounds // 2)
    Q, q = Weight("odd", "hidden", "input", init=glorot), Weight("odd", "input", init=0.0)
    R, r = Weight("even", "input", "hidden", init=glorot), Weight("even", "hidden", init=0.0)
    W, U, b = _gates()


@register(
    "mogrifier_lstm",
    source="Melis, Kočiský, Blunsom 2020, arXiv:1909.01792",
    code="github.com/google-deepmind/lamb at 254a0b0, lamb/tiled_lstm.py",
    seen="none",
)
class MogrifierLSTM(_Mogrifier):
    """An LSTM before which input and state scale one another, in turn, by twice a sigmoid; `rounds` is at least 2.

    Differs: the scales have biases, p and q, as in the authors' code; its projection and its tied gates are left out.
    The forget gate's bias starts at 1 (Jozefowicz et al. 2015, section 2.2).
    """

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        for k in range(self.rounds):
            if k % 2 == 0:
                x = 2 * sigmoid(h @ self.Q[k // 2] + self.q[k // 2]) * x
            else:
                h = 2 * sigmoid(x @ self.R[k // 2] + self.r[k // 2]) * h
        i = sigmoid(x @ self.W[0] + h @ self.U[0] + self.b[0])
        f = sigmoid(x @ self.W[1] + h @ self.U[1] + self.b[1])
        j = tanh(x @ self.W[2] + h @ self.U[2] + self.b[2])
        o = sigmoid(x @ self.W[3] + h @ self.U[3] + self.b[3])
        c = f * c + i * j
        return o * tanh(c), c


class _Ordered(Cell):
    """Parameters of ordered neurons; L sums up over chunks and gives each unit its chunk's value."""

    chunk_size: int = 4
    chunks = property(lambda self: -(-self.hidden_size // self.chunk_size))
    W, U, b = _gates()
    W_f, U_f, b_f = Weight("input", "chunks"), Weight("hidden", "chunks"), Bias("chunks")
    W_i, U_i, b_i = Weight("input", "chunks"), Weight("hidden", "chunks"), Bias("chunks")
    L = Weight("chunks", "hidden", init="cumulate", trainable=False)

    def cumulate(self, tensor: Tensor) -> None:
        """Sums over the chunks up to a unit's own."""
        own = torch.arange(self.hidden_size) // self.chunk_size
        tensor.copy_(torch.arange(self.chunks)[:, None] <= own)


@register(
    "on_lstm",
    source="Shen et al. 2019, arXiv:1810.09536",
    code="github.com/yikangshen/Ordered-Neurons at 46d63cd, ON_LSTM.py",
    seen="none",
)
class ONLSTM(_Ordered):
    """Ordered neurons: two master gates, cumulative softmaxes, split the memory into a part to keep and one to write.

    Units are ordered in chunks of `chunk_size`, which share their master gates' values. Differs: DropConnect is left
    out; the forget gate's bias starts at 1 (Jozefowicz et al. 2015, section 2.2).
    """

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i = sigmoid(x @ self.W[0] + h @ self.U[0] + self.b[0])
        f = sigmoid(x @ self.W[1] + h @ self.U[1] + self.b[1])
        o = sigmoid(x @ self.W[3] + h @ self.U[3] + self.b[3])
        c_hat = tanh(x @ self.W[2] + h @ self.U[2] + self.b[2])
        f_master = softmax(x @ self.W_f + h @ self.U_f + self.b_f, -1) @ self.L
        i_master = 1 - softmax(x @ self.W_i + h @ self.U_i + self.b_i, -1) @ self.L
        omega = f_master * i_master
        c = (f * omega + f_master - omega) * c + (i * omega + i_master - omega) * c_hat
        return o * tanh(c), c


def _meeting(
    bias: float = 0.0, role: Role = ""
) -> tuple[InputWeight, RecurrentWeight, Diagonal, Diagonal, Diagonal, Bias]:
    """Parameters of a multiplicative integration."""
    return (
        InputWeight(),
        RecurrentWeight(),
        Diagonal(init=1.0),
        Diagonal(init=1.0),
        Diagonal(init=1.0),
        Bias(init=bias, role=role),
    )


def meet(Wx: Tensor, Uh: Tensor, α: Tensor, β_1: Tensor, β_2: Tensor, b: Tensor) -> Tensor:
    """Multiplicative integration of the products of input and state."""
    return α * Wx * Uh + β_1 * Uh + β_2 * Wx + b


class _MI(Cell):
    W_i, U_i, α_i, β_i1, β_i2, b_i = _meeting(role="input")
    W_f, U_f, α_f, β_f1, β_f2, b_f = _meeting(bias=1.0, role="forget")


@register("mi_lstm", source="Wu et al. 2016, arXiv:1606.06630", seen="none")
class MultiplicativeIntegrationLSTM(_MI):
    """An LSTM in whose gates and candidate input and state meet in a product as well as in a sum.

    Differs: the forget gate's bias starts at 1 (Jozefowicz et al. 2015, section 2.2).
    """

    W_z, U_z, α_z, β_z1, β_z2, b_z = _meeting()
    W_o, U_o, α_o, β_o1, β_o2, b_o = _meeting()

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        z = tanh(meet(x @ self.W_z, h @ self.U_z, self.α_z, self.β_z1, self.β_z2, self.b_z))
        i = sigmoid(meet(x @ self.W_i, h @ self.U_i, self.α_i, self.β_i1, self.β_i2, self.b_i))
        f = sigmoid(meet(x @ self.W_f, h @ self.U_f, self.α_f, self.β_f1, self.β_f2, self.b_f))
        o = sigmoid(meet(x @ self.W_o, h @ self.U_o, self.α_o, self.β_o1, self.β_o2, self.b_o))
        c = i * z + f * c
        return o * tanh(c), c


@register("mi_gru", source="Wu et al. 2016, arXiv:1606.06630", seen="none")
class MultiplicativeIntegrationGRU(Cell):
    """A gated recurrent unit in whose gates and candidate input and state meet in a product as well as in a sum."""

    W_z, U_z, α_z, β_z1, β_z2, b_z = _meeting(role="update")
    W_r, U_r, α_r, β_r1, β_r2, b_r = _meeting()
    W_h, U_h, α_h, β_h1, β_h2, b_h = _meeting()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        z = sigmoid(meet(x @ self.W_z, h @ self.U_z, self.α_z, self.β_z1, self.β_z2, self.b_z))
        r = sigmoid(meet(x @ self.W_r, h @ self.U_r, self.α_r, self.β_r1, self.β_r2, self.b_r))
        h_hat = tanh(meet(x @ self.W_h, (r * h) @ self.U_h, self.α_h, self.β_h1, self.β_h2, self.b_h))
        return (1 - z) * h + z * h_hat


@register(
    "fast_slow",
    source="Mujika, Meier, Steger 2017, arXiv:1705.08639, FS-LSTM",
    code="github.com/amujika/Fast-Slow-LSTM at f63a599, FSRNN.py",
    seen="none",
)
class FastSlow(Cell):
    """Two fast LSTM cells that act one after the other on one state, and a slow one that is run between them.

    Differs: two fast cells, the least the paper allows; the slow one is as wide. Dropout and layer norm are left out
    (the layer has both). Biases of forget gates start at 1, as they do there.
    """

    W_1, U_1, b_1 = _gates()
    W_S, U_S, b_S = _gates("hidden")
    W_2, U_2, b_2 = _gates("hidden")

    def step(self, x: Tensor, h: Tensor, c: Tensor, h_S: Tensor, c_S: Tensor) -> tuple[Tensor, ...]:
        h, c = lstm(x, h, c, self.W_1, self.U_1, self.b_1)
        h_S, c_S = lstm(h, h_S, c_S, self.W_S, self.U_S, self.b_S)
        h, c = lstm(h_S, h, c, self.W_2, self.U_2, self.b_2)
        return h, c, h_S, c_S


class _Hyper(Cell):
    """Parameters of a HyperLSTM: a small LSTM, and what turns its output into scales and biases of i, f, g and o."""

    hyper_size: int = 0
    embedding_size: int = 4
    small = property(lambda self: self.hyper_size or -(-self.hidden_size // 8))
    hyper_input = property(lambda self: self.input_size + self.hidden_size)
    h_hat, c_hat = State("small"), State("small")
    V, R, d = _gates("hyper_input", "small")
    W, U, b = _gates()
    Z_x, z_x = Weight(4, "small", "embedding_size", init=_faint), Weight(4, "embedding_size", init=1.0)
    Z_h, z_h = Weight(4, "small", "embedding_size", init=_faint), Weight(4, "embedding_size", init=1.0)
    Z_b = Weight(4, "small", "embedding_size", init=_faint)
    D_x, D_h = Weight(4, "embedding_size", "hidden", init="tenth"), Weight(4, "embedding_size", "hidden", init="tenth")
    D_b = Weight(4, "embedding_size", "hidden", init=_faint)

    def tenth(self, tensor: Tensor) -> None:
        tensor.fill_(0.1 / self.embedding_size)


@register(
    "hyper_lstm",
    source="Ha, Dai, Le 2017, arXiv:1609.09106",
    code="github.com/hardmaru/supercell at 063b01e, supercell.py, HyperLSTMCell",
    seen="none",
)
class HyperLSTM(_Hyper):
    """An LSTM whose products and biases are scaled and shifted, anew at every step, by a smaller LSTM that watches it.

    `hyper_size=0` stands for an eighth of H, as in the paper's 128 of 1000.
    Differs: layer norm is left out (the layer has it). As in the authors' code the scales come of the new output of the
    small LSTM; what starts at 0 there starts at N(0, 0.01²), as Z_b does, so that gradients reach that LSTM at once.
    """

    def step(self, x: Tensor, h: Tensor, c: Tensor, h_hat: Tensor, c_hat: Tensor) -> tuple[Tensor, ...]:
        h_hat, c_hat = lstm(torch.cat([x, h], -1), h_hat, c_hat, self.V, self.R, self.d)
        a = []
        for k in range(4):
            d_x = (h_hat @ self.Z_x[k] + self.z_x[k]) @ self.D_x[k]
            d_h = (h_hat @ self.Z_h[k] + self.z_h[k]) @ self.D_h[k]
            a.append(d_x * (x @ self.W[k]) + d_h * (h @ self.U[k]) + h_hat @ self.Z_b[k] @ self.D_b[k] + self.b[k])
        i, f, g, o = sigmoid(a[0]), sigmoid(a[1]), tanh(a[2]), sigmoid(a[3])
        c = f * c + i * g
        return o * tanh(c), c, h_hat, c_hat
