"""Whatever goes wrong while a step is planned or compiled: `auto` goes on with the plain loop, and says so once.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rnnzoo import Cell, InputWeight, Recurrent, UserError
from rnnzoo import engine as engines
from rnnzoo.engine import serial

I, H = 3, 4  # noqa: E741  I is the input size everywhere in this project

pytestmark = pytest.mark.usefixtures("shared_kernels")


@pytest.fixture(autouse=True)
def nothing_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_told", type(engines._told)())
    monkeypatch.setattr(engines, "_failed", type(engines._failed)())


def cell(body: Callable[[Any, Tensor], Tensor]) -> type[Cell]:
    class Made(Cell):
        W = InputWeight()

        def step(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(x @ self.W + body(self, h))

    return Made


ODD: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "conv1d": lambda c, h: F.conv1d(h[:, None], h.new_ones(1, 1, 3), padding=1)[:, 0],
    "polar": lambda c, h: torch.polar(h.exp(), h).real,
    "cdist": lambda c, h: torch.cdist(h[:, None], 1 + h[:, None])[:, 0],
    "fft": lambda c, h: torch.fft.rfft(h, H).abs().sum(-1, keepdim=True),
    "cumsum": lambda c, h: h.cumsum(-1),
    "sort": lambda c, h: h.sort(-1).values,
    "topk": lambda c, h: h.topk(2, -1).values.sum(-1, keepdim=True),
    "median": lambda c, h: h.median(-1, keepdim=True).values,
    "gather": lambda c, h: h.gather(-1, torch.zeros_like(h, dtype=torch.int64)),
    "inverse": lambda c, h: torch.linalg.inv(torch.eye(H, dtype=h.dtype) + 0.1 * h[:, None] * h[:, :, None])[:, 0],
    "batch mean": lambda c, h: h - h.mean(0),
    "branch": lambda c, h: h if float(h.sum()) > -1e9 else -h,
    "random": lambda c, h: h + 0 * torch.rand_like(h),
    "unfold": lambda c, h: F.pad(h, (1, 1)).unfold(-1, 3, 1).sum(-1),
    "prod": lambda c, h: h.prod(-1, keepdim=True),
    "cross": lambda c, h: F.pad(torch.cross(h[:, :3], 1 + h[:, :3], dim=-1), (0, 1)),
    "grid": lambda c, h: F.interpolate(h[:, None], scale_factor=2, mode="linear")[:, 0, ::2],
    "max_pool": lambda c, h: F.max_pool1d(h[:, None], 3, 1, 1)[:, 0],
    "bucketize": lambda c, h: torch.bucketize(h, torch.linspace(-1, 1, 5, dtype=h.dtype)) * h,
    "erfinv": lambda c, h: torch.erfinv(0.9 * h),
    "lgamma": lambda c, h: torch.lgamma(2 + h),
    "complex": lambda c, h: torch.view_as_real(torch.view_as_complex(h.unflatten(-1, (2, 2))) * 1j).flatten(1),
    "integers": lambda c, h: (h * 4).long() // 2 + h,
    "in place": lambda c, h: h.clone().mul_(0.5),
    "set": lambda c, h: h.clone().index_fill_(1, torch.tensor([0]), 0.5),
    "sparse": lambda c, h: (h.to_sparse() * 2).to_dense(),
    "einsum": lambda c, h: torch.einsum("bi,bj,bk->bi", h, h, 0.1 * h),
    "scatter": lambda c, h: torch.zeros_like(h).scatter(1, torch.zeros_like(h, dtype=torch.int64), h),
    "list": lambda c, h: torch.tensor(h.tolist(), dtype=h.dtype),
    "numpy": lambda c, h: torch.from_numpy(h.detach().numpy().copy()),
    "fails": lambda c, h: h @ h if h.requires_grad is None else h.view(-1, 2, 2).matrix_exp().flatten(1),
}


@pytest.mark.parametrize("what", ODD)
def test_auto_goes_on_whatever_happens(what):
    layers = {}
    kind = cell(ODD[what])
    x = torch.randn(5, 3, I, dtype=torch.float64)
    found = {}
    for engine in ("auto", "reference"):
        torch.manual_seed(0)
        layers[engine] = layer = Recurrent(kind, I, H, engine=engine).double()
        layer.expected_calls = 10**6
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                output, _ = layer(x)
                gradients = torch.autograd.grad(output.sum(), list(layer.parameters()))
        said = [str(w.message) for w in caught if "engine=auto goes on" in str(w.message)]
        assert len(said) == (engine == "auto" and layer.engine_used == "reference"), said
        assert all(line.startswith("Made") and "\n" not in line for line in said)
        found[engine] = [output.detach(), *gradients]
    torch.testing.assert_close(found["auto"], found["reference"], rtol=1e-9, atol=1e-9)
    assert serial.refuses(layers["auto"].cells[0], x) is None or layers["auto"].engine_used == "reference"


@pytest.mark.parametrize("broken", ["trace_step", "derive", "write", "Kernel"])
def test_a_fault_of_the_engine_itself_is_a_refusal(broken, monkeypatch):
    def fail(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("nobody thought of this")

    places = {"trace_step": "plan", "derive": "plan", "write": "cpp", "Kernel": "serial"}
    monkeypatch.setattr(f"rnnzoo.engine.{places[broken]}.{broken}", fail)
    kind = cell(lambda c, h: 0.3 * h)
    with pytest.raises(UserError, match="nobody thought of this") as caught:
        Recurrent(kind, I, H, engine="serial")(torch.zeros(2, 1, I))
    assert "\n" not in str(caught.value)
    layer = Recurrent(kind, I, H)
    layer.expected_calls = 10**6
    with pytest.warns(UserWarning, match="Made.*nobody thought of this.*engine=auto goes on"):
        layer(torch.zeros(2, 1, I))
    layer(torch.zeros(2, 1, I))
    assert layer.engine_used == "reference"
