"""The copy and the adding problem: their sequences by the papers' words, and cells that solve them exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ready import ready
from torch import Tensor

from rnnzoo import Cell
from rnnzoo.tasks.drawn import IGNORED, Batch, Drawn
from rnnzoo.tasks.memory import Adding, Copies, Copy, First, Firsts, Scattered, Sums

ADAM = {"name": "adam", "lr": 0.01, "schedule": "constant"}


class Tally(Cell):
    """The running sum of the marked values."""

    def step(self, x: Tensor, total: Tensor) -> Tensor:
        return total + x[:, :1] * x[:, 1:]


class DelayLine(Cell):
    """The last inputs, the newest first."""

    def step(self, x: Tensor, line: Tensor) -> Tensor:
        return torch.cat([x, line[:, : -x.shape[1]]], 1)


def batches(data: Drawn, split: str = "train", epoch: int = 0) -> list[Batch]:
    loader = getattr(data, f"{split}_dataloader")()
    return [loader.fetch(key) for key in loader.plan(epoch)]


# The data


@settings(deadline=None, max_examples=20)
@given(T=st.integers(1, 30), count=st.integers(1, 9), seed=st.integers(0, 5))
def test_what_is_to_be_copied(T: int, count: int, seed: int) -> None:
    [(x, y)] = batches(ready(Copies(T, count, 100, seed)))
    assert x.shape == y.shape == (count, T + 20)
    for read, answer in zip(x.tolist(), y.tolist()):
        symbols = read[:10]
        assert all(0 <= symbol < 8 for symbol in symbols)
        assert read == [*symbols, *[8] * (T - 1), 9, *[8] * 10]
        assert answer == [*[8] * (T + 10), *symbols]


def test_all_symbols_are_equally_frequent_in_all_places() -> None:
    symbols = torch.cat([batch.x[:, :10] for batch in batches(ready(Copies(1, 8000, 500, 1)))])
    counts = F.one_hot(symbols, 8).sum(0)  # [places, symbols]
    assert float((counts - 1000).abs().max()) < 4.5 * math.sqrt(8000 * 1 / 8 * 7 / 8)


@settings(deadline=None, max_examples=20)
@given(T=st.integers(2, 31), count=st.integers(1, 9), seed=st.integers(0, 5))
def test_what_is_to_be_added(T: int, count: int, seed: int) -> None:
    [(x, y)] = batches(ready(Sums(T, count, 100, seed)))
    assert x.shape == (count, T, 2) and y.shape == (count,) and x.dtype == y.dtype == torch.float32
    for row, right in zip(x.tolist(), y.tolist()):
        assert all(0 <= value < 1 for value, _ in row)
        first, second = (step for step, (_, mark) in enumerate(row) if mark)
        assert first < T // 2 <= second
        assert [mark for _, mark in row if mark] == [1, 1]
        assert right == pytest.approx(row[first][0] + row[second][0])


def test_every_place_of_a_half_is_marked_equally_often() -> None:
    marks = torch.cat([batch.x[:, :, 1] for batch in batches(ready(Sums(7, 6000, 500, 1)))]).sum(0)
    expected = torch.tensor([2000.0] * 3 + [1500.0] * 4)
    assert float((marks - expected).abs().max()) < 4.5 * math.sqrt(6000 * 1 / 3 * 2 / 3)


@settings(deadline=None, max_examples=20)
@given(T=st.integers(10, 31), count=st.integers(1, 9), seed=st.integers(0, 5))
def test_what_is_scattered(T: int, count: int, seed: int) -> None:
    [(x, y)] = batches(ready(Scattered(T, count, 100, seed)))
    assert x.shape == y.shape == (count, T + 10)
    for read, answer in zip(x.tolist(), y.tolist()):
        symbols = [symbol for symbol in read[:T] if symbol != 8]
        assert len(symbols) == 10 and all(0 <= symbol < 8 for symbol in symbols)
        assert read[T:] == [9] * 10 and answer == [IGNORED] * T + symbols


def test_every_place_holds_a_symbol_equally_often() -> None:
    [(x, _)] = batches(ready(Scattered(16, 8000, 8000, 1)))
    held = (x[:, :16] != 8).sum(0)
    assert float((held - 5000).abs().max()) < 4.5 * math.sqrt(8000 * 10 / 16 * 6 / 16)


def test_the_first_of_many() -> None:
    [(x, y)] = batches(ready(Firsts(4, 3000, 3000, 1)))
    assert x.shape == (3000, 5, 1) and torch.equal(x[:, 0, 0], y)
    assert float(x.std()) == pytest.approx(1, abs=0.03) and float(x.mean()) == pytest.approx(0, abs=0.03)
    assert Firsts(4).baseline()["baseline/trivial_loss"] == pytest.approx(float(y.var()), rel=0.1)
    module = First(model={"cell": "rnn", "hidden_size": 3})
    loss, count, prediction, target = module.score(Batch(x[:7], y[:7]))
    assert prediction.shape == target.shape == (7,) and count == 7
    assert loss.item() == pytest.approx((prediction - target).square().mean().item())


@pytest.mark.parametrize("kind", [Copies, Sums])
def test_nothing_is_drawn_twice_but_the_same_when_asked_again(kind: type[Drawn]) -> None:
    data = kind(5, 70, 16, 1)
    drawn = {(split, epoch): batches(data, split, epoch) for split in ("train", "val", "test") for epoch in (0, 1)}
    sizes = {key: [len(batch.y) for batch in found] for key, found in drawn.items()}
    assert sizes["train", 0] == [14] * 5 and sizes["val", 0] == sizes["test", 0] == [7]
    # the held-out sequences are the same in every epoch, the training's are not
    for split in ("val", "test"):
        assert torch.equal(drawn[split, 0][0].x, drawn[split, 1][0].x)
        del drawn[split, 1]
    rows = {tuple(row.flatten().tolist()) for found in drawn.values() for batch in found for row in batch.x}
    assert len(rows) == 2 * 70 + 7 + 7

    again = batches(kind(5, 70, 16, 1), "train", 1)
    assert all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(again, drawn["train", 1]))
    assert not torch.equal(batches(kind(5, 70, 16, 2))[0].x, drawn["train", 0][0].x)


# The trivial answers


@pytest.mark.parametrize("T", [1, 50])
def test_the_trivial_loss_of_copying(T: int) -> None:
    """What it costs to be sure of each blank, and of nothing but that a symbol is due."""
    data = ready(Copies(T, 30, 30, 1))
    [(_, y)] = batches(data)
    logits = torch.full((*y.shape, 9), -1e9)
    logits[:, :-10, 8] = 0
    logits[:, -10:, :8] = 0
    assert data.baseline()["baseline/trivial_loss"] == pytest.approx(float(F.cross_entropy(logits.mT, y)), rel=1e-5)


def test_the_trivial_loss_of_adding() -> None:
    """No constant does better than the mean, and that costs the variance."""
    sums = torch.cat([batch.y for batch in batches(ready(Sums(5, 20_000, 1000, 1)))])
    assert float(sums.mean()) == pytest.approx(1, abs=0.01)
    assert ready(Sums(5, 10, 10, 1)).baseline()["baseline/trivial_loss"] == pytest.approx(float(sums.var()), rel=0.03)


# The models


def test_a_tally_adds() -> None:
    module = Adding(model={"cell": Tally, "hidden_size": 1}, optimizer=ADAM, engine="auto", seed=1)
    with torch.no_grad():
        module.head.weight.fill_(1.0)
        module.head.bias.zero_()
    for T in (2, 9, 200):
        for batch in batches(ready(Sums(T, 20, 7, 1))):
            module.validation_step(batch, 0)
    found = module.val_metrics.compute()
    assert all(float(found[name]) < 1e-6 for name in ("loss", "mse", "mae"))

    # an answer that is 0.1 too high, with one that is right
    [batch] = batches(ready(Sums(9, 20, 20, 1)))
    module.validation_step(batch, 0)
    with torch.no_grad():
        module.head.bias.fill_(0.1)
    module.validation_step(batch, 1)
    found = module.val_metrics.compute()
    assert float(found["mse"]) == pytest.approx(0.005) and float(found["mae"]) == pytest.approx(0.05)
    assert float(found["loss"]) == pytest.approx(0.005)


@pytest.mark.parametrize("T", [1, 12])
def test_a_delay_line_copies(T: int) -> None:
    """What was read T + 10 steps before is the answer, and where nothing was read yet a blank."""
    module = Copy(model={"cell": DelayLine, "hidden_size": 10 * (T + 11)}, optimizer=ADAM, engine="auto", seed=1)
    with torch.no_grad():
        module.head.weight.zero_()
        module.head.weight[:, -10:-1] = 100 * torch.eye(9)
        module.head.bias.copy_(torch.tensor([0.0] * 8 + [50.0]))
    [batch] = batches(ready(Copies(T, 20, 20, 1)))
    module.validation_step(batch, 0)
    found = module.val_metrics.compute()
    assert float(found["loss"]) < 1e-6 and float(found["accuracy"]) == 1

    # symbols forgotten: blanks are answered where symbols were asked for, which costs 50 nats each
    with torch.no_grad():
        module.head.weight.zero_()
    module.validation_step(batch, 0)
    found = module.val_metrics.compute()
    assert float(found["accuracy"]) == 0 and float(found["loss"]) == pytest.approx(50 * 10 / (T + 20))


# Runs


def run(train: Callable[..., Path], task: str, *arguments: str) -> dict[str, float]:
    folder = train("hardware=cpu", f"task={task}", *arguments)
    found: dict[str, float] = json.loads((folder / "summary.json").read_text())["metrics"]
    return found


def test_adding_is_learned(train: Callable[..., Path]) -> None:
    found = run(
        train, "adding", "task.T=6", "task.samples=3000", "task.batch_size=30", "model.hidden_size=16",
        "trainer.max_epochs=3", "optimizer.lr=0.02",
    )  # fmt: skip
    assert found["test/loss"] == pytest.approx(found["test/mse"], rel=1e-5)
    assert found["test/mse"] < 0.01 < 0.1 < found["baseline/trivial_loss"]
    assert found["test/mae"] ** 2 <= found["test/mse"]


def test_copying_is_learned(train: Callable[..., Path]) -> None:
    """An orthogonal matrix keeps what was read; gated cells need thousands of steps for this."""
    found = run(
        train, "copy", "model=orthogonal", "task.T=2", "task.samples=3000", "task.batch_size=30",
        "model.hidden_size=32", "trainer.max_epochs=1", "optimizer.lr=0.01",
    )  # fmt: skip
    assert found["baseline/trivial_loss"] == pytest.approx(10 * math.log(8) / 22)
    assert found["test/loss"] < 0.6 * found["baseline/trivial_loss"]
    assert found["test/accuracy"] > 0.5


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("task=adding task.T=1", "task.T=1: should be greater than or equal to 2"),
        ("task=copy task.T=0", "task.T=0: should be greater than 0"),
        ("task=copy task.samples=0", "task.samples=0: should be greater than 0"),
        ("task=copy task.T=2.5", "task.T=2.5: should be a valid integer"),
        ("task=copy model.bidirectional=true", "model.bidirectional=true"),
        ("task=adding model.bidirectional=true", "model.bidirectional=true"),
    ],
)
def test_bad_input_ends_in_one_line(
    argument: str, said: str, train: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as end:
        train("hardware=cpu", *argument.split())
    error = capsys.readouterr().err
    assert end.value.code == 1
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
