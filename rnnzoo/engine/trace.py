"""A cell's `step` as a graph of elementary operations, and the few things one does with such graphs.

Every node carries in `meta["val"]` what it stands for, its number of rows left open (a symbol), all else known.
Shapes: N rows, I input size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import SymInt, Tensor, fx, nn
from torch._decomp import core_aten_decompositions, get_decompositions
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from rnnzoo.cell import Cell
from rnnzoo.errors import UserError

aten = torch.ops.aten

VIEWS = frozenset({
    aten.slice.Tensor, aten.select.int, aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.permute.default, aten.expand.default, aten.alias.default,
    aten.clone.default, aten.detach.default,
})  # fmt: skip
"""Operations that only look at a tensor in another way, or copy it."""


class Tracer:
    """Traces functions of tensors whose leading dimension, the rows, stays open."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def rows(self, *shape: int, like: Tensor) -> Tensor:
        """A tensor [N, *shape] of unknown N."""
        real = torch.empty(3, *shape, dtype=like.dtype, device=like.device)
        sizes = [DimDynamic.DUCK] + [DimDynamic.STATIC] * len(shape)  # equal open sizes get one symbol
        context: Any = StatelessSymbolicContext(dynamic_sizes=sizes, constraint_sizes=[None] * len(sizes))
        return self.mode.from_tensor(real, symbolic_context=context)

    def fixed(self, tensor: Tensor) -> Tensor:
        """A tensor of known shape."""
        return self.mode.from_tensor(tensor.detach(), static_shapes=True)

    def again(self, node: fx.Node) -> Tensor:
        """A new tensor like the one that `node` stands for."""
        with self.mode:
            return torch.empty_like(node.meta["val"])

    def trace(self, function: Callable[..., Any], *groups: Any) -> fx.Graph:
        """The graph of `function(*groups)`, its inputs in order of the groups."""
        with self.mode:
            # autograd's own formulas write in place here and there
            graph = make_fx(functionalize(function), decomposition_table=_decompositions())(*groups).graph
        for node in graph.find_nodes(op="call_function", target=aten.slice.Tensor):
            if node.meta["val"].shape == args_of(node)[0].meta["val"].shape:  # x[:, ...] slices the rows too
                node.replace_all_uses_with(args_of(node)[0])
        return graph

    def call(self, graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
        """Add an operation to the end of `graph`; `args` may hold nodes."""
        with graph.inserting_before(graph.output_node()):
            node = graph.call_function(target, args)
        with self.mode:
            node.meta["val"] = target(*fx.map_arg(args, lambda n: n.meta["val"]))
        return node


def trace_step(cell: Cell, tracer: Tracer) -> tuple[fx.Graph, tuple[str, ...]]:
    """The graph of (x [N, I], states, weights) -> new states, and the names of the weights.

    Raises `UserError` when the step cannot be traced.
    """
    weights = effective(cell)
    like = next(iter(weights.values()), torch.empty(0))
    x = torch.empty(3, cell.input_size, dtype=like.dtype, device=like.device)
    states = [tracer.rows(*s.shape[1:], like=s) for s in cell.initial_state(x)]

    def step(x: Tensor, states: Sequence[Tensor], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return _bare(cell, dict(zip(weights, tensors)))(x, *states)

    try:
        fakes = [tracer.fixed(w) for w in weights.values()]
        graph = tracer.trace(step, tracer.rows(cell.input_size, like=like), states, fakes)
    except UserError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{author(cell).__name__}.step cannot be traced: {reason}; use engine=reference") from error
    strange = [
        n for n in graph.nodes if n.op == "get_attr" or (n.op == "call_function" and not is_size(n) and not _plain(n))
    ]
    if strange:
        raise UserError(
            f"{author(cell).__name__}.step cannot be traced: {strange[0].target} is not an elementary operation "
            "on tensors; use engine=reference"
        )
    for node, state in zip(outputs(graph), states):
        if tuple(node.meta["val"].shape[1:]) != tuple(state.shape[1:]):
            raise UserError(
                f"{author(cell).__name__}.step returns a state of shape {list(node.meta['val'].shape)} "
                f"where {list(state.shape)} came in"
            )
    return graph, tuple(weights)


def _plain(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def author(cell: Cell) -> type[Cell]:
    """The class that wrote the cell's step: a parametrization puts a subclass of its own in its place."""
    return next(c for c in type(cell).__mro__ if "step" in vars(c))


def effective(cell: Cell) -> dict[str, Tensor]:
    """The tensors that step sees, by name: parameters, also tied, pruned or parametrized, and buffers."""
    return {name: getattr(cell, name) for name in cell.weights} | dict(cell.named_buffers(recurse=False))


def _bare(cell: Cell, tensors: dict[str, Tensor]) -> Cell:
    """The cell's equations on other tensors, without hooks and parametrizations."""
    bare = object.__new__(author(cell))
    vars(bare).update({k: v for k, v in vars(cell).items() if k not in tensors})
    vars(bare).update(_parameters=tensors, _buffers={}, _forward_pre_hooks={}, _forward_hooks={})
    return bare


@cache
def _decompositions() -> Mapping[Any, Any]:
    """How larger operations are written in elementary ones."""
    table = dict(core_aten_decompositions())
    table.pop(aten.slice_backward.default, None)  # sums of these become concatenations
    names = (
        "native_layer_norm", "_softmax", "_log_softmax", "_softmax_backward_data", "_log_softmax_backward_data",
        "native_layer_norm_backward", "elu", "elu_backward", "leaky_relu", "leaky_relu_backward", "gelu",
        "gelu_backward",
        "silu", "silu_backward", "hardtanh", "hardtanh_backward", "hardsigmoid", "hardsigmoid_backward", "hardswish",
        "softplus", "softplus_backward", "sigmoid_backward", "tanh_backward", "threshold_backward", "logsumexp",
        "log_sigmoid_forward", "log_sigmoid_backward", "addcmul", "addcdiv", "lerp", "native_dropout_backward",
    )  # fmt: skip
    table |= get_decompositions([getattr(aten, name) for name in names])
    return table | {
        aten.mean.dim: _mean,
        aten.mean.default: lambda x: _mean(x, list(range(x.dim()))),
        aten.var.correction: _var,
        aten.bmm.default: lambda a, b: (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2),
        aten.addmm.default: _addmm,
        aten.dot.default: lambda a, b: (a * b).sum(),
        aten.mv.default: lambda a, b: (a * b).sum(-1),
        aten.split_with_sizes.default: _split,
        aten.split.Tensor: lambda x, size, dim=0: _split(x, [size] * (x.shape[dim] // size), dim),
        aten.unbind.int: lambda x, dim=0: [x.select(dim, k) for k in range(x.shape[dim])],
        aten.roll.default: _roll,
        aten.flip.default: _flip,
        aten.native_layer_norm.default: _layer_norm,
    }


def _split(x: Tensor, sizes: Sequence[int], dim: int = 0) -> list[Tensor]:
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    parts = [x.narrow(dim, start, size) for start, size in zip(starts, sizes)]
    rest = x.shape[dim] - sum(sizes)
    return [*parts, x.narrow(dim, sum(sizes), rest)] if rest else parts


def _roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Tensor:
    for shift, dim in zip(shifts, dims):
        size = x.shape[dim]
        if shift % size:
            x = torch.cat(
                [x.narrow(dim, size - shift % size, shift % size), x.narrow(dim, 0, size - shift % size)], dim
            )
    return x


def _flip(x: Tensor, dims: Sequence[int]) -> Tensor:
    for dim in dims:
        x = torch.cat([x.narrow(dim, k, 1) for k in reversed(range(x.shape[dim]))], dim)
    return x


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dims = list(range(x.dim() - len(shape), x.dim()))
    mean = _mean(x, dims, True)
    scale = torch.rsqrt(_var(x, dims, 0, True) + eps)
    y = (x - mean) * scale
    y = y if weight is None else y * weight
    return y if bias is None else y + bias, mean, scale


def _mean(x: Tensor, dim: list[int], keepdim: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    count = 1
    for d in dim:
        count = count * x.shape[d]
    return x.sum(dim, keepdim) / count


def _var(x: Tensor, dim: list[int], correction: float | None = None, keepdim: bool = False) -> Tensor:
    centred = x - _mean(x, dim, True)
    count = 1
    for d in dim:
        count = count * x.shape[d]
    return (centred * centred).sum(dim, keepdim) / (count - (1 if correction is None else correction))


def _addmm(bias: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    product = torch.mm(a, b)
    return (bias if beta == 1 else beta * bias) + (product if alpha == 1 else alpha * product)


def args_of(node: fx.Node) -> tuple[Any, ...]:
    """The positional arguments of an operation, of whatever types they are."""
    return node.args


def inputs(graph: fx.Graph) -> list[fx.Node]:
    """The placeholders, in order."""
    return [node for node in graph.nodes if node.op == "placeholder"]


def outputs(graph: fx.Graph) -> list[fx.Node]:
    """What the graph returns, in order."""
    (returned,) = args_of(graph.output_node())
    return list(returned) if isinstance(returned, (tuple, list)) else [returned]


def tensors(node: fx.Node) -> list[fx.Node]:
    """The operands of `node` that are tensors."""
    return [n for n in node.all_input_nodes if isinstance(n.meta["val"], Tensor)]


def recomputable(node: fx.Node) -> bool:
    """Whether `node` is element-wise, a view, a concatenation or a constant, and so cheap."""
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    return pointwise or node.target in VIEWS or node.target is aten.cat.default or not tensors(node)


def is_size(node: fx.Node) -> bool:
    """Whether `node` is a size rather than a tensor."""
    return isinstance(node.meta.get("val"), (int, SymInt))


def has_rows(node: fx.Node) -> bool:
    """Whether the tensor that `node` stands for has an open dimension."""
    return any(isinstance(size, SymInt) for size in node.meta["val"].shape)


def ancestors(roots: Iterable[fx.Node], stop: Callable[[fx.Node], bool] = lambda node: False) -> list[fx.Node]:
    """All that `roots` are computed from, themselves included, operands first; what `stop` holds for has none.

    Nor has a number of rows, which is the same for all tensors.
    """

    def operands_of(node: fx.Node) -> Iterator[fx.Node]:
        return iter(() if stop(node) or node.target is aten.sym_size.int else node.all_input_nodes)

    found: dict[fx.Node, None] = {}
    stack: list[tuple[fx.Node, Iterator[fx.Node]]] = []
    for root in roots:
        stack.append((root, operands_of(root)))
        while stack:
            node, operands = stack[-1]
            following = next((n for n in operands if n not in found), None)
            if following is not None:
                stack.append((following, operands_of(following)))
            else:
                stack.pop()
                found.setdefault(node)
    return list(found)


def extract(given: Mapping[fx.Node, str], wanted: Sequence[fx.Node | None]) -> fx.Graph:
    """A new graph that computes the nodes `wanted` from those `given`, which become its placeholders, so named.

    A wanted None is returned as None. Sizes are read off the first placeholder that has rows.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node, name in given.items():
        copies[node] = graph.placeholder(name)
        copies[node].meta = dict(node.meta)
    rows = next((copies[node] for node in given if has_rows(node)), None)
    for node in ancestors([n for n in wanted if n is not None], stop=lambda n: n in given):
        if node in copies:
            continue
        if node.op == "placeholder":
            raise AssertionError(f"{node} is needed and not given")
        if node.target is aten.sym_size.int:
            assert rows is not None
            dim = next(d for d, size in enumerate(rows.meta["val"].shape) if isinstance(size, SymInt))
            copies[node] = graph.call_function(aten.sym_size.int, (rows, dim))
            copies[node].meta = dict(node.meta)
        else:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output(tuple(None if n is None else copies[n] for n in wanted))
    return graph


def module(graph: fx.Graph) -> fx.GraphModule:
    """The graph as a function on tensors."""
    return fx.GraphModule(nn.Module(), graph)
