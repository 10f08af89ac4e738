"""Finds a matrix memory in a traced step: S' = a ∘ S + v kᵀ, of which nothing but o = S' q is ever read.

a is a number or has one for each key, and neither it nor k and q depend on S. The value v may, as delta rules have it:
v = p + c ∘ (S b), or what was held is written under a key of its own: S' = a ∘ S + p kᵀ + (c ∘ (S b)) eᵀ. The step is
taken apart accordingly. What is `around` the memory, the other states and a, p, k, q, b, c and e, is a plan of its own,
in which these are states that nothing reads; what becomes of o, and states that only tell of it, is the `tail`.

Shapes: N rows; S is [N, V, K] or [N, K, V], of V values and K keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import fx

from rnnzoo.engine.operations import VIEWS
from rnnzoo.engine.plan import Plan, assemble, rewrite
from rnnzoo.engine.rewrite import ADD, MUL, NEG, SUB, Parts
from rnnzoo.engine.scan import NotAffine, affine, replaced_by
from rnnzoo.engine.trace import ancestors, args_of, aten, extract, has_rows, inputs, is_size, outputs, rows_first


class NoMemory(Exception):
    """Why a step has no matrix memory that can be taken out of it."""


@dataclass(frozen=True, eq=False)
class Memory:
    """A step around its matrix memory.

    `state` is the number of S among the states, `keys_last` whether it is [V, K]. `decay` is a if that is a number for
    good. `factors` says which states of `around` are a, p, k, q, b, c and e, by these names, `cuts` which ones `tail`
    takes after o; after these it takes what `prepare` makes of the weights. It gives the output and the states `late`,
    by number, which nothing reads at the next time step. `anew` tells from x where S becomes zero.
    """

    state: int
    late: tuple[int, ...]
    keys: int
    values: int
    keys_last: bool
    decay: float | None
    around: Plan
    factors: dict[str, int]
    cuts: tuple[int, ...]
    prepare: fx.Graph
    tail: fx.Graph
    anew: fx.Graph | None

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the states of `around`, without rows."""
        return [tuple(n.meta["val"].shape[1:]) for n in outputs(self.around.recur)]

    def describe(self) -> str:
        """What was found, in a few words."""
        rule = "a delta rule" if "b" in self.factors else "decay and outer products"
        width = self.shapes[self.factors["a"]][0] if "a" in self.factors else 0
        decay = "for each key" if width == self.keys else "one number" if width else f"{self.decay:g}"
        return f"a memory of {self.values} values under {self.keys} keys, by {rule}, its decay {decay}"


def find(plan: Plan) -> Memory:
    """The memory in a plan's step. Raises `NoMemory`."""
    if plan.whole is None:
        raise NoMemory("it has no matrix that a readout reads")
    why = None
    for number, state in enumerate(inputs(plan.whole)[1 : len(plan.states) + 1]):
        if len(state.meta["val"].shape) == 3:
            try:
                return _Search(plan, number).memory()
            except (NoMemory, NotAffine) as error:
                why = why or NoMemory(f"{plan.states[number].partition('_')[2]} is no such memory: {error}")
    raise why or NoMemory("it has no matrix that a readout reads")


