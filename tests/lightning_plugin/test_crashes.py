"""kill -9 at any moment: the run goes on, and ends as one that was never killed, bit for bit.

RNNZOO_CRASHES says how often; RESULTS.md has the counts of a hundred. Runs are forks of a process that has read torch,
so that they begin at once; the signal comes from outside, as any does.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import wraps
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from test_resume import same

from rnnzoo.lightning.checkpoints import read_checkpoint

CRASHES = int(os.environ.get("RNNZOO_CRASHES", "4"))

TASKS = {
    "sine": ("task.samples=40", "task.window=3", "task.batch_size=8", "task.horizon=2", "task.prefix=2",
             "trainer.max_epochs=3", "model=gru", "engine=serial"),
    "char_lm": ("task.corpus=hello", "task.window=5", "task.streams=4", "task.sample_length=3", "task.embedding=3",
                "task.restart=0.2", "trainer.max_epochs=2", "trainer.limit_train_batches=7", "model=lstm"),
    "imdb": ("task.batch_size=7", "task.pool=2", "task.embedding=4", "task.val_fraction=0.2", "trainer.max_epochs=2",
             "model=rnn", "engine=reference"),
    "names": ("task.batch_size=8", "task.embedding=4", "task.label_embedding=2", "task.samples=1", "model=mgu",
              "trainer.max_epochs=2", "engine=reference"),
}  # fmt: skip
COMMON = ("hardware=cpu", "model.hidden_size=3", "checkpoint.every_n_steps=2", "trainer.log_every_n_steps=1")

PHASES = {
    "training": ("pytorch_lightning.strategies:Strategy", "training_step"),
    "validation": ("pytorch_lightning.strategies:Strategy", "validation_step"),
    "test": ("pytorch_lightning.strategies:Strategy", "test_step"),
    "checkpoint": ("rnnzoo.lightning.checkpoints:AtomicCheckpointIO", "save_checkpoint"),
    "metrics.csv": ("rnnzoo.lightning.records:MetricsCSV", "save"),
    "summary": ("rnnzoo.hydra:summary", "finish"),
}
"""What a run is doing, by the functions that do it."""

Moment = tuple[str, float]
"""A phase that begins or, as "", ends, and when."""

FORKS = multiprocessing.get_context("forkserver")


def run(arguments: list[str], cache: str, log: Path, told: Connection) -> None:
    """In a process of its own: `rnnzoo train` with these arguments, telling of each phase as it begins and ends."""
    from rnnzoo.hydra.command_line import command
    from rnnzoo.hydra.train import main
    from rnnzoo.lightning.preempt import heeding_signals

    os.environ["RNNZOO_CACHE"] = cache
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    for phase, (place, name) in PHASES.items():
        module, _, attribute = place.partition(":")
        owner = getattr(import_module(module), attribute)
        setattr(owner, name, telling(getattr(owner, name), phase, told))
    sys.argv = [str(ROOT / "train.py"), *arguments]
    with heeding_signals():
        command(main)


def telling(function: Any, phase: str, told: Connection) -> Any:
    @wraps(function)
    def and_tells(*args: Any, **kwargs: Any) -> Any:
        told.send((phase, time.monotonic()))
        try:
            return function(*args, **kwargs)
        finally:
            told.send(("", time.monotonic()))

    return and_tells


class Run:
    """A run in a process of its own, and what it has told of itself."""

    def __init__(self, folder: Path, arguments: list[str], cache: str) -> None:
        self.log = folder.with_suffix(".log")
        self.began, self.moments = time.monotonic(), list[Moment]()
        self.told, theirs = FORKS.Pipe(duplex=False)
        self.process = FORKS.Process(target=run, args=(arguments, cache, self.log, theirs))
        self.process.start()
        theirs.close()

    def listen(self, count: int | None = None) -> None:
        """Hear of `count` moments, or of all that there are."""
        with suppress(EOFError, ConnectionResetError):
            while count is None or len(self.moments) < count:
                self.moments.append(self.told.recv())
            return
        self.process.join()

    def kill(self) -> str | None:
        """What it was doing when it was killed; None if it had ended."""
        self.process.kill()
        self.listen()
        assert self.process.exitcode in (0, -9), self.log.read_text()[-3000:]
        if self.process.exitcode == 0:
            return None
        return self.moments[-1][0] or "elsewhere" if self.moments else "start"

    def finish(self) -> None:
        self.listen()
        assert self.process.exitcode == 0, self.log.read_text()[-3000:]


def killed(run: Run, like: Run, chance: random.Random) -> str | None:
    """What `run` was doing when it was killed, at a random moment of a random phase of such runs, or at any moment."""
    phase = chance.choice([*PHASES, ""])
    begun = [k for k, (name, _) in enumerate(like.moments) if name == phase and phase]
    if begun:
        at = chance.choice(begun)
        run.listen(at + 1)
        time.sleep(chance.random() * (like.moments[at + 1][1] - like.moments[at][1]))
    else:
        time.sleep(max(0.0, chance.uniform(0, like.moments[-1][1] - like.began)))
    return run.kill()


def ended_alike(folder: Path, whole: Path) -> None:
    """Weights, the best ones too, metrics at every step and those of the test are the same, and nothing is left."""
    assert same(folder, whole)
    best, other = (read_checkpoint(run / "checkpoints" / "best.ckpt")["state_dict"] for run in (folder, whole))
    assert best.keys() == other.keys() and all(torch.equal(best[key], other[key]) for key in best)
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    ours, theirs = (json.loads((run / "summary.json").read_text()) for run in (folder, whole))
    assert all(ours[key] == theirs[key] for key in ("metrics", "best_epoch", "epochs", "steps"))
    names = [sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (folder, whole)]
    assert names[0] == names[1]


@pytest.mark.slow
def test_killed_and_gone_on_with(
    tmp_path: Path, reviews: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to three kills a run."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent))))
    FORKS.set_forkserver_preload(
        ["rnnzoo.hydra.run", "rnnzoo.hydra.train", "test_crashes", *(f"rnnzoo.tasks.{name}" for name in TASKS)]
    )
    chance, counts, finished = random.Random(1), Counter[str](), 0
    wholes: dict[str, tuple[Path, Run]] = {}
    arguments = {name: [f"task={name}", *own, *COMMON] for name, own in TASKS.items()}
    arguments["imdb"].append(f"task.data={reviews}")
    arguments["names"].append(f"task.data={tmp_path / 'lists'}")
    (tmp_path / "lists").mkdir()
    for label in ("oak", "elm"):
        (tmp_path / "lists" / f"{label}.txt").write_text(
            "\n".join(label[: k % 3] + "abcd" * (k % 4) + str(k) for k in range(30))
        )
    while counts.total() < CRASHES:
        name = list(TASKS)[finished % len(TASKS)]
        if name not in wholes:
            whole = tmp_path / name
            wholes[name] = whole, Run(whole, [*arguments[name], f"hydra.run.dir={whole}"], str(own_cache))
            wholes[name][1].finish()
        folder, number = tmp_path / f"{name}_{finished}", 0
        while True:
            here = (folder / "checkpoints" / "last.ckpt").is_file()
            given = [f"resume={folder}"] if here else [*arguments[name], f"hydra.run.dir={folder}"]
            run = Run(folder, given, str(own_cache))
            number += 1
            if number > 3 or counts.total() == CRASHES:
                run.finish()
                break
            phase = killed(run, wholes[name][1], chance)
            if phase is None:
                break
            counts[phase] += 1
            print(f"{name}: killed in {phase}", flush=True)
        ended_alike(folder, wholes[name][0])
        finished += 1
    print(f"{counts.total()} kills in {finished} runs: {dict(counts)}")
