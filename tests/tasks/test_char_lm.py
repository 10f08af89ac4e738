"""Character language models: which characters are read and predicted when, the carried state, and samples.

The texts of the tests of the data are made of characters that all differ and are sorted, so that a character's number
is its position in the text.
"""

from __future__ import annotations

import csv
import json
import math
import socket
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from damaged import ARRAYS, FACTS, change_unnoticed, replace_cached
from hypothesis import given, settings
from hypothesis import strategies as st
from ready import ready
from torch import Tensor, nn

from rnnzoo import UserError
from rnnzoo.tasks import corpora
from rnnzoo.tasks.char_lm import Characters, CharLM
from rnnzoo.tasks.corpora import CORPORA, codes_of

ADAM = {"name": "adam", "lr": 0.01, "schedule": "constant"}
TASK = {
    "embedding": 3, "dropout": 0.0, "tied": False, "activation_penalty": 0.0, "change_penalty": 0.0,
    "dynamic_rate": 0.0, "restart": 0.0, "sample_prime": "", "sample_length": 20, "temperature": 0.8,
}  # fmt: skip


def all_different(length: int) -> str:
    return "".join(chr(0x4E00 + position) for position in range(length))


def characters(text: str, window: int = 5, streams: int = 2, val: float = 0.25, test: float = 0.25) -> Characters:
    with patch.dict(CORPORA, {"given": lambda: text}):
        return ready(Characters("given", None, window, streams, val, test))


def text_of(path: str | None, corpus: str = "hello") -> str:
    """A text put together again from the numbers of its characters."""
    alphabet, codes = codes_of(path, corpus)
    return "".join(np.array(list(alphabet))[codes.numpy()])


