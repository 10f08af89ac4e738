"""The essays after the first: their numbers by other ways, their texts in every language, and the league's page."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jinja2 import nodes
from pages import Page, prose

from rnnzoo import UserError, cli, list_cells
from rnnzoo.explain import gallery
from rnnzoo.explain.card import templates
from rnnzoo.explain.essays import claims, gates, league, scan, units, vanishing
from rnnzoo.explain.essays.page import TEXTS, Essay, languages

ESSAYS = [essay for essay in gallery.essays() if essay.name not in ("start", "league")]
"""The first has tests of its own, the league's its own results."""

LEAGUE = {
    # cell: values of two seeds at two learning rates, on a task where less is better and on one where more is
    "gru": {("adding", 1e-3): (0.001, 0.002), ("adding", 1e-2): (0.010, 0.012), ("parity", 1e-2): (0.50, 0.52)},
    "lstm": {("adding", 1e-3): (0.011, 0.4), ("adding", 1e-2): (0.011, 0.020), ("parity", 1e-2): (0.99, 1.00)},
    "rnn": {("adding", 1e-2): (0.9, math.nan), ("parity", 1e-2): (0.98, 1.00)},
    "a_cell_of_before": {("parity", 1e-2): (0.10, 0.20)},
}
METRICS = {"adding": "test/mse", "parity": "test/accuracy"}


# Texts


def macros(language: str) -> dict[str, Counter[str]]:
    """Of each text its arguments and what it names: variables, their attributes, and filters."""
    tree = templates().parse((TEXTS / f"{language}.html").read_text(encoding="utf-8"))
    found: dict[str, Counter[str]] = {}
    for macro in tree.find_all(nodes.Macro):
        assert macro.name not in found, f"{macro.name} is there twice"
        found[macro.name] = Counter(
            [f"argument {argument.name}" for argument in macro.args]
            + [part.name for part in macro.find_all(nodes.Name)]
            + [f".{part.attr}" for part in macro.find_all(nodes.Getattr)]
            + [f"| {part.name}" for part in macro.find_all(nodes.Filter)]
        )
    return found


def test_no_text_is_missing_in_any_language_and_placeholders_agree() -> None:
    assert languages() == ["en", "ja"]
    english, japanese = macros("en"), macros("ja")
    assert english.keys() == japanese.keys() and len(english) > 300
    assert {name for name in english if english[name] != japanese[name]} == set()


def test_texts_are_in_their_language_and_not_empty() -> None:
    for language, letters in (("en", "[A-Za-z]"), ("ja", "[ぁ-んァ-ヶ一-龠]")):
        module: Any = templates().get_template(f"texts/{language}.html").make_module()
        source = (TEXTS / f"{language}.html").read_text(encoding="utf-8")
        for name, text in re.findall(r"{% macro (\w+)\(.*?\) %}(.*?){% endmacro %}", source, re.S):
            assert hasattr(module, name)
            said = re.sub(r"{[{%].*?[}%]}|<[^>]*>", "", text)
            assert re.search(letters, said) or 0 < len(said) < 25 or "{{" in text, name  # a formula or a cell's name
            if language == "en":
                assert not re.search("[ぁ-んァ-ヶ一-龠]", text), name


def test_a_language_without_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gallery", str(tmp_path / "out"), "--language", "jp"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: --language jp: no such texts") and "ja" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


# Pages


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("essay", ESSAYS, ids=lambda essay: essay.name)
def test_pages_are_whole(essay: Essay, language: str) -> None:
    before = torch.random.get_rng_state()
    body = essay.body(language)
    assert torch.equal(torch.random.get_rng_state(), before), "the global random state is to be left alone"
    page = Page(body)
    assert page.open == [] and page.tags.count("h1") == 1 and "script" not in page.tags
    assert len(set(page.ids)) == len(page.ids) > 4
    assert "{{" not in body and "{%" not in body and "nan" not in prose(page).split() and "None" not in prose(page)
    assert page.tags.count("svg") == body.count("<title>") and ("svg" in page.tags or essay is claims.ESSAY)
    pages = {f"{name}.html" for name in (*list_cells(), "index")} | {other.file for other in gallery.essays()}
    for link in page.links:
        assert str(link).startswith("https://arxiv.org/abs/") or str(link).partition("#")[0] in pages
    if language == "ja":
        texts = r'<p(?! lang="en")[ >].*?</p>|<figcaption>.*?</figcaption>|<h[12]>.*?</h[12]>'
        for paragraph in re.findall(texts, body, re.S):
            assert re.search("[ぁ-んァ-ヶ一-龠]", paragraph), paragraph


