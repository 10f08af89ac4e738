"""A plan as the text of C++ functions: loops over time, and over blocks of rows; `loops.py` writes what is in them.

`recur` runs a sequence for inference, `step` also saves what the backward pass needs, `back` is the backward pass.
Shapes: T time steps, B batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx

from rnnzoo.engine.derive import Derived
from rnnzoo.engine.loops import pitch, statements
from rnnzoo.engine.lower import Lowering
from rnnzoo.engine.places import Place, Unsupported, shape_of
from rnnzoo.engine.plan import Plan
from rnnzoo.engine.trace import aten, inputs, outputs

TYPES = {torch.float32: "float", torch.float64: "double"}


@dataclass(frozen=True)
class Source:
    """The C++ of a plan, and where its tensors are to lie.

    `homes`: for each saved tensor the leaf and the first feature of it whose place it takes, or None.
    `reused`: for each leaf, whether its gradient may take its place.
    """

    text: str
    homes: tuple[tuple[int, int] | None, ...]
    reused: tuple[bool, ...]


def write(plan: Plan, half: bool = False) -> Source:
    """The C++ of a plan, its products of numbers rounded to bfloat16 if `half`.

    Raises `Unsupported` for what has no C++ form.
    """
    dtype = inputs(plan.recur)[0].meta["val"].dtype
    if dtype not in TYPES:
        raise Unsupported(f"numbers of {dtype}")
    homes = _homes(plan)
    given, results = parameters(plan, plan.summed)
    back, reused = _backward(plan, homes, given, results)
    recur = _forward("recur", plan, plan.summed.infer, ())
    step = _forward("step", plan, plan.summed.step, homes)
    return Source(text(dtype, [header("kernel.h"), recur, step, back], half), homes, reused)


def header(name: str) -> str:
    """C++ that is as it is written."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def text(dtype: torch.dtype, pieces: Sequence[str], half: bool = False) -> str:
    """The pieces of a kernel on numbers of this type, from `kernel.h` on."""
    return "\n".join([*(["#define HALF"] if half else []), f"using S = {TYPES[dtype]};", *pieces, ""])


def parameters(plan: Plan, derived: Derived) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a backward pass is given and what results, by name.

    Given: `out_h` (the gradient of all values of state h, or none), `end_h` (of its last value, or none), then what the
    graph `back` reads, where `h` is all values of the state, the initial one first. Results: `d_h` [B, ...] for each
    state, `d_leaf0`, ..., `kept0`, ..., and `total0`, ..., zero at first, one of each for every thread.
    """
    read = [str(n.target) for n in inputs(derived.back) if not str(n.target).startswith("d_new_")]
    read = list(dict.fromkeys(name.removeprefix("new_") for name in read))
    given = [f"out_{s}" for s in plan.states] + [f"end_{s}" for s in plan.states] + read
    results = [f"d_{s}" for s in plan.states] + [f"d_leaf{k}" for k in range(len(outputs(plan.project)))]
    results += [f"kept{k}" for k in range(derived.kept)]
    return tuple(given), (*results, *(f"total{k}" for k in sorted(set(derived.totals))))


def _place(node: fx.Node, home: Place | None = None) -> Place:
    """Where a placeholder's value lies, shared tensors the same for all rows."""
    label = str(node.target)
    return Place.dense(label, shape_of(node), 0 if label.startswith("shared") else home.pitch if home else None)


def _homes(plan: Plan) -> tuple[tuple[int, int] | None, ...]:
    """Places in the leaves for what is saved: where a leaf is read for the last time, something may be written."""
    graph, count = plan.summed.step, len(plan.states)
    read = {str(n.target) for g in (plan.summed.back, plan.summed.defer) for n in inputs(g)}
    products = (aten.mm.default, aten.addmm.default)  # autograd does not need their results again
    alone = [n.target in products and len(n.users) == 1 for n in outputs(plan.project)]
    own = {f"leaf{k}": k for k, free in enumerate(alone) if free and f"leaf{k}" not in read}
    labels = [*(f"new_{s}" for s in plan.states), *(f"saved{k}" for k in range(plan.summed.saved))]
    wanted = [Place.dense(label, shape_of(node)) for label, node in zip(labels, outputs(graph))]
    lowered = Lowering(graph, {str(n.target): _place(n) for n in inputs(graph)}, list(wanted))
    reads = [p for o in lowered.operations.values() for p in o.operands if isinstance(p, Place) and p.base in own]
    taken: dict[tuple[int, int], int] = {}
    homes: list[tuple[int, int] | None] = []
    for place in wanted[count:]:
        home = None
        for candidate in reads:
            spot = (own[candidate.base], candidate.offset)
            free = all(
                leaf != spot[0] or start >= spot[1] + place.pitch or start + size <= spot[1]
                for (leaf, start), size in taken.items()
            )
            fits = candidate.shape == place.shape and candidate.strides == place.strides
            if fits and free and not lowered.clobbers({place.base: spot[1]}, {candidate.base: 0}):
                home = spot
                taken[spot] = place.pitch
                break
        homes.append(home)
    return tuple(homes)


