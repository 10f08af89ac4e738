"""The gated recurrent unit, its reductions and its mutations.

A docstring without an equation number names, where the text of the paper was not read, what its equations were checked
against.
"""

import numpy as np
import torch
import torchrecurrent
from numpy import tanh
from torch import nn

from oracles import relu, sigmoid


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


def gru_reset_before(p, x, h):
    """Chung et al. 2014, section 3.2: h + u∘(proposed - h), where their update gate u is 1 - z of Cho et al."""
    gates = np.vstack([p.W_r, p.W_z]) @ x + np.vstack([p.U_r, p.U_z]) @ h + np.concatenate([p.b_r, p.b_z])
    r, keep = np.split(sigmoid(gates), 2)
    h = h + (1 - keep) * (tanh(p.W @ x + p.U @ (r * h) + p.b) - h)
    return h, (h,)


def _update(p, x, h, update, reset):
    """What the reductions of GRU and MGU share: Dey & Salem and Heck & Salem change the gates only."""
    proposed = tanh(np.hstack([p.U_h, p.W_h]) @ np.concatenate([reset * h, x]) + p.b_h)
    h = h + update * (proposed - h)
    return h, (h,)


def gru1(p, x, h):
    """Dey & Salem 2017, variant 1, from the equations as listed in ReservoirComputing.jl: Uh + b in the gates."""
    return _update(p, x, h, sigmoid(p.U_z @ h + p.b_z), sigmoid(p.U_r @ h + p.b_r))


def gru2(p, x, h):
    """Dey & Salem 2017, variant 2: Uh in the gates."""
    return _update(p, x, h, sigmoid(p.U_z @ h), sigmoid(p.U_r @ h))


def gru3(p, x, h):
    """Dey & Salem 2017, variant 3: b in the gates."""
    return _update(p, x, h, sigmoid(p.b_z), sigmoid(p.b_r))


def mgu(p, x, h):
    """Zhou et al. 2016: products with the concatenation [h, x], W = [U, W] there."""
    f = sigmoid(np.hstack([p.U_f, p.W_f]) @ np.concatenate([h, x]) + p.b_f)
    proposed = tanh(np.hstack([p.U_h, p.W_h]) @ np.concatenate([f * h, x]) + p.b_h)
    h = (1 - f) * h + f * proposed
    return h, (h,)


def mgu_twin(cell):
    twin = torchrecurrent.MGUCell(cell.input_size, cell.hidden_size, dtype=cell.W_f.dtype)
    with torch.no_grad():
        twin.weight_ih.copy_(torch.cat([cell.W_f, cell.W_h], 1).T)
        twin.weight_hh.copy_(torch.cat([cell.U_f, cell.U_h], 1).T)
        twin.bias_ih.copy_(torch.cat([cell.b_f, cell.b_h]))
        twin.bias_hh.zero_()
    return lambda x, h: (twin(x, h),)


def mgu1(p, x, h):
    """Heck & Salem 2017, MGU1: f = σ(Uh + b)."""
    f = sigmoid(p.U_f @ h + p.b_f)
    return _update(p, x, h, f, f)


def mgu2(p, x, h):
    """Heck & Salem 2017, MGU2: f = σ(Uh)."""
    f = sigmoid(p.U_f @ h)
    return _update(p, x, h, f, f)


def mgu3(p, x, h):
    """Heck & Salem 2017, MGU3: f = σ(b)."""
    f = sigmoid(p.b_f)
    return _update(p, x, h, f, f)


