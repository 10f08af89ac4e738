"""What a graph of numbers cannot say is refused while a step is traced, and what was traced is tried beside the step.

Shapes: N rows, I input size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rnnzoo.errors import UserError

STOPS = {"detach", "detach_", "_set_grad_enabled", "requires_grad_"}
CHANGES = {"register_hook", "register_post_accumulate_grad_hook", "retain_grad", "backward"}
PROPERTIES = {"data": "stops gradients", "grad": "reads gradients", "grad_fn": "reads gradients"} | dict.fromkeys(
    ("requires_grad", "is_leaf", "_backward_hooks"), "asks for what gradients are wanted"
)


class Strict(TorchFunctionMode):
    """Refuses what a graph of numbers cannot say."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        read = getattr(getattr(func, "__self__", None), "__name__", "") if name in ("__get__", "__set__") else ""
        if name in STOPS or torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
            raise UserError("it stops gradients")
        if name in CHANGES:
            raise UserError("it changes gradients")
        if read in PROPERTIES:
            raise UserError(f"it {PROPERTIES[read]}, with .{read}")
        return func(*args, **(kwargs or {}))


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
