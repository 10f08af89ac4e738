"""Torch operations as they are written in steps, which test_listed.py tries in a kernel or, in FALLING, without one.

Each takes a state v [N, 16], the same as a matrix m [N, 4, 4], and weights W [16, 16], K [4, 4], b [16]; it returns
[N, ...] numbers. Those that work element by element are in test_operations.py itself.
Shapes: N rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Listed = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

ORDER = [3, 0, 15, 7, 7, 1]


class Spike(torch.autograd.Function):
    """Whether a potential is above zero; its derivative is that of a fast sigmoid."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(v)
        ctx.slope = slope
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        return gradient / (1 + ctx.slope * v.abs()) ** 2, None


class Reversed(torch.autograd.Function):
    """Its argument; gradients turn round, and none is longer than a half."""

    @staticmethod
    def forward(v: Tensor) -> Tensor:
        return v.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient.clamp(-0.5, 0.5)


@torch.no_grad()
def frozen(v: Tensor) -> Tensor:
    return 2 * v.sin()


def apart(v: Tensor) -> Tensor:
    """Of equal numbers, torch says of none that it is picked."""
    return v * (1 + 0.01 * torch.arange(v.shape[-1])) + 0.01 * torch.arange(v.shape[-1])


SELECTED: dict[str, Listed] = {
    "max(dim)": lambda v, m, W, K, b: m.max(-1).values,
    "min(dim)": lambda v, m, W, K, b: m.min(1).values,
    "max(dim), indices": lambda v, m, W, K, b: m.max(-1).indices * 1.0,
    "argmax": lambda v, m, W, K, b: m.argmax(-1) * v[:, :4],
    "argmin": lambda v, m, W, K, b: v.argmin(-1, keepdim=True) * v,
    "aminmax": lambda v, m, W, K, b: torch.stack([*torch.aminmax(m, dim=-1)]).movedim(0, 1),
    "index by a list": lambda v, m, W, K, b: v[:, ORDER],
    "index by a tensor": lambda v, m, W, K, b: v[:, torch.tensor(ORDER)],
    "index of a matrix": lambda v, m, W, K, b: m[:, [2, 0, 0]],
    "index by two lists": lambda v, m, W, K, b: m[:, [2, 0, 3], [1, 1, 2]],
    "index by truth values": lambda v, m, W, K, b: v[:, [k % 3 == 0 for k in range(16)]],
    "index_select": lambda v, m, W, K, b: torch.index_select(v, 1, torch.tensor(ORDER)),
    "gather": lambda v, m, W, K, b: torch.gather(m, 2, m.argsort(-1)[..., :2]),
    "take_along_dim": lambda v, m, W, K, b: torch.take_along_dim(m, m.argmax(-1, keepdim=True), -1),
    "strided slice": lambda v, m, W, K, b: v[:, 1::3],
    "strided slice of the middle": lambda v, m, W, K, b: m[:, ::2, 1::2],
    "select": lambda v, m, W, K, b: m[:, 1] * m[:, :, -1],
    "narrow": lambda v, m, W, K, b: v.narrow(1, 3, 5),
    "flip": lambda v, m, W, K, b: torch.flip(m, [1, 2]),
    "roll": lambda v, m, W, K, b: torch.roll(m, (1, -1), (1, 2)),
    "rot90": lambda v, m, W, K, b: torch.rot90(m, 1, (1, 2)),
    "sort": lambda v, m, W, K, b: v.sort(-1).values,
    "sort downwards": lambda v, m, W, K, b: m.sort(-1, descending=True).values,
    "argsort": lambda v, m, W, K, b: m.argsort(-1) * m,
    "topk": lambda v, m, W, K, b: apart(v).topk(3, -1).values,
    "kthvalue": lambda v, m, W, K, b: apart(m).kthvalue(2, -1).values,
    "median": lambda v, m, W, K, b: m.median(-1).values,
    "one_hot": lambda v, m, W, K, b: F.one_hot(m.argmax(-1), 4).to(v.dtype) * m,
    "scatter_add": lambda v, m, W, K, b: torch.zeros_like(m).scatter_add(2, m.argsort(-1)[..., :2], m[..., 1:3]),
    "scatter_add to what is read elsewhere": lambda v, m, W, K, b: (
        (y := m.tanh()).scatter_add(2, m.argsort(-1)[..., :2], m[..., 1:3]) + y.flip(1)
    ),
    "index_add": lambda v, m, W, K, b: torch.zeros_like(v).index_add(1, torch.tensor(ORDER), v[:, :6]),
}
"""What picks numbers."""

