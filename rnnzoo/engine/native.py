"""torch's own fused kernels, for the cells that are exactly torch's: rnn, lstm and gru.

The table `GATES` maps a cell's parameters to torch's layout; the kernels and the exchange of weights with
`nn.RNN`, `nn.LSTM` and `nn.GRU` both stand on it.

Shapes: T time steps, B batch, I input size, H hidden size, G gates.
"""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor

from rnnzoo.cell import Cell
from rnnzoo.engine.hooks import renew
from rnnzoo.errors import UserError
from rnnzoo.registry import get
from rnnzoo.resets import Resets

GATES: dict[str, tuple[tuple[str, str, str, str | None], ...]] = {
    "rnn": (("W", "U", "b", None),),
    "lstm": tuple((f"W_{gate}", f"U_{gate}", f"b_{gate}", None) for gate in "ifgo"),
    "gru": (("W_r", "U_r", "b_r", None), ("W_z", "U_z", "b_z", None), ("W_n", "U_n", "b_n", "c_n")),
}
"""For each cell, in torch's order: input weight, recurrent weight, bias, and the bias on the recurrent side if
the cell keeps one apart (elsewhere torch's two biases are added, and only their sum matters)."""

HOLD: dict[str, tuple[int, ...]] = {"rnn": (-1,), "lstm": (-1, 1, 0, 0), "gru": (0, 1, 0)}
"""For each gate, the sign of what saturates it past a sequence's end, so that no gradient passes and the cell keeps
c (lstm: i = 0, f = 1) or h (gru: z = 1), or at least stays finite (rnn)."""


def kind(cell: Cell) -> str | None:
    """The name under which torch has this very step, or None."""
    return next((name for name in GATES if isinstance(cell, get(name)) and type(cell).step is get(name).step), None)


def refuses(cell: Cell) -> str | None:
    """Everything but the steps of `rnn`, `lstm` and `gru`."""
    if kind(cell) is None:
        return f"torch has kernels for {', '.join(GATES)} only, not for {type(cell).__name__}"
    modifier = cell.modifier.modifier if isinstance(cell.modifier, Resets) else cell.modifier
    if modifier is not None:
        return "torch's kernels know no layer norm, recurrent dropout or zoneout"
    return None


def lacks(cell: Cell, device: str) -> str | None:
    """Why torch's kernel for a cell that it has does not run as autocast would have it, or None."""
    if device != "cpu" or kind(cell) != "lstm" or not torch.is_autocast_enabled("cpu"):
        return None
    dtype = torch.get_autocast_dtype("cpu")
    return None if _runs(dtype) else f"torch has no LSTM in {dtype} for this processor"


@cache
def _runs(dtype: torch.dtype) -> bool:
    """Whether oneDNN has an LSTM in this precision for the processor at hand, which only an attempt can tell."""
    zeros = [torch.zeros(1, 1, 1), *[torch.zeros(1, 1, 1)] * 2, *[torch.zeros(4, 1)] * 2, *[torch.zeros(4)] * 2]
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype):
            torch.lstm(zeros[0], zeros[1:3], zeros[3:], True, 1, 0.0, False, False, False)
    except RuntimeError:
        return False
    return True


