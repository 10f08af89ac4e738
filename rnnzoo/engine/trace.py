"""A cell's `step` as a graph of elementary operations, and the few things one does with such graphs.

Every node carries in `meta["val"]` what it stands for, its number of rows left open (a symbol), all else known.
Shapes: N rows, I input size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import SymInt, Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.overrides import TorchFunctionMode

from rnnzoo.cell import Cell
from rnnzoo.engine import elementary
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

    def trace(self, function: Callable[..., Any], *groups: Any, apart: bool = True) -> fx.Graph:
        """The graph of `function(*groups)`, its inputs in order of the groups.

        Unless `apart`, functions such as softplus stay whole: what is to be differentiated must not be taken
        apart before, because autograd's formulas are safe where those of the parts are not.
        """
        table = elementary.everything() if apart else elementary.structure()
        # autograd's own formulas write in place here and there
        with self.mode, torch._C._DisableAutocast():
            graph = make_fx(functionalize(function), decomposition_table=table)(*groups).graph
        for node in graph.find_nodes(op="call_function", target=aten.select.int):
            node.args = (*args_of(node)[:2], *_from_the_front(node))
        for node in graph.find_nodes(op="call_function", target=aten.slice.Tensor):
            node.args = (*args_of(node)[:2], *_from_the_front(node), *args_of(node)[4:])
            if node.meta["val"].shape == args_of(node)[0].meta["val"].shape:  # x[:, ...] slices the rows too
                node.replace_all_uses_with(args_of(node)[0])
        return graph

    def call(self, graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
        """Add an operation to the end of `graph`; `args` may hold nodes."""
        with graph.inserting_before(graph.output_node()):
            node = graph.call_function(target, args)
        with self.mode, torch._C._DisableAutocast():
            node.meta["val"] = target(*fx.map_arg(args, lambda n: n.meta["val"]))
        return node


def _from_the_front(node: fx.Node) -> list[Any]:
    """The positions that a slice or a selection names, counted from the front also where it counts from the end."""
    operand, dim, *positions = args_of(node)
    size = operand.meta["val"].shape[dim]
    return [max(size + k, 0) if isinstance(k, int) and k < 0 else k for k in positions[:2]]


class _Strict(TorchFunctionMode):
    """Refuses what a graph of numbers cannot say."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("detach", "detach_", "_set_grad_enabled"):
            raise UserError("it stops gradients")
        return func(*args, **(kwargs or {}))


def trace_step(cell: Cell, tracer: Tracer, like: Tensor) -> tuple[fx.Graph, tuple[str, ...]]:
    """The graph of (x [N, I], states, weights) -> new states, and the names of the weights.

    `like` has the dtype and the device of all.

    Raises `UserError` when the step cannot be traced.
    """
    weights = effective(cell)
    x = torch.empty(3, cell.features, dtype=like.dtype, device=like.device)
    states = [tracer.rows(*s.shape[1:], like=s) for s in cell.initial_state(x)]

    def step(x: Tensor, states: Sequence[Tensor], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with _Strict():
            return _bare(cell, dict(zip(weights, tensors)))(x, *states)

    try:
        fakes = [tracer.fixed(w) for w in weights.values()]
        graph = tracer.trace(step, tracer.rows(cell.features, like=like), states, fakes, apart=False)
        if tracer.mode.shape_env and tracer.mode.shape_env.replacements:
            raise UserError("it fixes the number of rows, as len(x) does where x.shape[0] would not")
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{author(cell).__name__}.step cannot be traced: {reason}; use engine=reference") from error
    strange = [
        n for n in graph.nodes if n.op == "get_attr" or (n.op == "call_function" and not is_size(n) and not _plain(n))
    ]
    if strange:
        raise UserError(
            f"{author(cell).__name__}.step cannot be traced: {strange[0].target} is not an elementary operation "
            "on tensors without chance (a constant tensor must be a buffer of the cell); use engine=reference"
        )
    if len(outputs(graph)) != len(states):
        raise UserError(
            f"{author(cell).__name__}.step returns {len(outputs(graph))} states where {len(states)} came in"
        )
    for node, state in zip(outputs(graph), states):
        if not (state.is_floating_point() or state.is_complex()):
            raise UserError(f"{author(cell).__name__} has a state of {state.dtype}; count in floating-point numbers")
        if node.meta["val"].shape != state.shape:
            raise UserError(
                f"{author(cell).__name__}.step returns a state of shape {list(node.meta['val'].shape)} "
                f"where {list(state.shape)} came in"
            )
    return graph, tuple(weights)


def sample(cell: Cell, x: Tensor | None = None) -> Tensor:
    """A tensor of the dtype and device that the cell computes in; x tells if the cell has no numbers of its own."""
    numbers = (t for t in (*cell.parameters(), *cell.buffers()) if t.is_floating_point() or t.is_complex())
    return next(numbers, torch.empty(0) if x is None else x)


def _plain(node: fx.Node) -> bool:
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return isinstance(node.meta.get("val"), Tensor) and not random


def author(cell: Cell) -> type[Cell]:
    """The class that wrote the cell's step: a parametrization puts a subclass of its own in its place."""
    return next(c for c in type(cell).__mro__ if "step" in vars(c))


def effective(cell: Cell) -> dict[str, Tensor]:
    """The tensors that step sees, by name: parameters, also tied, pruned or parametrized, and buffers."""
    names = [*cell.weights, *(cell.modifier.reads if cell.modifier else ())]
    return {name: getattr(cell, name) for name in names} | dict(cell.named_buffers(recurse=False))


def _bare(cell: Cell, tensors: dict[str, Tensor]) -> Cell:
    """The cell's equations on other tensors, without hooks and parametrizations."""
    bare = object.__new__(author(cell))
    vars(bare).update({k: v for k, v in vars(cell).items() if k not in tensors})
    vars(bare).update(_parameters=tensors, _buffers={}, _forward_pre_hooks={}, _forward_hooks={})
    return bare


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


def rows_first(node: fx.Node) -> bool:
    """Whether the open dimension, if there is one, leads."""
    return not has_rows(node) or isinstance(node.meta["val"].shape[0], SymInt)


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
        copies[node] = graph.create_node("placeholder", name, name=name)  # `placeholder` would mix up W and w
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
