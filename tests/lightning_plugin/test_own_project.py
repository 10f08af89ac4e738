"""A project of somebody's own: the tasks in a notebook, and the parts for a LightningModule that is not ours."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnzoo import Recurrent, UserError
from rnnzoo.lightning import Batches, CarriedState, ExactResume, Pictures, position, shuffled
from rnnzoo.tasks.addition import Addition, Sums
from rnnzoo.tasks.char_lm import Characters, CharLM
from rnnzoo.tasks.sine import Sine, Waves

QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip
SMALL = {"cell": "gru", "hidden_size": 4}


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
]

NOTEBOOK = """
import warnings
warnings.simplefilter("ignore")
import {package} as pl
from rnnzoo.tasks.sine import Sine, Waves
from rnnzoo.tasks.char_lm import Characters, CharLM
for module, data in ((Sine(), Waves(samples=64)), (CharLM(sample_length=0), Characters("hello"))):
    trainer = pl.Trainer(max_epochs=1, limit_train_batches=2, logger=False, enable_progress_bar=False,
                         enable_model_summary=False)
    assert isinstance(module, pl.LightningModule)
    trainer.fit(module, data)
    print(trainer.callback_metrics["val/loss"].isfinite().item())
"""


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning"])
def test_two_lines_of_a_notebook(
    package: str, tmp_path: Path, interpreter: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Also where a project imports `lightning`, whose Trainer refuses the other package's modules."""
    done = interpreter("-c", NOTEBOOK.format(package=package), cwd=tmp_path, env=_environment())
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_lightnings_own_command_line(
    tmp_path: Path, interpreter: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    script = tmp_path / "cli.py"
    script.write_text(
        "from pytorch_lightning.cli import LightningCLI\n"
        "from rnnzoo.tasks.sine import Sine, Waves\n"
        "LightningCLI(Sine, Waves)\n"
    )
    trainer = [f"--trainer.{key}=false" for key in ("logger", "enable_progress_bar", "enable_checkpointing")]
    model = '--model.model={"cell": "lstm", "hidden_size": 3}'
    arguments = ["--trainer.max_epochs=1", *trainer, "--data.samples=64", model, "--model.horizon=5"]
    done = interpreter(str(script), "fit", *arguments, cwd=tmp_path, env=_environment())
    assert done.returncode == 0, done.stderr
    assert "max_epochs=1` reached" in done.stderr


def test_a_cells_name_says_enough_for_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_lightning.cli import LightningCLI

    monkeypatch.setattr("sys.argv", ["pytest"])  # whose own arguments are none of LightningCLI's
    assert Sine(model="lstm").hparams["model"] == {"cell": "lstm", "hidden_size": 64}
    quiet = {"logger": False, "enable_checkpointing": False, **QUIET}
    made = LightningCLI(
        Sine, Waves, run=False, args=["--model.model=mgu"], trainer_defaults=quiet, seed_everything_default=1
    )
    assert made.model.layer.cells[0].extra_repr() == "1, 64"
    assert made.model.hparams["model"]["cell"] == "mgu"


def _environment() -> dict[str, str]:
    import os

    root = Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": str(root)}


def test_the_data_tell_the_module(tmp_path: Path) -> None:
    module, data = Addition(model=SMALL), Sums(digits=2, samples=40, batch_size=20)
    assert not module.is_built
    trainer = pl.Trainer(max_epochs=1, default_root_dir=tmp_path, **QUIET)
    trainer.fit(module, data)
    assert module.hparams["digits"] == 2
    [path] = tmp_path.rglob("*.ckpt")
    again = Addition.load_from_checkpoint(path)
    assert again.answer(["1+2"]) == module.answer(["1+2"])
    with pytest.raises(UserError, match="the data have digits=3, but the module is made for digits=2"):
        trainer.test(module, Sums(digits=3, samples=40))
    with pytest.raises(UserError, match="digits is not known"):
        pl.Trainer(max_epochs=1, **QUIET).fit(Addition(), [torch.zeros(1)], [torch.zeros(1)])


def test_a_layer_of_ones_own(tmp_path: Path) -> None:
    layer = Recurrent("mgu", 1, 5, num_layers=2)
    module = Sine(model=layer, horizon=3)
    assert module.layer is not layer and len(module.layer.cells) == 2
    pl.Trainer(max_epochs=1, default_root_dir=tmp_path, **QUIET).fit(module, Waves(samples=20))
    [path] = tmp_path.rglob("*.ckpt")
    assert "model" not in torch.load(path, weights_only=True)["hyper_parameters"]
    again = Sine.load_from_checkpoint(path, model=Recurrent("mgu", 1, 5, num_layers=2))
    x = torch.randn(4, 2, 1)
    assert torch.equal(again(x), module(x))
    for wrong in (Recurrent("gru", 2, 5), Recurrent("gru", 1, 5, batch_first=True)):
        with pytest.raises(UserError, match=r"\[T, B, 1\]"):
            Sine(model=wrong)
    with pytest.raises(UserError, match="must not see"):
        CharLM(alphabet="ab", embedding=0, model=Recurrent("gru", 2, 5, bidirectional=True))


class Mine(pl.LightningModule):
    """Not one of ours: dropout makes it random, and the data are its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = Recurrent("gru", 2, 6)
        self.head = nn.Linear(6, 1)
        self.x = torch.randn(30, 7, 3)
        self.losses: list[float] = []
        self.killed_after = math.inf

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if len(self.losses) == self.killed_after:
            raise RuntimeError("killed")
        output, _ = self.layer(batch[:, :, :2].transpose(0, 1))
        loss = F.mse_loss(self.head(F.dropout(output, 0.5)), batch[:, :, 2:].transpose(0, 1))
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.layer(batch[:, :, :2].transpose(0, 1))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-2)

    def train_dataloader(self) -> Any:
        return Batches(
            lambda epoch: shuffled(len(self.x), 5, seed=1, epoch=epoch),
            lambda rows: self.x[rows],
            lambda: position(self.trainer),
        )

    def val_dataloader(self) -> Any:
        return Batches(lambda epoch: [slice(0, 8)], lambda rows: self.x[rows])


def test_any_module_goes_on_within_its_epoch(tmp_path: Path) -> None:
    """Six batches an epoch: the run that ended after the fourth has the losses of one that went through."""

    def train(folder: str, resumed: Path | None = None, killed_after: float = math.inf) -> Mine:
        module = Mine()
        module.killed_after = killed_after
        keep = ExactResume(tmp_path / folder / "last.ckpt", every_n_steps=4, seed=7)
        trainer = pl.Trainer(callbacks=[keep], default_root_dir=tmp_path, max_epochs=2, **QUIET)
        with pytest.raises(RuntimeError, match="killed") if killed_after < math.inf else nullcontext():
            trainer.fit(module, ckpt_path=resumed)
        return module

    whole = train("whole")
    first = train("halves", killed_after=4)
    rest = train("halves", tmp_path / "halves" / "last.ckpt")
    assert first.losses + rest.losses == whole.losses
    for mine, other in zip(whole.parameters(), rest.parameters()):
        assert torch.equal(mine, other)


def test_pictures_of_any_module(tmp_path: Path) -> None:
    pl.Trainer(callbacks=[Pictures()], max_epochs=1, default_root_dir=tmp_path, **QUIET).fit(Mine())
    assert {path.name for path in tmp_path.glob("plots/*")} == {"gradient_flow_epoch_001.png", "gates_epoch_001.png"}


class Windows(CarriedState, pl.LightningModule):
    """Counts time steps: the state is the sum of all inputs so far."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Recurrent("rnn", 1, 1)
        self.sums: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        before = self.carried
        output, state = self.layer(batch, before)
        self.carry(state)
        assert before is None or not before.requires_grad
        self.sums.append(0.0 if before is None else float(before.detach()))
        return output.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.0)