def to_torch(cell: Cell) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cell's parameters in torch's layout: weight_ih [G·H, I], weight_hh [G·H, H], bias_ih, bias_hh [G·H]."""
    name = kind(cell)
    assert name is not None
    renew(cell)
    # getattr, not named_parameters: tied, pruned and parametrized weights are what step sees
    none = torch.zeros_like(getattr(cell, GATES[name][0][2]))
    weight_ih = torch.cat([getattr(cell, W).T for W, _, _, _ in GATES[name]])
    weight_hh = torch.cat([getattr(cell, U).T for _, U, _, _ in GATES[name]])
    bias_ih = torch.cat([getattr(cell, b) for _, _, b, _ in GATES[name]])
    bias_hh = torch.cat([getattr(cell, c) if c else none for _, _, _, c in GATES[name]])
    return weight_ih, weight_hh, bias_ih, bias_hh


@torch.no_grad()
def from_torch(cell: Cell, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> None:
    """Copy parameters in torch's layout into the cell; the inverse of `to_torch`.

    Raises `UserError` where a parameter is computed from other tensors.
    """
    name = kind(cell)
    assert name is not None
    for key in (key for gate in GATES[name] for key in gate if key and key not in cell._parameters):
        raise UserError(f"{key} is pruned or parametrized and so computed from other tensors; make it plain first")
    blocks = (tensor.chunk(len(GATES[name])) for tensor in (weight_ih, weight_hh, bias_ih, bias_hh))
    for (W, U, b, c), w_ih, w_hh, b_ih, b_hh in zip(GATES[name], *blocks):
        getattr(cell, W).copy_(w_ih.T)
        getattr(cell, U).copy_(w_hh.T)
        getattr(cell, b).copy_(b_ih if c else b_ih + b_hh)
        if c:
            getattr(cell, c).copy_(b_hh)


def run(
    cell: Cell, x: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run `cell` over x [T, B, I] with torch's kernel; see `rnnzoo.engine` for the contract."""
    if isinstance(cell.modifier, Resets):
        return _in_pieces(cell, cell.modifier, x, state, lengths)
    name = kind(cell)
    assert name is not None
    weight_ih, *others = to_torch(cell)
    if lengths is not None:
        # torch's kernels for packed sequences take eight times as long on a CPU as those for full ones. So ragged
        # batches run in full, and one more input feature, 1 past a sequence's end, holds the states there.
        past = torch.arange(len(x), device=x.device)[:, None] >= lengths  # [T, B]
        x = torch.cat([x, past[:, :, None].to(x.dtype)], -1)  # [T, B, I + 1]
        device = x.device.type
        product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        signs = weight_ih.new_tensor(HOLD[name]).repeat_interleave(cell.hidden_size)
        hold = signs * (torch.finfo(product).max / 4)
        weight_ih = torch.cat([weight_ih, hold[:, None]], 1)  # [G·H, I + 1]

    weights = [weight_ih, *others]
    if x.is_cuda:  # cuDNN wants them one after another, or copies them at each call and warns of it
        flat = torch.cat([weight.flatten() for weight in weights])
        parts = flat.split([weight.numel() for weight in weights])
        weights = [part.view(weight.shape) for part, weight in zip(parts, weights)]

    function = getattr(torch, f"rnn_{cell.nonlinearity}" if name == "rnn" else name)
    hidden = tuple(s.unsqueeze(0).contiguous() for s in state)
    # one layer, no dropout, one direction: `Recurrent` stacks and reverses for all engines alike; without dropout,
    # "training" only says whether cuDNN keeps what a backward pass needs
    output, *final = function(
        x, hidden if name == "lstm" else hidden[0], weights, True, 1, 0.0, torch.is_grad_enabled(), False, False
    )
    final = [s.squeeze(0) for s in final]
    if lengths is not None:
        last = output[lengths - 1, torch.arange(len(lengths), device=x.device)]
        final[0] = torch.where(lengths[:, None] > 0, last, state[0])
        output = output.masked_fill(past[:, :, None], 0)
    return output, tuple(final)


def _in_pieces(
    cell: Cell, resets: Resets, x: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """x [T, B, I + 1] from one time at which some sequence starts anew to the next."""
    x, anew = x[..., :-1], x[..., -1] != 0  # [T, B]
    if lengths is not None:
        anew = anew & (torch.arange(len(x), device=x.device)[:, None] < lengths)
    starts = sorted({0, *anew.any(1).nonzero()[:, 0].tolist()})
    plain = copy.copy(cell)
    plain.modifier = None
    outputs = []
    for start, stop in zip(starts, [*starts[1:], len(x)]):
        state = resets.begin(cell, x[start], state, anew[start])
        left = None if lengths is None else (lengths - start).clamp(0, stop - start)
        output, state = run(plain, x[start:stop], state, left)
        outputs.append(output)
    return torch.cat(outputs), state
