"""Long short-term memory and its variants."""

import numpy as np
import torch
import torchrecurrent
from numpy import tanh
from torch import nn

from oracles import sigmoid


def lstm(p, x, h, c):
    """Gers et al. 2000: input, forget and output gate around one memory, tanh as both squashing functions."""
    i = sigmoid(p.W_i @ x + p.U_i @ h + p.b_i)
    f = sigmoid(p.W_f @ x + p.U_f @ h + p.b_f)
    o = sigmoid(p.W_o @ x + p.U_o @ h + p.b_o)
    c = f * c + i * tanh(p.W_g @ x + p.U_g @ h + p.b_g)
    h = o * tanh(c)
    return h, (h, c)


def lstm_twin(cell):
    twin = nn.LSTMCell(cell.input_size, cell.hidden_size, dtype=cell.W_i.dtype)
    with torch.no_grad():
        twin.weight_ih.copy_(torch.cat([cell.W_i, cell.W_f, cell.W_g, cell.W_o], 1).T)
        twin.weight_hh.copy_(torch.cat([cell.U_i, cell.U_f, cell.U_g, cell.U_o], 1).T)
        twin.bias_ih.copy_(torch.cat([cell.b_i, cell.b_f, cell.b_g, cell.b_o]))
        twin.bias_hh.zero_()
    return lambda x, h, c: twin(x, (h, c))


def lstm_peephole(p, x, y, c):
    """Greff et al. 2017, section II-A; the output gate sees the new memory."""
    z = tanh(p.W_z @ x + p.R_z @ y + p.b_z)
    i = sigmoid(p.W_i @ x + p.R_i @ y + p.p_i * c + p.b_i)
    f = sigmoid(p.W_f @ x + p.R_f @ y + p.p_f * c + p.b_f)
    c_new = z * i + c * f
    o = sigmoid(p.W_o @ x + p.R_o @ y + p.p_o * c_new + p.b_o)
    y = tanh(c_new) * o
    return y, (y, c_new)


def lstm_1997(p, x, y, s):
    """Hochreiter & Schmidhuber 1997, appendix A.1 of the preprint: f, h and g are eq. 3-5, the units eq. 7-9.

    A bias is the weight of a unit that is always on. Section 5: the current input is used at once.
    """

    def net(W, U, b):
        return np.hstack([W, U, b[:, None]]) @ np.concatenate([x, y, [1.0]])

    y_in = sigmoid(net(p.W_in, p.U_in, p.b_in))
    y_out = sigmoid(net(p.W_out, p.U_out, p.b_out))
    g = 4 / (1 + np.exp(-net(p.W_c, p.U_c, p.b_c))) - 2
    s = s + y_in * g
    h = 2 / (1 + np.exp(-s)) - 1
    return y_out * h, (y_out * h, s)


def lstm_1997_twin(cell):
    """g = 2 tanh(net/2) and h = tanh(s/2): with half the net input and half the state, both are tanh."""
    twin = torchrecurrent.OriginalLSTMCell(cell.input_size, cell.hidden_size, dtype=cell.W_in.dtype)
    with torch.no_grad():
        twin.weight_ih.copy_(torch.cat([cell.W_in, cell.W_c / 2, cell.W_out], 1).T)
        twin.weight_hh.copy_(torch.cat([cell.U_in, cell.U_c / 2, cell.U_out], 1).T)
        twin.bias_ih.copy_(torch.cat([cell.b_in, cell.b_c / 2, cell.b_out]))
        twin.bias_hh.zero_()

    def step(x, y, s):
        y, half = twin(x, (y, s / 2))
        return y, 2 * half

    return step


def lstm_projected(p, x, r, c, projection_size):
    """Sak et al. 2014, eq. 7-12, without peepholes; g and h of the paper are tanh."""
    m_in = np.concatenate([x, r])
    i = sigmoid(np.hstack([p.W_ix, p.W_ir]) @ m_in + p.b_i)
    f = sigmoid(np.hstack([p.W_fx, p.W_fr]) @ m_in + p.b_f)
    o = sigmoid(np.hstack([p.W_ox, p.W_or]) @ m_in + p.b_o)
    c = f * c + i * tanh(np.hstack([p.W_cx, p.W_cr]) @ m_in + p.b_c)
    r = p.W_rm @ (o * tanh(c))
    return r, (r, c)


