"""The text of one Triton kernel: what a program does before the loop over time, in it, and after it.

Names in the text: `row` [rows, 1] are a program's rows of the batch, `n256` [1, features] its part of 256 features,
`in256` where both are there, `long` the batch size as a 64-bit number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from torch import fx

from rnnzoo.engine.lower import Operation, Value
from rnnzoo.engine.places import COUNT, Place, expanded
from rnnzoo.engine.triton_blocks import LEAST, Blocks, power
from rnnzoo.engine.triton_forms import COMBINE, START, WHOLE, Text, TritonLowering, literal
from rnnzoo.engine.triton_places import Key, dense, in_memory, kept, key, outside, permuted, spread

BYTES = {"bf16": 2, "tf32x3": 8}
"""Of a number of a matrix, where that hangs on the precision."""


class Function:
    """One kernel over a lowered graph.

    Args:
        lowered: what is done at a time step.
        blocks: how it is divided.
        tensors: the memory that the kernel is given and that its places lie in, and what it is called there.
        times: which time step of a tensor is meant where it is not `t`.
        carried: what programs keep from one time step to the next.
        found: what they find there after it.
        order: which time step is the first, which one follows `t`, and when one does.
    """

    def __init__(
        self,
        lowered: TritonLowering,
        blocks: Blocks,
        tensors: dict[str, str],
        times: dict[str, str],
        carried: Sequence[Place],
        found: Sequence[Place],
        order: tuple[str, str, str],
    ) -> None:
        self.blocks, self.lowered = blocks, lowered
        self.before: list[str] = []
        self.body: list[str] = []
        self.after: list[str] = []
        self.width = 0
        self.meets = 0
        self.products: list[tuple[int, int]] = []
        """Rows and columns of the matrices that are multiplied with at a time step."""
        self.turns = 0
        """How often loops within a time step turn."""
        self._tensors, self._times, self._order = tensors, times, order
        self._registers: dict[Key, Text] = {}
        self._alone: dict[str, Text] = {}  # sums [rows, 1], which every program has
        self._values: dict[object, Text] = {}
        self._texts: dict[str, str] = {}
        self._starts: dict[str, int] = {}
        self._pending: set[str] = set()
        self._held = 0
        operations = list(lowered.operations.values())
        for operation in operations:
            for k in WHOLE.get(operation.kind, ()):
                operation.operands[k] = lowered.memory(operation.operands[k])
        written = self._written = {p.base for o in operations for p in o.stores} | {p.base for p in carried}
        products = [o.stores[0] for o in operations if o.kind == "product"]
        self._slices: dict[str, dict[Key, Place]] = {p.base: {} for p in products if math.prod(p.shape) == abs(p.pitch)}
        here = {key(p) for o in operations for p in kept(o) if o.kind != "product" or p.base not in self._slices}
        here |= {key(p) for p in carried}
        self._single = {o.stores[0].base for o in operations if o.kind in START and math.prod(kept(o)[0].shape) == 1}
        self.remote = {place.base for place in found if key(place) not in here}
        """What is read by other programs than those that have written it."""
        self._outer: list[Place] = []
        for operation in operations:
            for k, place in enumerate(operation.operands):
                if not isinstance(place, Place):
                    continue
                far = k in WHOLE.get(operation.kind, ())
                if place.base not in written:
                    self._outer += [] if far else [place]
                elif far:
                    self.remote.add(place.base)
                elif place.base in self._slices and dense(place):
                    self._slices[place.base][key(place)] = place
                elif key(place) not in here and not self._everywhere(place):
                    self.remote.add(place.base)

    def text(self, name: str, pointers: Iterable[str], numbers: Iterable[str], loop: str) -> str:
        """The kernel as Python."""
        numbers = ["T", "B", *numbers]
        parameters = ", ".join([*pointers, "lengths", "scratch", "counters", *numbers])
        head = [
            f"row = (tl.program_id(1) * {self.blocks.rows} + tl.arange(0, {self.blocks.rows}))[:, None]",
            "here = row < B",
            "length = tl.load(lengths + row, mask=here, other=0)",
            "steps = length * 0 + T",
            "long = B.to(tl.int64)",
            "counter = counters + tl.program_id(1) * 32",
            "goal = 0",
        ]
        lines = [f"    {line}" for line in (*head, *self.before, loop)]
        lines += [f"        {line}" for line in self.body] + [f"    {line}" for line in self.after]
        special = ", ".join(f'"{number}"' for number in numbers)
        return "\n".join(["\n", f"@triton.jit(do_not_specialize=[{special}])", f"def {name}({parameters}):", *lines])

    def load(self, place: Place, where: list[str], time: str | None = None) -> str:
        """A program's part of what lies in memory."""
        mask = f"{'in' if place.pitch else 'of'}{self._lanes(place.shape)}"
        return f"tl.load({self._address(place, where, time)}, mask={mask}, other=0.0{self._fresh(place)})"

    def _fresh(self, place: Place) -> str:
        """How to read what other programs may have written."""
        return ', cache_modifier=".cg"' if place.base in self.remote and self.blocks.parts > 1 else ""

    def ahead(self, place: Place) -> str:
        """A program's part of what nobody writes, read before it is needed."""
        if self.blocks.stages > 1:  # by the compiler
            return self._named(self.load(place, self.body), self.body, "m")
        label = f"ahead of {key(place)}"
        if label not in self._texts:
            name = self._texts[label] = f"m{len(self._texts)}"
            n, (first, following, some) = self._lanes(place.shape), self._order
            time = self._times.get(place.base, "t")
            at = self._address(place, self.before, re.sub(r"\bt\b", first, time))
            self.before.append(f"next_{name} = tl.load({at}, mask=in{n}, other=0.0)")
            at = self._address(place, self.body, re.sub(r"\bt\b", following, time))
            self.body.append(f"{name} = next_{name}")
            self.body.append(f"next_{name} = tl.load({at}, mask=in{n} & {some}, other=0.0)")
        return self._texts[label]

    def store(self, place: Place, value: str, where: list[str], time: str | None = None) -> None:
        """Have a program's part written to memory."""
        n = self._lanes(place.shape)
        where.append(f"tl.store({self._address(place, where, time)}, {value}, mask=in{n})")
        self._pending |= {place.base} & self.remote

    def keep(self, place: Place, value: str) -> None:
        """What is read from this place stands in a variable; it is written as well if others read it."""
        self._registers[key(place)] = Text(value)
        if place.base in self.remote and place.base not in self._tensors:
            self.store(place, value, self.body)

    def whole(self, place: Place) -> str:
        """What was written to this place, in pieces maybe."""
        if key(place) in self._registers:
            return format(self._registers[key(place)])
        if place.base in self._pending:
            self._meet()
        return format(self._read(place))

    def zeros(self, shape: tuple[int, ...]) -> str:
        """Zeros for a program's part."""
        return f"tl.zeros({self._tile(shape)}, S)"

    def operations(self, holds: dict[Key, str]) -> None:
        """All operations of a time step; `holds` says what a sequence that has ended keeps in a place."""
        self._pending |= {base for base in self.remote if base in self._tensors.values()}  # of the step before
        shown = {base for base, *_ in holds if self._tensors[base] in self.remote}
        for place in self._outer:
            self._read(place)
        for name, operation in sorted(self.lowered.operations.items(), key=lambda item: item[1].stage):
            waits = any(
                p.base in self._pending and (k in WHOLE.get(operation.kind, ()) or not self._at_hand(p))
                for k, p in enumerate(operation.operands)
                if isinstance(p, Place)
            )
            # what is overwritten must have been read by all
            if waits or (not self.meets and any(p.base in shown for p in operation.stores)):
                self._meet()
            if operation.kind == "product":
                self._product(operation)
            elif operation.kind in START:
                self._reduce(operation)
            elif operation.kind in ("scatter", "cumulative"):
                self._in_order(operation)
            else:
                self._point(name, operation, holds)

    def _at_hand(self, place: Place) -> bool:
        """Whether a program need not read it from memory."""
        return key(place) in self._registers or self._everywhere(place)

    def _everywhere(self, place: Place) -> bool:
        return place.base in self._single and not any(key(place)[3])

    def _meet(self) -> None:
        self.meets += 1
        self._pending.clear()
        parts = self.blocks.parts
        self.body += ["tl.debug_barrier()"] if parts == 1 else [f"goal += {parts}", "meet(counter, goal)"]

    def _point(self, name: object, operation: Operation, holds: dict[Key, str]) -> None:
        if operation.kind == "gather":
            expression = self._gather(operation)
        else:
            expression = operation.expression.format(*map(self._read, operation.operands))
        if all(isinstance(operand, float) for operand in operation.operands):
            expression = f"tl.broadcast_to(tl.full([1, 1], 1.0, S) * {expression}, {self._tile(operation.shape)})"
        elif all(self._thin(operand) for operand in operation.operands):
            expression = f"tl.broadcast_to({expression}, {self._tile(operation.shape)})"
        value = self._values[name] = Text(f"v{len(self._values)}", operation.kind == "point bool")
        self.body.append(f"{value!s} = {expression}")
        for place in operation.stores:
            held = value
            if key(place) in holds:
                held = Text(f"{place.base}_")
                self.body.append(f"{held!s} = tl.where(running, {value}, {holds[key(place)]})")
            self._stored(place, held)

    def _thin(self, operand: Value) -> bool:
        """Whether it stands for fewer rows or features than a program has."""
        if isinstance(operand, Place):
            return not operand.pitch or (key(operand) not in self._registers and self._everywhere(operand))
        return isinstance(operand, float)

    def _stored(self, place: Place, value: Text) -> None:
        self._registers[key(place)] = value
        if place.base in self._tensors or place.base in self.remote:
            self.store(place, format(value), self.body)

    def _read(self, operand: Value) -> Text:
        if isinstance(operand, fx.Node):
            return self._values[operand]
        if not isinstance(operand, Place):
            return Text(literal(operand))
        if operand.base == COUNT:
            count, sides = self._lanes(operand.shape), list(zip(operand.shape, operand.strides))
            numbers = f"({operand.offset} + {spread(f'n{count}', sides)}).to(S)"
            found = Text(self._named(numbers, self.before, "n_"))
        elif key(operand) in self._registers:
            found = self._registers[key(operand)]
        elif self._everywhere(operand):
            found = self._alone[operand.base]
        else:
            found = Text(self._loaded(operand))
        return Text(f"({found!s} != 0)", True) if operand.boolean and not found.boolean else found

    def _loaded(self, place: Place) -> str:
        if place.pitch and place.base not in self._written:
            return self.ahead(place)
        where = self.body if place.pitch else self.before
        return self._named(self.load(place, where), where, "m")

    def _named(self, text: str, where: list[str], letter: str) -> str:
        """A variable for a text, the same for the same."""
        if text not in self._texts:
            self._texts[text] = f"{letter}{len(self._texts)}"
            where.append(f"{self._texts[text]} = {text}")
        return self._texts[text]

    def _product(self, operation: Operation) -> None:
        (left,) = operation.operands
        assert isinstance(left, Place)
        (to,) = operation.stores
        right, K, N = self.lowered.packs[operation.expression]
        self.products.append((K, N))
        slices = dict(self._slices.get(to.base, {}))
        if to.base in self.remote or not slices:
            slices[key(to)] = to
        deep = min(self.blocks.deep, power(max(K, LEAST)))
        k = self._named(f"tl.arange(0, {deep})", self.before, "k")
        start = self._pointer(left, self.body, None)
        kind = "out_dtype=S"
        if self.blocks.precision != "bf16":
            kind = f'input_precision="{self.blocks.precision}", {kind}'
        cast = ".to(tl.bfloat16)" if self.blocks.precision == "bf16" else ""
        sums: dict[Key, str] = {}
        for first in range(0, K, deep):
            a = f"tl.load({start} + ({left.offset + first} + {k})[None, :], mask=here & ({k} < {K - first})[None, :]"
            a = self._named(f"{a}, other=0.0{self._fresh(left)}){cast}", self.body, "a")
            for name, place in slices.items():
                n = self._lanes(place.shape)
                down, over = right.strides
                w = f"tl.load({right.base} + {right.offset} + ({k} + {first})[:, None] * {down}"
                w += f" + ({place.offset - to.offset} + n{n}) * {over}"
                w += f", mask=({k} < {K - first})[:, None] & of{n}, other=0.0){cast}"
                if w not in self._texts:
                    size = BYTES.get(self.blocks.precision, self.lowered.itemsize)
                    self._held += deep * self._block(place.shape) * size
                w = self._named(w, self.before if self._held <= self.blocks.held else self.body, "w")
                before = f"{sums[name]}, " if name in sums else ""
                sums[name] = self._named(f"tl.dot({a}, {w}, {before}{kind})", self.body, "d")
        self._registers |= {name: Text(value) for name, value in sums.items()}
        if to.base in self.remote:
            self._stored(to, self._registers[key(to)])

    def _reduce(self, operation: Operation) -> None:
        (source,) = operation.operands
        assert isinstance(source, Place)
        (to,), count = kept(operation), math.prod(operation.shape[k] for k in operation.reduced)
        own = tuple(s for k, s in enumerate(source.strides) if k not in operation.reduced)
        along = [(operation.shape[k], source.strides[k]) for k in operation.reduced]
        start, combine = self._pointer(source, self.body, None), COMBINE[operation.kind]
        value = Text(f"r{len(self._texts)}_{to.base}")
        if to.base in self._single:
            r = self._named(f"tl.arange(0, {power(count)})[None, :]", self.before, "k")
            tile = f"tl.load({start} + {source.offset} + {spread(r, along)}, mask=here & ({r} < {count}), "
            tile += f"other={START[operation.kind]}{self._fresh(source)})"
            self.body.append(f"{value!s} = tl.reduce({tile}, 1, {combine})[:, None]")
            self._alone[to.base] = value
        else:
            n = self._lanes(to.shape)
            self.body.append(f"{value!s} = tl.full({self._tile(to.shape)}, {START[operation.kind]}, S)")
            self.body.append(f"for r in range({count}):")
            place = f"{start} + {source.offset} + {spread(f'n{n}', list(zip(to.shape, own)))} + {spread('r', along)}"
            load = f"tl.load({place}, mask=in{n}, other=0.0{self._fresh(source)})"
            self.body.append(f"    {value!s} = {combine}({value!s}, {load})")
            self.turns += count
        if to.base in self._single and to.base in self.remote:
            value = Text(f"{value!s} + {self.zeros(to.shape)}")
        self._stored(to, value)

    def _gather(self, operation: Operation) -> str:
        """The numbers at positions along a dimension, NaN where there is none."""
        source, index = operation.operands
        assert isinstance(source, Place)
        (d,), n = operation.reduced, f"n{self._lanes(operation.shape)}"
        position = f"tl.full([1, 1], {index}, S)" if isinstance(index, float) else self._read(index)
        inside = f"({position} >= 0) & ({position} < {source.shape[d]})"
        at = f"{self._pointer(source, self.body, None)} + {source.offset} + {outside(d, n, operation.shape, source)}"
        at += f" + {position}.to(tl.int32) * {source.strides[d]}"
        mask = f"{'in' if source.pitch else 'of'}{n[1:]} & {inside}"
        return f'tl.where({inside}, tl.load({at}, mask={mask}, other=0.0{self._fresh(source)}), float("nan"))'

    def _in_order(self, operation: Operation) -> None:
        """Numbers that are added at positions, or to all behind them: each program looks at all, for its own."""
        (to,), n = kept(operation), self._lanes(operation.stores[0].shape)
        value = Text(f"r{len(self._texts)}_{to.base}")
        if operation.kind == "scatter":
            (d,), start = operation.reduced, format(self._read(to))
            sources = [expanded(p, operation.shape) for p in operation.operands[1:] if isinstance(p, Place)]
        else:
            order = in_memory(operation.stores[0])
            d, start = order.index(len(order) - 1), f"tl.full({self._tile(to.shape)}, {START[operation.expression]}, S)"
            sources = [permuted(p, order) for p in operation.operands if isinstance(p, Place)]
        own = f"n{n} // {math.prod(to.shape[d + 1 :])} % {to.shape[d]}"
        loads = []
        for p in sources:
            at = f"{self._pointer(p, self.body, None)} + {p.offset} + {outside(d, f'n{n}', to.shape, p)}"
            loads.append(f"tl.load({at} + r * {p.strides[d]}, mask=in{n}, other=0.0{self._fresh(p)})")
        chosen = f"{loads[0]} == {own}" if operation.kind == "scatter" else f"r <= {own}"
        combined = f"{COMBINE[operation.expression or 'sum']}({value!s}, {loads[-1]})"
        self.body += [f"{value!s} = {start}", f"for r in range({sources[0].shape[d]}):"]
        self.body.append(f"    {value!s} = tl.where({chosen}, {combined}, {value!s})")
        self.turns += sources[0].shape[d]
        self._stored(to, value)

    def _lanes(self, shape: tuple[int, ...]) -> int:
        """How many numbers a row of this shape has; the kernel is told which of them are a program's."""
        count, block = math.prod(shape), self._block(shape)
        if f"n{count}" not in self._texts:
            self._texts[f"n{count}"] = f"n{count}"
            self.before += [
                f"n{count} = (tl.program_id(0) * {block} + tl.arange(0, {block}))[None, :]",
                f"of{count} = n{count} < {count}",
                f"in{count} = here & of{count}",
            ]
        return count

    def _block(self, shape: tuple[int, ...]) -> int:
        return max(LEAST, power(-(-math.prod(shape) // self.blocks.parts)))

    def _tile(self, shape: tuple[int, ...]) -> str:
        return f"[{self.blocks.rows}, {self._block(shape)}]"

    def _address(self, place: Place, where: list[str], time: str | None) -> str:
        n = f"n{self._lanes(place.shape)}"
        columns = n if dense(place) else spread(n, list(zip(place.shape, place.strides)))
        return f"{self._pointer(place, where, time)} + ({place.offset} + {columns})"

    def _pointer(self, place: Place, where: list[str], time: str | None) -> str:
        """Where a program's rows of a tensor begin at a time step."""
        pitch = abs(place.pitch)
        if not pitch:
            return place.base
        if place.base in self._tensors:
            time = self._times.get(place.base, "t") if time is None else time
            text = f"{self._tensors[place.base]} + long * {time} * {pitch} + row * {pitch}"
        else:  # of two, in turn, so that nobody writes to what another still reads
            if place.base not in self._starts:
                self._starts[place.base] = self.width
                self.width += 2 * pitch
            text = f"scratch + long * ({self._starts[place.base]} + (t & 1) * {pitch}) + row * {pitch}"
        return self._named(text, where, "p")
