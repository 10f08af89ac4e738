"""Runs recurrences that are affine in the state, s' = a · s + b element by element, in parallel over time.

That a cell is one is seen from its plan: a and b are made from the graph of its step, by the rules of sums and products
of affine functions. Several states are solved one after another, so each may depend on itself and on those before it;
a state that does not depend on itself is just computed, at all time steps at once. Two states that turn and scale each
other, re' = a · re - b · im + c and im' = b · re + a · im + d, are the parts of one complex state. All of it is
ordinary differentiable torch, and so is the solution (`linear_scan`).

A step may begin by putting something else in a state's place, as resets do. Then a and b are those of a state that was
so replaced, and the solution starts anew at such time steps.

Shapes: T time steps, B batch, N = T·B rows.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import combinations
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
    recorded,
)
from rnnzoo.engine.triton_cost import chunks
from rnnzoo.errors import UserError


class NotAffine(Exception):
    """Why a step is not affine in its state."""


Factor: TypeAlias = "fx.Node | float"


@dataclass(frozen=True)
class Solution:
    """How one state is solved, or two that are the parts of a complex one.

    `run` takes what `reads` names and returns what of a and b is no number, or the state's value if it does not depend
    on its own past; `rows` says which of these differ from row to row. If the state may be `replaced`, by what and
    where that happens follow b. Of a complex state, a, b and what replaces it are two parts each.
    """

    states: tuple[str, ...]
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


WAYS = ("triton", "operations")
"""What can solve a recurrence on a GPU: a kernel of Triton's, or torch's own operations."""


@contextmanager
def only(way: str) -> Iterator[None]:
    """Within, this solves all recurrences, to be tested or measured beside the other."""
    global _only
    before, _only = _only, way
    try:
        yield
    finally:
        _only = before


_only: str | None = None
_distrusted: weakref.WeakSet[Plan] = weakref.WeakSet()


def distrust(cell: Cell, x: Tensor) -> bool:
    """Have torch's operations solve the cell's recurrences from now on; whether a kernel did before."""
    made = plan(cell, x)
    if _way(made, x.device) == "operations" or _only is not None:
        return False
    _distrusted.add(made)
    return True


def _way(made: Plan, device: torch.device) -> str:
    """What solves a plan's recurrences: the kernel, which is estimated to take less time wherever there is one."""
    if _only is not None:
        return _only
    own = device.type == "cuda" and find_spec("triton") is not None and made not in _distrusted
    return "triton" if own and _type(made) in (torch.float32, torch.float64) else "operations"


def _type(made: Plan) -> torch.dtype:
    return inputs(made.recur)[0].meta["val"].dtype


def unproven(prepared: list[Solution], cell: Cell, x: Tensor) -> tuple[str, ...] | None:
    """What `verify` is to know a run by beside plan and device, or None on a CPU, where the suite proves all cells."""
    if x.device.type == "cpu":
        return None
    made = plan(cell, x)
    way = _way(made, x.device)
    if way == "triton":
        way += ", in chunks" * any(chunks(len(x), *lanes) > 1 for lanes in _lanes(made, prepared, x))
    return way, f"gradients: {recorded(cell, x)}"


def tried(prepared: list[Solution], cell: Cell, x: Tensor) -> int:
    """How many time steps a trial needs at least to run what a run over x does; not a whole number of chunks."""
    steps, made = 1, plan(cell, x)
    for lanes in _lanes(made, prepared, x) if _way(made, x.device) == "triton" else ():
        while chunks(len(x), *lanes) > 1 >= chunks(steps, *lanes):
            steps = 2 * steps + 1
    return steps


def _lanes(made: Plan, prepared: list[Solution], x: Tensor) -> list[tuple[int, int]]:
    """Of each recurrence, the numbers of a state of all rows of x and the bytes of each."""
    states = {str(node.target): node.meta["val"][0] for node in inputs(made.recur)}
    firsts = [(states[s.states[0]], len(s.states)) for s in prepared if s.affine]
    return [(x.shape[1] * state.numel(), parts * state.itemsize) for state, parts in firsts]


def ready(prepared: list[Solution], cell: Cell, x: Tensor) -> None:
    """Compile the kernels that a run over x and the backward pass after it need. Raises `UserError`."""
    made = plan(cell, x)
    if _way(made, x.device) != "triton" or x.device.type != "cuda":
        return
    from rnnzoo.engine import triton_scan  # needs triton

    for solution in (s for s in prepared if s.affine):
        dtype = _type(made).to_complex() if len(solution.states) == 2 else _type(made)
        try:
            triton_scan.ready(dtype, x.device, solution.replaced, recorded(cell, x))
        except Exception as error:
            raise UserError(
                f"{made.name}: its scan cannot be compiled: {reason(error)}; use engine=reference"
            ) from error


