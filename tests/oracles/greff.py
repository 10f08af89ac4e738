"""The eight variants of Greff et al. 2017, section II-A, each as the paper says it: a change to one vanilla block.

The authors' code (github.com/Qwlouse/pylstm, src/layers/lstm97_layer.cpp) was read: switches on one layer. Nothing
differed: without an input gate the memory gets z as it is, the coupled gate is 1 - i, the output gate's peephole
sees the new memory, and all recurrent gates, o included, see the gates of the step before.
"""

import torch
from numpy import tanh
from torch import nn

from oracles import sigmoid


def logistic(k, peephole=True, extra=0.0):
    """The gate k: σ(W_k x + R_k y + p_k ∘ c + b_k + extra), a function of x, y and c."""

    def gate(p, x, y, c):
        W, R, b = (getattr(p, f"{letter}_{k}") for letter in "WRb")
        return sigmoid(W @ x + R @ y + b + extra + (getattr(p, f"p_{k}") * c if peephole else 0))

    return gate


def open_gate(p, x, y, c):
    return 1


def linear(a):
    return a


VANILLA = {"g": tanh, "h": tanh, "i": logistic("i"), "f": logistic("f"), "o": logistic("o")}


def block(p, x, y, c, **changes):
    """The vanilla block with some of its functions exchanged: i and f see the old memory, o the new one."""
    g, h, i, f, o = (VANILLA | changes).values()
    new = g(p.W_z @ x + p.R_z @ y + p.b_z) * i(p, x, y, c) + c * f(p, x, y, c)
    y = h(new) * o(p, x, y, new)
    return y, (y, new)


def nig(p, x, y, c):
    """i = 1."""
    return block(p, x, y, c, i=open_gate)


def nfg(p, x, y, c):
    """f = 1."""
    return block(p, x, y, c, f=open_gate)


def nog(p, x, y, c):
    """o = 1."""
    return block(p, x, y, c, o=open_gate)


def niaf(p, x, y, c):
    """g(x) = x."""
    return block(p, x, y, c, g=linear)


def noaf(p, x, y, c):
    """h(x) = x."""
    return block(p, x, y, c, h=linear)


def cifg(p, x, y, c):
    """f = 1 - i."""
    return block(p, x, y, c, f=lambda *seen: 1 - VANILLA["i"](*seen))


def np(p, x, y, c):
    """p = 0."""
    return block(p, x, y, c, **{k: logistic(k, peephole=False) for k in "ifo"})


def fgr(p, x, y, c, i, f, o):
    """Each gate gets three terms more, R_ak a for each gate a of the step before."""
    extra = {k: getattr(p, f"R_i{k}") @ i + getattr(p, f"R_f{k}") @ f + getattr(p, f"R_o{k}") @ o for k in "ifo"}
    gates = {k: logistic(k, extra=extra[k]) for k in "ifo"}
    output, (_, new) = block(p, x, y, c, **gates)
    return output, (output, new, gates["i"](p, x, y, c), gates["f"](p, x, y, c), gates["o"](p, x, y, new))


def np_twin(cell):
    twin = nn.LSTMCell(cell.input_size, cell.hidden_size, dtype=cell.W_i.dtype)
    with torch.no_grad():
        twin.weight_ih.copy_(torch.cat([cell.W_i, cell.W_f, cell.W_z, cell.W_o], 1).T)
        twin.weight_hh.copy_(torch.cat([cell.R_i, cell.R_f, cell.R_z, cell.R_o], 1).T)
        twin.bias_ih.copy_(torch.cat([cell.b_i, cell.b_f, cell.b_z, cell.b_o]))
        twin.bias_hh.zero_()
    return lambda x, y, c: twin(x, (y, c))


TWINS = {"np": np_twin}
