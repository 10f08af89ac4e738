"""jax as a rival: a cell's plan, as it is read off its step, inside `jax.lax.scan` and compiled by XLA.

What the plan takes out of the loop, the products of the input above all, is out of it here, too.

Shapes: T time steps, B batch, I input size, N rows.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from rnnzoo import registry
from rnnzoo.engine.plan import Plan, plan
from rnnzoo.engine.reads import Reads
from rnnzoo.engine.trace import Tracer, aten, bare, effective, inputs, kind_of, module
from rnnzoo.errors import UserError

os.environ.setdefault("NPROC", str(torch.get_num_threads()))  # XLA's threads, once for the process
import jax
from jax import lax
from jax import numpy as jnp


def _dtype(dtype: torch.dtype) -> Any:
    """The type of the same name, but in single precision, which is all that jax has unless it is told otherwise."""
    return jax.dtypes.canonicalize_dtype(str(dtype).removeprefix("torch."))


def _slice(x: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    return x[(slice(None),) * (dim % x.ndim) + (slice(start, end, step),)]


def _expand(x: Any, sizes: Sequence[int]) -> Any:
    missing = len(sizes) - x.ndim
    return jnp.broadcast_to(x, [x.shape[k - missing] if size == -1 else size for k, size in enumerate(sizes)])


def _scatter_add(x: Any, dim: int, index: Any, source: Any) -> Any:
    places = list(jnp.indices(index.shape, sparse=True))
    places[dim % x.ndim] = index
    return x.at[tuple(places)].add(source)


def _full(sizes: Sequence[int], value: float, dtype: torch.dtype, **others: Any) -> Any:
    return jnp.full(sizes, value, _dtype(dtype))


def _arange(start: int, end: int, step: int = 1, **others: Any) -> Any:
    return jnp.arange(start, end, step)


FORMS: dict[Any, Callable[..., Any]] = {
    operator.mul: operator.mul,
    aten.sym_size.int: lambda x, dim: x.shape[dim],
    aten.add.Tensor: lambda x, y, alpha=1: x + (y if alpha == 1 else alpha * y),
    aten.sub.Tensor: lambda x, y, alpha=1: x - (y if alpha == 1 else alpha * y),
    aten.div.Tensor: lambda x, y: x / y,
    aten.mul.Tensor: lambda x, y: x * y,
    aten.neg.default: lambda x: -x,
    aten.relu.default: jax.nn.relu,
    aten.sigmoid.default: jax.nn.sigmoid,
    aten.rsqrt.default: lax.rsqrt,
    aten.erf.default: jax.scipy.special.erf,
    aten.clamp.default: jnp.clip,
    aten._to_copy.default: lambda x, dtype=None, **others: x if dtype is None else x.astype(_dtype(dtype)),
    **{getattr(aten, name).Scalar: getattr(operator, name) for name in ("gt", "ge", "lt", "le", "eq", "ne")},
    **{getattr(aten, name).Tensor: getattr(operator, name) for name in ("gt", "ge", "lt", "le", "eq", "ne")},
    **dict.fromkeys((aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.pow.Scalar), operator.pow),
    **dict.fromkeys((aten.alias.default, aten.clone.default), lambda x, **others: x),
    **dict.fromkeys((aten.view.default, aten._unsafe_view.default), jnp.reshape),
    **dict.fromkeys((aten.squeeze.dim, aten.squeeze.dims), lambda x, dim: jnp.squeeze(x, dim)),
    aten.detach.default: lax.stop_gradient,
    aten.mm.default: jnp.matmul,
    aten.addmm.default: lambda x, a, b: x + a @ b,
    aten.sum.dim_IntList: lambda x, dims, keepdim=False: jnp.sum(x, tuple(dims), keepdims=keepdim),
    aten.amax.default: lambda x, dims, keepdim=False: jnp.max(x, tuple(dims), keepdims=keepdim),
    aten.amin.default: lambda x, dims, keepdim=False: jnp.min(x, tuple(dims), keepdims=keepdim),
    aten.prod.dim_int: lambda x, dim, keepdim=False: jnp.prod(x, dim, keepdims=keepdim),
    aten.cat.default: lambda parts, dim=0: jnp.concatenate(parts, dim),
    aten.slice.Tensor: _slice,
    aten.select.int: lambda x, dim, index: jnp.take(x, index, dim),
    aten.unsqueeze.default: jnp.expand_dims,
    aten.permute.default: jnp.transpose,
    aten.expand.default: _expand,
    aten.gather.default: lambda x, dim, index: jnp.take_along_axis(x, index, dim),
    aten.scatter_add.default: _scatter_add,
    aten.linalg_matrix_exp.default: jax.scipy.linalg.expm,
    aten.scalar_tensor.default: lambda value, dtype, **others: jnp.asarray(value, _dtype(dtype)),
    aten.full.default: _full,
    aten.zeros.default: lambda sizes, **options: _full(sizes, 0, **options),
    aten.ones.default: lambda sizes, **options: _full(sizes, 1, **options),
    aten.full_like.default: lambda x, value, **others: jnp.full_like(x, value),
    aten.new_zeros.default: lambda x, sizes, **others: jnp.zeros(sizes, x.dtype),
    aten.arange.default: lambda end, **others: jnp.arange(end),
    **dict.fromkeys((aten.arange.start, aten.arange.start_step), _arange),
}
"""Torch's operations in jax's; those that work element by element or along a dimension and bear the same name there
need no mention."""


def _form(node: fx.Node) -> Callable[..., Any]:
    name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
    found = FORMS.get(node.target) or getattr(jnp, name, None)
    if found is None:
        raise UserError(f"{node.target} is not written for jax")
    return found


def interpreted(tracer: Tracer, graph: fx.Graph) -> Callable[..., tuple[Any, ...]]:
    """What a graph computes, as a function of jax's arrays. Raises `UserError` for what has no form there."""
    graph = tracer.trace(module(graph), *map(tracer.again, inputs(graph)))
    forms = {node: _form(node) for node in graph.nodes if node.op == "call_function"}

    def run(*given: Any) -> tuple[Any, ...]:
        values: dict[fx.Node, Any] = dict(zip(inputs(graph), given))
        for node, form in forms.items():
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
            values[node] = form(*args, **kwargs)
        results: Any = fx.map_arg(graph.output_node().args[0], values.__getitem__)
        return tuple(results)

    return run


