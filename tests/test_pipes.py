"""Every command in a pipe that is closed, on a terminal that knows ASCII only, and under Ctrl-C: never a traceback.

The tasks' own commands are in tests/hydra_plugin/test_verbs.py, in processes of their own.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import small

from rnnzoo import cli
from rnnzoo.explain import gallery

SINE = (*small.SINE, "model=rnn", "trainer.max_epochs=1", "engine=reference")

COMMANDS = {
    "help": "--help",
    "help of a task's command": "sample --help",
    "list": "list",
    "fidelity": "list --fidelity",
    "show": "show rnn",
    "equations": "show rnn --text",
    "page": "show rnn --html",
    "gallery": "gallery {folder}/gallery",
    "check": "check {folder}/wrong.py:Wrong",
    "bench": "bench rnn --sizes 2,1,2,2 --rounds 1 --against loop --engine reference --out {folder}/bench",
    "train": "train {sine} hydra.run.dir={folder}/new",
    "help of train": "train --help",
    "report": "report {run} --out {folder}/report",
    "eval": "eval {run}",
    "probe": "probe {run} --out {folder}/probe",
    "claims": "claims --show --out {folder}/claims",
    "export": "export {run} --pt2 --out {folder}/m.pt2",
}

WRONG = """
from rnnzoo import Cell, gate

class Wrong(Cell):
    '''Ein \u00fcbler \u2192.'''
    W, U, b = gate()

    def step(self, x, h):
        return x @ self.U
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(params=COMMANDS)
def arguments(
    request: pytest.FixtureRequest, kept: Path, tmp_path: Path, train: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> list[str]:  # fmt: skip
    """A command's arguments, with what it works on made before."""
    if not (kept / "run").exists():
        train(*SINE, f"hydra.run.dir={kept / 'run'}")
    (tmp_path / "wrong.py").write_text(WRONG)
    monkeypatch.setattr(gallery, "build", lambda *arguments: {})  # a minute's work, which is silent

    def in_this_process(given: list[str]) -> int:
        train(*given)
        return 0

    monkeypatch.setattr(cli, "train", in_this_process)
    command = COMMANDS[request.param]
    return command.format(folder=tmp_path, run=kept / "run", sine=" ".join(SINE)).split()


def code_of(arguments: list[str]) -> int:
    try:
        return cli.main(arguments)
    except SystemExit as end:  # argparse's way, and a training's
        return int(end.code or 0)


def test_whoever_reads_may_have_enough(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering=1, encoding="utf-8") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        code = code_of(arguments)
    said = capfd.readouterr().err
    assert "Error" not in said and "Broken pipe" not in said
    ended = "nobody reads the output any more, which has ended the run; " in said  # a training, in its midst
    assert code in (0, int(arguments[0] == "check" or ended))


def test_a_terminal_that_knows_ascii_only(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(said, encoding="ascii", write_through=True))
    assert code_of(arguments) == int(arguments[0] == "check")
    assert said.getvalue().isascii() and "Error" not in capfd.readouterr().err


class Interrupting(io.StringIO):
    """A stream at whose first line a person presses Ctrl-C."""

    def write(self, text: str) -> int:
        raise KeyboardInterrupt


def test_ctrl_c(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdout", Interrupting())
    assert code_of(arguments) == cli.INTERRUPTED
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
