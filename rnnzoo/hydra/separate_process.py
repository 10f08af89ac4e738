"""Jobs of a sweep that need several processes, as with hardware=cpu_ddp, each run in a process of its own.

Lightning starts the others by repeating the command, which has to be the job's and not the sweep's, and what ties them
together lasts until their process ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rnnzoo.hydra.refusals import ProcessDied
from rnnzoo.hydra.settings import repeating
from rnnzoo.lightning.guard import PARENT, ended
from rnnzoo.lightning.preempt import EXIT_CODE, INTERRUPTED, SIGNALS
from rnnzoo.lightning.ranks import started
from rnnzoo.plain import printable

ALONE = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
"""Hardware for which Lightning starts no processes."""


def is_separate(config: DictConfig) -> bool:
    """Whether this is a job of a sweep for which Lightning would start processes."""
    if HydraConfig.get().mode != RunMode.MULTIRUN or started() is not None:
        return False
    return any(config.hardware.get(key, value) != value for key, value in ALONE.items())


def run_separately(config: DictConfig, folder: Path) -> list[str]:
    """Run `rnnzoo train` on `config` in the job's folder, and pass signals on to it.

    Returns a line if it was refused for bad input, which it has said itself. Ends the sweep as the job ended if a
    signal has ended that. For any other end a search, which repeats its trials, gets `ProcessDied`, and another sweep a
    line.
    """
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    received = []
    command = [sys.executable, "-m", "rnnzoo.hydra.train", *repeating(folder)]
    with subprocess.Popen(command, env=os.environ | {PARENT: str(os.getpid())}) as job:

        def pass_on(number: int, frame: FrameType | None) -> None:
            received.append(number)
            job.send_signal(number)

        before = {number: signal.signal(number, pass_on) for number in SIGNALS}
        code = job.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    if received or code in (EXIT_CODE, INTERRUPTED):
        sys.exit(code if code in (EXIT_CODE, INTERRUPTED) else EXIT_CODE)
    if code not in (0, 1):
        here = (folder / "checkpoints" / "last.ckpt").is_file()
        line = f"{folder}: its process {ended(code)}; {f'go on with resume={folder}' if here else 'run it again'}"
        if OmegaConf.select(config, "sweep") is not None:
            raise ProcessDied(line)
        print(printable(f"error: {line}"), file=sys.stderr, flush=True)
        return [line]
    return [f"{folder}: refused"] * code
