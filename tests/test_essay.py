"""The first essay: its page is whole, and its numbers are those of theory, of autograd, or of a second way to them."""

import doctest
import math

import numpy as np
import pytest
import torch
from pages import Page, prose

from rnnzoo import list_cells
from rnnzoo.explain import gallery, measure
from rnnzoo.explain.card import FLOW_SIZES
from rnnzoo.explain.essays import gates, page, start, start_models
from rnnzoo.explain.expression import Symbol, evaluate


@pytest.fixture(scope="module")
def body():
    before = torch.random.get_rng_state()
    html = start.ESSAY.body()
    assert torch.equal(torch.random.get_rng_state(), before), "the global random state is to be left alone"
    return html


@pytest.fixture(scope="module", name="page")
def parsed(body):
    return Page(body)


@pytest.mark.parametrize("module", [page, gates, start_models], ids=lambda module: module.__name__)
def test_doctests(module):
    result = doctest.testmod(module)
    assert result.attempted >= 1
    assert result.failed == 0


def test_page_is_well_formed(body, page):
    assert body.lstrip().startswith("<h1>From a dense layer to a recurrent zoo</h1>")
    assert page.open == []
    assert page.tags.count("h1") == 1
    assert len(set(page.ids)) == len(page.ids)
    assert {"linear", "dense", "product", "rnn", "bptt", "vanishing", "lstm", "gru", "choose"} <= set(page.ids)
    assert "{{" not in body and "{%" not in body and "nan" not in prose(page).split()
    assert "script" not in page.tags
    assert page.tags.count("svg") == body.count("<title>") == 10


def test_links_lead_to_pages_of_the_gallery(page):
    pages = {f"{name}.html" for name in (*list_cells(), "index")} | {essay.file for essay in gallery.essays()}
    assert {link for link in page.links if not link.startswith("https://arxiv.org/abs/")} <= pages


def test_same_page_every_time(body):
    torch.manual_seed(1)
    start.found.cache_clear()
    assert start.ESSAY.body() == body


def test_linear_unit_learns_at_the_pace_of_theory(page):
    line = start_models.fit_line()
    assert line.w == pytest.approx(1, abs=1e-4)
    assert line.b == pytest.approx(0, abs=1e-4)
    assert line.factor == pytest.approx(1 - 2 * line.rate / 3, abs=0.01)
    assert f"measured, {line.factor:.3f}." in prose(page)


def test_truncation_by_numerical_integration(page):
    z = np.linspace(-2, 2, 20001)
    density = np.exp(-(z**2) / 2)
    std = math.sqrt((z**2 * density).sum() / density.sum())
    assert f"in closed form {std:.4g} s" in prose(page)
    drawn = start_models.truncated_normal(400, 500, torch.Generator().manual_seed(5)) * 20
    assert drawn.abs().max() <= 2
    assert float(drawn.std()) == pytest.approx(std, abs=0.005)


def test_slopes_by_finite_differences():
    at, step = (-2.0, 0.5, 2.0), 1e-6
    for activation in start_models.ACTIVATIONS.values():
        x = torch.tensor(at, dtype=torch.float64)
        expected = (activation(x + step) - activation(x - step)) / (2 * step)
        assert start_models.slopes(activation, at) == pytest.approx(expected.tolist(), abs=1e-6)


def test_product_needs_a_hidden_layer(page):
    product = start_models.fit_product()
    assert product.linear_mse == pytest.approx(1 / 9, abs=0.01)
    assert max(product.mse.values()) < 0.01 * product.linear_mse
    assert f"comes to {product.linear_mse:.4g}." in prose(page)


def test_waves_are_learned_down_to_what_cannot_be_known():
    waves = start_models.learn_waves()
    theta = np.linspace(0, 2 * np.pi, 1000, endpoint=False)
    missed = np.sin(theta + start_models.STEP) - np.sin(theta) * math.cos(start_models.STEP)
    floor = (missed**2).mean() / waves.steps  # the best guess from one value is the mean of rise and fall
    assert waves.floor == pytest.approx(floor)
    assert floor < waves.losses[-1] < 1.5 * floor
    assert waves.rmse < 0.1 * waves.size
    assert waves.size == pytest.approx(math.sqrt(0.5), abs=0.02)