@pytest.fixture(params=["in memory", "mapped, from blocks of 64 bytes"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to hold a file."""
    if request.param != "in memory":
        monkeypatch.setattr(corpora, "LARGE", 0)
        monkeypatch.setattr("rnnzoo.tasks.text_files.BLOCK", 64)


def model(alphabet: str = "ehlo", cell: str = "gru", seed: int = 1, **options: Any) -> CharLM:
    torch.manual_seed(0)
    task = {key: options.pop(key, default) for key, default in TASK.items()}
    return CharLM(
        model={"cell": cell, "hidden_size": 4, **options},
        optimizer=ADAM,
        engine="auto",
        seed=seed,
        alphabet=alphabet,
        **task,
    ).double()


# The data


@settings(deadline=None, max_examples=60)
@given(
    length=st.integers(20, 400),
    window=st.integers(1, 20),
    streams=st.integers(1, 9),
    val=st.floats(0.2, 0.4),
    test=st.floats(0.2, 0.4),
)
def test_every_character_is_predicted_once(length: int, window: int, streams: int, val: float, test: float) -> None:
    held_out = [int(length * val), int(length * test)]
    sizes = [length - sum(held_out), *held_out]
    if sizes[0] <= window:
        with pytest.raises(UserError, match="fewer than a window"):
            characters(all_different(length), window, streams, val, test)
        return
    data = characters(all_different(length), window, streams, val, test)
    assert data.alphabet == all_different(length)
    first = 0
    parts = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    for size, batches, held_out_part in zip(sizes, parts, (False, True, True)):
        windows = [batches.fetch(start) for start in batches.plan(0)]
        rows = len(windows[0])
        each = size // rows
        # as many streams as asked for, unless they became too short for a window
        assert rows == streams or (rows < streams and (rows + 1) * (window + 1) > size)
        # the streams are the part in order; less than one character a stream is left over at its end
        begin = first + each * torch.arange(rows)
        assert torch.equal(windows[0][:, 0], begin)
        # each window goes on where the one before ended, and what it predicts is always the next character
        for before, after in pairwise(windows):
            assert torch.equal(before[:, -1], after[:, 0])
        for codes in windows:
            assert torch.equal(codes[:, 1:], codes[:, :-1] + 1)
            assert codes.shape[1] <= window + 1
        targets = torch.cat([codes[:, 1:] for codes in windows], 1)
        left_over = each - 1 - targets.shape[1]
        # evaluation leaves out nothing but the streams' first characters; training, less than a window besides
        assert left_over == 0 if held_out_part else 0 <= left_over < window
        assert all(codes.shape[1] == window + 1 for codes in windows) or held_out_part
        first += size
    assert first == length


def test_the_same_order_in_every_epoch() -> None:
    batches = characters(all_different(100)).train_dataloader()
    assert list(batches.plan(0)) == list(batches.plan(3))
    assert len(batches) == len(batches.plan(0))


def test_fewer_streams_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    characters(all_different(40), window=5, streams=8)
    assert "task.corpus=given: 40 characters make 3 streams, not 8" in capsys.readouterr().out


def test_without_a_test_part() -> None:
    assert not characters(all_different(60), test=0.0).has_test
    assert characters(all_different(60)).has_test


@pytest.mark.parametrize(("val", "characters_held_out"), [(0.01, 0), (0.05, 1)])
def test_too_little_to_validate_on_is_refused(val: float, characters_held_out: int) -> None:
    """One character predicts nothing."""
    assert int(30 * val) == characters_held_out
    with pytest.raises(UserError):
        characters(all_different(30), val=val, test=0.0)


@pytest.mark.usefixtures("ways")
def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    text = "Ünïcödé\r\n\t吾輩は猫である\n" * 20
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    assert text_of(str(path), "hello") == text
    data = ready(Characters("hello", str(path), 5, 1, 0.1, 0.0))
    assert data.alphabet == "".join(sorted(set(text)))
    assert "".join(data.alphabet[code] for code in data.train[0]) == text[: len(text) - len(text) // 10]
    batch = next(iter(data.train_dataloader()))
    assert batch.dtype == torch.int64 and "".join(data.alphabet[code] for code in batch[0]) == text[:6]


def test_a_large_file_is_numbered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its numbers are kept until it is changed; more than 256 characters take more than a byte each."""
    monkeypatch.setattr(corpora, "LARGE", 10)
    path = tmp_path / "text.txt"
    for text, size in (("a\nb" * 9, 1), (all_different(300) + "a", 4)):
        path.write_text(text, encoding="utf-8")
        for said in (f"task.text={path}: numbering its characters in ", ""):
            alphabet, codes = codes_of(str(path), "hello")
            assert alphabet == "".join(sorted(set(text))) and codes.element_size() == size
            assert text_of(str(path)) == text and capsys.readouterr().out.startswith(said)
    text = "".join(reversed(text))
    change_unnoticed(path, text.encode())
    assert text_of(str(path)) == text


@pytest.mark.parametrize(
    ("ending", "change"), [*(("npy", change) for change in ARRAYS.values()), *(("json", c) for c in FACTS.values())]
)
def test_damaged_numbers_are_made_anew(
    ending: str, change: Callable[[bytes], bytes], tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "LARGE", 10)
    path = tmp_path / "text.txt"
    path.write_text("a text to number")
    before = codes_of(str(path), "hello")
    replace_cached(own_cache, ending, change)
    with pytest.warns(UserWarning, match=r"text_\w+\.json is damaged .* will be made anew"):
        alphabet, codes = codes_of(str(path), "hello")
    assert alphabet == before[0] and torch.equal(codes, before[1])
    assert text_of(str(path)) == "a text to number"  # with no warning, as it would be an error


@pytest.mark.parametrize(
    ("encoding", "found"),
    [
        ("utf-8", ""),
        ("utf-8-sig", "UTF-8 with a byte order mark"),
        ("utf-16", "UTF-16-LE with a byte order mark"),
        ("utf-32", "UTF-32-LE with a byte order mark"),
        ("utf-16-le", "UTF-16-LE without a byte order mark"),
        ("utf-16-be", "UTF-16-BE without a byte order mark"),
        ("utf-32-le", "UTF-32-LE without a byte order mark"),
        ("utf-32-be", "UTF-32-BE without a byte order mark"),
    ],
)
@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("text", ["plain words", "Ünïcödé: 吾輩は猫である\r\n\t🐱\n", "一 二\n三"])
def test_an_encoding_is_told_and_said(
    encoding: str, found: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mark is no character of the text, which no sample may hold."""
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode(encoding))
    assert text_of(str(path), "hello") == text
    assert capsys.readouterr().err == (f"task.text={path}: read as {found}\n" if found else "")


@pytest.mark.usefixtures("ways")
def test_marks_of_files_that_were_put_together_are_no_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("one\n".encode("utf-8-sig") * 30 + "two\n".encode("utf-8-sig"))
    assert text_of(str(path), "hello") == "one\n" * 30 + "two\n"
    assert "read as UTF-8 with byte order marks" in capsys.readouterr().err


def test_larger_than_can_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text("hello" * 100)
    monkeypatch.setattr("rnnzoo.tasks.text_files.read_bytes.__defaults__", (499,))
    with pytest.raises(UserError, match=r"task\.text=.*text\.txt: larger than 499 bytes"):
        text_of(str(path), "hello")


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the text is empty"),
        (b"abc", "3 characters to train on are fewer than a window of 5"),
        (b"abcdef", "character"),
        (b"line\nline\nline \xff\nline\n" * 9, r"not UTF-8 in line 3 \(byte 15\)"),
        ("é".encode() * 40 + b"\n" * 30 + "日".encode() * 20 + b"\xe6\n", r"not UTF-8 in line 31 \(byte 170\)"),
        ("latin-1: é\n".encode("latin-1"), "not UTF-8 in line 1"),
        ("a text in UTF-16".encode("utf-16")[:-1], r"not UTF-16-LE in line 1 \(byte 32\); it is damaged"),
        (b"\x7fELF\2\1\1\0\0\0\n\0", "holds zero bytes, as no text does, the first in line 1"),
        ("a\0b".encode("utf-16"), "holds the character NUL"),
    ],
)
def test_a_file_that_will_not_do(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        ready(Characters("hello", str(path), 5, 2, 0.1, 0.1))
    assert str(error.value).startswith(f"task.text={path}: ") and "\n" not in str(error.value)


def test_a_file_or_corpus_that_is_not_there(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "missing.txt", "no such file"), (tmp_path, "is a folder; name a file in it"),
                       ("/dev/null", "a pipe or a device, .* write it to a file")):  # fmt: skip
        with pytest.raises(UserError, match=rf"task\.text={path}: {said}"):
            text_of(str(path), "hello")
    with pytest.raises(UserError, match=r"task\.corpus=pydoc: unknown; did you mean pydocs\?.*task\.text=FILE"):
        text_of(None, "pydoc")


def test_corpora_that_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert text_of(None, "hello") == "hello" * 1000
    assert "with" in text_of(None, "pydocs") and len(text_of(None, "pydocs")) > 300_000
    stdlib = text_of(None, "stdlib")
    assert len(stdlib) > 1_000_000 and "def dataclass(" in stdlib
    assert text_of(None, "stdlib") == stdlib


# The model


def nats(module: CharLM, codes: Tensor) -> Tensor:
    """Losses [B, T] of the model's weights, by torch's own GRU, from a zero state over all of codes [B, T + 1]."""
    codes = codes.long()
    gru = nn.GRU(module.layer.input_size, module.layer.hidden_size).double()
    gru.load_state_dict(module.layer.torch_state_dict())
    with torch.no_grad():
        output, _ = gru(module.embed(codes.T[:-1]))
        logits = module.head(output)  # [T, B, A]
        return F.cross_entropy(logits.movedim(-1, 1), codes.T[1:], reduction="none").T


def training_losses(module: CharLM, windows: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The losses of the windows of one epoch, without a trainer to log them to."""
    monkeypatch.setattr(module, "training_loss", lambda loss, count: loss)
    module.on_train_epoch_start()
    return [module.training_step(window, index).item() for index, window in enumerate(windows)]


def test_the_state_is_carried_from_window_to_window(monkeypatch: pytest.MonkeyPatch) -> None:
    data = characters("hello" * 40, window=7, streams=3)
    batches = data.train_dataloader()
    windows = [batches.fetch(start) for start in batches.plan(0)]
    assert len(windows) > 3
    module = model()
    long_run = nats(module, data.train)
    expected = [float(long_run[:, 7 * k : 7 * (k + 1)].mean()) for k in range(len(windows))]
    assert training_losses(module, windows, monkeypatch) == pytest.approx(expected, rel=1e-12)
    assert isinstance(module.carried, Tensor) and not module.carried.requires_grad
    # each epoch begins from zero again
    assert training_losses(module, windows, monkeypatch) == pytest.approx(expected, rel=1e-12)


def test_restarts_begin_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    data = characters("hello" * 40, window=7, streams=3)
    batches = data.train_dataloader()
    windows = [batches.fetch(start) for start in batches.plan(0)]
    always = model(restart=1 - 1e-9)
    expected = [float(nats(always, window).mean()) for window in windows]
    assert training_losses(always, windows, monkeypatch) == pytest.approx(expected, rel=1e-12)


def test_evaluation_reads_the_streams_to_their_ends() -> None:
    data = characters("hello" * 40, window=7, streams=3)
    module = model("ehlo", cell="gru", dropout=0.5, restart=0.9).eval()
    module.on_validation_epoch_start()
    for window in data.val_dataloader():
        module.validation_step(window, 0)
    assert float(module.val_metrics.compute()["loss"]) == pytest.approx(float(nats(module, data.val).mean()), rel=1e-6)


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_windows_equal_one_long_run_for_any_number_of_states(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = characters("hello" * 40, window=6, streams=2)
    batches = data.train_dataloader()
    windows = [batches.fetch(start) for start in batches.plan(0)]
    module = model(cell=cell, num_layers=2)
    whole = torch.cat([windows[0], *(window[:, 1:] for window in windows[1:])], 1)
    [expected] = training_losses(module, [whole], monkeypatch)
    losses = training_losses(module, windows, monkeypatch)
    assert sum(losses) / len(losses) == pytest.approx(expected, rel=1e-12)


def test_one_hot_input() -> None:
    module = model(all_different(3000), embedding=0)
    codes = torch.tensor([[0, 2999], [17, 5]])
    assert torch.equal(module.embed(codes), F.one_hot(codes, 3000).double())
    logits, state = module(codes)
    assert logits.shape == (2, 2, 3000) and state.shape == (1, 2, 4)
    assert not any(name.startswith("embed") for name in module.state_dict())


# What keeps it from learning by heart


def test_tied_weights_serve_embedding_and_head() -> None:
    module = model(tied=True, projection=3)
    codes = torch.tensor([[0, 1], [2, 3], [1, 1]])
    logits, _ = module(codes)
    output, _ = module.layer(module.embed.weight[codes])
    torch.testing.assert_close(logits, output @ module.embed.weight.T + module.head.bias)
    logits.square().sum().backward()
    apart = model(projection=3)
    apart.load_state_dict(module.state_dict())
    apart(codes)[0].square().sum().backward()
    expected = apart.embed.weight.grad + apart.head.weight.grad  # type: ignore[operator]
    torch.testing.assert_close(module.head.weight.grad, expected)
    weights = (sum(p.numel() for p in each.parameters()) for each in (apart, module))
    assert next(weights) - next(weights) == 4 * 3
    for options in ({}, {"embedding": 0}):
        with pytest.raises(UserError, match=r"task\.tied=true: task\.embedding=.* must equal the 4 features"):
            model(tied=True, **options)


@pytest.mark.parametrize(("large", "changing"), [(2.0, 0.0), (0.0, 3.0), (2.0, 3.0)])
def test_penalties_on_outputs(large: float, changing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of Merity et al. 2017, as means over outputs by torch's own GRU."""
    windows = [torch.tensor([[0, 1, 2, 2, 3, 1], [3, 3, 1, 0, 2, 0]])]
    torch.manual_seed(3)
    mask = F.dropout(torch.ones(2, 4, dtype=torch.float64), 0.5)
    plain, module = (model(dropout=0.5, activation_penalty=a, change_penalty=c) for a, c in ((0, 0), (large, changing)))
    gru = nn.GRU(3, 4).double()
    gru.load_state_dict(module.layer.torch_state_dict())
    h, _ = gru(module.embed(windows[0].T[:-1]))
    found = []
    for each in (module, plain):
        torch.manual_seed(3)
        found += training_losses(each, windows, monkeypatch)
    expected = large * (h * mask).square().mean() + changing * (h[1:] - h[:-1]).square().mean()
    assert found[0] - found[1] == pytest.approx(expected.item(), rel=1e-9)
    window_of_one = [torch.tensor([[0, 1], [3, 3]])]
    assert math.isfinite(training_losses(module, window_of_one, monkeypatch)[0])


def test_dynamic_evaluation_learns_from_each_window_after_it() -> None:
    """The same by torch's modules and its SGD; the model itself is as before."""
    data = characters("hello" * 40, window=7, streams=3)
    module = model(dynamic_rate=0.5, dropout=0.5).eval()
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    twin = nn.ModuleList([nn.Embedding(4, 3), nn.GRU(3, 4), nn.Linear(4, 4)]).double()
    embed, gru, head = twin
    for own, theirs in ((embed, module.embed), (head, module.head)):
        own.load_state_dict(theirs.state_dict())
    gru.load_state_dict(module.layer.torch_state_dict())
    gru.bias_hh_l0.register_hook(lambda gradient: gradient * (torch.arange(12) >= 8))  # gates of ours have one bias
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.5)
    state, total, count = None, 0.0, 0
    with torch.inference_mode():
        module.on_validation_epoch_start()
        for batch in data.val_dataloader():
            module.validation_step(batch, 0)
    for batch in data.val_dataloader():
        output, state = gru(embed(batch.T[:-1]), state)
        state = state.detach()
        loss = F.cross_entropy(head(output).flatten(0, 1), batch.T[1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total, count = total + loss.item() * batch[:, 1:].numel(), count + batch[:, 1:].numel()
    assert module.adapted is not None and module.adapted.loss == pytest.approx(total / count, rel=1e-6)
    assert float(module.val_metrics.compute()["loss"]) == pytest.approx(float(nats(module, data.val).mean()), rel=1e-6)
    assert total / count < float(nats(module, data.val).mean())
    assert all(torch.equal(weight, before[name]) for name, weight in module.state_dict().items())


def test_what_the_model_refuses() -> None:
    with pytest.raises(UserError, match=r"task\.sample_prime: 'XY' not in the text"):
        model(sample_prime="heYlXlo")
    with pytest.raises(UserError, match=r"model\.bidirectional=true"):
        model(bidirectional=True)


# Samples


def test_the_same_seed_draws_the_same_text() -> None:
    assert list(model().continuation()) == list(model().continuation())
    assert list(model().continuation()) != list(model(seed=2).continuation())
    assert len(list(model().continuation())) == 20 and set(model().continuation()) <= set("ehlo")
    module = model(dropout=0.9).train()
    assert list(module.continuation()) == list(module.continuation())
    assert module.training


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 5e-324, 0.0])
@pytest.mark.parametrize(("cell", "prime"), [("gru", "hel"), ("lstm", "")])
def test_a_cold_sample_is_the_likeliest_text(cell: str, prime: str, temperature: float) -> None:
    """At temperature 0 and near it every character is the likeliest after all those before, all read anew here."""
    module = model(cell=cell, num_layers=2, sample_prime=prime, temperature=temperature)
    text = prime or "e"  # without a prime text, the alphabet's first character begins
    for character in islice(module.continuation(), 12):
        logits, _ = module(torch.tensor([["ehlo".index(c)] for c in text]))
        assert character == "ehlo"[int(logits[-1, 0].argmax())]
        text += character


def test_samples_follow_the_probabilities() -> None:
    """From weights that see nothing, characters are drawn with the softmax of the head's bias over the temperature."""
    module = model(sample_length=4000, temperature=0.5)
    with torch.no_grad():
        module.head.weight.zero_()
        module.head.bias.copy_(torch.tensor([0.5, 0.0, -0.5, -1.0]))
    text = "".join(module.continuation())
    weights = [math.exp(logit / 0.5) for logit in (0.5, 0.0, -0.5, -1.0)]
    for character, weight in zip("ehlo", weights):
        p = weight / sum(weights)
        assert text.count(character) / 4000 == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 4000))


# Runs


TOY = (
    "hardware=cpu", "task=char_lm", "task.corpus=hello", "task.window=20", "task.streams=8", "task.embedding=4",
    "task.dropout=0", "task.restart=0.1", "task.sample_length=30", "model.hidden_size=16", "optimizer.lr=0.02",
)  # fmt: skip


def test_hello_is_learned(train: Callable[..., Path]) -> None:
    folder = train(*TOY, "task.sample_prime=hell", "trainer.max_epochs=4")
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    for split in ("val", "test"):
        loss = metrics[f"{split}/loss"]
        assert loss < 0.1
        assert metrics[f"{split}/perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
        assert metrics[f"{split}/bits_per_character"] == pytest.approx(loss / math.log(2), rel=1e-5)
    samples = sorted((folder / "samples").iterdir())
    assert [path.name for path in samples] == [f"epoch_00{epoch}.txt" for epoch in (1, 2, 3, 4)]
    for path in samples:
        assert path.read_text().startswith("hell") and len(path.read_text()) == 4 + 30 + len("\n")
    assert samples[-1].read_text().startswith("hellohello")


def test_all_regularisers_in_a_run(train: Callable[..., Path]) -> None:
    folder = train(
        *TOY, "model.weight_drop=0.2", "model.projection=4", "task.tied=true", "task.activation_penalty=0.1",
        "task.change_penalty=0.1", "task.dynamic_rate=0.1", "averaging.patience=1", "trainer.max_epochs=3",
        "trainer.limit_train_batches=4",
    )  # fmt: skip
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    assert {"val/loss", "val/dynamic_loss", "test/loss", "test/dynamic_loss"} <= metrics.keys()
    assert metrics["test/dynamic_loss"] < metrics["test/loss"]


def test_samples_do_not_disturb_the_training(train: Callable[..., Path]) -> None:
    few = ("trainer.max_epochs=2", "trainer.limit_train_batches=4", "task.dropout=0.5")
    with_samples, without = train(*TOY, *few), train(*TOY, *few, "task.sample_length=0")
    assert (with_samples / "metrics.csv").read_text() == (without / "metrics.csv").read_text()
    assert (with_samples / "samples").is_dir() and not (without / "samples").exists()


def test_three_thousand_characters_and_one_hot_input(tmp_path: Path, train: Callable[..., Path]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(all_different(3000) * 2, encoding="utf-8")
    prime = all_different(3000)[:2]
    folder = train(
        *TOY, f"task.text={text}", "task.embedding=0", f"task.sample_prime='{prime}'", "trainer.max_epochs=1",
        "trainer.limit_train_batches=2", "task.test_fraction=0",
    )  # fmt: skip
    sample = (folder / "samples" / "epoch_001.txt").read_text(encoding="utf-8")
    assert sample.startswith(prime) and set(sample[:-1]) <= set(all_different(3000))
    with (folder / "metrics.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert float(row["val/loss"]) == pytest.approx(math.log(3000), rel=0.1)
    assert not any(name.startswith("test/") for name in row)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("task.sample_prime=XY", "task.sample_prime: 'XY' not in the text"),
        ("model.bidirectional=true", "model.bidirectional=true"),
        ("task.corpus=helo", "task.corpus=helo: unknown; did you mean hello?"),
        ("task.text=missing.txt", "task.text=missing.txt: no such file"),
        ("task.window=5000", "lower task.window"),
        ("task.val_fraction=0", "task.val_fraction=0: should be greater than 0"),
        ("task.test_fraction=1", "task.test_fraction=1: should be less than 1"),
        (
            "task.corpus=hello task.window=4 task.test_fraction=0.0001",
            "task.corpus=hello: 0 characters to test on are too few; raise task.test_fraction, or set it to 0",
        ),
        ("task.val_fraction=0.5 task.test_fraction=0.6", "fraction"),
        ("task.temperature=-1", "task.temperature=-1: should be greater than or equal to 0"),
        ("task.tied=true", "task.tied=true: task.embedding=4 must equal the 16 features"),
        ("task.activation_penalty=-1", "task.activation_penalty=-1: should be greater than or equal to 0"),
        ("task.dynamic_rate=-1", "task.dynamic_rate=-1: should be greater than or equal to 0"),
        ("task.dropout=1", "task.dropout=1: should be less than 1"),
        ("task.restart=-0.1", "task.restart=-0.1: should be greater than or equal to 0"),
        ("task.embedding=-1", "task.embedding=-1: should be greater than or equal to 0"),
    ],
)
def test_bad_input_ends_in_one_line(
    argument: str, said: str, train: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as end:
        train(*TOY, *argument.split())
    error = capsys.readouterr().err
    assert end.value.code == 1
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
