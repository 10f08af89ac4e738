"""Names: what is read and held out, likelihoods against torch's GRU and against the sum over all names, samples."""

from __future__ import annotations

import inspect
import json
import logging
import math
import tarfile
import typing
from collections import Counter
from collections.abc import Callable
from itertools import chain, islice, pairwise, product
from pathlib import Path
from typing import Any
from xml.dom import minidom

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ready import ready
from torch import nn

from rnnzoo import UserError, list_cells
from rnnzoo.tasks.names import MODULES, Batch, NameLM, Names, read_folder, read_modules

ADAM = {"name": "adam", "lr": 0.01, "schedule": "constant"}
LABELS = ["left", "right"]


def model(cell: str = "gru", alphabet: str = "ab", longest: int = 6, **options: Any) -> NameLM:
    torch.manual_seed(0)
    task = {"embedding": 3, "label_embedding": 2, "dropout": 0.0, "samples": 2}
    given = {key: options.pop(key, default) for key, default in task.items()}
    module = NameLM(
        model={"cell": cell, "hidden_size": 8, **options},
        optimizer=ADAM,
        engine="reference",
        seed=1,
        labels=LABELS,
        alphabet=alphabet,
        longest=longest,
        **given,
    )
    return module.double().eval()


def write(folder: Path, **names: str) -> Path:
    """A folder with a text file for each class, its names given with spaces between."""
    folder.mkdir(exist_ok=True)
    for label, text in names.items():
        (folder / f"{label}.txt").write_text("\n".join(text.split()) + "\n", encoding="utf-8")
    return folder


def pairs(part: Batch, data: Names) -> list[tuple[str, str]]:
    """Class and name of each row, which begins with the boundary and goes on with boundaries to its end."""
    found = []
    for label, codes in zip(part.labels.tolist(), part.codes.tolist()):
        name = "".join(data.alphabet[code - 1] for code in codes if code)
        assert codes[0] == codes[-1] == 0 and not any(codes[1 + len(name) :])
        found.append((data.labels[label], name))
    return found


# What is read


def test_identifiers_are_those_that_the_modules_define() -> None:
    """What a module's functions and classes say of themselves after it is imported, which nothing read here is."""
    names = read_modules()
    assert tuple(names) == MODULES
    for found in names.values():
        assert found == sorted(set(found)) and len(found) > 100
        assert all(name.isidentifier() and not name.startswith("_") for name in found)
    for label, module in (("logging", logging), ("tarfile", tarfile), ("typing", typing), ("xml", minidom)):
        own = [v for v in vars(module).values() if inspect.isclass(v) or inspect.isfunction(v)]
        own = [v for v in own if v.__module__ == module.__name__ and not v.__name__.startswith("_")]
        own += [m for c in own if inspect.isclass(c) for m in vars(c).values() if inspect.isfunction(m)]
        expected = {v.__code__.co_name if inspect.isfunction(v) else v.__name__ for v in own}
        expected = {name for name in expected if name.isidentifier() and not name.startswith("_")}
        assert len(expected) > 20 and expected <= set(names[label])


def test_a_folder_of_text_files(tmp_path: Path) -> None:
    (tmp_path / "Čeština.txt").write_bytes("Novák\r\n\r\n  Dvořák \nNovák\n".encode())
    (tmp_path / "scottish.txt").write_text("van der Berg\nO'Neil\n")
    (tmp_path / "notes.md").write_text("no class")
    assert read_folder(str(tmp_path)) == {"scottish": ["O'Neil", "van der Berg"], "Čeština": ["Dvořák", "Novák"]}


def test_a_folder_that_will_not_do(tmp_path: Path) -> None:
    def refused(said: str) -> None:
        with pytest.raises(UserError, match=said) as error:
            read_folder(str(tmp_path / "names"))
        assert str(error.value).startswith(f"task.data={tmp_path / 'names'}: ") and "\n" not in str(error.value)

    refused("no such folder")
    (tmp_path / "names").write_text("Anna")
    refused("is no folder; name the one that holds the files")
    (tmp_path / "names").unlink()
    write(tmp_path / "names")
    refused(r"no \.txt file there; .* a name a line")
    write(tmp_path / "names", good="Anna", empty="")
    refused(r"empty\.txt holds no name")
    (tmp_path / "names" / "empty.txt").write_bytes("José\n".encode("latin-1"))
    refused(r"empty\.txt: not UTF-8 in line 1 \(byte 3\)")
    (tmp_path / "names" / "empty.txt").write_text("a" * 1001)
    refused(r"empty\.txt holds a name of 1,001 characters")
    (tmp_path / "names" / "empty.txt").unlink()
    (tmp_path / "names" / "empty.txt").symlink_to(tmp_path / "nowhere")
    refused(r"empty\.txt: No such file")
    (tmp_path / "names" / "empty.txt").unlink()
    (tmp_path / "names" / "empty.txt").mkdir()
    refused(r"empty\.txt: Is a directory")