class Layer(nn.Module):
    """One layer of a cell over x [T, B, I], from zeros; its weights are torch's, its numbers float32.

    Raises `UserError` for a cell whose step cannot be traced, or has no form here.
    """

    def __init__(self, name: str, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.cell = registry.get(name)(input_size, hidden_size)
        made = plan(self.cell)
        self.weights = made.weights
        self.learned = [key for key in made.weights if key in self.cell._parameters]
        run = self._function(made)
        self._run = jax.jit(run)
        loss = lambda weights, x, target, fixed: (run(weights, x, fixed) * target).sum()  # noqa: E731
        self._step = jax.jit(jax.value_and_grad(loss, (0, 1)))

    def _function(self, made: Plan) -> Callable[..., Any]:
        prepare, project, recur = (interpreted(made.tracer, g) for g in (made.prepare, made.project, made.recur))
        outer = len(inputs(made.project)) - 1
        read = self._readout(made.tracer)

        def run(learned: dict[str, Any], x: Any, fixed: dict[str, Any]) -> Any:
            T, B, _ = x.shape
            weights = [(learned | fixed)[key] for key in self.weights]
            found = prepare(*weights)
            leaves = project(x.reshape(T * B, -1), *found[:outer])

            def step(states: tuple[Any, ...], leaves: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
                new = recur(*leaves, *states, *found[outer:])
                return new, new

            start = tuple(_array(state) for state in self.cell.initial_state(torch.zeros(B, x.shape[-1])))
            _, states = lax.scan(step, start, tuple(leaf.reshape(T, B, *leaf.shape[1:]) for leaf in leaves))
            rows = (state.reshape(T * B, *state.shape[2:]) for state in states)
            (y,) = read(x.reshape(T * B, -1), *rows, *weights)
            return y.reshape(T, B, -1)

        return run

    def _readout(self, tracer: Tracer) -> Callable[..., tuple[Any, ...]]:
        cell, count = self.cell, len(self.cell.state_names)

        def read(x: Tensor, *others: Tensor) -> tuple[Tensor]:
            reads = Reads(kind_of(cell), cell)
            weights = dict(zip(self.weights, others[count:]))
            return (bare(cell, weights, reads).readout(x, *others[:count]),)

        like = torch.empty(0)
        states = (tracer.rows(*shape, like=like) for shape in cell.state_shapes())
        fakes = map(tracer.fixed, effective(cell).values())
        return interpreted(tracer, tracer.trace(read, tracer.rows(cell.input_size, like=like), *states, *fakes))

    def _given(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The weights that learn, and the others."""
        every = {key: _array(tensor) for key, tensor in effective(self.cell).items()}
        return {key: every[key] for key in self.learned}, {k: v for k, v in every.items() if k not in self.learned}

    def forward(self, x: Tensor) -> tuple[Any]:
        """The output [T, B, H], an array of jax's."""
        learned, fixed = self._given()
        return (jax.block_until_ready(self._run(learned, _array(x), fixed)),)

    def gradients(self, x: Tensor, target: Tensor) -> tuple[dict[str, Any], Any]:
        """Of the sum of output times target [T, B, H]: by the weights, and by x."""
        learned, fixed = self._given()
        _, found = jax.block_until_ready(self._step(learned, _array(x), _array(target), fixed))
        return found

    def memory_mb(self, x: Tensor, target: Tensor) -> float:
        """What forward and backward take beside their arguments, as XLA has planned it: MB."""
        learned, fixed = self._given()
        needs: Any = self._step.lower(learned, _array(x), _array(target), fixed).compile().memory_analysis()
        return float(needs.temp_size_in_bytes + needs.output_size_in_bytes) / 1e6


def _array(tensor: Tensor) -> Any:
    return jnp.from_dlpack(tensor.detach().contiguous())
