"""From recurrence to scan to chunk: how linear cells run in parallel, counted, and what the engine makes of them.

Shapes: T time steps, C steps of a chunk, B sequences, K keys, V values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from math import isqrt
from typing import Any, NamedTuple

import torch
from markupsafe import Markup
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rnnzoo import engine, registry
from rnnzoo.cell import Cell
from rnnzoo.engine import linear_scan, matrix, reference
from rnnzoo.engine import scan as affine
from rnnzoo.engine.plan import describe, plan
from rnnzoo.errors import UserError
from rnnzoo.explain import chart
from rnnzoo.explain.essays.page import Essay, Found

LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SHOWN = 1024
"""Time steps of the table."""

EXAMPLES = ("lstm", "gru", "indrnn", "qrnn", "min_gru", "lru", "s5", "delta_net")
"""Cells whose kind is told."""

MEMORIES = ("retention", "gla", "delta_net", "mlstm")
"""Cells with a matrix memory."""

MEMORY = 32, 32, 256, 31 / 32
"""Keys, values, time steps and decay of the memory that is cut into chunks."""


class Step(NamedTuple):
    """h ↦ a h + b, and how many compositions, one waiting for the other, it took to make."""

    a: float
    b: float
    depth: int = 0


class Counter:
    """Composes steps and counts how often."""

    def __init__(self) -> None:
        self.work = 0

    def __call__(self, first: Step, then: Step) -> Step:
        """`first`, then `then`, in one step."""
        self.work += 1
        return Step(then.a * first.a, then.a * first.b + then.b, 1 + max(first.depth, then.depth))


def loop(steps: Sequence[Step], compose: Counter) -> list[Step]:
    """Prefixes one after another."""
    found = [steps[0]]
    for step in steps[1:]:
        found.append(compose(found[-1], step))
    return found


def doubling(steps: Sequence[Step], compose: Counter) -> list[Step]:
    """Hillis & Steele 1986: in every round each takes in what lies twice as far back as before."""
    found, reach = list(steps), 1
    while reach < len(found):
        found = [compose(found[t - reach], step) if t >= reach else step for t, step in enumerate(found)]
        reach *= 2
    return found


def tree(steps: Sequence[Step], compose: Counter) -> list[Step]:
    """Blelloch 1990: pairs are one step each; scan these; what lies between follows from its left neighbour."""
    if len(steps) == 1:
        return list(steps)
    pairs = tree([compose(first, then) for first, then in zip(steps[::2], steps[1::2])], compose)
    return [
        steps[0] if t == 0 else pairs[t // 2] if t % 2 else compose(pairs[t // 2 - 1], step)
        for t, step in enumerate(steps)
    ]


def chunked(steps: Sequence[Step], compose: Counter) -> list[Step]:
    """√(T/3) steps a chunk: scan each chunk, then the chunks one after another, then put before each what precedes."""
    size = isqrt(len(steps) // 3)
    chunks = [loop(steps[start : start + size], compose) for start in range(0, len(steps), size)]
    ends = loop([chunk[-1] for chunk in chunks], compose)
    later = [[compose(end, step) for step in chunk[:-1]] for end, chunk in zip(ends, chunks[1:])]
    return [*chunks[0], *(step for chunk, end in zip(later, ends[1:]) for step in (*chunk, end))]


WAYS: dict[str, Callable[[Sequence[Step], Counter], list[Step]]] = {
    "loop": loop, "chunked": chunked, "tree": tree, "doubling": doubling,
}  # fmt: skip


class Scanned(NamedTuple):
    """How many compositions wait for each other, how many there are, and the largest difference to the loop."""

    depth: int
    work: int
    difference: float


def count(way: str, length: int) -> Scanned:
    """Run one of the ways on random steps."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(length, 2, generator=generator, dtype=torch.float64)
    steps = [Step(math.tanh(a), b) for a, b in numbers.tolist()]
    compose = Counter()
    found = WAYS[way](steps, compose)
    h, difference = 0.0, 0.0
    for step, prefix in zip(steps, found):
        h = step.a * h + step.b
        difference = max(difference, abs(h - prefix.b))  # from h = 0
    return Scanned(max(step.depth for step in found), compose.work, difference)


