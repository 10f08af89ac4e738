"""Cells derived from dynamical systems."""

import numpy as np
import torch
import torchrecurrent
from numpy import tanh

from oracles import sigmoid, softplus


def antisymmetric(p, x, h, epsilon, gamma):
    """Chang et al. 2019, with diffusion: forward Euler with W - W^T - gamma I."""
    M = p.W_h - p.W_h.T - gamma * np.eye(len(h))
    h = h + epsilon * tanh(M @ h + p.V_h @ x + p.b_h)
    return h, (h,)


def gated_antisymmetric(p, x, h, epsilon, gamma):
    """Chang et al. 2019, with gating: the gate has the same W - W^T - gamma I."""
    M = p.W_h - p.W_h.T - gamma * np.eye(len(h))
    z = sigmoid(M @ h + p.V_z @ x + p.b_z)
    h = h + epsilon * (z * tanh(M @ h + p.V_h @ x + p.b_h))
    return h, (h,)


def lipschitz(p, x, h, epsilon, beta, gamma):
    """Erichson et al. 2021: h' = A h + tanh(W h + U x + b) by forward Euler.

    erichson/LipschitzRNN, models.py, multiplies h by A and W from the other side, that is, by their transposes.
    """

    def mixed(M):
        return (1 - beta) * (M + M.T) + beta * (M - M.T) - gamma * np.eye(len(h))

    h = h + epsilon * mixed(p.M_A) @ h + epsilon * tanh(mixed(p.M_W) @ h + p.U @ x + p.b)
    return h, (h,)


def cornn(p, x, y, z, dt, gamma, epsilon, damping):
    """Rusch & Mishra 2021, eq. 3; implicit damping solved for z_n.

    tk-rusch/coRNN, sMNIST/network.py: one product with [x, z, y]; the damping is explicit.
    """
    a = np.hstack([p.V, p.W_z, p.W]) @ np.concatenate([x, z, y]) + p.b
    z_new = z + dt * tanh(a) - dt * gamma * y
    z_new = z_new - dt * epsilon * z if damping == "explicit" else z_new / (1 + dt * epsilon)
    y = y + dt * z_new
    return y, (y, z_new)


def unicornn(p, x, y, z, dt, alpha):
    """Rusch & Mishra 2021: symplectic Euler, sigma-hat(c) = 0.5 + 0.5 tanh(c / 2).

    tk-rusch/unicornn, psMNIST/network.py (its CUDA kernel) is the same.
    """
    step = dt * (0.5 + 0.5 * tanh(p.c / 2))
    z = z - step * (tanh(p.w * y + p.V @ x + p.b) + alpha * y)
    y = y + step * z
    return y, (y, z)


def lem(p, x, y, z, dt):
    """Rusch et al. 2022. tk-rusch/LEM, src/sMNIST/network.py, is the same and adds a second bias to each."""
    step = dt * sigmoid(p.W_1 @ y + p.V_1 @ x + p.b_1)
    step_bar = dt * sigmoid(p.W_2 @ y + p.V_2 @ x + p.b_2)
    z_new = z + step * (tanh(p.W_z @ y + p.V_z @ x + p.b_z) - z)
    y_new = y + step_bar * (tanh(p.W_y @ z_new + p.V_y @ x + p.b_y) - y)
    return y_new, (y_new, z_new)


def tau_gru(p, x, h, delayed, tau):
    """Erichson et al. 2022, with biases; the delay line holds h_{n-tau} to h_{n-1}."""
    past = delayed[-tau]
    xh = np.concatenate([x, h, [1]])

    def affine(U, W, b):
        return np.hstack([U, W, b[:, None]]) @ xh

    z = tanh(p.W_2 @ past + p.U_2 @ x + p.b_2)
    g, a = sigmoid(affine(p.U_3, p.W_3, p.b_3)), sigmoid(affine(p.U_4, p.W_4, p.b_4))
    h_new = (1 - g) * h + g * (tanh(affine(p.U_1, p.W_1, p.b_1)) + a * z)
    return h_new, (h_new, np.array([*delayed, h])[1:])


