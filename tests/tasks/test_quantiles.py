"""Quantiles: the loss against what minimises it, coverage and loss against a normal distribution's, and refusals."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from ready import ready

from rnnzoo import UserError
from rnnzoo.lightning.framework import pl
from rnnzoo.play.view import Session
from rnnzoo.tasks.forecast import Forecast
from rnnzoo.tasks.forecast_errors import QuantileErrors
from rnnzoo.tasks.quantiles import middle, opening, ordered, pinball
from rnnzoo.tasks.windows import Windows

LEVELS = [0.05, 0.3, 0.5, 0.8, 0.95]


@pytest.mark.parametrize("level", LEVELS)
def test_the_empirical_quantile_has_the_least_loss(level: float) -> None:
    sample = torch.randn(101, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    losses = [float(pinball(c.expand(101, 1), sample, torch.tensor([level]).double()).mean()) for c in sample]
    assert float(sample[np.argmin(losses)]) == np.quantile(sample.numpy(), level, method="inverted_cdf")


def test_quantiles_rise_and_the_median_is_free() -> None:
    values = 5 * torch.randn(200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = ordered(values, 2)
    assert torch.equal(found[:, 2], values[:, 2]) and (found.diff(dim=-1) > 0).all()
    softplus = np.log1p(np.exp(values.numpy()))
    expected = values[:, 2].numpy() - softplus[:, 1] - softplus[:, 0]
    np.testing.assert_allclose(found[:, 0], expected)


def test_quantiles_open_as_wide_as_errors_are() -> None:
    errors = torch.randn(500, 3, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 2000.0])
    errors[0, 1] = math.nan
    found = ordered(opening(errors, LEVELS), 2)  # [3, 2, Q]
    expected = np.nanquantile(errors.numpy(), LEVELS, axis=0).transpose(1, 2, 0)
    np.testing.assert_allclose(found, expected - expected[..., 2:3], rtol=1e-4, atol=1e-6)


def test_a_normal_distributions_quantiles_cover_what_they_should() -> None:
    """The expected loss of its quantile at q is its density there, φ(Φ⁻¹(q)); both in the data's units."""
    normal = NormalDist()
    points = torch.tensor([normal.inv_cdf(level) for level in LEVELS])
    truth = torch.randn(4, 20_000, 1, generator=torch.Generator().manual_seed(0))
    truth[0, :5000] = math.nan
    errors = QuantileErrors(LEVELS, ["a"], [2.0], [1.0])
    for piece in truth.split(7000, dim=1):
        errors.update(points.expand(*piece.shape, 5), piece)
    found = errors.compute()
    assert float(found["coverage"]) == pytest.approx(0.9, abs=0.005)
    expected = 2 * np.mean([normal.pdf(float(point)) for point in points])
    assert float(found["pinball"]) == pytest.approx(expected, rel=0.01)
    assert float(found["mae"]) == pytest.approx(2 * math.sqrt(2 / math.pi), rel=0.01)  # of the median


@pytest.mark.parametrize("strategy", ["direct", "segments"])
def test_a_model_of_quantiles(strategy: str) -> None:
    data = ready(Windows(rows=200, window=8, horizon=4))
    torch.manual_seed(0)
    options: dict[str, Any] = {"model": {"hidden_size": 6}, "strategy": strategy, "segment": 2}
    model = Forecast(quantiles=LEVELS, **options, **data.facts()).eval()
    batch = data.windows_at(data.test)
    loss, count, forecasts, truth = (part.detach() for part in model.score(batch))
    assert forecasts.shape == (4, len(data.test), 1, 5) and (forecasts.diff(dim=-1) > 0).all()
    error = truth.numpy()[..., None] - forecasts.numpy()
    levels = np.array(LEVELS)
    expected = np.where(error > 0, levels * error, (levels - 1) * error)
    assert float(loss) == pytest.approx(expected.mean(), rel=1e-5) and int(count) == truth.numel()
    values = data.series.values[:50]
    rows = model.following(values)
    assert torch.equal(rows[:, :, middle(LEVELS)], model.following_rows(values)) and (rows.diff(dim=-1) > 0).all()


@pytest.mark.parametrize("walk", [False, True])
@pytest.mark.parametrize(("horizon", "segment"), [(6, 4), (2, 4), (8, 4)])
def test_segments_begin_with_quantiles_that_cover_what_they_say(
    walk: bool, horizon: int, segment: int, tmp_path: Path
) -> None:
    """Of two columns of white noise or random walks, about the last value, before anything is learned."""
    values = np.random.default_rng(0).normal(size=(3000, 2)).cumsum(0 if walk else 1)
    path = tmp_path / "file.csv"
    path.write_text("\n".join(["a,b", *(f"{a:.6f},{b:.6f}" for a, b in values)]))
    data = ready(Windows(data=str(path), columns=["a", "b"], targets=["b"], window=8, horizon=horizon, season=1))
    torch.manual_seed(0)
    model = Forecast(
        quantiles=LEVELS, strategy="segments", segment=segment, model={"hidden_size": 32}, **data.facts()
    ).eval()
    model.trainer = pl.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    model.trainer.datamodule = data  # type: ignore[attr-defined]
    model.setup("fit")
    batch = data.windows_at(data.train)
    below = (batch.y[..., None] <= model(batch.x)).double().mean((0, 1, 2))
    np.testing.assert_allclose(below, LEVELS, atol=0.05)
    with torch.no_grad():
        model.segments.head.bias.add_(1.0)  # type: ignore[union-attr]
    learned = model(batch.x)
    model.setup("fit")  # what has begun goes on
    assert torch.equal(model(batch.x), learned)


def test_a_page_has_the_quantiles_beside_the_median() -> None:
    data = ready(Windows(rows=200, window=8, horizon=4))
    torch.manual_seed(0)
    model = Forecast(quantiles=LEVELS, model={"hidden_size": 6}, **data.facts()).eval()
    view = model.view(lambda: data)
    given = view.read(view.about()["given"])
    labels, found = view.run(model, given)
    rows = model.following(torch.tensor(given["rows"], dtype=torch.float64))
    assert len(labels) == 12
    reply = view.reply(Session(given, (), labels, found, []), {}, 0)
    assert torch.equal(torch.tensor(reply["following"], dtype=torch.float64), rows[:, :, 2])
    assert torch.equal(torch.tensor(reply["quantiles"], dtype=torch.float64).movedim(0, -1), rows[:, :, [0, 1, 3, 4]])


def test_quantiles_that_cannot_be() -> None:
    facts = ready(Windows(rows=200, window=8, horizon=4)).facts()
    for quantiles in ([0.1, 0.9], [0.5], [0.9, 0.5, 0.1], [0.0, 0.5], [0.5, 1.0]):
        with pytest.raises(UserError, match=r"task\.quantiles=\[.*must rise between 0 and 1, with 0\.5"):
            Forecast(quantiles=quantiles, **facts)
    with pytest.raises(UserError, match=r"task\.quantiles: a recursive forecast .* choose task\.strategy=direct"):
        Forecast(quantiles=LEVELS, strategy="recursive", **facts)
    ridge = Forecast(quantiles=LEVELS, optimizer={"name": "ridge", "lr": 1.0}, **facts)
    with pytest.raises(UserError, match=r"optimizer=ridge: .* leave out task\.quantiles"):
        ridge.regression(None)  # type: ignore[arg-type]
