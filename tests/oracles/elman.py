"""Simple recurrences."""

import numpy as np
import torch
import torchrecurrent
from numpy import tanh
from torch import nn

from oracles import relu, sigmoid


def rnn(p, x, h, nonlinearity):
    """Elman 1990, with a bias and the non-linearity as a choice."""
    a = p.W @ x + p.U @ h + p.b
    h = {"tanh": tanh, "relu": relu}[nonlinearity](a)
    return h, (h,)


def rnn_twin(cell):
    return _torch_twin(cell, cell.nonlinearity)


def irnn(p, x, h):
    """Le et al. 2015: rectified linear units; only the initial values are new."""
    h = relu(np.hstack([p.W, p.U]) @ np.concatenate([x, h]) + p.b)
    return h, (h,)


def irnn_twin(cell):
    return _torch_twin(cell, "relu")


def _torch_twin(cell, nonlinearity):
    twin = nn.RNNCell(cell.input_size, cell.hidden_size, nonlinearity=nonlinearity, dtype=cell.W.dtype)
    with torch.no_grad():
        twin.weight_ih.copy_(cell.W.T)
        twin.weight_hh.copy_(cell.U.T)
        twin.bias_ih.copy_(cell.b)
        twin.bias_hh.zero_()
    return lambda x, h: (twin(x, h),)


def indrnn(p, x, h, nonlinearity, bound):
    """Li et al. 2018, eq. 2, as an ordinary network with diagonal recurrent matrix (their section 4).

    Their section 4.1 keeps |u| below a bound; here it is as if the update had been cut off there.
    """
    u = np.clip(p.u, -bound, bound) if bound else p.u
    a = p.W @ x + np.diag(u) @ h + p.b
    h = {"tanh": tanh, "relu": relu}[nonlinearity](a)
    return h, (h,)


def indrnn_twin(cell):
    nonlinearity = getattr(torch, cell.nonlinearity)
    twin = torchrecurrent.IndRNNCell(cell.input_size, cell.hidden_size, nonlinearity=nonlinearity, dtype=cell.W.dtype)
    with torch.no_grad():
        twin.weight_ih.copy_(cell.W.T)
        twin.vector_u.copy_(cell.u.clamp(-cell.bound, cell.bound) if cell.bound else cell.u)
        twin.bias_ih.copy_(cell.b)
        twin.bias_hh.zero_()
    return lambda x, h: (twin(x, h),)


def mi_rnn(p, x, h):
    """Wu et al. 2016, section 2.1, with the state's terms gathered: they call α∘Wx + β1 the gate on its gradient."""
    gate = p.α * (p.W @ x) + p.β_1
    h = tanh(gate * (p.U @ h) + p.β_2 * (p.W @ x) + p.b)
    return h, (h,)


def scrn(p, x, h, s, context_size, alpha):
    """Mikolov et al. 2015. The authors' mfactory.lua adds P s of the old step instead; the paper has the new s."""
    s_new = alpha * np.eye(context_size) @ s + (1 - alpha) * p.B @ x
    h_new = sigmoid(np.hstack([p.P, p.A, p.R]) @ np.concatenate([s_new, x, h]))
    return np.concatenate([h_new, s_new]), (h_new, s_new)


def clockwork(p, x, h, t, groups):
    """Koutník et al. 2014: module g of period 2^g is computed where t mod 2^g = 0, from modules g, g+1, ... of before.

    As in the authors' clockwork_layer.py t counts from 0, so that all modules move at the first step; there the
    matrix is not masked, and each unit may have any period.
    """
    size = len(h)
    module = [unit * groups // size for unit in range(size)]
    h_new = h.copy()
    for i in range(size):
        if round(t[0]) % 2 ** module[i] == 0:
            slower = [j for j in range(size) if module[j] >= module[i]]
            h_new[i] = tanh(p.W[i] @ x + p.U[i, slower] @ h[slower] + p.b[i])
    return h_new, (h_new, t + 1)


def rhn(p, x, s, depth):
    """Zilly et al. 2017 with c = 1 - t, in the form of the authors' rhn.py: s + (h - s)∘t."""
    u_H, u_T = p.W_H @ x, p.W_T @ x
    for k in range(depth):
        h = tanh(u_H + s @ p.R_H[k] + p.b_H[:, k])
        t = sigmoid(u_T + s @ p.R_T[k] + p.b_T[:, k])
        s = (h - s) * t + s
        u_H = u_T = 0
    return s, (s,)


def shuffling(p, x, h, hyper_size):
    """Rotman & Wolf 2021 with W_p the cyclic permutation matrix of the authors' SRNN.py, which rolls by one."""
    W_p = np.roll(np.eye(len(h)), 1, axis=0)
    hidden = relu(p.W_1 @ x + p.b_1)
    β = (p.W_2 @ hidden + p.b_2) * sigmoid(p.W_s @ x + p.b_s)
    h = relu(W_p @ h + β)
    return h, (h,)


def orthogonal(p, x, h, initial):
    """Lezcano-Casado & Martínez-Rubio 2019: h = σ(exp(S) h + T x), S skew-symmetric, σ the modReLU.

    The exponential comes from S's imaginary eigenvalues. The authors' code keeps what is above the diagonal of the
    matrix that multiplies from the right, which is what is below it here.
    """
    S = np.tril(p.A, -1)
    angles, vectors = np.linalg.eigh(-1j * (S - S.T))
    B = (vectors * np.exp(1j * angles) @ vectors.conj().T).real
    z = B @ h + p.T @ x
    h = np.where(np.abs(z) + p.b >= 0, (np.abs(z) + p.b) * z / np.abs(z), 0)
    return h, (h,)


def esn(p, x, h, spectral_radius, leak, input_scale):
    """Jaeger 2001 (without output feedback), and Lukoševičius 2012 for the leak."""
    assert np.isclose(np.abs(np.linalg.eigvals(p.W)).max(), spectral_radius)
    update = tanh(np.hstack([p.W_in, p.W]) @ np.concatenate([x, h]))
    h = (1 - leak) * h + leak * update
    return np.concatenate([x, h]), (h,)


def fast_weights(p, x, h, A, decay, rate, inner_steps):
    """Ba et al. 2016, eq. 1 and 2, with layer normalisation in the inner loop only (eq. 5).

    A holds the state before the step as its newest memory.
    """
    A = decay * A + rate * np.outer(h, h)
    boundary = p.W @ h + p.C @ x
    h = relu(boundary)
    for _ in range(inner_steps):
        a = boundary + A @ h
        h = relu(p.gain * (a - a.mean()) / np.sqrt(a.var() + 1e-5) + p.bias)
    return h, (h, A)


TWINS = {"rnn": rnn_twin, "irnn": irnn_twin, "indrnn": indrnn_twin}
