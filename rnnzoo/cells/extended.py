"""Long short-term memory with memories, gates and clocks of another kind."""

from torch import Tensor, cat, exp, floor, linspace, maximum, relu, sigmoid, tanh, where
from torch.nn.functional import logsigmoid

from rnnzoo.cell import Bias, Cell, Diagonal, InputWeight, RecurrentWeight, State, Weight, gate
from rnnzoo.registry import register

XLSTM = "Beck et al. 2024, arXiv:2405.04517, section"
XLSTM_CODE = "github.com/NX-AI/xlstm at 032a6fb, xlstm/blocks"


@register("slstm", source=f"{XLSTM} 2.2", code=f"{XLSTM_CODE}/slstm/src/vanilla/slstm.py")
class SLSTM(Cell):
    """xLSTM's scalar memory: an exponential input gate, the sum n of what it let in, and m, which bounds the exponents.

    Differs: one head. As in the authors' code f is a sigmoid, R starts at 0, f's bias between 3 and 6 (its default is
    made for a deep stack), and m starts anew where n is 0: the same h, never 0/0.
    """

    W_z, R_z, b_z = InputWeight(), RecurrentWeight(init=0.0), Bias()
    W_i, R_i, b_i = InputWeight(), RecurrentWeight(init=0.0), Bias(role="input")
    W_f, R_f = InputWeight(), RecurrentWeight(init=0.0)
    b_f = Bias(init=lambda b: b.copy_(linspace(3, 6, len(b))), role="forget")
    W_o, R_o, b_o = InputWeight(), RecurrentWeight(init=0.0), Bias()

    def step(self, x: Tensor, h: Tensor, c: Tensor, n: Tensor, m: Tensor) -> tuple[Tensor, ...]:
        z = tanh(x @ self.W_z + h @ self.R_z + self.b_z)
        i_tilde = x @ self.W_i + h @ self.R_i + self.b_i
        log_f = logsigmoid(x @ self.W_f + h @ self.R_f + self.b_f)
        o = sigmoid(x @ self.W_o + h @ self.R_o + self.b_o)
        new_m = where(n == 0, i_tilde, maximum(log_f + m, i_tilde))
        i_prime, f_prime = exp(i_tilde - new_m), exp((log_f + m - new_m).clamp(max=0))
        c = f_prime * c + i_prime * z
        n = f_prime * n + i_prime
        h = o * c / n
        return h, c, n, new_m


