"""Cells that layer and engines must treat differently, for tests that would take too long on the whole registry.

test_check.py runs the conformance suite on all cells.
"""

from torch.nn.utils import parametrizations, prune

from rnnzoo import Cell

VARIED = (
    "rnn", "lstm", "gru", "mgu", "lstm_peephole",  # one and two states, one and two products in a row
    "lstm_projected",  # an output narrower than the memory
    "clockwork",  # a clock
    "scrn",  # a readout with features of its own
    "esn",  # nothing learned
    "qrnn",  # parallel, with a state as wide as the input
    "sru",  # element-wise
    "lru",  # two states that depend on each other, and a readout
    "tau_gru",  # a delay line
    "fast_weights",  # a matrix memory
)  # fmt: skip


def parametrized(cell: Cell) -> None:
    parametrizations.orthogonal(cell, "U_n")


def pruned(cell: Cell) -> None:
    prune.l1_unstructured(cell, "U_n", amount=0.5)


def tied(cell: Cell) -> None:
    cell.U_n = cell.U_r


CHANGES = (parametrized, pruned, tied)
"""What may be done to a GRU after it was made."""
