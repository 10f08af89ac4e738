"""A step's operations as the text of C++ loops: over rows, over features.

What shares a shape and a stage shares a loop; what must take one number after the other has a loop of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import fx

from rnnzoo.engine.lower import Lowering, Operation, Value
from rnnzoo.engine.operations import number
from rnnzoo.engine.places import COUNT, Place

START = {"sum": "S(0)", "prod": "S(1)", "max": "S(-INFINITY)", "min": "S(INFINITY)"}
COMBINE = {
    "sum": "{0} += {1};", "prod": "{0} *= {1};",
    "max": "{0} = largest_({0}, {1});", "min": "{0} = smallest_({0}, {1});",
}  # fmt: skip
GATHER = COMBINE | {  # of what is no number, the greatest and the least are none
    "max": "{0} = {0} != {0} || {1} <= {0} ? {0} : {1};",
    "min": "{0} = {0} != {0} || {1} >= {0} ? {0} : {1};",
}
"""The same in memory, where no loop waits for it."""
CLAUSE = {"sum": "+", "prod": "*", "max": "largest", "min": "smallest"}

IN_ORDER = ("scatter", "cumulative")
"""What takes one number after the other."""


def statements(lowered: Lowering) -> str:
    """The step's statements, for `rows` rows."""
    lines: list[str] = []
    for stage in range(1 + max((o.stage for o in lowered.operations.values()), default=-1)):
        here = {key: o for key, o in lowered.operations.items() if o.stage == stage}
        for operation in here.values():
            if operation.kind.startswith("product"):
                lines.append(_product(lowered, operation))
            elif operation.kind in IN_ORDER:
                lines += _in_order(operation)
        together = {key: o for key, o in here.items() if not o.kind.startswith(("product", *IN_ORDER))}
        for shape in dict.fromkeys(o.shape for o in together.values()):
            lines += _loop(shape, {key: o for key, o in together.items() if o.shape == shape})
    return "\n".join(lines)


def _product(lowered: Lowering, operation: Operation) -> str:
    (left,) = operation.operands
    assert isinstance(left, Place)
    _, K, N = lowered.packs[operation.expression]
    to = operation.stores[0].base
    if operation.kind == "products":
        times, lda = left.shape[0], left.strides[0]
        return (
            f"for (int64_t r = 0; r < rows; ++r) {{ PRODUCT({times}, {left.base} + r * {pitch(left)} + {left.offset}, "
            f"{lda}, {operation.expression}, {K}, {N}, {operation.buffer}); "
            f"unpad({times}, {N}, {operation.buffer}, {to} + r * {times * N}); }}"
        )
    return f"PRODUCT(rows, {left.base} + {left.offset}, {pitch(left)}, {operation.expression}, {K}, {N}, {to});"


def _in_order(operation: Operation) -> list[str]:
    """A loop of its own, in which numbers are taken one after the other."""
    index = [f"i{k}" for k in range(len(operation.shape))]
    loops = [f"for (int64_t i{k} = 0; i{k} < {n}; ++i{k}) {{" for k, n in enumerate(operation.shape)]
    (to,) = operation.stores
    places = [place for place in (to, *operation.operands) if isinstance(place, Place)]
    lines = ["for (int64_t r = 0; r < rows; ++r) {", *_rows_of(places)]
    if operation.kind == "cumulative":
        (source,) = places[1:]
        start = f"double run = {int(operation.expression == '*')};"  # as torch, which adds up in double
        body = [f"run {operation.expression}= {source.at(index)};", f"{to.at(index)} = S(run);"]
        return [*lines, *loops[:-1], start, loops[-1], *body, "}" * (len(loops) + 1)]
    _, position, source = places[1:]
    where, inside = _picked(operation, to, position.at(index), index)
    return [*lines, *loops, f"if ({inside}) {where} += {source.at(index)};", "}" * (len(loops) + 1)]


def _picked(operation: Operation, place: Place, position: str, index: list[str]) -> tuple[str, str]:
    """The element of `place` at a position along the dimension that is picked from, and whether there is one."""
    (d,) = operation.reduced
    at = place.at([f"int64_t({position})" if k == d else i for k, i in enumerate(index)])
    return at, f"({position} >= 0 && {position} < {place.shape[d]})"


