"""Products of many rows with a matrix by oneDNN, where torch's own would be MKL's.

MKL keeps its AVX-512 kernels for Intel's processors: on others oneDNN's take less than half the time (see RESULTS.md).

Shapes: N rows, K numbers a row, M results a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from rnnzoo.engine.trace import args_of, aten, module

ROWS, COLUMNS = 32, 8
"""Smaller products are quicker without it; so are sums over many rows (a stands upright) but for wide results."""


def quick(graph: fx.Graph) -> fx.GraphModule:
    """The graph as a function on tensors, its products by whoever has them fastest."""
    copy = fx.Graph()
    results = copy.graph_copy(graph, {})
    copy.output(results)
    for node in copy.nodes:
        if node.target is aten.mm.default:
            node.target = product
        elif node.target is aten.addmm.default and not node.kwargs:
            bias, a, b = args_of(node)
            node.target, node.args = product, (a, b, bias)
    return module(copy)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [N, K] @ b [K, M], plus bias [M]."""
    if _takes(a, b):
        found: Tensor = _Product.apply(a, b, bias)
        return found
    return a @ b if bias is None else torch.addmm(bias, a, b)


def _takes(a: Tensor, b: Tensor) -> bool:
    upright = a.is_contiguous() or (a.T.is_contiguous() and b.shape[1] >= 2 * len(a))
    return (
        upright
        and (b.is_contiguous() or b.T.is_contiguous())
        and a.device.type == "cpu"
        and a.dtype == b.dtype == torch.float32
        and len(a) >= ROWS
        and min(b.shape) >= COLUMNS
        and not torch.is_autocast_enabled("cpu")
        and torch._C._get_mkldnn_enabled()
        and torch.backends.mkldnn.is_available()
    )


class _Product(torch.autograd.Function):
    """`product`, differentiated by products of its own."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.ops.mkldnn._linear_pointwise(a, b.T, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:
        a, b = ctx.saved_tensors
        gradients = (lambda: product(d, b.T), lambda: product(a.T, d), lambda: d.sum(0))
        return tuple(gradient() if needed else None for gradient, needed in zip(gradients, ctx.needs_input_grad))
