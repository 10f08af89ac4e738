"""Long short-term memory with memories, gates and clocks of another kind."""

import numpy as np
from numpy import tanh

from oracles import relu, sigmoid


def slstm(p, x, h, c, n, m):
    """Beck et al. 2024, section 2.2: c = f c + i z, n = f n + i, h = o c/n with i = exp, here without a stabiliser.

    The states c and n of the cell are the paper's, times exp(-m), where m is the running maximum of log f + m and
    log i. Where n = 0, at the start, m is log i, after the authors' code (xlstm/blocks/slstm/src/vanilla/slstm.py and
    cuda/slstm_pointwise.cu): h is the same, as c and n scale alike, and does not become 0/0.
    """
    net = {k: getattr(p, f"W_{k}") @ x + getattr(p, f"R_{k}") @ h + getattr(p, f"b_{k}") for k in "zifo"}
    i, f = np.exp(net["i"]), sigmoid(net["f"])
    true_c = f * c * np.exp(m) + i * tanh(net["z"])
    true_n = f * n * np.exp(m) + i
    m = np.log(np.maximum(np.where(n == 0, 0, f * np.exp(m)), i))
    h = sigmoid(net["o"]) * (true_c / true_n)
    return h, (h, true_c / np.exp(m), true_n / np.exp(m), m)


def mlstm(p, x, C, n, m):
    """Beck et al. 2024, section 2.3: C = f C + i v kᵀ, n = f n + i k, h = o∘(C q / max(|nᵀq|, 1)), unstabilised.

    The authors' code (xlstm/blocks/mlstm/backends.py, recurrent_step_stabilized_simple) keeps C transposed, adds 1e-6
    to the denominator, scales the bias of k too, and lets the gates see q, k and v; a layer norm follows there.
    """
    q = p.W_q @ x + p.b_q
    k = 1 / np.sqrt(len(n)) * p.W_k @ x + p.b_k
    v = p.W_v @ x + p.b_v
    i, f = np.exp(p.w_i @ x + p.b_i).item(), sigmoid(p.w_f @ x + p.b_f).item()
    true_C = f * C * np.exp(m) + i * np.outer(v, k)
    true_n = f * n * np.exp(m) + i * k
    m = np.log(np.maximum(f * np.exp(m), i))
    h = sigmoid(p.W_o @ x + p.b_o) * (true_C @ q / max(abs(true_n @ q), 1))
    return h, (true_C / np.exp(m), true_n / np.exp(m), m)


def elstm(p, x, c):
    """Irie et al. 2023: c = f c + (1-f) z, gates with one weight a unit, the output gate a matrix on the new memory.

    As in the authors' code (reinforcement_learning/torchbeast/layer.py, QuasiLSTMlayer): one product with [x, c].
    """
    f, z = sigmoid(p.F @ x + np.diag(p.w_f) @ c + p.b_f), tanh(p.Z @ x + np.diag(p.w_z) @ c + p.b_z)
    c = z + f * (c - z)
    h = c * sigmoid(np.hstack([p.O, p.W_o]) @ np.concatenate([x, c]) + p.b_o)
    return h, (c,)


def nas(p, x, h, c):
    """Zoph & Le 2017, appendix: a binary tree of height three, the memory injected at its first branch.

    From the first author's code (tensorflow/contrib/rnn/python/ops/rnn_cell.py, NASCell), which has no biases by
    default either; leaf 3 multiplies its two products there.
    """
    combine = [np.add, np.add, np.add, np.multiply, np.add, np.add, np.add, np.add]
    squash = [sigmoid, relu, sigmoid, relu, tanh, sigmoid, tanh, sigmoid]
    products = [(getattr(p, f"W_{k}") @ x, getattr(p, f"U_{k}") @ h) for k in range(8)]
    leaves = [squash[k](combine[k](*products[k])) for k in range(8)]
    first, second = tanh(leaves[0] * leaves[1]), tanh(leaves[2] + leaves[3])
    third, fourth = tanh(leaves[4] * leaves[5]), sigmoid(leaves[6] + leaves[7])
    memory = tanh(first + c) * second
    h = tanh(memory * tanh(third + fourth))
    return h, (h, memory)


def phased_lstm(p, x, h, c, t, r_on, alpha, log_tau_min, log_tau_max, timed):
    """Neil et al. 2016, section 2: a peephole LSTM, and a time gate k that mixes its states with those before.

    The authors' code (plstm.py) adds the shift instead of subtracting it, takes |τ|, and sets alpha to 0 when it does
    not train; there too the output gate's peephole sees the memory before k mixes it, and the time is an input of its
    own beside x, which no gate reads.
    """
    now = t
    if timed:
        now, x = x[0], np.r_[0, x[1:]]
    tau = np.exp(p.log_tau)
    phi = np.mod(now - p.s, tau) / tau
    k = np.select([phi < r_on / 2, phi < r_on], [2 * phi / r_on, 2 - 2 * phi / r_on], alpha * phi)
    old = np.concatenate([x, h])
    i = sigmoid(np.hstack([p.W_i, p.U_i]) @ old + p.w_i * c + p.b_i)
    f = sigmoid(np.hstack([p.W_f, p.U_f]) @ old + p.w_f * c + p.b_f)
    c_tilde = f * c + i * tanh(np.hstack([p.W_c, p.U_c]) @ old + p.b_c)
    o = sigmoid(np.hstack([p.W_o, p.U_o]) @ old + p.w_o * c_tilde + p.b_o)
    h = k * o * tanh(c_tilde) + (1 - k) * h
    c = k * c_tilde + (1 - k) * c
    return h, (h, c, t + 1)


def nru(p, x, h, m, heads, side):
    """Chandar et al. 2019, as the authors' code has it: each head adds α v_α and takes away β v_β, no gate saturates.

    apsarath/NRU, nru_project/NRU.py, without the options (ReLU, layer norm): the directions v of all heads are one
    outer product, cut into pieces and divided by their fifth norms; heads are averaged. The text was not seen.
    """
    h = relu(p.W_x @ x + p.W_h @ h + p.W_m @ m + p.b)

    def directions(left, right):
        (P_h, P_m, b_p), (Q_h, Q_m, b_q) = left, right
        rows = np.concatenate([h @ P_h[k] + m @ P_m[k] + b_p[:, k] for k in range(heads)])
        pieces = np.outer(rows, Q_h @ h + Q_m @ m + b_q).reshape(heads, -1)
        return [v / max((np.abs(v) ** 5).sum() ** (1 / 5), 1e-12) for v in pieces]

    write = directions((p.P_h, p.P_m, p.b_p), (p.Q_h, p.Q_m, p.b_q))
    erase = directions((p.R_h, p.R_m, p.b_r), (p.S_h, p.S_m, p.b_s))
    change = np.zeros_like(m)
    for k in range(heads):
        α, β = h @ p.A_h[k] + m @ p.A_m[k] + p.a[:, k], h @ p.B_h[k] + m @ p.B_m[k] + p.b_beta[:, k]
        change = change + α * write[k] - β * erase[k]
    return h, (h, m + change / heads)
