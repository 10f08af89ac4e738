"""How the work of a Triton kernel is divided among the programs that a GPU runs at once.

Few rows would leave most of a GPU idle, and each program would read all matrices at each time step. So rows and
features are divided: a program keeps the columns of the matrices that its features need, for all time steps, and the
programs of a block of rows meet at each time step to exchange the state.
"""

from __future__ import annotations

from dataclasses import dataclass

LEAST = 16
"""The least features and terms of a product in Triton."""

ROWS = (8, 64)
"""The least and the most rows of a program."""

LANES = 128
"""Numbers of a program that has no rows but those numbers: one a thread."""

STAGES = 4
"""Time steps that are under way at once where a program waits for memory only."""

SPARE = 16 << 10
"""Bytes of a program's memory for what is not a matrix."""


@dataclass(frozen=True)
class Blocks:
    """How work is divided.

    `rows` of the batch are kept by one program, or by `parts` programs with their part of the features each. `deep`
    terms of a product are summed at once; up to `held` bytes of matrices stay with a program, others are read again at
    each time step. `precision` is that of products, in Triton's words, or "bf16". A program has `warps` times 32
    threads. Where it reads nothing that others write, `stages` time steps are under way at once.
    """

    rows: int
    parts: int
    deep: int = 64
    held: int = 0
    precision: str = "ieee"
    warps: int = 4
    stages: int = 1


def power(number: int) -> int:
    """The least power of two that is not less."""
    return 1 << max(number - 1, 0).bit_length()


def divide(batch: int, widest: int, meets: bool, programs: int, memory: int, precision: str) -> Blocks:
    """Blocks for a batch and states of so many numbers, on a device that runs so many programs at once.

    `meets` says whether a time step reads what other programs have written, `memory` how many bytes a program has.
    """
    if not meets:
        return Blocks(1, -(-widest // LANES), precision=precision, stages=STAGES)
    rows, most = (LEAST if precision != "ieee" else ROWS[0]), ROWS[1]
    while rows < most and -(-batch // rows) * -(-widest // LEAST) > programs:
        rows *= 2
    parts = max(1, min(-(-widest // LEAST), programs // -(-batch // rows)))
    width = max(LEAST, power(-(-widest // parts)))
    return Blocks(rows, -(-widest // width), held=memory - SPARE, precision=precision)