REDUCED: dict[str, Listed] = {
    "sum": lambda v, m, W, K, b: m.sum(1),
    "sum of all": lambda v, m, W, K, b: m.sum((1, 2)),
    "mean": lambda v, m, W, K, b: m.mean((1, 2)),
    "var": lambda v, m, W, K, b: v.var(-1),
    "std": lambda v, m, W, K, b: v.std(-1, correction=0),
    "var_mean": lambda v, m, W, K, b: torch.stack(torch.var_mean(v, -1), -1),
    "amax": lambda v, m, W, K, b: m.amax((1, 2)),
    "amin": lambda v, m, W, K, b: m.amin(1),
    "prod": lambda v, m, W, K, b: m.prod(-1),
    "any": lambda v, m, W, K, b: (m > 0.2).any(-1) * v[:, :4],
    "all": lambda v, m, W, K, b: (m > 0.2).all(1) * v[:, :4],
    "count_nonzero": lambda v, m, W, K, b: torch.count_nonzero(m, -1) * v[:, :4],
    "cumsum": lambda v, m, W, K, b: v.cumsum(-1),
    "cumsum of the middle": lambda v, m, W, K, b: m.cumsum(1),
    "cumprod": lambda v, m, W, K, b: m.cumprod(-1),
    "cummax": lambda v, m, W, K, b: v.cummax(-1).values,
    "cummin": lambda v, m, W, K, b: m.cummin(1).values,
    "logcumsumexp": lambda v, m, W, K, b: v.logcumsumexp(-1),
    "diff": lambda v, m, W, K, b: v.diff(dim=-1),
    "norm": lambda v, m, W, K, b: m.norm(dim=-1),
    "norm of order 1": lambda v, m, W, K, b: torch.linalg.vector_norm(m, 1, -1),
    "norm of order 3": lambda v, m, W, K, b: torch.linalg.vector_norm(m, 3, -1),
    "greatest norm": lambda v, m, W, K, b: torch.linalg.vector_norm(m, math.inf, -1),
    "norm of a matrix": lambda v, m, W, K, b: torch.linalg.matrix_norm(m),
    "normalize": lambda v, m, W, K, b: F.normalize(v, dim=-1),
    "cosine_similarity": lambda v, m, W, K, b: F.cosine_similarity(m, m.flip(1), -1),
    "pairwise_distance": lambda v, m, W, K, b: F.pairwise_distance(v, v.flip(1)),
    "cdist": lambda v, m, W, K, b: torch.cdist(m, m.flip(1)),
    "softmax": lambda v, m, W, K, b: torch.softmax(m, 1),
    "log_softmax": lambda v, m, W, K, b: F.log_softmax(v, -1),
    "softmin": lambda v, m, W, K, b: F.softmin(m, -1),
    "logsumexp": lambda v, m, W, K, b: torch.logsumexp(m, (1, 2)),
    "glu": lambda v, m, W, K, b: F.glu(v, -1),
    "layer_norm": lambda v, m, W, K, b: F.layer_norm(v, (16,), b, b),
    "group_norm": lambda v, m, W, K, b: F.group_norm(v, 4, b, b),
    "rms_norm": lambda v, m, W, K, b: F.rms_norm(v, (16,), b),
}
"""What sums, and the like."""