@register("mlstm", source=f"{XLSTM} 2.3", code=f"{XLSTM_CODE}/mlstm/backends.py and cell.py")
class MLSTM(Cell):
    """xLSTM's matrix memory C of values v under keys k, read by queries q; the output feeds nothing back.

    Differs: one head. f is a sigmoid and the denominator at least exp(-m), 1 before stabilising, as in the authors'
    code; the gates' weights start at 0 and f's bias at 3, as there (i's at N(0, 0.1²)), but the gates see x and o is a
    sigmoid of x, as in the paper; there they see q, k (both of a convolution of x) and v, and a norm follows.
    """

    W_q, W_k, W_v, W_o = (InputWeight() for _ in range(4))
    b_q, b_k, b_v, b_o = (Bias() for _ in range(4))
    w_i, b_i = InputWeight("input", 1, init=0.0), Bias(1, role="input")
    w_f, b_f = InputWeight("input", 1, init=0.0), Bias(1, init=3.0, role="forget")
    C, m = State("hidden", "hidden"), State(1)

    def step(self, x: Tensor, C: Tensor, n: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k = x @ self.W_k / self.hidden_size**0.5 + self.b_k
        v = x @ self.W_v + self.b_v
        i_tilde = x @ self.w_i + self.b_i
        log_f = logsigmoid(x @ self.w_f + self.b_f)
        new_m = maximum(log_f + m, i_tilde)
        i_prime, f_prime = exp(i_tilde - new_m), exp(log_f + m - new_m)
        C = f_prime[:, :, None] * C + (i_prime * v)[:, :, None] * k[:, None, :]
        return C, f_prime * n + i_prime * k, new_m

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        C, n, m = state
        q = x @ self.W_q + self.b_q
        o = sigmoid(x @ self.W_o + self.b_o)
        return o * (C @ q[..., None])[..., 0] / maximum((n * q).sum(-1, keepdim=True).abs(), exp(-m))


@register(
    "elstm",
    source="Irie et al. 2023, arXiv:2305.19044",
    code="github.com/IDSIA/rtrl-elstm at b56cade, reinforcement_learning/torchbeast/layer.py",
)
class ELSTM(Cell):
    """LSTM whose memory recurs unit by unit, made for real-time recurrent learning; its output feeds nothing back.

    Differs: biases start at zero, which the authors' code draws; all else starts as elsewhere in this zoo.
    """

    F, w_f, b_f = InputWeight(), Diagonal(), Bias(role="forget")
    Z, w_z, b_z = InputWeight(), Diagonal(), Bias()
    O, W_o, b_o = gate()  # noqa: E741

    def step(self, x: Tensor, c: Tensor) -> Tensor:
        f = sigmoid(x @ self.F + self.w_f * c + self.b_f)
        z = tanh(x @ self.Z + self.w_z * c + self.b_z)
        return f * c + (1 - f) * z

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        (c,) = state
        o = sigmoid(x @ self.O + c @ self.W_o + self.b_o)
        return o * c


@register(
    "nas",
    source="Zoph & Le 2017, arXiv:1611.01578, appendix, the cell found without max and sin",
    code="github.com/tensorflow/tensorflow at 9aca4c6, tensorflow/contrib/rnn/python/ops/rnn_cell.py, NASCell",
)
class NAS(Cell):
    """A cell found by search: a tree over eight pairs of products, in one of which x and h are multiplied."""

    W_0, W_1, W_2, W_3, W_4, W_5, W_6, W_7 = (InputWeight() for _ in range(8))
    U_0, U_1, U_2, U_3, U_4, U_5, U_6, U_7 = (RecurrentWeight() for _ in range(8))

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        a_0 = sigmoid(x @ self.W_0 + h @ self.U_0)
        a_1 = relu(x @ self.W_1 + h @ self.U_1)
        a_2 = sigmoid(x @ self.W_2 + h @ self.U_2)
        a_3 = relu((x @ self.W_3) * (h @ self.U_3))
        a_4 = tanh(x @ self.W_4 + h @ self.U_4)
        a_5 = sigmoid(x @ self.W_5 + h @ self.U_5)
        a_6 = tanh(x @ self.W_6 + h @ self.U_6)
        a_7 = sigmoid(x @ self.W_7 + h @ self.U_7)
        c = tanh(tanh(a_0 * a_1) + c) * tanh(a_2 + a_3)
        h = tanh(c * tanh(tanh(a_4 * a_5) + sigmoid(a_6 + a_7)))
        return h, c


class _Rhythm(Cell):
    r_on: float = 0.05
    alpha: float = 0.001
    log_tau_min: float = 1.0
    log_tau_max: float = 3.0
    timed: bool = False

    log_tau, s, clock = Diagonal(init="draw_log_periods"), Diagonal(init="draw_shifts"), State(1)

    def draw_log_periods(self, tensor: Tensor) -> None:
        tensor.uniform_(self.log_tau_min, self.log_tau_max)

    def draw_shifts(self, tensor: Tensor) -> None:
        tensor.uniform_().mul_(exp(self.log_tau))


@register(
    "phased_lstm",
    source="Neil et al. 2016, arXiv:1610.09513",
    code="github.com/dannyneil/public_plstm at 1bf2627, plstm.py and freq_task.py",
)
class PhasedLSTM(_Rhythm):
    """Peephole LSTM whose units change only in a short open phase of their own period τ.

    Differs: t counts steps, or is the input's first number, read by no gate, if `timed`; τ is learned as its logarithm.
    In the authors' layer too, r_on is not learned by default and the leak alpha is there in training only; their
    freq_task.py draws such periods. The layer has t + s for t - s, and starts f's bias at 2.
    """

    W_i, U_i, b_i, w_i = *gate(role="input"), Diagonal()
    W_f, U_f, b_f, w_f = *gate(role="forget"), Diagonal()
    W_c, U_c, b_c = gate()
    W_o, U_o, b_o, w_o = *gate(), Diagonal()

    def step(self, x: Tensor, h: Tensor, c: Tensor, clock: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = x[:, :1] if self.timed else clock
        x = cat([0 * t, x[:, 1:]], -1) if self.timed else x
        i = sigmoid(x @ self.W_i + h @ self.U_i + self.w_i * c + self.b_i)
        f = sigmoid(x @ self.W_f + h @ self.U_f + self.w_f * c + self.b_f)
        new_c = f * c + i * tanh(x @ self.W_c + h @ self.U_c + self.b_c)
        o = sigmoid(x @ self.W_o + h @ self.U_o + self.w_o * new_c + self.b_o)
        new_h = o * tanh(new_c)
        cycles = (t - self.s) / exp(self.log_tau)
        phi, leak = cycles - floor(cycles), self.alpha if self.training else 0.0
        k = where(phi < self.r_on / 2, 2 * phi / self.r_on, where(phi < self.r_on, 2 - 2 * phi / self.r_on, leak * phi))
        return k * new_h + (1 - k) * h, k * new_c + (1 - k) * c, clock + 1


def _drawn(*dims: str | int) -> Weight:
    return Weight(*dims, init="drawn")


class _NRU(Cell):
    """Parameters of the non-saturating unit; its memory has side² / heads numbers, directions are products of rows and
    columns."""

    heads: int = 4
    side: int = 16
    rows, memory = property(lambda self: self.side // self.heads), property(lambda self: self.side * self.rows)
    m = State("memory")
    W_x, W_h, W_m, b = InputWeight(init="drawn"), RecurrentWeight(init="drawn"), _drawn("memory", "hidden"), Bias()
    A_h, A_m, a = _drawn("heads", "hidden", 1), _drawn("heads", "memory", 1), Bias("heads", 1)
    B_h, B_m, b_beta = _drawn("heads", "hidden", 1), _drawn("heads", "memory", 1), Bias("heads", 1)
    P_h, P_m, b_p = _drawn("heads", "hidden", "rows"), _drawn("heads", "memory", "rows"), Bias("heads", "rows")
    R_h, R_m, b_r = _drawn("heads", "hidden", "rows"), _drawn("heads", "memory", "rows"), Bias("heads", "rows")
    Q_h, Q_m, b_q = _drawn("hidden", "side"), _drawn("memory", "side"), Bias("side")
    S_h, S_m, b_s = _drawn("hidden", "side"), _drawn("memory", "side"), Bias("side")

    def drawn(self, tensor: Tensor) -> None:
        """Uniform as torch starts a layer that sees state and memory."""
        bound = (self.hidden_size + self.memory) ** -0.5
        tensor.uniform_(-bound, bound)


def direction(left: Tensor, right: Tensor) -> Tensor:
    """All products of left with right, one after the other, of 5-norm 1."""
    v = cat([left[:, j : j + 1] * right for j in range(left.shape[1])], -1)
    return v / ((v**4 * v.abs()).sum(-1, keepdim=True) + 1e-30) ** 0.2


@register(
    "nru",
    source="Chandar et al. 2019, arXiv:1902.06704",
    code="github.com/apsarath/NRU at b9972dc, nru_project/NRU.py",
    seen="none",
)
class NRU(_NRU):
    """Non-saturating unit: heads write to a flat memory m and erase from it along directions, nothing squashes it.

    Differs: 1e-30 bounds the slope of the norm of directions; the optional ReLUs and layer norm are left out, as the
    authors' configuration leaves them out.
    """

    def step(self, x: Tensor, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        h = relu(x @ self.W_x + h @ self.W_h + m @ self.W_m + self.b)
        q, s = h @ self.Q_h + m @ self.Q_m + self.b_q, h @ self.S_h + m @ self.S_m + self.b_s
        change = 0 * m
        for k in range(self.heads):
            alpha = h @ self.A_h[k] + m @ self.A_m[k] + self.a[k]
            beta = h @ self.B_h[k] + m @ self.B_m[k] + self.b_beta[k]
            p = h @ self.P_h[k] + m @ self.P_m[k] + self.b_p[k]
            r = h @ self.R_h[k] + m @ self.R_m[k] + self.b_r[k]
            change = change + alpha * direction(p, q) - beta * direction(r, s)
        return h, m + change / self.heads
