"""One run of several processes, whoever starts them: torchrun, SLURM's srun, or Lightning for a job of a sweep."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from omegaconf import OmegaConf
from ready import ready
from test_run import IMDB, SINE, refusal, summary

from rnnzoo.hydra.separate_process import run_separately
from rnnzoo.lightning.checkpoints import read_checkpoint
from rnnzoo.lightning.preempt import ALONE, EXIT_CODE
from rnnzoo.lightning.ranks import rank
from rnnzoo.tasks.char_lm import Characters
from rnnzoo.tasks.imdb import Sentiments
from rnnzoo.tasks.reviews import Reviews

__all__ = ["refusal"]  # a fixture

Refusal = Callable[..., str]
Train = Callable[..., Path]

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "1",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "1",
}
SRUN = {
    "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0",
    "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
}  # fmt: skip

CELL = """
import os, signal
from pathlib import Path
import torch
from rnnzoo import Cell, gate, register

calls = 0

@register("seen")
class Seen(Cell):
    W, U, b = gate()

    def step(self, x, h):
        global calls
        rank = os.environ.get("LOCAL_RANK")
        if rank is None:  # tried before the other processes are started
            return torch.tanh(x @ self.W + h @ self.U + self.b)
        calls += 1
        Path(__file__).with_name(f"seen_{self.hidden_size}_{rank}_{os.getpid()}").touch()
        if (calls, self.hidden_size, rank) == (7, 5, "0"):
            os.kill(os.getppid(), signal.SIGTERM)
        if (calls, self.hidden_size, rank) in ((1, 6, "0"), (19, 7, "1")):
            Path(__file__).with_name("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tanh(x @ self.W + h @ self.U + self.b)
"""


@pytest.fixture
def command(interpreter: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., Any]:
    """Runs that are killed, or that start others, are processes of their own from the start."""
    return interpreter


def free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


def one_run(python: list[str], folder: Path, alone: Path, commands: list[tuple[list[str], dict[str, str]]]) -> None:
    """Run Python twice at once, with arguments and variables: both must end well, and be one run like that `alone`."""
    folder.mkdir()
    processes = [
        subprocess.Popen(
            [*python, *arguments], cwd=folder, env=os.environ | variables, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for arguments, variables in commands
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    assert said[0][0].count("│ all ") == 1 and said[1][0] == ""  # one table of parameters
    assert not any(word in error for _, error in said for word in ("Traceback", "Warning")), said

    [run] = folder.glob("outputs/*/*/*")
    assert [path.name for path in folder.iterdir()] == ["outputs"]
    assert (run / ".hydra" / "config.yaml").is_file()
    assert summary(run)["metrics"] == pytest.approx(summary(alone)["metrics"], abs=1e-4)
    ours, theirs = (read_checkpoint(f / "checkpoints" / "last.ckpt")["state_dict"] for f in (run, alone))
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_torchrun(python: list[str], tmp_path: Path, train: Train) -> None:
    """Two nodes, both of them here. Gradients are gathered over two batches of 9 or 8 windows, five an epoch.

    The first node's torchrun holds the store in which both wait for each other's end. It may be gone before the second
    has read there that it may go, which that one logs with a traceback, and ends well: the log of torchrun is off.
    """
    arguments = (*SINE, "task.samples=43", "task.batch_size=9", "trainer.accumulate_grad_batches=2")
    nodes = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    script = [str(ROOT / "train.py"), *arguments, "hardware=multi_node", "hardware.accelerator=cpu"]
    commands = [["-m", "torch.distributed.run", f"--node-rank={node}", *nodes, *script] for node in (0, 1)]
    one_run(python, tmp_path / "here", train(*arguments), [(command, {"LOGLEVEL": "CRITICAL"}) for command in commands])


@pytest.mark.slow
def test_srun(python: list[str], tmp_path: Path, reviews: Path, train: Train) -> None:
    """Both processes come upon an empty cache at the same time."""
    arguments = (*IMDB, f"task.data={reviews}")
    script = [str(ROOT / "train.py"), *arguments, "hardware=slurm", "hardware.accelerator=cpu"]
    common = SRUN | {"MASTER_PORT": free_port(), "RNNZOO_CACHE": str(tmp_path / "cache")}
    tasks = [common | {"SLURM_PROCID": task, "SLURM_LOCALID": task} for task in ("0", "1")]
    one_run(python, tmp_path / "here", train(*arguments, "hardware=cpu"), [(script, task) for task in tasks])


@pytest.mark.slow
def test_each_job_of_a_sweep_has_processes_of_its_own(
    tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Of three jobs the first ends well, and during the second a signal comes to the sweep."""
    (tmp_path / "cell.py").write_text(CELL)
    own = (f"cells={tmp_path / 'cell.py'}", "model=seen", "model.hidden_size=4,5,6", "trainer.max_epochs=1")
    sweep = tmp_path / "sweep"
    done = command("train.py", "-m", *SINE, *own, "hardware=cpu_ddp", f"hydra.sweep.dir={sweep}", timeout=200)
    assert done.returncode == EXIT_CODE, done.stderr
    told = [line for line in done.stderr.splitlines() if "Initializing distributed" not in line]
    assert len(told) == 1 and f"resume={sweep / '1'}" in told[0], told

    seen = [path.name.split("_")[1:] for path in tmp_path.glob("seen_*")]
    assert sorted((size, number) for size, number, _ in seen) == [("4", "0"), ("4", "1"), ("5", "0"), ("5", "1")]
    assert len({process for *_, process in seen}) == 4
    assert sorted(path.name for path in sweep.glob("[0-9]")) == ["0", "1"]
    assert (sweep / "0" / "summary.json").is_file()
    assert (sweep / "1" / "checkpoints" / "last.ckpt").is_file() and not (sweep / "1" / "summary.json").exists()
    for job, size in (("0", 4), ("1", 5)):
        assert OmegaConf.load(sweep / job / ".hydra" / "config.yaml").model.hidden_size == size


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "code"), [("0", -signal.SIGKILL), ("1", ALONE)])
def test_of_two_processes_one_is_killed(
    victim: str, code: int, tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Before the first checkpoint, or after it: the other one ends, too, and says how to go on."""
    (tmp_path / "cell.py").write_text(CELL)
    own = [f"cells={tmp_path / 'cell.py'}", "model=seen", f"model.hidden_size={6 + int(victim)}"]
    run = tmp_path / "run"
    own += ["hardware=cpu_ddp", f"hydra.run.dir={run}", "checkpoint.every_n_steps=1"]
    done = command("train.py", *SINE, *own, timeout=200)  # until nobody holds its stderr
    late = time.time() - (tmp_path / "killed").stat().st_mtime
    told = [line for line in done.stderr.splitlines() if "Initializing distributed" not in line]
    assert (done.returncode, len(told)) == (code, 1) and late < 30, (told, late)
    what, how = ("is gone", "run the same command again"), ("was killed by SIGKILL", f"resume={run} cells=")
    words = (f"process {victim} of the run", *(how if victim == "1" else what))
    assert all(word in told[0] for word in words), told


def test_how_a_job_in_a_process_of_its_own_may_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".hydra").mkdir()
    program = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(program))

    def ends_with(code: int, **sweep: object) -> list[str]:
        program.write_text(f"#!/bin/sh\n[ {code} -ge 0 ] && exit {code}\nkill {code} $$\n")
        program.chmod(0o755)
        return run_separately(OmegaConf.create({"seed": 1, **sweep}), tmp_path)

    assert ends_with(0) == []
    [line] = ends_with(1)
    assert str(tmp_path) in line
    with pytest.raises(SystemExit) as end:
        ends_with(EXIT_CODE)
    assert end.value.code == EXIT_CODE
    capsys.readouterr()
    [line] = ends_with(-9)
    assert capsys.readouterr().err == f"error: {line}\n" and "its process was killed by SIGKILL; run it again" in line
    with pytest.raises(RuntimeError, match="its process ended with exit code 3; run it again"):
        ends_with(3, sweep={"trial": 1})


# What has been started must be what is asked for


@pytest.fixture
def under(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """`under({...})` sets environment variables."""

    def set_all(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize(("variables", "by"), [(TORCHRUN, "torchrun"), (SRUN, "srun")])
def test_a_sweep_in_several_processes_is_refused(
    variables: dict[str, str], by: str, under: Callable[..., None], refusal: Refusal
) -> None:
    under(variables)
    error = refusal("-m", *SINE, "seed=1,2")
    assert f"{by} has started 2 processes" in error and f"without {by}" in error and "hardware=cpu_ddp" in error


@pytest.mark.parametrize(
    ("variables", "hardware", "said"),
    [
        (TORCHRUN, "cpu", ["asks for 1 on each of 1", "torchrun has started 2 on each of 1", "hardware=multi_node"]),
        (SRUN, "cpu", ["asks for 1 on each of 1", "srun has started 2 on each of 1", "hardware=slurm"]),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "2"}, "cpu", ["torchrun has started 1 on each of 2"]),
        ({}, "multi_node", ["torchrun", "hardware=cpu_ddp"]),
        ({}, "slurm", ["srun", "--ntasks-per-node"]),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, "slurm", ["SLURM_NTASKS=2", "--ntasks-per-node"]),
    ],
)  # fmt: skip
def test_hardware_that_was_not_started_is_refused(
    variables: dict[str, str], hardware: str, said: list[str], under: Callable[..., None], refusal: Refusal
) -> None:
    under(variables)
    error = refusal(*SINE, f"hardware={hardware}")
    assert all(part in error for part in said), error


def test_other_nodes_must_be_started(refusal: Refusal) -> None:
    assert "hardware.num_nodes=2" in refusal(*SINE, "hardware=cpu_ddp", "+hardware.num_nodes=2")


def test_who_is_process_0(under: Callable[..., None]) -> None:
    assert rank() == 0
    under({"LOCAL_RANK": "3"})
    assert rank() == 3
    under(SRUN | {"SLURM_PROCID": "5", "SLURM_LOCALID": "0"})
    assert rank() == 5
    under({"SLURM_JOB_NAME": "interactive"})  # in a shell, SLURM's variables are the shell's
    assert rank() == 3
    under(TORCHRUN | {"RANK": "4", "LOCAL_RANK": "0"})  # torchrun may run within SLURM
    assert rank() == 4


# Shares


@pytest.fixture
def as_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`as_process(r)` makes the data's shares those of the r-th of two processes."""
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    return lambda number: monkeypatch.setattr("torch.distributed.get_rank", lambda: number)


def test_every_review_is_read_once_and_in_its_batch(reviews: Path, as_process: Callable[[int], None]) -> None:
    data = ready(Sentiments(str(reviews), vocabulary=50, maxlen=30, batch_size=7, pool=2, val_fraction=0.2, seed=1))

    def read(words: torch.Tensor, label: torch.Tensor) -> tuple[object, ...]:
        return (*words.tolist(), bool(label))

    def all_of(part: Reviews) -> Counter[tuple[object, ...]]:
        return Counter(read(part[row], part.labels[row]) for row in range(len(part.labels)))

    loaders = {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}
    for name, loader in loaders.items():
        found: Counter[tuple[object, ...]] = Counter()
        for rows in loader.plan(3):
            sizes = []
            for number in (0, 1):
                as_process(number)
                batch = loader.fetch(rows)
                found.update(read(w[:n], y) for w, n, y in zip(batch.words.T, batch.lengths, batch.labels))
                sizes.append(len(batch.labels))
            assert sum(sizes) == len(rows) and abs(sizes[0] - sizes[1]) <= 1
        assert found == all_of(getattr(data, name))


def test_every_stream_goes_on_in_its_process(as_process: Callable[[int], None]) -> None:
    data = ready(Characters(corpus="hello", text=None, window=20, streams=7, val_fraction=0.1, test_fraction=0.1))
    loader = data.train_dataloader()
    streams = []
    for number in (0, 1):
        as_process(number)
        windows = [loader.fetch(start) for start in loader.plan(0)]
        for earlier, later in pairwise(windows):
            assert torch.equal(earlier[:, -1], later[:, 0])  # the last target is the next window's first input
        streams += torch.cat([windows[0][:, :1], *(window[:, 1:] for window in windows)], 1).tolist()
    assert sorted(streams) == sorted(data.train[:, : len(streams[0])].tolist()) and len(streams) == 7
    assert data.train.shape[1] - len(streams[0]) < 20
