"""`rnnzoo probe`: what it writes of a run, beside the same computed from the run's weights by hand."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rnnzoo.cli import main
from rnnzoo.hydra.trained import data_of, load

SMALL = ("hardware=cpu", "trainer.max_epochs=1", "model.hidden_size=4")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def run(train: Callable[..., Path]) -> Path:
    """A run of two layers whose units each see only their own past: their Jacobians are known."""
    return train(
        "task=parity", "model=indrnn", "task.T=6", "task.test_T=9", "task.samples=400", "model.num_layers=2", *SMALL
    )


def test_what_is_written(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(run)]) == 0
    said = capsys.readouterr().out
    folder = run / "probe"
    assert "parity · indrnn" in said and f"written: {folder / 'probe.html'}" in said
    names = [
        "summary", "gradients", "reach", "eigenvalues", "singular_values", "exponents", "gates", "units",
        "trajectories", "fixed_points", "decodability",
    ]  # fmt: skip
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
    # a diagonal matrix's singular values are the moduli of its eigenvalues
    largest = [float(r["value"]) for r in rows(folder / "singular_values.csv") if r["layer"] == "layer.1"]
    assert sorted(largest) == pytest.approx(sorted(map(abs, found)), abs=1e-6)
    assert [r["rank"] for r in rows(folder / "exponents.csv")] == ["1", "2", "3", "4"] * 2
    assert {r["kind"] for r in rows(folder / "fixed_points.csv")} <= {"fixed", "slow"}
    assert [r["unit"] for r in rows(folder / "units.csv")] == ["0", "1", "2", "3"] * 2
    page = (folder / "probe.html").read_text(encoding="utf-8")
    assert (
        "memory length" in page
        and "data:image/png;base64," in page
        and "What can be read off the states" in page
        and "<td>state</td>" in page
    )


def test_two_runs_side_by_side(run: Path, train: Callable[..., Path], tmp_path: Path) -> None:
    other = train("task=first", "model=lstm", "task.T=5", "task.samples=40", *SMALL)
    html = tmp_path / "page.html"
    assert main(["probe", str(run), str(other), "--out", str(tmp_path / "both"), "--html", str(html)]) == 0
    page = html.read_text(encoding="utf-8")
    head = page[page.index("<table>") : page.index("<th>layer</th>")]
    assert head.count("<td>parity · indrnn, ") == 2 and head.count("<td>first · lstm, ") == 1  # a column a layer
    assert main(["probe", str(run), str(run)]) == 1  # the second would be written over the first
    gates = rows(tmp_path / "both" / other.name / "gates.csv")
    assert [row["gate"] for row in gates] == ["i", "f", "o"]
    assert all(0 <= float(row["mean"]) <= 1 for row in gates)


def test_what_is_read_off_the_states(run: Path) -> None:
    """R² of the running parity, with the states and the targets made here, step by step."""
    assert main(["probe", str(run)]) == 0
    found = {(row["layer"], int(row["step"])): float(row["r2"]) for row in rows(run / "probe" / "decodability.csv")}
    assert set(found) == {(f"layer.{k}", t) for k in (1, 2) for t in range(1, 7)}
    trained = load(run)
    batch = next(iter(data_of(trained).val_dataloader()))
    one_hot = torch.eye(2)[batch.x.T]
    with torch.no_grad():
        below, above = trained.module.layer.record(one_hot)
    for layer, states in (("layer.1", below["h"]), ("layer.2", above["h"])):
        for t in range(6):
            x, y = states[t].double().numpy(), (batch.x[:, : t + 1].sum(1) % 2).double().numpy()
            assert found[layer, t + 1] == pytest.approx(best_ridge(x, y), abs=1e-6)


def best_ridge(x: np.ndarray, y: np.ndarray) -> float:
    """R² of ridge regression in four or five folds of sequences, at the best of three strengths."""
    folds = np.array_split(np.arange(len(x)), min(5, len(x)))
    found = []
    for strength in (1e-3, 1e-1, 1e1):
        guess = np.empty_like(y)
        for held in folds:
            rest = np.setdiff1d(np.arange(len(x)), held)
            mean, level = x[rest].mean(0), y[rest].mean()
            gram = (x[rest] - mean).T @ (x[rest] - mean)
            weight = np.linalg.solve(
                gram + strength * np.trace(gram) / len(gram) * np.eye(len(gram)), (x[rest] - mean).T @ (y[rest] - level)
            )
            guess[held] = (x[held] - mean) @ weight + level
        found.append(1 - ((guess - y) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    return max(found)


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
