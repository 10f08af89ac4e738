"""Plans as C++ kernels: the whole loop over time in one call, each thread with its own rows of the batch.

Any number of time steps, rows and ragged lengths runs through the same kernel; `library.py` compiles and keeps them.

Shapes: T time steps, B batch; every tensor is [T, B, ...] but states at one time, [B, ...], and shared tensors.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnnzoo.engine.emit import parameters, write
from rnnzoo.engine.library import load
from rnnzoo.engine.plan import Plan

BLOCK = 64
"""Of so many time steps, the states of `Repeated` lie side by side."""


class Kernel:
    """A plan compiled for the CPU, its products of numbers rounded to bfloat16 if `half`.

    `label` is what it is called, `proven` whether the suite proves it for all cells.

    Raises `Unsupported` for an operation without a C++ form, `UserError` when there is no working compiler.
    """

    label, proven = "kernel", True

    def __init__(self, plan: Plan, half: bool = False) -> None:
        source = write(plan, half)
        self.homes, self.reused = source.homes, source.reused
        self.derived = plan.summed
        self.given, self.results = parameters(plan, plan.summed)
        self._products = sum(node.op == "call_function" for node in plan.recur.nodes)
        self._library = load(source.text, plan.name, half)

    def compiled_for(self, rows: int) -> str:
        """What the code for so many rows hangs on beside plan and device: here nothing."""
        return ""

    def ready(self, rows: int, device: torch.device, saving: bool) -> None:
        """Compile what a run over so many rows still lacks, if `saving` with its backward pass: here nothing."""

    def forward(
        self, tensors: Sequence[Tensor], slots: Sequence[int], lengths: Tensor | None, steps: int, saving: bool
    ) -> None:
        """Run all time steps over leaves, states, shared tensors and, if `saving`, saved tensors.

        A state is given as the memory for its values at all times [T + 1, B, ...], the first one filled in; `slots`
        says how many there are, T + 1, or 2 for a state of which only the last two values are kept.
        """
        wrap = (ctypes.c_int64 * len(slots))(*slots)
        batch = tensors[0].shape[1]
        call(self._library.step if saving else self._library.recur, batch, steps, wrap, lengths, addresses_of(tensors))

    def backward(self, tensors: Sequence[Tensor | None], batch: int, lengths: Tensor | None, steps: int) -> None:
        """Run all time steps backwards over what `emit.parameters` names, given and results."""
        call(self._library.back, batch, steps, None, lengths, addresses_of(tensors))

    def repeated(self, shared: Sequence[Tensor], dtype: torch.dtype) -> Repeated:
        """Time steps one by one, all with the same shared tensors, computed in the plan's `dtype`."""
        return Repeated(self._library.recur, self._products, shared, dtype)


class Repeated:
    """Time steps of a kernel one by one: matrices are packed by the first, and states stay where they were written.

    Shared tensors and leaves must be contiguous and of this `dtype`.
    """

    def __init__(self, function: Any, matrices: int, shared: Sequence[Tensor], dtype: torch.dtype) -> None:
        self._function, self._shared, self._dtype = function, shared, dtype
        self._given = addresses_of(shared)
        self._row = BLOCK
        self._kept = (ctypes.c_void_p * matrices)()
        weakref.finalize(self, _free, self._kept)
        self._latest: tuple[Tensor, ...] = ()

    def __call__(self, leaves: Sequence[int], states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The addresses of leaves [B, n], and the states before to the states after."""
        if self._row == BLOCK or any(a is not b for a, b in zip(states, self._latest)):
            self._begin(states)
        memory = [base + self._row * size for base, size in self._homes]
        call(self._function, len(states[0]), 1, self._wrap, None, [*leaves, *memory, *self._given], self._kept)
        self._row += 1
        self._latest = tuple(block[self._row] for block in self._blocks)
        return self._latest

    def _begin(self, states: tuple[Tensor, ...]) -> None:
        """A new block of memory, which begins with these states."""
        self._blocks = [s.new_empty(BLOCK + 1, *s.shape, dtype=self._dtype) for s in states]
        for block, s in zip(self._blocks, states):
            block[0] = s
        self._homes = [(block.data_ptr(), block[0].nbytes) for block in self._blocks]
        self._wrap = (ctypes.c_int64 * len(states))(*[2] * len(states))
        self._row = 0


def _free(memory: Any) -> None:
    for address in memory:
        ctypes.CDLL(None).free(ctypes.c_void_p(address))


def addresses_of(tensors: Sequence[Tensor | None]) -> list[int | None]:
    """Where the tensors lie, None for one that is not there."""
    # `data_ptr` would take a copy of what is shared with the output, see `writable`
    return [None if t is None else _address(t) for t in tensors]


def _address(tensor: Tensor) -> int:
    start: int = torch._C._data_address(tensor)  # type: ignore[attr-defined]
    return start + int(tensor.storage_offset()) * tensor.itemsize


def writable(tensor: Tensor) -> Tensor:
    """The same numbers for others to write to: they are copied by who writes first, so mostly never."""
    return tensor._lazy_clone() if tensor.device.type == "cpu" else tensor.clone()


def call(
    function: Any,
    batch: int,
    steps: int,
    wrap: Any,
    lengths: Tensor | None,
    addresses: Sequence[int | None],
    kept: Any = None,
) -> None:
    """Call a kernel's function on tensors at these addresses."""
    if batch == 0:
        return
    pointers = (ctypes.c_void_p * len(addresses))(*addresses)
    ends = None if lengths is None else ctypes.c_void_p(lengths.data_ptr())
    threads = min(torch.get_num_threads(), batch)
    function(ctypes.c_int64(steps), ctypes.c_int64(batch), ctypes.c_int64(threads), wrap, ends, pointers, kept)


def empty(like: Tensor, *shape: int) -> Tensor:
    """Uninitialised memory; large ones in large pages, whose first use takes a fifth of the time."""
    tensor = like.new_empty(shape)
    if _madvise is not None and tensor.device.type == "cpu" and tensor.nbytes >= 1 << 22:
        first = -(-tensor.data_ptr() // 4096) * 4096
        size = (tensor.data_ptr() + tensor.nbytes - first) // 4096 * 4096
        _madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), 14)  # MADV_HUGEPAGE
    return tensor


_madvise = ctypes.CDLL(None).madvise if sys.platform == "linux" else None
