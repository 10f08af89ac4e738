"""Linear attention."""

import numpy as np

from oracles import sigmoid


def silu(a):
    return a * sigmoid(a)


def layer_norm(a):
    return (a - a.mean()) / np.sqrt(a.var() + 1e-5)


def gla(p, x, S, rank, tau):
    """Yang et al. 2023, section 4.4; keys scaled by d_model and values normalised without gain as in gla.py."""
    q, k, v = p.W_Q @ x + p.b_Q, (p.W_K @ x + p.b_K) / np.sqrt(S.shape[1]), p.W_V @ x + p.b_V
    alpha = sigmoid(p.W_2 @ (p.W_1 @ x) + p.b_alpha) ** (1 / tau)
    S = np.diag(alpha) @ S + np.outer(k, v)
    return p.W_O @ (silu(p.W_G @ x + p.b_G) * layer_norm(S.T @ q)), (S,)


def retention(p, x, S, n, gamma):
    """Sun et al. 2023, eq. 5, 6 and 8: features turn as complex numbers, first halves real."""

    def turned(a):
        first, second = np.split(a, 2)
        a = (first + 1j * second) * np.exp(1j * n * p.theta[: len(first)])
        return np.concatenate([a.real, a.imag])

    n = n + 1
    S = gamma * S + np.outer(turned(p.W_K @ x + p.b_K) / np.sqrt(len(S)), p.W_V @ x + p.b_V)
    return p.W_O @ (silu(p.W_G @ x + p.b_G) * layer_norm(turned(p.W_Q @ x + p.b_Q) @ S)), (S, n)


def delta_net(p, x, S):
    """Yang et al. 2024, section 2.2: S (I - β k kᵀ) + β v kᵀ; normalisations as in fla/layers/delta_net.py."""
    q, k = (silu(a) / np.sqrt((silu(a) ** 2).sum() + 1e-6) for a in (p.W_q @ x + p.b_q, p.W_k @ x + p.b_k))
    beta = sigmoid(p.W_beta @ x)
    S = S @ (np.eye(len(k)) - beta * np.outer(k, k)) + beta * np.outer(silu(p.W_v @ x + p.b_v), k)
    o = S @ (q * len(q) ** -0.5)
    return p.W_o @ (o / np.sqrt((o**2).mean() + 1e-5) * p.gain), (S,)