SHAPED: dict[str, Listed] = {
    "reshape": lambda v, m, W, K, b: m.mT.reshape(-1, 2, 8),
    "flatten": lambda v, m, W, K, b: m.mT.flatten(1),
    "unflatten": lambda v, m, W, K, b: v.unflatten(-1, (2, -1)),
    "permute": lambda v, m, W, K, b: m.permute(0, 2, 1) - m,
    "transpose": lambda v, m, W, K, b: m.transpose(1, 2) * m,
    "movedim": lambda v, m, W, K, b: m.movedim(1, 2),
    "squeeze": lambda v, m, W, K, b: v[:, None, :, None].squeeze(1).squeeze(-1),
    "expand": lambda v, m, W, K, b: v[:, :, None].expand(-1, -1, 3),
    "repeat": lambda v, m, W, K, b: m.repeat(1, 2, 1),
    "tile": lambda v, m, W, K, b: v.tile(2),
    "repeat_interleave": lambda v, m, W, K, b: v.repeat_interleave(3, -1),
    "cat": lambda v, m, W, K, b: torch.cat([m, m[:, :2]], 1),
    "stack": lambda v, m, W, K, b: torch.stack([v, 2 * v], 1),
    "split": lambda v, m, W, K, b: torch.split(v, [3, 5, 8], -1)[1],
    "chunk": lambda v, m, W, K, b: v.chunk(3, -1)[2],
    "tensor_split": lambda v, m, W, K, b: v.tensor_split(3, -1)[1],
    "unbind": lambda v, m, W, K, b: m.unbind(1)[2],
    "pad": lambda v, m, W, K, b: F.pad(m, (1, 2, 0, 1), value=0.3),
    "pad by what is there": lambda v, m, W, K, b: F.pad(m[:, None], (1, 2, 0, 4), mode="circular"),
    "unfold": lambda v, m, W, K, b: v.unfold(-1, 4, 3),
    "diagonal": lambda v, m, W, K, b: m.diagonal(1, 1, 2),
    "trace": lambda v, m, W, K, b: m.diagonal(0, 1, 2).sum(-1),
    "diag_embed": lambda v, m, W, K, b: torch.diag_embed(v[:, :5]),
    "tril": lambda v, m, W, K, b: m.tril(-1),
    "triu": lambda v, m, W, K, b: m.triu(),
    "slice_scatter": lambda v, m, W, K, b: torch.slice_scatter(v, v[:, :3], 1, 5, 8),
    "select_scatter": lambda v, m, W, K, b: torch.select_scatter(m, m[:, 1], 1, 3),
    "assignment": lambda v, m, W, K, b: assigned(v),
}
"""What puts numbers elsewhere."""


def assigned(v: Tensor) -> Tensor:
    v = v.clone()
    v[:, 2:4] = 2 * v[:, :2]
    v[:, 0] = 1.5
    return v


PRODUCTS: dict[str, Listed] = {
    "matmul": lambda v, m, W, K, b: v @ W,
    "linear": lambda v, m, W, K, b: F.linear(v, W, b),
    "addmm": lambda v, m, W, K, b: torch.addmm(b, v, W),
    "weight @ v.T": lambda v, m, W, K, b: (W @ v.T).T,
    "matrix state @ weight": lambda v, m, W, K, b: m @ K,
    "weight @ matrix state": lambda v, m, W, K, b: K @ m,
    "linear of a matrix state": lambda v, m, W, K, b: torch.tanh(F.linear(m, K, b[:4])) @ K,
    "all rows' rows": lambda v, m, W, K, b: (torch.tanh(m.reshape(-1, 4) @ K)).view(-1, 4, 4),
    "bmm": lambda v, m, W, K, b: torch.bmm(m, m),
    "baddbmm": lambda v, m, W, K, b: torch.baddbmm(m, m, m.mT, beta=0.5),
    "matrix @ vector": lambda v, m, W, K, b: (m @ v[:, :4, None]).squeeze(-1),
    "outer product": lambda v, m, W, K, b: v[:, :3, None] * v[:, None, :5],
    "einsum bij,bj->bi": lambda v, m, W, K, b: torch.einsum("bij,bj->bi", m, v[:, 4:8]),
    "einsum bi,ij->bj": lambda v, m, W, K, b: torch.einsum("bi,ij->bj", v, W),
    "einsum bi,bj->bij": lambda v, m, W, K, b: torch.einsum("bi,bj->bij", v[:, :3], v[:, 3:6]),
    "einsum bij,jk->bik": lambda v, m, W, K, b: torch.einsum("bij,jk->bik", m, K),
    "einsum of heads": lambda v, m, W, K, b: torch.einsum("bhi,hij->bhj", m, W.view(4, 4, 16)[..., :5]),
    "einsum of three": lambda v, m, W, K, b: torch.einsum("bi,ij,bj->b", v, W, v),
    "bilinear": lambda v, m, W, K, b: F.bilinear(v[:, :4], v[:, 4:8], W.view(4, 4, 16)[:, :, :4].contiguous()),
    "dot": lambda v, m, W, K, b: torch.linalg.vecdot(m, m.flip(1)),
    "cross": lambda v, m, W, K, b: torch.linalg.cross(m[..., :3], m[..., 1:]),
    "matrix power": lambda v, m, W, K, b: torch.linalg.matrix_power(m, 3),
    "conv1d": lambda v, m, W, K, b: F.conv1d(m, K.view(2, 4, 2), padding=1),
}

