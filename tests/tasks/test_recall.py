"""Associative recall: every question answered by looking it up, and a network's loss where nothing is known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ready import ready

from rnnzoo import UserError
from rnnzoo.tasks.drawn import IGNORED
from rnnzoo.tasks.recall import Pairs
from rnnzoo.tasks.symbols import Symbols


@settings(deadline=None, max_examples=20)
@given(pairs=st.integers(1, 6), blanks=st.integers(0, 9), seed=st.integers(0, 5))
def test_questions_are_answered_by_what_was_paired(pairs: int, blanks: int, seed: int) -> None:
    data = ready(Pairs(3 * pairs + blanks, pairs, 14, samples=30, batch_size=30, seed=seed))
    loader = data.train_dataloader()
    x, y = loader.fetch(loader.plan(0)[0])
    assert x.shape == y.shape == (30, 3 * pairs + blanks) and data.facts() == {"read": 15, "answered": 7}
    for read, answers in zip(x.tolist(), y.tolist()):
        keys, values = read[0 : 2 * pairs : 2], read[1 : 2 * pairs : 2]
        assert len(set(keys)) == pairs and all(1 <= k <= 7 for k in keys) and all(8 <= v <= 14 for v in values)
        known = dict(zip(keys, values))
        asked = [symbol for symbol in read[2 * pairs :] if symbol]
        assert sorted(asked) == sorted(keys)
        wanted = [known[symbol] - 8 if symbol else IGNORED for symbol in read[2 * pairs :]]
        assert answers == [IGNORED] * 2 * pairs + wanted


def test_the_trivial_answer_is_any_value_seen() -> None:
    """Always answering the value of the first pair is right as often as the baseline says."""
    data = ready(Pairs(24, 4, 12, samples=5000, batch_size=5000))
    loader = data.train_dataloader()
    x, y = loader.fetch(loader.plan(0)[0])
    asked = y != IGNORED
    right = ((x[:, 1:2] - 7).expand_as(y)[asked] == y[asked]).float()
    found = data.baseline()
    assert float(right.mean()) == pytest.approx(found["baseline/trivial_accuracy"], abs=0.015)
    assert found["baseline/trivial_loss"] == pytest.approx(math.log(6))


def test_only_questions_are_scored() -> None:
    module = Symbols(read=13, answered=6, embedding=3, model={"cell": "rnn", "hidden_size": 4})
    with torch.no_grad():
        module.head.weight.zero_()
        module.head.bias.zero_()
    loader = ready(Pairs(24, 4, 12, samples=20, batch_size=20)).train_dataloader()
    batch = loader.fetch(loader.plan(0)[0])
    of_training = module.score(batch)
    loss, count, logits, answers = module.eval().score(batch)
    assert all(torch.equal(a, b) for a, b in zip(of_training, (loss, count), strict=True))
    assert count == 20 * 4 and logits.shape == (80, 6) and answers.shape == (80,)
    assert loss.item() == pytest.approx(math.log(6), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"T": 10, "pairs": 4}, "task.pairs=4: pairs and questions take 12 steps, more than task.T=10"),
        ({"T": 40, "pairs": 9, "vocabulary": 16}, "task.pairs=9: task.vocabulary=16 has only 8 keys"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        Pairs(**options)


@pytest.mark.parametrize("size", [0, 3])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_step_may_read_what_came_before(steps: int, size: int) -> None:
    module = Symbols(read=5, answered=2, embedding=size, window=3, model={"cell": "rnn", "hidden_size": 4}).eval()
    seen: list[torch.Tensor] = []
    module.layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    symbols = torch.randint(5, (steps, 2))
    with torch.no_grad():
        assert module(symbols).shape == (steps, 2, 2)
    vectors = module.embed.weight.detach() if size else torch.eye(5)
    for t in range(steps):
        wanted = [vectors[symbols[t - k]] if t >= k else torch.zeros(2, size or 5) for k in range(3)]
        assert torch.equal(seen[0][t], torch.cat(wanted, 1))


@pytest.mark.parametrize("option", ["model.num_layers=2", "task.window=2"])
def test_a_run(option: str, train: Callable[..., Path]) -> None:
    """What stores outer products learns it in seconds, if a layer before or the window puts key and value together."""
    folder = train(
        "hardware=cpu", "task=recall", "model=delta_net", option, "model.hidden_size=32", "task.T=8",
        "task.pairs=2", "task.vocabulary=8", "task.samples=8000", "task.embedding=16", "optimizer.lr=0.01",
        "trainer.max_epochs=1",
    )  # fmt: skip
    found = json.loads((folder / "summary.json").read_text())["metrics"]
    assert found["test/accuracy"] > 0.95 > 0.7 > found["baseline/trivial_accuracy"]
