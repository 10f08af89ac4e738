"""The gated recurrent unit and its reductions."""

import numpy as np
import torch
from numpy import tanh
from torch import nn

from oracles import sigmoid


def gru(p, x, h):
    """Cho et al. 2014 with cuDNN's biases: h = z∘h + (1-z)∘tanh(Wx + b + r∘(Uh + c))."""
    r = sigmoid(p.W_r @ x + p.U_r @ h + p.b_r)
    z = sigmoid(p.W_z @ x + p.U_z @ h + p.b_z)
    proposed = tanh(p.W_n @ x + p.b_n + r * (p.U_n @ h + p.c_n))
    h = z * h + (1 - z) * proposed
    return h, (h,)


def gru_twin(cell):
    twin = nn.GRUCell(cell.input_size, cell.hidden_size, dtype=cell.W_r.dtype)
    with torch.no_grad():
        twin.weight_ih.copy_(torch.cat([cell.W_r, cell.W_z, cell.W_n], 1).T)
        twin.weight_hh.copy_(torch.cat([cell.U_r, cell.U_z, cell.U_n], 1).T)
        twin.bias_ih.copy_(torch.cat([cell.b_r, cell.b_z, cell.b_n]))
        twin.bias_hh.copy_(torch.cat([0 * cell.b_r, 0 * cell.b_z, cell.c_n]))
    return lambda x, h: (twin(x, h),)


def mgu(p, x, h):
    """Zhou et al. 2016, eq. 5: products with the concatenation [h, x], W = [U, W] there."""
    f = sigmoid(np.hstack([p.U_f, p.W_f]) @ np.concatenate([h, x]) + p.b_f)
    proposed = tanh(np.hstack([p.U_h, p.W_h]) @ np.concatenate([f * h, x]) + p.b_h)
    h = (1 - f) * h + f * proposed
    return h, (h,)


TWINS = {"gru": gru_twin}
