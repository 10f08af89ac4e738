"""In place of torch.nn's layers: their weights, and what they are called with that is said otherwise here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from rnnzoo.cell import RESERVED, Cell
from rnnzoo.engine import native
from rnnzoo.errors import UserError, nearest

NOTHING = {"bias": True, "proj_size": 0, "device": None, "dtype": None}
"""Keywords of torch's layers, with the values that ask for nothing more than what a `Recurrent` does anyway."""


def hyperparameters(kind: type[Cell], given: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of this cell among the keywords given.

    Raises `UserError` for others, saying for those of torch's layers what to say instead.
    """
    name = kind.__name__
    instead = {
        "bias": f"its biases are part of {name}'s equations; choose a cell without them, or leave it out",
        "proj_size": "say projection=SIZE, which maps each layer's output, or cell lstm_projected, whose state it maps",
        "nonlinearity": f"{name} has its own; leave it out, or choose a cell that takes it, such as rnn",
        "device": "say .to(device) of the layer",
        "dtype": "say .to(dtype) of the layer",
    }
    own = {}
    for key, value in given.items():
        if key in kind.hyperparameters:
            own[key] = value
        elif key in instead and not (key in NOTHING and value == NOTHING[key]):
            raise UserError(f"{key}={value!r}: {instead[key]}")
        elif key not in instead:
            raise UserError(f"{name} has no hyperparameter {key!r}; {nearest(key, [*kind.hyperparameters, *RESERVED])}")
    return own


def weights(cells: Sequence[Cell], directions: int) -> dict[str, Tensor]:
    """The weights of stacked cells as the state dict of an `nn.RNN`, `nn.LSTM` or `nn.GRU` of the same shape.

    Raises `UserError` when the cell is not torch's, and where layers are of different sizes.
    """
    reason = native.refuses(cells[0])
    if len(sizes := {cell.hidden_size for cell in cells}) > 1:
        reason = f"torch's layers have one hidden size for all, not {sorted(sizes)}"
    if reason:
        raise UserError(f"no torch weights for this layer: {reason}")
    found: dict[str, Tensor] = {}
    for index, cell in enumerate(cells):
        found |= zip(_names(index, directions), (tensor.detach() for tensor in native.to_torch(cell)))
    return found


def load(cells: Sequence[Cell], directions: int, state_dict: Mapping[str, Tensor]) -> None:
    """The inverse of `weights`. Raises `UserError`, and changes nothing, when the state dict does not fit."""
    mine = weights(cells, directions)
    wrong = set(mine.keys() ^ state_dict.keys())
    wrong |= {key for key in mine.keys() & state_dict.keys() if mine[key].shape != state_dict[key].shape}
    if wrong:
        raise UserError(f"torch weights do not fit this layer: {', '.join(sorted(wrong))}")
    for index, cell in enumerate(cells):
        native.from_torch(cell, *(state_dict[name] for name in _names(index, directions)))


def refuse(state_dict: Mapping[str, Tensor], prefix: str) -> None:
    """Raise `UserError` where under this prefix lie the weights of one of torch's layers."""
    [name, *_] = _names(0, 1)
    if prefix + name in state_dict:
        which = f"those under {prefix!r}" if prefix else "this state dict"
        raise UserError(f"{prefix}{name} is of a layer of torch.nn; give {which} to the layer's load_torch instead")


def _names(index: int, directions: int) -> list[str]:
    suffix = f"_l{index // directions}" + ("_reverse" if index % directions else "")
    return [f"{name}{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
