"""Plans run by torch itself, some time steps a call: compiled by Inductor, or as they are.

What `cpp.py` is on a CPU, this is on any other device, and for operations that have no C++ form there. Graphs are
handed to Inductor directly, without Dynamo, whose guards would compile again, or silently not at all, for every new
length: here a function for CHUNK steps and one for a single step serve all lengths, and a smaller batch is filled up.

Shapes: T time steps, B batch, K time steps of a call; every tensor is [T, B, ...] but states at one time, [B, ...],
and shared tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._inductor
from torch import Tensor
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

    Raises `UserError` when a compile fails or would be repeated beyond the limit.
    """

    def __init__(self, plan: Plan, compiled: bool = True) -> None:
        # not the plan, which keeps what is made of it
        self.name, self.states, self.derived, self.recur, self.project = (
            plan.name, plan.states, plan.derived, plan.recur, plan.project
        )  # fmt: skip
        self.compiled = compiled
        self.homes: tuple[None, ...] = (None,) * plan.derived.saved
        self.reused = (False,) * len(outputs(plan.project))
        self.given, self.results = parameters(plan)
        self._functions: dict[Any, Callable[..., Any]] = {}
        self._graphs = {name: module(graph) for name, graph in vars(plan.derived).items() if name in ("step", "back")}
        self._graphs["recur"] = module(plan.derived.infer)
        self._largest = 0

    def forward(
        self, tensors: Sequence[Tensor], slots: Sequence[int], lengths: Tensor | None, steps: int, saving: bool
    ) -> None:
        """See `cpp.Kernel.forward`."""
        names = [str(node.target) for node in inputs(self.recur)]
        known = dict(zip(names, tensors))
        stacks = [known[name] for name in self.states]
        sequences = [known[name] for name in names if name.startswith("leaf")]
        shared = [known[name] for name in names if name.startswith("shared")]
        states = [stack[0] for stack in stacks]
        for t, K in _chunks(range(steps)):
            rows = [leaf[t : t + K] for leaf in sequences]
            found = self._call("step" if saving else "recur", t, K, rows, states, shared, lengths)
            for stack, slot, values in zip(stacks, slots, found):
                if slot > 2:
                    stack[t + 1 : t + K + 1] = values
                else:
                    stack[(t + K) % slot] = values[-1]
            states = [stack[(t + K) % slot] for stack, slot in zip(stacks, slots)]  # a CUDA graph's own are transient
            for saved, values in zip(tensors[len(names) :], found[len(stacks) :]):
                saved[t : t + K] = values

    def backward(self, tensors: Sequence[Tensor | None], batch: int, lengths: Tensor | None, steps: int) -> None:
        """See `cpp.Kernel.backward`."""
        known = dict(zip((*self.given, *self.results), tensors))
        states = self.states
        shared = [known[n] for n in self.given if n.startswith("shared")]
        names = [str(n.target) for n in inputs(self.derived.back)]
        carry = []
        for s in states:
            end, like = known[f"end_{s}"], known[f"d_{s}"]
            assert like is not None
            carry.append(torch.zeros_like(like) if end is None else end)
        for t, K in reversed(_chunks(range(steps))):
            rows = []
            for name in names:
                new = name.startswith("new_") and name not in states
                tensor = known.get(name.removeprefix("new_") if new else name)
                if tensor is not None and not name.startswith(("shared", "d_new_")):
                    rows.append(tensor[t + new : t + new + K])
            for s, like in zip(states, carry):
                out = known[f"out_{s}"]
                rows.append(like.new_zeros(K, *like.shape) if out is None else out[t : t + K])
            found = self._call("back", t, K, rows, carry, shared, lengths)
            carry = [values.clone() for values in found[: len(states)]]
            for name, values in zip(self.results[len(states) :], found[len(states) :]):
                result = known[name]
                assert result is not None
                result[t : t + K] = values
        for s, values in zip(states, carry):
            result = known[f"d_{s}"]
            assert result is not None
            result.copy_(values)

    def _call(
        self, name: str, t: int, K: int, rows: list[Any], states: list[Any], shared: list[Any], lengths: Tensor | None
    ) -> list[Tensor]:
        """One call for K time steps from t on, with a batch filled up to what was compiled."""
        B = states[0].shape[0]
        running = []
        if lengths is not None:
            running = [torch.arange(t, t + K, device=lengths.device)[:, None] < lengths]  # [K, B]
        function = self._back if name == "back" else self._forward
        if not self.compiled:
            return function(self._graphs[name], K, rows, states, shared, running)
        self._largest = max(self._largest, (B + 7) // 8 * 8)
        fill = self._largest - B
        if fill:  # with rows that are there, for which the step is defined
            rows, running = ([_fill(x, 1, fill) for x in xs] for xs in (rows, running))
            states = [_fill(x, 0, fill) for x in states]
        device = states[0].device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = (name, K, bool(running), self._largest, precision)
        if key not in self._functions:
            self._functions[key] = self._compile(function, self._graphs[name], K, rows, states, shared, running)
        found = self._functions[key](*rows, *states, *shared, *running)
        by_time = len(self.states) if name == "back" else 0
        return [x[:B] if k < by_time else x[:, :B] for k, x in enumerate(found)]

    def _compile(self, function: Callable[..., Any], graph: Any, K: int, *groups: list[Tensor]) -> Callable[..., Any]:
        name = self.name
        if len({size for *_, size, _ in self._functions} | {self._largest}) > COMPILES:
            raise UserError(f"{name}: its plan was compiled for {COMPILES} ever larger batches; use engine=reference")
        sizes = [len(group) for group in groups]

        def flat(*tensors: Tensor) -> list[Tensor]:
            parts, start = [], 0
            for size in sizes:
                parts.append(list(tensors[start : start + size]))
                start += size
            return function(graph, K, *parts)

        tensors: list[Any] = [tensor.detach().contiguous() for group in groups for tensor in group]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Inductor's own, while it is imported
                traced = make_fx(flat, tracing_mode="fake")(*tensors)
                options = {"triton.cudagraphs": tensors[0].is_cuda, "emulate_precision_casts": True}
                compiled = torch._inductor.compile(traced, tensors, options=options)
        except Exception as error:
            raise UserError(f"{name}: its plan cannot be compiled: {reason(error)}; use engine=reference") from error
        return lambda *tensors: compiled(*(tensor.detach().contiguous() for tensor in tensors))

    def _forward(
        self, graph: Any, K: int, rows: list[Tensor], states: list[Tensor], shared: list[Tensor], running: list[Tensor]
    ) -> list[Tensor]:
        """K steps: the new states and saved tensors, each [K, B, ...]."""
        found: list[list[Tensor]] = []
        for k in range(K):
            new = list(graph(*(x[k] for x in rows), *states, *shared))
            if running:
                new[: len(states)] = [_where(running[0][k], n, s) for n, s in zip(new, states)]
            states = new[: len(states)]
            found.append(new)
        return [torch.stack(values) for values in zip(*found)]

    def _back(
        self, graph: Any, K: int, rows: list[Tensor], carry: list[Tensor], shared: list[Tensor], running: list[Tensor]
    ) -> list[Tensor]:
        """K steps backwards: the gradients of the states before them, then those of leaves and kept, [K, B, ...]."""
        states = self.states
        outs = rows[len(rows) - len(states) :]
        found: list[list[Tensor]] = []
        for k in reversed(range(K)):
            grads = [c + out[k] for c, out in zip(carry, outs)]
            some = grads
            if running:
                some = [_where(running[0][k], g, torch.zeros_like(g)) for g in grads]
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
            if running:
                new[: len(states)] = [_where(running[0][k], n, g) for n, g in zip(new, grads)]
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


def _dense(value: Tensor | None, like: Tensor) -> Tensor:
    return like if value is None else value


def _chunks(steps: range) -> list[tuple[int, int]]:
    """Where each call begins and how many time steps it takes."""
    whole = len(steps) // CHUNK * CHUNK
    return [(t, CHUNK) for t in range(0, whole, CHUNK)] + [(t, 1) for t in range(whole, len(steps))]


def _fill(x: Tensor, dim: int, count: int) -> Tensor:
    return torch.cat([x, x.narrow(dim, 0, 1).expand(*x.shape[:dim], count, *x.shape[dim + 1 :])], dim)


def _where(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(mask.reshape(-1, *[1] * (yes.dim() - 1)), yes, no)