_solutions: weakref.WeakKeyDictionary[Plan, list[Solution] | str] = weakref.WeakKeyDictionary()


def solve(plan: Plan) -> list[Solution]:
    """The order in which states can be solved, and how. Raises `NotAffine`."""
    graph = extract({node: str(node.target) for node in inputs(plan.recur)}, outputs(plan.recur))  # to be added to
    given = {str(node.target): node for node in inputs(graph)}
    new = dict(zip(plan.states, outputs(graph)))
    reads = {s: {n for n in plan.states if given[n] in ancestors([new[s]])} for s in plan.states}
    solutions: list[Solution] = []
    left = list(plan.states)
    while left:
        solved = set(plan.states).difference(left)
        together = next(
            (group for n in (1, 2) for group in combinations(left, n) if _solvable(group, reads, solved)), None
        )
        name = " and ".join(state.partition("_")[2] for state in together or left)
        if together is None:
            raise NotAffine(f"{name} depend on each other")
        states, results = [given[s] for s in together], [new[s] for s in together]
        own = any(reads[s] & set(together) for s in together)
        factors: tuple[Factor, ...] = (*results,)
        replacing = replaced_by(states, results) if own else None
        if own:
            starts = states if replacing is None else replacing
            found = [affine(plan.tracer, graph, starts, result, name) for result in results]
            factors = found[0] if len(found) == 1 else _complex(name, *found)
        if replacing is not None:
            factors = (*factors, *(args_of(node)[1] for node in replacing), args_of(replacing[0])[0])
        wanted = [factor for factor in factors if isinstance(factor, fx.Node)]
        read = set(ancestors(wanted))
        names = {node: name for name, node in given.items() if node in read}
        if any(n.target is aten.sym_size.int for n in read) and not any(map(has_rows, names)):
            raise NotAffine(f"{name} is the same for every input")
        numbers = tuple(None if isinstance(factor, fx.Node) else factor for factor in factors)
        rows = tuple(has_rows(factor) for factor in wanted)
        run = module(extract(names, wanted))
        solutions.append(Solution(together, own, replacing is not None, numbers, rows, run, tuple(names.values())))
        left = [s for s in left if s not in together]
    return solutions


def _solvable(states: tuple[str, ...], reads: dict[str, set[str]], solved: set[str]) -> bool:
    """Whether these states, one or two, read nothing but each other and what has been solved."""
    return all(reads[state] <= solved | set(states) for state in states)


def replaced_by(states: list[fx.Node], results: list[fx.Node]) -> list[fx.Node] | None:
    """The nodes where(anew, value, state), with one `anew`, that alone read the states, if there are such."""
    found = []
    for state in states:
        users = [node for node in ancestors(results) if state in node.all_input_nodes]
        if len(users) != 1 or users[0].target is not aten.where.self:
            return None
        anew, value, old = args_of(users[0])
        if old is not state or set(states) & set(ancestors([anew, value])):
            return None
        found.append(users[0])
    return found if all(_same(args_of(found[0])[0], args_of(node)[0]) for node in found) else None


def _same(x: Any, y: Any) -> bool:
    """Whether two arguments are the same, or computed in the same way from the same nodes."""
    if isinstance(x, (list, tuple)) and isinstance(y, (list, tuple)):
        return len(x) == len(y) and all(map(_same, x, y))
    if not (isinstance(x, fx.Node) and isinstance(y, fx.Node)):
        return bool(x == y)
    return x is y or (x.target is y.target and x.kwargs == y.kwargs and bool(x.args) and _same(x.args, y.args))


def _complex(name: str, re: tuple[Factor, ...], im: tuple[Factor, ...]) -> tuple[Factor, ...]:
    """a and b of a complex state, two parts each, from what is known of its parts: factors of both, and the rest."""
    (a, minus_b, c), (b, also_a, d) = re, im
    number, factors = _product(b)
    if _product(a) != _product(also_a) or _product(minus_b) != (-number, factors):
        raise NotAffine(f"{name} depend on each other, not as parts of a complex number")
    return a, b, c, d


def _product(x: Factor) -> tuple[float, Counter[fx.Node]]:
    """A number and factors of which x is the product."""
    if not isinstance(x, fx.Node):
        return x, Counter()
    if x.target is not MUL:
        return 1.0, Counter([x])
    parts = [_product(operand) for operand in args_of(x)]
    return parts[0][0] * parts[1][0], parts[0][1] + parts[1][1]


