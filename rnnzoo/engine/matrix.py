"""Runs cells around a matrix memory so that the memory never leaves the cache.

A matrix [B, V, K] stored at every time step is what such cells would spend their time on. Here all that is around the
memory runs first, as `serial` runs a cell; then each sequence's memory goes through all time steps and gives what it is
read for, by a kernel (`memory.h`); then the readout goes on from there, for all time steps at once. The memory is kept
at some time steps only, and computed again between them in the backward pass.

Shapes: T time steps, B batch, V values, K keys.
"""

from __future__ import annotations

import weakref
from collections.abc import MutableMapping, Sequence
from ctypes import c_int64
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from rnnzoo.cell import Cell
from rnnzoo.engine import serial
from rnnzoo.engine.cpp import addresses_of, call, empty
from rnnzoo.engine.emit import header, text, write
from rnnzoo.engine.library import load
from rnnzoo.engine.memory import Memory, find
from rnnzoo.engine.onednn import quick
from rnnzoo.engine.operations import number
from rnnzoo.engine.places import Unsupported
from rnnzoo.engine.plan import Plan, plan
from rnnzoo.engine.trace import effective, module, reason, sample
from rnnzoo.errors import UserError

STRETCH = 16
"""So many time steps, or the root of their number, are computed again together; their states fit into a near cache."""

LANES = 16
"""No processor's vectors have more numbers: a row of a state takes no more than a multiple of this."""


def refuses(cell: Cell) -> str | None:
    """Cells without a matrix memory, and other devices than CPUs."""
    try:
        memory(cell)
    except UserError as error:
        return str(error)
    return None


def memory(cell: Cell, x: Tensor | None = None) -> Memory:
    """The cell's memory. Raises `UserError` when there is none that can be taken out of its step."""
    made = plan(cell, x)
    if sample(cell, x).device.type != "cpu":
        raise UserError(f"{made.name}: only a CPU's cache holds a memory")
    if made not in _memories:
        try:
            found = _memories[made] = find(made)
            write(found.around)
        except Exception as error:  # mostly NoMemory
            what = f"{error} has no C++ form" if isinstance(error, Unsupported) else reason(error)
            _memories[made] = f"{made.name} has no matrix memory to itself: {what}"
    known = _memories[made]
    if isinstance(known, str):
        raise UserError(known)
    return known


_memories: MutableMapping[Plan, Memory | str] = weakref.WeakKeyDictionary()


