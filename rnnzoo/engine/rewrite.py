"""How a step's graph is rewritten before it is taken apart: sums and products reordered, products merged.

Sums are reordered so that what does not depend on the state is added first, and products of one operand become one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from rnnzoo.engine.trace import Tracer, ancestors, args_of, aten, has_rows, inputs, is_size, merge_equal

ADD, SUB, MUL, NEG, MM = aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.neg.default, aten.mm.default

CONSTANT, INPUT, STATE = 0, 1, 2
"""What a value depends on at most: weights, the input, the state."""


class Parts:
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


def _merge_constants(parts: Parts) -> list[str]:
    """What is made of weights alone, but written several times, as in a loop within a step, is made once."""
    merge_equal(parts.graph, parts.constant)
    return []


def _reorder_sums(parts: Parts) -> list[str]:
    _reorder(parts, {ADD: 1, SUB: -1})
    return []


def _reorder_products(parts: Parts) -> list[str]:
    _reorder(parts, {MUL: 1})
    return []


def _reorder(parts: Parts, family: dict[Any, int]) -> None:
    """Bring the terms of each sum (or product) into the order constants, inputs, states.

    Numbers stay where they are: who adds a large one and takes it off again wants what rounding does between.
    """

    def inner(node: Any) -> bool:
        return (
            isinstance(node, fx.Node)
            and node.target in family
            and not node.kwargs
            and len(args_of(node)) == 2
            and all(isinstance(operand, fx.Node) for operand in args_of(node))
        )

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
        again = len({term for _, term in found}) < len(found)
        if again or len(found) < 3 or len({parts.depends(term) for _, term in found}) < 2:
            continue
        found.sort(key=lambda term: (parts.depends(term[1]), -term[0]))
        (sign, total), *others = found
        if sign < 0:
            total = parts.call(NEG, total)
        for sign, term in others:
            total = parts.call(MUL if MUL in family else ADD if sign > 0 else SUB, total, term)
        node.replace_all_uses_with(total, propagate_meta=False)


def _merge_input_products(parts: Parts) -> list[str]:
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


def _zeros(parts: Parts, product: fx.Node) -> fx.Node:
    weight = args_of(product)[1]
    return parts.call(aten.new_zeros.default, weight, [weight.meta["val"].shape[1]])


def _merge_state_products(parts: Parts) -> list[str]:
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


def _replace_by_slices(members: list[fx.Node], whole: fx.Node, parts: Parts) -> None:
    start = 0
    for member in members:
        stop = start + member.meta["val"].shape[1]
        part = whole if len(members) == 1 else parts.call(aten.slice.Tensor, whole, 1, start, stop)
        member.replace_all_uses_with(part, propagate_meta=False)
        start = stop


CHANGES = (_merge_constants, _reorder_sums, _reorder_products, _merge_input_products, _merge_state_products)
"""In this order; each says what it merged."""