def test_the_same_page_every_time() -> None:
    torch.manual_seed(1)
    before = scan.ESSAY.body()
    scan.found.cache_clear()
    assert scan.ESSAY.body() == before


# Why gradients vanish


@pytest.fixture(scope="module")
def runs() -> dict[str, vanishing.Run]:
    found: dict[str, vanishing.Run] = vanishing.found()["runs"]
    return found


def test_what_is_to_be_remembered_is_marked() -> None:
    x = vanishing.examples(200, torch.Generator().manual_seed(0))
    assert x.shape == (vanishing.T, 200, 2) and x[0, :, 1].tolist() == [1.0] * 200 and float(x[1:, :, 1].sum()) == 0
    assert float(x[..., 0].var()) == pytest.approx(1, abs=0.05)


def test_factor_and_exponent_are_two_ways_to_one_number(runs: dict[str, vanishing.Run]) -> None:
    """The text says that they are close."""
    for run in runs.values():
        numbers = run.found["before"].numbers
        assert vanishing.factor(run.found["before"]) == pytest.approx(math.exp(numbers["exponent"]), abs=0.05)


def test_what_the_text_says_of_the_four_networks(runs: dict[str, vanishing.Run]) -> None:
    factor = {name: vanishing.factor(run.found["before"]) for name, run in runs.items()}
    assert factor["rnn"] < factor["lstm"] < factor["chrono"] < 1
    assert factor["orthogonal"] == pytest.approx(1, abs=0.05)
    near = {name: run.found["before"].numbers["near_the_unit_circle"] for name, run in runs.items()}
    assert near["lstm"] < near["chrono"] < near["orthogonal"]
    first = {name: float(run.gradients["before"][0]) for name, run in runs.items()}
    assert first["rnn"] < 1e-4 * first["orthogonal"] and first["lstm"] < first["chrono"]
    assert runs["chrono"].loss < 0.5 < runs["rnn"].loss
    assert runs["orthogonal"].loss < runs["orthogonal"].losses[0]


# Gates as time constants


def test_time_constants_are_those_of_the_formula() -> None:
    for bias, gate, expected, measured in gates.found()["biases"]:
        assert gate == pytest.approx(1 / (1 + math.exp(-bias)))
        assert expected == pytest.approx(-1 / math.log(gate))
        assert measured == pytest.approx(expected, rel=1e-6)
    assert math.exp(-1 / gates.time_constant(0.9)) == pytest.approx(0.9)


def test_the_gate_of_the_time_passed_is_exact() -> None:
    samples = gates.sample()
    gaps = np.diff(samples.times)
    assert (gaps > 0).all()
    assert samples.miss("aware") < 1e-6 < 0.02 < samples.miss("fixed")
    generator = torch.Generator().manual_seed(0)
    torch.rand(gates.SAMPLES, generator=generator, dtype=torch.float64)
    signal = torch.randint(2, (gates.SAMPLES,), generator=generator).numpy()
    h = 0.0
    for k, gap in enumerate(gaps):  # the leak's solution, from the initial value
        h = signal[k] + (h - signal[k]) * np.exp(-gap / gates.TAU)
        assert samples.exact[k + 1] == pytest.approx(h, abs=1e-6)


def test_chrono_spreads_the_clocks() -> None:
    found = gates.found()
    assert max(found["spread"]["default"]) < 10
    spread = found["spread"]["chrono"]
    assert np.median(spread) == pytest.approx(gates.LONGEST / 2, rel=0.4) and max(spread) > 0.7 * gates.LONGEST
    assert found["long"]["lstm_before"] < found["long"]["chrono_before"]
    # what the text says of the usual LSTM: no long clock, and yet it has learned something, if less than with chrono
    assert found["long"]["lstm_after"] <= 2 and found["factors"]["before"] < found["factors"]["after"]
    assert found["chrono_loss"] < found["loss"] < 0.8


# From recurrence to scan to chunk


