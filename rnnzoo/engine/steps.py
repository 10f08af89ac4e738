"""Plans run by torch itself, some time steps a call: compiled by Inductor, or as they are.

What `cpp.py` is on a CPU, this is on any other device, and for operations that have no C++ form there. Graphs are
handed to Inductor directly, without Dynamo, whose guards would compile again, or silently not at all, for every new
length: here one function serves all lengths, for what is past a sequence's end is masked, and smaller batches leave a
part of its memory unused. On a CUDA device a function is recorded as a graph of kernels and replayed: to launch a
small kernel takes longer than to run it. The graphs are our own and not Inductor's, which outlive a call only until
the next of anybody's.

Shapes: T time steps, B batch, K = CHUNK time steps of a call; every tensor is [T, B, ...] but states at one time,
[B, ...], and shared tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch._inductor
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from rnnzoo.engine.emit import parameters
from rnnzoo.engine.plan import Plan
from rnnzoo.engine.trace import inputs, module, outputs, reason
from rnnzoo.errors import UserError

CHUNK = 8

COMPILES = 8
"""For how many batch sizes a plan may be compiled, each larger than all before; what comes is rounded up to eight."""


class Steps:
    """A plan run by torch; the same interface as `cpp.Kernel`.

    All that a forward pass and the backward pass after it need is compiled when the forward pass begins. That raises
    `UserError` when a compile fails or would be repeated beyond the limit.
    """

    label = "graphs"

    def __init__(self, plan: Plan, compiled: bool = True) -> None:
        # not the plan, which keeps what is made of it
        self.name, self.states, self.derived, self.recur, self.project = (
            plan.name, plan.states, plan.derived, plan.recur, plan.project
        )  # fmt: skip
        self.compiled = compiled
        self.proven = not compiled  # torch's own operations are what the plain loop consists of
        self.homes: tuple[None, ...] = (None,) * plan.derived.saved
        self.reused = (False,) * len(outputs(plan.project))
        self.given, self.results = parameters(plan, plan.derived)
        self.dtype = inputs(plan.recur)[0].meta["val"].dtype
        graphs = {"recur": plan.derived.infer, "step": plan.derived.step, "back": plan.derived.back}
        self._graphs = {name: module(graph) for name, graph in graphs.items()}
        self._back_reads = [n for n in inputs(plan.derived.back) if not str(n.target).startswith("d_new_")]
        self._functions: dict[Any, Function] = {}
        self._largest = 0

    def forward(
        self, tensors: Sequence[Tensor], slots: Sequence[int], lengths: Tensor | None, steps: int, saving: bool
    ) -> None:
        """See `cpp.Kernel.forward`."""
        names = [str(node.target) for node in inputs(self.recur)]
        known = dict(zip(names, tensors))
        stacks = [known[name] for name in self.states]
        shared = [known[name] for name in names if name.startswith("shared")]
        states = [stack[0] for stack in stacks]
        self.ready(len(states[0]), states[0].device, saving)
        function = self._function("step" if saving else "recur", len(states[0]), states[0].device)
        sequences = [known[name] for name in names if name.startswith("leaf")]
        sequences.append(self._running(steps, lengths, states[0]))
        targets = [stack[1:] if slot > 2 else None for stack, slot in zip(stacks, slots)]
        pieces = _pieces([*targets, *tensors[len(names) :]], steps)
        function.share(shared)
        for rows, places in zip(_pieces(sequences, steps), pieces):
            found = function([_given(row) for row in rows], states)
            states = [values[-1] for values in found[: len(stacks)]]
            _copy(places, found)
        for stack, slot, state in zip(stacks, slots, states):
            if slot == 2:
                stack[steps % slot] = state[: stack.shape[1]]

    def backward(self, tensors: Sequence[Tensor | None], batch: int, lengths: Tensor | None, steps: int) -> None:
        """See `cpp.Kernel.backward`."""
        known = dict(zip((*self.given, *self.results), tensors))
        ends: list[Tensor] = [_given(known[f"d_{s}"]) for s in self.states]
        function = self._function("back", batch, ends[0].device)
        sequences: list[Tensor | None] = []
        for node in self._back_reads:
            name = str(node.target)
            tensor = _given(known[name.removeprefix("new_") if name not in known else name])
            if name in self.states:
                sequences.append(tensor[:-1])
            elif not name.startswith("shared"):
                sequences.append(tensor[1:] if name.startswith("new_") else tensor)
        outs = [known[f"out_{s}"] for s in self.states]
        zeros = [end.new_zeros(CHUNK, *end.shape) if out is None else None for end, out in zip(ends, outs)]
        function.share([_given(known[n]) for n in self.given if n.startswith("shared")])
        carry = [torch.zeros_like(e) if (g := known[f"end_{s}"]) is None else g for s, e in zip(self.states, ends)]
        results = [known[name] for name in self.results[len(carry) :]]
        sequences += [*outs, self._running(steps, lengths, ends[0])]
        for rows, places in reversed(list(zip(_pieces(sequences, steps), _pieces(results, steps)))):
            K = len(_given(rows[-1]))
            for k, none in enumerate(zeros, len(rows) - len(zeros) - 1):
                rows[k] = rows[k] if none is None else none[:K]
            found = function([_given(row) for row in rows], carry)
            carry = found[: len(carry)]
            _copy(places, found[len(carry) :])
        for end, values in zip(ends, carry):
            end.copy_(values[:batch])

    def _running(self, steps: int, lengths: Tensor | None, like: Tensor) -> Tensor:
        """1 where a sequence goes on, 0 past its end: [T, B], in the dtype of all else, to be copied with it."""
        if lengths is None:
            return like.new_ones(steps, len(like))
        return (torch.arange(steps, device=like.device)[:, None] < lengths).to(like.dtype)

    def compiled_for(self, rows: int) -> str:
        """See `cpp.Kernel.compiled_for`."""
        return f"{self._rows(rows)} rows"

    def ready(self, rows: int, device: torch.device, saving: bool) -> None:
        """See `cpp.Kernel.ready`."""
        for name in ("step", "back") if saving else ("recur",):
            self._function(name, rows, device)

    def _rows(self, rows: int) -> int:
        """What so many rows are rounded up to; smaller batches are run by what was compiled for larger ones."""
        return max(self._largest, (rows + 7) // 8 * 8)

    def _function(self, name: str, rows: int, device: torch.device) -> Function:
        """One of the graphs as a function for so many rows, compiled the first time."""
        if not self.compiled:
            return Function(lambda *groups: self._run(name, *groups))
        self._largest = self._rows(rows)
        kind = device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (name, self._largest, precision, device)
        if key not in self._functions:
            if len({size for _, size, *_ in self._functions} | {self._largest}) > COMPILES:
                raise UserError(
                    f"{self.name}: its plan was compiled for {COMPILES} ever larger batches; use engine=reference"
                )
            self._functions[key] = self._compile(name, device)
        return self._functions[key]

    def _compile(self, name: str, device: torch.device) -> Function:
        groups = self._memory(name, device)
        sizes = [len(group) for group in groups]

        def flat(*tensors: Tensor) -> list[Tensor]:
            left = iter(tensors)
            return self._run(name, *([next(left) for _ in range(size)] for size in sizes))

        tensors: list[Any] = [tensor for group in groups for tensor in group]
        try:
            with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
                warnings.simplefilter("ignore")  # Inductor's own, about itself and about what it might do elsewhere
                traced = make_fx(flat, tracing_mode="fake")(*tensors)
                compiled = torch._inductor.compile(traced, tensors, options={"emulate_precision_casts": True})
                if device.type == "cuda":
                    compiled = _recorded(compiled, tensors)
        except Exception as error:
            raise UserError(
                f"{self.name}: its plan cannot be compiled: {reason(error)}; use engine=reference"
            ) from error
        return Function(lambda *groups: compiled(*(tensor for group in groups for tensor in group)), groups)

    def _memory(self, name: str, device: torch.device) -> tuple[list[Tensor], ...]:
        """Rows [K, B, ...], states [B, ...] and shared tensors as a function takes them, for the largest batch."""
        B = self._largest

        def rows(nodes: Iterable[fx.Node]) -> list[Tensor]:
            return [like.new_zeros(CHUNK, B, *node.meta["val"].shape[1:]) for node in nodes]

        with torch.inference_mode(False):
            like = torch.empty(0, dtype=self.dtype, device=device)
            reads = self._back_reads if name == "back" else inputs(self.recur)
            states = [node for node in inputs(self.recur) if str(node.target) in self.states]
            shared = [like.new_zeros(n.meta["val"].shape) for n in reads if str(n.target).startswith("shared")]
            sequences = [n for n in reads if not str(n.target).startswith("shared")]
            if name == "back":
                sequences += states  # the gradients of their values at all times
            else:
                sequences = [n for n in sequences if n not in states]
            running = like.new_zeros(CHUNK, B)
            return [*rows(sequences), running], [state[0] for state in rows(states)], shared

    def _run(self, name: str, rows: list[Tensor], states: list[Tensor], shared: list[Tensor]) -> list[Tensor]:
        function = self._back if name == "back" else self._forward
        *rows, running = rows
        return function(self._graphs[name], rows, states, shared, running != 0)

    def _forward(
        self, graph: Any, rows: list[Tensor], states: list[Tensor], shared: list[Tensor], running: Tensor
    ) -> list[Tensor]:
        """K steps: the new states and saved tensors, each [K, B, ...]."""
        found: list[list[Tensor]] = []
        for k in range(len(running)):
            new = list(graph(*(x[k] for x in rows), *states, *shared))
            new[: len(states)] = [_where(running[k], n, s) for n, s in zip(new, states)]
            states = new[: len(states)]
            found.append(new)
        return [torch.stack(values) for values in zip(*found)]

    def _back(
        self, graph: Any, rows: list[Tensor], carry: list[Tensor], shared: list[Tensor], running: Tensor
    ) -> list[Tensor]:
        """K steps backwards: the gradients of the states before them, then those of leaves and kept, [K, B, ...]."""
        states = self.states
        outs = rows[len(rows) - len(states) :]
        found: list[list[Tensor]] = []
        for k in reversed(range(len(running))):
            grads = [c + out[k] for c, out in zip(carry, outs)]
            some = [_where(running[k], g, torch.zeros_like(g)) for g in grads]
            steps, tensors = iter(rows), iter(shared)
            arguments = []
            for node in inputs(self.derived.back):
                name = str(node.target)
                if name.startswith("d_new_"):
                    arguments.append(some[states.index(name[6:])])
                else:
                    value = next(tensors) if name.startswith("shared") else next(steps)[k]
                    arguments.append(value.to(node.meta["val"].dtype))  # truth values are saved as numbers
            new = list(graph(*arguments))
            new[: len(states)] = [_where(running[k], n, g) for n, g in zip(new, grads)]
            carry = new[: len(states)]
            found.append([_dense(v, like) for v, like in zip(new[len(states) :], self._shapes(carry[0]))])
        return [*carry, *(torch.stack(values[::-1]) for values in zip(*found))]

    def _shapes(self, like: Tensor) -> list[Tensor]:
        """Tensors shaped as the leaves' gradients and what is kept; a leaf that gets no gradient gets zeros."""
        nodes = [
            *outputs(self.project),
            *outputs(self.derived.back)[len(self.states) + len(self.reused) :],
        ]
        return [like.new_zeros(()).expand(len(like), *node.meta["val"].shape[1:]) for node in nodes]


