"""None of a run's processes outlives another, and each ends when it is told to, whatever its main thread waits for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from rnnzoo import UserError
from rnnzoo.lightning.framework import pl
from rnnzoo.lightning.guard import PARENT, ended
from rnnzoo.lightning.preempt import ALONE, EXIT_CODE, Gone
from rnnzoo.lightning.together import together

SCRIPT = '''
import ctypes, os, subprocess, sys, time
from rnnzoo.lightning import guard, preempt
from rnnzoo.lightning.guard import PARENT
from rnnzoo.lightning.preempt import heeding_signals, watch

preempt.AT_ONCE = preempt.LONGEST_WAIT = guard.LONGEST_MEETING = 1.0

def say_who():
    line = os.environ.get("LOCAL_RANK", "0") + " " + str(os.getpid()) + chr(10)
    os.write(1, line.encode())  # in one piece: several processes write here

def wait_in_compiled_code():
    """As in gloo, where no signal wakes it."""
    say_who()
    lock = ctypes.create_string_buffer(128)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(lock)

class Launcher:
    procs = []

def start(rank):
    """Another process, as Lightning starts them: with the same command."""
    watch.alone, watch.guard.launcher = False, Launcher
    variables = {**os.environ, "LOCAL_RANK": str(rank), PARENT: str(os.getpid())}
    Launcher.procs.append(subprocess.Popen([sys.executable, *sys.argv], env=variables))

def swallow():
    say_who()
    try:
        time.sleep(60)
    except BaseException:
        time.sleep(60)

def make_another_error_of_it():
    say_who()
    try:
        time.sleep(60)
    except BaseException:
        raise ImportError("cannot load module more than once per process")

def long_step():
    watch.patient = True
    say_who()
    time.sleep(4)
    watch.patient = False
    raise preempt.Preempted

def one_of(count):
    if "LOCAL_RANK" not in os.environ:
        for rank in range(1, count):
            start(rank)
    wait_in_compiled_code()

def meet():
    """Where the others never come."""
    os.environ.update(MASTER_ADDR="node1", MASTER_PORT="29500")
    watch.guard.meeting = time.monotonic()
    wait_in_compiled_code()

def refused():
    if "LOCAL_RANK" in os.environ:
        say_who()
        sys.exit("error: no")
    one_of(2)

def work():
    """Of two, the one that has been started takes longer."""
    if "LOCAL_RANK" not in os.environ:
        start(1)
    say_who()
    time.sleep(2 if "LOCAL_RANK" in os.environ else 0)

with heeding_signals():
    eval(sys.argv[1])
'''

Start = Callable[[str, int], tuple["subprocess.Popen[str]", dict[int, int]]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start("one_of(2)", 2)` is the first of two processes, and the number of each with its process's."""
    pids: dict[int, int] = {}
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(call: str, count: int = 1) -> tuple[subprocess.Popen[str], dict[int, int]]:
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "script.py"), call], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert process.stdout is not None
        pids.update(tuple(map(int, process.stdout.readline().split())) for _ in range(count))
        return process, pids

    yield run
    for pid in pids.values():
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_end(pids: Iterable[int]) -> bool:
    """All of these processes, within half a minute."""
    deadline = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


def told(process: subprocess.Popen[str], code: int, line: str) -> None:
    """All that hold its stderr have ended long before a minute is over, with one line."""
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (code, line + "\n" if line else "")


AGAIN = "run the same command again"


@pytest.mark.parametrize("call", ["wait_in_compiled_code()", "swallow()", "make_another_error_of_it()", "long_step()"])
def test_a_signal_to_a_single_process(call: str, start: Start) -> None:
    """Also one that its main thread cannot hear, or that somebody's `except` swallows or raises as something else, as
    imports do; steps are waited for."""
    process, _ = start(call, 1)
    process.send_signal(signal.SIGTERM)
    told(process, EXIT_CODE, f"ended by SIGTERM; {AGAIN}")


@pytest.mark.parametrize("patient", [True, False])
def test_a_signal_to_one_of_two_that_wait_for_each_other(patient: bool, start: Start) -> None:
    process, pids = start(f"setattr(watch, 'patient', {patient}) or one_of(2)", 2)
    os.kill(pids[1], signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    told(process, EXIT_CODE, f"ended by SIGTERM; {AGAIN}")
    assert all_end(pids.values())


@pytest.mark.parametrize("count", [2, 3])
def test_the_first_process_is_killed(count: int, start: Start) -> None:
    process, pids = start(f"one_of({count})", count)
    process.kill()
    told(process, -signal.SIGKILL, f"process 0 of the run is gone; {AGAIN}")
    assert all_end(pids.values())


@pytest.mark.parametrize("number", [1, 2])
def test_another_process_is_killed(number: int, start: Start) -> None:
    process, pids = start("one_of(3)", 3)
    os.kill(pids[number], signal.SIGKILL)
    told(process, ALONE, f"process {number} of the run was killed by SIGKILL; {AGAIN}")
    assert all_end(pids.values())


def test_ctrl_c_comes_to_all(start: Start) -> None:
    process, pids = start("one_of(2)", 2)
    for pid in pids.values():
        os.kill(pid, signal.SIGINT)
    told(process, 130, f"interrupted; {AGAIN}")
    assert all_end(pids.values())


def test_another_process_is_refused(start: Start) -> None:
    process, _ = start("refused()", 2)
    told(process, 1, f"error: no\nprocess 1 of the run ended with exit code 1; {AGAIN}")


def test_the_others_never_come(start: Start) -> None:
    process, _ = start("meet()", 1)
    told(process, ALONE, f"the processes of the run did not all meet at node1:29500 within 1 s; {AGAIN}")


def test_the_others_come_to_their_own_end(start: Start) -> None:
    process, pids = start("work()", 2)
    told(process, 0, "")
    assert all_end(pids.values())


def test_how_processes_end() -> None:
    assert [ended(code) for code in (3, -9, -250)] == [
        "ended with exit code 3", "was killed by SIGKILL", "was killed by signal 250",
    ]  # fmt: skip


def test_errors_of_torch_become_what_they_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    monkeypatch.setenv("MASTER_PORT", "29500")
    cases: list[tuple[Exception, type[BaseException], str]] = [
        (torch.distributed.DistNetworkError("listen failed, name: EADDRINUSE"), UserError, "MASTER_PORT=29500"),
        (torch.distributed.DistNetworkError("Connection reset"), Gone, "process of the run is gone"),
        (RuntimeError("[x/gloo/transport/tcp/pair.cc:537] Connection closed by peer"), Gone, "closed by peer"),
        (RuntimeError("mat1 and mat2"), RuntimeError, "mat1"),
    ]
    for raised, kind, words in cases:
        with pytest.raises(kind, match=words), together(trainer):
            raise raised
    assert PARENT not in os.environ
