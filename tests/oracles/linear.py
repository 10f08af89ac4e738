"""Linear recurrences."""

import numpy as np
import torch
import torchrecurrent
from numpy import tanh

from oracles import layer_norm, sigmoid, silu, softplus


def qrnn(p, x, h, c, prev):
    """Bradbury et al. 2016, section 2: the convolution is a product with both inputs [x_{t-1}, x_t]; fo-pooling.

    The authors' code (torchqrnn) has biases, and as its F what the paper calls 1 - F.
    """
    both = np.concatenate([prev, x])
    z = tanh(np.hstack([p.V_z, p.W_z]) @ both + p.b_z)
    f = sigmoid(np.hstack([p.V_f, p.W_f]) @ both + p.b_f)
    o = sigmoid(np.hstack([p.V_o, p.W_o]) @ both + p.b_o)
    c = f * c + (1 - f) * z
    h = o * c
    return h, (h, c, x)


def sru_parallel(p, x, c, activation, highway_bias):
    """Lei & Zhang 2017, first version, section 2; α from the published version and the authors' sru/modules.py."""
    g = {"tanh": tanh, "identity": np.asarray}[activation]
    alpha = np.sqrt(1 + np.exp(highway_bias) * 2)
    candidate = p.W @ x
    f = sigmoid(p.W_f @ x + p.b_f)
    r = sigmoid(p.W_r @ x + p.b_r)
    c = f * c + (1 - f) * candidate
    return r * g(c) + (1 - r) * (alpha * (p.X @ x)), (c,)


def sru(p, x, h, c, highway_bias):
    """Lei et al. 2018, section 2, with α of section 3.2; in the form of the authors' sru/ops.py: u + (c - u) f."""
    scaled = np.sqrt(1 + np.exp(highway_bias) * 2) * (p.X @ x)
    f = sigmoid(p.W_f @ x + p.v_f * c + p.b_f)
    r = sigmoid(p.W_r @ x + p.v_r * c + p.b_r)
    u = p.W @ x
    c = u + (c - u) * f
    h = scaled + (c - scaled) * r
    return h, (h, c)


def minimal_candidate(a, candidate):
    """Feng et al. 2024, listing 6, as exp(log g(a)): log(relu(a) + 0.5) where a >= 0, else log sigmoid(a)."""
    if candidate == "linear":
        return a
    return np.exp(np.where(a >= 0, np.log(np.maximum(a, 0) + 0.5), -softplus(-a)))


def min_gru(p, x, h, candidate):
    """Feng et al. 2024, algorithms 1 and 5."""
    z = sigmoid(p.W_z @ x + p.b_z)
    h = (1 - z) * h + z * minimal_candidate(p.W_h @ x + p.b_h, candidate)
    return h, (h,)


def min_lstm(p, x, h, candidate):
    """Feng et al. 2024, algorithms 3 and 7: length-independence scaling divides both gates by their sum."""
    f = sigmoid(p.W_f @ x + p.b_f)
    i = sigmoid(p.W_i @ x + p.b_i)
    f, i = f / (f + i), i / (f + i)
    h = f * h + i * minimal_candidate(p.W_h @ x + p.b_h, candidate)
    return h, (h,)


def t_rnn(p, x, h):
    """Balduzzi & Ghifary 2016, T-RNN."""
    z = p.W @ x
    f = sigmoid(p.W_f @ x + p.b_f)
    h = f * h + (1 - f) * z
    return h, (h,)


def t_gru(p, x, h, prev):
    """Balduzzi & Ghifary 2016, T-GRU."""
    z, f, o = typed(p, x, prev)
    h = f * h + z * o
    return h, (h, x)


def t_lstm(p, x, h, c, prev):
    """Balduzzi & Ghifary 2016, T-LSTM."""
    z, f, o = typed(p, x, prev)
    c = f * c + (1 - f) * z
    h = c * o
    return h, (h, c, x)


