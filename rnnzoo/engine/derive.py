"""The backward pass of a recurrence, derived: what is saved, what is computed again, what waits till the end.

The step's vector-Jacobian product is traced. What the gradients of states and leaves need runs at every time step;
what only the gradients of shared tensors need (sums over all rows) is deferred and runs once. A minimal cut decides
what the forward pass saves: as few numbers as possible, such that no product and no sum over features is computed
twice. Element-wise functions are computed again where that saves memory, tanh(c) of an LSTM for one:
a transcendental function costs less than writing its result and reading it back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import networkx
import torch
from torch import fx
from torch.multiprocessing.reductions import StorageWeakRef

from rnnzoo.engine.gradients import opened
from rnnzoo.engine.trace import (
    Tracer,
    ancestors,
    args_of,
    aten,
    extract,
    has_rows,
    inputs,
    is_size,
    merge_equal,
    module,
    multiple,
    outputs,
    recomputable,
    rows_first,
    tensors,
)  # fmt: skip


@dataclass(frozen=True)
class Derived:
    """Graphs of a recurrence with its backward pass, for N rows.

    `infer`: leaves, states, shared -> new states. `step`: the same -> new states, saved. `back`: leaves, states,
    `new_h` (new states), saved, shared, `d_new_h` (gradients of the new states) -> `d_h` (of the states), `d_leaf0`,
    and `kept0`, which only `defer` reads. `defer`: any of these -> gradients of the shared tensors. `back` and `defer`
    have placeholders for what they read, and no others.

    With `totals`, the last results of `back` are terms, [N, ...] each, that are summed up over all rows and time steps:
    the k-th belongs to the sum of that number, which `defer` reads as `total0`, ...
    """

    infer: fx.Graph
    step: fx.Graph
    back: fx.Graph
    defer: fx.Graph
    saved: int
    kept: int
    totals: tuple[int, ...] = ()


def derive(tracer: Tracer, recur: fx.Graph, leaves: int, states: tuple[str, ...], summing: bool = False) -> Derived:
    """Derive the backward pass of `recur`, whose placeholders are `leaves` leaves, the states, and shared tensors.

    If `summing`, sums over rows are left to the loop, that what they sum up is never kept.
    """
    graph, names, results = _joint(tracer, recur, leaves, states)
    count = len(states)
    new, d_leaves, d_states, d_shared = (
        results[:count],
        results[count : count + leaves],
        results[count + leaves : 2 * count + leaves],
        results[2 * count + leaves :],
    )
    tangents = [node for node, name in names.items() if name.startswith("d_new_")]
    backward = _after(graph, tangents)
    own = {node: name for node, name in names.items() if node not in tangents}
    free = {node for node, name in own.items() if not name.startswith("leaf")} | set(new)

    saved = _cut(backward | set(tangents), own, free, [*d_leaves, *d_states, *d_shared])
    given = dict(own)
    given |= {node: f"new_{name}" for node, name in zip(new, states) if node not in given and node not in backward}
    fresh = [node for node in saved if node not in given]
    given |= {node: f"saved{k}" for k, node in enumerate(fresh)}
    given |= {node: names[node] for node in tangents}

    serial = {n for n in ancestors([*d_states, *d_leaves], stop=lambda n: n in given) if n in backward} | set(tangents)
    available = {node: name for node, name in given.items() if node not in tangents}
    available |= {node: f"d_leaf{k}" for k, node in reversed(list(enumerate(d_leaves))) if node in serial}
    serial = {n for n in serial if rows_first(n)}
    pieces = _pieces(tracer, graph, [n for n in available if n in backward])
    terms: list[tuple[int, fx.Node]] = []
    if summing:
        d_shared, terms = _sums(tracer, graph, d_shared, {*available, *pieces})
        available |= {n: str(n.target) for n in d_shared if n is not None and n.op == "placeholder" and n not in own}
    d_shared = _defer(tracer, graph, d_shared, serial, available, pieces)
    wanted = [n for n in d_shared if n is not None]
    kept = [n for n in ancestors(wanted, stop=lambda n: n in available or n in serial) if n in serial - set(available)]
    available |= {node: f"kept{k}" for k, node in enumerate(kept)}
    results = [*d_states, *d_leaves, *kept, *(node for _, node in terms)]
    return Derived(
        infer=extract(own, new),
        step=extract(own, [*new, *fresh]),
        back=extract(_read(given, results), results),
        defer=extract(_read(available, d_shared), d_shared),
        saved=len(fresh),
        kept=len(kept),
        totals=tuple(k for k, _ in terms),
    )


def _sums(
    tracer: Tracer, graph: fx.Graph, results: list[fx.Node], stored: set[fx.Node]
) -> tuple[list[fx.Node], list[tuple[int, fx.Node]]]:
    """Results that are sums over rows become placeholders; and what is summed up for which of them.

    Not those of what is `stored` anyway: they are made in one pass, in better order.
    """

    def terms(node: fx.Node) -> Iterator[fx.Node | None]:
        """What is summed up, [N, ...] each; None for anything else."""
        while node.target in (aten.view.default, aten._unsafe_view.default, aten.squeeze.dims):
            node = args_of(node)[0]
        if node.target is aten.add.Tensor and not node.kwargs:
            for operand in args_of(node):
                yield from terms(operand) if isinstance(operand, fx.Node) else (None,)
        elif node.target is aten.sum.dim_IntList and args_of(node)[1] and rows_first(args_of(node)[0]):
            first, *others = sorted(d % args_of(node)[0].meta["val"].dim() for d in args_of(node)[1])
            part = args_of(node)[0]
            if others and first == 0 and part.meta["val"].dim() > 2:  # other dimensions first, within a row
                part = tracer.call(graph, aten.sum.dim_IntList, part, others)
            yield part if first == 0 else None
        else:
            yield None

    found: list[tuple[int, fx.Node]] = []
    replaced: dict[fx.Node, fx.Node] = {}
    for node in results:
        if node is None or node in replaced:
            continue
        parts = list(terms(node))
        if all(part in stored for part in parts):
            continue
        if all(part is not None and part.meta["val"].shape[1:] == node.meta["val"].shape for part in parts):
            with graph.inserting_before(next(iter(graph.nodes))):
                total = graph.placeholder(f"total{len(replaced)}")
            total.meta["val"] = node.meta["val"]
            found += [(len(replaced), part) for part in parts if part is not None]
            replaced[node] = total
    return [n if n is None else replaced.get(n, n) for n in results], found


def _joint(
    tracer: Tracer, recur: fx.Graph, leaves: int, states: tuple[str, ...]
) -> tuple[fx.Graph, dict[fx.Node, str], list[fx.Node]]:
    """The graph of `recur` and its vector-Jacobian product, the names of its placeholders, and its results."""
    run = module(recur)
    given = inputs(recur)
    floating = [k for k, node in enumerate(given) if not _discrete(node)]

    def joint(arguments: list[torch.Tensor], tangents: list[torch.Tensor]) -> Any:
        def function(*some: torch.Tensor) -> tuple[torch.Tensor, ...]:
            every = list(arguments)
            for k, tensor in zip(floating, some):
                every[k] = tensor
            return tuple(run(*every))

        new, pull, *_ = torch.func.vjp(function, *(arguments[k] for k in floating))
        found = dict(zip(floating, pull(tuple(tangents))))
        return [*new, *(found.get(k) for k in range(len(arguments)))]

    arguments = [tracer.again(node) for node in given]
    tangents = [tracer.again(node) for node in outputs(recur)]
    graph = tracer.trace(joint, arguments, tangents)
    if opened(graph):
        graph = tracer.trace(module(graph), arguments, tangents)
    returned = {_storage(node) for node in outputs(graph) if node is not None}
    merge_equal(graph, lambda node: _storage(node) not in returned)  # each result stays a node of its own
    graph = upright(tracer, _tile(tracer, graph))
    names = [str(node.target) for node in given] + [f"d_new_{name}" for name in states]
    results = outputs(graph)
    return graph, dict(zip(inputs(graph), names)), results


def _storage(node: fx.Node) -> StorageWeakRef | None:
    value = node.meta.get("val")  # several tensors, a size, or one tensor
    return StorageWeakRef(value.untyped_storage()) if isinstance(value, torch.Tensor) else None


def upright(tracer: Tracer, graph: fx.Graph) -> fx.Graph:
    """Have results that must be saved, or kept, lie row after row."""
    for node in list(graph.nodes):
        if node.op != "call_function" or is_size(node) or recomputable(node) or rows_first(node):
            continue
        sizes = node.meta["val"].shape
        rows = next(d for d, size in enumerate(sizes) if isinstance(size, torch.SymInt))
        order = [rows, *(d for d in range(len(sizes)) if d != rows)]
        users, found = list(node.users), node
        if rows:
            found = tracer.call(graph, aten.permute.default, node, order)
        times, others = multiple(sizes[rows]), [sizes[d] for d in order[1:]]
        if times != 1:  # a matrix's rows, counted with the batch's
            found = tracer.call(graph, aten.view.default, found, [-1, times, *others])
            found = tracer.call(graph, aten.view.default, found, [-1, *others])
        if rows:
            found = tracer.call(graph, aten.permute.default, found, [order.index(d) for d in range(len(sizes))])
        for user in users:
            user.replace_input_with(node, found)
    return extract({node: str(node.target) for node in inputs(graph)}, outputs(graph))


def _discrete(node: fx.Node) -> bool:
    return not (node.meta["val"].is_floating_point() or node.meta["val"].is_complex())


def _tile(tracer: Tracer, graph: fx.Graph) -> fx.Graph:
    """Sums of the gradients of a tensor's slices become one concatenation."""

    def padded(node: Any) -> bool:
        if not (isinstance(node, fx.Node) and node.target is aten.slice_backward.default):
            return False
        _, sizes, dim, *_, step = args_of(node)
        return isinstance(sizes[dim], int) and step == 1

    def terms(node: Any) -> list[Any]:
        if node in roots or (node in inner and len(node.users) == 1):
            return [*terms(args_of(node)[0]), *terms(args_of(node)[1])]
        return [node]

    inner = {n: None for n in graph.nodes if n.target is aten.add.Tensor and not n.kwargs}
    roots = {n: None for n in inner if not (len(n.users) == 1 and next(iter(n.users)) in inner)}
    made: dict[Any, fx.Node] = {}
    for root in [*roots, *(n for n in graph.nodes if padded(n))]:
        found = terms(root)
        slices = [t for t in found if padded(t)]
        if not slices or (root not in roots and any(u in inner for u in root.users)):
            continue
        key = frozenset((args_of(n)[0], *args_of(n)[2:]) for n in slices)
        total = made[key] = made.get(key) or _concatenate(tracer, graph, slices)
        for term in (t for t in found if t not in slices):
            total = tracer.call(graph, aten.add.Tensor, total, term)
        root.replace_all_uses_with(total, propagate_meta=False)
    placeholders = {node: str(node.target) for node in inputs(graph)}
    return extract(placeholders, outputs(graph))


