"""What `trainer.precision` names, and that each task can be trained in fewer digits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from test_run import IMDB, SINE, TEXT, rows

from rnnzoo import UserError
from rnnzoo.lightning.metrics import EvaluationMetrics
from rnnzoo.lightning.precision import HalfWeights, precision


@pytest.mark.parametrize(
    ("chosen", "name"),
    [
        (32, "32-true"), (64, "64-true"), ("bf16", "bf16-mixed"), ("32-true", "32-true"), ("bf16-mixed", "bf16-mixed"),
        ("bf16-true", "bf16-true"), ("16-true", "16-true"), ("64-true", "64-true"),
    ],
)  # fmt: skip
def test_short_and_long_names(chosen: object, name: str) -> None:
    given, plugins = precision(chosen, "cpu")
    assert pl.Trainer(precision=given, plugins=plugins, accelerator="cpu", logger=False).precision == name  # type: ignore[arg-type]


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"trainer\.precision=bf61: unknown; did you mean bf16"):
        precision("bf61", "cpu")
    for chosen, accelerator in ((16, "cpu"), ("16-mixed", "cpu"), (16, "auto")):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        with pytest.raises(UserError, match=rf"trainer\.precision={chosen}: .* use trainer\.precision=bf16"):
            precision(chosen, accelerator)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert precision(16, "auto") == ("16-mixed", [])


SMALL = ("hardware=cpu", "model.hidden_size=16", "trainer.max_epochs=1")


@pytest.mark.parametrize("task", ["sine", "char_lm", "imdb"])
def test_fewer_digits_change_little(task: str, reviews: Path, train: Callable[..., Path]) -> None:
    arguments = {"sine": SINE, "char_lm": TEXT, "imdb": (*IMDB, f"task.data={reviews}")}[task]

    def metrics(chosen: str) -> dict[str, float]:
        folder = train(*arguments, *SMALL, f"trainer.precision={chosen}")
        found: dict[str, float] = json.loads((folder / "summary.json").read_text())["metrics"]
        assert all(map(math.isfinite, found.values()))
        return {name: found[name] for name in ("val/loss", "test/loss")}

    expected = metrics("32")
    assert metrics("64") == pytest.approx(expected, rel=1e-4)
    for chosen in ("bf16", "bf16-true"):
        assert metrics(chosen) == pytest.approx(expected, rel=0.03)


def test_metrics_of_half_weights_add_up() -> None:
    """In bfloat16 a sum of ones would end at 256."""
    module = torch.nn.ModuleDict({"metrics": EvaluationMetrics({}), "layer": torch.nn.Linear(2, 2)})
    HalfWeights("bf16-true").convert_module(module)
    assert module["layer"].weight.dtype == torch.bfloat16
    for _ in range(1000):
        module["metrics"].update(torch.tensor(0.75, dtype=torch.bfloat16), 3)  # type: ignore[operator]
    assert float(module["metrics"].compute()["loss"]) == 0.75  # type: ignore[operator]


def test_gradients_scaled_for_float16_are_clipped_unscaled(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, but on a CPU; the scale begins so high that the first gradients overflow and are skipped."""
    still = (*SINE, "optimizer.lr=0", "trainer.log_every_n_steps=1")

    def norms() -> list[float]:
        return [row["step/grad_norm"] for row in rows(train(*still)) if "step/grad_norm" in row]

    expected = norms()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    monkeypatch.setattr(
        "rnnzoo.hydra.trainer.precision", lambda *_: (None, [MixedPrecision("16-mixed", "cpu", scaler)])
    )
    found = norms()
    taken = [(norm, wanted) for norm, wanted in zip(found, expected, strict=True) if math.isfinite(norm)]
    assert not math.isfinite(found[0]) and len(taken) > 5
    assert [norm for norm, _ in taken] == pytest.approx([wanted for _, wanted in taken], rel=0.01)
