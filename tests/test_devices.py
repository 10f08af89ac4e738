"""Layers and tasks stay on the device that they are given, and never wait for it while they train.

No GPU is needed: tensors of torch's device "meta" have no numbers, so that whatever mixes devices, looks at a number,
or copies one to the host raises. Nor does it have double precision here, as MPS has none.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from digits import write_digits, write_photographs
from hydra import compose, initialize_config_dir
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rnnzoo import Recurrent, UserError, cell, list_cells
from rnnzoo.hydra.command_line import CONF
from rnnzoo.hydra.models import register_models
from rnnzoo.hydra.settings import resolve
from rnnzoo.hydra.task_classes import find_class
from rnnzoo.lightning.arguments import build
from rnnzoo.tasks.char_lm import Characters, CharLM

T, B, I, H = 3, 4, 5, 8  # noqa: E741  I is the input size everywhere in this project

META = torch.device("meta")

OPTIONS: dict[str, dict[str, Any]] = {
    "dropped": {"recurrent_dropout": 0.2, "zoneout": 0.2, "num_layers": 2, "dropout": 0.2},
    "normed": {"layer_norm": True, "projection": 3, "learn_initial_state": True},
    "deep": {"block": "glu", "num_layers": 2, "bidirectional": True, "dropout": 0.2},
    "in pieces": {"checkpoint_every": 2, "residual": True, "num_layers": 2, "projection": I},
}


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


DOUBLE = (torch.float64, torch.complex128)


class Single(TorchDispatchMode):
    """The device has single precision only."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and tensor.device == META and tensor.dtype in DOUBLE:
                raise TypeError(f"{func} makes numbers in double precision on a device that has none")
        return found


@pytest.fixture(autouse=True)
def single(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cell, "NO_FLOAT64", ("mps", "meta"))
    with Single():
        yield


def test_there_is_no_double_precision() -> None:
    with pytest.raises(TypeError, match="double precision"):
        torch.zeros(3, device=META).double()


def differentiated(layer: Recurrent, *arguments: Any, **keywords: Any) -> None:
    output, state = layer(*arguments, **keywords)
    output = output if isinstance(output, Tensor) else output.data
    states = (state,) if isinstance(state, Tensor) else state
    assert all(t.device == META for t in (output, *states))
    if output.requires_grad:
        output.sum().backward()
    assert all(p.grad is None or p.grad.device == META for p in layer.parameters())


@pytest.mark.parametrize("name", list_cells())
def test_layers(name: str) -> None:
    layer = Recurrent(name, I, H, bidirectional=True, engine="reference").to(META)
    x = torch.randn(T, B, I, device=META, requires_grad=True)
    lengths = torch.randint(1, T + 1, (B,), device=META)
    resets = torch.rand(T, B, device=META) < 0.3
    differentiated(layer, x)
    differentiated(layer, x, lengths=lengths, resets=resets)


@pytest.mark.parametrize("name", ["lstm", "mgu"])
@pytest.mark.parametrize("options", OPTIONS)
def test_options(name: str, options: str) -> None:
    layer = Recurrent(name, I, H, engine="reference", **OPTIONS[options]).to(META)
    x = torch.randn(T, B, I, device=META)
    differentiated(layer, x, lengths=torch.randint(1, T + 1, (B,), device=META))
    differentiated(layer, x, lengths=[T, 1, 2, 3])


def test_packed_sequences() -> None:
    layer = Recurrent("gru", I, H, bidirectional=True, engine="reference").to(META)
    packed = pack_padded_sequence(torch.randn(T, B, I), torch.tensor([3, 2, 2, 1])).to(META)
    differentiated(layer, packed)


@pytest.mark.parametrize("name", list_cells())
def test_cells_are_made_on_the_default_device(name: str) -> None:
    with META:
        layer = Recurrent(name, I, H, layer_norm=False, learn_initial_state=True)
    assert all(t.device == META for t in (*layer.parameters(), *layer.buffers()))


def test_lengths_that_are_looked_at_on_their_device() -> None:
    layer = Recurrent("gru", I, H, engine="reference").to(META)
    with pytest.raises(UserError, match="lengths must be 4 integers"):
        layer(torch.randn(T, B, I, device=META), lengths=torch.ones(3, device=META))


TASKS = {
    "char_lm": ["task.corpus=hello"],
    "imdb": ["task.data={reviews}"],
    "smnist": ["task.data={digits}", "task.batch_size=20"],
    "psmnist": ["task.data={digits}", "task.batch_size=20"],
    "scifar": ["task.data={photographs}", "task.batch_size=20", "task.steps=40"],
}
"""What a task needs so that its data are small and at hand."""


@pytest.mark.parametrize("task", sorted(path.stem for path in (CONF / "task").glob("*.yaml")))
def test_tasks(task: str, reviews: Path, tmp_path: Path) -> None:
    """Two training steps as Lightning has them: the batch is moved, and nothing else."""
    digits = write_digits(tmp_path / "digits", train=100, test=60)
    photographs = write_photographs(tmp_path / "cifar.tar.gz", train=20, test=60) if task == "scifar" else None
    own = [override.format(reviews=reviews, digits=digits, photographs=photographs) for override in TASKS.get(task, ())]
    register_models(None)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        chosen = compose("config", overrides=[f"task={task}", "model.hidden_size=4", "hardware=cpu", *own])
        settings = resolve(chosen, tmp_path)
    known = {key: settings[key] for key in ("model", "optimizer", "seed")} | {"engine": "reference"}
    data = build(find_class(settings["task"], "datamodule"), {**settings["task"], **known}, "task")
    data.prepare_data()
    data.setup()
    module = build(find_class(settings["task"], "module"), {**settings["task"], **known, **data.facts()}, "task")
    module.training_loss = lambda loss, count: loss
    module.to(META)
    module.on_train_epoch_start()
    batches = data.train_dataloader()
    for number, key in enumerate(batches.plan(0)[:2]):
        batch = apply_to_collection(batches.fetch(key), Tensor, lambda t: t.to(META))
        loss = module.training_step(batch, number)
        assert loss.device == META
        loss.backward()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_for_a_gpu_are_pinned(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: pinned.append(self) or self.clone())
    data = Characters("hello")
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    batch = Pair(torch.zeros(3), torch.ones(2))
    found = data.on_before_batch_transfer(batch, 0)
    assert isinstance(found, Pair) and len(pinned) == (2 if device == "cuda" else 0)
    torch.testing.assert_close(found, batch)


def test_a_carried_state_follows_its_module() -> None:
    """As in a run that is resumed within an epoch: its checkpoint lies on the CPU."""
    module = CharLM(alphabet="ab", model={"cell": "gru", "hidden_size": 3})
    module.carry(torch.zeros(1, 2, 3))
    module.to(META)
    assert module.carried.device == META
    module.training_loss = lambda loss, count: loss
    assert module.training_step(torch.zeros(2, 5, dtype=torch.long, device=META), 1).device == META


def test_make_gpu_ends_in_one_line_where_there_is_none(
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = command("tests/gpu.py", env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("\n") == 1 and "finds no CUDA device here, so there is nothing to measure" in done.stdout
