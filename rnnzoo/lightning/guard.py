"""A thread that sees what the main one cannot while that waits in compiled code, perhaps for a process that is gone.

Nothing here imports torch or Lightning, so that signals are heeded while those are still being read.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rnnzoo.lightning.ranks import rank, started

PARENT = "RNNZOO_PARENT"
"""The variable that tells a process whom it must not outlive."""

PERIOD = 0.5
"""Seconds between two looks."""

ENDING = 10.0
"""Seconds that the processes which this one has started are given to end after it has done its work."""

LONGEST_MEETING = 300.0
"""Seconds that the processes of a run are given to find each other; torch would wait for half an hour."""


class Guard(threading.Thread):
    """Looks for signals, for the end of the process that has started this one, and of those that this one has started.

    Args:
        told: called at each look once a signal has come, with its number and the seconds since.
        gone: called with what has ended, and its exit code if that is known.

    Attributes:
        launcher: Lightning's, from which its processes are taken over: its own observer would kill this one at the
            death of another without a word.
        meeting: when this process began to look for the others of its run; None when it does not.
        parent: the process that this one must not outlive.
    """

    def __init__(self, told: Callable[[int, float], None], gone: Callable[[str, int | None], None]) -> None:
        super().__init__(name="guard", daemon=True)
        self.told, self.gone = told, gone
        self.launcher: Any = None
        self.meeting: float | None = None
        self.children: list[subprocess.Popen[Any]] = []
        started_by_lightning = rank() > 0 and started() is None
        named = os.environ.pop(PARENT, None)
        self.parent = int(named) if named else os.getppid() if started_by_lightning else None
        self.over = threading.Event()

    def __enter__(self) -> Guard:
        self.ear, self.bell = socket.socketpair()
        for end in (self.ear, self.bell):
            end.setblocking(False)
        # Python rings at each signal that it handles, at once, though the handler waits for the main thread
        self.before = signal.set_wakeup_fd(self.bell.fileno(), warn_on_full_buffer=False)
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.over.set()
        self.join()
        signal.set_wakeup_fd(self.before)
        self.ear.close()
        self.bell.close()

    def run(self) -> None:
        first: tuple[int, float] | None = None
        while not self.over.wait(PERIOD):
            with suppress(BlockingIOError):
                first = first or (self.ear.recv(1)[0], time.monotonic())
            if first is not None:
                self.told(first[0], time.monotonic() - first[1])
            lost = self.lost()
            if lost is not None:
                self.gone(*lost)

    def lost(self) -> tuple[str, int | None] | None:
        """What has ended without which this process cannot go on, and its exit code if that is known."""
        if self.parent is not None and os.getppid() != self.parent:
            return ("process 0 of the run is gone" if rank() else "its sweep is gone"), None
        self.take_over()
        for number, child in enumerate(self.children, 1):
            code = child.poll()
            if code:
                return f"process {number} of the run {ended(code)}", code
        if self.meeting is not None and time.monotonic() - self.meeting > LONGEST_MEETING:
            place = ":".join(os.environ.get(f"MASTER_{part}", "?") for part in ("ADDR", "PORT"))
            return f"the processes of the run did not all meet at {place} within {LONGEST_MEETING:.0f} s", None
        return None

    def take_over(self) -> None:
        """Take the launcher's processes over."""
        started_here = getattr(self.launcher, "procs", [])
        while started_here and isinstance(started_here[0], subprocess.Popen):
            self.children.append(started_here.pop(0))

    def end_children(self) -> bool:
        """Kill the processes that this one has started, if it has."""
        self.take_over()
        for child in self.children:
            child.kill()
        return bool(self.children)

    def wait_for_children(self) -> None:
        """Let the processes that this one has started come to their own end."""
        self.take_over()
        for child in self.children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(ENDING)


def ended(code: int) -> str:
    """How a process ended, by its exit code."""
    if code > 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
