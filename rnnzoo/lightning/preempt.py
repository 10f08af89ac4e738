"""Ending in good order when a scheduler or a person wants it: what SIGTERM, SIGUSR1 and Ctrl-C do to a run.

While it trains, a run finishes its optimizer step and writes last.ckpt; at any other time it ends at once. It says how
to go on and ends with an exit code of its own. The signal comes to one process or to all of them: they agree after
each step. Nothing here imports torch or Lightning, so that signals are heeded while those are still being read.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

from rnnzoo.lightning.ranks import rank
from rnnzoo.plain import printable

EXIT_CODE = 85
"""Of a run that a signal ended. Linux's ERESTART; Python ends with 1, 2 or 120, a shell with 126, 127 or 128 + n, and
programs that follow sysexits.h with 64 to 78."""

INTERRUPTED = 130
"""Of one that Ctrl-C ended: 128 and the number of SIGINT, as shells have it."""

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))

ONE_SIGNAL = 1.0
"""Seconds in which further signals are taken for the first: schedulers send two kinds, or both to a group and to each
of its processes."""

LONGEST_WAIT = 30.0
"""Seconds that one of several processes waits for the others, which may be gone."""


class Preempted(BaseException):
    """A signal ends the run. It is nobody's error, so that whoever catches those lets it pass."""


class Launcher(Protocol):
    """What has started the other processes of a run, if this one has."""

    def kill(self, signum: signal.Signals) -> None: ...


class Watch:
    """What this process knows of signals, and whether it is worth waiting for the end of a step.

    Attributes:
        received: the signal that is to end the run.
        patient: whether steps have been taken that no checkpoint has, but the next one will.
        listening: whether signals are heeded.
        last: the run's last.ckpt.
        launcher: of the run's other processes.
        alone: whether the run is one process.
        cells: a person's own code, which has to be named again.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.at = 0.0
        self.patient = self.listening = False
        self.last: Path | None = None
        self.launcher: Launcher | None = None
        self.alone = True
        self.cells: str | None = None

    @property
    def code(self) -> int:
        """The exit code; 0 for a process that another will end with, because Lightning kills all when one fails."""
        if rank() > 0:
            return 0
        return INTERRUPTED if self.received == signal.SIGINT else EXIT_CODE

    def heed(self) -> None:
        """Take the signals over, also from Lightning, whose handler talks to other processes in mid-step."""
        if self.listening:
            for signum in SIGNALS:
                signal.signal(signum, self.notice)

    def notice(self, signum: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.received is not None:
            if time.monotonic() - self.at > ONE_SIGNAL:
                os._exit(self.code)
            return
        self.received, self.at = signal.Signals(signum), time.monotonic()
        if not self.alone:
            timer = threading.Timer(LONGEST_WAIT, os._exit, [self.code])
            timer.daemon = True
            timer.start()
        if not self.patient:
            raise Preempted

    def report(self) -> None:
        """Say on stderr how to go on."""
        name = self.received.name if self.received else "a signal to another process"
        ended = "interrupted" if name == "SIGINT" else f"ended by {name}"
        next_step = "run the same command again"
        if self.last is not None and self.last.is_file():
            named = [f"resume={self.last.parent.parent}", *([f"cells={self.cells}"] if self.cells else [])]
            next_step = f"go on with {shlex.join(named)}"
        print(printable(f"{ended}; {next_step}"), file=sys.stderr, flush=True)


watch = Watch()


@contextmanager
def heeding_signals() -> Iterator[None]:
    """End the process with an exit code of its own and one line on one of `SIGNALS`; a second one ends it at once."""
    watch.listening = True
    watch.heed()
    try:
        yield
    except Preempted:
        code = watch.code
        if code:
            watch.report()
            if watch.launcher is not None:
                # a process that waits for this one cannot hear anything else,
                watch.launcher.kill(getattr(signal, "SIGKILL", signal.SIGTERM))
                sys.stdout.flush()
                os._exit(code)  # and Lightning would have this one killed for the death of that one
        sys.exit(code)
