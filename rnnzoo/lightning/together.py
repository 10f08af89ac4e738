"""The processes of one run: none of them outlives another, nor waits for one that is gone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed

from rnnzoo.errors import UserError
from rnnzoo.lightning.framework import pl
from rnnzoo.lightning.guard import PARENT
from rnnzoo.lightning.preempt import Gone, watch


@contextmanager
def together(trainer: pl.Trainer) -> Iterator[None]:
    """While `trainer` runs, processes that it starts end with this one, and this one with them.

    Raises `Gone` instead of what torch raises when another process is gone, and `UserError` when the port on which they
    are to meet is taken.
    """
    if trainer.world_size > 1 and watch.guard is not None:
        watch.guard.meeting = time.monotonic()  # until callbacks are set up
        if trainer.strategy.launcher is not None:
            watch.guard.launcher = trainer.strategy.launcher
            os.environ[PARENT] = str(os.getpid())
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if isinstance(error, torch.distributed.DistNetworkError) and "EADDRINUSE" in text:
            port = os.environ.get("MASTER_PORT")
            raise UserError(f"MASTER_PORT={port}: another program has it; name a port that is free") from error
        if "gloo/transport" in text or isinstance(error, torch.distributed.DistError):
            raise Gone(f"another process of the run is gone ({text.splitlines()[0]})") from error
        raise