def memory(q: Tensor, k: Tensor, v: Tensor, decay: float, chunk: int) -> Tensor:
    """o_t = S_t q_t with S_t = decay · S_{t-1} + v_t k_tᵀ from S_0 = 0, chunk by chunk; q, k [T, K], v [T, V].

    A chunk of one step is the recurrence, one of T steps is attention.
    """
    S = v.new_zeros(v.shape[1], k.shape[1])
    steps = torch.arange(chunk)
    passed = (steps[:, None] - steps).clamp(min=0)  # from each step to each later one
    mask = torch.where(steps[:, None] >= steps, v.new_tensor(decay) ** passed, 0)
    kept = (v.new_tensor(decay) ** (steps + 1))[:, None]
    out = []
    for Q, K, V in zip(q.split(chunk), k.split(chunk), v.split(chunk)):
        out.append(((Q @ K.T) * mask) @ V + kept * (Q @ S.T))
        S = decay**chunk * S + V.T @ (kept.flip(0) / decay * K)
    return torch.cat(out)


class Chunk(NamedTuple):
    """A memory read in chunks of `size` steps: how many wait for each other, multiply-adds a step, the difference."""

    size: int
    waits: int
    work: float
    difference: float


def chunks() -> list[Chunk]:
    keys, values, T, decay = MEMORY
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(T, n, generator=generator, dtype=torch.float64) for n in (keys, keys, values))
    S, exact = torch.zeros(values, keys, dtype=torch.float64), []
    for t in range(T):
        S = decay * S + torch.outer(v[t], k[t])
        exact.append(S @ q[t])
    found = []
    for size in (2**n for n in range(T.bit_length())):
        with FlopCounterMode(display=False) as counter:
            out = memory(q, k, v, decay, size)
        difference = float((out - torch.stack(exact)).abs().max())
        found.append(Chunk(size, T // size, counter.get_total_flops() / 2 / T, difference))
    return found


def made(name: str) -> Cell:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return registry.get(name)(16, 32)


def solved(name: str) -> tuple[str, str]:
    """How the engine solves a cell's states, and what it has against it where it does not."""
    cell = made(name)
    try:
        found = affine.prepare(cell)
    except UserError as error:
        return "", str(error)
    return ", ".join(" + ".join(state.partition("_")[2] for state in solution.states) for solution in found), ""


def checked(name: str = "min_gru", steps: int = 200) -> float:
    """The largest difference between the engine's scan and the plain loop, in double precision."""
    cell = made(name).double()
    x = torch.randn(steps, 3, cell.input_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        first, second = (run(cell, x, cell.initial_state(x[0]))[0] for run in (affine.run, reference.run))
    return float((first - second).abs().max())


@cache
def found() -> dict[str, Any]:
    counts = {way: {length: count(way, length) for length in LENGTHS} for way in WAYS}
    return {
        "ways": {way: of_length[SHOWN] for way, of_length in counts.items()},
        "counts": counts,
        "shown": SHOWN,
        "examples": [(name, engine.kind(made(name)).partition(",")[0], *solved(name)) for name in EXAMPLES],
        "checked": checked(),
        "plans": {name: "\n".join(describe(plan(made(name)))) for name in ("min_gru", "lstm")},
        "chunk": linear_scan._chunk_length(SHOWN, torch.zeros(1, 32)),
        "chunks": chunks(),
        "memories": [(name, matrix.memory(made(name)).describe()) for name in MEMORIES],
        "memory": dict(zip(("keys", "values", "steps", "decay"), MEMORY)),
    }


def pictures(say: Any, found: Found) -> Found:
    def lines(values: dict[str, list[tuple[float, float]]], x: str, y: str, title: str) -> Markup:
        return Markup(chart.lines(values, x, y, title, log=True))

    by_length = {
        getattr(say, f"scan_{way}")(): [(math.log2(length), float(c.depth)) for length, c in of_length.items()]
        for way, of_length in found["counts"].items()
    }
    sizes: list[Chunk] = found["chunks"]
    by_size = {
        say.scan_work(): [(math.log2(c.size), c.work) for c in sizes],
        say.scan_waits(): [(math.log2(c.size), float(c.waits)) for c in sizes],
    }
    return {
        "depth_chart": lines(by_length, "log₂ T", say.scan_depth(), say.scan_depth_chart()),
        "chunk_chart": lines(by_size, "log₂ C", say.scan_number(), say.scan_chunk_chart()),
    }


ESSAY = Essay("scan", "essay_scan.html", found, pictures)