def test_depth_and_work_are_those_of_theory() -> None:
    for length in (16, 256):
        rounds = int(math.log2(length))
        loop, tree, doubling = (scan.count(way, length) for way in ("loop", "tree", "doubling"))
        assert (loop.depth, loop.work) == (length - 1, length - 1)
        assert (doubling.depth, doubling.work) == (rounds, length * rounds - length + 1)
        assert (tree.depth, tree.work) == (2 * rounds - 2, 2 * length - 2 - rounds)
    for way in scan.WAYS:
        assert max(counted.difference for counted in scan.found()["counts"][way].values()) < 1e-9


def test_a_chunk_is_attention_with_a_mask() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(12, n)) for n in (3, 3, 5))
    weights = np.tril(q @ k.T * 0.9 ** np.subtract.outer(np.arange(12), np.arange(12)))
    for chunk in (1, 3, 4, 12):
        out = scan.memory(*map(torch.tensor, (q, k, v)), 0.9, chunk)
        np.testing.assert_allclose(out, weights @ v, rtol=1e-9, atol=1e-12)


def test_work_of_chunks_is_that_of_the_formula() -> None:
    keys, values, steps, _ = scan.MEMORY
    for chunk in scan.found()["chunks"]:
        assert chunk.work == pytest.approx(chunk.size * (keys + values) + 2 * keys * values)
        assert chunk.waits == steps // chunk.size and chunk.difference < 1e-9


def test_what_the_engine_says_of_cells() -> None:
    kinds = {name: kind for name, kind, _, _ in scan.found()["examples"]}
    assert kinds["lstm"] == kinds["gru"] == "serial" and kinds["min_gru"] == kinds["lru"] == "parallel"
    for _, kind, states, reason in scan.found()["examples"]:
        assert bool(states) == (kind == "parallel") and bool(reason) == (kind != "parallel")
    assert 0 < scan.found()["checked"] < 1e-12
    assert "products a time step: 0 forward" in scan.found()["plans"]["min_gru"]


# What a language model's units track


def test_the_made_up_language_keeps_its_grammar() -> None:
    text = units.write(20_000, seed=5)
    assert set(text) <= set(units.ALPHABET) and units.write(20_000, seed=5) == text
    outside = re.sub(r'"[^"]*"?', "q", text)
    assert all(set(quoted) <= set("abcd ") for quoted in re.findall(r'"([^"]*)"', text))
    depth = np.cumsum([(character == "(") - (character == ")") for character in outside])
    assert depth.min() == 0 and depth.max() == 2
    for character, brackets in zip(outside, depth):
        assert character not in units.SEPARATORS or units.SEPARATORS.index(character) == brackets
    for line in text.split("\n")[:-1]:
        assert line[-1] in units.SEPARATORS and len(line) >= units.WIDTH
        assert all(found.end() < units.WIDTH for found in re.finditer("[,;:]", line[:-1]))


def test_what_the_text_says_of_the_model() -> None:
    found = units.found()
    heard = found["heard"]
    assert heard["untrained"].loss == pytest.approx(found["uniform"], abs=0.2)
    assert heard["trained"].loss < 0.75 * found["uniform"]
    for name in units.TRACKED:
        trained, untrained = (heard[which].trackers[name] for which in ("trained", "untrained"))
        assert abs(trained.correlation) > abs(untrained.correlation)
        assert trained.decoded[-1] > trained.correlation**2  # all units together know more
        assert trained.decoded[0] < 0.5 < trained.decoded[-1] and trained.decoded[-1] > untrained.decoded[-1]
    shown = units.coloured(found["text"], found["shown"][:, 0])
    assert Page(str(shown)).text == found["text"]


def test_a_unit_held_is_a_unit_without_weights() -> None:
    """h = 0 throughout is what a head and recurrent weights that do not read the unit make of it, and c = 0 its h."""
    torch.manual_seed(0)
    model = units.Model().requires_grad_(False)
    codes = units.encode(units.write(4 * 9, seed=1)).view(4, 9).T
    rises = units.without(model, codes)
    base = float(model(codes))
    cell = model.layer._cell(0)
    model.head.weight[:, 7] = 0
    for name, weight in cell.named_parameters():
        if name.startswith("U"):
            weight[7] = 0
    assert rises[7] == pytest.approx(float(model(codes)) - base, abs=1e-6)
    assert abs(rises[7]) > 1e-7


