"""`rnnzoo probe`: what it writes of a run, beside the same computed from the run's weights by hand."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rnnzoo.cli import main
from rnnzoo.hydra.trained import load

SMALL = ("hardware=cpu", "trainer.max_epochs=1", "model.hidden_size=4")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def run(train: Callable[..., Path]) -> Path:
    """A run of two layers whose units each see only their own past: their Jacobians are known."""
    return train(
        "task=parity", "model=indrnn", "task.T=6", "task.test_T=9", "task.samples=40", "model.num_layers=2", *SMALL
    )


def test_what_is_written(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(run)]) == 0
    said = capsys.readouterr().out
    folder = run / "probe"
    assert "parity · indrnn" in said and f"written: {folder / 'probe.html'}" in said
    names = ["summary", "gradients", "reach", "eigenvalues", "gates", "units", "trajectories", "fixed_points"]
    assert {path.name for path in folder.iterdir()} == {*(f"{name}.csv" for name in names), "probe.png", "probe.html"}

    summary = rows(folder / "summary.csv")
    assert [row["layer"] for row in summary] == ["layer.1", "layer.2"]
    assert all(row["states"] == "4" for row in summary)
    gradients = rows(folder / "gradients.csv")
    assert [(row["layer"], row["step"]) for row in gradients] == [
        (f"layer.{k}", str(t)) for k in (1, 2) for t in range(1, 6)
    ]

    # each unit of an IndRNN has one weight, and its Jacobian is that or, where the unit is cut off, 0
    weights = load(run).module.layer.cells[0].u.detach()
    found = [
        complex(float(r["real"]), float(r["imaginary"]))
        for r in rows(folder / "eigenvalues.csv")
        if r["layer"] == "layer.1"
    ]
    assert len(found) % 4 == 0
    for value in found:
        assert value == 0 or float((weights - value.real).abs().min()) < 1e-6
    page = (folder / "probe.html").read_text(encoding="utf-8")
    assert "memory length" in page and "data:image/png;base64," in page


def test_two_runs_side_by_side(run: Path, train: Callable[..., Path], tmp_path: Path) -> None:
    other = train("task=first", "model=lstm", "task.T=5", "task.samples=40", *SMALL)
    assert main(["probe", str(run), str(other), "--out", str(tmp_path / "both")]) == 0
    page = (tmp_path / "both" / "probe.html").read_text(encoding="utf-8")
    assert "parity · indrnn" in page and "first · lstm" in page
    gates = rows(tmp_path / "both" / other.name / "gates.csv")
    assert [row["gate"] for row in gates] == ["i", "f", "o"]
    assert all(0 <= float(row["mean"]) <= 1 for row in gates)


def test_both_directions_have_no_dynamics(
    train: Callable[..., Path], reviews: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = train("task=imdb", f"task.data={reviews}", "task.batch_size=8", "task.embedding=3", *SMALL)
    assert load(both).module.layer.bidirectional
    capsys.readouterr()
    assert main(["probe", str(both)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {both}: its layers read in both directions") and said.count("\n") == 1
    assert not (both / "probe").exists()


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(tmp_path / "nothing")]) == 1
    assert "no such run" in capsys.readouterr().err
    assert torch.is_grad_enabled()
