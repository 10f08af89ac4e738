"""Ridge regression as an optimizer: a linear head in closed form, from a triangle to which each batch adds.

Shapes: N rows, F features and a constant, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from rnnzoo.cell import finest
from rnnzoo.errors import UserError


class Ridge(torch.optim.Optimizer):
    """Takes a linear layer to the W, b that minimise the mean of |φ W + b - y|² over all rows seen, plus penalty |W|².

    `see` adds a batch's rows; no gradient is used. After one epoch the layer is what a regression on all of the
    training part at once would give; a second one would change nothing. What is kept of the rows is the triangle R of
    their QR decomposition, in double precision: the normal equations would square the condition number, and the states
    of a reservoir are nearly dependent.

    Args:
        params: weight [O, F] and bias [O] of the layer.
        lr: the share of the way to the solution that a step goes; 1 is all of it.
        penalty: against large weights, on the scale of the features' mean square; the bias has none.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1.0, penalty: float = 1e-6) -> None:
        if penalty < 0:
            raise UserError(f"optimizer.penalty={penalty}: must not be negative")
        super().__init__(params, {"lr": lr, "penalty": penalty, "triangle": None})

    def forget(self) -> None:
        """Begin anew."""
        self.param_groups[0]["triangle"] = None

    @torch.no_grad()
    def see(self, features: Tensor, answers: Tensor) -> None:
        """Add rows: features [N, F] without the constant, and answers [N, O]."""
        [group] = self.param_groups
        rows = torch.cat([F.pad(features, (0, 1), value=1.0), answers], 1)
        rows = (rows if finest(rows) == torch.float64 else rows.cpu()).double()
        size = rows.shape[1]
        added = [torch.linalg.qr(F.pad(rows, (0, 0, 0, size)), "r").R]  # padded to have as many rows as columns
        if distributed.is_available() and distributed.is_initialized():
            [own] = added
            added = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
            distributed.all_gather(added, own)
        had = [] if group["triangle"] is None else [group["triangle"].to(rows.device)]
        group["triangle"] = torch.linalg.qr(torch.cat([*had, *added]), "r").R if had or len(added) > 1 else added[0]

    def _seen(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The triangle of the features [F, F], of them and the answers [F, O], of the rest of those [O, O], and N."""
        [group] = self.param_groups
        outputs = len(group["params"][1])
        features, rest = group["triangle"].split([len(group["triangle"]) - outputs, outputs])
        constant = features[:, -outputs - 1]  # as long as the constant is in all rows together
        return features[:, :-outputs], features[:, -outputs:], rest[:, -outputs:], constant.square().sum()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Go `lr` of the way to the solution for the rows seen so far."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        [group] = self.param_groups
        triangle, answers, _, rows = self._seen()
        penalty = (group["penalty"] * rows).sqrt().repeat(len(triangle)).diag()
        penalty[-1] = 0.0
        system, wanted = torch.cat([triangle, penalty]), torch.cat([answers, torch.zeros_like(answers)])
        driver = "gelsy" if system.device.type == "cpu" else "gels"  # the former also without a penalty
        solution = torch.linalg.lstsq(system, wanted, driver=driver).solution  # [F, O]
        weight, bias = group["params"]
        weight.lerp_(solution[:-1].T.to(weight), group["lr"])
        bias.lerp_(solution[-1].to(bias), group["lr"])
        return loss

    @torch.no_grad()
    def error(self) -> tuple[Tensor, int]:
        """The layer's mean square error over all rows seen, and how many numbers that is."""
        triangle, answers, rest, rows = self._seen()
        weight, bias = (parameter.to(triangle.device).double() for parameter in self.param_groups[0]["params"])
        residual = triangle @ torch.cat([weight.T, bias[None]]) - answers
        count = rows.round() * len(bias)
        return (residual.square().sum() + rest.square().sum()) / count, int(count)
