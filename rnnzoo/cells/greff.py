"""The eight variants of the peephole LSTM that Greff et al. compare, by their abbreviations; each changes one thing."""

from torch import Tensor, sigmoid, tanh

from rnnzoo.cell import Cell, Diagonal, RecurrentWeight, gate
from rnnzoo.registry import register

PAPER = "Greff et al. 2017, arXiv:1503.04069, section II-A"
CODE = "github.com/Qwlouse/pylstm at d58b0b0, src/layers/lstm97_layer.cpp"


class _BlockInput(Cell):
    W_z, R_z, b_z = gate()


class _InputGate(Cell):
    W_i, R_i, b_i = gate(role="input")
    p_i = Diagonal()


class _ForgetGate(Cell):
    W_f, R_f, b_f = gate(bias=1.0, role="forget")
    p_f = Diagonal()


class _OutputGate(Cell):
    W_o, R_o, b_o = gate()
    p_o = Diagonal()


@register("nig", source=f"{PAPER} with i = 1 (NIG)", code=CODE)
class NIG(_OutputGate, _ForgetGate, _BlockInput):
    """Peephole LSTM without an input gate: everything is let into the memory.

    Differs: the forget gate's bias starts at 1 (Jozefowicz et al. 2015, section 2.2).
    """

    def step(self, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        z = tanh(x @ self.W_z + y @ self.R_z + self.b_z)
        f = sigmoid(x @ self.W_f + y @ self.R_f + self.p_f * c + self.b_f)
        c = z + c * f
        o = sigmoid(x @ self.W_o + y @ self.R_o + self.p_o * c + self.b_o)
        y = tanh(c) * o
        return y, c


@register("nfg", source=f"{PAPER} with f = 1 (NFG)", code=CODE)
class NFG(_OutputGate, _InputGate, _BlockInput):
    """Peephole LSTM without a forget gate: the memory is a sum over all time."""

    def step(self, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        z = tanh(x @ self.W_z + y @ self.R_z + self.b_z)
        i = sigmoid(x @ self.W_i + y @ self.R_i + self.p_i * c + self.b_i)
        c = z * i + c
        o = sigmoid(x @ self.W_o + y @ self.R_o + self.p_o * c + self.b_o)
        y = tanh(c) * o
        return y, c


@register("nog", source=f"{PAPER} with o = 1 (NOG)", code=CODE)
class NOG(_ForgetGate, _InputGate, _BlockInput):
    """Peephole LSTM without an output gate: the memory is always seen.

    Differs: the forget gate's bias starts at 1 (Jozefowicz et al. 2015, section 2.2).
    """

    def step(self, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        z = tanh(x @ self.W_z + y @ self.R_z + self.b_z)
        i = sigmoid(x @ self.W_i + y @ self.R_i + self.p_i * c + self.b_i)
        f = sigmoid(x @ self.W_f + y @ self.R_f + self.p_f * c + self.b_f)
        c = z * i + c * f
        y = tanh(c)
        return y, c


@register("niaf", source=f"{PAPER} with g(x) = x (NIAF)", code=CODE)
class NIAF(_OutputGate, _ForgetGate, _InputGate, _BlockInput):
    """Peephole LSTM without an input activation function: what enters the memory is not squashed.

    Differs: the forget gate's bias starts at 1 (Jozefowicz et al. 2015, section 2.2).
    """

    def step(self, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        z = x @ self.W_z + y @ self.R_z + self.b_z
        i = sigmoid(x @ self.W_i + y @ self.R_i + self.p_i * c + self.b_i)
        f = sigmoid(x @ self.W_f + y @ self.R_f + self.p_f * c + self.b_f)
        c = z * i + c * f
        o = sigmoid(x @ self.W_o + y @ self.R_o + self.p_o * c + self.b_o)
        y = tanh(c) * o
        return y, c


@register("noaf", source=f"{PAPER} with h(x) = x (NOAF)", code=CODE)
class NOAF(_OutputGate, _ForgetGate, _InputGate, _BlockInput):
    """Peephole LSTM without an output activation function: what leaves the memory is not squashed.

    Differs: the forget gate's bias starts at 1 (Jozefowicz et al. 2015, section 2.2).
    """

    def step(self, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        z = tanh(x @ self.W_z + y @ self.R_z + self.b_z)
        i = sigmoid(x @ self.W_i + y @ self.R_i + self.p_i * c + self.b_i)
        f = sigmoid(x @ self.W_f + y @ self.R_f + self.p_f * c + self.b_f)
        c = z * i + c * f
        o = sigmoid(x @ self.W_o + y @ self.R_o + self.p_o * c + self.b_o)
        y = c * o
        return y, c


@register("cifg", source=f"{PAPER} with f = 1 - i (CIFG)", code=CODE)
class CIFG(_OutputGate, _BlockInput):
    """Peephole LSTM with coupled input and forget gate: what is let in takes the place of what was there.

    Differs: the gate's bias starts at -1, so that the memory forgets as slowly as the other variants'.
    """

    W_i, R_i, b_i = gate(bias=-1.0, role="update")
    p_i = Diagonal()

    def step(self, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        z = tanh(x @ self.W_z + y @ self.R_z + self.b_z)
        i = sigmoid(x @ self.W_i + y @ self.R_i + self.p_i * c + self.b_i)
        f = 1 - i
        c = z * i + c * f
        o = sigmoid(x @ self.W_o + y @ self.R_o + self.p_o * c + self.b_o)
        y = tanh(c) * o
        return y, c


@register("np", source=f"{PAPER} with p = 0 (NP)", package="torch.nn.LSTMCell", code=CODE)
class NP(_BlockInput):
    """LSTM without peepholes: the gates do not see the memory. The same equations as `lstm`.

    Differs: the forget gate's bias starts at 1 (Jozefowicz et al. 2015, section 2.2).
    """

    W_i, R_i, b_i = gate(role="input")
    W_f, R_f, b_f = gate(bias=1.0, role="forget")
    W_o, R_o, b_o = gate()

    def step(self, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        z = tanh(x @ self.W_z + y @ self.R_z + self.b_z)
        i = sigmoid(x @ self.W_i + y @ self.R_i + self.b_i)
        f = sigmoid(x @ self.W_f + y @ self.R_f + self.b_f)
        c = z * i + c * f
        o = sigmoid(x @ self.W_o + y @ self.R_o + self.b_o)
        y = tanh(c) * o
        return y, c


class _GateRecurrence(Cell):
    R_ii, R_fi, R_oi = RecurrentWeight(), RecurrentWeight(), RecurrentWeight()  # R_fi: from the gate f to the gate i
    R_if, R_ff, R_of = RecurrentWeight(), RecurrentWeight(), RecurrentWeight()
    R_io, R_fo, R_oo = RecurrentWeight(), RecurrentWeight(), RecurrentWeight()


@register("fgr", source=f"{PAPER} with recurrence between all gates (FGR)", code=CODE)
class FGR(_GateRecurrence, _OutputGate, _ForgetGate, _InputGate, _BlockInput):
    """Peephole LSTM with full gate recurrence: each gate also sees what all three gates were a step before.

    Differs: the forget gate's bias starts at 1 (Jozefowicz et al. 2015, section 2.2).
    """

    def step(self, x: Tensor, y: Tensor, c: Tensor, i: Tensor, f: Tensor, o: Tensor) -> tuple[Tensor, ...]:
        to_i = i @ self.R_ii + f @ self.R_fi + o @ self.R_oi
        to_f = i @ self.R_if + f @ self.R_ff + o @ self.R_of
        to_o = i @ self.R_io + f @ self.R_fo + o @ self.R_oo
        z = tanh(x @ self.W_z + y @ self.R_z + self.b_z)
        i = sigmoid(x @ self.W_i + y @ self.R_i + self.p_i * c + self.b_i + to_i)
        f = sigmoid(x @ self.W_f + y @ self.R_f + self.p_f * c + self.b_f + to_f)
        c = z * i + c * f
        o = sigmoid(x @ self.W_o + y @ self.R_o + self.p_o * c + self.b_o + to_o)
        y = tanh(c) * o
        return y, c, i, f, o