def affine(tracer: Tracer, graph: fx.Graph, states: list[fx.Node], result: fx.Node, name: str) -> tuple[Factor, ...]:
    """a, one for each of the states, and b such that `result` is the sum of a · state, and b; none depends on them."""
    shape = states[0].meta["val"].shape[1:]
    none = (0.0,) * len(states)
    terms: dict[fx.Node, tuple[Factor, ...]] = {
        state: (*(float(other is state) for other in states), 0.0) for state in states
    }

    def call(target: Any, x: Factor, y: Factor) -> Factor:
        if not (isinstance(x, fx.Node) or isinstance(y, fx.Node)):
            if target in (MUL, DIV) and any(number and not 1e-6 < abs(number) < 1e6 for number in (x, y)):
                raise NotAffine(f"{name} is scaled so far that numbers may overflow")
            return {ADD: x + y, SUB: x - y, MUL: x * y, DIV: x / (y or 1)}[target]
        if target is SUB and x == 0:
            return call(MUL, y, -1.0)
        if (target is ADD and x == 0) or (target is MUL and x == 1):
            return y
        if (target in (ADD, SUB) and y == 0) or (target in (MUL, DIV) and (y == 1 or x == 0)):
            return x
        return 0.0 if target is MUL and y == 0 else tracer.call(graph, target, x, y)

    def term(operand: Any) -> tuple[Factor, ...]:
        known = (*none, operand if isinstance(operand, fx.Node) else float(operand))
        return terms.get(operand, known) if isinstance(operand, fx.Node) else known

    for node in ancestors([result]):
        if node in states or is_size(node) or not any(n in terms for n in node.all_input_nodes):
            continue
        if node.kwargs or node.meta["val"].shape[1:] != shape or node.target not in RULES:
            operation = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
            raise NotAffine(f"{operation} is applied to {name}")
        x, *others = (term(operand) for operand in args_of(node))
        y = others[0] if others else (*none, 0.0)
        if node.target in (ADD, SUB):
            if _cancels(node.target, x[-1], y[-1]):
                raise NotAffine(f"a large term is added to {name} and taken off again")
            terms[node] = tuple(call(node.target, a, c) for a, c in zip(x, y))
        elif node.target is aten.neg.default:
            terms[node] = tuple(call(MUL, a, -1.0) for a in x)
        elif node.target is MUL and x[:-1] == none:
            terms[node] = tuple(call(MUL, c, x[-1]) for c in y)
        elif y[:-1] == none:
            if y[-1] == 0:
                raise NotAffine(f"{name} is multiplied by zero")
            terms[node] = tuple(call(node.target, a, y[-1]) for a in x)
        else:
            raise NotAffine(f"{name} is multiplied or divided by itself")
    return terms.get(result, (*none, result))


def _joined(re: Tensor, im: Tensor) -> Tensor:
    """The complex numbers with these parts; in single precision at least, as there are no others for bfloat16."""
    dtype = torch.promote_types(re.dtype, torch.float32)
    return torch.complex(*torch.broadcast_tensors(re.to(dtype), im.to(dtype)))


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
    dtype = _type(made)  # autocast makes lesser ones
    known = {f"leaf{k}": leaf.to(dtype) for k, leaf in enumerate(leaves)}
    known |= {f"shared{k}": tensor for k, tensor in enumerate(shared[outer:])}
    state = tuple(s.to(dtype) for s in state)
    initial = dict(zip(made.states, state))
    running = None if lengths is None else torch.arange(T, device=x.device)[:, None] < lengths  # [T, B]

    kernel = _way(made, x.device) == "triton"
    stacks: dict[str, Tensor] = {}
    for solution in solutions:
        firsts = [initial[name] for name in solution.states]
        shape = firsts[0].shape
        found = zip(solution.run(*(known[name] for name in solution.reads)), solution.rows)
        values = iter([value.unflatten(0, (T, B)) if rows else value for value, rows in found])
        factors = [next(values) if number is None else firsts[0].new_full((), number) for number in solution.numbers]
        if solution.affine:
            anew = factors.pop() if solution.replaced else None
            if len(firsts) == 2:
                pairs = [_joined(*parts) for parts in zip(factors[::2], factors[1::2])]
                first = _joined(*firsts)
            else:
                pairs, [first] = factors, firsts
            a, b = pairs[0], pairs[1].expand(T, *shape)
            if anew is not None:
                b = torch.where(anew, a * pairs[2] + b, b)
            if running is not None:  # past a sequence's end: s' = 1 · s + 0
                mask = running.reshape(T, B, *[1] * (first.dim() - 1))
                a, b = torch.where(mask, a, 1), torch.where(mask, b, 0)
                anew = None if anew is None else anew & mask
            stack = linear_scan(a, b, first, anew, kernel)
            parts = [stack] if len(firsts) == 1 else [part.to(dtype) for part in (stack.real, stack.imag)]
        else:
            parts = [factor.expand(T, *shape) for factor in factors]
        for name, first, stack in zip(solution.states, firsts, parts):
            stacks[name] = stack
            known[name] = torch.cat([first[None], stack[:-1]]).flatten(0, 1)

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
