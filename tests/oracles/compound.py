"""Recurrences made of others: an LSTM whose sums, gates or weights are computed by something more.

Unless a docstring says that a paper's text was read, its equations are those of the authors' code, which is named.
"""

import numpy as np
from numpy import tanh

from oracles import sigmoid


def lstm(net, c):
    """The plain LSTM, from the net inputs of i, f, the candidate and o."""
    i, f, g, o = net
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def stacked(W, x, U, h, b):
    """The net inputs of four gates, from stacks of weights W [4, I, H] and U [4, H, H] for rows; b is [H, 4]."""
    return [x @ W[k] + h @ U[k] + b[:, k] for k in range(4)]


def mogrifier_lstm(p, x, h, c, rounds):
    """Melis et al. 2020: before an LSTM, x and h scale one another in turn by 2σ(...), x first.

    google-deepmind/lamb, lamb/tiled_lstm.py, _do_feature_masking with rank 0, hence the biases; the LSTM around it
    there caps its input gate at 1 - f by default.
    """
    for k in range(rounds):
        if k % 2 == 0:
            x = 2 * sigmoid(p.Q[k // 2].T @ h + p.q[:, k // 2]) * x
        else:
            h = 2 * sigmoid(p.R[k // 2].T @ x + p.r[:, k // 2]) * h
    h, c = lstm(stacked(p.W, x, p.U, h, p.b), c)
    return h, (h, c)


def on_lstm(p, x, h, c, chunk_size):
    """Shen et al. 2019: the master gates f~ = cumax(...), i~ = 1 - cumax(...); where both are open, f and i decide.

    yikangshen/Ordered-Neurons, ON_LSTM.py. cumax is the running sum of a softmax; each level rules `chunk_size` units.
    """

    def master(W, U, b):
        a = np.exp(W @ x + U @ h + b)
        return np.cumsum(a / a.sum())[np.arange(len(h)) // chunk_size]

    net_i, net_f, net_g, net_o = stacked(p.W, x, p.U, h, p.b)
    f_master, i_master = master(p.W_f, p.U_f, p.b_f), 1 - master(p.W_i, p.U_i, p.b_i)
    overlap = f_master * i_master
    f = sigmoid(net_f) * overlap + (f_master - overlap)
    i = sigmoid(net_i) * overlap + (i_master - overlap)
    c = f * c + i * tanh(net_g)
    h = sigmoid(net_o) * tanh(c)
    return h, (h, c)


def integrated(p, k, x, h):
    """Wu et al. 2016: what they put in the place of W x + U h + b; the weights of the gate k."""
    α, β_1, β_2, b = (getattr(p, name) for name in (f"α_{k}", f"β_{k}1", f"β_{k}2", f"b_{k}"))
    Wx, Uh = getattr(p, f"W_{k}") @ x, getattr(p, f"U_{k}") @ h
    return α * Wx * Uh + β_1 * Uh + β_2 * Wx + b


def mi_lstm(p, x, h, c):
    """Wu et al. 2016: multiplicative integration in all four sums of an LSTM. Neither text nor code was seen.

    Two other people's MI-LSTM were (in PyTorch and in Lasagne), and are the same.
    """
    h, c = lstm([integrated(p, k, x, h) for k in "ifzo"], c)
    return h, (h, c)


def mi_gru(p, x, h):
    """Wu et al. 2016: multiplicative integration in the three sums of a GRU. Neither text nor code was seen.

    Two other people's MI-GRU were, in PyTorch and in Lasagne, and z takes the new there. The first has U (r h), the
    second says that the paper has, and of nothing else that it departs from the paper.
    """
    z, r = (sigmoid(integrated(p, k, x, h)) for k in "zr")
    h = (1 - z) * h + z * tanh(integrated(p, "h", x, r * h))
    return h, (h,)


def fast_slow(p, x, h, c, h_S, c_S):
    """Mujika et al. 2017, with two fast cells: the first sees x, the slow one its output, the second the slow one's.

    amujika/Fast-Slow-LSTM, FSRNN.py; its cells are layer-normalised LSTMs (LNLSTM.py), here plain ones.
    """
    h, c = lstm(stacked(p.W_1, x, p.U_1, h, p.b_1), c)
    h_S, c_S = lstm(stacked(p.W_S, h, p.U_S, h_S, p.b_S), c_S)
    h, c = lstm(stacked(p.W_2, h_S, p.U_2, h, p.b_2), c)
    return h, (h, c, h_S, c_S)


def hyper_lstm(p, x, h, c, h_hat, c_hat, hyper_size, embedding_size):
    """Ha et al. 2017: a small LSTM that sees [x, h] scales the rows of a large one's matrices, and moves its bias.

    hardmaru/supercell, supercell.py, HyperLSTMCell without layer norm. The small one's new state is used; of the paper
    labml's annotated implementation reports the old one, and takes it for a misprint.
    """
    h_hat, c_hat = lstm(stacked(p.V, np.concatenate([x, h]), p.R, h_hat, p.d), c_hat)
    net = []
    for k in range(4):
        d_x = p.D_x[k].T @ (p.Z_x[k].T @ h_hat + p.z_x[:, k])
        d_h = p.D_h[k].T @ (p.Z_h[k].T @ h_hat + p.z_h[:, k])
        d_b = p.D_b[k].T @ (p.Z_b[k].T @ h_hat)
        net.append(np.diag(d_x) @ p.W[k].T @ x + np.diag(d_h) @ p.U[k].T @ h + p.b[:, k] + d_b)
    h, c = lstm(net, c)
    return h, (h, c, h_hat, c_hat)
