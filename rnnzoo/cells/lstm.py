"""Long short-term memory and its variants."""

from typing import Literal

from torch import Tensor, nn, sigmoid, tanh

from rnnzoo.cell import Bias, Cell, Diagonal, InputWeight, RecurrentWeight, Role, State, gate
from rnnzoo.errors import UserError
from rnnzoo.registry import register


@register(
    "lstm",
    source="Gers, Schmidhuber, Cummins 2000, Learning to forget, Neural Computation 12(10)",
    package="torch.nn.LSTMCell",
)
class LSTM(Cell):
    """A memory c that is added to, forgotten from and read through gates.

    Differs: tanh squashes input and output as in all later practice; the forget gate's bias starts at 1
    (Jozefowicz et al. 2015, section 2.2).
    """

    W_i, U_i, b_i = gate(role="input")
    W_f, U_f, b_f = gate(bias=1.0, role="forget")
    W_g, U_g, b_g = gate()
    W_o, U_o, b_o = gate()

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i = sigmoid(x @ self.W_i + h @ self.U_i + self.b_i)
        f = sigmoid(x @ self.W_f + h @ self.U_f + self.b_f)
        g = tanh(x @ self.W_g + h @ self.U_g + self.b_g)
        o = sigmoid(x @ self.W_o + h @ self.U_o + self.b_o)
        c = f * c + i * g
        h = o * tanh(c)
        return h, c


