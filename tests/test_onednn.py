"""Products of many rows by oneDNN are those of torch in float64, with their gradients, for special values too."""

import math
import os

import pytest
import torch

from rnnzoo.engine.onednn import product

AUTOCAST = """
import torch
from rnnzoo import Recurrent
layers = [Recurrent("lstm", 4, 8, engine=engine) for engine in ("serial", "reference")]
layers[1].load_state_dict(layers[0].state_dict())
x = torch.randn(6, 3, 4)
with torch.autocast("cpu", dtype=torch.bfloat16):
    found, expected = (layer(x)[0] for layer in layers)
torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)
found.sum().backward()
"""


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize(("N", "K", "M"), [(33, 8, 9), (40, 17, 80), (3, 5, 7), (64, 0, 8), (70, 12, 1)])
def test_products_and_gradients_are_those_of_torch(N, K, M, upright):
    a = torch.randn(K, N).T if upright else torch.randn(N, K)
    given = [a, torch.randn(K, M), torch.randn(M)]
    d = torch.randn(N, M)
    exact = [t.double().requires_grad_() for t in given]
    given = [t.requires_grad_() for t in given]
    torch.addmm(exact[2], exact[0], exact[1]).backward(d.double())
    found = product(*given)
    found.backward(d)
    torch.testing.assert_close(found, (exact[0] @ exact[1] + exact[2]).float(), rtol=1e-4, atol=1e-4)
    for t, e in zip(given, exact):
        torch.testing.assert_close(t.grad, e.grad.float(), rtol=1e-4, atol=1e-4)


def test_special_values_stay_in_their_rows():
    a, b = torch.randn(50, 13), torch.randn(13, 21)
    a[3, 4], a[7, 0], a[40, 12] = math.nan, math.inf, -math.inf
    torch.testing.assert_close(product(a, b), a @ b, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_autocast_where_onednn_has_no_bfloat16(command):
    ended = command("-c", AUTOCAST, env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert ended.returncode == 0, ended.stderr