class Program:
    """A memory, with what is around it, compiled."""

    def __init__(self, found: Memory, around: serial.Program) -> None:
        self.around, self.name, self.dtype = around, around.name, around.dtype
        self.state, self.late = found.state, found.late
        self.row = -(-found.keys // LANES) * LANES * found.values
        self.prepare, self.tail = module(found.prepare), quick(found.tail)
        self.anew = None if found.anew is None else module(found.anew)
        self.factors = [found.factors.get(name) for name in "apkqbce"]
        self.cuts, self.shapes = found.cuts, found.shapes
        self.library = load(_source(found, self.dtype), f"{self.name}_memory", False)


def _source(found: Memory, dtype: torch.dtype) -> str:
    """The C++ of a memory."""
    width = {name: found.shapes[k][0] for name, k in found.factors.items()}
    decay = "FIXED" if "a" not in width else "VECTOR" if width["a"] == found.keys else "NUMBER"
    sizes = f"constexpr int64_t KEYS = {found.keys}, VALUES = {found.values};"
    kinds = f"enum {{ FIXED, NUMBER, VECTOR, DECAY = {decay} }};\nconstexpr S FACTOR = {number(found.decay or 0.0)};"
    forms = {"DELTA": "b" in width, "APART": "e" in width, "SINGLE": width.get("c") == 1, "KEYS_LAST": found.keys_last}
    flags = [f"constexpr bool {name} = {str(holds).lower()};" for name, holds in forms.items()]
    return text(dtype, [header("kernel.h"), sizes, kinds, *flags, header("memory.h")])


_programs: MutableMapping[Memory, dict[serial.Program, Program]] = weakref.WeakKeyDictionary()


def prepare(cell: Cell, x: Tensor | None = None) -> Program:
    """The compiled memory of this cell; compiled once. Raises `UserError` when it cannot be."""
    found = memory(cell, x)
    around = serial.program(found.around, "cpu")
    own = _programs.setdefault(found, {})
    if around not in own:
        own[around] = Program(found, around)
    return own[around]


def unproven(prepared: Program, cell: Cell, x: Tensor) -> None:
    """Nothing: it runs on a CPU only, where the suite proves all cells."""


def run(
    cell: Cell, x: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run `cell` over x [T, B, I] from the given states; see `rnnzoo.engine` for the contract."""
    made = prepare(cell, x)
    T, B = x.shape[:2]
    others = [s for k, s in enumerate(state) if k not in (made.state, *made.late)]
    fresh = [x.new_zeros(B, *shape, dtype=made.dtype) for shape in made.shapes[len(others) :]]
    stacks, final = serial.over_time(made.around, cell, x, [*others, *fresh], lengths, len(made.shapes))
    anew = None if made.anew is None else made.anew(x.flatten(0, 1))[0].reshape(T, B)
    factors = [None if k is None else stacks[k] for k in made.factors]
    o, after = _Through.apply(made, lengths, anew, state[made.state].to(made.dtype), *factors)
    with torch.autocast("cpu", enabled=False):
        constants = made.prepare(*effective(cell).values())
    output, *told = made.tail(o.flatten(0, 1), *(stacks[k].flatten(0, 1) for k in made.cuts), *constants)
    own = iter(final[: len(others)])
    late = {k: _last(s.unflatten(0, (T, B)), state[k], lengths) for k, s in zip(made.late, told)}
    states = [after if k == made.state else late[k] if k in late else next(own) for k in range(len(state))]
    return serial.past_the_end(output.unflatten(0, (T, B)), lengths), tuple(states)


def _last(values: Tensor, before: Tensor, lengths: Tensor | None) -> Tensor:
    """Of values [T, B, ...] those at each sequence's end, or what was there before where it has no time step."""
    if len(values) == 0:
        return before
    if lengths is None:
        return values[-1]
    found = values[(lengths - 1).clamp(min=0), torch.arange(len(before))]
    return torch.where((lengths > 0).reshape(-1, *[1] * (before.dim() - 1)), found, before)


class _Through(torch.autograd.Function):
    """A memory [B, ...] and a, p, k, q, b, c and e [T, B, ...] to what is read [T, B, V] and the memory at the end."""

    @staticmethod
    def forward(
        ctx: Any, made: Program, lengths: Tensor | None, anew: Tensor | None, state: Tensor, *factors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        saving = any(ctx.needs_input_grad)
        start = state.contiguous()
        given = [start, *(None if f is None else f.contiguous() for f in factors)]
        p = given[2]
        assert p is not None
        T, B = p.shape[:2]
        stretch = max(STRETCH, isqrt(T))
        anew = None if anew is None else anew.contiguous()
        lengths = None if lengths is None else lengths.contiguous()
        kept = empty(p, -(-T // stretch), B, made.row) if saving else None
        o, after = empty(p, *p.shape), torch.empty_like(start)
        function = made.library.step if saving else made.library.recur
        call(function, B, T, c_int64(stretch), lengths, addresses_of([*given, anew, kept, o, after]))
        ctx.set_materialize_grads(False)
        ctx.made, ctx.stretch, ctx.lengths, ctx.anew = made, stretch, lengths, anew
        ctx.save_for_backward(*given, kept)
        return o, after

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise UserError(f"{ctx.made.name}: engine=matrix has no second derivatives; use engine=reference")
        tensors: Sequence[Tensor | None] = ctx.saved_tensors  # once: under a checkpoint each look computes them again
        given, kept = tensors[:-1], tensors[-1]
        p, q = given[2], given[4]
        assert p is not None and q is not None
        T, B = p.shape[:2]
        d_o, d_after = (None if d is None else d.contiguous() for d in gradients)
        used = list(given)
        if d_o is None:  # then q, which is read by nothing, must not matter
            d_o, used[4] = torch.zeros_like(p), torch.zeros_like(q)
        results = [None if f is None else empty(f, *f.shape) for f in given]
        pointers = [*used, ctx.anew, kept, None, None, d_o, d_after, *results[1:], results[0]]
        call(ctx.made.library.back, B, T, c_int64(ctx.stretch), ctx.lengths, addresses_of(pointers))
        if gradients[0] is None:
            results[4] = None
        return None, None, None, *results
