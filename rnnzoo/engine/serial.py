"""Runs a plan step by step, forwards and backwards, with everything but the state's own work outside the loop.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnnzoo.cell import Cell
from rnnzoo.engine.cpp import Kernel, back_parameters
from rnnzoo.engine.lower import Unsupported
from rnnzoo.engine.plan import Plan, plan
from rnnzoo.engine.trace import effective, inputs, module, outputs
from rnnzoo.errors import UserError


def refuses(cell: Cell) -> str | None:
    """Cells whose step cannot be traced."""
    try:
        plan(cell)
    except UserError as error:
        return str(error)
    return None


class Program:
    """A plan with its compiled loop."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.kernel = Kernel(plan)
        self.prepare = module(plan.prepare)
        self.project = module(plan.project)
        self.defer = module(plan.derived.defer)
        self.outer = sum(str(node.target).startswith("outer") for node in inputs(plan.project))
        self.saved_shapes = [node.meta["val"].shape[1:] for node in outputs(plan.derived.step)[len(plan.states) :]]
        self.given, self.results = back_parameters(plan)
        self.kept_shapes = [node.meta["val"].shape[1:] for node in outputs(plan.derived.back)[len(self.results) - plan.derived.kept :]]


_programs: dict[int, Program] = {}


def program(cell: Cell) -> Program:
    made = plan(cell)
    if id(made) not in _programs:
        _programs[id(made)] = Program(made)
    return _programs[id(made)]


def run(
    cell: Cell, x: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run `cell` over x [T, B, I] from the given states; see `rnnzoo.engine` for the contract."""
    made = program(cell)
    tensors = made.prepare(*effective(cell).values())
    leaves = made.project(x.flatten(0, 1), *tensors[: made.outer])
    leaves = [leaf.unflatten(0, x.shape[:2]) for leaf in leaves]
    shared = tensors[made.outer :]
    readout = type(cell).readout is not Cell.readout
    wanted = len(state) if readout else 1
    results = _Loop.apply(made, wanted, lengths, len(leaves), *leaves, *state, *shared)
    stacks, final = results[:wanted], results[wanted:]
    output = cell.readout(x, *stacks) if readout else stacks[0]
    if lengths is not None:
        past = torch.arange(len(x), device=x.device)[:, None] >= lengths
        output = output.masked_fill(past.reshape(*past.shape, *[1] * (output.dim() - 2)), 0)
    return output, tuple(final)


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, made: Program, wanted: int, lengths: Tensor | None, count: int, *tensors: Tensor) -> Any:
        states = len(made.plan.states)
        leaves = [t.contiguous() for t in tensors[:count]]
        initial = tensors[count : count + states]
        shared = [t.contiguous() for t in tensors[count + states :]]
        T, B = leaves[0].shape[:2]
        saving = any(ctx.needs_input_grad)
        stacks = []
        for k, s in enumerate(initial):
            stack = s.new_empty(T + 1 if saving or k < wanted else 2, *s.shape)
            stack[0] = s
            stacks.append(stack)
        saved = [leaves[0].new_empty(T, B, *shape) for shape in made.saved_shapes] if saving else []
        made.kernel.forward(leaves, stacks, shared, saved, lengths, T, saving)
        ctx.set_materialize_grads(False)
        ctx.made, ctx.wanted, ctx.lengths = made, wanted, lengths
        ctx.counts = (len(leaves), states, len(shared), len(saved))
        if saving:
            read = set(made.given) | {str(node.target) for node in inputs(made.plan.derived.defer)}
            kept = [leaf if f"leaf{k}" in read else None for k, leaf in enumerate(leaves)]
            ctx.save_for_backward(*kept, *stacks, *shared, *saved)
        return (*(stack[1:] for stack in stacks[:wanted]), *(stack[T % len(stack)].clone() for stack in stacks))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        made, wanted = ctx.made, ctx.wanted
        states = made.plan.states
        tensors = list(ctx.saved_tensors)
        groups = []
        for n in ctx.counts:
            groups.append(tensors[:n])
            tensors = tensors[n:]
        leaves, stacks, shared, saved = groups
        T, B = len(stacks[0]) - 1, stacks[0].shape[1]
        known: dict[str, Tensor | None] = {}
        known |= {f"leaf{k}": t for k, t in enumerate(leaves)}
        known |= dict(zip(states, stacks))
        known |= {f"shared{k}": t for k, t in enumerate(shared)}
        known |= {f"saved{k}": t for k, t in enumerate(saved)}
        outs, ends = gradients[:wanted], gradients[wanted:]
        for k, name in enumerate(states):
            known[f"out_{name}"] = outs[k].contiguous() if k < wanted and outs[k] is not None else None
            known[f"end_{name}"] = None if ends[k] is None else ends[k].contiguous()
        like = stacks[0]
        shapes = {f"d_{name}": stack.shape[1:] for name, stack in zip(states, stacks)}
        for node in outputs(made.plan.project):
            shapes[f"d_leaf{len(shapes) - len(states)}"] = (T, B, *node.meta["val"].shape[1:])
        shapes |= {f"kept{k}": (T, B, *shape) for k, shape in enumerate(made.kept_shapes)}
        results = {name: like.new_empty(shapes[name]) for name in made.results}
        made.kernel.backward([known[name] for name in made.given], list(results.values()), ctx.lengths, T)

        known |= results
        d_shared: Sequence[Tensor | None] = [None] * len(shared)
        if any(ctx.needs_input_grad[-len(shared) :]) and shared:
            rows = []
            for node in inputs(made.plan.derived.defer):
                name = str(node.target)
                if name in states:
                    tensor = known[name][:-1].flatten(0, 1)
                elif name.startswith("new_"):
                    tensor = known[name[4:]][1:].flatten(0, 1)
                elif name.startswith("shared"):
                    tensor = known[name]
                else:
                    tensor = known[name].flatten(0, 1)
                rows.append(tensor.bool() if node.meta["val"].dtype == torch.bool else tensor)
            d_shared = made.defer(*rows)
        d_leaves = [results[f"d_leaf{k}"] for k in range(len(leaves))]
        d_states = [results[f"d_{name}"] for name in states]
        return None, None, None, None, *d_leaves, *d_states, *d_shared
