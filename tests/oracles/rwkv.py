"""RWKV's time mixing.

Unless a docstring says that a paper's text was read, its equations are those of the authors' code, which is named.
"""

import numpy as np

from oracles import layer_norm, sigmoid


def rwkv4(p, x, o, a, b, p_max, prev):
    """Peng et al. 2023: an average of v, weighted by exp(k) that decays by w a step, by exp(u + k) for the newest.

    Here without a stabiliser: the states a and b are the two sums, times exp(-p), where p is the running maximum of
    p - w and k, as in the authors' code (BlinkDL/RWKV-LM, RWKV-v4/src/model_run.py, SA); there p starts at -1e30, here
    a sum b of 0 is the empty past.
    """
    r, k, v = (W @ (mu * x + (1 - mu) * prev) for W, mu in ((p.W_r, p.mu_r), (p.W_k, p.mu_k), (p.W_v, p.mu_v)))
    w, empty = np.exp(p.log_w), b == 0
    top, bottom = np.where(empty, 0, np.exp(p_max) * a), np.where(empty, 0, np.exp(p_max) * b)
    o = sigmoid(r) * (top + np.exp(p.u + k) * v) / (bottom + np.exp(p.u + k))
    top, bottom = np.exp(-w) * top + np.exp(k) * v, np.exp(-w) * bottom + np.exp(k)
    p_max = np.where(empty, k, np.maximum(p_max - w, k))
    return p.W_o @ o, (o, top * np.exp(-p_max), bottom * np.exp(-p_max), p_max, x)


def rwkv7(p, x, y, S, prev, rank):
    """Peng et al. 2025: S (diag(w) - κ (a∘κ)ᵀ) + v kᵀ, read as S r; normalised, a bonus for the newest, gated.

    BlinkDL/RWKV-LM, RWKV-v7/rwkv_v7_numpy.py, time_mixing, for one head and the first layer. The norm's ε is 64e-5.
    """
    r_in, w_in, k_in, v_in, a_in, g_in = (
        x + mu * (prev - x) for mu in (p.mu_r, p.mu_w, p.mu_k, p.mu_v, p.mu_a, p.mu_g)
    )
    w = np.exp(-sigmoid(p.w_0 + p.w_2 @ np.tanh(p.w_1 @ w_in)) / np.sqrt(np.e))
    a = sigmoid(p.a_0 + p.a_2 @ (p.a_1 @ a_in))
    g = p.g_2 @ sigmoid(p.g_1 @ g_in)
    r, k, v = p.W_r @ r_in, p.W_k @ k_in, p.W_v @ v_in
    κ = k * p.k_k / np.sqrt(((k * p.k_k) ** 2).sum() + 1e-12)  # theirs is max(‖κ‖, 1e-12), of infinite slope at 0
    k = k * ((1 - p.k_a) + p.k_a * a)
    S = S @ (np.diag(w) - np.outer(κ, a * κ)) + np.outer(v, k)
    y = g * (layer_norm(S @ r, 64e-5) * p.scale + p.shift + (r * k) @ p.r_k * v)
    return p.W_o @ y, (y, S, x)