def _saved(plan: Plan, homes: tuple[tuple[int, int] | None, ...], k: int, node: fx.Node) -> Place:
    """Where the saved tensor `k` lies."""
    home = homes[k]
    pitch = None if home is None else math.prod(shape_of(outputs(plan.project)[home[0]]))
    return Place.dense(f"saved{k}", shape_of(node), pitch)


def _pointer(place: Place, number: int, time: str = "t") -> str:
    """C++ that finds a block's rows at one time step."""
    where = "" if place.base.startswith("shared") else f" + ({time} * B + first) * {place.pitch}"
    return f"S* {place.base} = p[{number}]{where};"


def _forward(name: str, plan: Plan, graph: fx.Graph, homes: tuple[tuple[int, int] | None, ...]) -> str:
    states = plan.states
    places = {str(node.target): _place(node) for node in inputs(graph)}
    results = [Place.dense(f"new_{s}", places[s].shape) for s in states]
    results += [_saved(plan, homes, k, node) for k, node in enumerate(outputs(graph)[len(states) :])]
    pointers = []
    for k, place in enumerate([*places.values(), *results[len(states) :]]):
        if place.base in states:  # of states that nobody asks for, only the last two values are kept
            wrap = f"wrap[{states.index(place.base)}]"
            pointers.append(_pointer(place, k, f"(t % {wrap})"))
            pointers.append(_pointer(Place.dense(f"new_{place.base}", place.shape), k, f"((t + 1) % {wrap})"))
        else:
            pointers.append(_pointer(place, k))
    lowered = Lowering(graph, places, list(results))
    hold = [f"hold(rows, {places[s].pitch}, lengths + first, t, {s}, new_{s});" for s in states]
    step = ["for (int64_t t = 0; t < T; ++t) {", *pointers, statements(lowered), "if (lengths) {", *hold, "}", "}"]
    return _function(name, lowered, {label: k for k, label in enumerate(places)}, [], step)


def _backward(
    plan: Plan, homes: tuple[tuple[int, int] | None, ...], given: tuple[str, ...], results: tuple[str, ...]
) -> tuple[str, tuple[bool, ...]]:
    graph, states = plan.summed.back, plan.states
    number = {name: k for k, name in enumerate([*given, *results])}
    nodes = {str(n.target): n for n in [*inputs(plan.recur), *inputs(graph)]}
    places, pointers = {}, []
    for node in inputs(graph):
        label = str(node.target)
        place = _saved(plan, homes, int(label[5:]), node) if label.startswith("saved") else _place(node)
        places[label] = place
        if not label.startswith("d_new_"):
            new = label.startswith("new_") and label not in states
            pointers.append(
                _pointer(place, number[label.removeprefix("new_") if new else label], "(t + 1)" if new else "t")
            )
    wanted = []
    labels = [label for label in results if not label.startswith("total")]
    for label, output in zip(labels, outputs(graph)):
        wanted.append(Place.dense(label, shape_of(nodes[label[2:]] if output is None else output)))
        if label[2:] not in states:
            pointers.append(_pointer(wanted[-1], number[label]))
    totals = {}
    for k, node in zip(plan.summed.totals, outputs(graph)[len(labels) :]):
        totals[f"total{k}"] = Place.dense(f"total{k}", shape_of(node), 0)
        wanted.append(totals[f"total{k}"])
    lowered = Lowering(graph, places, wanted)

    start, before, after, end, extra = [], [], [], [], []
    for label, place in totals.items():  # each thread has blocks of rows one after the other
        share = f"block / (blocks / threads) * {math.prod(place.shape)}"
        start.append(f"S* {label} = p[{number[label]}] + {share};")
    for s in states:
        n, out, last = places.get(s, _place(nodes[s])).pitch, number[f"out_{s}"], number[f"end_{s}"]
        bytes = f"rows * {n} * sizeof(S)"
        extra += [(f"d_new_{s}", n), (f"d_{s}", n), (f"held_{s}", n)]
        start.append(f"if (p[{last}]) std::memcpy(d_new_{s}, p[{last}] + first * {n}, {bytes});")
        start.append(f"else std::memset(d_new_{s}, 0, {bytes});")
        before.append(f"if (p[{out}]) add(rows * {n}, p[{out}] + (t * B + first) * {n}, d_new_{s});")
        before.append(f"if (lengths) std::memcpy(held_{s}, d_new_{s}, {bytes});")
        before.append(f"if (lengths) clear(rows, {n}, lengths + first, t, d_new_{s});")
        after.append(f"if (lengths) hold(rows, {n}, lengths + first, t, held_{s}, d_{s});")
        after.append(f"std::swap(d_new_{s}, d_{s});")
        end.append(f"std::memcpy(p[{number[f'd_{s}']}] + first * {n}, d_new_{s}, {bytes});")
    loop = [
        *start,
        "for (int64_t t = T - 1; t >= 0; --t) {",
        *pointers,
        *before,
        statements(lowered),
        *after,
        "}",
        *end,
    ]
    return _function("back", lowered, number, extra, loop), _reused(plan, homes, lowered)