class _Search:
    """The search for a memory in one state of a plan, whose graph it takes apart."""

    def __init__(self, plan: Plan, number: int) -> None:
        assert plan.whole is not None
        self.plan, self.number, self.tracer = plan, number, plan.tracer
        names = ["x", *plan.states, *plan.weights]
        copy = extract(dict(zip(inputs(plan.whole), names)), outputs(plan.whole))
        self.parts, _ = rewrite(plan.tracer, copy, names, len(plan.states))
        self.graph = self.parts.graph
        self.x, *others = inputs(self.graph)
        self.states, self.weights = others[: len(plan.states)], others[len(plan.states) :]
        self.state = self.states[number]
        self.sizes: tuple[int, int] = tuple(self.state.meta["val"].shape[1:])
        if min(self.sizes) < 2:
            raise NoMemory("it has a single row or column")

    def memory(self) -> Memory:
        new = outputs(self.graph)[:-1]
        written = new[self.number]
        found = replaced_by([self.state], [written])
        replaced = None if found is None else found[0]
        start = self.state if replaced is None else replaced
        keys, query, o = self._read(written)
        before = old = None
        if self._reads(start):
            axis, before, old = self._read(start)
            if axis != keys:
                raise NoMemory("it is read along both its axes")
        a, b = affine(self.tracer, self.graph, [start], written, "it")
        if not isinstance(b, fx.Node):
            raise NoMemory("nothing is written to it")
        factors = {"a": self._decay(a, keys)} if isinstance(a, fx.Node) else {}
        terms = self._terms(b)
        known = set() if old is None else self._behind([old])
        apart = [t for t in terms if t in known] if len(terms) == 2 else []
        sides = self._outer(b if len(apart) != 1 else next(t for t in terms if t not in known), 1 - keys)
        factors |= {"p": sides[1 - keys], "k": sides[keys], "q": query}
        if old is not None and before is not None and len(apart) == 1:
            sides = self._outer(apart[0], 1 - keys)
            c, rest = affine(self.tracer, self.graph, [old], sides[1 - keys], "what it held")
            if isinstance(rest, fx.Node) or rest:
                raise NoMemory("what it held is not all that is written under its key")
            c = c if isinstance(c, fx.Node) else self.parts.call(aten.full_like.default, factors["p"], c)
            factors |= {"b": before, "c": self._flat(c, self.sizes[1 - keys]), "e": sides[keys]}
        elif old is not None and before is not None:
            if factors["p"] not in self._behind([old]):
                raise NoMemory("more than the output hangs on it")
            c, p = affine(self.tracer, self.graph, [old], factors["p"], "what it held")
            if not isinstance(p, fx.Node):
                raise NoMemory("nothing new is written to it")
            c = c if isinstance(c, fx.Node) else self.parts.call(aten.full_like.default, p, c)
            factors |= {"p": p, "b": before, "c": self._flat(c, self.sizes[1 - keys])}
        told = self._behind([o])
        late = [k for k, n in enumerate(new) if k != self.number and n in told and not self.states[k].users]
        loop = [n for k, n in enumerate(new) if k != self.number and k not in late]
        results = [outputs(self.graph)[-1], *(new[k] for k in late)]
        cuts, constants = self._tail(o, results)
        behind = self._behind([self.state, o, *([] if old is None else [old])])
        taken = {node: k for k, node in reversed(list(enumerate(loop)))}
        fresh = [n for n in dict.fromkeys([*factors.values(), *cuts]) if n not in taken]
        taken |= {node: len(loop) + k for k, node in enumerate(fresh)}
        if behind & {*loop, *fresh}:
            raise NoMemory("more than the output hangs on it")
        if any(n.meta["val"].dtype != self.state.meta["val"].dtype for n in fresh):
            raise NoMemory("what is around it is of another type")
        tail = {o: "o"} | {n: f"cut{k}" for k, n in enumerate(cuts)}
        tail |= {n: f"constant{k}" for k, n in enumerate(constants)}
        return Memory(
            state=self.number,
            late=tuple(late),
            keys=self.sizes[keys],
            values=self.sizes[1 - keys],
            keys_last=keys == 1,
            decay=None if isinstance(a, fx.Node) else a,
            around=self._around(loop, fresh, late),
            factors={name: taken[node] for name, node in factors.items()},
            cuts=tuple(taken[node] for node in cuts),
            prepare=extract(dict(zip(self.weights, self.plan.weights)), constants),
            tail=extract(tail, results),
            anew=None if replaced is None else self._anew(replaced),
        )

    def _reads(self, source: fx.Node) -> list[tuple[fx.Node, int, fx.Node]]:
        """Sums of the products of a matrix and a vector: the sum, the axis that it sums up, and the vector."""
        found = []
        places = {source: (1, 2)}  # the dimensions at which the matrix's two axes lie
        for node in self.graph.nodes:
            operand = next((n for n in node.all_input_nodes if n in places), None)
            if operand is None:
                continue
            if node.target in VIEWS and operand is args_of(node)[0]:
                seen = self._follow(node, places[operand])
                if seen is not None:
                    places[node] = seen
            elif node.target is MUL and not node.kwargs:
                other = next((n for n in node.args if n is not operand), None)
                axis = self._along(other, node, places[operand]) if isinstance(other, fx.Node) else None
                if (
                    axis is not None
                    and node.users
                    and all(self._sums(n, node, places[operand][axis]) for n in node.users)
                ):
                    assert isinstance(other, fx.Node)
                    found += [(total, axis, other) for total in node.users]
        return found

    def _follow(self, node: fx.Node, places: tuple[int, int]) -> tuple[int, int] | None:
        """Where the axes lie in a view of the matrix, if it is only seen in another shape."""
        if node.target is aten.permute.default:
            order = list(args_of(node)[1])
            return (order.index(places[0]), order.index(places[1])) if order[0] == 0 else None
        shape = node.meta["val"].shape
        first, second = [d for d in range(1, len(shape)) if shape[d] != 1][:2] or (0, 0)
        found = (first, second) if places[0] < places[1] else (second, first)
        kept = [shape[d] for d in range(1, len(shape)) if shape[d] != 1]
        wanted = self.sizes if places[0] < places[1] else self.sizes[::-1]
        return found if tuple(kept) == tuple(wanted) else None

    def _along(self, vector: fx.Node, product: fx.Node, places: tuple[int, int]) -> int | None:
        """The axis along which the other factor of a product has its numbers, if that is just one."""
        missing = product.meta["val"].dim() - vector.meta["val"].dim()
        sizes = [1] * missing + [size if isinstance(size, int) else -1 for size in vector.meta["val"].shape]
        axes = [axis for axis in (0, 1) if sizes[places[axis]] == self.sizes[axis]]
        spread = [d for d, size in enumerate(sizes) if d and size != 1]
        return axes[0] if len(axes) == 1 and spread == [places[axes[0]]] else None

    def _sums(self, node: fx.Node, product: fx.Node, dim: int) -> bool:
        """Whether a node sums up just this dimension."""
        if node.target is not aten.sum.dim_IntList or node.kwargs:
            return False
        return [d % product.meta["val"].dim() for d in args_of(node)[1] or ()] == [dim]

    def _read(self, source: fx.Node) -> tuple[int, fx.Node, fx.Node]:
        """How a matrix is read: the axis of the keys, the vector, and the result [N, V], now a placeholder."""
        reads = self._reads(source)
        if len(reads) != 1:
            raise NoMemory(f"{len(reads) or 'no'} products with a vector read it")
        ((total, axis, vector),) = reads
        result = self._placeholder("read", self.tracer.again(self._views(total, self.sizes[1 - axis])[0]))
        for node in self._views(total, self.sizes[1 - axis]):
            node.replace_all_uses_with(result, propagate_meta=False)
        return axis, self._flat(vector, self.sizes[axis]), result

    def _views(self, source: fx.Node, size: int) -> list[fx.Node]:
        """All the ways in which a result is seen as [N, size]."""
        seen = {source: None}
        for node in self.graph.nodes:
            if node.target in VIEWS and args_of(node)[0] in seen:
                seen[node] = None
        flat = [n for n in seen if n.meta["val"].dim() == 2 and n.meta["val"].shape[1] == size]
        if not flat:
            raise NoMemory("what is read is not seen as a vector")
        return flat

    def _placeholder(self, name: str, value: torch.Tensor) -> fx.Node:
        with self.graph.inserting_before(next(iter(self.graph.nodes))):
            node = self.graph.placeholder(name)
        node.meta["val"] = value
        return node

    def _flat(self, node: fx.Node, size: int) -> fx.Node:
        """A value with numbers along one axis at most as [N, size], or [N, 1] if it is one number a row."""
        sizes = [n for n in node.meta["val"].shape if isinstance(n, int)]
        width = math.prod(sizes)
        if width not in (1, size):
            raise NoMemory("something around it is no vector")
        source = node
        while source.target in VIEWS and has_rows(args_of(source)[0]):
            source = args_of(source)[0]
            if source.meta["val"].dim() == 2 and source.meta["val"].shape[1] == width and rows_first(source):
                return source
        if has_rows(node):
            ones = [d for d, n in enumerate(node.meta["val"].shape) if d and n == 1]
            return self.parts.call(aten.squeeze.dims, node, ones[len(ones) - node.meta["val"].dim() + 2 :])
        rows = self.parts.call(aten.sym_size.int, self.x, 0)
        return self.parts.call(aten.expand.default, self.parts.call(aten.view.default, node, [width]), [rows, width])

    def _spread(self, node: fx.Node) -> list[int]:
        """The axes of the matrix along which a value that is combined with it has several numbers."""
        shape = [n if isinstance(n, int) else 1 for n in node.meta["val"].shape]
        return [axis for axis in (0, 1) if len(shape) >= 2 - axis and shape[axis - 2] != 1]

    def _decay(self, a: fx.Node, keys: int) -> fx.Node:
        if self._spread(a) not in ([], [keys]):
            raise NoMemory("it decays otherwise than as a whole, or key by key")
        return self._flat(a, self.sizes[keys])

    def _terms(self, written: fx.Node) -> list[fx.Node]:
        """The terms of a sum of matrices, with their signs; the matrix itself if it is no sum."""
        if written.target is NEG or (written.target is SUB and args_of(written)[0] == 0.0):
            return [self.parts.call(NEG, term) for term in self._terms(args_of(written)[-1])]
        if written.target not in (ADD, SUB) or written.kwargs or not all(isinstance(n, fx.Node) for n in written.args):
            return [written]
        first, second = (self._terms(n) for n in args_of(written))
        return first + (second if written.target is ADD else [self.parts.call(NEG, term) for term in second])

    def _outer(self, written: fx.Node, values: int) -> tuple[fx.Node, fx.Node]:
        """The two vectors [N, D] of an outer product, one for each axis; what is one number goes to the values."""
        scale, sides = 1.0, ([], [])  # type: tuple[float, tuple[list[fx.Node], list[fx.Node]]]
        left: list[Any] = [written]
        while left:
            node = left.pop()
            if not isinstance(node, fx.Node):
                scale *= node
            elif node.target is NEG or (node.target is SUB and args_of(node)[0] == 0.0):
                scale = -scale
                left.append(args_of(node)[-1])
            elif node.target is MUL and len(self._spread(node)) == 2:
                left += args_of(node)
            elif len(self._spread(node)) == 2:
                raise NoMemory("what is written is no outer product")
            else:
                (axis,) = self._spread(node) or [values]
                sides[axis].append(self._flat(node, self.sizes[axis]))
        if not all(sides):
            raise NoMemory("what is written is no outer product")
        first, second = (reduce(lambda x, y: self.parts.call(MUL, x, y), side) for side in sides)
        if scale != 1:
            first = self.parts.call(MUL, first, scale)
        return first, second

    def _anew(self, replaced: fx.Node) -> fx.Graph:
        """Where the memory becomes zero, from x."""
        where, value, _ = args_of(replaced)
        if not (isinstance(value, fx.Node) and value.target is aten.scalar_tensor.default and args_of(value)[0] == 0):
            raise NoMemory("it starts anew with something else than zero")
        if any(n.op == "placeholder" and n is not self.x for n in ancestors([where])):
            raise NoMemory("where it starts anew is not seen from the input")
        return extract({self.x: "x"}, [where])

    def _tail(self, o: fx.Node, results: list[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
        """What the results, the output first, are made of beside o: values with rows, and those of weights alone."""
        behind = self._behind([o])
        if results[0] not in behind:
            raise NoMemory("its output does not hang on it")
        operands = dict.fromkeys(
            n
            for node in ancestors(results)
            if node in behind and node is not o
            for n in node.all_input_nodes
            if n not in behind and not is_size(n)
        )
        constants = [n for n in operands if self.parts.constant(n)]
        return [n for n in operands if n not in constants], constants

    def _behind(self, roots: Iterable[fx.Node]) -> set[fx.Node]:
        """`roots` and all that is computed from them."""
        found = set(roots)
        for node in ancestors(n for n in self.graph.nodes if n.op != "output"):
            if any(n in found for n in node.all_input_nodes) and not is_size(node):
                found.add(node)
        return found

    def _around(self, loop: list[fx.Node], fresh: list[fx.Node], late: list[int]) -> Plan:
        """The plan of all but the memory, with values `fresh` as states that nothing reads."""
        plan = self.plan
        own = {s: name for k, (s, name) in enumerate(zip(self.states, plan.states)) if k not in (self.number, *late)}
        labels, given = [*own.values()], {self.x: "x"} | own
        for k, node in enumerate(fresh):
            labels.append(f"s{len(plan.states) + k}_around")
            given[self._placeholder("around", self.tracer.again(node))] = labels[-1]
        given |= dict(zip(self.weights, plan.weights))
        parts = Parts(self.tracer, extract(given, [*loop, *fresh]), list(given.values()), len(labels))
        return assemble(plan.name, parts, tuple(labels), plan.weights)
