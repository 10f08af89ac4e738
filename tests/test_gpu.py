"""Engines on a GPU compute what the plain loop computes on the CPU."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch

from rnnzoo import Recurrent, list_cells
from rnnzoo.check import everything, reachable
from rnnzoo.engine import ENGINES, scan, serial, steps

T, B, I, H = 5, 11, 5, 12  # noqa: E741  I is the input size everywhere in this project

SECONDS = 120
"""What one comparison may take, most of it to compile."""

WAYS = ["native", *(f"scan by {way}" for way in scan.WAYS), *serial.loops("cuda")]
"""Engines, for `scan` with what solves its recurrences, and for `serial` the loops that it has on a GPU."""

WHOLE = {"lstm", "mgu", "lem", "gla"}
"""Cells that are compiled as they are for use; the others for two time steps a call in place of eight, a quarter of the
work for a compiler."""

LONG = 700
"""Time steps that a scan cuts into chunks."""


def engine_of(way: str) -> str:
    name = way.partition(" ")[0]
    return name if name in ENGINES else "serial"


def by(way: str) -> AbstractContextManager[None]:
    """Within, this way is taken."""
    engine, _, kernel = way.partition(" by ")
    return scan.only(kernel) if kernel else nullcontext() if engine in ENGINES else serial.only(way)


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    left = float(os.environ.get("RNNZOO_GPU_UNTIL", "inf")) - time.time()  # set by tests/gpu.py
    if left < 1:
        pytest.skip("not reached in the time there was")
    seconds = int(min(SECONDS, left))

    def end(*_: Any) -> None:
        raise TimeoutError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", list_cells())
def test_engines_on_a_gpu(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(way)
    torch.manual_seed(0)
    layer = Recurrent(name, I, H, engine="reference").double()
    if ENGINES[engine].refuses(layer._cell(0)) is not None:
        pytest.skip(f"{engine} does not take {name}")
    if name not in WHOLE:
        monkeypatch.setattr(steps, "CHUNK", 2)
    other = Recurrent(name, I, H, engine="reference").double()
    other.load_state_dict(layer.state_dict())
    other.cuda().engine = engine
    states = [s[None] for s in reachable(layer._cell(0), B)]
    with by(way):
        for rows in (B, B - 2):  # the second does not fill what was compiled for the first
            for ragged in (False, True):
                x = torch.randn(T, rows, I, dtype=torch.float64)
                lengths = torch.randint(1, T + 1, (rows,)) if ragged else None
                some = [s[:, :rows] for s in states]
                expected = everything(layer, x, some, lengths)
                on_gpu = None if lengths is None else lengths.cuda()
                found = everything(other, x.cuda(), [s.cuda() for s in some], on_gpu)
                assert other.engine_used == engine
                for key, value in expected.items():
                    torch.testing.assert_close(
                        found[key].cpu(), value, rtol=1e-9, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}"
                    )


@pytest.mark.parametrize("name", ["min_gru", "lru", "gla"])
@pytest.mark.parametrize("resets", [False, True], ids=["", "resets"])
def test_scans_in_chunks(name: str, resets: bool) -> None:
    """Over many time steps, of a real state, a complex one, and a matrix."""
    torch.manual_seed(0)
    layer = Recurrent(name, I, H, engine="reference").double()
    x, lengths = torch.randn(LONG, 3, I, dtype=torch.float64), torch.tensor([LONG, 1, LONG // 2])
    states = [s[None] for s in reachable(layer._cell(0), 3)]
    anew = {"resets": torch.rand(LONG, 3) < 0.01} if resets else {}
    found = []
    for engine, device in (("reference", "cpu"), ("scan", "cuda")):
        layer.to(device).engine = engine
        layer.forward = partial(type(layer).forward, layer, **{key: value.to(device) for key, value in anew.items()})
        with scan.only("triton"):
            found.append(everything(layer, x.to(device), [s.to(device) for s in states], lengths.to(device)))
    expected, found = found
    for key, value in expected.items():
        torch.testing.assert_close(found[key].cpu(), value, rtol=1e-8, atol=1e-8, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", sorted(WHOLE | {"gru", "min_gru"}))
def test_lesser_precisions(name: str, way: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, and under autocast to bfloat16, as near to the plain loop in float64 as the plain loop is itself."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    engine = engine_of(way)
    torch.manual_seed(0)
    layers = [Recurrent(name, 16, 32, engine="reference").cuda() for _ in range(2)]
    if ENGINES[engine].refuses(layers[0]._cell(0)) is not None:
        pytest.skip(f"{engine} does not take {name}")
    layers[1].load_state_dict(layers[0].state_dict())
    layers[1].engine = engine
    if name not in WHOLE:
        monkeypatch.setattr(steps, "CHUNK", 2)
    x = torch.randn(19, 24, 16, device="cuda")
    states = [s[None].float().cuda() for s in reachable(Recurrent(name, 16, 32)._cell(0), 24)]
    found = []
    for layer in layers:
        with (
            torch.autocast("cuda", torch.bfloat16, dtype == torch.bfloat16),
            by(way) if layer.engine != "reference" else nullcontext(),
        ):
            found.append(everything(layer, x, states, None))
    exact = everything(layers[0].double(), x.double(), [s.double() for s in states], None)
    for key, value in exact.items():
        loop, other = ((f[key].double() - value).norm() / value.norm() for f in found)
        assert other <= 4 * loop + 10 * torch.finfo(torch.float32).eps, key
