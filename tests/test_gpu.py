"""Engines on a GPU compute what the plain loop computes on the CPU."""

import pytest
import torch

from rnnzoo import Recurrent, list_cells
from rnnzoo.check import everything
from rnnzoo.engine import ENGINES

I, H = 5, 12  # noqa: E741  I is the input size everywhere in this project

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("engine", [e for e in ENGINES if e != "reference"])
@pytest.mark.parametrize("name", list_cells())
def test_engines_on_a_gpu(name, engine, ragged):
    layer = Recurrent(name, I, H, engine="reference").double()
    if ENGINES[engine].refuses(layer.cells[0]) is not None:
        pytest.skip(f"{engine} does not take {name}")
    other = Recurrent(name, I, H, engine=engine).double()
    other.load_state_dict(layer.state_dict())
    other.cuda()
    torch.manual_seed(0)
    for T, B in ((9, 3), (20, 17), (1, 1)):
        x = torch.randn(T, B, I, dtype=torch.float64)
        states = [torch.rand(1, *s.shape, dtype=torch.float64) for s in layer.cells[0].initial_state(x[0])]
        lengths = torch.randint(1, T + 1, (B,)) if ragged else None
        expected = everything(layer, x, states, lengths)
        found = everything(other, x.cuda(), [s.cuda() for s in states], None if lengths is None else lengths.cuda())
        for key, value in expected.items():
            torch.testing.assert_close(found[key].cpu(), value, rtol=1e-9, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")
