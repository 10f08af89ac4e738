"""From one step to a plan: what runs once a sequence, once over all time steps, and what must stay in the loop.

A cell's `step` is traced and taken apart into graphs of elementary operations:

- `prepare`: weights -> shared tensors, once a sequence (weights beside each other, U - U.T, ...);
- `project`: x and shared tensors -> leaves [N, n], products of the input, once over all N = T·B rows;
- `recur`: leaves, states and shared tensors -> new states, N = B rows, T times;
- `step`: the same, returning also what the backward pass needs saved;
- `back`: the vector-Jacobian product of `recur` as far as states and leaves need it, N = B rows, T times;
- `defer`: gradients of the shared tensors, once over all N = T·B rows.

`prepare`, `project` and a cell's `readout` run as they are and are differentiated by autograd. Sums are reordered so
that what does not depend on the state is added first, and products of one operand become one product.
Element-wise work on the input is *not* hoisted: inside the loop it costs next to nothing, outside it costs passes
over memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from rnnzoo.cell import Cell
from rnnzoo.engine.derive import Derived, derive
from rnnzoo.engine.trace import (
    Tracer,
    ancestors,
    args_of,
    aten,
    author,
    extract,
    has_rows,
    inputs,
    is_size,
    outputs,
    recomputable,
    sample,
    trace_step,
)  # fmt: skip
from rnnzoo.errors import UserError

ADD, SUB, MUL, NEG, MM = aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.neg.default, aten.mm.default

CONSTANT, INPUT, STATE = 0, 1, 2
"""What a value depends on at most: weights, the input, the state."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A cell's step taken apart; the graphs are described at the top of this module.

    Placeholders carry a weight's name, a state's (`s0_h`, `s1_c`), or `x`, `outer0` (what `project` needs of
    `prepare`), `leaf0`, `shared0`; for those of `step`, `back` and `defer` see `Derived`. `states` are the names of
    the states there.
    """

    name: str
    states: tuple[str, ...]
    weights: tuple[str, ...]
    merged: tuple[str, ...]
    prepare: fx.Graph
    project: fx.Graph
    recur: fx.Graph
    tracer: Tracer

    @cached_property
    def derived(self) -> Derived:
        """The backward pass; see `Derived`. Raises `UserError` when the step cannot be differentiated."""
        try:
            return derive(self.tracer, self.recur, len(outputs(self.project)), self.states)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{self.name}.step cannot be differentiated: {reason}; use engine=reference") from error


def describe(plan: Plan) -> list[str]:
    """A plan in a few lines: what runs when, what is saved, what is computed again."""
    step, back, defer = plan.derived.step, plan.derived.back, plan.derived.defer
    count = len(plan.states)
    saved = outputs(step)[count:]
    numbers = sum(math.prod(n for n in node.meta["val"].shape[1:]) for node in saved)
    forward = {n.name for n in step.nodes if n.op == "call_function"} - {n.name for n in saved}
    again = [n for n in back.nodes if n.name in forward and torch.Tag.pointwise in getattr(n.target, "tags", ())]
    products = [sum(n.target is MM for n in graph.nodes) for graph in (step, back, defer)]
    lines = [f"one product: {note}" for note in plan.merged]
    lines.append(f"products a time step: {products[0]} forward, {products[1]} backward; once at the end: {products[2]}")
    lines.append(f"saved a time step: {len(saved)} tensors of {numbers} numbers beside the states")
    lines.append(f"computed again in the backward pass: {_listed(again) or 'nothing'}")
    lines.append(f"handed from the backward pass to the end: {plan.derived.kept} tensors beside the input's gradient")
    return lines


def _listed(nodes: list[fx.Node]) -> str:
    names = [getattr(node.target, "__name__", str(node.target)).partition(".")[0] for node in nodes]
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))


def serial_products(plan: Plan) -> int:
    """How many products with a matrix, or other sums over units of the state, follow one another within a step."""
    depth: dict[fx.Node, int] = {}
    for node in plan.recur.nodes:
        state = str(node.target) in plan.states or any(n in depth for n in node.all_input_nodes)
        if state and node.op != "output":
            before = max((depth.get(n, 0) for n in node.all_input_nodes), default=0)
            depth[node] = before + (node.op == "call_function" and not recomputable(node))
    return max(depth.values(), default=0)


def plan(cell: Cell, x: Tensor | None = None) -> Plan:
    """The plan for this cell with its sizes, hyperparameters, dtype and device; made once and kept.

    x tells dtype and device of a cell without parameters.

    Raises `UserError` when the step cannot be traced.
    """
    like = sample(cell, x)
    options = tuple(getattr(cell, name) for name in cell.hyperparameters)
    sizes = (cell.input_size, cell.hidden_size, tuple((name, b.shape) for name, b in cell.named_buffers()))
    key = (author(cell), sizes, options, cell.modifier, cell.training, like.dtype, like.device.type)
    if key not in _plans:
        try:
            _plans[key] = _make(cell, like)
        except UserError as error:  # kept as well: `auto` asks at every call
            _plans[key] = error
    found = _plans[key]
    if isinstance(found, UserError):
        raise found
    return found


_plans: dict[Any, Plan | UserError] = {}


def _make(cell: Cell, like: Tensor) -> Plan:
    tracer = Tracer()
    graph, weights = trace_step(cell, tracer, like)
    labels = tuple(f"s{k}_{name}" for k, name in enumerate(cell.state_names))  # no C++ keyword, and nothing else's name
    names = ["x", *cell.state_names, *weights]
    merged: list[str] = []
    parts = _Parts(tracer, graph, names, len(cell.state_names))
    for change in (_merge_constants, _reorder_sums, _reorder_products, _merge_input_products, _merge_state_products):
        merged += change(parts)
        parts = _Parts(
            tracer, extract(dict(zip(inputs(parts.graph), names)), outputs(parts.graph)), names, parts.states
        )

    leaves, shared = _frontier(parts)
    x, *others = inputs(parts.graph)
    states, own = others[: parts.states], others[parts.states :]
    outer = [n for n in ancestors(leaves, stop=parts.constant) if parts.constant(n)]
    given = {node: f"leaf{k}" for k, node in enumerate(leaves)}
    given |= dict(zip(states, labels))
    given |= {node: f"shared{k}" for k, node in enumerate(shared)}
    return Plan(
        name=author(cell).__name__,
        states=labels,
        weights=weights,
        merged=tuple(merged),
        prepare=extract(dict(zip(own, weights)), [*outer, *shared]),
        project=extract({x: "x"} | {node: f"outer{k}" for k, node in enumerate(outer)}, leaves),
        recur=extract(given, outputs(parts.graph)),
        tracer=tracer,
    )


class _Parts:
    """A graph of (x, states, weights) -> new states that is being rewritten, and what its values depend on."""

    def __init__(self, tracer: Tracer, graph: fx.Graph, names: Sequence[str], states: int) -> None:
        self.tracer = tracer
        self.graph = graph
        self.names = dict(zip(inputs(graph), names))
        self.states = states
        self._depends: dict[fx.Node, int] = {}
        for k, node in enumerate(inputs(graph)):
            self._depends[node] = INPUT if k == 0 else STATE if k <= states else CONSTANT

    def depends(self, node: Any) -> int:
        """CONSTANT, INPUT or STATE; numbers and sizes are constants, tensors with rows are not."""
        if not isinstance(node, fx.Node) or is_size(node):
            return CONSTANT
        if node not in self._depends:
            for n in ancestors([node], stop=lambda n: n in self._depends):
                if not is_size(n) and n not in self._depends:
                    operands = [self._depends[o] for o in n.all_input_nodes if not is_size(o)]
                    self._depends[n] = max([INPUT if has_rows(n) else CONSTANT, *operands])
        return self._depends[node]

    def constant(self, node: fx.Node) -> bool:
        return not is_size(node) and self.depends(node) == CONSTANT

    def call(self, target: Any, *args: Any) -> fx.Node:
        return self.tracer.call(self.graph, target, *args)

    def position(self, node: Any) -> int:
        """Where the weight `node` was declared; merged products keep that order, so that gates of x and h agree."""
        order = list(self.names)
        return min((order.index(n) for n in ancestors([node]) if n in self.names), default=len(order))

    def label(self, node: Any) -> str:
        return self.names.get(node, "…") if isinstance(node, fx.Node) else str(node)


def _merge_constants(parts: _Parts) -> list[str]:
    """What is made of weights alone, but written several times, as in a loop within a step, is made once."""
    first: dict[Any, fx.Node] = {}
    for node in parts.graph.nodes:
        if node.op == "call_function" and parts.constant(node):
            made = first.setdefault((node.target, str(node.args), str(node.kwargs)), node)
            if made is not node:
                node.replace_all_uses_with(made, propagate_meta=False)
    return []


def _reorder_sums(parts: _Parts) -> list[str]:
    _reorder(parts, {ADD: 1, SUB: -1})
    return []


def _reorder_products(parts: _Parts) -> list[str]:
    _reorder(parts, {MUL: 1})
    return []


def _reorder(parts: _Parts, family: dict[Any, int]) -> None:
    """Bring the terms of each sum (or product) into the order constants, inputs, states."""

    def inner(node: Any) -> bool:
        return isinstance(node, fx.Node) and node.target in family and not node.kwargs and len(args_of(node)) == 2

    def terms(node: fx.Node, sign: int) -> list[tuple[int, Any]]:
        found = []
        for operand, side in zip(args_of(node), (1, family[node.target])):
            if inner(operand) and len(operand.users) == 1:
                found += terms(operand, sign * side)
            else:
                found.append((sign * side, operand))
        return found

    for node in list(parts.graph.nodes):
        if not inner(node) or (len(node.users) == 1 and inner(next(iter(node.users)))):
            continue
        found = terms(node, 1)
        if len(found) < 3 or len({parts.depends(term) for _, term in found}) < 2:
            continue
        found.sort(key=lambda term: (parts.depends(term[1]), -term[0]))
        (sign, total), *others = found
        if sign < 0:
            total = -total if not isinstance(total, fx.Node) else parts.call(NEG, total)
        for sign, term in others:
            target = MUL if MUL in family else ADD if sign > 0 else SUB
            if isinstance(total, fx.Node) or isinstance(term, fx.Node):
                total = parts.call(target, total, term)
            else:
                total = {MUL: total * term, ADD: total + term, SUB: total - term}[target]
        node.replace_all_uses_with(total, propagate_meta=False)


def _merge_input_products(parts: _Parts) -> list[str]:
    """Products of one input by several weights become one, their biases with them."""
    groups: dict[fx.Node, list[tuple[fx.Node, Any, Any]]] = {}
    for node in parts.graph.nodes:
        if node.target is MM and parts.depends(node) == INPUT and parts.constant(args_of(node)[1]):
            user = next(iter(node.users)) if len(node.users) == 1 else None
            bias = None
            if user is not None and user.target is ADD and not user.kwargs:
                other = next((n for n in user.args if n is not node), None)
                if isinstance(other, fx.Node) and parts.constant(other):
                    bias = other if other.meta["val"].shape == node.meta["val"].shape[1:] else None
            groups.setdefault(args_of(node)[0], []).append((node, user if bias is not None else node, bias))
    notes = []
    for operand, members in groups.items():
        members.sort(key=lambda member: parts.position(args_of(member[0])[1]))
        weights = [args_of(product)[1] for product, _, _ in members]
        note = f"{parts.label(operand)} @ [{' '.join(map(parts.label, weights))}]"
        weight = weights[0] if len(members) == 1 else parts.call(aten.cat.default, weights, 1)
        if any(bias is not None for _, _, bias in members):
            note += f" + [{' '.join('0' if bias is None else parts.label(bias) for _, _, bias in members)}]"
            biases = [_zeros(parts, product) if bias is None else bias for product, _, bias in members]
            bias = biases[0] if len(members) == 1 else parts.call(aten.cat.default, biases)
            whole = parts.call(aten.addmm.default, bias, operand, weight)
        else:
            whole = parts.call(MM, operand, weight)
        _replace_by_slices([head for _, head, _ in members], whole, parts)
        notes.append(note)
    return notes


def _zeros(parts: _Parts, product: fx.Node) -> fx.Node:
    weight = args_of(product)[1]
    return parts.call(aten.mul.Tensor, parts.call(aten.select.int, weight, 0, 0), 0)


def _merge_state_products(parts: _Parts) -> list[str]:
    """Products of one state-dependent value by several weights become one."""
    groups: dict[fx.Node, list[fx.Node]] = {}
    for node in parts.graph.nodes:
        if node.target is MM and parts.depends(node) == STATE and parts.constant(args_of(node)[1]):
            groups.setdefault(args_of(node)[0], []).append(node)
    notes = []
    for operand, members in groups.items():
        members.sort(key=lambda product: parts.position(args_of(product)[1]))
        weights = [args_of(product)[1] for product in members]
        notes.append(f"{parts.label(operand)} @ [{' '.join(map(parts.label, weights))}]")
        if len(members) > 1:
            _replace_by_slices(members, parts.call(MM, operand, parts.call(aten.cat.default, weights, 1)), parts)
    return notes


def _replace_by_slices(members: list[fx.Node], whole: fx.Node, parts: _Parts) -> None:
    start = 0
    for member in members:
        stop = start + member.meta["val"].shape[1]
        part = whole if len(members) == 1 else parts.call(aten.slice.Tensor, whole, 1, start, stop)
        member.replace_all_uses_with(part, propagate_meta=False)
        start = stop


def _frontier(parts: _Parts) -> tuple[list[fx.Node], list[fx.Node]]:
    """Where the loop begins: the leaves it takes at each time step, and the tensors it shares among all."""

    def stop(node: fx.Node) -> bool:
        if is_size(node):
            return True
        if node.target is aten.scalar_tensor.default:  # a number; as a shared tensor it would be given a gradient
            return False
        # a concatenation is recomputable, but inside the loop it would be a copy
        sinks = node.op == "call_function" and recomputable(node) and node.target is not aten.cat.default
        return parts.constant(node) or (parts.depends(node) == INPUT and not sinks)

    found = [n for n in ancestors(outputs(parts.graph), stop) if not is_size(n) and stop(n)]
    leaves = [n for n in found if parts.depends(n) == INPUT]
    return leaves, [n for n in found if parts.constant(n)]
