"""Gated recurrences that are neither LSTM nor GRU."""

from unittest.mock import patch

import numpy as np
import torch
import torchrecurrent
from numpy import tanh

from oracles import relu, sigmoid, softplus


def minimal_rnn(p, x, h):
    """Chen 2017: h = u∘h + (1-u)∘z, u from [h, z], z = tanh(W_x x + b_z)."""
    z = tanh(p.W_x @ x + p.b_z)
    u = sigmoid(np.hstack([p.U_h, p.U_z]) @ np.concatenate([h, z]) + p.b_u)
    h = u * h + (1 - u) * z
    return h, (h,)


def ugrnn(p, x, h, nonlinearity):
    """Collins et al. 2017, eq. 2-4, s = tanh or ReLU.

    UGRNNCell in tensorflow 9aca4c6, contrib/rnn/python/ops/rnn_cell.py: one product with [x, h], b^fg = 1 by default.
    """
    xh = np.concatenate([x, h])
    c = {"tanh": tanh, "relu": relu}[nonlinearity](np.hstack([p.W_c, p.U_c]) @ xh + p.b_c)
    g = sigmoid(np.hstack([p.W_g, p.U_g]) @ xh + p.b_g)
    h = g * h + (1 - g) * c
    return h, (h,)


def intersection_rnn(p, x, y, h):
    """Collins et al. 2017, eq. 15-20, s1 = ReLU, s2 = tanh; x padded to H where it is narrower.

    IntersectionRNNCell in tensorflow 9aca4c6, contrib/rnn/python/ops/rnn_cell.py, projects an x of another width first.
    """
    y_in = relu(p.U_y @ h + p.W_y @ x + p.b_y)
    h_in = tanh(p.U_h @ h + p.W_h @ x + p.b_h)
    g_y = sigmoid(p.U_gy @ h + p.W_gy @ x + p.b_gy)
    g_h = sigmoid(p.U_gh @ h + p.W_gh @ x + p.b_gh)
    raw = np.zeros_like(h)
    raw[: len(x)] = x
    y = g_y * raw + (1 - g_y) * y_in
    h = g_h * h + (1 - g_h) * h_in
    return y, (y, h)


def ran(p, x, h, c, nonlinearity):
    """Lee et al. 2017. kentonl/ran, ran.py: gates from [x, h] with a bias, content without, tanh unless told."""
    gates = np.block([[p.W_i, p.U_i], [p.W_f, p.U_f]]) @ np.concatenate([x, h]) + np.concatenate([p.b_i, p.b_f])
    i, f = np.split(sigmoid(gates), 2)
    c = i * (p.W_c @ x) + f * c
    h = tanh(c) if nonlinearity == "tanh" else c
    return h, (h, c)


def cfn(p, x, h):
    """Laurent & von Brecht 2017, eq. 1-2."""
    theta = sigmoid(p.U_theta @ h + p.V_theta @ x + p.b_theta)
    eta = sigmoid(p.U_eta @ h + p.V_eta @ x + p.b_eta)
    h = theta * tanh(h) + eta * tanh(p.W @ x)
    return h, (h,)


def atr(p, x, h):
    """Zhang et al. 2018. bzhangGo/ATR: lm/tensorflow-lm/atr.py is this; lm/pytorch-lm/rnn/atr.py adds biases."""
    pt, qt = p.W @ x, p.U @ h
    h = sigmoid(pt + qt) * pt + sigmoid(pt - qt) * h
    return h, (h,)


def star(p, x, h, beta):
    """Turkoglu et al. 2021, fig. 3, for beta = 0.

    0zgur0/STAckable-Recurrent-network, star.py, has f = -k and, in place of the paper's 1 - σ(f), 1 - σ(f - 1).
    """
    f = -(p.W_k @ x + p.U_k @ h + p.b_k)
    h = tanh(sigmoid(f) * h + (1 - sigmoid(f - beta)) * tanh(p.W_z @ x + p.b_z))
    return h, (h,)


def sgrn(p, x, h):
    """Zu & Wei 2020: f = σ(Wx + Uh + b), i = 1 - f, h = tanh(i∘Wx + f∘h)."""
    f = sigmoid(p.W @ x + p.U @ h + p.b)
    h = tanh((1 - f) * (p.W @ x) + f * h)
    return h, (h,)


def hard_sigmoid(a):
    return np.clip(a / 5 + 1 / 2, 0, 1)


