"""Runs a plan step by step, forwards and backwards, with everything but the state's own work outside the loop.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rnnzoo.cell import Cell
from rnnzoo.engine.cpp import Kernel, empty, writable
from rnnzoo.engine.emit import write
from rnnzoo.engine.onednn import quick
from rnnzoo.engine.places import Unsupported
from rnnzoo.engine.plan import Plan, plan
from rnnzoo.engine.steps import Steps
from rnnzoo.engine.trace import effective, inputs, module, outputs, reason, recorded, sample
from rnnzoo.engine.triton_cost import verdict
from rnnzoo.engine.triton_kernel import TritonKernel
from rnnzoo.errors import UserError


def refuses(cell: Cell, x: Tensor | None = None) -> str | None:
    """Cells whose step cannot be traced."""
    try:
        plan(cell, x)
    except UserError as error:
        return str(error)
    return None


def lacks(cell: Cell, x: Tensor | None = None) -> str | None:
    """Why the cell has no kernel, or None."""
    return _lacks_of(plan(cell, x))


def _lacks_of(made: Plan) -> str | None:
    if made not in _lacks:
        try:
            write(made)
            _lacks[made] = None
        except Unsupported as error:
            _lacks[made] = (
                f"{made.name}: {error} has no C++ form, and Inductor compiles for a minute; engine=serial takes it"
            )
        except Exception as error:
            _lacks[made] = f"{made.name}: no kernel can be written for it: {reason(error)}"
    return _lacks[made]


_lacks: weakref.WeakKeyDictionary[Plan, str | None] = weakref.WeakKeyDictionary()


def _kernel(plan: Plan, half: bool) -> Kernel:
    """With products in bfloat16 only where the processor has them, and oneDNN, which may be told to do without."""
    single = inputs(plan.recur)[0].meta["val"].dtype == torch.float32
    there = torch.cpu._is_avx512_bf16_supported() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return Kernel(plan, half and single and there)


LOOPS: dict[str, Callable[[Plan, bool], Any]] = {
    "kernel": _kernel,
    "triton": TritonKernel,
    "graphs": lambda plan, half: Steps(plan),
}
"""What can run a plan's loop, by name, from the plan and whether products may be made in bfloat16; each has the
interface of `cpp.Kernel` and raises `Unsupported` for a plan that it has no form for."""


def loops(device: str) -> tuple[str, ...]:
    """The loops for a kind of device; the first that supports a plan takes it."""
    own = {"cpu": ("kernel",), "cuda": ("triton",)}
    return (*own.get(device, ()), "graphs")


def how(cell: Cell, device: str) -> str:
    """What runs a cell's loop on a device where there are several ways, as the end of a sentence."""
    if "triton" not in loops(device):
        return ""
    why = verdict(plan(cell))
    return ", by one kernel of Triton" if why is None else f", by graphs of kernels: {why}"


@contextmanager
def only(name: str) -> Iterator[None]:
    """Within, this loop takes all plans, to be tested or measured beside others."""
    global _only
    before, _only = _only, name
    try:
        yield
    finally:
        _only = before


_only: str | None = None


def _candidates(plan: Plan) -> tuple[str, ...]:
    """The loops that may run a plan, what is tried first first."""
    device = inputs(plan.recur)[0].meta["val"].device.type
    names = loops(device) if _only is None else (_only,)
    if len(names) > 1 and "triton" in names and verdict(plan) is not None:
        names = tuple(name for name in names if name != "triton")
    return tuple(name for name in names if name not in _distrusted.get(plan, ()))


_distrusted: MutableMapping[Plan, set[str]] = weakref.WeakKeyDictionary()


def distrust(cell: Cell, x: Tensor) -> bool:
    """Have another loop run the cell's plan from now on; whether there is another."""
    made, _ = _planned(cell, x)
    _distrusted.setdefault(made, set()).add(prepare(cell, x).loop.label)
    return bool(_candidates(made))


def loop(plan: Plan, half: bool = False) -> Any:
    """What runs the plan's loop. Raises `Unsupported` where nothing does."""
    missing = None
    for name in _candidates(plan):
        try:
            return LOOPS[name](plan, half)
        except Unsupported as error:
            missing = error
    raise missing or Unsupported("a loop that is trusted")


