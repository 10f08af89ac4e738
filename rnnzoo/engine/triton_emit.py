"""A plan as the text of Triton kernels that walk through all time steps.

A program keeps a block of rows and a part of their features: states stay in its registers from step to step, products
are made slice by slice, just for its own features. What a program reads of other features (the left side of a product,
a sum over features) goes through memory, after all programs of these rows have met; a step that has nothing of the kind
needs no meeting. With all features in one program a meeting is a barrier of its threads.

Shapes: T time steps, B batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from rnnzoo.engine.emit import parameters
from rnnzoo.engine.places import Place, Unsupported, shape_of
from rnnzoo.engine.plan import Plan
from rnnzoo.engine.trace import inputs, outputs
from rnnzoo.engine.triton_blocks import Blocks
from rnnzoo.engine.triton_forms import TritonLowering
from rnnzoo.engine.triton_places import key
from rnnzoo.engine.triton_text import Function

TYPES = {torch.float32: "tl.float32", torch.float64: "tl.float64"}

FORWARDS, BACKWARDS = ("0", "(t + 1)", "(t + 1 < steps)"), ("(T - 1)", "(t - 1)", "(T - t < steps)")

HEAD = """import triton
import triton.language as tl

from rnnzoo.engine.triton_functions import (
    expm1, fmod, largest, log1p, meet, nearest, plus, remainder, sigmoid, smallest, tanh, times, toward_zero,
)

S = tl.constexpr({})
"""


@dataclass(frozen=True)
class Source:
    """Triton's text, and how many numbers a row its scratch memory takes.

    Of a time step forwards and one backwards: how often programs of a row `meet`, the matrices of its `products`, and
    how often loops within it turn.
    """

    text: str
    scratch: int
    meets: tuple[int, int]
    products: tuple[list[tuple[int, int]], list[tuple[int, int]]]
    turns: tuple[int, int]


def write(plan: Plan, blocks: Blocks) -> Source:
    """The Triton of a plan. Raises `Unsupported` for what has no form in Triton."""
    dtype = inputs(plan.recur)[0].meta["val"].dtype
    if dtype not in TYPES:
        raise Unsupported(f"numbers of {dtype}")
    recur = _forward("recur", plan, plan.derived.infer, blocks)
    step = _forward("step", plan, plan.derived.step, blocks)
    back = _backward(plan, blocks)
    text = HEAD.format(TYPES[dtype]) + "\n".join([recur[0], step[0], back[0], ""])
    scratch = max(function.width for _, function in (recur, step, back))
    ways = step[1], back[1]
    meets, products, turns = ([getattr(way, name) for way in ways] for name in ("meets", "products", "turns"))
    return Source(text, scratch, (meets[0], meets[1]), (products[0], products[1]), (turns[0], turns[1]))


def _loop(index: str, blocks: Blocks) -> str:
    """The loop over time, in which loads are begun so many steps ahead as `blocks` says, if nobody waits for them."""
    times = "range(T)" if blocks.stages == 1 else f"tl.range(0, T, num_stages={blocks.stages})"
    return f"for {index} in {times}:"


def _place(node: fx.Node) -> Place:
    """Where a placeholder's value lies, shared tensors the same for all rows."""
    label = str(node.target)
    return Place.dense(label, shape_of(node), 0 if label.startswith("shared") else None)


def _forward(name: str, plan: Plan, graph: fx.Graph, blocks: Blocks) -> tuple[str, Function]:
    states = plan.states
    places = {str(node.target): _place(node) for node in inputs(graph)}
    new = [Place.dense(f"new_{s}", places[s].shape) for s in states]
    saved = [Place.dense(f"saved{k}", shape_of(node)) for k, node in enumerate(outputs(graph)[len(states) :])]
    lowered = TritonLowering(graph, places, [*new, *saved])
    pointers = [*places, *(place.base for place in saved)]
    # of states that nobody asks for, only the last two values are kept
    times = {s: f"(t % wrap_{s})" for s in states} | {f"new_{s}": f"((t + 1) % wrap_{s})" for s in states}
    tensors = {name: name for name in pointers} | {f"new_{s}": s for s in states}
    made = Function(lowered, blocks, tensors, times, [places[s] for s in states], new, FORWARDS)
    for s in states:
        made.before.append(f"old_{s} = {made.load(places[s], made.before, '0')}")
        made.keep(places[s], f"old_{s}")
    made.body.append("running = t < length")
    made.operations({key(place): f"old_{s}" for s, place in zip(states, new)})
    after = []
    for s, place in zip(states, new):
        value = made.whole(place)
        if place.base in made.remote and value != f"{place.base}_":
            value = f"tl.where(running, {value}, old_{s})"
            made.store(place, value, made.body)
        after.append(f"old_{s} = {value}")
    made.body += after
    return made.text(name, pointers, [f"wrap_{s}" for s in states], _loop("t", blocks)), made


def _backward(plan: Plan, blocks: Blocks) -> tuple[str, Function]:
    graph, states = plan.derived.back, plan.states
    given, results = parameters(plan, plan.derived)
    nodes = {str(n.target): n for n in [*inputs(plan.recur), *inputs(graph)]}
    places = {str(node.target): _place(node) for node in inputs(graph)}
    tangents = [Place.dense(f"d_new_{s}", shape_of(nodes[s])) for s in states]
    wanted = [Place.dense(f"back_{s}", place.shape) for s, place in zip(states, tangents)]
    absent: list[Place] = []
    for label, node in list(zip(results, outputs(graph)))[len(states) :]:
        wanted.append(Place.dense(label, shape_of(nodes[label[2:]] if node is None else node)))
        absent += [wanted[-1]] if node is None else []
    lowered = TritonLowering(graph, places, list(wanted))
    pointers = [*given, *results]
    tensors = {name: name for name in pointers} | {f"new_{s}": s for s in states}
    times = {f"new_{s}": "(t + 1)" for s in states} | {f"out_{s}": f"t * far_{s}" for s in states}
    found = [place for place, node in zip(wanted[: len(states)], outputs(graph)) if node is not None]
    made = Function(lowered, blocks, tensors, times, tangents, found, BACKWARDS)
    made.body += ["t = T - 1 - i", "running = t < length"]
    for s, place in zip(states, tangents):
        end, out = Place.dense(f"end_{s}", place.shape), Place.dense(f"out_{s}", place.shape)
        made.before.append(f"own_{s} = {made.load(end, made.before, '0')}")
        made.body.append(f"own_{s} += {made.ahead(out)}")
        made.body.append(f"d_{s}_ = tl.where(running, own_{s}, 0.0)")
        made.keep(place, f"d_{s}_")
    made.operations({})
    for s, place, node in zip(states, wanted, outputs(graph)):
        value = made.zeros(place.shape) if node is None else made.whole(place)
        made.body.append(f"own_{s} = tl.where(running, {value}, own_{s})")
        made.store(Place.dense(f"d_{s}", place.shape), f"own_{s}", made.after, "0")
    for place in absent:
        made.store(place, made.zeros(place.shape), made.body)
    return made.text("back", pointers, [f"far_{s}" for s in states], _loop("i", blocks)), made
