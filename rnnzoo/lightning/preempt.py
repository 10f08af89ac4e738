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

from rnnzoo.lightning.guard import PERIOD, Guard
from rnnzoo.lightning.ranks import rank, started
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

ALONE = 86
"""The exit code of a process that ends because another one of its run is gone."""

LONGEST_WAIT = 25.0
"""Seconds that one of several processes that was told to end waits for the others, which may be gone."""

AT_ONCE = 10.0
"""Seconds that a process may take that was told to end when it had nothing to finish."""


class Preempted(BaseException):
    """A signal ends the run. It is nobody's error, so that whoever catches those lets it pass."""


class Gone(BaseException):
    """Another process of the run is gone, which is no more an error of this one's."""


class Watch:
    """What this process knows of signals, and whether it is worth waiting for the end of a step.

    Attributes:
        received: the signal that is to end the run.
        patient: whether steps have been taken that no checkpoint has, but the next one will.
        listening: whether signals are heeded.
        raised: whether `Preempted` was raised at once, which may have come upon code that makes another error of it.
        last: the run's last.ckpt.
        alone: whether the run is one process.
        cells: a person's own code, which has to be named again.
        guard: what ends this process when it cannot end itself.
        last_words: taken by who speaks them, and ends the process.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.at = 0.0
        self.idle: float | None = None
        self.patient = self.listening = self.raised = False
        self.last: Path | None = None
        self.alone = True
        self.cells: str | None = None
        self.guard: Guard | None = None
        self.last_words = threading.Lock()

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
                self.end(self.code)
            return
        self.received, self.at = signal.Signals(signum), time.monotonic()
        if not self.patient:
            self.raised = True
            raise Preempted

    def told(self, number: int, seconds: float) -> None:
        """End this process if the signal that came `seconds` ago will not be heard: a guard asks again and again."""
        self.idle = None if self.patient else self.idle or time.monotonic()
        late = self.idle is not None and time.monotonic() - self.idle > AT_ONCE
        if number in SIGNALS and (late or (not self.alone and seconds > LONGEST_WAIT)):
            self.received = signal.Signals(number)
            self.report()
            self.end(self.code)

    def deserted(self, what: str, code: int | None = None) -> None:
        """End this process because another one of its run is gone, as two threads may find."""
        self.last_words.acquire()
        if rank() < 2 or started() is not None:  # of several that are left, one speaks
            self.say(what)
        self.end(1 if code == 1 else ALONE)  # a sweep repeats a job only if nobody has raised an error

    def end(self, code: int) -> None:
        """End this process and those that it has started, now."""
        if self.guard is not None:
            self.guard.end_children()
        sys.stdout.flush()
        os._exit(code)

    def report(self) -> None:
        """Say on stderr, once for all processes, how to go on."""
        if rank() > 0:
            return
        name = self.received.name if self.received else "a signal to another process"
        self.say("interrupted" if name == "SIGINT" else f"ended by {name}")

    def say(self, what: str) -> None:
        """Say on stderr what has ended the run, and how to go on."""
        next_step = "run the same command again"
        if self.last is not None and self.last.is_file():
            named = [f"resume={self.last.parent.parent}", *([f"cells={self.cells}"] if self.cells else [])]
            next_step = f"go on with {shlex.join(named)}"
        print(printable(f"{what}; {next_step}"), file=sys.stderr, flush=True)


watch = Watch()


@contextmanager
def heeding_signals() -> Iterator[None]:
    """End the process with an exit code of its own and one line on one of `SIGNALS`; a second one ends it at once.

    It does not outlive the process that has started it as one of several, nor do those that it has started outlive it.
    """
    watch.listening = True
    watch.heed()
    with Guard(watch.told, watch.deserted) as watch.guard:
        try:
            yield
            watch.guard.wait_for_children()
        except Gone as error:
            time.sleep(2 * PERIOD)  # until the system has seen it end
            watch.deserted(*(watch.guard.lost() or (str(error), None)))
        except BaseException as error:
            started_others = watch.guard.end_children()
            if not watch.raised and not isinstance(error, Preempted):
                raise
            watch.report()
            if started_others:  # which torch would wait for
                watch.end(watch.code)
            sys.exit(watch.code)
