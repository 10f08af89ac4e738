"""Models of neurons.

Unless a docstring says that a paper's text was read, its equations are those of the authors' code, which is named.
"""

import numpy as np
from numpy import tanh

from oracles import relu, softplus


def leaky(p, x, r, dt, tau, nonlinearity):
    """Yang & Wang 2020: τ dr/dt = -r + f(W_r r + W_x x + b_r), one Euler step of dt; τ > dt, each unit's own.

    gyyang/nn-brain, RNN_tutorial.ipynb (seen in copies), has a fixed τ, and a ReLU.
    """
    f = {"relu": relu, "tanh": tanh}[nonlinearity]
    time_constant = dt + softplus(p.theta)
    r = r + dt / time_constant * (-r + f(np.hstack([p.W_r, p.W_x]) @ np.concatenate([r, x]) + p.b_r))
    return r, (r,)


def lif(p, x, s, u, beta):
    """Neftci et al. 2019 without synaptic currents: U <- β U + I - S, S = Θ(U - 1), I = W x + V S + b.

    jeshraghian/snntorch, snntorch/_neurons/leaky.py, reset_mechanism="subtract": β U + I - R U_thr, where R is whether
    the potential before was above U_thr.
    """
    u = beta * u + p.W @ x + p.V @ s + p.b - s
    s = np.where(u > 1, 1.0, 0.0)
    return s, (s, u)


def surnn(p, x, h, t, harmonics):
    """Yin et al. 2026: a_i = b_i + Σ_k α_ik sin(ω_k t + φ_ik), g = H(a), h <- h + g (tanh(W x + U h + b) - h).

    MartinuzziFrancesco/torchrecurrent, cells/surnn_cell.py; H(0) = 0. The cell's matrices [H, K] are seen as [K, H].
    """
    a = p.a + (p.alpha * np.sin(p.omega[:, None] * t + p.phi)).sum(0)
    h = h + np.heaviside(a, 0.0) * (tanh(p.W @ x + p.b + p.U @ h) - h)
    return h, (h, t + 1)


def coupled(p, z, x, φ):
    """What the piecewise linear networks share: A acts on each unit alone, W on the others."""
    others = p.W - np.diag(np.diag(p.W))
    return np.diag(p.A) @ z + others @ φ + p.C @ x + p.h_0


def plrnn(p, x, z):
    """Durstewitz 2017: A z + W max(0, z) + h + C x, A diagonal, W without a diagonal.

    DurstewitzLab/dendPLRNN, BPTT_TF/bptt/PLRNN_model.py, PLRNN_Step, has no x; VI/sgvb/generative_model.py has C x, and
    a leaky ReLU.
    """
    z = coupled(p, z, x, relu(z))
    return z, (z,)


def dend_plrnn(p, x, z, bases):
    """Brenner et al. 2022: each unit's output is a sum of rectified linear branches, of weight α_b and threshold θ_ib.

    DurstewitzLab/dendPLRNN, VI/sgvb/generative_model.py, PLRNN_Basis_Step, subtracts thresholds as here;
    BPTT_TF/bptt/PLRNN_model.py adds them.
    """
    z = coupled(p, z, x, sum(α * relu(z - θ) for α, θ in zip(p.alpha, p.theta)))
    return z, (z,)
