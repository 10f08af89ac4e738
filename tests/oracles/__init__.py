"""Every cell's equations once more, in NumPy float64, written from the papers: a module a family, as in rnnzoo/cells.

An oracle carries its cell's name. It takes the parameters `p`, one input x [I], the states of one sequence (no batch)
and all hyperparameters as keywords, and returns the output and the tuple of new states. The papers' column vectors
are used: a matrix W [I, H] of the cell is the paper's W [H, I] here, p.W @ x. Weights of other than two dimensions
are as in the cell.

`TWINS` maps a cell's name to `twin(cell)`: a function (x [B, I], *states) -> tuple of new states that computes with
an installed package and the cell's own weights.
"""

import numpy as np


def sigmoid(a):
    small = np.exp(-np.abs(a))
    return np.where(np.asarray(a) < 0, small, 1) / (1 + small)


def relu(a):
    return np.maximum(a, 0)


def softplus(a):
    return np.log1p(np.exp(a))


def silu(a):
    return a * sigmoid(a)


def layer_norm(a, eps=1e-5):
    return (a - a.mean()) / np.sqrt(a.var() + eps)


def rms_norm(a, eps=1e-5):
    return a / np.sqrt((a**2).mean() + eps)
