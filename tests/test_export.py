"""An exported file, run by onnxruntime or by torch without this project, gives what the plain loop gives.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import importlib.util
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from varied import VARIED, pruned

from rnnzoo import Cell, InputWeight, Recurrent, UserError
from rnnzoo.export import FORMS, export
from rnnzoo.hydra.command_line import CONF
from rnnzoo.lightning.module import SequenceModule
from rnnzoo.tasks.char_lm import CharLM
from rnnzoo.tasks.forecast import Forecast
from rnnzoo.tasks.frequency import Frequency
from rnnzoo.tasks.imdb import Sentiment
from rnnzoo.tasks.memory import Adding, Copy, First
from rnnzoo.tasks.names import NameLM
from rnnzoo.tasks.scifar import Photograph
from rnnzoo.tasks.sine import Sine
from rnnzoo.tasks.smnist import Digit
from rnnzoo.tasks.symbols import Symbols

I, H = 5, 6  # noqa: E741  I is the input size everywhere in this project
OTHERS = (1, 3), (11, 1), (8, 2)
"""T and B, none of which `export` itself has tried."""

OPTIMIZER = {"name": "adam", "lr": 1e-3, "schedule": "constant"}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


def runner(file: bytes, form: str) -> Callable[..., list[Tensor]]:
    """The file as a function of a model's arguments."""
    if form == "pt2":
        loaded = torch.export.load(io.BytesIO(file)).module()
        return lambda *given: tree_leaves(loaded(*given))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [taken.name for taken in session.get_inputs()]

    def run(*given: Any) -> list[Tensor]:
        arrays = [tensor.numpy() for tensor in tree_leaves(given)]
        return [torch.from_numpy(array) for array in session.run(None, dict(zip(names, arrays, strict=True)))]

    return run


def assert_equal(file: bytes, form: str, model: nn.Module, given: Callable[[int, int], tuple[Any, ...]]) -> None:
    """The file gives what the model's plain loop gives, at sizes that nobody has tried."""
    run = runner(file, form)
    model.eval()
    for sizes in OTHERS:
        arguments = given(*sizes)
        with torch.no_grad():
            wanted = tree_leaves(model(*arguments))
        for found, expected in zip(run(*arguments), wanted, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def settings(cell: str = "gru", **options: Any) -> dict[str, Any]:
    return {"cell": cell, "hidden_size": H, **options}


def random_weights(model: nn.Module) -> nn.Module:
    """The model with no parameter left at zero, where a mistake might not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.2)
    return model


class Beside(nn.Module):
    """Layers of many cells on one input: to export them together takes a fifth of the time."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Recurrent(name, I, H, engine="reference") for name in names)
        self.layers.append(Recurrent("lru", I, H, num_layers=2, block="glu", engine="reference"))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x)[0] for layer in self.layers], -1)


def test_cells_of_all_kinds_become_files(form: str) -> None:
    assert len({"rnn", "lstm", "gru"} & set(VARIED)) == 3 and len(VARIED) >= 13
    torch.manual_seed(0)
    model = random_weights(Beside(VARIED))
    assert_equal(export(model, form), form, model, lambda T, B: (torch.randn(T, B, I),))


def test_a_layer_with_everything_becomes_a_file(form: str) -> None:
    """Two directions and layers, batch first, from states that are not zero."""
    torch.manual_seed(1)
    layer = Recurrent(
        "scrn", I, H, num_layers=2, bidirectional=True, batch_first=True, dropout=0.5, layer_norm=True,
        recurrent_dropout=0.5, zoneout=0.1, projection=I, residual=True, learn_initial_state=True, context_size=3,
    )  # fmt: skip
    random_weights(layer)
    file = export(layer, form)
    shapes = [4, H], [4, 3]
    assert_equal(
        file, form, layer, lambda T, B: (torch.randn(B, T, I), tuple(torch.randn(s[0], B, s[1]) for s in shapes))
    )
    if form == "onnx":
        session = onnxruntime.InferenceSession(file)
        shape = {put.name: put.shape for put in (*session.get_inputs(), *session.get_outputs())}
        assert shape == {
            "input": ["batch", "time", I], "initial_h": [4, "batch", H], "initial_s": [4, "batch", 3],
            "output": ["batch", "time", I], "final_h": [4, "batch", H], "final_s": [4, "batch", 3],
        }  # fmt: skip


def test_sine(form: str) -> None:
    model = Sine(
        model=settings(),
        optimizer=OPTIMIZER,
        engine="auto",
        seed=0,
        window=8,
        step=0.5,
        warmup=1,
        prefix=3,
        horizon=4,
        probes=False,
    )
    file = export(model, form)
    assert_equal(file, form, model, lambda T, B: (torch.randn(T, B, 1),))
    assert str(Path(__file__).parent.parent).encode() not in file  # the file does not tell where it was made


