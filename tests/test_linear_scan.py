"""The parallel scan equals a NumPy loop in float64, its gradients those of a plain torch loop, however time is cut.

Errors are measured against the same recurrence on absolute values, which bounds what rounding can do.
Shapes: T time steps, B batch, H hidden size.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rnnzoo.engine import linear_scan as module
from rnnzoo.engine.linear_scan import linear_scan

B, H = 2, 3

FORMS = {
    "full": lambda T: (T, B, H),
    "column": lambda T: (T, B, 1),
    "row": lambda T: (T, 1, H),
    "time": lambda T: (T, 1, 1),
    "constant": lambda T: (1, 1, H),
    "constant per sequence": lambda T: (1, B, 1),
    "vector": lambda T: (H,),
    "number": lambda T: (),
}
"""Shapes of a that broadcast to b [T, B, H]."""

LENGTHS = [1, 2, 3, 7, 8, 9, 63, 64, 65, 500]


pytestmark = pytest.mark.usefixtures("empty_memory_is_nan")


@pytest.fixture(params=[None, 2, 4, 7], ids=lambda L: f"L={L}" if L else "rule")
def chunks(request, monkeypatch):
    """Chunks of L steps at every level, or as the rule has them."""
    if request.param:
        monkeypatch.setattr(module, "_chunk_length", lambda T, state: request.param)


def inputs(shape: tuple[int, ...], T: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """a, b and h0; a has moduli up to 1.1, and zeros, ones, minus ones and tiny numbers among them."""
    generator = torch.Generator().manual_seed(T + len(shape))
    b, h0 = (torch.randn(s, dtype=dtype, generator=generator) for s in ((T, B, H), (B, H)))
    a = torch.randn(shape, dtype=dtype, generator=generator)
    a = 1.1 * a / a.abs().clamp(min=1)
    kinds = torch.randint(8, shape, generator=generator)
    for kind, special in enumerate((0, 1, -1, 1e-30)):
        a = torch.where(kinds == kind, torch.tensor(special, dtype=dtype), a)
    return a, b, h0


def loop(a: np.ndarray, b: np.ndarray, h: np.ndarray) -> np.ndarray:
    """The definition, step by step."""
    found = np.empty_like(b)
    for t, a_t in enumerate(np.broadcast_to(a, b.shape)):
        found[t] = h = a_t * h + b[t]
    return found


def torch_loop(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    found = []
    for a_t, b_t in zip(a.expand(b.shape).unbind(0), b.unbind(0)):
        h = a_t * h + b_t
        found.append(h)
    return torch.stack(found)


def assert_near(found: Tensor, a: Tensor, b: Tensor, h0: Tensor, tolerance: float = 1e-13) -> None:
    truth = loop(*(x.numpy().astype(np.result_type(x.numpy(), np.float64)) for x in (a, b, h0)))
    bound = loop(*(np.abs(x.numpy().astype(np.result_type(x.numpy(), np.float64))) for x in (a, b, h0)))
    assert np.all(np.abs(found.numpy() - truth) <= tolerance * bound)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("T", LENGTHS)
def test_equals_the_loop(T, form, dtype, chunks):
    a, b, h0 = inputs(FORMS[form](T), T, dtype)
    h = linear_scan(a, b, h0)
    assert h.shape == b.shape and h.dtype == dtype
    assert_near(h, a, b, h0)


@pytest.mark.parametrize("special", [0.0, 1.0, -1.0, 1e-30, -1e-30])
def test_a_transition_that_is_the_same_everywhere(special, chunks):
    _, b, h0 = inputs((), 65)
    for shape in FORMS.values():
        a = torch.full(shape(65), special, dtype=torch.float64)
        assert_near(linear_scan(a, b, h0), a, b, h0)


def test_a_matrix_state(chunks):
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(65, B, H, 5, dtype=torch.float64, generator=generator)
    for shape in [(65, B, H, 1), (65, B, 1, 5), (65, 1, H, 1), (H, 1), (1, B, 1, 1)]:
        a = torch.rand(shape, dtype=torch.float64, generator=generator)
        assert_near(linear_scan(a, b, b[3]), a, b, b[3])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("T", LENGTHS)
def test_gradients_equal_those_of_the_loop(T, form, dtype, chunks):
    weight = torch.randn(T, B, H, dtype=dtype, generator=torch.Generator().manual_seed(1))
    found = []
    for run in (linear_scan, torch_loop):
        tensors = [x.requires_grad_() for x in inputs(FORMS[form](T), T, dtype)]
        loss = (run(*tensors) * weight).sum()
        found.append(torch.autograd.grad(loss.real if dtype.is_complex else loss, tensors))
    for actual, expected in zip(*found):
        assert actual.shape == expected.shape
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11 * max(1, expected.abs().max().item()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("form", ["full", "column", "constant", "vector"])
@pytest.mark.parametrize(("T", "L"), [(1, 2), (2, 2), (7, 2), (7, 3)])
def test_first_and_second_derivatives(T, L, form, dtype, monkeypatch):
    monkeypatch.setattr(module, "_chunk_length", lambda T, state: L)
    tensors = [x.requires_grad_() for x in inputs(FORMS[form](T), T, dtype)]
    assert torch.autograd.gradcheck(linear_scan, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(linear_scan, tensors, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_third_derivatives(dtype):
    found = []
    for run in (linear_scan, torch_loop):
        tensors = [x.requires_grad_() for x in inputs((5, B, H), 5, dtype)]
        value = run(*tensors).abs().square().sum()
        for _ in range(3):
            gradients = torch.autograd.grad(value, tensors, create_graph=True)
            value = sum(g.abs().square().sum() for g in gradients)
        found.append(gradients)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("wanted", range(3), ids=["a", "b", "h0"])
def test_only_what_is_asked_for_gets_a_gradient(wanted):
    tensors = [x.requires_grad_(k == wanted) for k, x in enumerate(inputs((7, B, H), 7))]
    linear_scan(*tensors).sum().backward()
    assert [x.grad is not None for x in tensors] == [k == wanted for k in range(3)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("T", LENGTHS)
def test_what_starts_anew_knows_nothing_of_what_was_before(T, form, dtype, chunks):
    """Not even that it was not a number."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(T, B, H, dtype=dtype, generator=generator)
    anew = torch.rand(T, B, 1, generator=generator) < 0.2
    anew[0, 0] = True
    found = []
    for worst in (False, True):
        a, b, h0 = tensors = inputs(FORMS[form](T), T, dtype)
        if worst:
            h0[0] = float("nan")
        for x in tensors:
            x.requires_grad_()
        if worst:
            h = linear_scan(a, b, h0, anew)
        else:
            states, last = [], h0
            for a_t, b_t, anew_t in zip(a.expand(b.shape).unbind(0), b.unbind(0), anew):
                last = torch.where(anew_t, b_t, a_t * last + b_t)
                states.append(last)
            h = torch.stack(states)
        loss = (h * weight).sum()
        found.append((h, *torch.autograd.grad(loss.real if dtype.is_complex else loss, tensors)))
    for expected, actual in zip(*found):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11 * max(1, expected.abs().max().item()))