def sgu(p, x, h):
    """Gao & Glowacka 2016. gaoyuankidult/einstein, einstein/layers/recurrent.py: Theano's hard sigmoid."""
    z_g = tanh(p.U_g @ np.diag(h) @ (p.W_g @ x + p.b_g))
    z = hard_sigmoid(p.W_z @ x + p.U_z @ h + p.b_z)
    h = h + z * (softplus(z_g * h) - h)
    return h, (h,)


def dsgu(p, x, h):
    """Gao & Glowacka 2016. gaoyuankidult/einstein, einstein/layers/recurrent.py: Theano's hard sigmoid."""
    z_g = tanh(p.U_g @ np.diag(h) @ (p.W_g @ x + p.b_g))
    z = hard_sigmoid(p.W_z @ x + p.U_z @ h + p.b_z)
    h = h + z * (sigmoid(p.U_o @ (z_g * h)) - h)
    return h, (h,)


def fast_rnn(p, x, h, nonlinearity):
    """Kusupati et al. 2018, eq. 2. microsoft/EdgeML, pytorch/edgeml_pytorch/graph/rnn.py: alpha, beta by a sigmoid."""
    phi = {"tanh": tanh, "relu": relu, "sigmoid": sigmoid}[nonlinearity]
    h = sigmoid(p.alpha) * phi(p.W @ x + p.U @ h + p.b) + sigmoid(p.beta) * h
    return h, (h,)


def fast_grnn(p, x, h, w_rank, u_rank):
    """Kusupati et al. 2018, eq. 6, and eq. 7 for W = W1 W2^T, U = U1 U2^T.

    microsoft/EdgeML, pytorch/edgeml_pytorch/graph/rnn.py, is the same; it keeps the factors apart.
    """
    I, H = len(x), len(h)  # noqa: E741
    W = p.W[:, I:].T @ p.W[:, :I] if w_rank else p.W
    U = p.U[:, H:].T @ p.U[:, :H] if u_rank else p.U
    z = sigmoid(W @ x + U @ h + p.b_z)
    h = (sigmoid(p.zeta) * (1 - z) + sigmoid(p.nu)) * tanh(W @ x + U @ h + p.b_h) + z * h
    return h, (h,)


def rwa(p, x, h, n, d, p_max):
    """Ostmeyer & Cowell 2017: tanh of the average of all z = u∘tanh(g) so far, weighted by exp(a).

    Here without a stabiliser: the states n and d are the two sums, times exp(-p), where p is the running maximum of a,
    as in the authors' code (jostmey/rwa, rwa_model/train.py); there p starts at -1e38, here a sum d of 0 is the empty
    past. A bias of a would cancel; the code learns the tanh of its initial h. The text was not seen.
    """
    xh = np.concatenate([x, h])
    z = (p.W_u @ x + p.b_u) * tanh(np.hstack([p.W_g, p.U_g]) @ xh + p.b_g)
    a = np.hstack([p.W_a, p.U_a]) @ xh
    empty = d == 0
    top = np.where(empty, 0, n * np.exp(p_max)) + z * np.exp(a)
    bottom = np.where(empty, 0, d * np.exp(p_max)) + np.exp(a)
    p_max = np.where(empty, a, np.maximum(p_max, a))
    h = tanh(top / bottom)
    return h, (h, top * np.exp(-p_max), bottom * np.exp(-p_max), p_max)


def twin_of(twin, W, U, b_x, b_h, **others):
    """A torchrecurrent cell with our weights: our matrices side by side, the biases of both sides, all else by name."""
    with torch.no_grad():
        twin.weight_ih.copy_(torch.cat(W, 1).T)
        twin.weight_hh.copy_(torch.cat(U, 1).T)
        twin.bias_ih.copy_(torch.cat(b_x))
        twin.bias_hh.copy_(torch.cat(b_h))
        for name, value in others.items():
            getattr(twin, name).copy_(value)
    return twin


def new(kind, cell, **options):
    return getattr(torchrecurrent, kind)(cell.input_size, cell.hidden_size, dtype=torch.float64, **options)


def zeros(cell, count=1):
    return [torch.zeros(count * cell.hidden_size, dtype=torch.float64)]


def minimal_rnn_twin(cell):
    twin = new("MinimalRNNCell", cell)
    twin = twin_of(twin, [cell.W_x], [cell.U_h], [cell.b_z], [cell.b_u], weight_mm=cell.U_z.T)
    return lambda x, h: (twin(x, h),)


