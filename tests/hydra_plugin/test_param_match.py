"""`param_match=COUNT`: what is counted is there, the size is the nearest, and the experiments that rest on it run."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import rnnzoo.hydra.param_match
from rnnzoo import Recurrent, UserError, list_cells
from rnnzoo.hydra.param_match import count_parameters, counts_near, matching_size
from rnnzoo.lightning.module import SequenceModule

ROOT = Path(__file__).parents[2]
SINE = (
    "hardware=cpu", "task=sine", "task.samples=40", "task.window=3", "task.batch_size=8", "task.horizon=2",
    "task.prefix=2", "trainer.max_epochs=1",
)  # fmt: skip

OWN = """
import torch
from rnnzoo import Cell, UserError, Weight, register

def reads_its_values(tensor):
    tensor.uniform_(-0.1, 0.1).sub_(float(tensor.mean()))

@register("eights")
class Eights(Cell):
    rank: int = 2

    W = Weight("input", "blocks", 8, init=reads_its_values)
    U = Weight("hidden", "rank")
    V = Weight("rank", "hidden")
    F = Weight("hidden", "hidden", trainable=False)

    @property
    def blocks(self):
        if self.hidden_size % 8:
            raise UserError(f"hidden_size must be a multiple of 8, not {self.hidden_size}")
        return self.hidden_size // 8

    def step(self, x, h):
        return torch.tanh(x @ self.W.flatten(1) + h @ self.U @ self.V)
"""


def real_count(*arguments: Any, **options: Any) -> int:
    return sum(p.numel() for p in Recurrent(*arguments, **options).parameters())


class Bare(SequenceModule):
    """A task's module with nothing but its layer and a head that is not counted."""

    def __init__(self, model: dict[str, Any], optimizer: dict[str, Any], features: int) -> None:
        super().__init__(model, optimizer)
        self.layer = self.recurrent(features)
        self.head = torch.nn.Linear(self.layer.output_size, 1000)


def chosen(target: int, features: int = 7, **model: Any) -> int:
    optimizer = {"name": "sgd", "lr": 0.1, "schedule": "constant"}
    arguments = {"model": {"hidden_size": 8, **model}, "optimizer": optimizer, "features": features}
    return matching_size(target, Bare, arguments)


def summary(folder: Path) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return contents


def hidden_size(folder: Path) -> int:
    size: int = OmegaConf.load(folder / ".hydra" / "config.yaml").model.hidden_size
    return size


def layer_count(folder: Path) -> int:
    """What a run's parameters are without embedding and head, whose sizes its checkpoint tells."""
    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    others = sum(tensor.numel() for name, tensor in weights.items() if not name.startswith("layer."))
    count: int = summary(folder)["parameters"]
    return count - others


# The count and the size


@pytest.mark.parametrize("name", list_cells())
def test_what_is_counted_is_there(name: str) -> None:
    for input_size, size in ((1, 8), (9, 1), (5, 13)):
        assert count_parameters(size, input_size, name) == real_count(name, input_size, size)


