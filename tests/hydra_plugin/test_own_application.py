"""Somebody's own Hydra application, laid out as lightning-hydra-template does, with the zoo's cells as its models."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate

import rnnzoo.hydra
from rnnzoo import Recurrent, list_cells

ROOT = Path(__file__).parents[2]

TRAIN = """
import hydra
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from torch import nn

import rnnzoo.hydra

rnnzoo.hydra.register(group="model/net")


class LitModel(pl.LightningModule):
    def __init__(self, net, lr):
        super().__init__()
        self.net, self.lr, self.head = net, lr, nn.Linear(net.output_size, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.head(self.net(x)[0]), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


class Data(pl.LightningDataModule):
    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def train_dataloader(self):
        x = torch.randn(self.rows, 7, 3)
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(-1, keepdim=True)), 5)


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg):
    trainer = instantiate(cfg.trainer)
    model = instantiate(cfg.model)
    trainer.fit(model, instantiate(cfg.data))
    print("trained", type(model.net.cells[0]).__name__, model.net.batch_first, trainer.global_step)


if __name__ == "__main__":
    main()
"""

CONFIGS = {
    "train": "defaults: [data: random, model: lit, trainer: cpu, _self_]\n",
    "data/random": "_target_: train.Data\nrows: 20\n",
    "model/lit": "defaults: [net: gru]\n_target_: train.LitModel\nlr: 0.01\n"
    "net: {input_size: 3, hidden_size: 4, batch_first: true}\n",
    "trainer/cpu": "_target_: pytorch_lightning.Trainer\naccelerator: cpu\nmax_epochs: 1\nlogger: false\n"
    "enable_progress_bar: false\nenable_checkpointing: false\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(TRAIN)
    for name, text in CONFIGS.items():
        path = tmp_path / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_a_cell_trains_in_somebodys_template(
    project: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return command("train.py", *arguments, cwd=project, env={**os.environ, "PYTHONPATH": str(ROOT)})

    done = run("model/net=mgu", "model.net.learn_initial_state=true")
    assert "trained MGU True 4" in done.stdout, done.stderr
    assert "Key 'hiden_size' not in" in run("model.net.hiden_size=3").stderr
    assert "could not be converted" in run("model.net.zoneout=much").stderr


@pytest.fixture
def composed() -> Any:
    GlobalHydra.instance().clear()
    rnnzoo.hydra.register(group="net")
    with initialize_config_dir(config_dir=str(Path(__file__).parent), version_base="1.3"):
        yield lambda *overrides: compose(overrides=list(overrides))


@pytest.mark.parametrize("name", list_cells("*lstm*"))
def test_every_option_is_a_layer(name: str, composed: Any) -> None:
    layer = instantiate(composed(f"+net={name}", "net.input_size=3", "net.hidden_size=4", "net.num_layers=2").net)
    assert isinstance(layer, Recurrent)
    expected = Recurrent(name, 3, 4, num_layers=2)
    assert {k: v.shape for k, v in layer.state_dict().items()} == {k: v.shape for k, v in expected.state_dict().items()}


def test_the_choices_are_found_from_elsewhere(composed: Any) -> None:
    config = composed("hydra.searchpath=[pkg://rnnzoo.conf]", "+task=sine", "+optimizer=adamw")
    assert config.optimizer.lr == config.task.preset.lr
    data: Any = instantiate({"_target_": config.task.datamodule, "samples": 20})
    data.setup()
    assert len(data.train) == 20
