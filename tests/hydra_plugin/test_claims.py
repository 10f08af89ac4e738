"""`rnnzoo claims`: each can be composed, is judged as its file says, and runs at toy size; what is there is kept."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from rnnzoo import UserError, list_cells
from rnnzoo.hydra import claims
from rnnzoo.hydra.claims import Claim, find, judge, publish
from rnnzoo.hydra.command_line import CONF
from rnnzoo.hydra.models import register_models
from rnnzoo.hydra.settings import resolve


@pytest.mark.parametrize("claim", find([]), ids=lambda claim: claim.name)
def test_each_run_of_a_claim_can_be_composed(claim: Claim, tmp_path: Path) -> None:
    """Its cells are there and run, its comparisons speak of its runs, and each is of an experiment with an end."""
    assert set(claim.cells) <= set(list_cells())
    known = {*claim.runs, "trivial"}
    for comparison in claim.holds:
        judge([comparison], dict.fromkeys(known, 1.0))  # raises where it cannot be read
        assert known & set(re.findall(r"\w+", comparison))
    register_models(None)
    models = set()
    for _, arguments in claim.jobs(tmp_path).values():
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            settings = resolve(compose("config", overrides=arguments), tmp_path)
        models.add(settings["model"]["cell"])
        assert settings["claim"]["paper"] == claim.paper
    assert models & set(claim.cells)


def test_what_holds() -> None:
    means = {"new": 0.02, "old": 0.5, "trivial": 1.0}
    assert judge(["new < 0.03", "old > 10 * new", "new < 0.1 * trivial", "old < trivial"], means) == "yes"
    assert judge(["new < 0.01", "old > 0.1", "old > 30 * new"], means) == "no: new < 0.01; old > 30 * new"


TOY = """
claim:
  cells: [gru]
  paper: "somebody"
  says: "something"
  figure: "1"
  here: "adding"
  metric: test/mse
  seeds: 2
  runs:
    gru: []
    rnn: [model=rnn]
  holds: ["gru < 100 * trivial", "rnn > 1000"]
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A claim named sums in a folder of its own, whose runs are written as their summaries."""
    (tmp_path / "sums.yaml").write_text(TOY)
    monkeypatch.setattr(claims, "CLAIMS", tmp_path)
    return tmp_path


def test_runs_are_done_once_and_their_means_are_judged(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[list[str]] = []

    def train(folder: Path, arguments: list[str]) -> None:
        done.append(arguments)
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "overrides.yaml").write_text(json.dumps([*arguments, f"hydra.run.dir={folder}"]))
        mse = 0.1 * len(done)
        metrics = {"test/mse": mse, "baseline/trivial_mse": 0.5}
        summary = {"metrics": metrics, "seconds_training": 2.0, "seconds_validation": 0.5}
        (folder / "summary.json").write_text(json.dumps(summary))

    monkeypatch.setattr(claims, "_train", train)
    [shown] = publish(["sums"], toy / "out", only_show=True)
    assert not done and shown["held"] == "4 of 4 runs are missing" and shown["figures here"] == ""
    [row] = publish(["sums"], toy / "out")
    first = ["experiment=claim/sums"]
    assert done == [first, [*first, "seed=2"], [*first, "model=rnn"], [*first, "model=rnn", "seed=2"]]
    assert row["figures here"] == "gru 0.15 ± 0.071; trivial 0.5; rnn 0.35 ± 0.071"
    assert row["held"] == "no: rnn > 1000" and row["seconds"] == "10"
    with (toy / "out" / "claims.csv").open(encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [row]

    publish([], toy / "out")
    assert len(done) == 4
    shutil.rmtree(toy / "out" / "sums" / "rnn-2")
    publish([], toy / "out")
    assert len(done) == 5 and "sums: rnn, seed 2" in capsys.readouterr().out

    summary = toy / "out" / "sums" / "rnn-2" / "summary.json"
    whole = summary.read_text()
    for text in (whole[:20], "[1]", whole.replace("test/mse", "test/mae"), whole.replace("2.0", '"x"'), "\x00\ud7ff"):
        summary.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"rnn-2/summary.json: damaged .*; delete its folder"):
            publish([], toy / "out", only_show=True)
    summary.unlink()
    told = {"diverged": "at step 1", "seconds_training": 1.0, "seconds_validation": 0.0}
    (summary.parent / "diverged.json").write_text(json.dumps(told))
    [row] = publish([], toy / "out")
    assert "rnn nan" in row["figures here"] and row["held"] == "no: rnn > 1000" and len(done) == 5
    summary.write_text(whole)
    (toy / "out" / "sums" / "gru-1" / ".hydra" / "overrides.yaml").write_text("[1")
    with pytest.raises(UserError, match=r"gru-1/.hydra/overrides.yaml: damaged"):
        publish([], toy / "out")
    (toy / "out" / "sums" / "gru-1" / ".hydra" / "overrides.yaml").write_text(json.dumps(first))

    for damaged in ('["a=["]', '["a"]'):  # neither is an override
        (toy / "out" / "sums" / "gru-1" / ".hydra" / "overrides.yaml").write_text(damaged)
        with pytest.raises(UserError, match=r"gru-1/.hydra/overrides.yaml: damaged"):
            publish([], toy / "out")
    (toy / "out" / "sums" / "gru-1" / ".hydra" / "overrides.yaml").write_text("[]")
    with pytest.raises(UserError, match=r"gru-1: made by , now it is "):
        publish([], toy / "out", only_show=True)
    (toy / "out" / "sums" / "gru-1" / ".hydra" / "overrides.yaml").write_text(json.dumps(first))
    for text in ("null", "1e999", "[" * 100_000):
        summary.write_text(text)
        with pytest.raises(UserError, match=r"rnn-2/summary.json: damaged"):
            publish([], toy / "out")
    summary.write_text(whole)
    [row] = publish([], toy / "out")
    shutil.rmtree(toy / "out" / "sums")
    assert publish([], toy / "out", only_show=True) == [row]  # what has been run already
    (toy / "sums.yaml").write_text(TOY.replace('here: "adding"', 'here: "adding, longer"'))
    assert publish([], toy / "out", only_show=True)[0]["held"] == "4 of 4 runs are missing"
    publish([], toy / "out")

    (toy / "sums.yaml").write_text(TOY.replace("model=rnn", "model=lstm"))
    with pytest.raises(UserError, match=r"rnn-1: made by .*model=rnn, now it is .*model=lstm; delete it"):
        publish([], toy / "out")


def test_lines_of_other_claims_stay(toy: Path) -> None:
    (toy / "more.yaml").write_text(TOY)
    both = publish([], toy / "out", only_show=True)
    [one] = publish(["sums"], toy / "out", only_show=True)
    path = toy / "out" / "claims.csv"
    with path.open(encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == both == [both[0], one]
    path.write_text("cell,task\ngru,adding\n")
    with pytest.raises(UserError, match=r"claims.csv: is not a table of claims"):
        publish(["sums"], toy / "out", only_show=True)
    with pytest.raises(UserError, match=r"--out .*claims.csv: File exists; name a folder that can be made"):
        publish(["sums"], path, only_show=True)


def test_an_unknown_claim() -> None:
    with pytest.raises(UserError, match="no claim is named 'irn'; did you mean irnn"):
        publish(["irn"], Path("nowhere"))


@pytest.mark.slow
def test_real_runs_of_a_claim(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process trains, and its summary is what is told."""
    more = ["task.T=4", "task.samples=64", "trainer.max_epochs=1", "model.hidden_size=4"]
    claim: Any = Claim("irnn", ["irnn"], "", "", "", "", "test/mse", {"irnn": more}, ["irnn > 0"])
    monkeypatch.setattr(claims, "find", lambda names: [claim])
    [row] = publish([], tmp_path / "out")
    assert row["held"] == "yes" and float(row["figures here"].removeprefix("irnn ").partition(";")[0]) > 0
    summary = tmp_path / "out" / "irnn" / "irnn-1" / "summary.json"
    found = json.loads(summary.read_text())["metrics"]
    assert found["baseline/trivial_loss"] == pytest.approx(1 / 6)