def _concatenate(tracer: Tracer, graph: fx.Graph, slices: list[fx.Node]) -> fx.Node:
    """The sum of `slice_backward` nodes of one tensor: a concatenation, or several where slices overlap."""
    slices = [n for n in slices if args_of(n)[0].meta["val"].numel() != 0] or slices  # an empty one adds nothing
    left = sorted(slices, key=lambda n: args_of(n)[3])
    total = None
    while left:
        dim, size = args_of(left[0])[2], args_of(left[0])[1][args_of(left[0])[2]]
        position, pieces, others = 0, [], []
        for node in left:
            part, _, other, start, stop, _ = args_of(node)
            if other != dim or start < position:
                others.append(node)
                continue
            gap = [_zeros(tracer, graph, part, dim, start - position)] if start > position else []
            pieces += [*gap, part]
            position = min(stop, size)
        if position < size:
            pieces.append(_zeros(tracer, graph, pieces[-1], dim, size - position))
        whole = tracer.call(graph, aten.cat.default, pieces, dim) if len(pieces) > 1 else pieces[0]
        total = whole if total is None else tracer.call(graph, aten.add.Tensor, total, whole)
        left = others
    assert total is not None
    return total


def _zeros(tracer: Tracer, graph: fx.Graph, like: Any, dim: int, size: int) -> fx.Node:
    """Zeros shaped as `like`, of another size in one dimension."""
    shape = list(like.meta["val"].shape)
    rows = tracer.call(graph, aten.sym_size.int, like, 0)
    sizes = [rows, *(size if d == dim % len(shape) else shape[d] for d in range(1, len(shape)))]
    return tracer.call(graph, aten.new_zeros.default, like, sizes)


