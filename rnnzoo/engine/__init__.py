"""How a cell is run over time. Every engine takes and returns the same things and equals `reference`.

An engine is a module with

- `refuses(cell) -> str | None`: why it cannot run this cell, or None when it can;
- `run(cell, x, state, lengths) -> (output, state)`: x [T, B, I], each state [B, H], lengths [B] int64 or None;
  output [T, B, H], zero past a sequence's end; each final state [B, H], taken at a sequence's end.

`reference` is the plain loop, `native` torch's own kernels, `serial` the derived and compiled loop, `scan`
parallel over time for recurrences that are affine in the state, `matrix` for matrix memories, which it keeps in the
cache.
"""

from __future__ import annotations

import warnings
import weakref
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rnnzoo.cell import Cell
from rnnzoo.engine import matrix, native, plan, reference, scan, serial, verify
from rnnzoo.engine.hooks import hooks
from rnnzoo.engine.rehearsal import obstacle
from rnnzoo.engine.trace import author
from rnnzoo.errors import UserError, nearest
from rnnzoo.plain import printable

ENGINES: dict[str, ModuleType] = {
    "reference": reference, "native": native, "serial": serial, "scan": scan, "matrix": matrix,
}  # fmt: skip
"""All engines by name."""

COMPILED = ("serial", "scan", "matrix")
"""Those that are made ready before they run, and run numbers only."""

TYPICAL_LENGTH = 100
"""Time steps of a call, as far as they can be known before all calls are made: what an engine computes differs in the
last digits, so the choice must not hang on the length of the batch that happens to come first."""

PAYS_BACK = 4096
"""After this many time steps compiling has paid back: it takes about as long as the plain loop takes for them."""

PAYS_BACK_NATIVE = 65536
"""The same where torch's kernels stand in for the plain loop."""


PAYS_BACK_GRAPHS = 262144
"""The same for Inductor, which takes about a minute a plan, where the plain loop takes a quarter of a millisecond a
step: an estimate, as no GPU has been measured."""


def check(name: str, cell: Cell) -> None:
    """Raise `UserError` for an unknown engine, and for one that refuses this cell, with its reason."""
    if not isinstance(name, str) or name not in (*ENGINES, "auto"):
        raise UserError(f"no engine is named {name!r}; {nearest(str(name), ['auto', *ENGINES])}")
    reason = None if name == "auto" else ENGINES[name].refuses(cell)
    if reason:
        hint = "" if "use engine=" in reason else "; use engine=auto"
        raise obstacle(cell) or UserError(f"engine={name} cannot run this cell: {reason}{hint}")


def choose(cell: Cell, steps: int, device: str = "cpu") -> tuple[str, str]:
    """The engine that `auto` takes on a device for `steps` time steps in all, and why.

    Between loop and scan the device decides. On a CPU the compiled loop took 0.15 to 0.9 of the scan's time, forward
    and backward, at four sizes for a real state (`min_gru`) and three for a complex one (`lru`): it reads and writes
    each number once, where the scan makes several passes. Elsewhere what counts should be the number of calls: the
    scan needs a few for each state, or about 10 log_4(T) without Triton, and the loop T / 8; that was not measured.
    """
    exact = native.refuses(cell) is None and native.lacks(cell, device) is None
    if exact and device != "cpu":
        return "native", "torch's kernels are this cell"
    least = PAYS_BACK_NATIVE if exact else PAYS_BACK
    before = "native" if exact else "reference"
    if steps < least:
        return before, f"compiling pays back after {least:,} time steps"
    reason = _refused(cell, device)
    if reason is not None:
        return before, reason
    if device != "cpu" and scan.refuses(cell) is None:
        return "scan", "affine in the state, so all time steps at once"
    if device != "cpu" and steps < PAYS_BACK_GRAPHS:
        return before, f"compiling pays back after {PAYS_BACK_GRAPHS:,} time steps"
    if device == "cpu" and matrix.refuses(cell) is None:
        return "matrix", "compiled: the matrix memory stays in the cache"
    why = "faster than torch's kernels here" if exact else f"the loop without its overhead{serial.how(cell, device)}"
    return "serial", f"compiled: {why}"


def _refused(cell: Cell, device: str) -> str | None:
    """Why the cell is not compiled, or None."""
    reason = _failed.get(author(cell)) or serial.refuses(cell)
    return serial.lacks(cell) if reason is None and device == "cpu" else reason


def kind(cell: Cell) -> str:
    """How a cell's state enters its step: parallel (affine, so `scan` runs it), diagonal (element by element), serial
    with the number of products that follow one another, or untraceable."""
    if scan.refuses(cell) is None:
        return "parallel"
    if serial.refuses(cell) is not None:
        return "untraceable"
    products = plan.serial_products(plan.plan(cell))
    return f"serial, {products} product{'s' * (products > 1)}" if products else "diagonal"


_failed: weakref.WeakKeyDictionary[type[Cell], str] = weakref.WeakKeyDictionary()
_told: weakref.WeakKeyDictionary[type[Cell], set[str]] = weakref.WeakKeyDictionary()


def select(name: str, steps: int, cell: Cell, x: Tensor) -> str:
    """The engine that is to run `cell` over x: `name`, or what `choose` takes for `steps` time steps; made ready.

    Raises `UserError` when an engine that was asked for cannot.
    """
    hooked = hooks(cell)
    special = _special(x)
    if name == "auto":
        chosen = "reference" if special or hooked else choose(cell, steps, x.device.type)[0]
        if chosen == "reference" and steps >= PAYS_BACK and not (special or hooked):
            tell(cell, _refused(cell, x.device.type))
    else:
        chosen = name
        if (special and name in COMPILED) or (hooked and name != "reference"):
            raise UserError(f"engine={name} cannot run under {special or hooked}; use engine=reference")
        reason = native.lacks(cell, x.device.type) if name == "native" else None
        if reason is not None:
            raise UserError(f"engine=native cannot run under autocast: {reason}; use engine=auto")
    if x.shape[1] == 0:  # no sequence, so nothing that an engine would have to be made ready for
        return "reference"
    if chosen in COMPILED:
        try:
            verify.check(chosen, ENGINES[chosen], ENGINES[chosen].prepare(cell, x), cell, x)
        except UserError as error:
            cause = error if isinstance(error, verify.Doubt) else obstacle(cell) or error
            if name != "auto":
                raise cause from None
            other = {"serial": serial.distrust, "scan": scan.distrust}.get(chosen)
            if isinstance(error, verify.Doubt) and other is not None and other(cell, x):
                tell(cell, str(cause), "engine=auto goes on with what else can run its loop")
                return select(name, steps, cell, x)
            _failed[author(cell)] = str(cause)
            tell(cell, str(cause))
            chosen = choose(cell, steps, x.device.type)[0]
    return chosen


def tell(cell: Cell, reason: str | None, how: str = "engine=auto goes on without compiling") -> None:
    """Warn once of what keeps engines from a cell, and how its run goes on."""
    told = _told.setdefault(author(cell), set())
    if reason is not None and reason not in told:
        told.add(reason)
        name, text = author(cell).__name__, reason.removesuffix("; use engine=reference")
        text = text if text.startswith(name) else f"{name}: {text}"
        warnings.warn(printable(f"{text} ({how})"), stacklevel=3)


def _special(x: Tensor) -> str | None:
    """What runs or records x other than as numbers, which only torch's own operations allow."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "torch.func transforms"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    if (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or type(x) not in (Tensor, torch.nn.Parameter)
    ):
        return "tracing"
    return None
