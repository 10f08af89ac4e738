"""The bare loop does what the Trainer does: the same weights after the same steps. What takes how long is no test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rnnzoo import UserError
from rnnzoo.hydra import throughput

SINE = (
    "task.samples=40",
    "task.batch_size=8",
    "task.window=5",
    "task.prefix=2",
    "task.horizon=2",
    "model.hidden_size=4",
)


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_both_do_the_same_steps(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    after: dict[str, list[Any]] = {"with_lightning": [], "bare": []}

    def noted(name: str) -> Any:
        train = getattr(throughput, name)

        def run(module: Any, data: Any, settings: dict[str, Any], folder: Path) -> float:
            taken: float = train(module, data, settings, folder)
            after[name].append([parameter.detach().clone() for parameter in module.parameters()])
            return taken

        run.__name__ = name
        return run

    for name in after:
        monkeypatch.setattr(throughput, name, noted(name))
    found = throughput.measure("sine", 1, *SINE, f"optimizer.schedule={schedule}", "engine=reference")
    assert found.ratio == pytest.approx(found.trained / found.bare)  # of a single round
    for trained, bare in zip(*after.values()):
        for a, b in zip(trained, bare):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_an_unknown_task() -> None:
    with pytest.raises(UserError, match="--train sin: no such task; did you mean sine"):
        throughput.measure("sin")