@pytest.mark.parametrize("form", ["full", "column", "constant"])
@pytest.mark.parametrize(("T", "L"), [(1, 2), (7, 2), (7, 3)])
def test_derivatives_where_it_starts_anew(T, L, form, monkeypatch):
    monkeypatch.setattr(module, "_chunk_length", lambda T, state: L)
    tensors = [x.requires_grad_() for x in inputs(FORMS[form](T), T)]
    anew = torch.rand(T, B, H, generator=torch.Generator().manual_seed(3)) < 0.3
    assert torch.autograd.gradcheck(linear_scan, (*tensors, anew), fast_mode=True)
    assert torch.autograd.gradgradcheck(linear_scan, (*tensors, anew), fast_mode=True)


@pytest.mark.parametrize("split", [1, 63, 250, 499])
def test_the_state_may_be_carried(split):
    a, b, h0 = inputs((500, B, H), 500)
    first = linear_scan(a[:split], b[:split], h0)
    second = linear_scan(a[split:], b[split:], first[-1])
    assert_near(torch.cat([first, second]), a, b, h0)


@pytest.mark.parametrize("shape", [(100_000, 1, 4), (1, 1, 4)], ids=["full", "constant"])
def test_a_long_memory_in_float32(shape):
    generator = torch.Generator().manual_seed(0)
    a, b, h0 = torch.full(shape, 0.999), torch.randn(100_000, 1, 4, generator=generator), torch.ones(1, 4)
    assert_near(linear_scan(a, b, h0), a, b, h0, tolerance=1e-6)


def test_views_of_every_kind(chunks):
    T = 65
    a, b, h0 = inputs((T, B, H), T, torch.complex128)
    for x, y, z in [
        (a.conj(), b.conj(), h0.conj()),
        (a.transpose(0, 1).contiguous().transpose(0, 1), b.mT.contiguous().mT, h0.T.contiguous().T),
        (a.conj().imag, b.conj().imag, h0.conj().imag),
        (a[:1].expand(T, B, H), b[:1].expand(T, B, H), h0[:1].expand(B, H)),
    ]:
        assert_near(linear_scan(x, y, z), x.resolve_neg().resolve_conj(), y.resolve_conj().resolve_neg(), z.clone())


def test_a_real_transition_of_a_complex_state():
    a = torch.rand(65, 1, H, dtype=torch.float64, requires_grad=True)
    _, b, h0 = inputs((), 65, torch.complex128)
    h = linear_scan(a, b, h0)
    assert_near(h.detach(), a.detach(), b, h0)
    (found,) = torch.autograd.grad(h.real.sum(), a)
    (expected,) = torch.autograd.grad(torch_loop(a, b, h0).real.sum(), a)
    torch.testing.assert_close(found, expected)


def test_what_is_kept_for_the_backward_pass():
    a, b, h0 = (x.requires_grad_() for x in inputs((H,), 500))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)) or x, lambda x: x):
        linear_scan(a, b, h0)
    assert sorted(kept) == sorted([(1, 1, H), (B, H), (500, B, H)])


def test_the_rule(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    small, large = torch.empty(4096), torch.empty(8193)
    assert [module._chunk_length(T, small) for T in (0, 1, 30, 300, 3000)] == [0, 1, 30, 10, 31]
    assert module._chunk_length(3000, large) == 3000
    elsewhere = torch.empty(8193, device="meta")
    assert [module._chunk_length(T, elsewhere) for T in (1, 300, 3000)] == [1, 4, 4]
    assert module._chunk_length(3000, torch.empty(2**21, device="meta")) == 3000


@pytest.mark.parametrize(
    ("a", "b", "h0"),
    [
        ((5, 2, 3), (5, 2, 3), (3,)),
        ((5, 2, 3), (5, 2, 3), (1, 2, 3)),
        ((0, 2, 3), (0, 2, 3), (2, 3)),
        ((4, 2, 3), (5, 2, 3), (2, 3)),
        ((5, 2, 3), (5, 2, 1), (2, 1)),
        ((1, 5, 2, 3), (5, 2, 3), (2, 3)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(a, b, h0):
    with pytest.raises(ValueError, match="not"):
        linear_scan(torch.ones(a), torch.ones(b), torch.ones(h0))
