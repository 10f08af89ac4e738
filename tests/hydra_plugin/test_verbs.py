"""Trained models in use: sampled, judged, tested again, and loaded with care."""

from __future__ import annotations

import io
import json
import math
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from omegaconf import OmegaConf

from rnnzoo import UserError
from rnnzoo.cli import main
from rnnzoo.hydra.trained import load
from rnnzoo.tasks.char_lm import CharLM, draw
from rnnzoo.tasks.reviews import tokenize

ROOT = Path(__file__).parents[2]
TEXT = ("task=char_lm", "task.streams=2", "task.window=8", "task.embedding=3", "model=lstm", "model.hidden_size=6",
        "hardware=cpu", "trainer.max_epochs=1", "task.sample_length=0", "engine=reference")  # fmt: skip

MINE = """
from torch import Tensor, tanh

from rnnzoo import Cell, gate, register


@register("of_my_own", source="here")
class Mine(Cell):
    W, U, b = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return tanh(x @ self.W + h @ self.U + self.b)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def text_run(runs: Path, train: Callable[..., Path]) -> Path:
    """A run of char_lm, made once."""
    folder = runs / "text"
    if not folder.exists():
        (runs / "text.txt").write_text("ROMEO: hello world\n" * 30)
        train(*TEXT, f"task.text={runs / 'text.txt'}", f"hydra.run.dir={folder}")
    return folder


@pytest.fixture
def review_run(runs: Path, reviews: Path, train: Callable[..., Path]) -> Path:
    """A run of imdb, made once."""
    folder = runs / "reviews"
    if not folder.exists():
        train("task=imdb", f"task.data={reviews}", "task.batch_size=2", "task.embedding=3", "model.hidden_size=4",
              "hardware=cpu", "trainer.max_epochs=1", "engine=reference", f"hydra.run.dir={folder}")  # fmt: skip
    return folder


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints; it must succeed."""
    capsys.readouterr()
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line with which a command refuses bad input."""
    capsys.readouterr()
    assert main(list(arguments)) == 1
    captured = capsys.readouterr()
    error = "".join(line for line in captured.err.splitlines(keepends=True) if not line.startswith("exporting "))
    assert error.startswith("error: ") and error.count("\n") == 1
    return error.removeprefix("error: ")


# Sampling


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(20_000, -1)
    generator = torch.Generator().manual_seed(1)
    for options, expected in (
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_k": 9}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_p": 0.79}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.81}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        ({"temperature": 1e-40}, [1, 0, 0, 0]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
        ({"temperature": 1e-40, "top_p": 0.9}, [1, 0, 0, 0]),
        ({"temperature": math.inf}, [0.25, 0.25, 0.25, 0.25]),
    ):
        share = draw(logits, generator, **options).bincount(minlength=4) / len(logits)
        torch.testing.assert_close(share, torch.tensor(expected, dtype=torch.float32), atol=0.02, rtol=0)
        assert [s > 0 for s in share.tolist()] == [e > 0 for e in expected]


def test_what_is_generated_is_what_the_whole_text_would_give(text_run: Path) -> None:
    """Greedily, the model run anew over all that there is so far names each next character."""
    module = load(text_run).module
    assert isinstance(module, CharLM)
    stream = module.generate("ROMEO:", torch.Generator(), top_k=1)
    text = "ROMEO:" + "".join(next(stream) for _ in range(12))
    for end in range(6, len(text)):
        codes = torch.tensor([[module.hparams["alphabet"].index(c)] for c in text[:end]])
        assert text[end] == module.hparams["alphabet"][int(module(codes)[0][-1].argmax())]


def test_sample_writes_prime_and_length(text_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = [said(capsys, "sample", str(text_run), "--prime", "hello", "--length", "30", "--seed", "3") for _ in "ab"]
    assert again[0] == again[1] and again[0].startswith("hello") and len(again[0]) == 36
    checkpoint = str(text_run / "checkpoints" / "last.ckpt")
    assert len(said(capsys, "sample", checkpoint, "--length", "10", "--greedy")) == 11


@pytest.mark.parametrize("option", ["--seed", "--length", "--top-k"])
def test_numbers_that_no_computer_holds(option: str, text_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["sample", str(text_run), option, "9" * 20])
    assert end.value.code == 2 and f"argument {option}: {'9' * 20} has more than 64 bits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--prime ROMEO#", "--prime: the model has never seen '#'\n"),
        ("--temperature -1", "--temperature -1.0: must not be negative\n"),
        ("--temperature nan", "--temperature nan: must not be negative\n"),
        ("--top-p 1.5", "--top-p 1.5: must be positive, and at most 1\n"),
        ("--top-k 0", "--top-k 0: must be positive\n"),
        ("--length -1", "--length -1: must not be negative\n"),
    ],
)
def test_bad_samples(text_run: Path, capsys: pytest.CaptureFixture[str], arguments: str, line: str) -> None:
    assert refused(capsys, "sample", str(text_run), *arguments.split()) == line


def test_a_terminal_obeys_nothing_of_an_alphabet(
    runs: Path, train: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (runs / "wild.txt").write_text("\x1b[31m\x07 wild " * 60)
    folder = train(*TEXT, f"task.text={runs / 'wild.txt'}")
    assert "\x1b" not in capsys.readouterr().out
    said(capsys, "sample", str(folder), "--prime", "\x1b", "--length", "50")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    shown = said(capsys, "sample", str(folder), "--prime", "\x1b", "--length", "50")
    assert "\x1b" not in shown and "\\x1b" in shown


# Judging


def test_a_review_is_judged_as_the_module_would(
    review_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trained = load(review_run)
    vocabulary = trained.module.hparams["words"]
    review = f"A {vocabulary[2]} film, <br /> {vocabulary[3]}! qqqqq"
    words = tokenize(review)
    codes = torch.tensor([vocabulary.index(word) if word in vocabulary else 1 for word in words])
    with torch.no_grad():
        alone = [float(trained.module(codes[:t, None], torch.tensor([t])).sigmoid()) for t in range(1, len(codes) + 1)]
    (tmp_path / "reviews.txt").write_text(f"{review}\n{vocabulary[2]}\n")
    lines = said(capsys, "predict", str(review_run), "--file", str(tmp_path / "reviews.txt"), "--running").splitlines()
    first, second = map(json.loads, lines)
    assert first["words"] == words and first["running"] == pytest.approx(alone, abs=1e-4)
    assert first["probability"] == pytest.approx(alone[-1], abs=1e-4)
    assert first["label"] == ("positive" if alone[-1] > 0.5 else "negative")
    assert second["words"] == [vocabulary[2]]
    shown = said(capsys, "predict", str(review_run), "--text", review)
    assert f"{first['label']}, P(positive) = {alone[-1]:.3f}" in shown and "qqqqq" in shown


def test_reviews_come_from_standard_input(
    review_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = load(review_run).module.hparams["words"]
    text = f"\ufeff{vocabulary[2]}\r\n{vocabulary[3]} {vocabulary[2]}\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="ascii"))
    lines = [json.loads(line) for line in said(capsys, "predict", str(review_run), "--file", "-").splitlines()]
    assert len(lines) == 2 and all(line.keys() == {"label", "probability"} for line in lines)
    alone = said(capsys, "predict", str(review_run), "--text", vocabulary[2])
    assert f"{lines[0]['label']}, P(positive) = " in alone


def test_bad_reviews(review_run: Path, text_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "reviews.txt"
    assert refused(capsys, "predict", str(review_run), "--text", " ...") == "a review without a word cannot be judged\n"
    assert refused(capsys, "predict", str(review_run), "--file", "nowhere").startswith("--file nowhere: No such file")
    path.write_bytes(b"\xff\xfe good")
    assert "not UTF-16-LE in line 1" in refused(capsys, "predict", str(review_run), "--file", str(path))
    path.write_bytes(b"good\ncaf\xe9")
    assert "not UTF-8 in line 2" in refused(capsys, "predict", str(review_run), "--file", str(path))
    assert refused(capsys, "predict", str(text_run), "--text", "good").endswith("rnnzoo predict is for imdb\n")


def test_lines_without_a_word_are_answered_and_the_rest_is_judged(
    review_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = load(review_run).module.hparams["words"][2]
    path = tmp_path / "reviews.txt"
    path.write_text(f"{word}\n\n{word * 1000}\n...\n{word}", encoding="utf-16")
    monkeypatch.setattr("rnnzoo.tasks.reviews.LONGEST", 500)
    assert main(["predict", str(review_run), "--file", str(path), "--running"]) == 0
    captured = capsys.readouterr()
    first, *others, last = map(json.loads, captured.out.splitlines())
    assert first == last and first["words"] == [word]
    assert [other["label"] for other in others] == [None] * 3
    assert ["without a word" in other["error"] for other in others] == [True, False, True]
    assert "too long to be judged" in others[1]["error"]
    assert [line[:7] for line in captured.err.splitlines()[-3:]] == ["line 2:", "line 3:", "line 4:"]


def test_a_line_of_standard_input_is_not_read_without_end(
    review_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rnnzoo.tasks.imdb.LONGEST", 500)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a" * 10_000)))
    assert refused(capsys, "predict", str(review_run), "--file", "-").startswith("--file -: line 1 is longer than 500")


# Whoever listens


VERBS = [
    "--help", "sample --help", "list", "show lstm", "sample text --length 2000", "predict reviews --file reviews.txt",
    "predict reviews --text café", "forecast forecast series.csv --plot plot.png", "backtest forecast series.csv",
    "eval text",
]  # fmt: skip
QUICK = ("--help", "sample --help", "list")
"""Those that are tried in an interpreter of their own."""


@pytest.fixture
def at_hand(runs: Path, text_run: Path, review_run: Path, forecast_run: Path, train: Callable[..., Path]) -> Path:
    """A folder with runs of all tasks that have verbs, and files for them."""
    (runs / "reviews.txt").write_text("good café\n" * 3, encoding="utf-8")
    return runs


def start(python: list[str], folder: Path, arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    command = [*python, "-m", "rnnzoo", *arguments.split()]
    # a shell that starts pytest in the background has it ignore Ctrl-C, and what pytest starts as well
    heeding: Any = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, cwd=folder, env=given, preexec_fn=heeding, **pipes)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", VERBS)
def test_a_reader_that_has_gone_is_no_error(arguments: str, at_hand: Path, python: list[str]) -> None:
    with start([sys.executable] if arguments in QUICK else python, at_hand, arguments) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()  # before anything is written
        said = process.stderr.read().decode()
        assert process.wait() == 0, said
    assert not any(word in said for word in ("Traceback", "Exception", "BrokenPipe")), said


@pytest.mark.slow
@pytest.mark.parametrize("arguments", VERBS)
def test_any_encoding_can_be_written_to(arguments: str, at_hand: Path, python: list[str]) -> None:
    started = [sys.executable] if arguments in QUICK else python
    more = " --running" * ("--file" in arguments)
    with start(started, at_hand, arguments + more, PYTHONIOENCODING="ascii") as process:
        said, complaints = process.communicate()
    assert process.returncode == 0 and b"Traceback" not in complaints, complaints
    assert said.isascii()
    if "--file" in arguments:
        assert json.loads(said.splitlines()[0])["words"] == ["good", "café"]


@pytest.mark.slow
def test_an_interrupt_ends_a_verb_in_one_line(at_hand: Path) -> None:
    with start([sys.executable], at_hand, "sample text --length 100000000") as process:
        assert process.stdout is not None
        process.stdout.read(100)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.decode().splitlines()[-1] == "interrupted" and b"Traceback" not in said


# Forecasting


@pytest.fixture
def forecast_run(runs: Path, train: Callable[..., Path]) -> Path:
    """A run of forecast on a monthly series of two columns, made once."""
    folder = runs / "forecast"
    if not folder.exists():
        months = [f"{2000 + month // 12}-{month % 12 + 1:02d}" for month in range(60)]
        rows = [f"{date},{100 + 3 * row},{row % 12}" for row, date in enumerate(months)]
        (runs / "series.csv").write_text("\n".join(["month,sales,season", *rows]) + "\n")
        train("task=forecast", f"task.data={runs / 'series.csv'}", "task.targets=[sales]", "task.window=6",
              "task.horizon=3", "model.hidden_size=4", "hardware=cpu", "trainer.max_epochs=1", "engine=reference",
              f"hydra.run.dir={folder}")  # fmt: skip
    return folder


def test_a_forecast_follows_the_last_rows(
    forecast_run: Path, runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "picture.png"
    lines = said(capsys, "forecast", str(forecast_run), str(runs / "series.csv"), "--plot", str(picture)).splitlines()
    module = load(forecast_run).module
    center, scale = (torch.tensor(module.hparams[key]) for key in ("center", "scale"))
    last = torch.tensor([[100.0 + 3 * row, row % 12] for row in range(54, 60)])
    with torch.no_grad():
        change = module((last[:, None] - center) / scale)[:, 0, 0]
    expected = (change * scale[0] + center[0]).tolist()
    assert lines[0] == "month,sales"
    assert [line.split(",")[0] for line in lines[1:]] == ["2005-01-01", "2005-02-01", "2005-03-01"]
    assert [float(line.split(",")[1]) for line in lines[1:]] == pytest.approx(expected, rel=1e-4)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("month,sales,season\n2000-01,1,2\n", "series.csv: a forecast needs at least 6 rows of sales, season"),
        ("month,sales\n2000-01,1\n", "no column 'season' in "),
        ("month,sales,season\n2000-01,1,2\n2000-02,many,2\n", "series.csv: line 3, column 'sales': 'many' is not a"),
        (
            "month,sales,season\n" + "\n".join(f"2000-0{m},{m},1" for m in range(1, 9)) + "\n2000-09,,1\n",
            "1 value missing",
        ),
    ],
)
def test_files_that_cannot_be_forecast(
    text: str, line: str, forecast_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "series.csv").write_text(text)
    plot = tmp_path / "picture.png"
    assert line in refused(capsys, "forecast", str(forecast_run), str(tmp_path / "series.csv"), "--plot", str(plot))
    assert not plot.exists()


@pytest.mark.parametrize(
    ("name", "begin"), [("picture", b"\x89PNG"), ("a.b.PNG", b"\x89PNG"), ("p.svg", b"<?xml"), ("p.pdf", b"%PDF-")]
)
def test_a_forecast_s_picture_is_what_its_name_says(
    name: str, begin: bytes, forecast_run: Path, runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said(capsys, "forecast", str(forecast_run), str(runs / "series.csv"), "--plot", str(tmp_path / name))
    assert (tmp_path / name).read_bytes().startswith(begin)


def test_a_picture_of_no_kind_is_refused(
    forecast_run: Path, runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plot = tmp_path / "picture.xyz"
    refusal = refused(capsys, "forecast", str(forecast_run), str(runs / "series.csv"), "--plot", str(plot))
    assert "picture.xyz: a picture's name ends in .png or .pdf or .svg" in refusal and not plot.exists()


# Exporting


def test_an_exported_run_brings_what_its_numbers_mean(text_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "export", str(text_run), "--onnx").startswith(f"written: {text_run}/char_lm_lstm.onnx, ")
    session = onnxruntime.InferenceSession(text_run / "char_lm_lstm.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    alphabet = json.loads(metadata["alphabet"])
    codes = torch.tensor([[alphabet.index(character)] for character in "ROMEO: hello"])
    zero = np.zeros((1, 1, 6), np.float32)
    logits, *_ = session.run(None, {"codes": codes.numpy(), "initial_h": zero, "initial_c": zero})
    with torch.no_grad():
        expected, _ = load(text_run).module(codes)
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-5, rtol=1e-5)
    assert metadata["task"] == "char_lm" and metadata["cell"] == "lstm"


def test_a_review_can_be_judged_from_a_file(
    review_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "reviews.pt2"
    said(capsys, "export", str(review_run), "--pt2", "--out", str(path))
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra)
    vocabulary = json.loads(json.loads(extra["metadata.json"])["vocabulary"])
    codes = torch.tensor([[vocabulary.index(vocabulary[4])], [vocabulary.index(vocabulary[2])]])
    with torch.no_grad():
        expected = load(review_run).module(codes, torch.tensor([2]))
    torch.testing.assert_close(program.module()(codes, torch.tensor([2])), expected, atol=1e-5, rtol=1e-5)
    assert "there is no folder" in refused(capsys, "export", str(review_run), "--pt2", "--out", str(path / "below"))


@pytest.mark.parametrize(
    "arguments",
    [
        "export RUN --pt2 --out nowhere/m.pt2", "show gru --png nowhere/x.png", "gallery nowhere/site",
        "report RUN --out nowhere/results", "bench gru --out nowhere/bench",
    ],
)  # fmt: skip
def test_no_command_makes_the_folder_above_what_it_writes(
    arguments: str, text_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"there is no folder {tmp_path / 'nowhere'}" in refused(
        capsys, *arguments.replace("RUN", str(text_run)).split()
    )
    assert not (tmp_path / "nowhere").exists()


# Testing again


def test_evaluation_finds_the_recorded_metrics(
    review_run: Path, text_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in (review_run, text_run):
        before = sorted(run.rglob("*"))
        assert said(capsys, "eval", str(run)).endswith("equal to the recorded ones\n")
        assert sorted(run.rglob("*")) == before
    summary = review_run / "summary.json"
    recorded = json.loads(summary.read_text())
    changed = json.loads(summary.read_text())
    changed["metrics"]["test/loss"] *= 1.01
    summary.write_text(json.dumps(changed))
    assert main(["eval", str(review_run)]) == 1
    assert capsys.readouterr().out.endswith("NOT equal to the recorded ones\n")
    summary.write_text(json.dumps(recorded))


def test_evaluation_tests_as_many_batches_as_the_run(
    train: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    train("task=adding", "task.T=5", "task.samples=64", "task.batch_size=4", "model.hidden_size=4", "hardware=cpu",
          "trainer.max_epochs=1", "engine=reference", "trainer.limit_test_batches=1",
          f"hydra.run.dir={tmp_path / 'run'}")  # fmt: skip
    assert said(capsys, "eval", str(tmp_path / "run")).endswith("equal to the recorded ones\n")


# Loading


def test_a_cell_of_ones_own_comes_from_where_the_run_had_it(
    tmp_path: Path, train: Callable[..., Path], runs: Path, text_run: Path, command: Callable[..., Any]
) -> None:
    cells = tmp_path / "mine.py"
    cells.write_text(MINE)
    arguments = [a for a in TEXT if not a.startswith("model=")]
    folder = train(*arguments, f"task.text={runs / 'text.txt'}", f"cells={cells}", "model=of_my_own")
    sample = ["-m", "rnnzoo", "sample", str(folder), "--length", "5"]
    elsewhere = cells.rename(tmp_path / "moved.py")
    lost = command(*sample)
    assert lost.returncode == 1 and lost.stderr.startswith(f"error: {folder}: its cell of_my_own is of {cells}")
    assert lost.stderr.endswith("say --cells with it\n")
    assert command(*sample, "--cells", str(elsewhere)).returncode == 0


def damaged(run: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a run whose checkpoint is changed."""
    folder = tmp_path / "copy"
    for name in (".hydra", "checkpoints"):
        (folder / name).mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_bytes((run / ".hydra" / "config.yaml").read_bytes())
    contents = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    change(contents)
    torch.save(contents, folder / "checkpoints" / "last.ckpt")
    return folder