class Program:
    """A plan with its compiled loop. It does not keep the plan, which keeps it."""

    def __init__(self, plan: Plan, half: bool) -> None:
        self.name, self.states = plan.name, plan.states
        self.shapes = [_shape(node) for node in outputs(plan.recur)]
        self.leaves = [_shape(node) for node in outputs(plan.project)]
        self.loop = loop(plan, half)
        derived = self.loop.derived
        self.prepare = module(plan.prepare)
        self.project = quick(plan.project)
        self.defer = quick(derived.defer)
        self.dtype = inputs(plan.recur)[0].meta["val"].dtype
        self.outer = sum(str(node.target).startswith("outer") for node in inputs(plan.project))
        self.saved = [_shape(node) for node in outputs(derived.step)[len(plan.states) :]]
        self.kept = [
            _shape(node)
            for node in outputs(derived.back)[len(plan.states) + len(outputs(plan.project)) :][: derived.kept]
        ]
        self.totals = {
            str(n.target): tuple(n.meta["val"].shape)
            for n in inputs(derived.defer)
            if str(n.target).startswith("total")
        }
        self.deferred = [(str(n.target), n.meta["val"].dtype) for n in inputs(derived.defer)]
        self.read = {name for name, _ in self.deferred} | set(self.loop.given)


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape[1:])


_programs: MutableMapping[Plan, dict[tuple[bool, tuple[str, ...]], Program]] = weakref.WeakKeyDictionary()


def prepare(cell: Cell, x: Tensor | None = None) -> Program:
    """The compiled plan of this cell; compiled once. Raises `UserError` when it cannot be."""
    return program(*_planned(cell, x))


def _planned(cell: Cell, x: Tensor | None) -> tuple[Plan, str]:
    """The plan that is run, and the kind of device: on a CPU a kernel also computes the output, if that can be."""
    made, device = plan(cell, x), sample(cell, x).device.type
    if device == "cpu" and _precision(device) is None and made.outward is not None and _lacks_of(made.outward) is None:
        made = made.outward
    return made, device


def program(made: Plan, device: str) -> Program:
    """A plan compiled for a kind of device, once. Raises `UserError` when it cannot be."""
    half = _precision(device) == torch.bfloat16
    key = half, _candidates(made)
    own = _programs.get(made)
    if own is None:
        own = _programs[made] = {}
    if key not in own:
        try:
            own[key] = Program(made, half)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{made.name}: its plan cannot be compiled: {reason(error)}; use engine=reference"
            ) from error
    return own[key]


def unproven(prepared: Program, cell: Cell, x: Tensor) -> tuple[str, ...] | None:
    """What `verify` is to know a run over x by beside plan and device, or None where the suite proves the loop."""
    loop = prepared.loop
    return None if loop.proven else (loop.label, loop.compiled_for(x.shape[1]), f"gradients: {recorded(cell, x)}")


def ready(prepared: Program, cell: Cell, x: Tensor) -> None:
    """Compile what a run over x and the backward pass after it need. Raises `UserError` when that cannot be."""
    prepared.loop.ready(x.shape[1], x.device, recorded(cell, x))


def _precision(device: str) -> torch.dtype | None:
    """What autocast would have products computed in, or None."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def run(
    cell: Cell, x: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run `cell` over x [T, B, I] from the given states; see `rnnzoo.engine` for the contract."""
    made = prepare(cell, x)
    if len(made.states) > len(state):  # the output is the first one
        fresh = state[0].new_zeros(x.shape[1], *made.shapes[0])
        (output,), final = over_time(made, cell, x, (fresh, *state), lengths, 1)
        return past_the_end(output, lengths), final[1:]
    readout = type(cell).readout is not Cell.readout
    stacks, final = over_time(made, cell, x, state, lengths, len(state) if readout else 1)
    output = cell.readout(x[..., : cell.input_size], *stacks) if readout else stacks[0]
    return past_the_end(output, lengths), final


