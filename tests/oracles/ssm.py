"""State space models: a signal a unit, each with a small linear state of its own.

Unless a docstring says that a paper's text was read, its equations are those of the authors' code, which is named.
"""

from math import erf, sqrt

import numpy as np
from numpy import tanh

from oracles import rms_norm, sigmoid, silu, softplus


def gelu(a):
    return a * np.array([(1 + erf(k / sqrt(2))) / 2 for k in a])


def convolved(window, new, taps, bias):
    """A short causal convolution of each feature alone, then SiLU: the last tap is for the newest input."""
    window = np.vstack([window[1:], new])
    return window, silu(np.diag(taps @ window) + bias)


def selected(p, x, window):
    """What Mamba and Longhorn share: the convolved input and the low-rank projection of its step size."""
    window, u = convolved(window, p.W_x @ x, p.W_conv, p.b_conv)
    return window, u, p.W_Delta @ (p.W_r @ u)


def skipped(p, x, u, y):
    """What Mamba and Longhorn share: the skip connection D, the gate z and the projection."""
    return p.W_out @ ((y + np.diag(p.D) @ u) * silu(p.W_z @ x))


def mamba(p, x, h, window, order, taps, rank):
    """Gu & Dao 2023, algorithm 2: a diagonal A, held for Δ a unit; B and C see the input; B̅ = ΔB.

    state-spaces/mamba, mamba_ssm/modules/mamba_simple.py, step: the block around it, whose inner width is twice its
    input's.
    """
    window, u, Δ = selected(p, x, window)
    Δ = softplus(Δ + p.b_Delta)
    A, B, C = -np.exp(p.log_A.T), p.W_B @ u, p.W_C @ u
    h = np.array([np.diag(np.exp(d * a)) @ s + d * B * v for d, a, s, v in zip(Δ, A, h, u)])
    return skipped(p, x, u, h @ C), (h, window)


def longhorn(p, x, h, window, order, taps, rank):
    """Liu et al. 2024: each unit v solves min ‖s' - s‖² + β (s'·k - v)², with k kᵀ replaced by its diagonal.

    Cranial-XIX/longhorn, models/longhorn.py, step: Δ = β / (1 + β kᵀk) and s' = (1 - Δ k²) s + Δ k v; the block is
    Mamba's.
    """
    window, u, β = selected(p, x, window)
    β = sigmoid(β + p.b_beta)
    k, q = p.W_k @ u, p.W_q @ u
    Δ = 1 / (1 / β + k @ k)
    h = h - np.outer(Δ, k**2) * h + np.outer(Δ * u, k)
    return skipped(p, x, u, h @ q), (h, window)


def mamba2(p, x, h, xs, Bs, Cs, order, taps):
    """Dao & Gu 2024: A is one number a head; x, B and C are each projected and convolved.

    state-spaces/mamba, mamba_ssm/modules/mamba2.py, step, for one head and one group; the gate precedes the norm.
    """
    xs, u = convolved(xs, p.W_x @ x, p.w_x, p.b_x)
    Bs, B = convolved(Bs, p.W_B @ x, p.w_B, p.b_B)
    Cs, C = convolved(Cs, p.W_C @ x, p.w_C, p.b_C)
    Δ = softplus(p.W_Delta @ x + p.b_Delta).item()
    h = np.exp(-Δ * np.exp(p.log_A.item())) * h + Δ * np.outer(u, B)
    y = h @ C + p.D.item() * u
    return p.W_out @ (rms_norm(y * silu(p.W_z @ x)) * p.gain), (h, xs, Bs, Cs)


def held(Λ, Δ):
    """A zero-order hold of s' = Λ s + u for a time Δ: what s and u are multiplied by."""
    return np.exp(Δ * Λ), np.expm1(Δ * Λ) / Λ


def s4d(p, x, re, im, order):
    """Gu et al. 2022, S4D with a zero-order hold, in complex numbers; one of each conjugate pair, hence 2 Re.

    state-spaces/s4, models/s4/s4d.py, which convolves, where this recurs: the step, and GELU and GLU after it.
    """
    u, Δ = p.W @ x, np.exp(p.log_Delta)
    A, C = (-np.exp(p.log_A_re) + 1j * p.A_im).T, (p.C_re + 1j * p.C_im).T
    A_bar, B_bar = held(A, Δ[:, None])
    h = A_bar * (re + 1j * im) + B_bar * u[:, None]
    y = gelu(2 * (C * h).sum(1).real + p.D * u)
    return (p.W_o @ y + p.b_o) * sigmoid(p.W_g @ y + p.b_g), (h.real, h.imag)


def s5(p, x, re, im):
    """Smith et al. 2023, in complex numbers: one system for all units, diagonal, one of each conjugate pair.

    lindermanlab/S5, s5/ssm.py (zoh, conj_sym), and s5/layers.py for what follows (half_glu1); D is a vector there.
    """
    Λ, B, C = p.Lambda_re + 1j * p.Lambda_im, p.B_re + 1j * p.B_im, p.C_re + 1j * p.C_im
    Λ_bar, factor = held(Λ, np.exp(p.log_Delta))
    h = Λ_bar * (re + 1j * im) + np.diag(factor) @ B @ x
    y = gelu((C @ h + C.conj() @ h.conj()).real + p.D @ x)
    return y * sigmoid(p.W_g @ y + p.b_g), (h.real, h.imag)


def hippo_legs(p, x, h, c, k, order):
    """Gu et al. 2020: c holds the Legendre coefficients of all inputs u so far, over [0, t]; a gated network around it.

    HazyResearch/hippo-code, model/memory.py: LSICell with forward Euler and init_t = order, that is, as if `order`
    zeros had come before (its default is the bilinear rule, and the first input alone at the start); MemoryCell for
    the network, in which u sees the state before. A and B of model/op.py, computed here.
    """
    A = np.zeros((order, order))
    for n in range(order):
        A[n, n] = n + 1
        for m in range(n):
            A[n, m] = np.sqrt((2 * n + 1) * (2 * m + 1))
    B, t = np.sqrt(2 * np.arange(order) + 1), k.item() + order
    if hasattr(p, "A"):  # what is not learned is kept in single precision
        np.testing.assert_allclose(A, p.A, rtol=1e-6)
        np.testing.assert_allclose(B, p.B[:, 0], rtol=1e-6)
        A, B = p.A, p.B[:, 0]
    u = (p.e_x @ x + p.e_h @ h + p.e).item()
    c = c - (A @ c - B * u) / t
    seen = np.concatenate([x, c])
    g = sigmoid(np.hstack([p.U_x, p.U_c]) @ seen + p.d)
    h = h + g * (tanh(np.hstack([p.W_x, p.W_c]) @ seen + p.b) - h)
    return h, (h, c, k + 1)