# Which cell for what


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "league.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(league.COLUMNS)
        for cell, values in LEAGUE.items():
            for (task, rate), of_seeds in values.items():
                for seed, value in enumerate(of_seeds):
                    better = 0.0 if rate == 1e-2 else 1.0  # the validation's word against the test's
                    writer.writerow([cell, task, METRICS[task], value, better, seed, 1000, rate, 3.5 + seed, ""])
    monkeypatch.setattr(league, "RESULTS", path)
    yield path


def test_the_league_is_there_once_it_has_been_played(results: Path) -> None:
    assert gallery.essays()[-1] is league.ESSAY
    adding, parity = league.found()["tasks"]
    assert [entry.cell for entry in adding.entries] == ["gru", "lstm", "rnn"]
    assert adding.entries[0].values == [0.010, 0.012] and adding.entries[0].learning_rate == 1e-2
    assert [entry.tied for entry in adding.entries] == [True, True, False]
    assert [entry.cell for entry in parity.entries] == ["lstm", "rnn", "gru", "a_cell_of_before"]
    assert [entry.tied for entry in parity.entries] == [True, True, False, False]
    standings = {standing.cell: standing for standing in league.found()["standings"]}
    assert standings["lstm"].rank == pytest.approx((1 / 2 + 0) / 2) and standings["lstm"].leads == 2
    assert standings["rnn"].rank == pytest.approx((1 + 1 / 3) / 2) and standings["rnn"].tasks == 2
    assert all(0 <= s.low <= s.rank + 1e-9 and s.rank - 1e-9 <= s.high <= 1 for s in standings.values())
    assert standings["a_cell_of_before"].low == standings["a_cell_of_before"].high == 1  # it is last with any seed
    for language in ("en", "ja"):
        page = Page(league.ESSAY.body(language))
        assert page.open == [] and "lstm.html" in page.links and "a_cell_of_before.html" not in page.links
        assert "a_cell_of_before" in page.text and "0.011" in page.text and "test/mse" in page.text
        assert ("diverged" if language == "en" else "発散") in page.text  # the median of rnn's seeds on adding
        rates = "0.001, 0.01 (adding); 0.01 (parity)" if language == "en" else "0.001、0.01（adding）；0.01（parity）"
        assert rates in page.text


def test_claims_are_there_once_they_have_been_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "claims.csv"
    monkeypatch.setattr(claims, "RESULTS", path)
    assert claims.ESSAY not in gallery.essays()
    rows = [
        ["irnn", "irnn", "Le 2015", "solves it", "0", "T = 150", "test/mse", "irnn 0.0004; rnn 0.1658", "yes", "90"],
        ["old", "a_cell_of_before lstm", "X <1990>", "a & b", "1", "T", "test/mse", "old 2", "no: old < 1", "30"],
        ["new", "gru", "Y 2000", "c", "1", "T", "test/mse", "", "2 of 2 runs are missing", "0"],
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([claims.COLUMNS, *rows])
    assert claims.ESSAY in gallery.essays()
    for language, count in (("en", "1 held"), ("ja", "1 件が成り立ちました")):
        page = Page(claims.ESSAY.body(language))
        assert page.open == [] and "irnn.html" in page.links and "a_cell_of_before.html" not in page.links
        assert ": new" in page.text and "Y 2000" not in page.text
        assert count in page.text and "irnn 0.0004; rnn 0.1658" in page.text and "X <1990>" in page.text
    for text in ("", "claim,cells\n", ",".join(claims.COLUMNS) + "\nirnn,irnn\n"):
        path.write_text(text)
        with pytest.raises(UserError, match=f"{re.escape(str(path))}: cannot be read"):
            claims.found()


def test_without_a_league_there_is_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(league, "RESULTS", tmp_path / "league.csv")
    assert league.ESSAY not in gallery.essays()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("learning_rate", "rate", "has no results with the column learning_rate"),
        ("0.012", "good", "line 5: value='good' is not a number"),
        ("1000", "many", "line 2: parameters='many' is not a number"),
    ],
)
def test_a_damaged_league(results: Path, old: str, new: str, said: str) -> None:
    results.write_text(results.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=said) as raised:
        league.found()
    assert str(results) in str(raised.value)
    results.write_text("")
    with pytest.raises(UserError, match="has no results with the column cell"):
        league.found()
