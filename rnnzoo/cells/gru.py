"""The gated recurrent unit and its reductions."""

from torch import Tensor, sigmoid, tanh

from rnnzoo.cell import Bias, Cell, gate
from rnnzoo.registry import register


@register(
    "gru",
    source="Cho et al. 2014, arXiv:1406.1078v1, section 2.3, with biases as in cuDNN",
    package="torch.nn.GRUCell",
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


@register("mgu", source="Zhou et al. 2016, arXiv:1603.09420, eq. 5")
class MGU(Cell):
    """Minimal gated unit: one gate both forgets and resets."""

    W_f, U_f, b_f = gate(role="update")
    W_h, U_h, b_h = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        f = sigmoid(x @ self.W_f + h @ self.U_f + self.b_f)
        c = tanh(x @ self.W_h + (f * h) @ self.U_h + self.b_h)
        return (1 - f) * h + f * c