def _raw(x, size):
    """The input in a state's place: unit k gets the features k, k + size, k + 2 size ..."""
    padded = np.zeros(-(-len(x) // size) * size)
    padded[: len(x)] = x
    return padded.reshape(-1, size).sum(0)


def mut1(p, x, h):
    """Jozefowicz et al. 2015, MUT1. Keras of 2015 (JZS1) has the same, but a random ±1/√I projection where I ≠ H."""
    z = sigmoid(p.W_xz @ x + p.b_z)
    r = sigmoid(np.hstack([p.W_xr, p.W_hr]) @ np.concatenate([x, h]) + p.b_r)
    h = tanh(p.W_hh @ (r * h) + tanh(_raw(x, len(h))) + p.b_h) * z + h * (1 - z)
    return h, (h,)


def mut2(p, x, h):
    """Jozefowicz et al. 2015, MUT2. Keras of 2015 (JZS2) has the same, but a random ±1/√I projection where I ≠ H."""
    z = sigmoid(np.hstack([p.W_xz, p.W_hz]) @ np.concatenate([x, h]) + p.b_z)
    r = sigmoid(_raw(x, len(h)) + p.W_hr @ h + p.b_r)
    h = tanh(np.hstack([p.W_hh, p.W_xh]) @ np.concatenate([r * h, x]) + p.b_h) * z + h * (1 - z)
    return h, (h,)


def mut3(p, x, h):
    """Jozefowicz et al. 2015, MUT3; Keras of 2015 (JZS3) has the same."""
    z = sigmoid(np.hstack([p.W_xz, p.W_hz]) @ np.concatenate([x, tanh(h)]) + p.b_z)
    r = sigmoid(np.hstack([p.W_xr, p.W_hr]) @ np.concatenate([x, h]) + p.b_r)
    h = tanh(np.hstack([p.W_hh, p.W_xh]) @ np.concatenate([r * h, x]) + p.b_h) * z + h * (1 - z)
    return h, (h,)


def mut3_twin(cell):
    twin = torchrecurrent.MUT3Cell(cell.input_size, cell.hidden_size, dtype=cell.W_xz.dtype)
    with torch.no_grad():
        twin.weight_ih.copy_(torch.cat([cell.W_xz, cell.W_xr, cell.W_xh], 1).T)
        twin.weight_hh.copy_(torch.cat([cell.W_hz, cell.W_hr, cell.W_hh], 1).T)
        twin.bias_ih.copy_(torch.cat([cell.b_z, cell.b_r, cell.b_h]))
        twin.bias_hh.zero_()
    return lambda x, h: (twin(x, h),)


def ligru(p, x, h):
    """Ravanelli et al. 2018, as the authors' SpeechBrain (nnet/RNN.py, LiGRU_Layer, normalization="layernorm") has it.

    One product for candidate and gate, in this order, normalised over its 2H features (ε = 1e-5); their biases before
    the normalisation are 0. Their Theano and pytorch-kaldi layers have batch normalisation only. γ and β start at 1
    and 0 in all three.
    """
    w = np.vstack([p.W_h, p.W_z]) @ x + np.concatenate([p.b_h, p.b_z])
    w = (w - w.mean()) / np.sqrt(w.var() + 1e-5)
    w = np.concatenate([p.gamma_h, p.gamma_z]) * w + np.concatenate([p.beta_h, p.beta_z])
    a, z = np.split(w + np.vstack([p.U_h, p.U_z]) @ h, 2)
    h = sigmoid(z) * h + sigmoid(-z) * relu(a)
    return h, (h,)


def light_ru(p, x, h):
    """Ye et al. 2024, eq. 3."""
    f = sigmoid(np.hstack([p.U_f, p.W_f]) @ np.concatenate([h, x]) + p.b_f)
    h = (1 - f) * h + f * tanh(p.W_h @ x)
    return h, (h,)


def light_ru_twin(cell):
    twin = torchrecurrent.LightRUCell(cell.input_size, cell.hidden_size, dtype=cell.W_f.dtype)
    with torch.no_grad():
        twin.weight_ih.copy_(torch.cat([cell.W_h, cell.W_f], 1).T)
        twin.weight_hh.copy_(cell.U_f.T)
        twin.bias_ih.copy_(torch.cat([0 * cell.b_f, cell.b_f]))
        twin.bias_hh.zero_()
    return lambda x, h: (twin(x, h),)


def miru1(p, x, h, update_coefficient):
    """Zyarah & Kudithipudi 2025, MiRU1, from the equations as listed in LuxRecurrentLayers.jl, issue 26."""
    return _update(p, x, h, 1 - update_coefficient, sigmoid(p.W_r @ x + p.b_r + p.U_r @ h))


def miru2(p, x, h, update_coefficient, reset_coefficient):
    """Zyarah & Kudithipudi 2025, MiRU2, from the equations as listed in LuxRecurrentLayers.jl, issue 26."""
    return _update(p, x, h, 1 - update_coefficient, reset_coefficient)


def miru1_twin(cell):
    coefficients = {"update_coefficient": cell.update_coefficient}
    twin = torchrecurrent.MiRU1Cell(cell.input_size, cell.hidden_size, dtype=cell.W_h.dtype, **coefficients)
    with torch.no_grad():
        twin.weight_ih.copy_(torch.cat([cell.W_r, cell.W_h], 1).T)
        twin.weight_hh.copy_(torch.cat([cell.U_r, cell.U_h], 1).T)
        twin.bias_ih.copy_(torch.cat([cell.b_r, cell.b_h]))
        twin.bias_hh.zero_()
    return lambda x, h: (twin(x, h),)


def miru2_twin(cell):
    coefficients = {"update_coefficient": cell.update_coefficient, "reset_coefficient": cell.reset_coefficient}
    twin = torchrecurrent.MiRU2Cell(cell.input_size, cell.hidden_size, dtype=cell.W_h.dtype, **coefficients)
    with torch.no_grad():
        twin.weight_ih.copy_(cell.W_h.T)
        twin.weight_hh.copy_(cell.U_h.T)
        twin.bias_ih.copy_(cell.b_h)
        twin.bias_hh.zero_()
    return lambda x, h: (twin(x, h),)


def gru_d(p, x, h, last, overdue):
    """Che et al. 2018, with empirical means of 0: a GRU that sees decayed last values, a decayed state, and the mask.

    The input holds D = max(1, I/2) values, masks of the first of them, and the time since the step before. The
    authors' code (PeterChe1990/GRU-D, nn_utils/grud_layers.py) shows the gates 1 - m, keeps the state, by z, undecayed,
    and has a sigmoid for tanh (models.py); other people's (zhiyongc/GRU-D, GRUD.py) is this, with means.
    """
    count = max(1, len(x) // 2)
    value, gap = x[:count], x[-1] if len(x) > 1 else 0.0
    m = np.ones(count)
    m[: len(x) - 1 - count] = x[count : len(x) - 1]
    δ = gap + overdue
    decay_x, decay_h = np.exp(-relu(p.w_x * δ + p.b_x)), np.exp(-relu(p.W_gamma @ δ + p.b_gamma))
    seen, h = m * value + (1 - m) * decay_x * last, decay_h * h
    r = sigmoid(p.W_r @ seen + p.U_r @ h + p.V_r @ m + p.b_r)
    z = sigmoid(p.W_z @ seen + p.U_z @ h + p.V_z @ m + p.b_z)
    h = (1 - z) * h + z * tanh(np.hstack([p.W, p.U, p.V]) @ np.concatenate([seen, r * h, m]) + p.b)
    return h, (h, m * value + (1 - m) * last, (1 - m) * δ)


def mtgru(p, x, h, tau):
    """Kim et al. 2016: a GRU's new state, of which a unit takes over 1/τ a step.

    dennissm/mtgru, MTGRU.py, whose tau is 1/τ; z keeps the old state there, but not in the plain GRU of the same file.
    """
    r = sigmoid(p.W_r @ x + p.U_r @ h + p.b_r)
    z = sigmoid(p.W_z @ x + p.U_z @ h + p.b_z)
    u = tanh(np.hstack([p.W_u, p.U_u]) @ np.concatenate([x, h * r]) + p.b_u)
    h = h + (1 - z) * (u - h) / tau
    return h, (h,)


TWINS = {
    "gru": gru_twin,
    "mgu": mgu_twin,
    "mut3": mut3_twin,
    "light_ru": light_ru_twin,
    "miru1": miru1_twin,
    "miru2": miru2_twin,
}