def over_time(
    made: Program, cell: Cell, x: Tensor, state: Sequence[Tensor], lengths: Tensor | None, wanted: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The first `wanted` states at all times [T, B, ...], and all states at the end."""
    with torch.autocast(x.device.type, enabled=False):
        tensors = made.prepare(*effective(cell).values())
    leaves = made.project(x.flatten(0, 1), *tensors[: made.outer])
    dtype = made.dtype  # autocast makes lesser ones
    leaves = [leaf.unflatten(0, x.shape[:2]).to(dtype) for leaf in leaves]
    shared = [tensor.to(dtype) for tensor in tensors[made.outer :]]
    inside = (*leaves, *(s.to(dtype) for s in state), *shared)
    saving = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inside)
    ends = None if lengths is None else lengths.contiguous()
    results = _Loop.apply(made, wanted, saving, x.shape[:2], ends, *inside)
    stacks, final = results[:wanted], results[wanted:]
    return tuple(map(writable, stacks)) if saving else stacks, tuple(final)


def past_the_end(output: Tensor, lengths: Tensor | None) -> Tensor:
    """The output [T, B, ...], zero past each sequence's end."""
    if lengths is None:
        return output
    past = torch.arange(len(output), device=output.device)[:, None] >= lengths
    return output.masked_fill(past.reshape(*past.shape, *[1] * (output.dim() - 2)), 0)


class _Loop(torch.autograd.Function):
    """Leaves, states and shared tensors to the first `wanted` states at all times and to all states at the end."""

    @staticmethod
    def forward(
        ctx: Any,
        made: Program,
        wanted: int,
        saving: bool,
        size: Sequence[int],
        lengths: Tensor | None,
        *tensors: Tensor,
    ) -> Any:
        states, homes, count = len(made.states), made.loop.homes, len(made.leaves)
        leaves = [t.contiguous() for t in tensors[:count]]
        initial = tensors[count : count + states]
        shared = [t.contiguous() for t in tensors[count + states :]]
        T, B = size
        slots = [T + 1 if saving or k < wanted else 2 for k in range(states)]
        stacks = [empty(s, n, *s.shape) for s, n in zip(initial, slots)]
        for stack, s in zip(stacks, initial):
            stack[0] = s
        saved = []
        for shape, home in zip(made.saved if saving else (), homes):
            # written in place of a leaf, unknown to autograd, which will not look at that leaf again
            inside = leaves[home[0]].detach()[..., home[1] : home[1] + shape[0]] if home else None
            saved.append(empty(stacks[0], T, B, *shape) if inside is None else inside)
        made.loop.forward([*leaves, *stacks, *shared, *saved], slots, lengths, T, saving)

        ctx.set_materialize_grads(False)
        ctx.made, ctx.wanted, ctx.lengths = made, wanted, lengths
        ctx.precision = _precision(stacks[0].device.type)
        if saving:
            used = {f"leaf{home[0]}" for home in homes if home} | made.read
            some = (t if f"leaf{k}" in used else None for k, t in enumerate(leaves))
            ctx.save_for_backward(*some, *stacks, *shared, *saved)
        return (*(stack[1:] for stack in stacks[:wanted]), *(s[T % n].clone() for s, n in zip(stacks, slots)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        made, wanted, names = ctx.made, ctx.wanted, ctx.made.states
        if torch.is_grad_enabled():
            raise UserError(f"{made.name}: engine=serial has no second derivatives; use engine=reference")
        count = len(made.leaves)
        tensors = ctx.saved_tensors  # once: under a checkpoint each look computes them again
        leaves, rest = tensors[:count], tensors[count:]
        stacks, rest = rest[: len(names)], rest[len(names) :]
        shared, saved = rest[: len(rest) - len(made.saved)], rest[len(rest) - len(made.saved) :]
        T, B = len(stacks[0]) - 1, stacks[0].shape[1]
        known: dict[str, Any] = {f"leaf{k}": t for k, t in enumerate(leaves)} | dict(zip(names, stacks))
        known |= {f"shared{k}": t for k, t in enumerate(shared)} | {f"saved{k}": t for k, t in enumerate(saved)}
        for name, out in zip(names, [*gradients[:wanted], *[None] * len(names)]):
            known[f"out_{name}"] = None if out is None else out.contiguous()
        for name, end in zip(names, gradients[wanted:]):
            known[f"end_{name}"] = None if end is None else end.contiguous()

        for name, stack in zip(names, stacks):
            known[f"d_{name}"] = empty(stack, *stack.shape[1:])
        again = torch._C._autograd._get_current_graph_task_keep_graph()
        for k, shape in enumerate(made.leaves):
            reuse = made.loop.reused[k] and not again
            known[f"d_leaf{k}"] = leaves[k].detach() if reuse else empty(stacks[0], T, B, *shape)
        known |= {f"kept{k}": empty(stacks[0], T, B, *shape) for k, shape in enumerate(made.kept)}
        threads = min(torch.get_num_threads(), B)
        known |= {name: stacks[0].new_zeros(threads, *shape) for name, shape in made.totals.items()}
        d_shared: Sequence[Tensor | None] = [None] * len(shared)
        with torch.autocast(stacks[0].device.type, ctx.precision, ctx.precision is not None):
            made.loop.backward([known[name] for name in (*made.loop.given, *made.loop.results)], B, ctx.lengths, T)
            if shared and any(ctx.needs_input_grad[-len(shared) :]):
                d_shared = made.defer(*(_rows(known, name, dtype, names) for name, dtype in made.deferred))
                d_shared = [None if d is None else d.to(s.dtype) for d, s in zip(d_shared, shared)]
        d_leaves = [known[f"d_leaf{k}"] for k in range(count)]
        return None, None, None, None, None, *d_leaves, *(known[f"d_{name}"] for name in names), *d_shared


def _rows(known: dict[str, Any], name: str, dtype: torch.dtype, states: tuple[str, ...]) -> Tensor:
    """What `defer` reads, all time steps as rows."""
    if name.startswith("shared"):
        return known[name].to(dtype)
    if name.startswith("total"):
        return known[name].sum(0).to(dtype)
    if name in states:
        tensor = known[name][:-1]
    else:
        tensor = known[name.removeprefix("new_")][1:] if name.startswith("new_") else known[name]
    return tensor.flatten(0, 1).to(dtype)