def ugrnn_twin(cell):
    """Its tanh is fixed: for the ReLU, torch.tanh is another function while it runs."""
    W, U, b = [cell.W_c, cell.W_g], [cell.U_c, cell.U_g], [cell.b_c, cell.b_g]
    twin = twin_of(new("UGRNNCell", cell), W, U, b, zeros(cell, 2))

    def step(x, h):
        with patch("torch.tanh", getattr(torch, cell.nonlinearity)):
            return (twin(x, h),)

    return step


def intersection_rnn_twin(cell):
    """The twin wants inputs as wide as the state: x and its matrices are padded with zeros."""
    P, H = cell.identity, cell.hidden_size
    W = [P.T @ w for w in (cell.W_y, cell.W_h, cell.W_gy, cell.W_gh)]
    U = [cell.U_y, cell.U_h, cell.U_gy, cell.U_gh]
    b = [cell.b_y, cell.b_h, cell.b_gy, cell.b_gh]
    twin = twin_of(torchrecurrent.IntersectionRNNCell(H, H, dtype=torch.float64), W, U, b, zeros(cell, 4))
    return lambda x, y, h: twin(x @ P, h)


def ran_twin(cell):
    W, U, b = [cell.W_c, cell.W_i, cell.W_f], [cell.U_i, cell.U_f], [cell.b_i, cell.b_f]
    twin = twin_of(new("RANCell", cell), W, U, b, zeros(cell, 2))

    def step(x, h, c):
        h, c = twin(x, (h, c))
        return (h if cell.nonlinearity == "tanh" else c), c

    return step


def cfn_twin(cell):
    W, U = [cell.V_theta, cell.V_eta, cell.W], [cell.U_theta, cell.U_eta]
    twin = twin_of(new("CFNCell", cell), W, U, zeros(cell, 3), [cell.b_theta, cell.b_eta])
    return lambda x, h: (twin(x, h),)


def atr_twin(cell):
    twin = twin_of(new("ATRCell", cell), [cell.W], [cell.U], zeros(cell), zeros(cell))
    return lambda x, h: (twin(x, h),)


def star_twin(cell):
    twin = twin_of(new("STARCell", cell), [cell.W_z, cell.W_k], [cell.U_k], [cell.b_z, cell.b_k], zeros(cell))
    return lambda x, h: (twin(x, h),)


def sgrn_twin(cell):
    """Its bias_ih also enters the content, where the paper has none; bias_hh enters the gate alone."""
    twin = twin_of(new("SGRNCell", cell), [cell.W], [cell.U], zeros(cell), [cell.b])
    return lambda x, h: (twin(x, h),)


def sgu_twin(cell, kind="SGUCell", **others):
    """Its gate is torch's hard sigmoid of slope 1/6: 6/5 of its argument is Theano's of slope 1/5."""
    W, U = [cell.W_g, 1.2 * cell.W_z], [cell.U_g, 1.2 * cell.U_z]
    twin = twin_of(new(kind, cell), W, U, [cell.b_g, 1.2 * cell.b_z], zeros(cell, 2), **others)
    return lambda x, h: (twin(x, h),)


def dsgu_twin(cell):
    return sgu_twin(cell, "DSGUCell", weight_ho=cell.U_o.T)


def fast_rnn_twin(cell):
    twin = new("FastRNNCell", cell, nonlinearity=cell.nonlinearity)
    twin = twin_of(twin, [cell.W], [cell.U], [cell.b], zeros(cell), alpha=cell.alpha, beta=cell.beta)
    return lambda x, h: (twin(x, h),)


def fast_grnn_twin(cell):
    """Its gate is a tanh unless told otherwise."""
    twin = new("FastGRNNCell", cell, nonlinearity="sigmoid")
    twin = twin_of(twin, [cell.W], [cell.U], [cell.b_z, cell.b_h], zeros(cell, 2), zeta=cell.zeta, nu=cell.nu)
    return lambda x, h: (twin(x, h),)


TWINS = {
    "minimal_rnn": minimal_rnn_twin,
    "ugrnn": ugrnn_twin,
    "intersection_rnn": intersection_rnn_twin,
    "ran": ran_twin,
    "cfn": cfn_twin,
    "atr": atr_twin,
    "star": star_twin,
    "sgrn": sgrn_twin,
    "sgu": sgu_twin,
    "dsgu": dsgu_twin,
    "fast_rnn": fast_rnn_twin,
    "fast_grnn": fast_grnn_twin,
}
