"""How layers are stacked: the size of each, and what stands between them.

Shapes: ... leading dimensions ([B] or [T, B]), F features between the layers.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from rnnzoo.errors import UserError, nearest
from rnnzoo.options import check_flags, check_shares

BLOCKS = ("none", "glu")
"""What may stand around each layer: nothing, or a `GatedBlock`."""


class GatedBlock(nn.Module):
    """A layer's surroundings in a deep stack: x + GLU(GELU(cells(norm(x)))), each time step for itself.

    The block of S5 (Smith et al. 2023, arXiv:2208.04933; "full_glu" with the norm first in its code,
    github.com/lindermanlab/S5, s5/layers.py) and of LRU (Orvieto et al. 2023, arXiv:2303.06349; here as in
    github.com/NicolasZucchet/minimal-LRU, lru/model.py). Differs: the norm is layer norm, which looks at one time step,
    where the papers take batch norm on some tasks; dropout draws anew at each time step, theirs once a sequence.

    Args:
        width: features of x, F.
        features: those that the cells give, of both directions together.
        dropout: probability of dropping what the GELU gives, and what the GLU gives.
    """

    def __init__(self, width: int, features: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(features, 2 * width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """x [..., F], and what the cells made of `norm(x)`, to what the next layer takes [..., F]."""
        gated: Tensor = self.dropout(F.glu(self.linear(self.dropout(F.gelu(output)))))
        return x + gated


class Stack(nn.Module):
    """What stands around the cells of several layers: dropout, projections, residual connections, blocks.

    Arguments as in `rnnzoo.Recurrent`. Raises `UserError` for values out of range, and for what does not go together.
    """

    def __init__(self, num_layers: int, dropout: float, projection: int, residual: bool, block: str) -> None:
        super().__init__()
        if type(num_layers) is not int or num_layers < 1:
            raise UserError(f"num_layers must be a positive integer, not {num_layers!r}")
        check_flags(residual=residual)
        check_shares(dropout=dropout)
        if block not in BLOCKS:
            raise UserError(f"block={block!r}: unknown; {nearest(str(block), BLOCKS)}")
        if block != "none" and residual:
            raise UserError(f"block={block} has a residual connection of its own; leave residual out")
        if dropout and num_layers == 1 and block == "none":
            raise UserError("dropout acts between layers; use num_layers of 2 or more, or dropout=0")
        if type(projection) is not int or projection < 0:
            raise UserError(f"projection must be a number of features, or 0, not {projection!r}")
        self.num_layers = num_layers
        self.dropout = dropout
        self.residual = residual
        self.encoder: nn.Linear | None = None
        self.blocks = nn.ModuleList() if block != "none" else None
        self.projections = nn.ModuleList() if projection and block == "none" else None
        self._projection = projection

    @property
    def is_plain(self) -> bool:
        """Whether each layer gives what its cells give, but for dropout."""
        return self.blocks is None and self.projections is None and not self.residual

    def _begin(self, input_size: int, width: int) -> int:
        """The features that the first layer takes; `width` are those between blocks unless a projection says it."""
        if self.blocks is None:
            return input_size
        if type(input_size) is not int or input_size < 1:
            raise UserError(f"input_size must be a positive integer, not {input_size!r}")
        self.encoder = nn.Linear(input_size, self._projection or width)
        return self.encoder.out_features

    def _surround(self, taken: int, given: int) -> int:
        """The features of the next layer's output, whose cells give so many, where the layer takes `taken`."""
        if self.blocks is not None:
            self.blocks.append(GatedBlock(taken, given, self.dropout))
            return taken
        if self.projections is None:
            return given
        self.projections.append(nn.Linear(given, self._projection))
        return self._projection

    def _enter(self, x: Tensor) -> Tensor:
        """What the first layer takes of the input x."""
        return x if self.encoder is None else self.encoder(x)

    def _read(self, x: Tensor, layer: int) -> Tensor:
        """What a layer's cells read of x, which the layer takes."""
        return x if self.blocks is None else self._block(layer).norm(x)

    def _finish(self, x: Tensor, output: Tensor, layer: int) -> Tensor:
        """A layer's output from x, which it took, and what its cells gave."""
        if self.blocks is not None:
            return self._block(layer)(x, output)
        if self.projections is not None:
            output = self.projections[layer](output)
        if layer < self.num_layers - 1:
            output = F.dropout(output, self.dropout, self.training)
        return output + x if self.residual and output.shape == x.shape else output

    def _block(self, layer: int) -> GatedBlock:
        assert self.blocks is not None
        block = self.blocks[layer]
        assert isinstance(block, GatedBlock)
        return block


def sizes(hidden_size: Any, layers: int) -> tuple[int, ...]:
    """The hidden size of each layer. Raises `UserError` where it is no positive integer, or no list of one a layer."""
    found = tuple(hidden_size) if isinstance(hidden_size, (list, tuple)) else (hidden_size,) * layers
    if any(type(size) is not int or size < 1 for size in found):
        raise UserError(f"hidden_size must be a positive integer, or a list of one a layer, not {hidden_size!r}")
    if len(found) != layers:
        raise UserError(f"hidden_size={hidden_size!r}: {len(found)} sizes for {layers} layers; say num_layers too")
    return found