@pytest.mark.parametrize(("pooling", "ngrams", "form"), [("max", 3, "pt2"), ("last", 0, "onnx")])
def test_reviews_of_different_lengths(pooling: str, ngrams: int, form: str) -> None:
    torch.manual_seed(2)
    model = Sentiment(
        model=settings("lstm", bidirectional=True),
        optimizer=OPTIMIZER,
        engine="auto",
        seed=0,
        words=list("abcdefghijklmnopqrst"),
        maxlen=400,
        embedding=4,
        pooling=pooling,
        word_dropout=0.1,
        embedding_dropout=0.1,
        dropout=0.1,
        ngrams=ngrams,
        buckets=50,
    )
    random_weights(model)
    if model.ratios is not None:
        model.ratios.counts.random_(0, 9)

    def given(T: int, B: int) -> tuple[Tensor, Tensor]:
        return torch.randint(20, (T, B)), torch.randint(1, T + 1, (B,))

    assert_equal(export(model, form), form, model, given)


def test_symbols_read_in_windows(form: str) -> None:
    model = random_weights(Symbols(read=5, answered=3, window=3, model=settings()))
    assert_equal(export(model, form), form, model, lambda T, B: (torch.randint(5, (T, B)),))


SERIES: dict[str, Any] = {
    "window": 8, "horizon": 3, "missing": "refuse", "columns": ["a", "b"], "targets": ["a", "b"], "center": [0.0, 0.0],
    "scale": [1.0, 1.0], "naive_error": [1.0, 1.0],
}  # fmt: skip


def numbers(features: int) -> Callable[[int, int], tuple[Tensor]]:
    return lambda T, B: (torch.randn(T, B, features),)


def codes(kinds: int) -> Callable[[int, int], tuple[Tensor]]:
    return lambda T, B: (torch.randint(kinds, (T, B)),)


def bytes_of(*shape: int) -> Callable[[int, int], tuple[Tensor]]:
    return lambda T, B: (torch.randint(256, (B, *shape), dtype=torch.uint8),)


READ_OTHERWISE: dict[str, tuple[type[SequenceModule], dict[str, Any], Callable[[int, int], tuple[Any, ...]]]] = {
    "adding": (Adding, {"embedding": 3}, numbers(2)),
    "char_lm": (
        CharLM,
        {"alphabet": "abcde", "embedding": H, "tied": True},
        lambda T, B: (torch.randint(5, (T, B)), torch.randn(1, B, H)),
    ),
    "copy": (Copy, {}, codes(10)),
    "first": (First, {"embedding": 3}, numbers(1)),
    "forecast": (Forecast, SERIES, numbers(2)),
    "forecast recursive": (Forecast, {**SERIES, "strategy": "recursive"}, numbers(2)),
    "frequency": (Frequency, {}, numbers(2)),
    "names": (
        NameLM,
        {"labels": ["x", "y"], "alphabet": "abc", "longest": 4, "embedding": 3, "label_embedding": 2},
        lambda T, B: (torch.randint(2, (B,)), torch.randint(4, (T, B)), torch.randn(1, B, H)),
    ),
    "scifar": (Photograph, {"grey": True, "steps": 40, "pooling": "mean"}, bytes_of(1, 32, 32)),
    "smnist": (Digit, {"permute": True, "centered": True}, bytes_of(28, 28)),
    "symbols": (Symbols, {"read": 5, "answered": 3, "embedding": 2, "window": 3}, codes(5)),
}
"""Tasks with the options that change what the layer reads, and what their files are given."""


@pytest.mark.parametrize("task", READ_OTHERWISE)
def test_a_file_is_given_what_its_task_reads(task: str) -> None:
    torch.manual_seed(5)
    kind, options, given = READ_OTHERWISE[task]
    model = random_weights(kind(model=settings("rnn"), **options))
    assert_equal(export(model, "pt2"), "pt2", model, given)


def test_no_task_is_left_out() -> None:
    files = (path.read_text(encoding="utf-8") for path in (CONF / "task").glob("*.yaml"))
    modules = {match[1] for text in files if (match := re.search(r"^module: .*\.(\w+)$", text, re.MULTILINE))}
    cannot = {"Addition"}
    assert modules == {kind.__name__ for kind, *_ in READ_OTHERWISE.values()} | {"Sentiment", "Sine"} | cannot


