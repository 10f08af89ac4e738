"""The processes of a run: which of them this one is, and who has started them: torchrun, SLURM's srun, or Lightning.

Lightning starts the others itself unless torchrun or srun has. Nothing here imports torch or Lightning, so that help
stays quick.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from rnnzoo.errors import UserError

HARDWARE = {"torchrun": "multi_node", "srun": "slurm"}
"""The `hardware=` that takes whatever each of them has started."""


class Started(NamedTuple):
    """What has been started from outside.

    Attributes:
        by: torchrun or srun.
        rank: this process's number among all, from 0.
        per_node: processes on each node.
        nodes: machines that they run on.
    """

    by: str
    rank: int
    per_node: int
    nodes: int


def started() -> Started | None:
    """What torchrun or srun says of the processes that it has started; None if there is nobody but this one.

    Raises `UserError` if srun does not say how many tasks a node has.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return Started(
            "torchrun", *(int(os.environ[name]) for name in ("RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
        )
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if tasks == 1 or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):  # a shell, not started by srun
        return None
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UserError(
            f"SLURM_NTASKS={tasks}: say with --ntasks-per-node how many are on a node, or for a single process "
            "--ntasks=1 and --cpus-per-task"
        )
    return Started("srun", *(int(os.environ[f"SLURM_{name}"]) for name in ("PROCID", "NTASKS_PER_NODE", "NNODES")))


def rank() -> int:
    """This process's number among those of its run; process 0 speaks and writes."""
    others = started()
    return others.rank if others else int(os.environ.get("LOCAL_RANK", "0"))


def refuse_sweep() -> None:
    """Raise `UserError` in one of several processes, each of which would run the whole sweep."""
    others = started()
    if others is not None:
        raise UserError(
            f"{others.by} has started {others.per_node * others.nodes} processes, and each would run the whole sweep; "
            f"start it without {others.by}: with hardware=cpu_ddp or multi_gpu each job starts its own processes"
        )


def check_hardware(hardware: Mapping[str, Any]) -> None:
    """Raise `UserError` for hardware whose numbers are for torchrun or srun to tell, when neither has."""
    if hardware.get("devices", 1) is None or hardware.get("num_nodes", 1) is None:
        raise UserError(
            "hardware.devices: torchrun tells it for hardware=multi_node, and srun with --ntasks-per-node for "
            "hardware=slurm; start the command with it, or say hardware=cpu_ddp or multi_gpu"
        )


def check_agreement(per_node: int, nodes: int) -> None:
    """Raise `UserError` unless a run of `per_node` processes on each of `nodes` nodes is what has been started."""
    others = started()
    if others is None and nodes > 1:
        raise UserError(
            f"hardware.num_nodes={nodes}: other nodes need torchrun and hardware=multi_node, or srun and hardware=slurm"
        )
    if others is not None and (per_node, nodes) != (others.per_node, others.nodes):
        raise UserError(
            f"hardware: asks for {per_node} on each of {nodes} nodes, but {others.by} has started {others.per_node} "
            f"on each of {others.nodes}; hardware={HARDWARE[others.by]} takes what is there"
        )
