"""Sine regression: the waves against their closed form, and continuations against an exact recurrence.

Any sine with step d obeys x[t+1] = 2·cos(d)·x[t] - x[t-1], whatever its phase; the cell `Rotation` is that equation.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ready import ready
from torch import Tensor

from rnnzoo import Cell, UserError
from rnnzoo.tasks.sine import Sine, Waves

D = math.pi / 6
ADAM = {"name": "adam", "lr": 0.01, "schedule": "constant"}


class Rotation(Cell):
    """The next value of a sine from this one and the one before; wrong at the first step, exact from the second on."""

    def step(self, x: Tensor, y: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * math.cos(D) * x - before, x


def sine(cell: Any = Rotation, hidden_size: int = 1, **options: Any) -> Sine:
    task = {"window": 24, "step": D, "warmup": 1, "prefix": 12, "horizon": 100, "probes": False}
    model = {"cell": cell, "hidden_size": hidden_size}
    given = {key: options.pop(key) for key in list(options) if key in task}
    return Sine(model=model | options, optimizer=ADAM, engine="auto", seed=1, **(task | given)).double()


def exact(*head: float, **options: Any) -> Sine:
    """A model that predicts without error, if its head reads the forward direction."""
    module = sine(bidirectional=len(head) == 2, **options)
    with torch.no_grad():
        module.head.weight.copy_(torch.tensor([head]))
        module.head.bias.zero_()
    return module


def waves(steps: int, phases: int = 7) -> Tensor:
    """Waves [steps, phases, 1] of step D."""
    theta = torch.linspace(0, math.pi, phases, dtype=torch.float64)
    return torch.sin(theta + D * torch.arange(steps, dtype=torch.float64)[:, None])[:, :, None]


# The data


@settings(deadline=None, max_examples=20)
@given(
    samples=st.integers(1, 60),
    window=st.integers(1, 30),
    step=st.floats(0.05, 3),
    batch_size=st.integers(1, 70),
    seed=st.integers(0, 5),
)
def test_windows_are_pieces_of_sines(samples: int, window: int, step: float, batch_size: int, seed: int) -> None:
    data = ready(Waves(samples, window, step, batch_size, seed))
    held_out = max(samples // 10, 2)
    assert [len(part) for part in (data.train, data.val, data.test)] == [samples, held_out, held_out]
    x = torch.cat([data.train, data.val, data.test]).double()
    assert x.shape[1:] == (window + 1, 1)
    # phases are in [0, π], where the sine is not negative
    assert x[:, 0].min() >= 0
    # amplitude 1: x0 and x1 are points of one circle
    circle = x[:, 0] ** 2 + x[:, 1] ** 2 - 2 * x[:, 0] * x[:, 1] * math.cos(step)
    assert torch.allclose(circle, torch.full_like(circle, math.sin(step) ** 2), atol=1e-6)
    following = 2 * math.cos(step) * x[:, 1:-1] - x[:, :-2]
    assert torch.allclose(following, x[:, 2:], atol=1e-6)


def test_phases_are_uniform() -> None:
    theta = torch.asin(ready(Waves(4000, 1, D, 10, 1)).train[:, 0].double())  # folded at π/2
    assert theta.min() >= 0
    # a uniform variable on [0, π/2]: its mean and variance, within four standard errors
    assert float(theta.mean()) == pytest.approx(math.pi / 4, abs=4 * math.pi / 2 / math.sqrt(12 * 4000))
    assert float(theta.var()) == pytest.approx((math.pi / 2) ** 2 / 12, rel=0.1)


@settings(deadline=None, max_examples=20)
@given(samples=st.integers(1, 50), batch_size=st.integers(1, 60), epoch=st.integers(0, 5))
def test_every_window_once_an_epoch(samples: int, batch_size: int, epoch: int) -> None:
    data = ready(Waves(samples, 2, D, batch_size, seed=1))
    batches = data.train_dataloader()
    seen = [batches.fetch(key) for key in batches.plan(epoch)]
    assert len(seen) == len(batches) == math.ceil(samples / batch_size)
    assert max(map(len, seen)) - min(map(len, seen)) <= 1
    assert sorted(torch.cat(seen)[:, 0, 0].tolist()) == sorted(data.train[:, 0, 0].tolist())
    for part, loader in ((data.val, data.val_dataloader()), (data.test, data.test_dataloader())):
        assert torch.equal(torch.cat(list(loader)), part)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[float]:
        batches = ready(Waves(30, 2, D, 7, seed)).train_dataloader()
        return torch.cat([batches.fetch(key) for key in batches.plan(epoch)])[:, 0, 0].tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


# Scoring


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_the_warmup_is_not_scored(warmup: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is absurd during the warm-up and exact after it has no error at all."""
    windows = waves(9).transpose(0, 1)
    module = sine(warmup=warmup)
    prediction = waves(9)[1:].clone()
    prediction[:warmup] = 1e6
    monkeypatch.setattr(module, "forward", lambda x: prediction)
    module.validation_step(windows, 0)
    found = module.val_metrics.compute()
    assert float(found["loss"]) == float(found["mse"]) == float(found["mae"]) == 0
    assert float(found["r2"]) == 1

    if warmup:
        prediction[warmup] = 1e6
        module.validation_step(windows, 0)
        assert float(module.val_metrics.compute()["loss"]) > 1e9