def test_files_that_are_no_classes(tmp_path: Path) -> None:
    """What systems leave beside a class, in UTF-8 by chance; a mark at a file's begin is no part of its first name."""
    folder = write(tmp_path / "names", one="Anna Bea")
    for name in ("._one.txt", ".one.txt", "Thumbs.db", ".DS_Store", "desktop.ini"):
        (folder / name).write_text("Mac OS X\n")
    (tmp_path / "two.txt").write_text("Cleo\n", encoding="utf-16")
    (folder / "two.txt").symlink_to(tmp_path / "two.txt")
    (folder / "three.txt").write_text("Dora\n", encoding="utf-8-sig")
    assert read_folder(str(folder)) == {"one": ["Anna", "Bea"], "three": ["Dora"], "two": ["Cleo"]}


# What is held out


@settings(deadline=None, max_examples=20)
@given(shared=st.integers(0, 20), own=st.integers(20, 40), val=st.floats(0.1, 0.3), seed=st.integers(0, 5))
def test_no_name_is_in_two_parts(
    shared: int, own: int, val: float, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    words = ["".join(word) for word in islice(product("abc", repeat=4), shared + 2 * own)]
    one, two = words[: shared + own], words[:shared] + words[shared + own :]
    folder = write(tmp_path_factory.mktemp("names"), one=" ".join(one), two=" ".join(two))
    data = ready(Names(str(folder), 7, val, 0.1, seed))
    parts = [pairs(part, data) for part in (data.train, data.val, data.test)]
    assert sorted(chain(*parts)) == sorted([("one", name) for name in one] + [("two", name) for name in two])
    names = [{name for _, name in part} for part in parts]
    assert [len(part) for part in names[1:]] == [int(len(words) * val), int(len(words) * 0.1)]
    assert sum(map(len, names)) == len(words)
    batches = data.train_dataloader()
    for epoch in (0, 1):
        seen = [batches.fetch(key) for key in batches.plan(epoch)]
        assert sorted(pair for batch in seen for pair in pairs(batch, data)) == sorted(parts[0])


def test_batches_end_with_their_longest_name(tmp_path: Path) -> None:
    names = " ".join("a" * length for length in range(1, 41))
    data = ready(Names(str(write(tmp_path / "names", one=names)), 4, 0.2, 0.2, 1))
    for batch in (*data.val_dataloader(), *data.test_dataloader()):
        longest = max(len(name) for _, name in pairs(batch, data))
        assert batch.codes.shape[1] == longest + 2


def test_parts_that_would_be_empty_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "names", one="a b c d e f g h", two="z")
    for fractions, said in (
        ((0.1, 0.1), "of 9 names leave 9 to train on, 0 to validate on and 0 to test on"),
        ((0.2, 0.1), "of 9 names leave 8 to train on, 1 to validate on and 0 to test on"),
        ((0.5, 0.6), "leave no training part"),
    ):
        with pytest.raises(UserError, match=rf"task\.val_fraction=.* {said}"):
            ready(Names(str(folder), 4, *fractions, 1))
    seeds = range(20)
    refused = []
    for seed in seeds:
        try:
            ready(Names(str(folder), 4, 0.2, 0.2, seed))
        except UserError as error:
            assert "no name of two is left to train on" in str(error)
            refused.append(seed)
    assert 0 < len(refused) < len(seeds)
    data = ready(Names(str(folder), 4, 0.2, 0.0, next(seed for seed in seeds if seed not in refused)))
    assert not data.has_test and data.baseline() == {}


