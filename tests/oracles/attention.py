"""Linear attention: a matrix memory of keys and values, read with a query.

Unless a docstring says that a paper's text was read, its equations are those of the authors' code, which is named.
"""

import numpy as np

from oracles import layer_norm, rms_norm, sigmoid, silu, softplus


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


def gated_delta_net(p, x, S):
    """Yang et al. 2025: S α (I - β k kᵀ) + β v kᵀ, read as S q; α is Mamba-2's decay.

    fla-org/flash-linear-attention, fla/layers/gated_deltanet.py without its short convolutions (and without the biases
    of q, k and v), and fla/ops/gated_delta_rule/naive.py: it decays first, then corrects what k reads.
    """

    def unit(a):
        return a / np.sqrt((a**2).sum() + 1e-6)

    q = unit(silu(p.W_q @ x + p.b_q)) / np.sqrt(len(S))
    k, v = unit(silu(p.W_k @ x + p.b_k)), silu(p.W_v @ x + p.b_v)
    α = np.exp(-np.exp(p.log_A) * softplus(p.W_alpha @ x + p.b_alpha)).item()
    β = sigmoid(p.W_beta @ x).item()
    S = S @ (α * (np.eye(len(k)) - β * np.outer(k, k))) + β * np.outer(v, k)
    return p.W_o @ (rms_norm(S @ q) * p.gain * silu(p.W_g @ x)), (S,)


def linear_attention(p, x, S, z):
    """Katharopoulos et al. 2020, section 3.4: S and z sum up φ(k) vᵀ and φ(k); φ(q)ᵀS / φ(q)ᵀz, φ(a) = elu(a) + 1.

    idiap/fast-transformers, recurrent/attention/self_attention/: 1e-6 is added to the denominator.
    """

    def φ(a):
        return np.where(a > 0, a + 1, np.exp(np.minimum(a, 0)))

    q, k = φ(p.W_Q @ x + p.b_Q), φ(p.W_K @ x + p.b_K)
    S, z = S + np.outer(k, p.W_V @ x + p.b_V), z + k
    return p.W_O @ (q @ S / (q @ z + 1e-6)) + p.b_O, (S, z)


def hgrn2(p, x, S, gamma):
    """Qin et al. 2024: HGRN's real recurrence, the outer product of 1 - f and i in place of the element-wise one.

    Doraemonzzz/hgru2-pytorch, modules/hgru2_1d.py, for one head; the lower bound is an argument there, and the paper
    makes it grow over the layers.
    """
    f = gamma + (1 - gamma) * sigmoid(p.W_f @ x + p.b_f)
    S = np.diag(f) @ S + np.outer(1 - f, silu(p.W_i @ x + p.b_i))
    y = sigmoid(p.W_o @ x + p.b_o) @ S
    return p.W_y @ (layer_norm(y) * p.scale + p.shift) + p.b_y, (S,)
