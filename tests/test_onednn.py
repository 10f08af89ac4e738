"""Products of many rows by oneDNN are those of torch in float64, with their gradients, for special values too."""

import math

import pytest
import torch

from rnnzoo.engine.onednn import product


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
