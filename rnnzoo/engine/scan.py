"""Runs recurrences that are affine in the state, s' = a · s + b element by element, in parallel over time.

That a cell is one is seen from its plan: a and b are made from the graph of its step, by the rules of sums and products
of affine functions. Several states are solved one after another, so each may depend on itself and on those before it;
a state that does not depend on itself is just computed, at all time steps at once. All of it is ordinary
differentiable torch, and so is the solution (`linear_scan`).

A step may begin by putting something else in a state's place, as resets do. Then a and b are those of a state that was
so replaced, and the solution starts anew at such time steps.

Shapes: T time steps, B batch, N = T·B rows.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from rnnzoo.cell import Cell
from rnnzoo.engine.cpp import writable
from rnnzoo.engine.linear_scan import linear_scan
from rnnzoo.engine.plan import Plan, plan
from rnnzoo.engine.trace import (
    Tracer,
    ancestors,
    args_of,
    aten,
    effective,
    extract,
    has_rows,
    inputs,
    is_size,
    module,
    outputs,
    reason,
)
from rnnzoo.errors import UserError


class NotAffine(Exception):
    """Why a step is not affine in its state."""


Factor: TypeAlias = "fx.Node | float"


@dataclass(frozen=True)
class Solution:
    """How one state is solved.

    `run` takes what `reads` names and returns what of a and b is no number, or the state's value if it does not depend
    on its own past; `rows` says which of these differ from row to row. If the state may be `replaced`, where that
    happens, and by what, follow b.
    """

    state: str
    affine: bool
    replaced: bool
    numbers: tuple[float | None, ...]
    rows: tuple[bool, ...]
    run: fx.GraphModule
    reads: tuple[str, ...]


def refuses(cell: Cell) -> str | None:
    """Cells whose state does not enter affinely, element by element."""
    try:
        prepare(cell)
    except UserError as error:
        return str(error)
    return None


def prepare(cell: Cell, x: Tensor | None = None) -> list[Solution]:
    """How the states are solved, in order. Raises `UserError` when they cannot be."""
    made = plan(cell, x)
    if made not in _solutions:
        try:
            _solutions[made] = solve(made)
        except Exception as error:  # mostly NotAffine
            _solutions[made] = reason(error)
    found = _solutions[made]
    if isinstance(found, str):
        raise UserError(f"{made.name} is not affine in its state: {found}")
    return found


_solutions: weakref.WeakKeyDictionary[Plan, list[Solution] | str] = weakref.WeakKeyDictionary()


def solve(plan: Plan) -> list[Solution]:
    """The order in which states can be solved, and how. Raises `NotAffine`."""
    graph = extract({node: str(node.target) for node in inputs(plan.recur)}, outputs(plan.recur))  # to be added to
    given = {str(node.target): node for node in inputs(graph)}
    new = dict(zip(plan.states, outputs(graph)))
    reads = {s: {n for n in plan.states if given[n] in ancestors([new[s]])} for s in plan.states}
    solutions: list[Solution] = []
    while len(solutions) < len(plan.states):
        solved = {solution.state for solution in solutions}
        left = [s for s in plan.states if s not in solved]
        state = next((s for s in left if reads[s] <= solved | {s}), None)
        if state is None:
            those = " and ".join(name.partition("_")[2] for name in left)
            raise NotAffine(f"{those} depend on each other")
        own = state in reads[state]
        factors: tuple[Factor, ...] = (new[state],)
        replacing = _replacing(given[state], new[state]) if own else None
        if own:
            start = given[state] if replacing is None else replacing
            factors = _affine(plan.tracer, graph, start, new[state], state.partition("_")[2])
        if replacing is not None:
            factors = (*factors, *args_of(replacing)[:2])
        wanted = [factor for factor in factors if isinstance(factor, fx.Node)]
        read = set(ancestors(wanted))
        names = {node: name for name, node in given.items() if node in read}
        if any(n.target is aten.sym_size.int for n in read) and not any(map(has_rows, names)):
            raise NotAffine(f"{state.partition('_')[2]} is the same for every input")
        numbers = tuple(None if isinstance(factor, fx.Node) else factor for factor in factors)
        rows = tuple(has_rows(factor) for factor in wanted)
        run = module(extract(names, wanted))
        solutions.append(Solution(state, own, replacing is not None, numbers, rows, run, tuple(names.values())))
    return solutions


def _replacing(state: fx.Node, result: fx.Node) -> fx.Node | None:
    """The node where(anew, value, state) that alone reads the state on the way to `result`, if there is one."""
    users = [node for node in ancestors([result]) if state in node.all_input_nodes]
    if len(users) != 1 or users[0].target is not aten.where.self:
        return None
    anew, value, old = args_of(users[0])
    return users[0] if old is state and state not in ancestors([anew, value]) else None


def _affine(tracer: Tracer, graph: fx.Graph, state: fx.Node, result: fx.Node, name: str) -> tuple[Factor, Factor]:
    """a and b such that `result` is a · state + b, neither depending on the state, which is called `name`."""
    shape = state.meta["val"].shape[1:]
    pairs: dict[fx.Node, tuple[Factor, Factor]] = {state: (1.0, 0.0)}

    def call(target: Any, x: Factor, y: Factor) -> Factor:
        if not (isinstance(x, fx.Node) or isinstance(y, fx.Node)):
            if target in (MUL, DIV) and any(number and not 1e-6 < abs(number) < 1e6 for number in (x, y)):
                raise NotAffine(f"{str(state.target).partition('_')[2]} is scaled so far that numbers may overflow")
            return {ADD: x + y, SUB: x - y, MUL: x * y, DIV: x / (y or 1)}[target]
        if (target is ADD and x == 0) or (target is MUL and x == 1):
            return y
        if (target in (ADD, SUB) and y == 0) or (target in (MUL, DIV) and (y == 1 or x == 0)):
            return x
        return 0.0 if target is MUL and y == 0 else tracer.call(graph, target, x, y)

    def pair(operand: Any) -> tuple[Factor, Factor]:
        return pairs.get(operand, (0.0, operand)) if isinstance(operand, fx.Node) else (0.0, float(operand))

    for node in ancestors([result]):
        if node is state or is_size(node) or not any(n in pairs for n in node.all_input_nodes):
            continue
        if node.kwargs or node.meta["val"].shape[1:] != shape or node.target not in RULES:
            operation = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
            raise NotAffine(f"{operation} is applied to {name}")
        (a, b), *others = (pair(operand) for operand in args_of(node))
        c, d = others[0] if others else (0.0, 0.0)
        if node.target in (ADD, SUB):
            if _cancels(node.target, b, d):
                raise NotAffine(f"a large term is added to {str(state.target).partition('_')[2]} and taken off again")
            pairs[node] = call(node.target, a, c), call(node.target, b, d)
        elif node.target is aten.neg.default:
            pairs[node] = call(MUL, a, -1.0), call(MUL, b, -1.0)
        elif node.target is MUL and a == 0:
            pairs[node] = call(MUL, c, b), call(MUL, d, b)
        elif c == 0:
            if d == 0:
                raise NotAffine(f"{str(state.target).partition('_')[2]} is multiplied by zero")
            pairs[node] = call(node.target, a, d), call(node.target, b, d)
        else:
            raise NotAffine(f"{name} is multiplied or divided by itself")
    return pairs[result]


def _cancels(target: Any, x: Factor, y: Factor) -> bool:
    """Whether little is left of two terms, so that of what stood beside them rounding took a part."""
    if isinstance(x, fx.Node) or isinstance(y, fx.Node):
        return x is y and target is SUB
    return abs(x + y if target is ADD else x - y) < 1e-3 * max(abs(x), abs(y))


ADD, SUB, MUL, DIV = aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor
RULES = (ADD, SUB, MUL, DIV, aten.neg.default)


def run(
    cell: Cell, x: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run `cell` over x [T, B, I] from the given states; see `rnnzoo.engine` for the contract."""
    solutions, made = prepare(cell, x), plan(cell, x)
    T, B = x.shape[:2]
    outer = sum(str(node.target).startswith("outer") for node in inputs(made.project))
    with torch.autocast(x.device.type, enabled=False):
        shared = module(made.prepare)(*effective(cell).values())
    leaves = module(made.project)(x.flatten(0, 1), *shared[:outer])
    dtype = inputs(made.recur)[0].meta["val"].dtype  # autocast makes lesser ones
    known = {f"leaf{k}": leaf.to(dtype) for k, leaf in enumerate(leaves)}
    known |= {f"shared{k}": tensor for k, tensor in enumerate(shared[outer:])}
    state = tuple(s.to(dtype) for s in state)
    initial = dict(zip(made.states, state))
    running = None if lengths is None else torch.arange(T, device=x.device)[:, None] < lengths  # [T, B]

    stacks: dict[str, Tensor] = {}
    for solution in solutions:
        first = initial[solution.state]
        found = zip(solution.run(*(known[name] for name in solution.reads)), solution.rows)
        values = iter([value.unflatten(0, (T, B)) if rows else value for value, rows in found])
        factors = [next(values) if number is None else first.new_full((), number) for number in solution.numbers]
        if solution.affine:
            a, b, *others = factors
            b = b.expand(T, *first.shape)
            anew = None
            if solution.replaced:
                anew, value = others
                b = torch.where(anew, a * value + b, b)
            if running is not None:  # past a sequence's end: s' = 1 · s + 0
                mask = running.reshape(T, B, *[1] * (first.dim() - 1))
                a, b = torch.where(mask, a, 1), torch.where(mask, b, 0)
                anew = None if anew is None else anew & mask
            stack = linear_scan(a, b, first, anew)
        else:
            stack = factors[0].expand(T, *first.shape)
        stacks[solution.state] = stack
        known[solution.state] = torch.cat([first[None], stack[:-1]]).flatten(0, 1)

    rows = torch.arange(B, device=x.device)
    final = []
    for name in made.states:
        if lengths is None:
            final.append(stacks[name][-1])
        else:  # what is only computed is not held past a sequence's end
            last = stacks[name][lengths - 1, rows]
            final.append(torch.where(lengths.reshape(B, *[1] * (last.dim() - 1)) > 0, last, initial[name]))
    # what the backward pass reads must not be written to
    output = cell.readout(x[..., : cell.input_size], *(writable(stacks[name].contiguous()) for name in made.states))
    if running is not None:
        output = output.masked_fill(~running.reshape(T, B, *[1] * (output.dim() - 2)), 0)
    return output, tuple(final)
