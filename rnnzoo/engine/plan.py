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
import weakref
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from rnnzoo.cell import Cell
from rnnzoo.engine.derive import Derived, derive, upright
from rnnzoo.engine.forget import forget_shapes
from rnnzoo.engine.gradients import applied
from rnnzoo.engine.operations import REDUCTIONS
from rnnzoo.engine.reads import Reads
from rnnzoo.engine.rehearsal import obstacle
from rnnzoo.engine.rewrite import CHANGES, INPUT, MM, Parts
from rnnzoo.engine.trace import (
    Tracer,
    ancestors,
    args_of,
    aten,
    author,
    extract,
    inputs,
    is_size,
    kind_of,
    outputs,
    reason,
    recomputable,
    rows_first,
    sample,
    tensors,
    trace_step,
)  # fmt: skip
from rnnzoo.errors import UserError

OTHERWISE = "; use engine=reference"

OUTPUT = "read"
"""What the output is called where it is a state."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A cell's step taken apart; the graphs are described at the top of this module.

    Placeholders carry a weight's name, a state's (`s0_h`, `s1_c`), or `x`, `outer0` (what `project` needs of
    `prepare`), `leaf0`, `shared0`; for those of `step`, `back` and `defer` see `Derived`. `states` are the names of
    the states there. `whole` is a step as it was traced, its output after the new states, where there is a `readout`
    that can be traced.
    """

    name: str
    states: tuple[str, ...]
    weights: tuple[str, ...]
    merged: tuple[str, ...]
    prepare: fx.Graph
    project: fx.Graph
    recur: fx.Graph
    tracer: Tracer
    whole: fx.Graph | None = None

    @cached_property
    def derived(self) -> Derived:
        """The backward pass; see `Derived`. Raises `UserError` when the step cannot be differentiated."""
        return self._derive(summing=False) if self.summed.totals else self.summed

    @cached_property
    def summed(self) -> Derived:
        """The same for loops that sum up as they go."""
        return self._derive(summing=True)

    @cached_property
    def outward(self) -> Plan | None:
        """The same with the output as a first state, which nothing reads; None where there is no `whole`."""
        if self.whole is None:
            return None
        *new, output = outputs(self.whole)
        if output.meta["val"].dtype != new[0].meta["val"].dtype or not rows_first(output):
            return None
        names = ["x", OUTPUT, *self.states, *self.weights]
        graph = extract(dict(zip(inputs(self.whole), [names[0], *names[2:]])), [output, *new])
        with graph.inserting_before(inputs(graph)[1]):
            state = graph.placeholder(OUTPUT)
        state.meta["val"] = self.tracer.again(output)
        states = (OUTPUT, *self.states)
        parts, merged = rewrite(self.tracer, graph, names, len(states))
        return assemble(self.name, parts, states, self.weights, merged)

    def _derive(self, summing: bool) -> Derived:
        try:
            return derive(self.tracer, self.recur, len(outputs(self.project)), self.states, summing)
        except Exception as error:
            raise UserError(f"{self.name}.step cannot be differentiated: {reason(error)}{OTHERWISE}") from error


def describe(plan: Plan) -> list[str]:
    """A plan in a few lines: what runs when, what is saved, what is computed again."""
    derived = plan.summed
    step, back, defer = derived.step, derived.back, derived.defer
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
    lines.append(f"handed from the backward pass to the end: {derived.kept} tensors beside the input's gradient")
    if derived.totals:
        lines.append(f"summed up on the way: the gradients of {len(set(derived.totals))} weights")
    return lines


def _listed(nodes: list[fx.Node]) -> str:
    names = [getattr(node.target, "__name__", str(node.target)).partition(".")[0] for node in nodes]
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))


def own_gradients(cell: Cell) -> list[str]:
    """The names of the `torch.autograd.Function` that the step applies; none if it cannot be traced."""
    try:
        made = plan(cell)
    except UserError:
        return []
    return sorted({name for graph in (made.prepare, made.project, made.recur) for name in applied(graph)})


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
    key = (
        kind_of(cell), cell.input_size, cell.hidden_size, options, cell.modifier, cell.training,
        like.dtype, like.device.type, torch.get_default_dtype(),
    )  # fmt: skip
    shapes = [
        (t.shape, t.dtype) for group in (cell._parameters, cell._buffers) for t in group.values() if t is not None
    ]
    own = _plans.get(cell)
    if own is None:
        own = _plans[cell] = {}
    latest = own.get(cell.training)
    if latest is None or latest.key != key or latest.shapes != shapes or latest.reads.change(cell) is not None:
        latest = own[cell.training] = _find(cell, like, key, shapes, latest)
    if latest.plan is None:
        raise UserError(latest.error)
    return latest.plan


@dataclass(frozen=True)
class _Found:
    """A plan, or why there is none, for as long as all that it hangs on stays as it is."""

    key: Any
    shapes: list[Any]
    reads: Reads
    plan: Plan | None = None
    error: str = ""


KEPT = 64
"""So many plans are kept for cells to come; those that cells ran last are kept as long as these."""

OFTEN = 8
"""A cell whose plan must be made anew more often than this is not what plans are for."""

