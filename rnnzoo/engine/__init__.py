"""How a cell is run over time. Every engine takes and returns the same things and equals `reference`.

An engine is a module with

- `refuses(cell) -> str | None`: why it cannot run this cell, or None when it can;
- `run(cell, x, state, lengths) -> (output, state)`: x [T, B, I], each state [B, H], lengths [B] int64 or None;
  output [T, B, H], zero past a sequence's end; each final state [B, H], taken at a sequence's end.
"""

from __future__ import annotations

from types import ModuleType

from rnnzoo.cell import Cell
from rnnzoo.engine import native, reference
from rnnzoo.errors import UserError, nearest

ENGINES: dict[str, ModuleType] = {"reference": reference, "native": native}
"""All engines by name."""

PREFERENCE = ("native", "reference")
"""The order in which `auto` tries them."""


def choose(name: str, cell: Cell) -> str:
    """The engine that runs `cell` when `name` is asked for; `auto` takes the first that does not refuse.

    Raises `UserError` for an unknown engine, and for one that refuses this cell, with its reason.
    """
    if name == "auto":
        return next(engine for engine in PREFERENCE if ENGINES[engine].refuses(cell) is None)
    if not isinstance(name, str) or name not in ENGINES:
        raise UserError(f"no engine is named {name!r}; {nearest(str(name), ['auto', *ENGINES])}")
    reason = ENGINES[name].refuses(cell)
    if reason:
        raise UserError(f"engine={name} cannot run this cell: {reason}; use engine=auto")
    return name
