"""A step's graph as C++ for a block of rows: loops over features between products with packed matrices.

Rows (sequences of a batch) do not depend on each other, so a thread takes a block of them through all time steps
without ever waiting for another. Within a step, operations are put into stages: element-wise operations of one shape
and stage share a loop and hand each other values in registers; what a product, a sum or a later stage reads goes
through memory, which for one block stays in the cache.

Shapes here leave out the rows: a state [B, H] is (H,).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import fx

from rnnzoo.engine.operations import CHECKED, CUMULATIVE, FILLED, POINT, POWERS, REDUCTIONS, VIEWS, converted, number
from rnnzoo.engine.places import (
    COUNT,
    Place,
    Scattered,
    Unsupported,
    across,
    behind,
    dimension,
    expanded,
    met,
    shape_of,
    viewed,
)
from rnnzoo.engine.trace import ancestors, args_of, aten, has_rows, inputs, is_size, outputs

ARANGE = (aten.arange.default, aten.arange.start, aten.arange.start_step)
RESHAPES = (aten.view.default, aten._unsafe_view.default)
MOVES = (aten.permute.default, aten.slice.Tensor, aten.flip.default, aten.diagonal.default)
"""Views that may see other numbers in the same shape."""

Value: TypeAlias = "Place | fx.Node | float"
"""What an operation reads: memory, the result of another operation, or a number."""


@dataclass
class Operation:
    """Something to be computed: `kind` is point, checked, product, gather, scatter, cumulative, sum, prod, max, min, or
    total, a sum over all rows.

    `reduced` are the dimensions that a sum takes, or the one along which is gathered or scattered.
    """

    kind: str
    shape: tuple[int, ...]
    operands: list[Value]
    expression: str = ""
    stage: int = 0
    stores: list[Place] = field(default_factory=list)
    reduced: tuple[int, ...] = ()
    checks: tuple[str, ...] = ()
    buffer: str = ""


class Lowering:
    """The C++ of one graph.

    Args:
        graph: a graph of `rnnzoo.engine.plan`.
        places: where each placeholder lies.
        results: where each output goes.

    Raises `Unsupported`.
    """

    ROUNDED = "S(float({}))"
    """How a number is rounded to float32."""

    def __init__(self, graph: fx.Graph, places: dict[str, Place], results: Sequence[Place | None]) -> None:
        self.operations: dict[Any, Operation] = {}
        self.values: dict[fx.Node, Value] = {}
        self.packs: dict[str, tuple[Place, int, int]] = {}
        self.scratches: dict[str, Place] = {}
        floating = (n.meta["val"].dtype for n in inputs(graph) if n.meta["val"].is_floating_point())
        self._dtype = next(floating, None)  # None where a graph takes nothing
        self._given = {n: places[str(n.target)] for n in inputs(graph)}
        wanted = [(n, place) for n, place in zip(outputs(graph), results) if n is not None and place is not None]
        self._wanted: dict[fx.Node, list[Place]] = {}
        for node, place in (w for w in wanted if not w[1].base.startswith("total")):
            self._wanted.setdefault(node, []).append(place)
        for node in ancestors(node for node, _ in wanted):
            if not is_size(node):
                self.values[node] = self._value(node)
        for node, place in wanted:
            value = self.values[node]
            if place.base.startswith("total"):
                operand = self._operand(node, place.shape, behind(node))
                self.operations[object()] = Operation("total", place.shape, [operand], stores=[place])
            elif value != place and not (isinstance(value, fx.Node) and place in self.operations[value].stores):
                self._store(value, place)
        self._schedule()

    def _value(self, node: fx.Node) -> Value:
        value, dtype = self._found(node), node.meta["val"].dtype
        if self._dtype in (None, dtype) or not (dtype.is_floating_point or dtype.is_complex):
            return value
        if isinstance(value, float):
            return torch.tensor(value, dtype=dtype).item()
        moved = node in self._given or node.target in VIEWS or node.target is aten.cat.default
        if dtype != torch.float32 or not (moved or value is node):
            raise Unsupported(f"numbers of {dtype} among those of {self._dtype}")
        if not moved:
            self.operations[node].expression = self.ROUNDED.format(self.operations[node].expression)
        return value

    def _found(self, node: fx.Node) -> Value:
        if node in self._given:
            return self._given[node]
        if node.target in VIEWS:
            return self._view(node)
        operands = [n for n in node.all_input_nodes if not is_size(n)]
        if not operands:
            return self._constant(node)
        if node.target in FILLED:
            return FILLED[node.target](node)
        if (node.target in POINT or node.target in CHECKED) and all(
            isinstance(self.values[n], float) for n in operands
        ):
            return self._folded(node)
        if node.target is aten.cat.default:
            return self._concatenate(node)
        if node.target is aten.mm.default:
            return self._product(node)
        if node.target is aten.gather.default:
            return self._gather(node)
        if node.target is aten.scatter_add.default:
            return self._scatter(node)
        if node.target in CUMULATIVE:
            return self._cumulate(node)
        if node.target in REDUCTIONS:
            return self._reduce(node)
        if node.target in CHECKED:
            return self._check(node)
        return self._point(node)

    def _point(self, node: fx.Node) -> Value:
        arguments = list(args_of(node))
        expression = POINT.get(node.target)
        if node.target is aten.clamp.default:
            arguments += [None] * (3 - len(arguments))
            expression = "{0}"
            for k, (bound, sign) in enumerate(zip(arguments[1:], "<>"), 1):
                if bound is not None:
                    expression = f"({expression} {sign} {{{k}}} ? {{{k}}} : {expression})"
        elif node.target is aten.pow.Tensor_Scalar:
            exponent = arguments.pop()
            expression = POWERS.get(exponent, f"std::pow({{0}}, {number(float(exponent))})")
        elif node.target is aten._to_copy.default:
            expression = converted(args_of(node)[0].meta["val"].dtype, node.meta["val"].dtype)
        if "bitwise" in str(node.target) and node.meta["val"].dtype != torch.bool:
            raise Unsupported(f"{node.target} of whole numbers")
        if expression is None or (node.kwargs and node.target is not aten._to_copy.default):
            raise Unsupported(f"{node.target}")
        operands = [self._operand(a, shape_of(node), behind(node)) for a in arguments]
        boolean = "bool" if node.meta["val"].dtype == torch.bool else "S"
        stores = list(self._wanted.get(node, ()))
        self.operations[node] = Operation(f"point {boolean}", shape_of(node), operands, expression, stores=stores)
        return node

    def _check(self, node: fx.Node) -> Value:
        """An operation that is looked at once more, for which its operands and its result must be in memory."""
        shape = shape_of(node)
        operands: list[Value] = []
        for argument in args_of(node):
            operand = self._operand(argument, shape, behind(node))
            operands.append(expanded(self._memory(operand), shape) if isinstance(operand, fx.Node) else operand)
        place = self._scratch(shape)
        self.operations[node] = Operation("checked", shape, operands, checks=CHECKED[node.target], stores=[place])
        return place

    def _operand(self, argument: Any, shape: tuple[int, ...], behind: int) -> Value:
        """An operand of an element-wise operation of this shape, with so many dimensions from the rows on."""
        if not isinstance(argument, fx.Node):
            return float("inf") if argument is None else float(argument)
        if is_size(argument):
            raise Unsupported("arithmetic with the batch size")
        value = self.values[argument]
        if isinstance(value, float):
            return value
        if isinstance(value, fx.Node) and self.operations[value].shape == shape == shape_of(argument):
            return value
        place = replace(self._memory(value), boolean=argument.meta["val"].dtype == torch.bool)
        return expanded(met(place, argument, behind), shape)

    def _memory(self, value: Value) -> Place:
        """Where the value lies; what an operation has in registers is stored."""
        if isinstance(value, Place) and value.base != COUNT:
            return value
        if not isinstance(value, fx.Node):
            place = self._scratch(value.shape if isinstance(value, Place) else ())
            self._store(value, place)
            return place
        operation = self.operations[value]
        if not operation.stores:
            operation.stores.append(self._scratch(operation.shape))
        return operation.stores[0]

    def _scratch(self, shape: tuple[int, ...], pitch: int | None = None) -> Place:
        place = Place.dense(f"scratch{len(self.scratches)}", shape, pitch)
        self.scratches[place.base] = place
        return place

    def _store(self, value: Value, place: Place) -> None:
        """Have the value written to `place`."""
        if isinstance(value, fx.Node) and self.operations[value].kind.startswith("point"):
            self.operations[value].stores.append(place)
        elif value != place:
            source = value if isinstance(value, (float, Place)) else self._memory(value)
            self.operations[object()] = Operation("point S", place.shape, [source], "{0}", stores=[place])

    def _constant(self, node: fx.Node) -> Value:
        if node.target is aten.full.default:
            return float(args_of(node)[1])
        if node.target in (aten.zeros.default, aten.ones.default, aten.empty_permuted.default):
            return float(node.target is aten.ones.default)
        if node.target in ARANGE and not node.meta["val"].is_floating_point():
            start, _, step = (*args_of(node), 1)[:3] if node.target is not aten.arange.default else (0, 0, 1)
            return Place(COUNT, 0, shape_of(node), (step,), start)
        if node.target is not aten.scalar_tensor.default:
            raise Unsupported(f"{node.target}")
        return float(args_of(node)[0])

    def _folded(self, node: fx.Node) -> float:
        """An operation on numbers."""
        target: Any = node.target
        numbers = fx.map_arg(args_of(node), lambda n: torch.tensor(self.values[n], dtype=n.meta["val"].dtype))
        return float(target(*numbers))

    def _concatenate(self, node: fx.Node) -> Value:
        (whole, *_) = self._wanted.get(node) or [self._scratch(shape_of(node))]
        dim = dimension(node, args_of(node)[1] if len(args_of(node)) > 1 else 0)
        start = 0
        for piece in args_of(node)[0]:
            shape = shape_of(piece)
            self._store(
                self.values[piece], replace(whole, shape=shape, offset=whole.offset + start * whole.strides[dim])
            )
            start += shape[dim]
        return whole

    def _product(self, node: fx.Node) -> Value:
        """Rows, or a row's own rows of one shape, times a weight."""
        left, right = self._memory(self.values[args_of(node)[0]]), self._memory(self.values[args_of(node)[1]])
        if not has_rows(args_of(node)[0]) or right.pitch or len(right.shape) != 2:
            raise Unsupported("a product other than of rows with a weight matrix")
        if left.strides[-1] != 1:
            copy = self._scratch(left.shape)
            self._store(left, copy)
            left = copy
        width = right.shape[1]
        pack = f"pack{len(self.packs)}"
        pack = next((name for name, (place, *_) in self.packs.items() if place == right), pack)
        self.packs[pack] = (right, *right.shape)
        if len(left.shape) == 1:
            place = self._scratch((width,), -width)  # a negative pitch: filled up to whole vectors
            self.operations[node] = Operation("product", (width,), [left], pack, stores=[place])
            return place
        times = left.shape[0]
        buffer = self._scratch((times, -(-width // 16) * 16))  # no vector has more numbers
        place = self._scratch((times, width))
        self.operations[node] = Operation("products", place.shape, [left], pack, stores=[place], buffer=buffer.base)
        return place

    def _gather(self, node: fx.Node) -> Value:
        source, dim, index = args_of(node)
        shape = shape_of(node)
        operands: list[Value] = [self._memory(self.values[source]), self._operand(index, shape, behind(node))]
        d = dimension(node, dim)
        self.operations[node] = Operation(
            "gather", shape, operands, stores=list(self._wanted.get(node, ())), reduced=(d,)
        )
        return node

    def _scatter(self, node: fx.Node) -> Value:
        """Numbers are added one by one to a copy of what they are added to."""
        before, dim, index, source = args_of(node)
        shape, value = shape_of(index), self.values[before]
        if isinstance(value, fx.Node):
            self._memory(value)  # of its own, or whoever reads it there finds what was added
        place = self._scratch(shape_of(node))
        self._store(value, place)
        operands = (self._memory(self._operand(a, shape, behind(node))) for a in (index, source))
        d = dimension(node, dim)
        self.operations[node] = Operation("scatter", shape, [place, *operands], stores=[place], reduced=(d,))
        return place

    def _cumulate(self, node: fx.Node) -> Value:
        """Along the last dimension of a loop, so of the operand seen with that dimension moved there."""
        d, shape = dimension(node, args_of(node)[1]), shape_of(node)
        order = [*(k for k in range(len(shape)) if k != d), d]
        place = self._scratch(shape)
        source = self._memory(self._operand(args_of(node)[0], shape, behind(node)))
        moved = [
            replace(p, shape=tuple(shape[k] for k in order), strides=tuple(p.strides[k] for k in order))
            for p in (source, place)
        ]
        self.operations[node] = Operation(
            "cumulative", moved[0].shape, [moved[0]], CUMULATIVE[node.target], stores=moved[1:]
        )
        return place

    def _reduce(self, node: fx.Node) -> Value:
        (source, dims, *keep) = args_of(node)
        shape = shape_of(source)
        dims = [dims] if isinstance(dims, int) else dims or []
        reduced = tuple(sorted(dimension(source, d) for d in dims))
        if not reduced or node.kwargs:
            raise Unsupported("a sum over the batch")
        kept = tuple(1 if k in reduced else n for k, n in enumerate(shape))
        place = self._scratch(kept)
        strides = tuple(0 if k in reduced else s for k, s in enumerate(place.strides))
        kind = REDUCTIONS[node.target]
        target = replace(place, shape=shape, strides=strides)
        self.operations[node] = Operation(
            kind, shape, [self._operand(source, shape, behind(source))], stores=[target], reduced=reduced
        )
        return place if keep and keep[0] else Place.dense(place.base, shape_of(node))

    def _view(self, node: fx.Node) -> Value:
        value = self.values[args_of(node)[0]]
        shape = shape_of(node)
        if node.target in RESHAPES and across(node):
            raise Unsupported("a view across the batch")
        same = isinstance(value, fx.Node) and self.operations[value].shape == shape and node.target not in MOVES
        if isinstance(value, float) or same:
            return value
        place = value if isinstance(value, Place) else self._memory(value)
        try:
            return viewed(node, place)
        except Scattered:
            copy = self._scratch(place.shape)
            self._store(place, copy)
            return viewed(node, copy)

    def _schedule(self) -> None:
        """Give each operation the earliest stage at which its operands are there."""
        written: dict[str, int] = {}
        for operation in self.operations.values():
            for operand in operation.operands:
                if isinstance(operand, fx.Node):
                    operation.stage = max(operation.stage, self.operations[operand].stage)
                elif isinstance(operand, Place):
                    operation.stage = max(operation.stage, written.get(operand.base, -1) + 1)
            for place in operation.stores:
                written[place.base] = max(written.get(place.base, 0), operation.stage)
        self._sink()
        # values that cross from one loop into another go through memory
        for operation in list(self.operations.values()):
            for k, operand in enumerate(operation.operands):
                if isinstance(operand, fx.Node):
                    source = self.operations[operand]
                    if (source.stage, source.shape) != (operation.stage, operation.shape):
                        boolean = operand.meta["val"].dtype == torch.bool
                        operation.operands[k] = replace(self._memory(operand), boolean=boolean)

    def _sink(self) -> None:
        """Compute what only a later loop of the same shape reads there, where that takes no more from memory."""
        readers: dict[Any, dict[Any, Operation]] = {}
        for key, operation in self.operations.items():
            for operand in operation.operands:
                readers.setdefault(operand, {})[key] = operation
        for key, operation in reversed(self.operations.items()):
            loops = {(o.stage, o.shape) for o in readers.get(key, {}).values()}
            left = {n for n in operation.operands if isinstance(n, fx.Node) and len(readers[n]) > 1}
            alone = operation.kind.startswith("point") and not operation.stores and len(left) <= 1 and len(loops) == 1
            if alone and (loop := loops.pop())[1] == operation.shape:
                operation.stage = loop[0]

    def clobbers(self, written: dict[str, int], read: dict[str, int]) -> bool:
        """Whether tensors `written` could overwrite tensors `read` before these are read.

        All lie in one row of memory, each from the position given. A value may be replaced by the loop that reads it
        last, if that writes each element where it was read.
        """
        every = self.operations.values()
        stores = [(o, p) for o in every for p in o.stores if p.base in written]
        loads = [(o, p) for o in every for p in o.operands if isinstance(p, Place) and p.base in read]
        for writer, to in stores:
            begin, end = (written[to.base] + k for k in to.span)
            for reader, source in loads:
                other, last = (read[source.base] + k for k in source.span)
                apart = end <= other or last <= begin
                in_turn = reader.stage < writer.stage or (
                    reader.stage == writer.stage
                    and reader.kind.startswith("point")
                    and (reader.shape, source.strides, other) == (writer.shape, to.strides, begin)
                )
                if not apart and not in_turn:
                    return True
        return False