def test_shown_errors_are_the_derivatives():
    """The equations on the page, evaluated as they stand, against autograd on the forward equations."""
    generator = torch.Generator().manual_seed(2)
    weights = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in
               {"U": (3, 2), "W": (3, 3), "V": (2, 3), "b": (3, 1), "c": (2, 1)}.items()}  # fmt: skip
    x, d, h = (torch.randn(2, n, 1, generator=generator, dtype=torch.float64) for n in (2, 2, 3))

    def value(function, target, values, **renamed):
        (*_, equation) = start.read_as(function, target, **renamed)
        return evaluate(
            equation.value, {Symbol(n, t, role=r): np.asarray(v) for (n, t), v in values.items() for r in ROLES}
        )

    a = [(weights["U"] @ x[0] + weights["W"] @ h[0] + weights["b"]).requires_grad_()]
    states = [torch.tanh(a[0])]
    a.append(weights["U"] @ x[1] + weights["W"] @ states[0] + weights["b"])
    states.append(torch.tanh(a[1]))
    y = [weights["V"] @ state + weights["c"] for state in states]
    error = sum((y_t - d_t).square().sum() / 2 for y_t, d_t in zip(y, d))
    of_a, next_of_a, of_y = torch.autograd.grad(error, (a[0], a[1], y[0]))

    given = {(name, ""): weight for name, weight in weights.items()}
    known = given | {("x", "t"): x[0], ("h", "t-1"): h[0], ("h", "t"): states[0].detach()}
    known |= {("y", "t"): y[0].detach(), ("d", "t"): d[0], ("delta", "t+1"): next_of_a}
    np.testing.assert_allclose(value(start_models.output_error, "delta_y", known), of_y)
    known[("delta_y", "t")] = of_y
    np.testing.assert_allclose(value(start_models.hidden_error, "delta", known), of_a)
    forward = {k: v for k, v in known.items() if k != ("h", "t")}
    np.testing.assert_allclose(value(start_models.hidden, "h", forward), states[0].detach())
    np.testing.assert_allclose(value(start_models.output, "y", known), y[0].detach())
    known[("delta", "t")] = of_a
    shown = value(start_models.share, "dW", known, error="delta", signal="h_prev")
    np.testing.assert_allclose(shown, np.outer(of_a, h[0]))


ROLES = ("input", "weight")
"""Of a symbol in the equations of a function."""


def test_hand_derived_gradients_are_right(page):
    differences = start_models.compare_with_autograd(steps=12, sequences=8, sizes=(3, 16, 2))
    assert set(differences) == {"U", "W", "b", "V", "c"}
    assert max(differences.values()) < 1e-12


def test_comparison_notices_a_wrong_gradient(monkeypatch):
    monkeypatch.setattr(start_models, "hidden_error", lambda h, dy, dn, V, W: (dy @ V.T + dn @ W) * (1 - h**2))
    differences = start_models.compare_with_autograd(steps=4, sequences=2, sizes=(2, 3, 1))
    assert differences["U"] > 1e-3
    assert differences["V"] < 1e-12


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_flow_is_the_product_of_jacobians(scale):
    cell = start_models.make("rnn", scale=scale)
    W, U, b = (p.detach().double().numpy() for p in (cell.W, cell.U, cell.b))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(measure.LAGS, 1, FLOW_SIZES[0], generator=generator, dtype=torch.float64).numpy()
    h, jacobians = np.zeros((1, FLOW_SIZES[1])), []
    for x_t in x:
        h = np.tanh(x_t @ W + h @ U + b)
        jacobians.append(np.diag(1 - h[0] ** 2) @ U.T)
    product, norms = np.eye(FLOW_SIZES[1]), []
    for jacobian in reversed(jacobians):
        product = product @ jacobian
        norms.append(np.linalg.norm(product, 2))
    np.testing.assert_allclose(measure.gradient_flow(cell).norms, norms, rtol=2e-3)
    slopes = np.linalg.norm(np.stack([np.linalg.norm(j @ U) for j in jacobians])) / math.sqrt(h.size * len(x))
    assert start_models.tanh_slope(cell) == pytest.approx(slopes / scale**2, rel=1e-4)  # U is orthogonal times scale


def test_what_the_text_says_of_factors_is_so(page):
    def factor(name, **changes):
        return measure.gradient_flow(start_models.make(name, **changes)).factor

    rnn = factor("rnn")
    assert factor("rnn", scale=0.5) < rnn < 0.98 < factor("irnn") == 1.0 < factor("rnn", scale=2.0)
    lstm = [factor("lstm", forget_bias=bias) for bias in (0.0, 1.0, 3.0)]
    assert lstm == sorted(lstm)
    assert lstm[0] == pytest.approx(rnn, abs=0.05)
    assert all(found > 1 / (1 + math.exp(-bias)) for found, bias in zip(lstm, (0.0, 1.0, 3.0)))
    assert factor("gru") == factor("gru", forget_bias=0.0) < factor("gru", forget_bias=3.0) < 1
    for shown in (rnn, *lstm):
        assert f"{shown:.3f}" in page.text


def test_costs_are_those_of_the_formulas(body):
    inputs, hidden = 64, 128
    one = hidden * (inputs + hidden + 1)
    for parameters in (one, 3 * one + hidden, 4 * one):
        assert f"<td>{parameters:,}</td>" in body


def test_gate_bias_changes_nothing_else():
    mine, its = start_models.make("gru", forget_bias=3.0), start_models.make("gru")
    changed = {n for (n, p), q in zip(mine.named_parameters(), its.parameters()) if not torch.equal(p, q)}
    assert changed == {"b_z"}


@pytest.mark.parametrize(
    ("factor", "text"),
    [(0.5**0.25, "halved every 4.0 steps"), (2.0, "doubled every 1.0 steps"), (1.0, "stays"), (0.0, "cut off")],
)
def test_pace(factor, text):
    assert page.pace(page.texts("en"), factor) == text
