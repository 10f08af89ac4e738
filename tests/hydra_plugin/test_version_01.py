"""Runs that version 0.1 has left (`tests/v01/`, made by its last commit) go on, are tested again, and are used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rnnzoo.cli import main
from rnnzoo.hydra.trained import load

RECORDED = Path(__file__).parents[1] / "v01"


@pytest.fixture
def old(tmp_path: Path) -> Callable[[str], Path]:
    return lambda task: shutil.copytree(RECORDED / task, tmp_path / task)


def test_these_are_old_runs() -> None:
    for summary in RECORDED.glob("*/summary.json"):
        assert json.loads(summary.read_text())["commit"] == "730ccbb"
        assert "datamodule: tasks." in (summary.parent / ".hydra" / "config.yaml").read_text()


@pytest.mark.parametrize("task", ["sine", "char_lm"])
def test_it_is_tested_again(task: str, old: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(old(task))]) == 0
    assert "equal to the recorded ones" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["sine", "char_lm", "imdb"])
def test_it_is_exported(task: str, old: Callable[[str], Path]) -> None:
    folder = old(task)
    assert main(["export", str(folder), "--pt2"]) == 0
    [path] = folder.glob("*.pt2")
    extra: dict[str, Any] = {"metadata.json": ""}
    torch.export.load(path, extra_files=extra)
    known = {"sine": {}, "char_lm": {"alphabet": "ehlo"}, "imdb": {"maxlen": 400}}[task]
    told = {key: json.loads(value) for key, value in json.loads(extra["metadata.json"]).items() if key in known}
    assert told == known


@pytest.mark.parametrize("task", ["sine", "char_lm"])
def test_it_goes_on(task: str, old: Callable[[str], Path], train: Callable[..., Path]) -> None:
    folder = old(task)
    before = json.loads((folder / "summary.json").read_text())
    train(f"resume={folder}", "trainer.max_epochs=4")
    after = json.loads((folder / "summary.json").read_text())
    assert (before["epochs"], after["epochs"]) == (2, 4)
    assert after["metrics"]["val/loss"] < before["metrics"]["val/loss"]


def test_its_words_are_known(old: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = old("imdb")
    assert load(folder).module.hparams["words"][:2] == ["<padding>", "<unknown>"]
    assert main(["predict", str(folder), "--text", "it is a fine film"]) == 0
    assert "along the 5 words read" in capsys.readouterr().out


def test_an_end_that_is_past_is_called_so(
    old: Callable[[str], Path], train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train(f"resume={old('sine')}", "trainer.max_epochs=1")
    assert "its run has had 2 epochs; set trainer.max_epochs to more than 1" in capsys.readouterr().err