def test_baselines_by_counting(tmp_path: Path) -> None:
    folder = write(tmp_path / "names", one="ab abb ba bab aab abab", two="aa bb aaa bbb aabb bbaa ab")
    data = ready(Names(str(folder), 4, 0.2, 0.4, 1))
    counts: Counter[Any] = Counter()
    for label, name in pairs(data.train, data):
        for before, after in zip(f"^{name}", f"{name}$"):
            counts.update([(label, before, after), (label, "any", after)])

    def loss(context: Callable[[str], str]) -> float:
        losses = []
        for label, name in pairs(data.test, data):
            for before, after in zip(f"^{name}", f"{name}$"):
                seen = {c: counts[label, context(before), c] + 0.1 for c in "ab$"}
                losses.append(-math.log(seen[after] / sum(seen.values())))
        return sum(losses) / len(losses)

    found = data.baseline()
    assert found["baseline/unigram_loss"] == pytest.approx(loss(lambda before: "any"))
    assert found["baseline/bigram_loss"] == pytest.approx(loss(lambda before: before))


# The model


def by_hand(module: NameLM, name: str, label: str) -> float:
    """The name's log-likelihood by torch's own GRU, from the module's weights."""
    gru = nn.GRU(5, 8).double()
    gru.load_state_dict(module.layer.torch_state_dict())
    codes = [0, *(1 + module.hparams["alphabet"].index(character) for character in name)]
    features = torch.cat([module.embed.weight[codes], module.label_embed.weight[[LABELS.index(label)] * len(codes)]], 1)
    log_probabilities = module.head(gru(features)[0]).log_softmax(-1)
    return float(sum(log_probabilities[t, code] for t, code in enumerate([*codes[1:], 0])).detach())


def test_likelihood_and_loss_against_torch() -> None:
    module = model(alphabet="abcd")
    names = [("left", "abba"), ("right", ""), ("left", "d"), ("right", "dcbadcba")]
    expected = [by_hand(module, name, label) for label, name in names]
    assert [module.log_likelihood(name, label) for label, name in names] == pytest.approx(expected, rel=1e-9)
    assert module.log_likelihood("abba", "left") != module.log_likelihood("abba", "right")

    codes = torch.zeros(4, 10, dtype=torch.long)
    for row, (_, name) in enumerate(names):
        codes[row, 1 : 1 + len(name)] = torch.tensor([1 + "abcd".index(character) for character in name])
    module.validation_step(Batch(torch.tensor([LABELS.index(label) for label, _ in names]), codes), 0)
    characters = sum(len(name) + 1 for _, name in names)
    assert float(module.val_metrics.compute()["loss"]) == pytest.approx(-sum(expected) / characters, rel=1e-6)


@pytest.mark.parametrize("label", LABELS)
def test_the_likelihoods_of_all_names_sum_to_one(label: str) -> None:
    module = model()
    with torch.no_grad():
        module.head.bias[0] += 4  # so that names of more than five characters hardly occur
    names = ["".join(name) for length in range(6) for name in product("ab", repeat=length)]
    total = sum(math.exp(module.log_likelihood(name, label)) for name in names)
    assert 1 - 1e-5 < total < 1


@pytest.mark.parametrize(
    ("cell", "temperature"), [*((cell, 1e-9) for cell in list_cells()), ("gru", 1e-40), ("gru", 0.0)]
)
def test_step_by_step_is_as_all_at_once(cell: str, temperature: float) -> None:
    """Near temperature 0 a name goes on with the likeliest characters after its beginning, which is read anew here."""
    module = model(cell, "abcd", longest=9)
    name = "ba"
    for character in module.generate("right", "ba", temperature=temperature):
        labels, codes = module._numbers("right", name)
        logits = module(labels, codes)[0][-1, 0]
        assert character == "abcd"[int(logits.argmax()) - 1]
        name += character
    labels, codes = module._numbers("right", name)
    assert len(name) == 9 or int(module(labels, codes)[0][-1, 0].argmax()) == 0


def test_names_are_drawn_as_likely_as_they_are() -> None:
    module = model()
    generator = torch.Generator().manual_seed(1)
    count = 1500
    drawn = Counter("".join(module.generate("left", "a", generator=generator)) for _ in range(count))
    begun = sum(math.exp(module.log_likelihood(name, "left")) for name in drawn)  # a bound of the condition's share
    first = math.exp(module.log_likelihood("a", "left"))
    for rest in ("b", "a", "bb"):
        # how much likelier than the bare beginning, as often drawn in proportion
        ratio = math.exp(module.log_likelihood("a" + rest, "left")) / first
        spread = ratio * math.sqrt(1 / drawn[rest] + 1 / drawn[""])
        assert drawn[rest] / drawn[""] == pytest.approx(ratio, abs=4 * spread)
    assert begun > 0 and max(map(len, drawn)) <= 5