def _rows_of(places: Iterable[Place]) -> list[str]:
    """Pointers to a row of each."""
    found = {place.base: place for place in places if place.base != COUNT}
    return [f"S* {base}_r = {base} + r * {pitch(place)};" for base, place in found.items()]


def _loop(shape: tuple[int, ...], group: dict[Any, Operation]) -> list[str]:
    """One loop over rows and the elements of `shape`, for all the operations of a group."""
    depth = len(shape)
    index = [f"i{k}" for k in range(depth)] or ["i0"]
    inner = max(depth - 1, 0)
    names = {key: f"v{k}" for k, key in enumerate(group)}
    loads: dict[str, str] = {}
    body: list[str] = []
    stores: list[str] = []
    before: list[str] = []
    after: list[str] = []
    clauses = ""
    along = f"for (int64_t {index[-1]} = 0; {index[-1]} < {shape[-1] if shape else 1}; ++{index[-1]}) {{"

    def read(operand: Value) -> str:
        if isinstance(operand, Place):
            element = f"{operand.at(index)} != 0" if operand.boolean else operand.at(index)
            return loads.setdefault(element, f"m{len(loads)}")
        if isinstance(operand, fx.Node):
            return names[operand]
        return number(operand)

    for key, operation in group.items():
        if operation.kind == "gather":
            source, position = operation.operands[0], read(operation.operands[1])
            assert isinstance(source, Place)
            where, inside = _picked(operation, source, position, index)
            body.append(f"S {names[key]} = {inside} ? {where} : S(NAN);")
            stores += [f"{place.at(index)} = {names[key]};" for place in operation.stores]
            continue
        operands = [read(operand) for operand in operation.operands]
        if operation.kind.startswith("point"):
            body.append(f"{operation.kind.split()[1]} {names[key]} = {operation.expression.format(*operands)};")
            stores += [f"{place.at(index)} = {names[key]};" for place in operation.stores]
            continue
        (target,) = operation.stores
        if operation.kind == "total":
            stores.append(f"{target.at(index)} += {operands[0]};")
            continue
        if operation.kind == "checked":
            fast, missed, exact = (text.format(*operands) for text in operation.checks)
            some = f"some{names[key]}"
            before.append(f"int {some} = 0;")
            clauses += f" reduction(|:{some})"
            body += [f"S {names[key]} = {fast};", f"{some} |= {missed};"]
            stores.append(f"{target.at(index)} = {names[key]};")
            again = [f"auto {name} = {source};" for source, name in loads.items() if name in operands]
            after += [f"if ({some}) {along}", *again, f"if ({missed}) {target.at(index)} = {exact};", "}"]
            continue
        if inner in operation.reduced:
            total = f"total{names[key]}"
            before.append(f"S {total} = {START[operation.kind]};")
            clauses += f" reduction({CLAUSE[operation.kind]}:{total})"
            body.append(COMBINE[operation.kind].format(total, operands[0]))
            if operation.kind != "sum":
                before.append(f"int none{total} = 0;")
                clauses += f" reduction(|:none{total})"
                body.append(f"none{total} |= {operands[0]} != {operands[0]};")
                after.append(f"{total} = none{total} ? S(NAN) : {total};")
            after.append(GATHER[operation.kind].format(target.at(index), total))
        else:
            stores.append(GATHER[operation.kind].format(target.at(index), operands[0]))
    lines = ["for (int64_t r = 0; r < rows; ++r) {"]
    places = [p for o in group.values() for p in (*o.operands, *o.stores) if isinstance(p, Place)]
    lines += _rows_of(places)
    for operation in group.values():
        if operation.kind in START:
            (target,) = operation.stores
            count = math.prod(n for k, n in enumerate(operation.shape) if k not in operation.reduced)
            lines.append(f"for (int64_t j = 0; j < {count}; ++j) {target.base}_r[j] = {START[operation.kind]};")
    for k in range(inner):
        lines.append(f"for (int64_t i{k} = 0; i{k} < {shape[k]}; ++i{k}) {{")
    lines += [*before, f"#pragma omp simd{clauses}"]
    lines.append(along)
    lines += [f"auto {name} = {source};" for source, name in loads.items()]
    lines += [*body, *stores, "}"]
    return [*lines, *after, "}" * inner, "}"]


def pitch(place: Place) -> str:
    """Numbers from one row to the next, as C++."""
    return f"padded({-place.pitch})" if place.pitch < 0 else str(place.pitch)
