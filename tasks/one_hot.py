"""Symbols as vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OneHot(nn.Module):
    """Codes [...] to vectors [..., size] of zeros with a single one."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.eye(size), persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.rows)  # type: ignore[arg-type]
