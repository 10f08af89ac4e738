"""Cells whose loop Triton's interpreter runs, against the plain loop; a program of its own, as the interpreter must be
chosen before Triton is imported: `TRITON_INTERPRET=1 python tests/triton_interpreted.py lstm gru`.
"""

import sys
import traceback

import torch

from rnnzoo import Recurrent
from rnnzoo.check import everything
from rnnzoo.engine import serial

I, H = 3, 5  # noqa: E741  I is the input size everywhere in this project
T, B = 3, 3


def difference(name: str, ragged: bool, dtype: torch.dtype) -> float:
    """By how much outputs, states or gradients differ, relative to their greatest number."""
    torch.manual_seed(0)
    layer = Recurrent(name, I, H, engine="reference").to(dtype)
    other = Recurrent(name, I, H, engine="serial").to(dtype)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, I, dtype=dtype)
    states = [torch.rand(1, *s.shape, dtype=dtype) for s in layer.cells[0].initial_state(x[0])]
    lengths = torch.tensor([2, 3, 1]) if ragged else None
    expected, found = everything(layer, x, states, lengths), everything(other, x, states, lengths)
    assert expected.keys() == found.keys()
    worst = 0.0
    for key, value in expected.items():
        scale = max(1.0, float(value.abs().max())) if value.numel() else 1.0
        gap = float((found[key] - value).abs().max()) / scale if value.numel() else 0.0
        worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def main(names: list[str]) -> None:
    with serial.only("triton"):
        for name in names:
            try:
                worst = max(difference(name, ragged, torch.float64) for ragged in (False, True))
                print(name, worst if worst > 1e-9 else "agrees", flush=True)
            except Exception as error:
                traceback.print_exc()
                print(name, type(error).__name__, error, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
