"""Regular languages: words whose states are computed once more by hand, and a cell that tracks them exactly."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ready import ready

from rnnzoo import Cell, UserError
from rnnzoo.tasks.drawn import IGNORED, Batch
from rnnzoo.tasks.languages import LANGUAGES, Words
from rnnzoo.tasks.symbols import Symbols

ADAM = {"name": "adam", "lr": 0.01, "schedule": "constant"}


def first(data: Words, split: str) -> Batch:
    loader = getattr(ready(data), f"{split}_dataloader")()
    return loader.fetch(loader.plan(0)[0])


def parity(word: list[int]) -> int:
    return word.count(1) % 2


def modular(word: list[int]) -> int:
    return sum(word) % 5


def automaton(word: list[int]) -> int:
    """Where a thing that begins in the first of five places on a ring ends up."""
    place = 0
    for letter in word:
        if letter == 0:
            place = (place + 1) % 5
        elif letter == 1 and place < 2:
            place = 1 - place
    return place


@pytest.mark.parametrize("state", [parity, modular, automaton])
def test_the_state_after_each_letter(state: Callable[[list[int]], int]) -> None:
    data = Words(state.__name__, T=11, test_T=30, samples=60, batch_size=20)  # type: ignore[arg-type]
    for split, T in (("train", 11), ("val", 11), ("test", 30)):
        x, y = first(data, split)
        assert x.shape == y.shape == (20 if split == "train" else 6, T)
        for word, answers in zip(x.tolist(), y.tolist()):
            wanted = [state(word[: t + 1]) for t in range(T)]
            assert answers == [IGNORED] * (11 if split == "test" else 0) + wanted[11 if split == "test" else 0 :]
    letters = {letter for word in first(data, "train").x.tolist() for letter in word}
    assert len(letters) == data.facts()["read"]


def test_the_automatons_letters_make_all_permutations() -> None:
    """So that no order of states is left out, and no commuting shortcut serves."""
    found = {tuple(range(5))}
    while True:
        more = {tuple(letter[s] for s in known) for known, letter in itertools.product(found, LANGUAGES["automaton"])}
        if more <= found:
            break
        found |= more
    assert len(found) == 120


def test_states_are_equally_frequent_in_long_words() -> None:
    for language in ("parity", "modular", "automaton"):
        data = Words(language, T=40, samples=4000, batch_size=4000)  # type: ignore[arg-type]
        last = first(data, "train").y[:, -1].bincount()
        n = len(last)
        found = data.baseline()
        assert found["baseline/trivial_accuracy"] == pytest.approx(1 / n, abs=1e-3)
        assert found["baseline/trivial_loss"] == pytest.approx(math.log(n), abs=1e-3)
        assert float((last - 4000 / n).abs().max()) < 4.5 * math.sqrt(4000 / n * (1 - 1 / n))


@pytest.mark.parametrize(
    ("state", "letters", "T", "test_T"),
    [(parity, 2, 1, 2), (parity, 2, 3, 8), (modular, 5, 1, 3), (automaton, 3, 1, 2), (automaton, 3, 5, 9)],
)
def test_the_trivial_answer_is_the_most_frequent_of_all_words(
    state: Callable[[list[int]], int], letters: int, T: int, test_T: int
) -> None:
    words = map(list, itertools.product(range(letters), repeat=test_T))
    answers = [state(word[:t]) for word in words for t in range(T + 1, test_T + 1)]
    share = np.bincount(answers) / len(answers)
    found = Words(state.__name__, T=T, test_T=test_T).baseline()  # type: ignore[arg-type]
    assert found["baseline/trivial_accuracy"] == pytest.approx(share.max())
    assert found["baseline/trivial_loss"] == pytest.approx(-(share[share > 0] * np.log(share[share > 0])).sum())


class Flip(Cell):
    """Whether the number of ones so far is odd, as one of two places that a one exchanges."""

    def step(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        odd = (h[:, 1:] - x[:, 1:]).abs()
        return torch.cat([1 - odd, odd], 1)


def test_a_cell_that_tracks_parity_is_right_at_any_length() -> None:
    module = Symbols(read=2, answered=2, model={"cell": Flip, "hidden_size": 2}, optimizer=ADAM).eval()
    with torch.no_grad():
        module.head.weight.copy_(50 * torch.eye(2))
        module.head.bias.zero_()
    batch = first(Words("parity", T=5, test_T=100, samples=100), "test")
    module.test_step(batch, 0)
    found = module.test_metrics.compute()
    assert float(found["accuracy"]) == 1 and float(found["loss"]) < 1e-6
    with torch.no_grad():
        module.head.weight.zero_()  # a guess
    loss, count, *_ = module.score(batch)
    assert loss.item() == pytest.approx(math.log(2)) and count == 10 * 95


def test_parity_is_learned_and_goes_on(train: Callable[..., Path]) -> None:
    folder = train(
        "hardware=cpu", "task=parity", "model=rnn", "model.hidden_size=16", "task.T=8", "task.test_T=20",
        "task.samples=4000", "optimizer.lr=0.01", "trainer.max_epochs=3",
    )  # fmt: skip
    found = json.loads((folder / "summary.json").read_text())["metrics"]
    assert found["val/accuracy"] > 0.99 and found["test/accuracy"] > 0.95
    assert found["baseline/trivial_accuracy"] == 0.5


def test_a_test_that_is_not_longer_is_refused() -> None:
    with pytest.raises(UserError, match=r"task\.test_T=40: must be more than task\.T=40"):
        Words("parity", T=40, test_T=40)