class Function:
    """A function of rows, states and shared tensors, with memory of its own for them if it is compiled."""

    def __init__(self, run: Callable[..., list[Tensor]], memory: tuple[list[Tensor], ...] | None = None) -> None:
        self._run, self._memory = run, memory
        self._shared: Sequence[Tensor] = ()

    def share(self, shared: Sequence[Tensor]) -> None:
        """Take these tensors for all calls that follow."""
        self._shared = shared
        if self._memory is not None:
            _copy(self._memory[2], shared)

    def __call__(self, rows: Sequence[Tensor], states: Sequence[Tensor]) -> list[Tensor]:
        """Rows [K, B, ...], or fewer of both, and states; what is returned holds until the next call.

        The last of the rows tells where sequences go on; what it says nothing of, they do not.
        """
        if self._memory is None:
            return self._run(list(rows), list(states), self._shared)
        places, before, _ = self._memory
        (K, B), running = rows[-1].shape, places[-1]
        if running.shape[1] > B:
            running.zero_()
        if K < CHUNK:
            torch._foreach_zero_([place[K:] for place in places])  # nor is there a gradient
        _copy([*(place[:K] for place in places), *before], [*rows, *states])
        return self._run(*self._memory)


def _recorded(function: Callable[..., list[Tensor]], tensors: list[Tensor]) -> Callable[..., list[Tensor]]:
    """The kernels that a function starts on these very tensors; it will find new values there."""
    with torch.cuda.device(tensors[0].device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function(*tensors)  # what happens once only, such as loading kernels, cannot be recorded
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            found = list(function(*tensors))

    def replay(*_: Tensor) -> list[Tensor]:
        graph.replay()
        return found

    return replay


def _pieces(tensors: Sequence[Tensor | None], steps: int) -> list[list[Tensor | None]]:
    """Tensors [T, B, ...] in pieces of CHUNK time steps."""
    pieces = [[None] * -(-steps // CHUNK) if t is None else t[:steps].split(CHUNK) for t in tensors]
    return [list(piece) for piece in zip(*pieces)] if pieces else [[] for _ in range(-(-steps // CHUNK))]


def _copy(places: Sequence[Tensor | None], values: Sequence[Tensor]) -> None:
    """Copy each value to its place, if it has one; of a larger one, as much as there is room for, and the reverse."""
    pairs = [(p, v) for p, v in zip(places, values) if p is not None]
    if pairs:
        torch._foreach_copy_([_part(p, v) for p, v in pairs], [_part(v, p) for p, v in pairs])


def _part(x: Tensor, like: Tensor) -> Tensor:
    """As many of the first entries of x along its first two dimensions as `like` has."""
    if x.shape == like.shape:
        return x
    for dim in range(min(2, x.dim())):
        x = x.narrow(dim, 0, min(x.shape[dim], like.shape[dim]))
    return x


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _dense(value: Tensor | None, like: Tensor) -> Tensor:
    return like if value is None else value


def _where(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(mask.reshape(-1, *[1] * (yes.dim() - 1)), yes, no)
