"""Hooks on a cell run at every time step, as in the plain loop, and never are silently left out.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module
from torch.nn.utils import prune, spectral_norm, weight_norm

from rnnzoo import Recurrent, UserError
from rnnzoo.export import export

I, H, T = 3, 4, 5  # noqa: E741  I is the input size everywhere in this project

HOOKS: dict[str, Callable[[nn.Module, Callable[..., None]], Any]] = {
    "forward": lambda cell, hook: cell.register_forward_hook(hook),
    "forward pre": lambda cell, hook: cell.register_forward_pre_hook(hook),
    "backward": lambda cell, hook: cell.register_full_backward_hook(hook),
    "backward pre": lambda cell, hook: cell.register_full_backward_pre_hook(hook),
    "forward on all": lambda cell, hook: module.register_module_forward_hook(hook),
    "forward pre on all": lambda cell, hook: module.register_module_forward_pre_hook(hook),
    "backward on all": lambda cell, hook: module.register_module_full_backward_hook(hook),
    "backward pre on all": lambda cell, hook: module.register_module_full_backward_pre_hook(hook),
}


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("engine", ["auto", "reference", "serial", "native", "scan"])
def test_hooks_run_at_every_time_step_or_are_refused(engine, kind):
    layer = Recurrent("qrnn" if engine == "scan" else "gru", I, H, engine=engine)
    layer.expected_calls = 10**6
    cell, calls = layer.cells[0], []

    def hook(*arguments: Any) -> None:
        calls.append(arguments[0] is cell)

    handle = HOOKS[kind](cell, hook)
    try:
        x = torch.randn(T, 2, I, requires_grad=True)
        if engine in ("auto", "reference"):
            layer(x)[0].sum().backward()
            assert layer.engine_used == "reference"
            assert sum(calls) == T
        else:
            with pytest.raises(UserError, match=f"engine={engine} cannot run under .*hooks.*; use engine=reference"):
                layer(x)
    finally:
        handle.remove()


def pruned(cell: nn.Module) -> None:
    prune.l1_unstructured(cell, "U_z", amount=0.5)


def normed(cell: nn.Module) -> None:
    with pytest.warns(FutureWarning):
        weight_norm(cell, "U_z")


def spectral(cell: nn.Module) -> None:
    spectral_norm(cell, "U_z")


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("change", [pruned, normed, spectral], ids=lambda f: f.__name__)
def test_weights_that_a_hook_computes_are_never_old(change):
    """A state dict is loaded, and nothing has run since."""
    torch.manual_seed(0)
    twin, layer = Recurrent("gru", I, H, engine="auto"), Recurrent("gru", I, H, engine="auto")
    x = torch.randn(T, 2, I)
    for each in (twin, layer):
        change(each.cells[0])
        each.eval()
    layer.load_state_dict(twin.state_dict())
    fresh = copy.deepcopy(twin.state_dict())
    expected = twin(x)[0]

    stepper = layer.stepper()
    torch.testing.assert_close(torch.stack([stepper(x_t) for x_t in x]), expected)

    layer.load_state_dict(fresh)
    module = nn.GRU(I, H)
    module.load_state_dict(layer.torch_state_dict())
    torch.testing.assert_close(module(x)[0], expected)

    with pytest.raises(UserError, match="forward hooks"):
        export(layer, "pt2")


@pytest.mark.parametrize("change", [pruned, nn.utils.parametrizations.orthogonal], ids=["pruned", "parametrized"])
def test_weights_that_are_computed_cannot_be_copied_into(change):
    layer = Recurrent("gru", I, H)
    change(layer.cells[0], *(() if change is pruned else ("U_z",)))
    with pytest.raises(UserError, match="U_z is pruned or parametrized"):
        layer.load_torch(nn.GRU(I, H).state_dict())


def test_backward_hooks_do_not_keep_a_layer_from_being_exported():
    layer = Recurrent("rnn", I, H)
    layer.cells[0].register_full_backward_hook(lambda *arguments: None)
    x: Tensor = torch.randn(T, 2, I)
    assert export(layer, "pt2")
    assert layer(x)[0].shape == (T, 2, H)
