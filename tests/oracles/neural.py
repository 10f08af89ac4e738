"""Models of neurons.

Unless a docstring says that a paper's text was read, its equations are those of the authors' code, which is named.
"""

import numpy as np
from numpy import tanh

from oracles import relu, softplus


def leaky(p, x, r, dt, tau, nonlinearity):
    """Yang & Wang 2020: τ dr/dt = -r + f(W_r r + W_x x + b_r), one Euler step of dt; τ > dt, each unit's own.

    So the text of gyyang/nn-brain, RNN_tutorial.ipynb, with one fixed τ. The program there has f around all of r.
    """
    f = {"relu": relu, "tanh": tanh}[nonlinearity]
    time_constant = dt + softplus(p.theta)
    r = r + dt / time_constant * (-r + f(np.hstack([p.W_r, p.W_x]) @ np.concatenate([r, x]) + p.b_r))
    return r, (r,)


def fast_sigmoid_slope(a):
    """Zenke & Ganguli 2018: the derivative of a / (1 + k|a|), at the k = 25 of snnTorch's surrogate.fast_sigmoid."""
    return 1 / (1 + 25 * np.abs(a)) ** 2


def lif(p, x, s, u, beta):
    """Neftci et al. 2019: U[n+1] = βU[n] + I[n] - S[n] with threshold 1, α = 0 and no delay of the current.

    As snnTorch's RLeaky has it, recurrent weights V included: a spike is U > 1, and is subtracted a step later.
    """
    u = beta * u - s + np.hstack([p.W, p.V]) @ np.concatenate([x, s]) + p.b
    s = np.where(u > 1, 1.0, 0.0)
    return s, (s, u)


def lif_gradient(p, x, s, u, ds, du, beta):
    """The reset is a constant, as it is in SpyTorch and snnTorch: a spike before counts through V alone."""
    _, (_, now) = lif(p, x, s, u, beta)
    du = du + ds * fast_sigmoid_slope(now - 1)
    return {
        "x": p.W.T @ du,
        "s": p.V.T @ du,
        "u": beta * du,
        "W": np.outer(du, x),
        "V": np.outer(du, s),
        "b": du,
    }


def surnn(p, x, h, t, harmonics):
    """Yin et al. 2026: h + D(f(h, x) - h), where D is H(a + Σ α sin(ωt + φ)), from RecurrentLayers.jl, issue 167.

    torchrecurrent's suRNNCell is the same; f, H(0) = 0 and the first t, which is 0, are from there.
    """
    waves = np.sin(np.outer(p.omega, t) + p.phi)
    assert len(waves) == harmonics
    gate = p.a + (p.alpha * waves).sum(0) > 0
    h = np.where(gate, tanh(p.U @ h + p.W @ x + p.b), h)
    return h, (h, t + 1)


def surnn_gradient(p, x, h, t, dh, dt, harmonics):
    """torchrecurrent's gate, torch.heaviside, has no gradient; the paper's was not to be had. Here it has a spike's."""
    angle = np.outer(p.omega, t) + p.phi
    signal = p.a + (p.alpha * np.sin(angle)).sum(0)
    proposed = tanh(p.U @ h + p.W @ x + p.b)
    dsignal = dh * (proposed - h) * fast_sigmoid_slope(signal)
    dangle = dsignal * p.alpha * np.cos(angle)
    net = np.where(signal > 0, dh * (1 - proposed**2), 0)
    return {
        "x": p.W.T @ net,
        "h": p.U.T @ net + np.where(signal > 0, 0, dh),
        "t": dt + p.omega @ dangle.sum(1),
        "W": np.outer(net, x),
        "U": np.outer(net, h),
        "b": net,
        "a": dsignal,
        "alpha": dsignal * np.sin(angle),
        "phi": dangle,
        "omega": dangle.sum(1) * t,
    }


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


GRADIENTS = {"lif": lif_gradient, "surnn": surnn_gradient}