def _after(graph: fx.Graph, roots: list[fx.Node]) -> set[fx.Node]:
    """All that is computed from `roots`, without them."""
    found = set(roots)
    for node in ancestors(n for n in outputs(graph) if n is not None):
        if any(n in found for n in node.all_input_nodes) and not is_size(node):
            found.add(node)
    return found - set(roots)


def _cut(backward: set[fx.Node], own: dict[fx.Node, str], free: set[fx.Node], results: list[fx.Node]) -> list[fx.Node]:
    """What the forward pass saves: the cheapest set of values from which the backward pass can be computed.

    A value costs its numbers a row; the states, the new states and shared tensors are there anyway.
    """
    needed = {  # a dict, for its order: what a plan looks like must not change from process to process
        operand: None
        for node in ancestors([r for r in results if r is not None])
        if node in backward
        for operand in tensors(node)
        if operand not in backward and has_rows(operand)
    }
    network = networkx.DiGraph()
    network.add_nodes_from(("given", "needed"))
    for node in ancestors(needed):
        if is_size(node) or not has_rows(node):
            continue
        size = math.prod(multiple(dim) if isinstance(dim, torch.SymInt) else dim for dim in node.meta["val"].shape)
        # a leaf is in memory already, what is saved beside it is not
        cost = 1 if node in free else 19 * size if node in own else 20 * size
        bound = {"capacity": cost} if rows_first(node) else {}  # what is saved must be rows
        network.add_edge((node, "in"), (node, "out"), **bound)
        if node in own or not recomputable(node):
            network.add_edge("given", (node, "in"))
        for operand in tensors(node):
            if has_rows(operand):
                network.add_edge((operand, "out"), (node, "in"))
        if node in needed:
            network.add_edge((node, "out"), "needed")
    # of equally cheap cuts this is the last, sigmoid(a) rather than a
    _, (before, _) = networkx.minimum_cut(network, "given", "needed")
    return [n for n in ancestors(needed) if (n, "in") in before and (n, "out") not in before]