def test_any_module_carries_its_state(tmp_path: Path) -> None:
    """Windows in turn equal one long sequence; each epoch begins anew."""
    module, x = Windows(), torch.randn(6, 1, 1)
    batches = Batches(lambda epoch: [0, 2, 4], lambda start: x[start : start + 2])
    pl.Trainer(max_epochs=2, default_root_dir=tmp_path, **QUIET).fit(module, batches)
    output = module.layer(x)[0].detach().flatten()
    expected = [0.0, float(output[1]), float(output[3])]
    assert module.sums == pytest.approx(expected + expected)
    [path] = tmp_path.rglob("*.ckpt")
    assert torch.load(path, weights_only=True)["carried"][0].flatten().tolist() == pytest.approx([float(output[5])])


def test_defaults_are_those_of_the_choices() -> None:
    """What a task takes by default stands in its constructor and, for people to see and change, in its YAML."""
    import inspect

    from hydra.utils import get_class
    from omegaconf import OmegaConf

    from rnnzoo.lightning.arguments import parameters

    for path in (Path(__file__).parents[2] / "conf" / "task").glob("*.yaml"):
        task: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if "defaults" in task:  # a variant of another task
            continue
        known: dict[str, inspect.Parameter] = {}
        for key in ("module", "datamodule"):  # where both have an argument, the data's is the default
            known |= parameters(get_class(task[key]))
        for key, value in task.items():
            if key not in ("name", "datamodule", "module", "preset"):
                assert known[key].default == pytest.approx(value), f"{path.stem}.{key}"


def test_characters_are_read_when_they_are_wanted(tmp_path: Path) -> None:
    data = Characters(text=str(tmp_path / "text.txt"), window=4, streams=1, test_fraction=0.0)
    (tmp_path / "text.txt").write_text("abc" * 20)
    data.setup()
    assert data.alphabet == "abc"
    (tmp_path / "text.txt").unlink()
    data.setup("test")  # once is enough
