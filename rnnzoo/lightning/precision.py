"""The numbers that a run computes with: `trainer.precision`, by a short name or by Lightning's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from rnnzoo.errors import UserError, nearest
from rnnzoo.lightning.framework import pl

SHORT = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed"}
HALF: tuple[Literal["bf16-true", "16-true"], ...] = ("bf16-true", "16-true")
NAMES = (*SHORT, *SHORT.values(), *HALF)


class HalfWeights(pl.plugins.precision.HalfPrecision):
    """Weights in half precision beside metrics in single precision, whose sums over batches half would not hold."""

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module.bfloat16() if self.precision == "bf16-true" else module.half()  # torchmetrics ignores these


def precision(chosen: object, accelerator: object) -> tuple[str | None, list[pl.plugins.precision.Precision]]:
    """The Trainer's `precision`, and plugins that stand for it if it is None.

    Args:
        chosen: `trainer.precision`, a name or a number.
        accelerator: `hardware.accelerator`.

    Raises `UserError` for an unknown name, and for mixed float16 on a CPU.
    """
    if str(chosen) not in NAMES:
        raise UserError(f"trainer.precision={chosen}: unknown; {nearest(str(chosen), NAMES)}")
    name = SHORT.get(str(chosen), str(chosen))
    gpu = accelerator != "cpu" and (torch.cuda.is_available() or torch.backends.mps.is_available())
    if name == "16-mixed" and not gpu:
        raise UserError(f"trainer.precision={chosen}: float16 is for GPUs; on a CPU use trainer.precision=bf16")
    plugins: list[pl.plugins.precision.Precision] = [HalfWeights(half) for half in HALF if half == name]
    return None if plugins else name, plugins
