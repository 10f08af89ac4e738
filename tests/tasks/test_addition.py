"""Addition: questions against Python's own arithmetic, the two layers against torch's, and answers.

Rows are "123+45 =168 " in the numbers of their characters.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ready import ready
from torch import Tensor, nn

from rnnzoo import UserError, list_cells
from rnnzoo.tasks.addition import ALPHABET, Addition, Sums, draw_sums

ADAM = {"name": "adam", "lr": 0.01, "schedule": "constant"}


def addition(
    cell: str = "gru", digits: int = 2, reverse: bool = True, hidden_size: int = 8, **options: Any
) -> Addition:
    torch.manual_seed(0)
    model = {"cell": cell, "hidden_size": hidden_size, **options}
    return (
        Addition(model=model, optimizer=ADAM, engine="reference", seed=1, digits=digits, reverse=reverse)
        .double()
        .eval()
    )


def lines(rows: Tensor) -> list[str]:
    return ["".join(ALPHABET[code] for code in row) for row in rows.tolist()]


def questions(digits: int, count: int) -> list[str]:
    return [f"{a}+{b}" for a, b in draw_sums(digits, count, seed=3)]


# The data


@settings(deadline=None, max_examples=20)
@given(digits=st.integers(1, 9), samples=st.integers(1, 47), seed=st.integers(0, 5))
def test_sums_are_right_and_no_question_occurs_twice(digits: int, samples: int, seed: int) -> None:
    data = ready(Sums(digits, samples, 8, seed))
    held_out = max(samples // 10, 2)
    assert [len(part) for part in (data.train, data.val, data.test)] == [samples, held_out, held_out]
    seen = set()
    for line in lines(torch.cat([data.train, data.val, data.test])):
        question, answer = line[: 2 * digits + 1].rstrip(), line[2 * digits + 2 :].rstrip()
        assert line == question.ljust(2 * digits + 1) + "=" + answer.ljust(digits + 1)
        a, b = question.split("+")
        assert (a, b) == (str(int(a)), str(int(b))) and max(len(a), len(b)) <= digits
        assert int(answer) == int(a) + int(b)
        seen.add(frozenset((a, b)))
    assert len(seen) == samples + 2 * held_out


def test_all_questions_there_are() -> None:
    assert {tuple(sorted(pair)) for pair in draw_sums(1, 55, 1)} == set(combinations_with_replacement(range(10), 2))
    assert len({tuple(sorted(pair)) for pair in draw_sums(2, 5050, 1)}) == 5050
    with pytest.raises(UserError, match=r"task\.samples: 56 .* task\.digits=1 makes only 55; .*raise task\.digits"):
        draw_sums(1, 56, 1)


def test_questions_are_uniform() -> None:
    count = 20_000
    drawn = draw_sums(3, count, 1)

    def share(wanted: Callable[[int, int], bool], expected: float) -> None:
        found = sum(wanted(a, b) for a, b in drawn) / count
        assert found == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / count))

    different = 1000 * 1001 / 2
    share(lambda a, b: a < b, 0.5 * (different - 1000) / different)
    share(lambda a, b: a > b, 0.5 * (different - 1000) / different)
    share(lambda a, b: min(a, b) >= 100, 900 * 901 / 2 / different)
    share(lambda a, b: max(a, b) < 500, 500 * 501 / 2 / different)


def unordered(line: str) -> tuple[list[str], str]:
    question, answer = line.split("=")
    return sorted(question.strip().split("+")), answer


def test_every_sum_once_an_epoch_in_an_order_of_its_own() -> None:
    data = ready(Sums(2, 30, 7, 1))
    batches = data.train_dataloader()
    epochs = [torch.cat([batches.fetch(key) for key in batches.plan(epoch)]) for epoch in (0, 1)]
    assert lines(epochs[0]) != lines(epochs[1])
    swapped = []
    for rows in epochs:
        assert len(rows) == 30 and sorted(map(unordered, lines(rows))) == sorted(map(unordered, lines(data.train)))
        swapped.append(set(lines(rows)) - set(lines(data.train)))
        assert 12 <= len(swapped[-1]) <= 15  # half of them, of which 5+5 and the like look the same
    assert swapped[0] != swapped[1]
    assert torch.equal(torch.cat(list(data.val_dataloader())), data.val)
    assert lines(ready(Sums(2, 30, 7, 1)).train) == lines(data.train) != lines(ready(Sums(2, 30, 7, 2)).train)


def test_the_baseline_is_the_most_frequent_answer() -> None:
    data = ready(Sums(1, 40, 8, 1))
    train, test = ([line[4:] for line in lines(part)] for part in (data.train, data.test))
    counts = Counter(train)
    most_frequent = {answer for answer in counts if counts[answer] == max(counts.values())}
    assert data.baseline()["baseline/most_frequent_exact"] in {
        test.count(answer) / len(test) for answer in most_frequent
    }


# The model


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("cell", "kind"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_the_decoder_goes_on_from_the_encoders_state(cell: str, kind: Any, reverse: bool) -> None:
    module = addition(cell, reverse=reverse, num_layers=2)
    rows = torch.cat([ready(Sums(2, 5, 8, 1)).train])
    one_hot = F.one_hot(rows, len(ALPHABET)).double()
    layers = []
    for layer in (module.encoder, module.decoder):
        layers.append(kind(len(ALPHABET), 8, 2, batch_first=True).double())
        layers[-1].load_state_dict(layer.torch_state_dict())
    read = one_hot[:, :5].flip(1) if reverse else one_hot[:, :5]
    output, _ = layers[1](one_hot[:, 5:8], layers[0](read)[1])  # from the equals sign to the last character but one
    expected = module.head(output)  # [B, W, A]
    torch.testing.assert_close(module(rows), expected.transpose(0, 1), rtol=1e-10, atol=1e-10)

    module.validation_step(rows, 0)
    loss = F.cross_entropy(expected.detach().flatten(0, 1), rows[:, 6:].flatten())
    assert float(module.val_metrics.compute()["loss"]) == pytest.approx(float(loss), rel=1e-6)


@pytest.mark.parametrize("cell", list_cells())
def test_what_is_scored_is_what_is_answered(cell: str) -> None:
    """Rows whose answers are the model's own are all exact, those changed in one character are not; for every cell."""
    module = addition(cell)
    asked = questions(2, 12)
    answers = module.answer(asked)
    rows = torch.tensor([[ALPHABET.index(c) for c in f"{q:<5}={a:<3}"] for q, a in zip(asked, answers)])
    changed = rows.clone()
    changed[range(12), [6 + k % 3 for k in range(12)]] += 1
    changed %= len(ALPHABET)
    for batch in (rows, changed):
        module.test_step(batch, 0)
    found = {name: float(value) for name, value in module.test_metrics.compute().items()}
    assert found["exact"] == 0.5
    # of 72 characters at least the 12 are wrong that were changed, and what follows them may be too
    assert 0.5 < found["character_accuracy"] <= 60 / 72