@register("lstm_peephole", source="Gers & Schmidhuber 2000, as in Greff et al. 2017, arXiv:1503.04069, section II-A")
class PeepholeLSTM(Cell):
    """The gates also see the memory: i and f the old one, o the new one. Greff's "vanilla" LSTM.

    Differs: the forget gate's bias starts at 1 (Jozefowicz et al. 2015, section 2.2).
    """

    W_z, R_z, b_z = gate()
    W_i, R_i, b_i = gate(role="input")
    W_f, R_f, b_f = gate(bias=1.0, role="forget")
    W_o, R_o, b_o = gate()
    p_i, p_f, p_o = Diagonal(), Diagonal(), Diagonal()

    def step(self, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        z = tanh(x @ self.W_z + y @ self.R_z + self.b_z)
        i = sigmoid(x @ self.W_i + y @ self.R_i + self.p_i * c + self.b_i)
        f = sigmoid(x @ self.W_f + y @ self.R_f + self.p_f * c + self.b_f)
        c = z * i + c * f
        o = sigmoid(x @ self.W_o + y @ self.R_o + self.p_o * c + self.b_o)
        y = tanh(c) * o
        return y, c


@register(
    "lstm_1997",
    source="Hochreiter & Schmidhuber 1997, Neural Computation 9(8), section 4 and appendix A.1 (preprint eq. 3-9)",
    package="torchrecurrent.OriginalLSTMCell",
)
class LSTM1997(Cell):
    """The first LSTM: a memory s that only ever adds up, with gates for input and output and none to forget.

    Differs: gates see x and the cells' outputs y, not one another (the paper leaves the topology to its user); each
    cell has its own gates (blocks of size 1); gradients are not truncated; weights start larger than ±0.1. The input
    gate starts closed against drift, as section 4 advises; -1 is this project's number.
    """

    W_in, U_in, b_in = gate(bias=-1.0, role="input")
    W_out, U_out, b_out = gate()
    W_c, U_c, b_c = gate()

    def step(self, x: Tensor, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        y_in = sigmoid(x @ self.W_in + y @ self.U_in + self.b_in)
        y_out = sigmoid(x @ self.W_out + y @ self.U_out + self.b_out)
        net_c = x @ self.W_c + y @ self.U_c + self.b_c
        s = s + y_in * (4 * sigmoid(net_c) - 2)
        y = y_out * (2 * sigmoid(s) - 1)
        return y, s


def _projected(bias: float = 0.0, role: Role = "") -> tuple[InputWeight, RecurrentWeight, Bias]:
    """The three of a gate that sees a projection of the output."""
    return InputWeight(), RecurrentWeight("projection", "hidden"), Bias(init=bias, role=role)


@register("lstm_projected", source="Sak, Senior, Beaufays 2014, arXiv:1402.1128, eq. 7-12", package="torch.nn.LSTM")
class ProjectedLSTM(Cell):
    """An LSTM with a large memory whose output r, smaller by a linear map, is all that its gates and others see.

    `projection_size=0` stands for half of hidden_size. Differs: no peepholes and no second, non-recurrent projection
    (eq. 13), as in cuDNN and torch; the forget gate's bias starts at 1 (Jozefowicz et al. 2015, section 2.2).
    """

    projection_size: int = 0
    r = State("projection")
    W_ix, W_ir, b_i = _projected(role="input")
    W_fx, W_fr, b_f = _projected(bias=1.0, role="forget")
    W_cx, W_cr, b_c = _projected()
    W_ox, W_or, b_o = _projected()
    W_rm = RecurrentWeight("hidden", "projection")

    @property
    def projection(self) -> int:
        return self.projection_size or (self.hidden_size + 1) // 2

    def step(self, x: Tensor, r: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i = sigmoid(x @ self.W_ix + r @ self.W_ir + self.b_i)
        f = sigmoid(x @ self.W_fx + r @ self.W_fr + self.b_f)
        c = f * c + i * tanh(x @ self.W_cx + r @ self.W_cr + self.b_c)
        o = sigmoid(x @ self.W_ox + r @ self.W_or + self.b_o)
        m = o * tanh(c)
        return m @ self.W_rm, c


@register(
    "lstm_residual",
    source="Kim, El-Khamy, Lee 2017, arXiv:1701.03360",
    package="torchrecurrent.ResLSTMCell",
    seen="none",
)
class ResidualLSTM(Cell):
    """A peephole LSTM whose input reaches the output beside the memory, through the same output gate.

    Differs: W_h, the identity in the paper where x and h have one size, starts as that identity and is learned;
    h is as wide as c; the forget gate's bias starts at 1 (Jozefowicz et al. 2015, section 2.2).
    """

    W_xi, W_hi, b_i = gate(role="input")
    W_xf, W_hf, b_f = gate(bias=1.0, role="forget")
    W_xc, W_hc, b_c = gate()
    W_xo, W_ho, b_o = gate()
    w_ci, w_cf, w_co = Diagonal(), Diagonal(), Diagonal()
    W_p, W_h = RecurrentWeight(), InputWeight(init="shortcut")

    def shortcut(self, W: Tensor) -> None:
        nn.init.eye_(W) if self.input_size == self.hidden_size else nn.init.xavier_uniform_(W)

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i = sigmoid(x @ self.W_xi + h @ self.W_hi + self.w_ci * c + self.b_i)
        f = sigmoid(x @ self.W_xf + h @ self.W_hf + self.w_cf * c + self.b_f)
        c = f * c + i * tanh(x @ self.W_xc + h @ self.W_hc + self.b_c)
        o = sigmoid(x @ self.W_xo + h @ self.W_ho + self.w_co * c + self.b_o)
        m = tanh(c) @ self.W_p
        return o * (m + x @ self.W_h), c


@register(
    "lstm_wmc",
    source="Landi, Baraldi, Cornia, Cucchiara 2021, arXiv:2109.00020",
    package="torchrecurrent.WMCLSTMCell",
    seen="none",
)
class WorkingMemoryLSTM(Cell):
    """Working memory connections: the gates also see a bounded projection of the memory, o that of the new one.

    Differs: the forget gate's bias starts at 1 (Jozefowicz et al. 2015, section 2.2).
    """

    W_gx, W_gh, b_g = gate()
    W_ix, W_ih, b_i = gate(role="input")
    W_fx, W_fh, b_f = gate(bias=1.0, role="forget")
    W_ox, W_oh, b_o = gate()
    W_ic, W_fc, W_oc = RecurrentWeight(), RecurrentWeight(), RecurrentWeight()

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        g = tanh(x @ self.W_gx + h @ self.W_gh + self.b_g)
        i = sigmoid(x @ self.W_ix + h @ self.W_ih + tanh(c @ self.W_ic) + self.b_i)
        f = sigmoid(x @ self.W_fx + h @ self.W_fh + tanh(c @ self.W_fc) + self.b_f)
        c = f * c + i * g
        o = sigmoid(x @ self.W_ox + h @ self.W_oh + tanh(c @ self.W_oc) + self.b_o)
        h = o * tanh(c)
        return h, c


@register(
    "lstm_memory_control",
    source="Ben-Ari & Shwartz-Ziv 2017, Sequence modeling using a memory controller extension for LSTM, NIPS workshop",
    package="torchrecurrent.MCLSTMCell",
    seen="none",
)
class MemoryControlLSTM(Cell):
    """Two gated readings of one memory: h goes out and never comes back, v alone feeds all gates.

    Differs: the forget gate's bias starts at 1 (Jozefowicz et al. 2015, section 2.2).
    """

    W_f, U_f, b_f = gate(bias=1.0, role="forget")
    W_i, U_i, b_i = gate(role="input")
    W_o, U_o, b_o = gate()
    W_m, U_m, b_m = gate()
    W_n, U_n, b_n = gate()

    def step(self, x: Tensor, h: Tensor, v: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f = sigmoid(x @ self.W_f + v @ self.U_f + self.b_f)
        i = sigmoid(x @ self.W_i + v @ self.U_i + self.b_i)
        o = sigmoid(x @ self.W_o + v @ self.U_o + self.b_o)
        m = sigmoid(x @ self.W_m + v @ self.U_m + self.b_m)
        n = tanh(x @ self.W_n + v @ self.U_n + self.b_n)
        c = f * c + i * n
        return o * tanh(c), m * tanh(c), c


@register(
    "lstm_multiplicative",
    source="Krause, Lu, Murray, Renals 2016, arXiv:1609.07959, eq. 18-22",
    code="github.com/benkrause/mLSTM at fe32a00, chainer/mLSTMWN.py and train.py, matlab/mLSTMhutter.m",
)
class MultiplicativeLSTM(Cell):
    """An LSTM that sees its output through a transition of its own for every input: m in the place of h.

    `squash="once"` is the form of 2016: a linear candidate, tanh outside the output gate. "twice" is that of the
    authors' later code and results. Differs: biases, f's from 3, are that code's; its weight normalisation is left out.
    """

    squash: Literal["twice", "once"] = "twice"
    W_mx, W_mh = InputWeight(), RecurrentWeight()
    W_hx, W_hm, b_h = gate()
    W_ix, W_im, b_i = gate(role="input")
    W_ox, W_om, b_o = gate()
    W_fx, W_fm, b_f = gate(bias=3.0, role="forget")

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        m = (x @ self.W_mx) * (h @ self.W_mh)
        h_hat = x @ self.W_hx + m @ self.W_hm + self.b_h
        i = sigmoid(x @ self.W_ix + m @ self.W_im + self.b_i)
        o = sigmoid(x @ self.W_ox + m @ self.W_om + self.b_o)
        f = sigmoid(x @ self.W_fx + m @ self.W_fm + self.b_f)
        c = f * c + i * (tanh(h_hat) if self.squash == "twice" else h_hat)
        h = tanh(c) * o if self.squash == "twice" else tanh(c * o)
        return h, c


@register(
    "janet",
    source="van der Westhuizen & Lasenby 2018, arXiv:1804.04849",
    code="github.com/JosvanderWesthuizen/janet at fa2f0a5, aux_code/rnn_cells.py",
)
class JANET(Cell):
    """An LSTM of one gate, f, whose memory is its output; β lets in more of the new than f gives up of the old.

    T_max, the longest dependency expected, in steps, sets how long the units remember at first (chrono initialisation,
    Tallec & Ollivier 2018, arXiv:1804.11188). Differs: the authors take T_max from the data; here it is 100.
    """

    beta: float = 1.0
    T_max: int = 100
    W_f, U_f, b_f = gate(bias="chrono", role="forget")
    W_c, U_c, b_c = gate()

    def chrono(self, b: Tensor) -> None:
        if self.T_max < 2:
            raise UserError(f"JANET: T_max must be at least 2, not {self.T_max}; give the longest dependency in steps")
        b.uniform_(1, self.T_max - 1).log_()

    def step(self, x: Tensor, c: Tensor) -> Tensor:
        s = x @ self.W_f + c @ self.U_f + self.b_f
        c_new = tanh(x @ self.W_c + c @ self.U_c + self.b_c)
        return sigmoid(s) * c + (1 - sigmoid(s - self.beta)) * c_new
