"""What a graph of numbers cannot say is refused while a step is traced, and what was traced is tried beside the step.

What it can say only in other words is put into these: numbers written as tensors are made by operations, gradients
that are stopped by a mode are stopped at each result, and gradients of one's own become an operation.

Shapes: N rows, I input size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from rnnzoo.engine import gradients
from rnnzoo.engine.operations import VIEWS
from rnnzoo.errors import UserError

STOPS = {"detach_", "requires_grad_"}
CHANGES = {"register_hook", "register_post_accumulate_grad_hook", "retain_grad", "backward"}
PROPERTIES = {"grad": "reads gradients", "grad_fn": "reads gradients"} | dict.fromkeys(
    ("requires_grad", "is_leaf", "_backward_hooks"), "asks for what gradients are wanted"
)
CONSTANTS = 1024
"""A tensor written as numbers may have so many; a larger one is to be a buffer."""


class Strict(TorchFunctionMode):
    """Refuses what a graph of numbers cannot say, and takes the place of `autograd.Function.apply`."""

    def __enter__(self) -> Strict:
        self._applied = gradients.instead()
        self._applied.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._applied.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        read = getattr(getattr(func, "__self__", None), "__name__", "") if name in ("__get__", "__set__") else ""
        if name in STOPS or (read == "data" and name == "__set__") or torch.is_inference_mode_enabled():
            raise UserError("it stops gradients")
        if name in CHANGES:
            raise UserError("it changes gradients")
        if read in PROPERTIES:
            raise UserError(f"it {PROPERTIES[read]}, with .{read}")
        if "dropout" in name:
            raise UserError("it leaves out by chance, which recurrent_dropout=... does")
        if read == "data":
            return args[0].detach()
        result = WRITTEN[name](func, *args, **kwargs) if name in WRITTEN else func(*args, **kwargs)
        if torch.is_grad_enabled():
            return result
        with torch.enable_grad():
            return tree_map_only(Tensor, Tensor.detach, result)


def _numbers(func: Any, data: Any, *args: Any, dtype: Any = None, device: Any = None, **others: Any) -> Tensor:
    """A tensor of the given numbers, made by operations, which unlike a tensor are part of a graph."""
    like = data if isinstance(data, Tensor) else None
    if like is not None:  # new_tensor, or what is a tensor already
        if func is not Tensor.new_tensor:
            made: Tensor = func(data, *args, dtype=dtype, device=device, **others)
            return made
        (data, *args), dtype = args, dtype or like.dtype  # type: ignore[assignment]
    array = np.asarray(data)
    if array.dtype == object:
        raise UserError(f"it calls {func.__name__} on tensors; use torch.stack")
    if array.size > CONSTANTS:
        raise UserError(f"a constant tensor of more than {CONSTANTS} numbers must be a buffer of the cell")
    written = isinstance(data, (np.ndarray, np.generic))
    wanted = torch.get_default_dtype() if array.dtype.kind == "f" and not written else getattr(torch, array.dtype.name)
    device = device if device is not None or like is None else like.device
    options = {"dtype": dtype or wanted, "device": device}
    parts = [torch.scalar_tensor(number, **options) for number in array.flatten().tolist()]
    if not array.shape:
        return parts[0]
    return torch.stack(parts).reshape(array.shape) if parts else torch.zeros(array.shape, **options)


def _index(index: Any, like: Tensor) -> Any:
    """An index in which lists of whole numbers, or of truth values, are tensors made by operations."""
    if isinstance(index, tuple):
        return tuple(_index(part, like) for part in index)
    if isinstance(index, (list, range, np.ndarray)):
        array = np.asarray(index)
        array = array.nonzero()[0] if array.dtype == bool and array.ndim == 1 else array
        return _numbers(torch.tensor, array.tolist(), dtype=torch.int64, device=like.device)
    return index


def _set(func: Any, tensor: Tensor, index: Any, value: Any) -> Any:
    value = value if isinstance(value, Tensor) else torch.scalar_tensor(value, dtype=tensor.dtype, device=tensor.device)
    return func(tensor, _index(index, tensor), value)


def _take(func: Any, x: Tensor, indices: Tensor, dim: int) -> Tensor:
    sizes = list(x.shape)
    sizes[dim] = indices.shape[dim]
    return torch.gather(x, dim, indices.expand(sizes))


def _einsum(func: Any, *args: Any) -> Tensor:
    """From left to right: to find a better order, opt_einsum, if it is installed, asks for the number of rows."""
    with torch.backends.opt_einsum.flags(enabled=False):
        found: Tensor = func(*args)
    return found


def _linear(func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = input @ weight.mT if weight.dim() > 1 else input @ weight
    return product if bias is None else product + bias


def _pad(func: Any, x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Circular padding is done by writing, in a way that no trace follows; so it is put together here."""
    if mode != "circular" or min(pad) < 0:
        found: Tensor = func(x, pad, mode, value)
        return found
    for k, (left, right) in enumerate(zip(pad[::2], pad[1::2])):
        dim, size = x.dim() - 1 - k, x.shape[-1 - k]
        parts = [x.narrow(dim, size - left, left), x, x.narrow(dim, 0, right)]
        x = torch.cat([part for part, wanted in zip(parts, (left, True, right)) if wanted], dim)
    return x


