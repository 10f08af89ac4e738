"""What Lightning and a run's own callbacks cost: training as a run does it beside a bare loop of the same steps."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir

from rnnzoo.errors import UserError, nearest
from rnnzoo.hydra.command_line import CONF
from rnnzoo.hydra.models import register_models
from rnnzoo.hydra.settings import resolve
from rnnzoo.hydra.task_classes import find_class
from rnnzoo.hydra.trainer import build_trainer, find_callback
from rnnzoo.lightning.arguments import build
from rnnzoo.lightning.records import Clock, MetricsCSV


class Throughput(NamedTuple):
    """Milliseconds a training step and their ratio, each the median of rounds in which both took their turn."""

    task: str
    trained: float
    bare: float
    ratio: float


def measure(task: str, rounds: int = 5, *overrides: str) -> Throughput:
    """Time an epoch of a task with its default model, with Lightning and without; neither validation nor test is timed.

    `overrides` are those of `rnnzoo train`. Raises `UserError` for an unknown task.
    """
    tasks = sorted(path.stem for path in (CONF / "task").glob("*.yaml"))
    if task not in tasks:
        raise UserError(f"--train {task}: no such task; {nearest(task, tasks)}")
    register_models(None)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"), tempfile.TemporaryDirectory() as folder:
        always = (f"task={task}", "hardware=cpu", "trainer.max_epochs=1", "trainer.limit_val_batches=1")
        settings = resolve(compose("config", overrides=[*always, *overrides]), Path(folder))
        known = {key: settings[key] for key in ("model", "optimizer", "engine", "seed")}
        data = build(find_class(settings["task"], "datamodule"), {**settings["task"], **known}, "task")
        data.prepare_data()
        data.setup()
        kind = find_class(settings["task"], "module")
        timed: tuple[list[float], list[float]] = [], []
        for number in range(rounds + 1):
            for times, train in zip(timed, (with_lightning, bare)):
                torch.manual_seed(settings["seed"])
                module = build(kind, {**settings["task"], **known, **data.facts()}, "task")
                module.expect(settings["task"]["preset"]["max_epochs"] * len(data.train_dataloader()))
                taken = train(module, data, settings, Path(folder) / f"{train.__name__}{number}")
                if number:  # the first round compiles
                    times.append(taken)
    trained, plain = timed
    ratio = median(a / b for a, b in zip(trained, plain))
    return Throughput(task, 1000 * median(trained), 1000 * median(plain), ratio)


def with_lightning(module: Any, data: Any, settings: dict[str, Any], folder: Path) -> float:
    """Seconds a step of `Trainer.fit` with all that a run brings along, checkpoints included."""
    trainer = build_trainer(settings, folder, MetricsCSV(folder), module.monitor)
    clock = find_callback(trainer, Clock)
    trainer.fit(module, data)
    return clock.training / clock.steps


def bare(module: Any, data: Any, settings: dict[str, Any], folder: Path) -> float:
    """Seconds a step of the plainest loop that does the same to the weights."""
    module.training_loss = lambda loss, count: loss  # what is left out of it is the logging
    batches, clip = data.train_dataloader(), settings["trainer"]["gradient_clip_val"]
    parameters = list(module.parameters())
    optimizer = module.make_optimizer(parameters)
    steps = len(batches)
    end = 0.0 if settings["optimizer"]["schedule"] == "linear" else 1.0
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, end, total_iters=steps)
    module.train().on_train_epoch_start()
    start = time.perf_counter()
    for number, key in enumerate(batches.plan(0)):
        optimizer.zero_grad()
        loss = module.training_step(batches.fetch(key), number)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        scheduler.step()
    return (time.perf_counter() - start) / steps