class Named(nn.Module):
    """Takes what no export can know by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Recurrent("gru", I, H, engine="reference")

    def forward(self, when: Tensor, what: Tensor) -> Tensor:
        return self.layer(torch.cat([when[None].expand(what.shape[0], -1, -1), what], -1))[0]


def test_a_model_says_what_it_may_be_given(form: str) -> None:
    torch.manual_seed(4)
    with pytest.raises(UserError, match=r"what its when may be is not known; give it a method example_inputs\(T, B\)"):
        export(Named(), form)

    def inputs(T: int, B: int) -> tuple[Tensor, Tensor]:
        return torch.randn(B, 1), torch.randn(T, B, I - 1)

    model = Named()
    model.example_inputs = lambda T, B: dict(zip(("when", "what"), inputs(T, B)))  # type: ignore[assignment]
    assert_equal(export(model, form), form, model, inputs)


def test_a_language_model_goes_on_where_it_was_and_knows_where_to_begin(form: str) -> None:
    torch.manual_seed(3)
    model = CharLM(
        model=settings("lstm", learn_initial_state=True),
        optimizer=OPTIMIZER,
        engine="auto",
        seed=0,
        alphabet="abcde",
        embedding=0,
        dropout=0.1,
        restart=0.0,
        sample_prime="a",
        sample_length=0,
        temperature=1.0,
    ).eval()
    random_weights(model)
    file = export(model, form, {"alphabet": "abcde"})
    if form == "onnx":
        metadata = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    else:
        extra = {"metadata.json": ""}
        torch.export.load(io.BytesIO(file), extra_files=extra)
        metadata = json.loads(extra["metadata.json"])
    assert metadata["alphabet"] == "abcde"
    state = tuple(torch.tensor(json.loads(metadata[f"initial_{name}"]))[:, None] for name in "hc")  # [L, 1, H]

    codes = torch.randint(5, (9, 1))
    run = runner(file, form)
    first, *after = run(codes[:4], state)
    second, *_ = run(codes[4:], tuple(after))
    with torch.no_grad():
        wanted, _ = model(codes)
    torch.testing.assert_close(torch.cat([first, second]), wanted, rtol=1e-5, atol=1e-5)


class Bessel(Cell):
    """Takes a function that ONNX does not have."""

    W = InputWeight()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.special.i0e(x @ self.W + h)


class Branching(Cell):
    """Decides on data."""

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return h + 1 if x.sum() > 0 else h


class Reader(nn.Module):
    """A model that `export` is not told enough about."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Recurrent("rnn", I, H)

    def forward(self, pages: Tensor) -> Tensor:
        return self.layer(pages)[0]


class Embedding(Reader):
    """Reads something else than its layer does, and does not say so."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[..., :2] @ x.new_ones(3, I))[0]


class Moody(Reader):
    """Never answers the same."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0] + random.random()


class OneLength(Reader):
    """Works at any length, but the graph of it does not."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0] / len(x)


def with_pruning() -> Recurrent:
    layer = Recurrent("gru", I, H)
    pruned(layer._cell(0))
    return layer


REFUSED = {
    "pb: no such form; known: onnx, pt2": (lambda: Recurrent("rnn", I, H), "pb"),
    "onnx: Bessel has no such form: .*bessel_i0e": (lambda: Recurrent(Bessel, I, H), "onnx"),
    r"pt2: .* line \d+: step asks for a tensor's value, as a branch on data does": (
        lambda: Recurrent(Branching, I, H),
        "pt2",
    ),
    "pt2: GRU has forward hooks, .* by torch.nn.utils.prune.remove": (with_pruning, "pt2"),
    "pt2: Linear has no recurrent layer": (lambda: nn.Linear(1, 1), "pt2"),
    "Reader cannot be exported: what its pages may be is not known": (Reader, "pt2"),
    r"Embedding cannot be exported: it fails on x \[5, 3, 5\] \(.*\); give it a method example_inputs\(T, B\)": (
        Embedding,
        "pt2",
    ),
    "windows of 5 rows are no multiple of task.segment=4; to export a model, .* choose task.strategy=direct": (
        lambda: Forecast(strategy="segments", segment=4, model=settings(), **SERIES),
        "pt2",
    ),
    "pt2: RNN comes out wrong": (Moody, "pt2"),
    "pt2: RNN has no such form: Constraints violated": (OneLength, "pt2"),
}


@pytest.mark.parametrize("line", REFUSED)
def test_refuses_in_one_line(line: str) -> None:
    make, form = REFUSED[line]
    with pytest.raises(UserError, match=line) as refused:
        export(make(), form)
    assert "\n" not in str(refused.value)


def test_names_the_packages_that_onnx_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'rnnzoo\[export\]'"):
        export(Recurrent("rnn", I, H), "onnx")


def test_leaves_the_model_as_it_was() -> None:
    layer = Recurrent("rnn", I, H).train()
    before = torch.get_rng_state()
    export(layer, "pt2")
    assert type(layer) is Recurrent and layer.training and all(p.requires_grad for p in layer.parameters())
    assert torch.equal(before, torch.get_rng_state())
