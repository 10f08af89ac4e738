"""`Recurrent.record`: what a step names, beside the same computed by hand and by torch's own layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rnnzoo import Cell, Recurrent, list_cells
from rnnzoo.cell import gate

TORCH = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@pytest.mark.parametrize("engine", ["auto", "native", "serial"])
def test_an_lstms_gates_are_torchs(engine: str) -> None:
    """Computed once more from nn.LSTM's weights and outputs, in torch's order i, f, g, o."""
    torch.manual_seed(1)
    twin = nn.LSTM(3, 5, 2, bidirectional=True)
    layer = Recurrent("lstm", 3, 5, 2, bidirectional=True, engine=engine)
    layer.load_torch(twin.state_dict())
    x = torch.randn(6, 2, 3)
    with torch.no_grad():
        found = layer.record(x)
        output, (_, c) = twin(x)
        assert len(found) == 4
        forward, backward = found[2:]
        torch.testing.assert_close(torch.cat([forward["h"], backward["h"]], -1), output)
        torch.testing.assert_close(torch.stack([forward["c"][-1], backward["c"][0]]), c[2:])
        below = torch.cat([found[0]["h"], found[1]["h"]], -1)
        for each, suffix, ahead in ((forward, "l1", -1), (backward, "l1_reverse", 1)):
            before = each["h"].roll(-ahead, 0)
            before[0 if ahead < 0 else -1] = 0
            w, u, b, d = (getattr(twin, f"{name}_{suffix}") for name in TORCH)
            i, f, g, o = (below @ w.T + before @ u.T + b + d).chunk(4, -1)
            for name, value in (("i", i.sigmoid()), ("f", f.sigmoid()), ("g", g.tanh()), ("o", o.sigmoid())):
                torch.testing.assert_close(each[name], value)


class Shown(Cell):
    """One variable named twice, one that no input enters, one number."""

    W, U, b = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        turn = self.U - self.U.T
        a = x @ self.W
        a = a + h @ turn
        count = 3
        return torch.tanh(a / count)


def test_names_are_the_steps_own() -> None:
    layer = Recurrent(Shown, 3, 4, batch_first=True)
    x, h0 = torch.randn(2, 5, 3), torch.randn(1, 2, 4)
    output, _ = layer(x, h0)
    [found] = layer.record(x, h0)
    assert list(found) == ["h", "turn", "a"]
    torch.testing.assert_close(found["h"].transpose(0, 1), output)
    torch.testing.assert_close(found["h"], torch.tanh(found["a"] / 3))
    assert found["turn"].shape == (5, 4, 4)
    assert layer.engine == "auto"


def test_gradients_flow_back() -> None:
    layer = Recurrent("gru", 3, 4)
    x = torch.randn(5, 2, 3, requires_grad=True)
    [found] = layer.record(x)
    gradient: Any
    (gradient,) = torch.autograd.grad(found["z"][2].sum(), x)
    assert gradient[:3].abs().sum() > 0 and gradient[3:].abs().sum() == 0
    with torch.no_grad():
        assert not layer.record(x)[0]["z"].requires_grad


@pytest.mark.parametrize("name", list_cells())
def test_every_cells_states_are_recorded(name: str) -> None:
    """The last recorded states are those that the layer returns; a single sequence does too."""
    layer = Recurrent(name, 4, 6, engine="reference").eval()
    x = torch.randn(3, 4)
    with torch.no_grad():
        _, state = layer(x)
        [found] = layer.record(x)
    states = (state,) if isinstance(state, Tensor) else state
    for key, value in zip(layer.cells[0].state_names, states):
        torch.testing.assert_close(found[key][-1, 0], value[0], equal_nan=True)
