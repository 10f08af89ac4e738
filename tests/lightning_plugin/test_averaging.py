"""Averaged weights: when averaging begins, what is evaluated and saved, and how a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rnnzoo.lightning import ExactResume
from rnnzoo.lightning.averaging import AveragedWeights

BATCHES = 3

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),  # the batches are equal
]


class Descent(pl.LightningModule):
    """SGD with momentum down a parabola; validation says what it is told to, and notes the weights that it sees."""

    def __init__(self, said: list[float], metric: str = "val/loss", killed_at: int | None = None) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        self.said, self.metric, self.killed_at = said, metric, killed_at
        self.steps: list[Tensor] = []
        self.seen: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.killed_at == self.global_step:
            raise RuntimeError("killed")
        return (self.w - 0.1 * self.current_epoch).square().sum()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append(self.w.detach().clone())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append(self.w.detach().clone())
        self.log(self.metric, self.said[self.current_epoch])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def fit(module: Descent, folder: Path, patience: int, resume: bool = False) -> dict[str, Any]:
    """The last checkpoint of a training."""
    callbacks = [AveragedWeights(module.metric, patience), ExactResume(folder / "last.ckpt", 1, 1)]
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
        max_epochs=len(module.said), num_sanity_val_steps=0, default_root_dir=folder,
    )  # fmt: skip
    rows = DataLoader(torch.zeros(BATCHES, 1), batch_size=1)  # type: ignore[arg-type]
    one = DataLoader(torch.zeros(1, 1), batch_size=1)  # type: ignore[arg-type]
    trainer.fit(module, rows, one, ckpt_path=str(folder / "last.ckpt") if resume else None)
    found: dict[str, Any] = torch.load(folder / "last.ckpt", weights_only=True)
    return found


@pytest.mark.parametrize(
    ("said", "patience", "epochs"),
    [
        ([5, 4, 3, 3.5, 3.6, 9, 0], 2, 5),  # 3.6 in the fifth is no worse than the first three; 9 in the sixth is
        ([5, 4, 3, 3.5, 3.6, 9, 0], 1, 3),
        ([5, 6, 7, 8], 1, 2),  # the paper asks for more than n epochs before it looks
        ([5, 4, 3, 2, 2], 1, 4),  # to be equal is not to be worse
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_mean_of_the_steps_after_the_first_epoch_without_gain(
    said: list[float], patience: int, epochs: int, sign: int, tmp_path: Path
) -> None:
    begin = next((t for t, v in enumerate(said) if t > patience and v > min(said[: t - patience + 1])), len(said)) + 1
    module = Descent([sign * float(v) for v in said], "val/loss" if sign > 0 else "val/accuracy")
    saved = fit(module, tmp_path, patience)
    assert len(module.steps) == BATCHES * len(said)
    for epoch, seen in enumerate(module.seen):
        own = module.steps[BATCHES * begin : BATCHES * (epoch + 1)]
        torch.testing.assert_close(seen, torch.stack(own).mean(0) if own else module.steps[BATCHES * (epoch + 1) - 1])
    assert torch.equal(saved["state_dict"]["w"], module.seen[-1]) and torch.equal(module.w, module.seen[-1])
    if begin < len(said):
        assert torch.equal(saved["averaging"]["last"]["w"], module.steps[-1])
    else:
        assert "last" not in saved["averaging"]


@pytest.mark.parametrize("at", [5, 9, 10, 13])
def test_a_run_goes_on_with_mean_and_last_weights(at: int, tmp_path: Path) -> None:
    """Averaging begins after the third of five epochs, step 9."""
    said = [3.0, 4.0, 5.0, 6.0, 7.0]
    whole = Descent(said)
    expected = fit(whole, tmp_path / "whole", 1)
    with pytest.raises(RuntimeError, match="killed"):
        fit(Descent(said, killed_at=at), tmp_path / "broken", 1)
    resumed = Descent(said)
    found = fit(resumed, tmp_path / "broken", 1, resume=True)
    assert torch.equal(torch.stack(resumed.steps), torch.stack(whole.steps[at:]))
    assert torch.equal(resumed.w, whole.w) and found["averaging"]["count"] == 2 * BATCHES
    assert torch.equal(found["averaging"]["last"]["w"], expected["averaging"]["last"]["w"])
