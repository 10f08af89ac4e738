"""Long short-term memory and its variants."""

import torch
from numpy import tanh
from torch import nn

from oracles import sigmoid


def lstm(p, x, h, c):
    """Gers et al. 2000: input, forget and output gate around one memory, tanh as both squashing functions."""
    i = sigmoid(p.W_i @ x + p.U_i @ h + p.b_i)
    f = sigmoid(p.W_f @ x + p.U_f @ h + p.b_f)
    o = sigmoid(p.W_o @ x + p.U_o @ h + p.b_o)
    c = f * c + i * tanh(p.W_g @ x + p.U_g @ h + p.b_g)
    h = o * tanh(c)
    return h, (h, c)


def lstm_twin(cell):
    twin = nn.LSTMCell(cell.input_size, cell.hidden_size, dtype=cell.W_i.dtype)
    with torch.no_grad():
        twin.weight_ih.copy_(torch.cat([cell.W_i, cell.W_f, cell.W_g, cell.W_o], 1).T)
        twin.weight_hh.copy_(torch.cat([cell.U_i, cell.U_f, cell.U_g, cell.U_o], 1).T)
        twin.bias_ih.copy_(torch.cat([cell.b_i, cell.b_f, cell.b_g, cell.b_o]))
        twin.bias_hh.zero_()
    return lambda x, h, c: twin(x, (h, c))


def lstm_peephole(p, x, y, c):
    """Greff et al. 2017, section II-A; the output gate sees the new memory."""
    z = tanh(p.W_z @ x + p.R_z @ y + p.b_z)
    i = sigmoid(p.W_i @ x + p.R_i @ y + p.p_i * c + p.b_i)
    f = sigmoid(p.W_f @ x + p.R_f @ y + p.p_f * c + p.b_f)
    c_new = z * i + c * f
    o = sigmoid(p.W_o @ x + p.R_o @ y + p.p_o * c_new + p.b_o)
    y = tanh(c_new) * o
    return y, (y, c_new)


TWINS = {"lstm": lstm_twin}