def lstm_projected_twin(cell):
    sizes = {"hidden_size": cell.hidden_size, "proj_size": cell.projection}
    twin = nn.LSTM(cell.input_size, **sizes, dtype=cell.W_ix.dtype)
    with torch.no_grad():
        twin.weight_ih_l0.copy_(torch.cat([cell.W_ix, cell.W_fx, cell.W_cx, cell.W_ox], 1).T)
        twin.weight_hh_l0.copy_(torch.cat([cell.W_ir, cell.W_fr, cell.W_cr, cell.W_or], 1).T)
        twin.weight_hr_l0.copy_(cell.W_rm.T)
        twin.bias_ih_l0.copy_(torch.cat([cell.b_i, cell.b_f, cell.b_c, cell.b_o]))
        twin.bias_hh_l0.zero_()
    return lambda x, r, c: tuple(s[0] for s in twin(x[None], (r[None], c[None]))[1])


def lstm_residual(p, x, h, c):
    """Kim et al. 2017, section on the residual LSTM: r = tanh(c), m = W_p r, h = o (m + W_h x); w are peepholes."""
    i = sigmoid(p.b_i + p.W_xi @ x + p.W_hi @ h + np.diag(p.w_ci) @ c)
    f = sigmoid(p.b_f + p.W_xf @ x + p.W_hf @ h + np.diag(p.w_cf) @ c)
    new = f * c + i * tanh(p.b_c + p.W_xc @ x + p.W_hc @ h)
    o = sigmoid(p.b_o + p.W_xo @ x + p.W_ho @ h + np.diag(p.w_co) @ new)
    h = o * (np.hstack([p.W_p, p.W_h]) @ np.concatenate([tanh(new), x]))
    return h, (h, new)


def lstm_residual_twin(cell):
    twin = torchrecurrent.ResLSTMCell(cell.input_size, cell.hidden_size, dtype=cell.W_p.dtype)
    with torch.no_grad():
        twin.weight_ih.copy_(torch.cat([cell.W_xi, cell.W_xf, cell.W_xc, cell.W_xo], 1).T)
        twin.weight_hh.copy_(torch.cat([cell.W_hi, cell.W_hf, cell.W_hc, cell.W_ho], 1).T)
        twin.weight_ph.copy_(torch.cat([cell.w_ci, cell.w_cf, cell.w_co]))
        twin.weight_proj.copy_(cell.W_p.T)
        twin.weight_res.copy_(cell.W_h.T)
        twin.bias_ih.copy_(torch.cat([cell.b_i, cell.b_f, cell.b_c, cell.b_o]))
        twin.bias_hh.zero_()
    return lambda x, h, c: twin(x, (h, c))


def lstm_wmc(p, x, h, c):
    """Landi et al. 2021: each gate adds tanh(W c) of its own, o from the new memory."""
    i = sigmoid(p.W_ix @ x + p.W_ih @ h + p.b_i + tanh(p.W_ic @ c))
    f = sigmoid(p.W_fx @ x + p.W_fh @ h + p.b_f + tanh(p.W_fc @ c))
    c_t = f * c + i * tanh(p.W_gx @ x + p.W_gh @ h + p.b_g)
    o = sigmoid(p.W_ox @ x + p.W_oh @ h + p.b_o + tanh(p.W_oc @ c_t))
    return o * tanh(c_t), (o * tanh(c_t), c_t)