def brc(p, x, h):
    """Vecoven et al. 2021. nvecoven/BRC, cells/cells.py, is the same and adds the biases of a and c."""
    a = 1 + tanh(p.U_a @ x + np.diag(p.w_a) @ h + p.b_a)
    c = sigmoid(p.U_c @ x + np.diag(p.w_c) @ h + p.b_c)
    h = c * h + (1 - c) * tanh(p.U @ x + a * h)
    return h, (h,)


def nbrc(p, x, h):
    """Vecoven et al. 2021. nvecoven/BRC, cells/cells.py, is the same and adds the biases of a and c."""
    a = 1 + tanh(p.U_a @ x + p.W_a @ h + p.b_a)
    c = sigmoid(p.U_c @ x + p.W_c @ h + p.b_c)
    h = c * h + (1 - c) * tanh(p.U @ x + a * h)
    return h, (h,)


def lmu(p, x, h, m, order, theta):
    """Voelker et al. 2019; A and B: eq. 1.

    A and B are tested against theta m' = A m + B u integrated over one step in 256 short ones (Runge-Kutta), since
    the cell keeps them in single precision and a zero-order hold is just that: u constant for the step.
    """
    A = np.array([[-1 if i < j else (-1) ** (i - j + 1) for j in range(order)] for i in range(order)], float)
    R = 2 * np.arange(order) + 1.0
    A, B = R[:, None] * A / theta, R * (-1.0) ** np.arange(order) / theta
    held, dt = np.hstack([np.eye(order), np.zeros((order, 1))]), 1 / 256  # columns: each of m alone at first, then u
    for _ in range(256):

        def flow(M):
            return A @ M + np.outer(B, [0] * order + [1])

        a = flow(held)
        b = flow(held + dt / 2 * a)
        c = flow(held + dt / 2 * b)
        held = held + dt / 6 * (a + 2 * b + 2 * c + flow(held + dt * c))
    np.testing.assert_allclose(np.hstack([p.A, p.B]), held, atol=1e-6)
    u = p.e_x @ x + p.e_h @ h + p.e_m @ m
    m = p.A @ m + p.B @ u
    h = tanh(p.W_x @ x + p.W_h @ h + p.W_m @ m)
    return h, (h, m)


def ltc(p, x, v, unfolds):
    """Hasani et al. 2021, fused solver, neuron by neuron: C dv/dt is the sum of conductance * (potential - v).

    mlech26l/ncps, ncps/torch/ltc_cell.py: the same, plus 1e-8 in the denominator; its output map is left out.
    """
    dt, x = 1 / unfolds, p.a * x + p.b
    for _ in range(unfolds):
        new = []
        for i in range(len(v)):
            g_s = softplus(p.w_s[i]) * sigmoid(p.k_s[i] * (x - p.m_s[i]))
            g_r = softplus(p.w_r[i]) * sigmoid(p.k_r[i] * (v - p.m_r[i]))
            g = np.concatenate([g_s, g_r, [softplus(p.g[i])]])
            E = np.concatenate([p.E_s[i], p.E_r[i], [p.E[i]]])
            share = dt / softplus(p.C[i])
            new.append((v[i] + share * (g @ E)) / (1 + share * g.sum()))
        v = np.array(new)
    return v, (v,)


def cfc(p, x, h, backbone_units, ts):
    """Hasani et al. 2022: x(t) = sigma(-f t) g + (1 - sigma(-f t)) h, each of one backbone of [x, h].

    mlech26l/ncps, ncps/torch/cfc_cell.py, default mode: f t is time_a t + time_b; the gate is written with +f.
    """
    f = 1.7159 * tanh(0.666 * (np.hstack([p.W, p.U]) @ np.concatenate([x, h]) + p.b))
    keep = sigmoid(-((p.W_a @ f + p.b_a) * ts + p.W_b @ f + p.b_b))
    h = keep * tanh(p.W_g @ f + p.b_g) + (1 - keep) * tanh(p.W_h @ f + p.b_h)
    return h, (h,)