def typed(p, x, prev):
    """The features and the two gates that T-GRU and T-LSTM have in common."""
    both = np.concatenate([prev, x])
    a = [np.hstack([getattr(p, f"V_{g}"), getattr(p, f"W_{g}")]) @ both + getattr(p, f"b_{g}") for g in "zfo"]
    return a[0], sigmoid(a[1]), tanh(a[2])


def lru(p, x, re, im, r_min, r_max, max_phase):
    """Orvieto et al. 2023, section 3, in complex numbers; of other people's code, minimal-LRU has D a vector, H = I."""
    eigenvalue = np.exp(-np.exp(p.log_nu) + 1j * np.exp(p.log_theta))
    h = eigenvalue * (re + 1j * im) + np.exp(p.log_gamma) * ((p.B_re + 1j * p.B_im) @ x)
    y = ((p.C_re + 1j * p.C_im) @ h).real + p.D @ x
    return y, (h.real, h.imag)


def rg_lru(p, x, h, c):
    """De et al. 2024, eq. 1-4, with a = sigmoid(-Λ) as in recurrentgemma's softplus(a_param), and 1e-12 in the root."""
    x = p.W @ x
    r = sigmoid(p.W_a @ x + p.b_a)
    i = sigmoid(p.W_x @ x + p.b_x)
    a = sigmoid(-p.Lambda) ** (c * r)
    h = a * h + np.sqrt(1 - a**2 + 1e-12) * (i * x)
    return h, (h,)


def hgrn(p, x, re, im, gamma):
    """Qin et al. 2023, section 3, in complex numbers; output as in hgru1d.py: normalised, gated by SiLU, projected.

    gamma^k = [cumsum(softmax(Gamma))]_k, the sum of the rows before k (README of OpenNLPLab/HGRN at 135e404), so that
    it is 0 in the first layer and, as Gamma is 0 at first, (k - 1) / layers in layer k; fla's models/hgrn sums the
    rows 2 to k.
    """
    c = silu(p.W_re @ x + p.b_re) + 1j * silu(p.W_im @ x + p.b_im)
    decay = gamma + (1 - gamma) * sigmoid(p.W_mu @ x + p.b_mu)
    h = decay * np.exp(1j * p.theta) * (re + 1j * im) + (1 - decay) * c
    normal = layer_norm(np.concatenate([h.real, h.imag])) * p.scale + p.shift
    return p.W_o @ (silu(p.W_g @ x + p.b_g) * normal) + p.b_o, (h.real, h.imag)


def t_rnn_twin(cell):
    twin = torchrecurrent.TRNNCell(cell.input_size, cell.hidden_size, dtype=cell.W.dtype)
    with torch.no_grad():
        twin.weight_ih.copy_(torch.cat([cell.W, cell.W_f], 1).T)
        twin.bias_ih.copy_(torch.cat([0 * cell.b_f, cell.b_f]))
    return lambda x, h: (twin(x, h),)


def typed_twin(twin, cell):
    twin = twin(cell.input_size, cell.hidden_size, dtype=cell.W_z.dtype)
    with torch.no_grad():
        twin.weight_ih.copy_(torch.cat([cell.W_z, cell.W_f, cell.W_o], 1).T)
        twin.weight_hh.copy_(torch.cat([cell.V_z, cell.V_f, cell.V_o], 1).T)
        twin.bias_ih.copy_(torch.cat([cell.b_z, cell.b_f, cell.b_o]))
        twin.bias_hh.zero_()
    return twin


def t_gru_twin(cell):
    twin = typed_twin(torchrecurrent.TGRUCell, cell)
    return lambda x, h, prev: twin(x, (h, prev))


def t_lstm_twin(cell):
    twin = typed_twin(torchrecurrent.TLSTMCell, cell)

    def step(x, h, c, prev):
        h, (c, prev) = twin(x, (c, prev))
        return h, c, prev

    return step


TWINS = {"t_rnn": t_rnn_twin, "t_gru": t_gru_twin, "t_lstm": t_lstm_twin}
