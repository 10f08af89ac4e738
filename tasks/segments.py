"""Series read and forecast in segments: a few steps of a recurrent layer where row by row there would be hundreds.

As SegRNN (Lin et al. 2023, arXiv:2308.11200), for any cell. Columns are read apart from each other, by the same
weights; all segments ahead are answered at once, each by one step from the state after the window, told by embeddings
which segment and which column it is.

Shapes: T rows of a window, B batch, n columns, H rows ahead, S segments of R rows in a window, A segments ahead,
E features of the layer's input, Q answers to each row, K targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnzoo import Recurrent, UserError

from .quantiles import opening


class Segments(nn.Module):
    """Windows to changes since their last rows, in scaled units.

    Args:
        layer: E to F features, forwards only; E is even.
        columns: how many, n.
        window: rows of a window, T.
        horizon: rows ahead, H.
        rows: of a segment, R; the window is a multiple of it.
        dropout: of the layer's outputs, before the head.
        answers: to each row, Q.
    """

    def __init__(
        self, layer: Recurrent, columns: int, window: int, horizon: int, rows: int, dropout: float, answers: int = 1
    ) -> None:
        super().__init__()
        if window % rows:
            raise UserError(f"task.segment={rows}: must divide task.window={window}")
        if layer.input_size % 2:
            raise UserError(f"model.hidden_size={layer.input_size}: must be even for task.strategy=segments")
        self.layer, self.rows, self.horizon = layer, rows, horizon
        self.embed = nn.Linear(rows, layer.input_size)
        self.places = nn.Parameter(torch.randn(-(-horizon // rows), 1, layer.input_size // 2))
        self.columns = nn.Parameter(torch.randn(1, columns, layer.input_size // 2))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(layer.output_size, rows * answers)
        if answers > 1:  # quantiles begin where `open` puts them, which chance would move by more than they differ
            for parameter in self.head.parameters():
                nn.init.zeros_(parameter)

    def open(self, changes: Tensor, quantiles: Sequence[float]) -> None:
        """Begin with quantiles as far apart as those of changes since the last row [B, H, K] are, unless it has begun.

        Segments and columns share one bias, and so the changes of all of them make it.
        """
        if self.head.bias.any():
            return
        left = len(self.places) * self.rows - self.horizon
        pieces = F.pad(changes, (0, 0, 0, left), value=torch.nan).unflatten(1, (-1, self.rows))  # [B, A, R, K]
        errors = pieces.transpose(2, 3).flatten(0, 2)[:, : self.horizon]  # [B·A·K, R], or the rows that are asked for
        found = opening(errors, quantiles).flatten().to(self.head.bias)
        self.head.bias.data[: len(found)] = found

    def forward(self, x: Tensor) -> Tensor:
        """Windows x [T, B, n] to how all columns will have changed since, [H, B, n, Q]."""
        if len(x) % self.rows:
            raise UserError(
                f"windows of {len(x)} rows are no multiple of task.segment={self.rows}; to export a model, which is "
                f"then given windows of any length, choose task.strategy=direct or recursive"
            )
        B, n = x.shape[1:]
        pieces = (x - x[-1]).unflatten(0, (-1, self.rows)).permute(0, 2, 3, 1).flatten(1, 2)  # [S, B·n, R]
        _, state = self.layer(torch.relu(self.embed(pieces.to(self.embed.weight.dtype))))
        ahead = len(self.places)
        asked = torch.cat([self.places.expand(-1, n, -1), self.columns.expand(ahead, -1, -1)], -1)  # [A, n, E]
        asked = asked[:, None].expand(-1, B, -1, -1).flatten(0, 2)  # [A·B·n, E]
        states = (state,) if isinstance(state, Tensor) else state
        repeated = tuple(s[:, None].expand(-1, ahead, *[-1] * (s.dim() - 1)).flatten(1, 2) for s in states)
        output, _ = self.layer.step(asked, repeated[0] if isinstance(state, Tensor) else repeated)
        change = self.head(self.dropout(output)).unflatten(0, (ahead, B, n)).unflatten(3, (self.rows, -1))
        return change.permute(0, 3, 1, 2, 4).flatten(0, 1)[: self.horizon]  # from [A, B, n, R, Q]
