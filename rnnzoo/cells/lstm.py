"""Long short-term memory and its variants."""

from torch import Tensor, sigmoid, tanh

from rnnzoo.cell import Cell, Diagonal, gate
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
    p_i = Diagonal()
    p_f = Diagonal()
    p_o = Diagonal()

    def step(self, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        z = tanh(x @ self.W_z + y @ self.R_z + self.b_z)
        i = sigmoid(x @ self.W_i + y @ self.R_i + self.p_i * c + self.b_i)
        f = sigmoid(x @ self.W_f + y @ self.R_f + self.p_f * c + self.b_f)
        c = z * i + c * f
        o = sigmoid(x @ self.W_o + y @ self.R_o + self.p_o * c + self.b_o)
        y = tanh(c) * o
        return y, c