class _Bounded(torch.autograd.Function):
    """At least `least`; gradients pass as if nothing had been bounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, least: float) -> Tensor:
        return x.clamp_min(least)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _cosine(func: Any, x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    x1, x2 = torch.broadcast_tensors(x1, x2)
    first, second = (x / _Bounded.apply(torch.linalg.vector_norm(x, 2, dim, True), eps) for x in (x1, x2))
    return (first * second).sum(dim)


WRITTEN: dict[str, Callable[..., Any]] = {
    "tensor": _numbers,
    "as_tensor": _numbers,
    "new_tensor": _numbers,
    "__getitem__": lambda func, tensor, index: func(tensor, _index(index, tensor)),
    "__setitem__": _set,
    "take_along_dim": _take,
    "linear": _linear,  # torch's own asks for the number of rows, and of this its derivative
    "cosine_similarity": _cosine,
    "einsum": _einsum,
    "pad": _pad,
}
"""What is traced in other words."""


def followed(graph: fx.Graph) -> None:
    """Raises `UserError` if something is written to that others read: they do not name the one who wrote.

    What autograd's formulas write into new memory of their own, and hand on, is as good as an operation.
    """
    for node in graph.nodes:
        if node.op == "call_function" and getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            written: Any = node.args[0]
            if not node.users or len(written.users) > 1 or written.target in VIEWS:
                raise UserError(f"{node.target} writes to a tensor, out of sight of tracing")


def agree(step: Callable[..., Any], graph: Callable[..., Any], given: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether both give the same numbers, and the same gradients, from the same tensors, as far as `dtype` tells."""
    rtol = torch.finfo(dtype).eps ** 0.5
    first, second = (_results(function, given) for function in (step, graph))
    if len(first) < len(second):  # a step without gradients has numbers nevertheless
        second = second[: len(first)]
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol, rtol * _scale(a), equal_nan=True)
        for a, b in zip(first, second, strict=True)
    )


def _scale(tensor: Tensor) -> float:
    finite = tensor.detach().abs().nan_to_num(0, 0, 0)
    return float(finite.max()) if finite.numel() else 0.0


def _results(function: Callable[..., Any], given: Sequence[Tensor]) -> list[Tensor]:
    # hooks of a checkpoint around all this would compute it again; these keep what is saved as it is
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        tensors = [t.detach().clone().requires_grad_(t.is_floating_point() or t.is_complex()) for t in given]
        asking = [t for t in tensors if t.requires_grad]
        found = [f for f in function(*tensors) if isinstance(f, Tensor)]
        generator = torch.Generator(tensors[0].device).manual_seed(1)
        weights = [torch.randn(f.shape, generator=generator, dtype=f.dtype, device=f.device) for f in found]
        gradients: Sequence[Tensor | None] = [None] * len(asking)
        if any(f.requires_grad for f in found):
            weighed = [(f, w) for f, w in zip(found, weights) if f.requires_grad]
            gradients = torch.autograd.grad([f for f, _ in weighed], asking, [w for _, w in weighed], allow_unused=True)
        zeros = (torch.zeros_like(t) if g is None else g for t, g in zip(asking, gradients))
        return [*found, *zeros]