def _pieces(tracer: Tracer, graph: fx.Graph, stored: list[fx.Node]) -> dict[fx.Node, tuple[fx.Node, int, int]]:
    """Values that are part of a stored concatenation over features: in which, from where, to where."""
    found: dict[fx.Node, tuple[fx.Node, int, int]] = {}
    for whole in stored:
        if whole.target is aten.cat.default and args_of(whole)[1:] in ((1,), (-1,)) and whole.meta["val"].dim() == 2:
            start = 0
            for piece in args_of(whole)[0]:
                stop = start + piece.meta["val"].shape[1]
                found.setdefault(piece, (whole, start, stop))
                start = stop
    return found


def _defer(
    tracer: Tracer,
    graph: fx.Graph,
    results: list[fx.Node],
    serial: set[fx.Node],
    available: dict[fx.Node, str],
    pieces: dict[fx.Node, tuple[fx.Node, int, int]],
) -> list[fx.Node]:
    """The deferred computation on what is stored anyway: leaf gradients and slices of them.

    A product with a concatenation that is stored in part only becomes several products, so that just the other part
    must be stored too.
    """
    copies: dict[fx.Node, fx.Node] = {}

    def slices(node: fx.Node) -> list[fx.Node]:
        """A concatenation as neighbouring slices of what is stored, and values that are not."""
        runs: list[Any] = []
        for piece in args_of(node)[0]:
            whole, start, stop = pieces.get(piece, (None, 0, 0))
            if runs and whole is not None and runs[-1][0] is whole and runs[-1][2] == start:
                runs[-1] = (whole, runs[-1][1], stop)
            else:
                runs.append((whole, start, stop) if whole is not None else (None, piece, None))
        return [b if a is None else tracer.call(graph, aten.slice.Tensor, a, 1, b, c) for a, b, c in runs]

    for node in ancestors([n for n in results if n is not None], stop=lambda n: n in available or n in serial):
        if node in available or is_size(node) or (node.op == "placeholder" and node not in pieces):
            copies[node] = node
        elif node in pieces:
            whole, start, stop = pieces[node]
            copies[node] = tracer.call(graph, aten.slice.Tensor, whole, 1, start, stop)
        elif node in serial:
            copies[node] = node
        else:
            right = args_of(node)[1] if node.target is aten.mm.default else None
            if right in serial and right not in available and right.target is aten.cat.default:
                left = copies[args_of(node)[0]]
                products = [tracer.call(graph, aten.mm.default, left, part) for part in slices(right)]
                copies[node] = products[0] if len(products) == 1 else tracer.call(graph, aten.cat.default, products, 1)
            else:
                with graph.inserting_before(graph.output_node()):
                    copies[node] = graph.node_copy(node, lambda n: copies.get(n, n))
    return [n if n is None else copies[n] for n in results]


def _read(given: dict[fx.Node, str], wanted: list[fx.Node]) -> dict[fx.Node, str]:
    """Those of `given` that the computation of `wanted` reads."""
    read = set(ancestors([n for n in wanted if n is not None], stop=lambda n: n in given))
    return {node: name for node, name in given.items() if node in read}
