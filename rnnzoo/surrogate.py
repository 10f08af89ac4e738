"""Thresholds that can be learned through: they give 0 or 1, and state a derivative that is not the true one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Spike(torch.autograd.Function):
    """1 above zero, else 0, with the derivative of a fast sigmoid, 1 / (1 + 25 |u|)^2 (Zenke & Ganguli 2018)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor) -> Tensor:
        return (u > 0).to(u.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / (1 + 25 * ctx.saved_tensors[0].abs()) ** 2
