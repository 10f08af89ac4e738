"""Gradients of one's own: `torch.autograd.Function` as an operation whose backward pass is taken as it is written.

While a step is traced, `Function.apply` becomes the operation `rnnzoo::own`, and its derivative `rnnzoo::own_gradient`;
both stay whole until the backward pass is derived, and are then replaced by what the function's two methods do. What
the forward pass keeps for the backward pass is computed by both, and so only once in the end.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.function import _SingleLevelFunction

from rnnzoo.errors import UserError

_used: list[tuple[type[torch.autograd.Function], tuple[Any, ...]]] = []
"""Functions, and what they were given beside tensors, where None stands for a tensor; an operation has its number."""

_TENSOR = object()


@contextmanager
def instead() -> Iterator[None]:
    """In this thread, have `Function.apply` make the operation. Others may not notice."""
    plain, own = torch.autograd.Function.__dict__["apply"], threading.get_ident()

    def apply(kind: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != own:
            return plain.__get__(None, kind)(*args, **kwargs)
        return operation(kind, *args, **kwargs)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.autograd.Function.apply = plain  # type: ignore[method-assign]


def operation(kind: type[torch.autograd.Function], *args: Any) -> Tensor:
    """The operation that stands for `kind.apply(*args)`."""
    given = tuple(_TENSOR if isinstance(a, Tensor) else a for a in args)
    number = next((k for k, used in enumerate(_used) if used[0] is kind and _alike(used[1], given)), len(_used))
    if number == len(_used):
        _used.append((kind, given))
    made: Tensor = torch.ops.rnnzoo.own([a for a in args if isinstance(a, Tensor)], number)
    return made


def _alike(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return len(a) == len(b) and all(x is y or (type(x) is type(y) and repr(x) == repr(y)) for x, y in zip(a, b))


class _Context:
    """What a function's two methods share."""

    materialize = True

    def __init__(self, args: Sequence[Any]) -> None:
        self.needs_input_grad = tuple(isinstance(a, Tensor) and a.is_floating_point() for a in args)
        self.saved_tensors: tuple[Tensor | None, ...] = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """Of a function with one result, whose gradient is always there, this says nothing."""

    def mark_dirty(self, *tensors: Tensor) -> None:
        raise UserError("an own gradient writes to what it is given")

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        raise UserError("an own gradient marks what has none; use detach")


def _forward(tensors: Sequence[Tensor], number: int) -> tuple[Tensor, Any, list[Any]]:
    """The function's result, what it keeps, and its arguments."""
    kind, given = _used[number]
    left = iter(tensors)
    args = [next(left) if a is _TENSOR else a for a in given]
    context: Any = _Context(args)
    function: Any = kind
    if kind.setup_context is torch.autograd.Function.setup_context:
        result = function.forward(context, *args)
    else:
        result = function.forward(*args)
        function.setup_context(context, tuple(args), result)
    if not isinstance(result, Tensor):
        raise UserError(f"{kind.__name__} returns other than one tensor")
    return (result.clone() if any(result is a for a in args) else result), context, args


def own(tensors: Sequence[Tensor], number: int) -> Tensor:
    """What the function's `forward` returns."""
    with torch.no_grad():
        return _forward(tensors, number)[0]


def own_gradient(gradient: Tensor, tensors: Sequence[Tensor], number: int, wanted: int) -> Tensor:
    """What its `backward` returns for the tensor `wanted`."""
    with torch.no_grad():
        _, context, args = _forward(tensors, number)
        function: Any = _used[number][0]
        found = function.backward(context, gradient)
        found = found if isinstance(found, tuple) else (found,)
        place = [k for k, a in enumerate(args) if isinstance(a, Tensor)][wanted]
        return torch.zeros_like(tensors[wanted]) if found[place] is None else found[place].clone()


class _Differentiable(_SingleLevelFunction):
    """`own` with its derivative, under autograd and under torch.func alike."""

    @staticmethod
    def forward(ctx: Any, number: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.number = number
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = torch.ops.rnnzoo.own(list(tensors), number)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        tensors = list(ctx.saved_tensors)
        wanted = zip(ctx.needs_input_grad[1:], range(len(tensors)))
        found = [
            torch.ops.rnnzoo.own_gradient(gradient, tensors, ctx.number, k) if need else None for need, k in wanted
        ]
        return None, *found


_library = torch.library.Library("rnnzoo", "DEF")
_library.define("own(Tensor[] tensors, int number) -> Tensor")
_library.define("own_gradient(Tensor gradient, Tensor[] tensors, int number, int wanted) -> Tensor")
_methods: dict[str, Any] = {"own": own, "own_gradient": own_gradient}
for _name, _method in _methods.items():
    _library.impl(_name, _method, "CompositeExplicitAutograd")
    torch.library.register_fake(f"rnnzoo::{_name}", _method, lib=_library)


def _differentiable(tensors: Sequence[Tensor], number: int) -> Tensor:
    with enable_single_level_autograd_function():
        result: Tensor = _Differentiable.apply(number, *tensors)  # type: ignore[attr-defined]
    return result


_library.impl("own", _differentiable, "Autograd")

OPENED: dict[Any, Any] = {torch.ops.rnnzoo.own.default: own, torch.ops.rnnzoo.own_gradient.default: own_gradient}


def applied(graph: fx.Graph) -> list[str]:
    """The names of the functions that the graph applies, but for those that say what torch says of a gradient."""
    found = (_used[args[1]][0] for node in graph.nodes if node.target in OPENED and (args := list(node.args)))
    return [kind.__name__ for kind in found if not hasattr(kind, "AS_TORCH")]


def opened(graph: fx.Graph) -> bool:
    """Have the graph call the functions' methods when it is run; whether there are any."""
    found = [node for node in graph.nodes if node.target in OPENED]
    for node in found:
        node.target = OPENED[node.target]
    return bool(found)