CONSTANTS: dict[str, Listed] = {
    "torch.tensor": lambda v, m, W, K, b: v * torch.tensor([0.1 * k for k in range(16)], dtype=v.dtype),
    "torch.tensor of a number": lambda v, m, W, K, b: v * torch.tensor(0.1),
    "new_tensor": lambda v, m, W, K, b: m * v.new_tensor([[0.1], [0.2], [0.3], [-0.4]]),
    "arange": lambda v, m, W, K, b: v * torch.arange(16),
    "linspace": lambda v, m, W, K, b: v * torch.linspace(0, 1, 16, dtype=v.dtype),
    "eye": lambda v, m, W, K, b: m - torch.eye(4, dtype=v.dtype),
    "full_like": lambda v, m, W, K, b: torch.full_like(v, 0.1) * v,
    "full": lambda v, m, W, K, b: torch.full((v.shape[0], 16), 0.1, dtype=v.dtype) * v,
    "new_zeros": lambda v, m, W, K, b: torch.cat([v, v.new_zeros(v.shape[0], 2)], -1),
    "new_ones": lambda v, m, W, K, b: torch.cat([v, v.new_ones(v.shape[0], 2)], -1),
    "zeros_like": lambda v, m, W, K, b: torch.cat([v, torch.zeros_like(v)], -1),
    "ones_like": lambda v, m, W, K, b: torch.ones_like(v) - v,
}

GRADIENTS: dict[str, Listed] = {
    "detach": lambda v, m, W, K, b: v.sin().detach() * v,
    "data": lambda v, m, W, K, b: v.data * v,
    "no_grad": lambda v, m, W, K, b: frozen(v) * v,
    "straight through": lambda v, m, W, K, b: v + (v.round() - v).detach(),
    "Function of old style": lambda v, m, W, K, b: Spike.apply(v - 0.3, 5.0) * v,
    "Function of new style": lambda v, m, W, K, b: Reversed.apply(v) * v,
}


def pair(v: Tensor) -> Tensor:
    """Four complex numbers."""
    return torch.complex(v[:, :4], v[:, 4:8])


def real(z: Tensor) -> Tensor:
    return torch.view_as_real(z)


COMPLEX: dict[str, Listed] = {
    "complex": lambda v, m, W, K, b: real(pair(v)),
    "view_as_complex": lambda v, m, W, K, b: real(torch.view_as_complex(v.unflatten(-1, (-1, 2))) * 1j),
    "polar": lambda v, m, W, K, b: real(torch.polar(v[:, :4], v[:, 4:8])),
    "real and imag": lambda v, m, W, K, b: pair(v).real * pair(v).conj().imag,
    "conj": lambda v, m, W, K, b: real(pair(v).conj() * 2),
    "complex sum": lambda v, m, W, K, b: real(pair(v) + v[:, 8:12] - 1j),
    "complex sum times a number": lambda v, m, W, K, b: real(torch.add(pair(v), v[:, 8:12], alpha=0.5)),
    "complex product": lambda v, m, W, K, b: (z := pair(v)).mul(z + 1).real,
    "real times complex": lambda v, m, W, K, b: real(v[:, 8:12] * pair(v)),
    "complex quotient": lambda v, m, W, K, b: real(pair(v) / torch.complex(b[:4], b[4:8])),
    "complex divisor": lambda v, m, W, K, b: (z := pair(v)).div(z + 1).imag,
    "complex divided by a number": lambda v, m, W, K, b: real(pair(v) / 3),
    "complex reciprocal": lambda v, m, W, K, b: real(1 / pair(v)),
    "complex neg": lambda v, m, W, K, b: real(-pair(v)),
    "complex abs": lambda v, m, W, K, b: pair(v).abs(),
    "angle": lambda v, m, W, K, b: pair(v).angle(),
    "complex sgn": lambda v, m, W, K, b: real(torch.sgn(pair(v))),
    "complex exp": lambda v, m, W, K, b: torch.exp(pair(v)).real,
    "complex log": lambda v, m, W, K, b: real(torch.log(pair(v))),
    "complex sin and cos": lambda v, m, W, K, b: real(torch.sin(pair(v)) + torch.cos(pair(v))),
    "complex tanh": lambda v, m, W, K, b: real(torch.tanh(pair(v))),
    "complex sigmoid": lambda v, m, W, K, b: real(torch.sigmoid(pair(v))),
    "complex powers": lambda v, m, W, K, b: real(pair(v) ** 2 + pair(v) ** 3),
    "complex matmul": lambda v, m, W, K, b: (pair(v) @ torch.complex(K, K.T)).imag,
    "complex einsum": lambda v, m, W, K, b: real(torch.einsum("bij,bj->bi", torch.complex(m, m.mT), pair(v))),
    "complex mean": lambda v, m, W, K, b: real(pair(v).mean(-1)),
    "complex cumsum": lambda v, m, W, K, b: real(pair(v).cumsum(-1)),
    "complex views": lambda v, m, W, K, b: real(pair(v).flip(1).unflatten(-1, (2, 2)).mT.flatten(1)[:, 1:, None]),
    "complex index": lambda v, m, W, K, b: real(pair(v)[:, [2, 0, 0]]),
    "complex cat": lambda v, m, W, K, b: real(torch.cat([pair(v), torch.ones_like(pair(v)), v[:, :2] + 0j], -1)),
    "complex where": lambda v, m, W, K, b: real(torch.where(pair(v) == 1 + 1j, 2j, pair(v))),
    "complex numbers": lambda v, m, W, K, b: real(pair(v) * torch.tensor([1j, 2 - 1j, 3, 0.5], dtype=torch.complex64)),
    "complex full": lambda v, m, W, K, b: real(pair(v) + torch.full((4,), 1 + 2j)),
}

