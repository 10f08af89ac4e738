"""What `rnnzoo train` and a clone's `python train.py` run; further processes of a run are started by this name."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from rnnzoo.hydra.command_line import CONF, command, requeued
from rnnzoo.lightning.preempt import heeding_signals


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(config: DictConfig) -> list[str]:
    """One run, or one job of several."""
    from rnnzoo.hydra.run import run  # takes seconds, which --help need not wait for

    return run(config)


if __name__ == "__main__":
    sys.argv[1:] = requeued(sys.argv[1:])
    with heeding_signals():
        command(main)
