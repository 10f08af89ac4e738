"""Hooks on a cell, which only the plain loop runs, and weights that are made anew before each forward."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

RENEWING = (BasePruningMethod, WeightNorm, SpectralNorm)
"""torch's hooks that compute a weight from other tensors."""


def hooks(cell: nn.Module, backward: bool = True) -> str | None:
    """What kind of hooks the cell would run at every time step, or None; those of backward passes too if asked for."""
    if cell._forward_pre_hooks or cell._forward_hooks:
        return "forward hooks, as pruning leaves them"
    if backward and (cell._backward_hooks or cell._backward_pre_hooks):
        return "backward hooks"
    if module._global_forward_hooks or module._global_forward_pre_hooks:
        return "forward hooks on all modules"
    if backward and (module._global_backward_hooks or module._global_backward_pre_hooks):
        return "backward hooks on all modules"
    return None


def renew(cell: nn.Module) -> None:
    """Have weights that torch's own hooks compute before each forward be what they would be then."""
    for hook in cell._forward_pre_hooks.values():
        if isinstance(hook, RENEWING):
            hook(cell, ())