def _reused(plan: Plan, homes: tuple[tuple[int, int] | None, ...], lowered: Lowering) -> tuple[bool, ...]:
    """For each leaf whether its gradient may be written where it, or what was saved in its place, lay."""
    later = {str(n.target) for n in inputs(plan.summed.defer)}
    reused = []
    for k in range(len(outputs(plan.project))):
        inside = {f"saved{j}": home[1] for j, home in enumerate(homes) if home is not None and home[0] == k}
        free = bool(inside) and not later & (inside.keys() | {f"leaf{k}"})
        reused.append(free and not lowered.clobbers({f"d_leaf{k}": 0}, inside))
    return tuple(reused)


def _function(
    name: str, lowered: Lowering, shared: dict[str, int], extra: list[tuple[str, int]], step: list[str]
) -> str:
    """A C++ function over blocks of rows, with packed matrices and scratch memory."""
    buffers = [(n, pitch(place)) for n, place in lowered.scratches.items()] + [(n, str(size)) for n, size in extra]
    most_rows = max((o.shape[0] for o in lowered.operations.values() if o.kind == "products"), default=1)
    widest = max((K + K % 2 for _, K, _ in lowered.packs.values()), default=0) * most_rows
    buffers.append(("halves", str(widest)))  # a row of numbers rounded
    total = " + ".join(f"rows_at_most * {size}" for _, size in buffers) or "0"
    carved = [f"S* {n} = memory; memory += rows_at_most * {size};" for n, size in buffers]
    allocations, packing, frees = [], [], []
    for k, (pack, (place, K, N)) in enumerate(lowered.packs.items()):
        allocations.append(f"S* {pack} = kept && kept[{k}] ? kept[{k}] : allocate({K + K % 2} * padded({N}));")
        down, right = place.strides
        matrix = f"p[{shared[place.base]}] + {place.offset}"
        packing.append(f"if (!kept || !kept[{k}]) PACK({matrix}, {K}, {N}, {down}, {right}, {pack});")
        frees.append(f"if (kept) kept[{k}] = {pack}; else std::free({pack});")
    # with products, many rows share what is fetched of a matrix; without, few rows stay in the nearest cache
    most = 96 if lowered.packs else 8
    return "\n".join([
        f'extern "C" void {name}(',
        "int64_t T, int64_t B, int64_t threads, const int64_t* wrap, const int64_t* lengths, S* const* p, S** kept) {",
        f"int64_t blocks = threads * ((B + threads * {most} - 1) / (threads * {most}));",
        "int64_t rows_at_most = (B + blocks - 1) / blocks;",
        *allocations,
        "#pragma omp parallel num_threads(threads)",
        "{",
        *packing,
        f"S* const own = allocate({total});",
        "#pragma omp for schedule(static)",
        "for (int64_t block = 0; block < blocks; ++block) {",
        "const int64_t first = block * rows_at_most;",
        "const int64_t rows = B - first < rows_at_most ? B - first : rows_at_most;",
        "if (rows <= 0) continue;",
        "S* memory = own;",
        *carved,
        *step,
        "}",
        "RELEASE;",
        "std::free(own);",
        "}",
        *frees,
        "}",
    ])  # fmt: skip