def test_checkpoints_that_do_not_fit(text_run: Path, tmp_path: Path) -> None:
    def other_cell(contents: dict[str, Any]) -> None:
        contents["hyper_parameters"]["model"]["cell"] = "gru"

    def other_version(contents: dict[str, Any]) -> None:
        contents["rnnzoo_version"] = "9.9"
        del contents["hyper_parameters"]["alphabet"]

    def other_weights(contents: dict[str, Any]) -> None:
        contents["state_dict"]["head.bias"] = torch.zeros(3)

    for number, (change, problem) in enumerate(
        (
            (other_cell, "is of the cell gru, not of lstm as its folder says"),
            (other_version, r"written by rnnzoo 9.9, does not fit .* \(CharLM: alphabet is not known.*\)"),
            (other_weights, "does not fit"),
        )
    ):
        with pytest.raises(UserError, match=rf"last.ckpt: .*{problem}"):
            load(damaged(text_run, tmp_path / str(number), change))


def test_runs_that_are_not_there(text_run: Path, tmp_path: Path) -> None:
    short = tmp_path / "short" / "checkpoints" / "best.ckpt"
    short.parent.mkdir(parents=True)
    short.write_bytes((text_run / "checkpoints" / "best.ckpt").read_bytes()[:2000])
    for path, problem in (
        (tmp_path / "nowhere", "no such run; name its folder or one of its checkpoints"),
        (tmp_path, "no run there, .*best.ckpt is missing"),
        (short, "config.yaml is missing; a checkpoint is used in its run's folder"),
    ):
        with pytest.raises(UserError, match=problem):
            load(path)
    (short.parent.parent / ".hydra").mkdir()
    config = short.parent.parent / ".hydra" / "config.yaml"
    config.write_bytes((text_run / ".hydra" / "config.yaml").read_bytes())
    with pytest.raises(UserError, match=r"best.ckpt: damaged or not a checkpoint"):
        load(short)
    config.write_text("{")
    with pytest.raises(UserError, match=r"config.yaml: damaged"):
        load(short)


def test_no_class_but_the_projects_is_made(text_run: Path, tmp_path: Path) -> None:
    """A module named in a configuration is made only if it is a SequenceModule."""
    folder = damaged(text_run, tmp_path, lambda contents: None)
    config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    config.task.module = "subprocess.Popen"
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    with pytest.raises(UserError, match=r"task.module=subprocess.Popen: is not rnnzoo's own"):
        load(folder)


def test_a_run_ends_with_commands_that_can_be_called(
    train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "two waves.csv"
    data.write_text("x\n" + "".join(f"{row % 7 + row % 3}\n" for row in range(120)))
    train("task=forecast", f"task.data={data}", "task.window=8", "task.horizon=2", "trainer.max_epochs=1")
    monkeypatch.chdir(tmp_path)
    advice = [line.strip() for line in capsys.readouterr().out.partition("go on with\n")[2].splitlines()]
    for verb in ("backtest", "forecast"):
        [line] = [line for line in advice if line.startswith(f"rnnzoo {verb} ")]
        assert main(shlex.split(line)[1:]) == 0
        assert capsys.readouterr().out.count("\n") == 3
