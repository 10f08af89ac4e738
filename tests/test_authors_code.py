"""Oracles against what their authors' code computes, written once more in torch: over whole sequences where theirs is.

An oracle and a cell that misread a paper alike are found here. Weights are drawn, [H, I] as in the papers; the states
start at zero. Shapes: T time steps, I input size, H hidden size, N size of a unit's own state.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import attention, compound, extended, gated, gru, linear, neural, rwkv, ssm, unitary
from torch.nn import functional as F

from rnnzoo import get

T, I, H, N = 12, 4, 6, 5  # noqa: E741  I is the input size everywhere in this project
BLOCK = {"W_x": (H, I), "W_z": (H, I), "W_out": (H, H), "W_conv": (H, 4), "b_conv": H, "W_r": (2, H), "W_Delta": (H, 2)}


@pytest.fixture
def draw():
    """draw(name=shape, ...) -> weights as arrays, the same as tensors, and an input [T, I]."""
    rng = np.random.default_rng(0)

    def draw(**shapes):
        arrays = {name: rng.normal(size=shape) / 2 for name, shape in shapes.items()}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return SimpleNamespace(**arrays), SimpleNamespace(**tensors), torch.from_numpy(rng.normal(size=(T, I)))

    return draw


def run(oracle, p, xs, *states, **hyperparameters):
    """The outputs [T, ...] of an oracle, and its last states."""
    states, ys = [np.zeros(s) if isinstance(s, (int, tuple)) else s for s in states], []
    for x in xs.numpy():
        y, states = oracle(p, x, *states, **hyperparameters)
        ys.append(y)
    return torch.from_numpy(np.array(ys)), states


def assert_close(mine, theirs):
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


def convolution(x, weight, bias):
    """SiLU of a causal convolution of each feature of x [T, features] with weight [features, taps]."""
    padded = F.pad(x.T[None], (weight.shape[1] - 1, 0))
    return F.silu(F.conv1d(padded, weight[:, None], bias, groups=len(weight)))[0].T


def decays(log_decay):
    """From log decays [T, ...] the products [T, T, ...] of those of s+1 to t, zero for s > t."""
    total = log_decay.cumsum(0)
    mask = torch.ones(T, T).tril().bool().reshape(T, T, *[1] * (log_decay.dim() - 1))
    return torch.where(mask, (total[:, None] - total[None]).where(mask, -torch.inf).exp(), 0)


def test_mamba(draw):
    """Over the whole sequence: y_t is the sum over s of C_t exp(A (Δ_s+1 + ... + Δ_t)) B_s Δ_s u_s."""
    p, t, xs = draw(**BLOCK, b_Delta=H, D=H, W_B=(N, H), W_C=(N, H), log_A=(N, H))
    u, z = convolution(xs @ t.W_x.T, t.W_conv, t.b_conv), xs @ t.W_z.T
    delta = F.softplus(u @ t.W_r.T @ t.W_Delta.T + t.b_Delta)
    L = decays(delta[:, None] * -t.log_A.exp())
    y = torch.einsum("tn,tsnh,sn,sh->th", u @ t.W_C.T, L, u @ t.W_B.T, delta * u) + t.D * u
    mine, _ = run(ssm.mamba, p, xs, (H, N), (4, H), order=N, taps=4, rank=2)
    assert_close(mine, y * F.silu(z) @ t.W_out.T)


def test_longhorn(draw):
    p, t, xs = draw(**BLOCK, b_beta=H, D=H, W_k=(N, H), W_q=(N, H))
    us, S, ys = convolution(xs @ t.W_x.T, t.W_conv, t.b_conv), torch.zeros(H, N), []
    for u in us:
        k, q = t.W_k @ u, t.W_q @ u
        dt = torch.sigmoid(t.W_Delta @ t.W_r @ u + t.b_beta)
        dt = dt / (1 + dt * k.square().sum())
        S = S * (1 - torch.outer(dt, k**2)) + torch.outer(dt * u, k)
        ys.append(S @ q + t.D * u)
    mine, (h, _) = run(ssm.longhorn, p, xs, (H, N), (4, H), order=N, taps=4, rank=2)
    assert_close(mine, torch.stack(ys) * F.silu(xs @ t.W_z.T) @ t.W_out.T)
    assert_close(torch.from_numpy(h), S)


def test_longhorn_is_the_minimum_it_is_derived_from(draw):
    """Without a second feature of k its diagonal is exact: s' minimises (s' - s)² + β (s' k - u)²."""
    p, t, xs = draw(**BLOCK, b_beta=H, D=H, W_k=(1, H), W_q=(1, H))
    window = torch.randn(4, H, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).numpy()
    s = np.linspace(-1, 1, H)[:, None]
    x = xs[0].numpy()
    _, (new, window) = ssm.longhorn(p, x, s, window, order=1, taps=4, rank=2)
    u = F.silu((t.W_conv * torch.from_numpy(window).T).sum(1) + t.b_conv)
    k, beta = t.W_k @ u, torch.sigmoid(t.W_Delta @ t.W_r @ u + t.b_beta)
    new = torch.from_numpy(new[:, 0]).requires_grad_()
    loss = (new - torch.from_numpy(s[:, 0])).square() + beta * (new * k - u).square()
    assert_close(torch.autograd.grad(loss.sum(), new)[0], torch.zeros(H, dtype=torch.float64))


def test_mamba2(draw):
    """State space duality: (L ∘ C Bᵀ) Δ x, L of the decays, as in the paper's and ssd_minimal.py's quadratic form."""
    sizes = {"W_x": (H, I), "W_B": (N, I), "W_C": (N, I), "w_x": (H, 4), "w_B": (N, 4), "w_C": (N, 4)}
    scalars = {"W_Delta": (1, I), "b_Delta": 1, "log_A": 1, "D": 1}
    p, t, xs = draw(**sizes, b_x=H, b_B=N, b_C=N, **scalars, gain=H, W_z=(H, I), W_out=(H, H))
    x = convolution(xs @ t.W_x.T, t.w_x, t.b_x)
    B, C = convolution(xs @ t.W_B.T, t.w_B, t.b_B), convolution(xs @ t.W_C.T, t.w_C, t.b_C)
    dt = F.softplus(xs @ t.W_Delta.T + t.b_Delta)
    L = decays((dt * -t.log_A.exp())[:, 0])
    y = (L * (C @ B.T)) @ (dt * x) + t.D * x
    y = F.rms_norm(y * F.silu(xs @ t.W_z.T), (H,), t.gain, 1e-5)
    mine, _ = run(ssm.mamba2, p, xs, (H, N), (4, H), (4, N), (4, N), order=N, taps=4)
    assert_close(mine, y @ t.W_out.T)


def test_s4d(draw):
    """As the authors compute it: a kernel for the whole sequence, and its convolution by the Fourier transform."""
    sizes = {"log_A_re": (N, H), "A_im": (N, H), "C_re": (N, H), "C_im": (N, H)}
    p, t, xs = draw(W=(H, I), log_Delta=H, D=H, **sizes, W_o=(H, H), b_o=H, W_g=(H, H), b_g=H)
    u = (xs @ t.W.T).T
    A, C, dt = torch.complex(-t.log_A_re.exp(), t.A_im), torch.complex(t.C_re, t.C_im), t.log_Delta.exp()
    powers = torch.exp((dt * A)[..., None] * torch.arange(T))
    K = 2 * torch.einsum("nh,nht->ht", C * (torch.exp(dt * A) - 1) / A, powers).real
    y = torch.fft.irfft(torch.fft.rfft(K, 2 * T) * torch.fft.rfft(u, 2 * T), 2 * T)[:, :T] + t.D[:, None] * u
    y = F.gelu(y).T
    mine, _ = run(ssm.s4d, p, xs, (H, N), (H, N), order=N)
    assert_close(mine, F.glu(torch.cat([y @ t.W_o.T + t.b_o, y @ t.W_g.T + t.b_g], 1)))


def test_s5(draw):
    """h_t is the sum over s of Λ̅^(t-s) B̅ x_s, which is what the authors' associative scan gives."""
    sizes = {"Lambda_re": N, "Lambda_im": N, "log_Delta": N, "B_re": (N, I), "B_im": (N, I), "C_re": (H, N)}
    p, t, xs = draw(**sizes, C_im=(H, N), D=(H, I), W_g=(H, H), b_g=H)
    eigenvalues = torch.complex(t.Lambda_re, t.Lambda_im)
    bar = torch.exp(eigenvalues * t.log_Delta.exp())
    B = (1 / eigenvalues * (bar - 1))[:, None] * torch.complex(t.B_re, t.B_im)
    ages = torch.arange(T)[:, None] - torch.arange(T)
    powers = torch.where(ages[..., None] >= 0, bar ** ages[..., None].clamp(0), 0)
    h = torch.einsum("tsn,ni,si->tn", powers, B, xs.to(B.dtype))
    y = F.gelu(2 * (h @ torch.complex(t.C_re, t.C_im).T).real + xs @ t.D.T)
    mine, _ = run(ssm.s5, p, xs, N, N)
    assert_close(mine, y * torch.sigmoid(y @ t.W_g.T + t.b_g))


def test_gated_delta_net(draw):
    """The state is [key, value] in fla, decays, and is then corrected by what the key reads from it."""
    sizes = {f"W_{k}": (H, I) for k in "qkvg"} | {f"b_{k}": H for k in "qkv"}
    p, t, xs = draw(**sizes, W_o=(H, H), W_beta=(1, I), W_alpha=(1, I), log_A=1, b_alpha=1, gain=H)
    q, k, v = (F.silu(xs @ getattr(t, f"W_{i}").T + getattr(t, f"b_{i}")) for i in "qkv")
    q, k = (a * torch.rsqrt(a.square().sum(-1, keepdim=True) + 1e-6) for a in (q, k))
    beta, g = torch.sigmoid(xs @ t.W_beta.T), -t.log_A.exp() * F.softplus(xs @ t.W_alpha.T + t.b_alpha)
    S, ys = torch.zeros(H, H, dtype=torch.float64), []
    for i in range(T):
        S = S * g[i].exp()
        S = S + torch.outer(k[i], beta[i] * (v[i] - k[i] @ S))
        ys.append(q[i] * H**-0.5 @ S)
    y = F.rms_norm(torch.stack(ys), (H,), t.gain, 1e-5) * F.silu(xs @ t.W_g.T)
    mine, (mine_S,) = run(attention.gated_delta_net, p, xs, (H, H))
    assert_close(mine, y @ t.W_o.T)
    assert_close(torch.from_numpy(mine_S), S.T)


def test_linear_attention(draw):
    """As attention: the weights of the past values are φ(q)·φ(k), divided by their sum."""
    p, t, xs = draw(**{f"W_{k}": (H, I) for k in "QKV"}, W_O=(H, H), **{f"b_{k}": H for k in "QKVO"})
    q, k, v = (xs @ getattr(t, f"W_{i}").T + getattr(t, f"b_{i}") for i in "QKV")
    weights = ((F.elu(q) + 1) @ (F.elu(k) + 1).T).tril()
    mine, _ = run(attention.linear_attention, p, xs, (H, H), H)
    assert_close(mine, weights @ v / (weights.sum(1, keepdim=True) + 1e-6) @ t.W_O.T + t.b_O)


LAYERS, LAYER = 3, 2
"""Of so many layers this one is run; counted from one."""


def lower_bound():
    """modeling_hgrn.py in fla, modeling_hgrn2.py of the authors: of Γ as it starts, less the first layer's share."""
    shares = torch.zeros(LAYERS, H, dtype=torch.float64).softmax(0)
    return (shares.cumsum(0) - shares[0])[LAYER - 1]


@pytest.mark.parametrize("first", [True, False])
def test_hgrn(draw, first):
    """hgru1d.py over the whole sequence: complex decays multiply up; lower_bound is 0 unless layers are counted."""
    gates = {f"{k}_{i}": (H, I) if k == "W" else H for k in "Wb" for i in ("re", "im", "mu")}
    p, t, xs = draw(**gates, theta=H, W_g=(2 * H, I), b_g=2 * H, scale=2 * H, shift=2 * H, W_o=(H, 2 * H), b_o=H)
    bound = torch.zeros(H, dtype=torch.float64) if first else lower_bound()
    keep = bound + (1 - bound) * torch.sigmoid(xs @ t.W_mu.T + t.b_mu)
    c = torch.complex(F.silu(xs @ t.W_re.T + t.b_re), F.silu(xs @ t.W_im.T + t.b_im))
    turns = torch.exp(1j * t.theta * (torch.arange(T)[:, None] - torch.arange(T))[..., None])
    h = torch.einsum("tsk,sk->tk", decays(keep.log()) * turns, (1 - keep) * c)
    normal = F.layer_norm(torch.cat([h.real, h.imag], -1), (2 * H,), t.scale, t.shift)
    mine, _ = run(linear.hgrn, p, xs, H, H, gamma=bound.numpy())
    assert_close(mine, (normal * F.silu(xs @ t.W_g.T + t.b_g)) @ t.W_o.T + t.b_o)
    if first:
        assert get("hgrn").hyperparameters["gamma"].default == get("hgrn2").hyperparameters["gamma"].default == 0


def test_hgrn2(draw):
    """Over the whole sequence, as the authors' chunks: the decays of each key feature multiply up."""
    gates = {f"{k}_{i}": (H, I) if k == "W" else H for k in "Wb" for i in "fio"}
    p, t, xs = draw(**gates, scale=H, shift=H, W_y=(H, H), b_y=H)
    bound = lower_bound()
    f = bound + (1 - bound) * torch.sigmoid(xs @ t.W_f.T + t.b_f)
    v, o = F.silu(xs @ t.W_i.T + t.b_i), torch.sigmoid(xs @ t.W_o.T + t.b_o)
    y = torch.einsum("tk,tsk,sk,sv->tv", o, decays(f.log()), 1 - f, v)
    mine, _ = run(attention.hgrn2, p, xs, (H, H), gamma=bound.numpy())
    assert_close(mine, F.layer_norm(y, (H,), t.scale, t.shift) @ t.W_y.T + t.b_y)


def test_rwkv4(draw):
    """The authors' stable sums aa and bb, whose common factor is the exponential of a running maximum pp."""
    sizes = {f"mu_{k}": I for k in "rkv"} | {f"W_{k}": (H, I) for k in "rkv"}
    p, t, xs = draw(**sizes, W_o=(H, H), log_w=H, u=H)
    before = F.pad(xs, (0, 0, 1, 0))[:-1]
    r, k, v = ((xs * mu + before * (1 - mu)) @ W.T for mu, W in ((t.mu_r, t.W_r), (t.mu_k, t.W_k), (t.mu_v, t.W_v)))
    aa, bb, pp, ys = torch.zeros(H), torch.zeros(H), torch.full((H,), -1e30, dtype=torch.float64), []
    for i in range(T):
        top = torch.maximum(pp, t.u + k[i])
        old, new = torch.exp(pp - top), torch.exp(t.u + k[i] - top)
        ys.append(torch.sigmoid(r[i]) * (old * aa + new * v[i]) / (old * bb + new))
        top = torch.maximum(pp - t.log_w.exp(), k[i])
        old, new = torch.exp(pp - t.log_w.exp() - top), torch.exp(k[i] - top)
        aa, bb, pp = old * aa + new * v[i], old * bb + new, top
    mine, (_, a, b, top, _) = run(rwkv.rwkv4, p, xs, H, H, H, H, I)
    assert_close(mine, torch.stack(ys) @ t.W_o.T)
    for ours, theirs in ((a, aa), (b, bb), (top, pp)):
        assert_close(torch.from_numpy(ours), theirs)


def test_rwkv7(draw):
    """rwkv_v7_demo_rnn.py: the old state by w and by a rank-one matrix, both added up; w in its older form."""
    mixes = {f"mu_{k}": I for k in "rgkvwa"}
    lora = {"w_1": (2, I), "w_2": (H, 2), "a_1": (2, I), "a_2": (H, 2), "g_1": (2, I), "g_2": (H, 2)}
    vectors = dict.fromkeys(("w_0", "a_0", "k_k", "k_a", "r_k", "scale", "shift"), H)
    p, t, xs = draw(**mixes, **{f"W_{k}": (H, I) for k in "rkv"}, W_o=(H, H), **lora, **vectors)
    shift = F.pad(xs, (0, 0, 1, 0))[:-1] - xs
    r, k, v = ((xs + shift * getattr(t, f"mu_{i}")) @ getattr(t, f"W_{i}").T for i in "rkv")
    w = t.w_0 + torch.tanh((xs + shift * t.mu_w) @ t.w_1.T) @ t.w_2.T
    w = torch.exp(-torch.exp(-F.softplus(-w) - 0.5))
    a = torch.sigmoid(t.a_0 + (xs + shift * t.mu_a) @ t.a_1.T @ t.a_2.T)
    g = torch.sigmoid((xs + shift * t.mu_g) @ t.g_1.T) @ t.g_2.T
    kk, k = F.normalize(k * t.k_k, dim=-1), k * (1 + (a - 1) * t.k_a)
    S, ys = torch.zeros(H, H, dtype=torch.float64), []
    for i in range(T):
        S = S * w[i] + S @ (-kk[i][:, None] @ (kk[i] * a[i])[None]) + torch.outer(v[i], k[i])
        ys.append(S @ r[i])
    y = F.group_norm(torch.stack(ys), 1, t.scale, t.shift, 64e-5) + (r * k * t.r_k).sum(-1, keepdim=True) * v
    mine, (_, mine_S, _) = run(rwkv.rwkv7, p, xs, H, (H, H), I, rank=2)
    assert_close(mine, y * g @ t.W_o.T)
    assert_close(torch.from_numpy(mine_S), S)


def lstm(W, U, b):
    """torch's LSTM cell with our stacks W [4, I, H], U [4, H, H] and b [H, 4], in torch's order i, f, g, o."""
    zero = torch.zeros(b.numel(), dtype=b.dtype)
    weights = W.transpose(1, 2).flatten(0, 1), U.transpose(1, 2).flatten(0, 1), b.T.flatten(), zero
    return lambda x, h, c: tuple(s[0] for s in torch.lstm_cell(x[None], (h[None], c[None]), *weights))


STACKS = {"W": (4, I, H), "U": (4, H, H), "b": (H, 4)}


@pytest.mark.parametrize("rounds", [2, 5])
def test_mogrifier_lstm(draw, rounds):
    """lamb counts its rounds from 0 and scales the input in the even ones."""
    odd, even = (rounds + 1) // 2, rounds // 2
    sizes = {"Q": (odd, H, I), "q": (I, odd), "R": (even, I, H), "r": (H, even)}
    p, t, xs = draw(**sizes, **STACKS)
    cell, h, c, ys = lstm(t.W, t.U, t.b), torch.zeros(H).double(), torch.zeros(H).double(), []
    for x in xs:
        for fm in range(rounds):
            if fm % 2 == 0:
                x = x * 2 * torch.sigmoid(h @ t.Q[fm // 2] + t.q.T[fm // 2])
            else:
                h = h * 2 * torch.sigmoid(x @ t.R[fm // 2] + t.r.T[fm // 2])
        h, c = cell(x, h, c)
        ys.append(h)
    assert_close(run(compound.mogrifier_lstm, p, xs, H, H, rounds=rounds)[0], torch.stack(ys))


def test_on_lstm(draw):
    """The authors keep the units of a level in a dimension of their own, so the master gates need not be repeated."""
    levels, size = 3, H // 3
    masters = {f"{k}_{g}": shape for g in "fi" for k, shape in (("W", (levels, I)), ("U", (levels, H)), ("b", levels))}
    p, t, xs = draw(**STACKS, **masters)
    h, c, ys = torch.zeros(H).double(), torch.zeros(levels, size).double(), []
    for x in xs:
        i, f, g, o = ((x @ t.W[k] + h @ t.U[k] + t.b[:, k]).view(levels, size) for k in range(4))
        cforget = (t.W_f @ x + t.U_f @ h + t.b_f).softmax(0).cumsum(0)[:, None]
        cin = 1 - (t.W_i @ x + t.U_i @ h + t.b_i).softmax(0).cumsum(0)[:, None]
        overlap = cforget * cin
        forget = torch.sigmoid(f) * overlap + (cforget - overlap)
        into = torch.sigmoid(i) * overlap + (cin - overlap)
        c = forget * c + into * torch.tanh(g)
        h = (torch.sigmoid(o) * torch.tanh(c)).flatten()
        ys.append(h)
    assert_close(run(compound.on_lstm, p, xs, H, H, chunk_size=size)[0], torch.stack(ys))


def integrated(t, gates, x, h):
    """All gates of multiplicative integration at once: (α Uh + β_2) Wx + β_1 Uh + b, stacked."""
    W, U, α, b = (torch.cat([getattr(t, f"{k}_{g}") for g in gates]) for k in ("W", "U", "α", "b"))
    β_1, β_2 = (torch.cat([getattr(t, f"β_{g}{n}") for g in gates]) for n in (1, 2))
    Wx, Uh = W @ x, U @ h
    return ((α * Uh + β_2) * Wx + β_1 * Uh + b).chunk(len(gates))


def integration(gates):
    vectors = [name for g in gates for name in (f"α_{g}", f"β_{g}1", f"β_{g}2", f"b_{g}")]
    return {f"W_{g}": (H, I) for g in gates} | {f"U_{g}": (H, H) for g in gates} | dict.fromkeys(vectors, H)


def test_mi_lstm(draw):
    p, t, xs = draw(**integration("ifzo"))
    h, c, ys = torch.zeros(H).double(), torch.zeros(H).double(), []
    for x in xs:
        i, f, z, o = integrated(t, "ifzo", x, h)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
        h = torch.sigmoid(o) * torch.tanh(c)
        ys.append(h)
    assert_close(run(compound.mi_lstm, p, xs, H, H)[0], torch.stack(ys))


def test_mi_gru(draw):
    """As other people have it."""
    p, t, xs = draw(**integration("zrh"))
    h, ys = torch.zeros(H).double(), []
    for x in xs:
        z, r = integrated(t, "zr", x, h)
        (candidate,) = integrated(t, "h", x, torch.sigmoid(r) * h)
        h = torch.lerp(h, torch.tanh(candidate), torch.sigmoid(z))
        ys.append(h)
    assert_close(run(compound.mi_gru, p, xs, H)[0], torch.stack(ys))


def test_gru_d(draw):
    """zhiyongc/GRU-D, GRUD.py, gets last observations and intervals as tensors [T, D], made here by the paper's rule.

    The masks are zeros and ones, and means are zero; the first interval is zero.
    """
    D = 3
    gates = {f"{k}{g}": shape for g in ("_z", "_r", "") for k, shape in (("W", (H, D)), ("U", (H, H)), ("V", (H, D)))}
    p, t, _ = draw(w_x=D, b_x=D, W_gamma=(H, D), b_gamma=H, **gates, b_z=H, b_r=H, b=H)
    random = torch.Generator().manual_seed(0)
    X, times = (
        torch.randn(T, D, dtype=torch.float64, generator=random),
        torch.rand(T, generator=random).double().cumsum(0),
    )
    mask = (torch.rand(T, D, generator=random) < 0.5).double()
    last, delta = torch.zeros(T, D).double(), torch.zeros(T, D).double()
    for i in range(T):
        for d in range(D):
            seen = [k for k in range(i) if mask[k, d]]
            last[i, d] = X[seen[-1], d] if seen else 0
            delta[i, d] = times[i] - times[seen[-1] if seen else 0]
    decayed = torch.exp(-F.relu(delta * t.w_x + t.b_x)) * last
    inputs = torch.cat([torch.where(mask > 0, X, decayed), mask], 1)
    h, ys = torch.zeros(H).double(), []
    for x, gamma in zip(inputs, torch.exp(-F.relu(delta @ t.W_gamma.T + t.b_gamma))):
        h = gamma * h
        z = torch.sigmoid(torch.cat([t.W_z, t.V_z], 1) @ x + t.U_z @ h + t.b_z)
        r = torch.sigmoid(torch.cat([t.W_r, t.V_r], 1) @ x + t.U_r @ h + t.b_r)
        h = torch.lerp(h, torch.tanh(torch.cat([t.W, t.V], 1) @ x + t.U @ (r * h) + t.b), z)
        ys.append(h)
    gaps = torch.diff(times, prepend=times[:1])[:, None]
    assert_close(run(gru.gru_d, p, torch.cat([X, mask, gaps], 1), H, D, D)[0], torch.stack(ys))


def test_fast_slow(draw):
    sizes = {f"{k}_{c}": shape for c in "1S2" for k, shape in (("W", (4, I if c == "1" else H, H)), ("U", (4, H, H)))}
    p, t, xs = draw(**sizes, b_1=(H, 4), b_S=(H, 4), b_2=(H, 4))
    first, slow, second = (lstm(*(getattr(t, f"{k}_{c}") for k in "WUb")) for c in "1S2")
    fast_state = slow_state = (torch.zeros(H).double(), torch.zeros(H).double())
    ys = []
    for x in xs:
        fast_state = first(x, *fast_state)
        slow_state = slow(fast_state[0], *slow_state)
        fast_state = second(slow_state[0], *fast_state)
        ys.append(fast_state[0])
    assert_close(run(compound.fast_slow, p, xs, H, H, H, H)[0], torch.stack(ys))


def test_hyper_lstm(draw):
    """supercell scales the products W x and U h; here the matrices' rows are scaled."""
    small, size = 3, 2
    embedded = {f"Z_{k}": (4, small, size) for k in "xhb"} | {f"D_{k}": (4, size, H) for k in "xhb"}
    inner = {"V": (4, I + H, small), "R": (4, small, small), "d": (small, 4)}
    p, t, xs = draw(**inner, **STACKS, **embedded, z_x=(size, 4), z_h=(size, 4))
    inner, ys = lstm(t.V, t.R, t.d), []
    h, c, h_hat, c_hat = (torch.zeros(n).double() for n in (H, H, small, small))
    for x in xs:
        h_hat, c_hat = inner(torch.cat([x, h]), h_hat, c_hat)
        d_x, d_h = (
            torch.einsum("kze,kz->ke", D, torch.einsum("kiz,i->kz", Z, h_hat) + z.T)
            for D, Z, z in ((t.D_x, t.Z_x, t.z_x), (t.D_h, t.Z_h, t.z_h))
        )
        b = t.b + torch.einsum("kze,kiz,i->ek", t.D_b, t.Z_b, h_hat)
        h, c = lstm(t.W * d_x[:, None], t.U * d_h[:, None], b)(x, h, c)
        ys.append(h)
    sizes = {"hyper_size": small, "embedding_size": size}
    assert_close(run(compound.hyper_lstm, p, xs, H, H, small, small, **sizes)[0], torch.stack(ys))


def turned(h, theta, phi):
    """The authors' loop over h in the cells' order: each layer is h times one vector, plus a permutation of another.

    theta and phi are [pairs, layers].
    """
    pairs, layers = theta.shape
    h = torch.stack([h[:pairs], h[pairs:]], 1).flatten()
    for k in range(layers):
        first = torch.arange(k % 2, 2 * pairs - 1, 2)
        cos, sin, turn = (f(theta[: len(first), k]) for f in (torch.cos, torch.sin, torch.ones_like))
        turn = turn * torch.exp(1j * phi[: len(first), k])
        diagonal, off, swap = torch.ones_like(h), torch.zeros_like(h), torch.arange(2 * pairs)
        diagonal[first], diagonal[first + 1] = cos.to(h.dtype), cos * turn
        off[first], off[first + 1] = sin.to(h.dtype), -sin * turn
        swap[first], swap[first + 1] = first + 1, first
        h = h * diagonal + (h * off)[swap]
    return torch.cat([h[::2], h[1::2]])


@pytest.mark.parametrize("layers", [2, 3])
def test_goru(draw, layers):
    sizes = {f"W_{k}": (H, H) for k in "rg"} | {f"U_{k}": (H, I) for k in "rgc"} | {f"b_{k}": H for k in "rgc"}
    p, t, xs = draw(theta=(H // 2, layers), **sizes)
    h, ys = torch.zeros(H).double(), []
    for x in xs:
        r, g = torch.sigmoid(t.U_r @ x + t.W_r @ h + t.b_r), torch.sigmoid(t.U_g @ x + t.W_g @ h + t.b_g)
        z = r * turned(h + 0j, t.theta, 0 * t.theta).real + t.U_c @ x
        h = g * h + (1 - g) * torch.sign(z) * F.relu(z.abs() + t.b_c)
        ys.append(h)
    assert_close(run(unitary.goru, p, xs, H, capacity=layers)[0], torch.stack(ys))


@pytest.mark.parametrize("layers", [2, 3])
def test_eunn(draw, layers):
    p, t, xs = draw(theta=(H // 2, layers), phi=(H // 2, layers), omega=H, U_re=(H, I), U_im=(H, I), b=H)
    h, ys = torch.zeros(H, dtype=torch.complex128), []
    for x in xs:
        z = turned(h, t.theta, t.phi) * torch.exp(1j * t.omega) + torch.complex(t.U_re @ x, t.U_im @ x)
        norm = (z.abs().square() + 1e-6).sqrt()
        h = torch.polar(F.relu(norm + t.b) * z.abs() / norm, z.angle())
        ys.append(torch.cat([h.real, h.imag]))
    assert_close(run(unitary.eunn, p, xs, H, H, capacity=layers)[0], torch.stack(ys))
    W = unitary.rotations(p.theta, p.phi)
    np.testing.assert_allclose(W @ W.conj().T, np.eye(H), atol=1e-12)


def test_plrnns(draw):
    """BPTT_TF/bptt/PLRNN_model.py: A and W are one matrix, AW; thresholds are added. With x as in VI/sgvb."""
    bases = 3
    p, t, xs = draw(W=(H, H), A=H, C=(H, I), h_0=H, alpha=bases, theta=(bases, H))
    AW = t.W - t.W.diag().diag() + t.A.diag()
    W, thetas, z, ys, branched, branched_ys = AW - AW.diag().diag(), -t.theta.T, torch.zeros(H), [], torch.zeros(H), []
    for x in xs:
        z = AW.diag() * z + torch.relu(z).double() @ W.T + t.h_0 + t.C @ x
        expansion = torch.sum(t.alpha * torch.relu(branched.unsqueeze(-1) + thetas), dim=-1)
        branched = AW.diag() * branched + expansion @ W.T + t.h_0 + t.C @ x
        ys.append(z)
        branched_ys.append(branched)
    assert_close(run(neural.plrnn, p, xs, H)[0], torch.stack(ys))
    assert_close(run(neural.dend_plrnn, p, xs, H, bases=bases)[0], torch.stack(branched_ys))


def test_nru(draw):
    """The authors' four linear maps of [h, m]; torch normalises the pieces of the outer products."""
    heads, rows = 2, 3
    side, memory = heads * rows, rows * heads * rows
    sizes = {f"{k}_h": (heads, H, rows) for k in "PR"} | {f"{k}_m": (heads, memory, rows) for k in "PR"}
    sizes |= {f"{k}_h": (side, H) for k in "QS"} | {f"{k}_m": (side, memory) for k in "QS"}
    sizes |= {f"{k}_h": (heads, H, 1) for k in "AB"} | {f"{k}_m": (heads, memory, 1) for k in "AB"}
    biases = {
        "a": (1, heads),
        "b_beta": (1, heads),
        "b_p": (rows, heads),
        "b_r": (rows, heads),
        "b_q": side,
        "b_s": side,
    }
    p, t, xs = draw(**sizes, **biases, W_x=(H, I), W_h=(H, H), W_m=(H, memory), b=H)

    def merged(k, bias):
        """One linear map of [h, m] for all heads."""
        weight = torch.cat([getattr(t, f"{k}_h"), getattr(t, f"{k}_m")], 1).transpose(1, 2).flatten(0, 1)
        return weight, bias.T.flatten()

    def direction(s, left, k, bias):
        u, v = (
            F.linear(s, *merged(*left)),
            F.linear(s, torch.cat([getattr(t, f"{k}_h"), getattr(t, f"{k}_m")], 1), bias),
        )
        return F.normalize((u[:, None] @ v[None]).view(heads, memory), p=5, dim=1, eps=1e-12)

    h, m, ys = torch.zeros(H).double(), torch.zeros(memory).double(), []
    for x in xs:
        h = F.relu(F.linear(torch.cat([x, h, m]), torch.cat([t.W_x, t.W_h, t.W_m], 1), t.b))
        s = torch.cat([h, m])
        add = F.linear(s, *merged("A", t.a))[:, None] * direction(s, ("P", t.b_p), "Q", t.b_q)
        forget = F.linear(s, *merged("B", t.b_beta))[:, None] * direction(s, ("R", t.b_r), "S", t.b_s)
        m = m + torch.mean(add - forget, dim=0)
        ys.append(h)
    mine, (_, mine_m) = run(extended.nru, p, xs, H, memory, heads=heads, side=side)
    assert_close(mine, torch.stack(ys))
    assert_close(torch.from_numpy(mine_m), m)


def test_hippo_legs_holds_legendre_coefficients(draw):
    """c_n is the mean over the past of u times the Legendre polynomial of degree n, scaled by sqrt(2n + 1).

    The oracle is fed u itself; a step of Euler's rule is 1/4000 of the past here.
    """
    steps, order = 4000, 4
    p, _, _ = draw(U_x=(H, 1), U_c=(H, order), d=H, W_x=(H, 1), W_c=(H, order), b=H)
    p.e_x, p.e_h, p.e = np.ones((1, 1)), np.zeros((1, H)), np.zeros(1)
    place = (np.arange(steps) + 0.5) / steps
    u = np.cos(5 * place) + place
    _, (_, c, k) = run(ssm.hippo_legs, p, torch.from_numpy(u[:, None]), H, order, 1, order=order)
    assert k.item() == steps
    polynomials = np.polynomial.legendre.legvander(2 * place - 1, order - 1)
    expected = (u[:, None] * polynomials).mean(0) * np.sqrt(2 * np.arange(order) + 1)
    np.testing.assert_allclose(c, expected, atol=0.01)


def test_hippo_legs(draw):
    """The authors' network, its maps of concatenated inputs, and their A, which is negative: m + A m + B u."""
    order = 5
    maps = {"W_x": (H, I), "W_c": (H, order), "b": H, "U_x": (H, I), "U_c": (H, order), "d": H}
    p, t, xs = draw(e_x=(1, I), e_h=(1, H), e=1, **maps)
    root = torch.sqrt(2 * torch.arange(order, dtype=torch.float64) + 1)
    A = -(torch.outer(root, root).tril(-1) + torch.diag(torch.arange(order) + 1.0))
    h, m, ys = torch.zeros(H).double(), torch.zeros(order).double(), []
    for step, x in enumerate(xs):
        u = F.linear(torch.cat([x, h]), torch.cat([t.e_x, t.e_h], 1), t.e)
        m = m + F.linear(m, A / (step + order)) + F.linear(u, root[:, None] / (step + order))
        both = torch.cat([x, m])
        hidden = torch.tanh(F.linear(both, torch.cat([t.W_x, t.W_c], 1), t.b))
        g = torch.sigmoid(F.linear(both, torch.cat([t.U_x, t.U_c], 1), t.d))
        h = (1.0 - g) * h + g * hidden
        ys.append(h)
    assert_close(run(ssm.hippo_legs, p, xs, H, order, 1, order=order)[0], torch.stack(ys))


def gates(*names):
    return {f"{k}_{g}": shape for g in names for k, shape in (("W", (H, I)), ("U", (H, H)), ("b", H))}


def test_rwa(draw):
    """A softmax over the past, written as one."""
    p, t, xs = draw(**gates("g"), W_u=(H, I), b_u=H, W_a=(H, I), U_a=(H, H))
    h, zs, weights, ys = torch.zeros(H).double(), [], [], []
    for x in xs:
        zs.append((t.W_u @ x + t.b_u) * torch.tanh(t.W_g @ x + t.U_g @ h + t.b_g))
        weights.append(t.W_a @ x + t.U_a @ h)
        h = torch.tanh((torch.stack(weights).softmax(0) * torch.stack(zs)).sum(0))
        ys.append(h)
    mine, (_, _, d, top) = run(gated.rwa, p, xs, H, H, H, H)
    assert_close(mine, torch.stack(ys))
    assert_close(torch.from_numpy(np.log(d) + top), torch.stack(weights).logsumexp(0))


def test_mtgru(draw):
    """The authors' tau is one over ours; one product with [x, h] for both gates."""
    p, t, xs = draw(**gates("r", "z", "u"))
    h, ys, tau = torch.zeros(H).double(), [], 0.4
    both = torch.cat([torch.cat([t.W_z, t.U_z], 1), torch.cat([t.W_r, t.U_r], 1)])
    for x in xs:
        z, r = torch.sigmoid(both @ torch.cat([x, h]) + torch.cat([t.b_z, t.b_r])).chunk(2)
        u = torch.tanh(t.W_u @ x + t.U_u @ (h * r) + t.b_u)
        h = (1 - tau) * h + tau * (z * h + (1 - z) * u)
        ys.append(h)
    assert_close(run(gru.mtgru, p, xs, H, tau=1 / tau)[0], torch.stack(ys))
