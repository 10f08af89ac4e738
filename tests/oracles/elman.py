"""Simple recurrences."""

import torch
from numpy import tanh
from torch import nn

from oracles import relu


def rnn(p, x, h, nonlinearity):
    """Elman 1990, with a bias and the non-linearity as a choice."""
    a = p.W @ x + p.U @ h + p.b
    h = {"tanh": tanh, "relu": relu}[nonlinearity](a)
    return h, (h,)


def rnn_twin(cell):
    twin = nn.RNNCell(cell.input_size, cell.hidden_size, nonlinearity=cell.nonlinearity, dtype=cell.W.dtype)
    with torch.no_grad():
        twin.weight_ih.copy_(cell.W.T)
        twin.weight_hh.copy_(cell.U.T)
        twin.bias_ih.copy_(cell.b)
        twin.bias_hh.zero_()
    return lambda x, h: (twin(x, h),)


TWINS = {"rnn": rnn_twin}