_plans: MutableMapping[Cell, dict[bool, _Found]] = weakref.WeakKeyDictionary()
_kept: list[_Found] = []  # the one used last stands last
_makes: MutableMapping[Cell, int] = weakref.WeakKeyDictionary()


def _find(cell: Cell, like: Tensor, key: Any, shapes: list[Any], before: _Found | None) -> _Found:
    """A plan that this cell had before, or that another one has, or a new one."""
    for found in _kept:
        if found.key == key and found.shapes == shapes and found.reads.change(cell) is None:
            _kept.remove(found)
            _kept.append(found)
            return found
    _makes[cell] = _makes.get(cell, 0) + 1
    if _makes[cell] > OFTEN:
        what = before and before.reads.change(cell)
        error = (
            f"{author(cell).__name__}: {what or 'a size or a hyperparameter'} has changed {OFTEN} times, and each time "
            "all is compiled anew; make it a buffer, or use engine=reference"
        )
        return _Found(key, shapes, Reads(kind_of(cell)), error=error)
    reads = Reads(kind_of(cell), cell)
    try:
        found = _Found(key, shapes, reads, _make(cell, like, reads))
    except Exception as error:  # kept as well: `auto` asks at every call
        planned = isinstance(error, UserError)
        text = str(error) if planned else f"{author(cell).__name__}.step cannot be planned: {reason(error)}{OTHERWISE}"
        found = _Found(key, shapes, reads, error=str(obstacle(cell) or text))
    finally:
        reads.forget()
    if len(_kept) >= KEPT:
        forget_shapes()
    _kept[:] = [*_kept[1 - KEPT :], found]
    return found


def _make(cell: Cell, like: Tensor, reads: Reads) -> Plan:
    tracer = Tracer()
    whole = None
    # an output that feeds nothing back is of interest to who would not store the states that it is read off
    if type(cell).readout is not Cell.readout:
        try:
            whole, weights = trace_step(cell, tracer, like, reads, readout=True)
        except UserError:
            tracer = Tracer()
    if whole is None:
        graph, weights = trace_step(cell, tracer, like, reads)
    else:
        graph = extract({n: str(n.target) for n in inputs(whole)}, outputs(whole)[:-1])
    # a label is no C++ keyword, and nothing else's name
    labels = tuple(f"s{k}_{name}" for k, name in enumerate(cell.state_names))
    parts, merged = rewrite(tracer, graph, ["x", *cell.state_names, *weights], len(cell.state_names))
    return assemble(author(cell).__name__, parts, labels, weights, merged, whole)


def rewrite(tracer: Tracer, graph: fx.Graph, names: Sequence[str], states: int) -> tuple[Parts, tuple[str, ...]]:
    """A graph of (x, states, weights), so called, with sums reordered and products merged; and what was merged."""
    merged: list[str] = []
    parts = Parts(tracer, upright(tracer, graph), names, states)
    for change in CHANGES:
        merged += change(parts)
        parts = Parts(tracer, extract(dict(zip(inputs(parts.graph), names)), outputs(parts.graph)), names, states)
    return parts, tuple(merged)


def assemble(
    name: str,
    parts: Parts,
    labels: tuple[str, ...],
    weights: tuple[str, ...],
    merged: tuple[str, ...] = (),
    whole: fx.Graph | None = None,
) -> Plan:
    """The plan of a graph of (x, states, weights) -> new states."""
    leaves, shared = _frontier(parts)
    x, *others = inputs(parts.graph)
    states, own = others[: parts.states], others[parts.states :]
    outer = [n for n in ancestors(leaves, stop=parts.constant) if parts.constant(n)]
    given = {node: f"leaf{k}" for k, node in enumerate(leaves)}
    given |= dict(zip(states, labels))
    given |= {node: f"shared{k}" for k, node in enumerate(shared)}
    return Plan(
        name=name,
        states=labels,
        weights=weights,
        merged=merged,
        prepare=extract(dict(zip(own, weights)), [*outer, *shared]),
        project=extract({x: "x"} | {node: f"outer{k}" for k, node in enumerate(outer)}, leaves),
        recur=extract(given, outputs(parts.graph)),
        tracer=parts.tracer,
        whole=whole,
    )


def _frontier(parts: Parts) -> tuple[list[fx.Node], list[fx.Node]]:
    """Where the loop begins: the leaves it takes at each time step, and the tensors it shares among all."""

    def stop(node: fx.Node) -> bool:
        if is_size(node):
            return True
        if node.target is aten.scalar_tensor.default:  # a number; as a shared tensor it would be given a gradient
            return False
        # a concatenation is recomputable, but inside the loop it would be a copy; leaves are rows; a matrix that is
        # summed up would be far larger outside
        rows = all(rows_first(operand) for operand in tensors(node))
        cheap = recomputable(node) and rows and node.target is not aten.cat.default
        sinks = node.op == "call_function" and (cheap or (node.target in REDUCTIONS and _of_matrix(node)))
        return parts.constant(node) or (parts.depends(node) == INPUT and not sinks)

    def _of_matrix(node: fx.Node) -> bool:
        return args_of(node)[0].meta["val"].dim() > 2

    found = [n for n in ancestors(outputs(parts.graph), stop) if not is_size(n) and stop(n)]
    leaves = [n for n in found if parts.depends(n) == INPUT]
    return leaves, [n for n in found if parts.constant(n)]