def test_the_same_seed_draws_the_same_names() -> None:
    module = model().train()

    def names(seed: int) -> list[str]:
        generator = torch.Generator().manual_seed(seed)
        return ["".join(module.generate("left", generator=generator)) for _ in range(20)]

    assert names(1) == names(1) != names(2)
    assert set("".join(names(1))) == set("ab") and module.training
    abandoned = module.generate("left", "bbb", temperature=9.0)
    next(abandoned, None)
    abandoned.close()
    assert module.training


def test_what_is_refused() -> None:
    module = model()
    with pytest.raises(UserError, match=r"class 'lefft': unknown; did you mean left\?"):
        module.log_likelihood("ab", "lefft")
    for call in (lambda: module.log_likelihood("axb\n", "left"), lambda: next(module.generate("left", "axb\n"))):
        with pytest.raises(UserError, match=r"'axb\\n': '\\nx' not in the names that the model knows"):
            call()
    with pytest.raises(UserError, match=r"temperature=-1: must not be negative"):
        next(module.generate("left", temperature=-1))
    with pytest.raises(UserError, match=r"model\.bidirectional=true"):
        model(bidirectional=True)


# Runs


@pytest.fixture
def alphabetical(tmp_path: Path) -> Path:
    """Nine to twelve letters of the alphabet, which begins again after its end, forwards and backwards."""
    letters = 2 * "abcdefghijklmnopqrstuvwxyz"
    pieces = [letters[i : i + n] for n in range(9, 13) for i in range(26)]
    return write(tmp_path / "names", down=" ".join(piece[::-1] for piece in pieces), up=" ".join(pieces))


TOY = (
    "hardware=cpu",
    "task=names",
    "task.batch_size=16",
    "model.hidden_size=32",
    "trainer.max_epochs=15",
    "task.samples=4",
)


def test_names_are_learned(alphabetical: Path, train: Callable[..., Path]) -> None:
    folder = train(*TOY, f"task.data={alphabetical}", "optimizer.lr=0.02", "task.dropout=0")
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    assert metrics["test/loss"] < 0.6 < metrics["baseline/bigram_loss"] < metrics["baseline/unigram_loss"]
    assert metrics["test/perplexity"] == pytest.approx(math.exp(metrics["test/loss"]), rel=1e-5)
    assert metrics["test/bits_per_character"] == pytest.approx(metrics["test/loss"] / math.log(2), rel=1e-5)

    samples = sorted((folder / "samples").iterdir())
    assert [path.name for path in samples] == [f"epoch_{epoch:03d}.txt" for epoch in range(1, 16)]
    for path in samples:
        lines = (line.split(": ") for line in path.read_text().splitlines())
        drawn = {label: names.split(", ") for label, names in lines}
        assert list(drawn) == ["down", "up"] and all(len(names) == 4 for names in drawn.values())
    for label, step in (("up", 1), ("down", -1)):
        steps = [(ord(after) - ord(before)) % 26 for name in drawn[label] for before, after in pairwise(name)]
        assert steps.count(step % 26) > 0.8 * len(steps) > 0

    module = NameLM.load_from_checkpoint(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert module.log_likelihood("efgh", "up") > module.log_likelihood("efgh", "down") + 5


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("task.data=nowhere", "task.data=nowhere: no such folder"),
        ("task.val_fraction=0", "task.val_fraction=0: should be greater than 0"),
        ("task.test_fraction=0.95", "task.test_fraction=0.95"),
        ("task.embedding=0", "task.embedding=0: should be greater than 0"),
        ("task.label_embedding=0", "task.label_embedding=0: should be greater than 0"),
        ("task.dropout=1", "task.dropout=1: should be less than 1"),
        ("task.samples=-1", "task.samples=-1: should be greater than or equal to 0"),
        ("task.batch_size=0", "task.batch_size=0: should be greater than 0"),
        ("model.bidirectional=true", "model.bidirectional=true: a language model"),
    ],
)
def test_bad_input_ends_in_one_line(
    argument: str, said: str, alphabetical: Path, train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        train(*TOY, f"task.data={alphabetical}", argument)
    error = capsys.readouterr().err
    assert end.value.code == 1
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