def test_an_answer_does_not_depend_on_what_is_asked_beside_it() -> None:
    module = addition("lstm")
    asked = ["1+2", "99+99", "0+0", "10+7"]
    assert module.answer(asked) == [module.answer([question])[0] for question in asked]
    module.train()
    assert module.answer(asked) and module.training


@pytest.mark.parametrize("question", ["", "1", "1+", "1+2+3", "1-2", "1 + 2", "100+1", "01+2", "1+2\n", "²+1", "a+b"])
def test_questions_that_are_refused(question: str) -> None:
    with pytest.raises(UserError, match=r"question .*: must be two numbers of at most 2 digits"):
        addition().answer(["1+1", question])


def test_options_that_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.bidirectional=true"):
        addition(bidirectional=True)
    with pytest.raises(UserError, match=r"model\.learn_initial_state=true"):
        addition(learn_initial_state=True)


# Runs


TOY = (
    "hardware=cpu", "task=addition", "task.digits=2", "task.samples=4000", "task.batch_size=50", "model.hidden_size=48",
)  # fmt: skip


def test_adding_is_learned(train: Callable[..., Path]) -> None:
    folder = train(*TOY, "optimizer.lr=0.02", "trainer.max_epochs=8")
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    print(metrics)
    assert metrics["test/exact"] > 0.5 > 20 * metrics["baseline/most_frequent_exact"]