OPTIONS: list[dict[str, Any]] = [
    {"num_layers": 3, "bidirectional": True},
    {"num_layers": 2, "projection": 4, "bidirectional": True},
    {"layer_norm": True, "learn_initial_state": True, "num_layers": 2, "residual": True},
    {"block": "glu", "num_layers": 2, "bidirectional": True},
    {"initializer": "orthogonal", "forget_bias": 2.0, "recurrent_dropout": 0.1, "zoneout": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_what_the_layer_adds_is_counted(options: dict[str, Any]) -> None:
    for cell in ("lstm", "ligru"):
        assert count_parameters(11, 6, cell, **options) == real_count(cell, 6, 11, **options)
        size = chosen(2_000_000, cell=cell, **options)
        assert real_count(cell, 7, size, **options) == pytest.approx(2_000_000, rel=0.01)


def test_the_cells_own_hyperparameters_are_counted() -> None:
    for depth in (1, 6):
        size = chosen(200_000, cell="rhn", depth=depth)
        assert 2 * (7 * size + depth * (size**2 + size)) == pytest.approx(200_000, rel=0.01)


@pytest.mark.parametrize("name", sorted(set(list_cells()) - {"esn"}))
def test_every_cell_comes_within_a_percent(name: str) -> None:
    size = chosen(300_000, cell=name)
    assert real_count(name, 7, size) == pytest.approx(300_000, rel=0.01)


def test_the_size_is_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    # torch's own LSTM has a second bias, 4 H more
    counts = {h: sum(p.numel() for p in torch.nn.LSTM(7, h).parameters()) - 4 * h for h in range(1, 80)}
    for target in (4_000, 10_000, 20_000):
        nearest = min(counts, key=lambda h: abs(counts[h] - target))
        assert chosen(target, cell="lstm") == nearest
        printed = capsys.readouterr().out
        assert f"hidden_size={nearest}," in printed and f"{counts[nearest]:,} parameters" in printed


def test_counts_that_go_up_and_down_and_sizes_that_are_refused() -> None:
    jitter = random.Random(1)
    counts = {size: max(10 * size + jitter.randint(-70, 70), 1) for size in range(1, 5000) if size % 3 and size % 8}

    def count(size: int) -> int:
        if size not in counts:
            raise UserError(f"size {size} refused")
        return counts[size]

    for target in (1, 40, 777, 5000, 12_345, 40_000):
        near = counts_near(target, count)
        assert min(abs(c - target) for c in near.values()) == min(abs(c - target) for c in counts.values())

    with pytest.raises(UserError, match="refused"):
        counts_near(100, lambda size: count(3))


def test_the_search_is_quick_and_takes_no_memory() -> None:
    calls = 0

    def count(size: int) -> int:
        nonlocal calls
        calls += 1
        return count_parameters(size, 64, "lstm", num_layers=2)  # 200 GB of weights

    near = counts_near(50_000_000_000, count)
    assert min(abs(c - 50_000_000_000) for c in near.values()) < 5_000_000
    assert calls < 100


# Bad input


@pytest.fixture
def refusal(train: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """`refusal(...)` runs train.py on bad input: exit code 1, one line on stderr, which it returns, and no folder."""

    def run(*arguments: str) -> str:
        before = sorted(tmp_path.iterdir())
        with pytest.raises(SystemExit) as end:
            train(*arguments)
        error = capsys.readouterr().err
        assert end.value.code == 1
        assert error.startswith("error: ") and error.count("\n") == 1, error
        assert sorted(tmp_path.iterdir()) == before
        return error

    return run


@pytest.mark.parametrize(
    ("model", "count", "said"),
    [
        ("lstm", 100, ["lstm", "96 parameters at model.hidden_size=4", "140 parameters at model.hidden_size=5"]),
        ("lstm", 7, ["lstm", "12 parameters at model.hidden_size=1, its smallest"]),
        ("esn", 1000, ["esn has 0 parameters to learn at any size", "model.hidden_size"]),
    ],
)
def test_no_size_is_near_enough(model: str, count: int, said: list[str], refusal: Callable[..., str]) -> None:
    error = refusal(*SINE, f"model={model}", f"param_match={count}")
    assert f"param_match={count}" in error
    for text in said:
        assert text in error


def test_values_that_make_no_sense(refusal: Callable[..., str]) -> None:
    for value in ("0", "-5", "1.5", "many", "true"):
        assert f"param_match={value}".lower() in refusal(*SINE, f"param_match={value}").lower()
    error = refusal(*SINE, "param_match=5000", "model.hidden_size=64")  # the preset's own size, but given
    assert "param_match" in error and "model.hidden_size=64" in error
    assert "bidirectional" in refusal(
        "task=char_lm", "task.corpus=hello", "param_match=500", "model.bidirectional=true"
    )


# Runs


def test_a_run_with_a_matched_size(
    train: Callable[..., Path], refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the run that the size would have given, says so, can be evaluated, and goes on with the size it has."""
    match = (*SINE, "model=mgu", "param_match=5000")
    folder = train(*match)
    size = hidden_size(folder)
    assert layer_count(folder) == 2 * (size + size**2 + size) == pytest.approx(5000, rel=0.01)
    assert OmegaConf.load(folder / ".hydra" / "config.yaml").param_match == 5000

    given = train(*SINE, "model=mgu", f"model.hidden_size={size}")
    assert summary(given)["metrics"] == summary(folder)["metrics"]

    again = train(*match, "test_only=true", f"ckpt={folder / 'checkpoints' / 'best.ckpt'}")
    for name, value in summary(again)["metrics"].items():
        assert value == summary(folder)["metrics"][name]

    assert "param_match: a resumed run keeps its" in refusal(f"resume={folder}", "param_match=5000")
    monkeypatch.setattr(rnnzoo.hydra.param_match, "matching_size", lambda *_: pytest.fail("searched again"))
    train(f"resume={folder}", "trainer.max_epochs=2")
    assert summary(folder)["epochs"] == 2 and hidden_size(folder) == size


def test_a_cell_of_ones_own(tmp_path: Path, train: Callable[..., Path]) -> None:
    """Its initial values may depend on values, it may refuse sizes, and its fixed weights do not count."""
    (tmp_path / "own.py").write_text(OWN)
    own = (*SINE, f"cells={tmp_path / 'own.py'}", "model=eights", "model.rank=3")
    assert hidden_size(train(*own, "param_match=3000")) == 432  # H from the input, 2 * 3 H to the low rank and back


def test_an_embedding_and_two_directions(train: Callable[..., Path], reviews: Path) -> None:
    toy = ("hardware=cpu", f"task.data={reviews}", "task.batch_size=8", "task.embedding=5", "trainer.max_epochs=1")
    folder = train("task=imdb", *toy, "param_match=20200")
    assert OmegaConf.load(folder / ".hydra" / "config.yaml").model.bidirectional
    assert layer_count(folder) == pytest.approx(20_200, rel=0.01)


# Published comparisons


@pytest.fixture
def sweep(train: Callable[..., Path], tmp_path: Path) -> Callable[..., list[Path]]:
    """`sweep("experiment=...", ...)` runs a sweep at toy size and returns its runs' folders."""

    def run(*arguments: str) -> list[Path]:
        toy = ("trainer.limit_train_batches=1", "trainer.max_epochs=1", "hardware=cpu", "engine=reference")
        train(*arguments, *toy, f"hydra.sweep.dir={tmp_path / 'sweep'}")
        return sorted((path.parent for path in (tmp_path / "sweep").glob("*/summary.json")), key=lambda p: int(p.name))

    return run


@pytest.mark.parametrize(
    ("experiment", "cells"),
    [
        ("lstm_ablation", "lstm_peephole nig nfg nog niaf noaf cifg np fgr"),
        ("mutants", "mut1 mut2 mut3 gru lstm"),
    ],
)
def test_equal_budgets(experiment: str, cells: str, sweep: Callable[..., list[Path]], tmp_path: Path) -> None:
    """The experiment has the paper's cells, and a size for each within a percent of its budget."""
    config: Any = OmegaConf.load(ROOT / "conf" / "experiment" / f"{experiment}.yaml")
    assert config.hydra.sweeper.params.model.split(",") == cells.split()
    for cell in cells.split():
        size = chosen(config.param_match, 64, cell=cell)
        assert real_count(cell, 64, size) == pytest.approx(250_000, rel=0.01)

    text = tmp_path / "text.txt"
    text.write_text("hello world\n" * 20)
    toy = (f"task.text={text}", "task.window=3", "task.streams=2", "task.sample_length=3")
    first, last = sweep(f"experiment={experiment}", f"model={cells.split()[0]},{cells.split()[-1]}", *toy)
    assert hidden_size(first) != hidden_size(last)
    for folder in (first, last):
        assert layer_count(folder) == pytest.approx(250_000, rel=0.01)


def test_the_textbook_comparison(sweep: Callable[..., list[Path]], reviews: Path) -> None:
    folders = sweep("experiment=imdb_article", f"task.data={reviews}", "task.batch_size=8", "seed=3")
    assert [summary(folder)["model"] for folder in folders] == ["rnn", "lstm", "gru"]
    for folder, blocks in zip(folders, (1, 4, 3)):
        run = summary(folder)
        assert {"val/accuracy", "test/accuracy"} <= run["metrics"].keys() and run["seconds_training"] > 0
        assert layer_count(folder) == blocks * (32 * 32 + 32 * 32 + 32) + (32 if run["model"] == "gru" else 0)


def test_the_textbook_comparison_has_three_seeds(sweep: Callable[..., list[Path]], reviews: Path) -> None:
    folders = sweep("experiment=imdb_article", "model=rnn", f"task.data={reviews}", "task.batch_size=8")
    assert [summary(folder)["seed"] for folder in folders] == [1, 2, 3]