def test_metrics_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sine(warmup=1)
    # one batch of two windows, then one of one: targets after the warm-up are 1 2 | 3 4, then 5 9
    first = torch.tensor([[0.0, 7, 1, 2], [0, 7, 3, 4]])[:, :, None]
    second = torch.tensor([[0.0, 7, 5, 9]])[:, :, None]
    answers = iter([torch.tensor([[9.0, 9], [2, 3], [2, 6]])[:, :, None], torch.tensor([[9.0], [5], [6]])[:, :, None]])
    monkeypatch.setattr(module, "forward", lambda x: next(answers))
    module.test_step(first, 0)
    module.test_step(second, 1)
    found = {name: float(value) for name, value in module.test_metrics.compute().items()}
    # errors of 1 0 | 0 2, then 0 3; targets' mean is 4, their squared deviations 9 4 1 0 1 25
    squares, absolute, deviations = 1 + 0 + 0 + 4 + 0 + 9, 1 + 0 + 0 + 2 + 0 + 3, 9 + 4 + 1 + 0 + 1 + 25
    assert found["mse"] == pytest.approx(squares / 6)
    assert found["loss"] == pytest.approx(squares / 6)
    assert found["mae"] == pytest.approx(absolute / 6)
    assert found["r2"] == pytest.approx(1 - squares / deviations)


def test_a_warmup_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"task\.warmup=3 leaves no step of task\.window=3"):
        sine(warmup=3, window=3)


# Continuing a wave


def test_exact_predictions() -> None:
    x = waves(20)
    assert torch.allclose(exact(1.0)(x[:-1])[1:], x[2:], atol=1e-12)


@pytest.mark.parametrize("prefix", [2, 12])
@pytest.mark.parametrize("head", [(1.0,), (1.0, 0.0)], ids=["forward", "bidirectional"])
def test_an_exact_model_goes_on_exactly(head: tuple[float, ...], prefix: int) -> None:
    x = waves(prefix + 40)
    continuation = exact(*head).continue_wave(x[:prefix], 40)
    assert continuation.shape == (40, 7, 1)
    assert torch.allclose(continuation, x[prefix:], atol=1e-9)


def test_a_bidirectional_model_sees_only_what_there_is() -> None:
    """The backward direction begins at the end: from the last value alone it says 2·cos(d)·x, again and again."""
    x = waves(5)
    continuation = exact(0.0, 1.0).continue_wave(x, 6)
    expected = [x[-1] * (2 * math.cos(D)) ** k for k in range(1, 7)]
    assert torch.allclose(continuation, torch.stack(expected))


def test_going_on_equals_reading_all_anew() -> None:
    module = sine("gru", 5, num_layers=2)
    x = waves(6)
    continuation = module.continue_wave(x, 10)
    for _ in range(10):
        x = torch.cat([x, module(x)[-1:]])
    assert torch.allclose(continuation, x[6:], atol=1e-12)


# Runs


TOY = (
    "hardware=cpu", "task=sine", "task.samples=400", "task.window=12", "task.batch_size=20", "task.horizon=20",
    "model.hidden_size=12", "trainer.max_epochs=4", "optimizer.lr=0.01",
)  # fmt: skip


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG, from its first chunk."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def test_training_learns(train: Callable[..., Path]) -> None:
    """A wave's variance is 0.5, which predicting its mean would leave; a small GRU soon does twenty times better."""
    folder = train(*TOY)
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    assert metrics["val/loss"] < 0.02 and metrics["test/loss"] < 0.02
    assert metrics["test/r2"] > 0.95
    assert metrics["test/mae"] <= math.sqrt(metrics["test/mse"])
    assert metrics["test/mse"] == pytest.approx(metrics["test/loss"], rel=1e-5)

    # what the summary says of the closed loop, by reading all anew from the checkpoint
    module = Sine.load_from_checkpoint(folder / "checkpoints" / "best.ckpt", weights_only=True).eval()
    x = waves(32, 101).float()
    with torch.no_grad():
        seen = x[:12]
        for _ in range(20):
            seen = torch.cat([seen, module(seen)[-1:]])
    rmse = (seen - x)[12:].square().mean().sqrt()
    assert metrics["test/closed_loop_rmse"] == pytest.approx(float(rmse), rel=1e-3)

    for name, inches in (("closed_loop", (10, 3.2)), ("loss", (6, 3.6))):
        picture = folder / "plots" / f"{name}.png"
        assert size(picture) == tuple(round(120 * inch) for inch in inches)
        assert matplotlib.image.imread(picture)[:, :, :3].std() > 0.05  # not a blank one


def test_a_bidirectional_run(train: Callable[..., Path]) -> None:
    folder = train(*TOY, "model=rnn", "model.bidirectional=true", "trainer.max_epochs=1", "task.horizon=3")
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    assert 0 < metrics["test/closed_loop_rmse"] < 3


def test_the_article_is_asked_its_questions(train: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    small = ("hardware=cpu", "task.samples=300", "task.horizon=5", "trainer.max_epochs=2", "model.hidden_size=8")
    folder = train("experiment=sine_article", *small)
    printed = capsys.readouterr().out
    table = printed[printed.index("the article's probes") :]
    for text in ("sin 0, sin π/6", "sin 4π/6, sin 5π/6", "0.8660", "0.0000", "0.4330", "0.8429", "-0.0266", "0.4383"):
        assert text in table

    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    answers = {name: value for name, value in metrics.items() if "probe" in name}
    assert len(answers) == 4
    weights = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    W, U, b = (weights[f"layer.cells.0.{name}"] for name in ("W", "U", "b"))

    def answer(*inputs: float) -> float:
        h = torch.zeros(8)
        for x in inputs:
            h = torch.tanh(x * W[0] + h @ U + b)
        return float(weights["head.weight"][0] @ h + weights["head.bias"])

    root = math.sqrt(3) / 2  # sin 4π/6
    expected = [answer(0, 0.5), answer(root, 0.5), answer(0.5), answer(0.5)]
    assert list(answers.values()) == pytest.approx(expected, abs=1e-5)


def test_probes_need_their_step() -> None:
    with pytest.raises(UserError, match=r"task\.step"):
        sine(step=0.3, probes=True)
