"""The simple recurrent network."""

from typing import Literal

from torch import Tensor, relu, tanh

from rnnzoo.cell import Cell, gate
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
