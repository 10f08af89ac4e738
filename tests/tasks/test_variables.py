"""What `rnnzoo probe` is to read off the states: the numbers that tasks name, counted once more by hand."""

from __future__ import annotations

import math

import pytest
import torch
from ready import ready

from rnnzoo.tasks.addition import Addition, Sums, decode, draw_sums
from rnnzoo.tasks.char_lm import Characters, CharLM
from rnnzoo.tasks.drawn import Batch
from rnnzoo.tasks.languages import LANGUAGES, Words
from rnnzoo.tasks.memory import Adding, Copies, Copy
from rnnzoo.tasks.memory import Sums as Marked
from rnnzoo.tasks.recall import Pairs
from rnnzoo.tasks.sine import Sine, Waves
from rnnzoo.tasks.symbols import Symbols

GENERATOR = torch.Generator().manual_seed(0)


def test_sums_and_carries() -> None:
    digits = 2
    rows = ready(Sums(digits, 200, 8, seed=3)).train
    found = Addition(digits=digits).variables(rows)
    pairs = draw_sums(digits, 200 + 2 * 20, seed=3)
    assert found["sum"].tolist() == [a + b for a, b in pairs[:200]]
    for (a, b), carries, text in zip(pairs, found["carry"].T.tolist(), decode(rows[:, -digits - 1 :].T)):
        expected, carry = [0], 0
        for x, y in zip(f"{a:02}"[::-1], f"{b:02}"[::-1]):  # on paper, from the right
            carry = (int(x) + int(y) + carry) // 10
            expected.append(carry)
        assert carries == [*expected[: len(text)][::-1], *[0] * (digits + 1 - len(text))]


def test_phase_and_next_value() -> None:
    data = ready(Waves(samples=20, window=6, step=0.4, seed=1))
    module = Sine(window=6, step=0.4)
    found = module.variables(data.train)
    theta = math.pi * torch.rand(24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)[:20]
    for t in range(6):
        torch.testing.assert_close(found["next value"][t].double(), torch.sin(theta + 0.4 * (t + 1)), atol=1e-6, rtol=0)
        cosine = found["cosine of the phase"][t].double()
        torch.testing.assert_close(cosine, torch.cos(theta + 0.4 * t), atol=1e-5, rtol=0)


def test_the_sum_of_the_marked_so_far() -> None:
    batch = Marked(T=9, samples=40).draw(5, 9, GENERATOR)
    found = Adding().variables(batch)["sum so far"]
    for b in range(5):
        total = 0.0
        for t, (value, mark) in enumerate(batch.x[b].tolist()):
            total += value if mark else 0
            assert float(found[t, b]) == pytest.approx(total)
    torch.testing.assert_close(found[-1], batch.y)


@pytest.mark.parametrize("language", LANGUAGES)
def test_states_of_automata(language: str) -> None:
    data = Words(language, T=7, test_T=9)  # type: ignore[arg-type]
    batch = data.draw(4, 7, GENERATOR)
    found = Symbols(**data.facts()).variables(batch)
    for b, letters in enumerate(batch.x.tolist()):
        state = 0
        for t, letter in enumerate(letters):
            state = LANGUAGES[language][letter][state]
            if language == "parity":
                assert found.keys() == {"state"} and float(found["state"][t, b]) == state == sum(letters[: t + 1]) % 2
            else:
                assert [float(found[f"state {k}"][t, b]) for k in range(5)] == [float(k == state) for k in range(5)]


def test_tasks_that_name_none() -> None:
    pairs = Pairs(T=12, pairs=2, vocabulary=8)
    assert Symbols(**pairs.facts()).variables(pairs.draw(3, 12, GENERATOR)) == {}
    assert Copy().variables(Batch(*Copies(T=5).draw(3, 5, GENERATOR))) == {}


def test_positions_go_on_from_window_to_window() -> None:
    text = "ab c\nabcabc\n\n" * 12
    data = Characters(window=5, streams=2, val_fraction=0.3)
    data.alphabet = "".join(sorted(set(text)))
    codes = torch.tensor([data.alphabet.index(character) for character in text])[None]  # one stream
    module = CharLM(alphabet=data.alphabet, embedding=0, sample_length=0).eval()
    position = []
    for start in range(0, 60, 5):
        window = codes[:, start : start + 6]
        found = module.variables(window)
        position += found["position in the line"][:, 0].tolist()
        following = text[start + 1 : start + 6]
        assert found["next is a letter"][:, 0].tolist() == [float(character in "abc") for character in following]
        assert found["next is a blank"][:, 0].tolist() == [float(character == " ") for character in following]
        assert found["next ends the line"][:, 0].tolist() == [float(character == "\n") for character in following]
        with torch.no_grad():
            module.score(window)
    assert position == [len(text[: t + 1].rpartition("\n")[2]) for t in range(60)]
