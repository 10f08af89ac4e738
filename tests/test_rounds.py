"""Loops within a step are written and drawn once, and say what they said unrolled."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from rnnzoo import list_cells, registry
from rnnzoo.explain.card import Card, latex, prose, text
from rnnzoo.explain.diagram_graph import graph
from rnnzoo.explain.expression import Equation, Expression, Symbol, evaluate
from rnnzoo.explain.rounds import Rounds, folded

LOOPS = {"ltc": (1, 6, 2), "rhn": (2, 3, 3)}
"""The number of the first round, how many there are, and the equations of each."""


def at(e: Expression, k: int) -> Expression:
    """A round's expression in the k-th."""
    detail = e.detail
    if isinstance(detail, Symbol) and isinstance(detail.version, str):
        detail = replace(detail, version={"k": k, "k−1": k - 1}.get(detail.version, detail.version))
    elif detail == "k":
        detail = k - 1
    return replace(e, args=tuple(at(a, k) for a in e.args), detail=detail)


@pytest.mark.parametrize("name", LOOPS)
def test_the_rounds_give_what_the_unrolled_loop_gives(name: str) -> None:
    """Unrolled once more by hand, from random numbers."""
    reading = Card(registry.entry(name), 3, 4).reading
    random = np.random.default_rng(0)
    given: dict[Symbol, NDArray[np.float64]] = {}
    for symbol in reading.given:
        shape = reading.shapes[symbol]
        given[symbol] = random.random((*shape, 1) if len(shape) == 1 else shape)
    known = dict(given)
    for equation in reading.equations:
        known[equation.targets[0]] = evaluate(equation.value, known)

    found, [[first, count, size]] = dict(given), [LOOPS[name]]
    for part in folded(reading):
        if isinstance(part, Equation):
            found[part.targets[0]] = evaluate(part.value, found)
            continue
        assert (part.first, part.count, len(part.body)) == (first, count, size)

        def key(symbol: Symbol) -> Symbol:  # "0" and "6" are numbers, too
            version = symbol.version
            return replace(symbol, version=int(version) if isinstance(version, str) else version)

        for equation in part.enter:
            found[key(equation.targets[0])] = evaluate(equation.value, found)
        for k in range(first, first + count):
            for equation in part.body:
                target = replace(equation.targets[0], version=k)
                found[target] = evaluate(at(equation.value, k), found)
        for equation in part.leave:
            found[equation.targets[0]] = found[key(equation.value.detail)]
    assert np.allclose(found[reading.output], known[reading.output])


def test_only_loops_are_folded() -> None:
    loops = {}
    for name in list_cells():
        rounds = [part for part in folded(Card(registry.entry(name)).reading) if isinstance(part, Rounds)]
        if rounds:
            loops[name] = rounds
    assert loops.keys() == LOOPS.keys()


def test_a_loop_is_written_and_drawn_once() -> None:
    card = Card(registry.entry("ltc"))
    assert text(card).count("v_t^(k) = ") == 1 and "× 6 for k = 1, …, 6:" in text(card)
    assert latex(card).count(r"v^{(k)}_{t} &=") == 1 and r"\times 6" in latex(card) and "−" not in latex(card)
    steps = [step.text for vertex in graph(card.reading).vertices for step in vertex.steps]
    assert steps.count("repeated × 6") == 1 and len(steps) < 40


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("`relu` & f's bias", "<code>relu</code> &amp; <i>f</i>'s bias"),
        ("c = 1 - t, a cell", "<i>c</i> = 1 − <i>t</i>, a cell"),
        ("A gate. A W and k² of 2^(-2.5)", "A gate. A <i>W</i> and <i>k</i><sup>2</sup> of 2<sup>−2.5</sup>"),
        ("γ of W_in, e.g. the authors' code", "<i>γ</i> of <i>W</i><sub>in</sub>, e.g. the authors' code"),
    ],
)
def test_docstrings_are_set_as_code_and_mathematics(words: str, expected: str) -> None:
    assert prose(words) == expected


def test_no_mark_of_code_is_left_on_a_page() -> None:
    for name in list_cells():
        card = Card(registry.entry(name))
        for words in (card.summary, *card.remarks):
            assert "`" not in re.sub(r"<code>.*?</code>", "", prose(words))
