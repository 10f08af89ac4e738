"""Waves told by their period: what is drawn, recovered by least squares, and a cell that tells them exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ready import ready

from rnnzoo.tasks.frequency import Frequency, Irregular


def test_what_is_drawn_are_waves_of_the_periods_said() -> None:
    """The period is found again as the one whose sine and cosine leave nothing over."""
    loader = ready(Irregular(T=60, samples=300, batch_size=300)).train_dataloader()
    x, y = loader.fetch(loader.plan(0)[0])
    assert x.shape == (300, 60, 2) and y.shape == (300,) and x.dtype == y.dtype == torch.float32
    times, values = x.double().numpy().transpose(2, 0, 1)
    assert (np.diff(times) >= 0).all() and times.min() >= 0 and times.max() <= 125
    spans = times[:, -1] - times[:, 0]
    assert spans.min() < 40 and spans.max() > 100
    inside = np.linspace(5, 6, 2001)
    for t, v, target in zip(times[:40], values[:40], y[:40].tolist()):
        phases = 2 * np.pi * t / inside[:, None]
        basis = np.stack([np.sin(phases), np.cos(phases)], -1)  # [periods, T, 2]
        rest = [np.linalg.lstsq(b, v, rcond=None)[1] for b in basis]
        best = min(float(r[0]) if len(r) else math.inf for r in rest)
        assert (best < 0.05) == bool(target)
    assert abs(float(y.mean()) - 0.5) < 4.5 * 0.5 / math.sqrt(300)


def test_scores() -> None:
    module = Frequency(model={"cell": "rnn", "hidden_size": 3})
    with torch.no_grad():
        module.head.weight.zero_()
        module.head.bias.fill_(2.0)
    loader = ready(Irregular(T=9, samples=40, batch_size=40)).train_dataloader()
    batch = loader.fetch(loader.plan(0)[0])
    loss, count, logits, targets = module.score(batch)
    share = float(batch.y.mean())
    wanted = share * math.log1p(math.exp(-2)) + (1 - share) * math.log1p(math.exp(2))
    assert loss.item() == pytest.approx(wanted, rel=1e-5) and count == 40
    assert logits.shape == targets.shape == (40,)


def test_a_run(train: Callable[..., Path]) -> None:
    folder = train(
        "hardware=cpu", "task=frequency", "model.hidden_size=8", "task.T=20", "task.samples=200",
        "trainer.max_epochs=1",
    )  # fmt: skip
    found = json.loads((folder / "summary.json").read_text())["metrics"]
    assert 0 <= found["test/accuracy"] <= 1 and found["baseline/trivial_accuracy"] == 0.5