def _filled(kind, cell, options, **weights):
    """A cell of torchrecurrent: each of its weights is stacked from ours, its other biases are zero."""
    twin = kind(cell.input_size, cell.hidden_size, **options).double()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(
                torch.cat([w.T if w.ndim == 2 else w for w in weights[name]]) if name in weights else torch.zeros(())
            )
    return twin


def antisymmetric_twin(cell):
    options = {"epsilon": cell.epsilon, "gamma": cell.gamma}
    weights = {"weight_ih": [cell.V_h], "weight_hh": [cell.W_h], "bias_ih": [cell.b_h]}
    twin = _filled(torchrecurrent.AntisymmetricRNNCell, cell, options, **weights)
    return lambda x, h: (twin(x, h),)


def gated_antisymmetric_twin(cell):
    options = {"epsilon": cell.epsilon, "gamma": cell.gamma}
    weights = {"weight_ih": [cell.V_z, cell.V_h], "weight_hh": [cell.W_h], "bias_ih": [cell.b_z, cell.b_h]}
    twin = _filled(torchrecurrent.GatedAntisymmetricRNNCell, cell, options, **weights)
    return lambda x, h: (twin(x, h),)


def cornn_twin(cell):
    """The package's damping is explicit; without it, and with it applied after, the implicit one is tested too."""
    implicit = cell.damping == "implicit"
    options = {"dt": cell.dt, "gamma": cell.gamma, "epsilon": 0 if implicit else cell.epsilon}
    weights = {"weight_ih": [cell.V], "weight_hh": [cell.W], "weight_ch": [cell.W_z], "bias_ih": [cell.b]}
    twin = _filled(torchrecurrent.coRNNCell, cell, options, **weights)

    def damped(x, y, z):
        z = twin(x, (y, z))[1] / (1 + cell.dt * cell.epsilon)
        return y + cell.dt * z, z

    return damped if implicit else lambda x, y, z: twin(x, (y, z))


def unicornn_twin(cell):
    weights = {"weight_ih": [cell.V], "weight_hh": [cell.w], "weight_ch": [cell.c], "bias_ih": [cell.b]}
    twin = _filled(torchrecurrent.UnICORNNCell, cell, {"dt": cell.dt, "alpha": cell.alpha}, **weights)
    return lambda x, y, z: twin(x, (y, z))


def tau_gru_twin(cell):
    weights = {
        "weight_ih": [cell.U_1, cell.U_2, cell.U_3, cell.U_4],
        "weight_hh": [cell.W_1, cell.W_2, cell.W_3, cell.W_4],
        "bias_ih": [cell.b_1, cell.b_2, cell.b_3, cell.b_4],
    }
    twin = _filled(torchrecurrent.tauGRUCell, cell, {}, **weights)
    return lambda x, h, delayed: (twin(x, h, delayed[:, 0]), torch.cat([delayed, h[:, None]], 1)[:, 1:])


def brc_twin(cell):
    weights = {
        "weight_ih": [cell.U_a, cell.U_c, cell.U],
        "weight_hh": [cell.w_a, cell.w_c],
        "bias_hh": [cell.b_a, cell.b_c],
    }
    twin = _filled(torchrecurrent.BRCell, cell, {}, **weights)
    return lambda x, h: (twin(x, h),)


def nbrc_twin(cell):
    weights = {
        "weight_ih": [cell.U_a, cell.U_c, cell.U],
        "weight_hh": [cell.W_a, cell.W_c],
        "bias_hh": [cell.b_a, cell.b_c],
    }
    twin = _filled(torchrecurrent.NBRCell, cell, {}, **weights)
    return lambda x, h: (twin(x, h),)


TWINS = {
    "antisymmetric": antisymmetric_twin,
    "gated_antisymmetric": gated_antisymmetric_twin,
    "cornn": cornn_twin,
    "unicornn": unicornn_twin,
    "tau_gru": tau_gru_twin,
    "brc": brc_twin,
    "nbrc": nbrc_twin,
}