def lstm_wmc_twin(cell):
    """The package has biases inside the tanh of the connections, which the paper has not."""
    twin = torchrecurrent.WMCLSTMCell(cell.input_size, cell.hidden_size, dtype=cell.W_ic.dtype)
    with torch.no_grad():
        twin.weight_ih.copy_(torch.cat([cell.W_ix, cell.W_fx, cell.W_gx, cell.W_ox], 1).T)
        twin.weight_hh.copy_(torch.cat([cell.W_ih, cell.W_fh, cell.W_gh, cell.W_oh], 1).T)
        twin.weight_mh.copy_(torch.cat([cell.W_ic, cell.W_fc, cell.W_oc], 1).T)
        twin.bias_ih.copy_(torch.cat([cell.b_i, cell.b_f, cell.b_g, cell.b_o]))
        twin.bias_hh.zero_()
        twin.bias_mh.zero_()
    return lambda x, h, c: twin(x, (h, c))


def lstm_memory_control(p, x, h, v, c):
    """Ben-Ari & Shwartz-Ziv 2017: an LSTM fed by the control vector v, the memory read through a gate m of its own."""
    f, i, o, m = (
        sigmoid(W @ x + U @ v + b)
        for W, U, b in ((p.W_f, p.U_f, p.b_f), (p.W_i, p.U_i, p.b_i), (p.W_o, p.U_o, p.b_o), (p.W_m, p.U_m, p.b_m))
    )
    c = f * c + i * tanh(p.W_n @ x + p.U_n @ v + p.b_n)
    h = o * tanh(c)
    return h, (h, m * tanh(c), c)


def lstm_memory_control_twin(cell):
    twin = torchrecurrent.MCLSTMCell(cell.input_size, cell.hidden_size, dtype=cell.W_f.dtype)
    with torch.no_grad():
        twin.weight_ih.copy_(torch.cat([cell.W_f, cell.W_i, cell.W_o, cell.W_m, cell.W_n], 1).T)
        twin.weight_hh.copy_(torch.cat([cell.U_f, cell.U_i, cell.U_o, cell.U_m, cell.U_n], 1).T)
        twin.bias_ih.copy_(torch.cat([cell.b_f, cell.b_i, cell.b_o, cell.b_m, cell.b_n]))
        twin.bias_hh.zero_()

    def step(x, h, v, c):
        h, (v, c) = twin(x, (v, c))
        return h, v, c

    return step


def lstm_multiplicative(p, x, h, c, squash):
    """Krause et al. 2016, eq. 18-22, with both readings of the memory.

    The authors' matlab/mLSTMhutter.m adds i * ĥ to the memory and takes tanh of c * o (it adds b_h in there);
    chainer/mLSTMWN.py calls chainer's LSTM, with tanh around ĥ and around c, and normalises the weights.
    """
    m = np.diag(p.W_mx @ x) @ p.W_mh @ h
    see = np.concatenate([x, m])
    candidate = np.hstack([p.W_hx, p.W_hm]) @ see + p.b_h
    i = sigmoid(np.hstack([p.W_ix, p.W_im]) @ see + p.b_i)
    o = sigmoid(np.hstack([p.W_ox, p.W_om]) @ see + p.b_o)
    f = sigmoid(np.hstack([p.W_fx, p.W_fm]) @ see + p.b_f)
    if squash == "once":
        c = f * c + i * candidate
        h = tanh(c * o)
    else:
        c = f * c + i * tanh(candidate)
        h = tanh(c) * o
    return h, (h, c)


def janet(p, x, c, beta, T_max):
    """van der Westhuizen & Lasenby 2018; aux_code/rnn_cells.py of the authors has the same with β = 1, h = c."""
    s = np.hstack([p.W_f, p.U_f]) @ np.concatenate([x, c]) + p.b_f
    new = tanh(np.hstack([p.W_c, p.U_c]) @ np.concatenate([x, c]) + p.b_c)
    h = sigmoid(s) * c + sigmoid(beta - s) * new
    return h, (h,)


TWINS = {
    "lstm": lstm_twin,
    "lstm_1997": lstm_1997_twin,
    "lstm_projected": lstm_projected_twin,
    "lstm_residual": lstm_residual_twin,
    "lstm_wmc": lstm_wmc_twin,
    "lstm_memory_control": lstm_memory_control_twin,
}