FALLING: dict[str, tuple[Listed, str]] = {
    "crop by circular padding": (lambda v, m, W, K, b: F.pad(m, (1, -2), mode="circular"), "copy_.default writes"),
    "floor_divide": (lambda v, m, W, K, b: torch.floor_divide(v, b), "derivative for aten::floor_divide"),
    "heaviside": (lambda v, m, W, K, b: torch.heaviside(v, b), "derivative for aten::heaviside"),
    "complex sqrt": (lambda v, m, W, K, b: torch.sqrt(pair(v)).real, "aten.sqrt.default of complex numbers"),
    "complex power": (lambda v, m, W, K, b: (pair(v) ** 0.5).real, "the power 0.5 of complex numbers"),
    "complex own gradient": (lambda v, m, W, K, b: Reversed.apply(pair(v)).real, "a gradient of one's own of complex"),
    "whole bits": (lambda v, m, W, K, b: (v.long() & 3) * v, "of whole numbers"),
    "lgamma": (lambda v, m, W, K, b: torch.lgamma(v), "lgamma"),
    "digamma": (lambda v, m, W, K, b: torch.digamma(v), "digamma"),
    "erfinv": (lambda v, m, W, K, b: torch.erfinv(v), "erfinv"),
    "i0": (lambda v, m, W, K, b: torch.i0(v), "i0"),
    "nextafter": (lambda v, m, W, K, b: torch.nextafter(v, v + 1), "nextafter"),
    "inverse": (lambda v, m, W, K, b: torch.linalg.inv(m + 9 * torch.eye(4)), "linalg_inv"),
    "solve": (lambda v, m, W, K, b: torch.linalg.solve(m + 9 * torch.eye(4), v[:, :4]), "linalg_solve"),
    "det": (lambda v, m, W, K, b: torch.linalg.det(m), "linalg_det"),
    "matrix_exp": (lambda v, m, W, K, b: torch.linalg.matrix_exp(m), "matrix_exp"),
    "qr": (lambda v, m, W, K, b: torch.linalg.qr(m)[1], "qr"),
    "svd": (lambda v, m, W, K, b: torch.linalg.svdvals(m), "svd"),
    "cholesky": (lambda v, m, W, K, b: torch.linalg.cholesky(m @ m.mT), "cholesky"),
    "fft": (lambda v, m, W, K, b: torch.fft.rfft(v).real, "cannot be traced"),
    "unique": (lambda v, m, W, K, b: v * v.unique().sum(), "tensor's value"),
    "max_pool1d": (lambda v, m, W, K, b: F.max_pool1d(m, 2), "max_pool"),
    "dropout": (lambda v, m, W, K, b: F.dropout(v), "chance"),
    "rand_like": (lambda v, m, W, K, b: torch.rand_like(v) * v, "chance"),
    "chosen by truth": (lambda v, m, W, K, b: v[v > 0], "tensor's value"),
    "number": (lambda v, m, W, K, b: v * v.sum().item(), "tensor's value"),
    "sum over the batch": (lambda v, m, W, K, b: v.sum(0) + v, "batch"),
}
"""Those without a C++ form, and the word by which the message names why."""


TABLES = [SELECTED, REDUCED, SHAPED, PRODUCTS, CONSTANTS, GRADIENTS, COMPLEX]
EVERY: dict[str, Listed] = {name: operation for table in TABLES for name, operation in table.items()}
