"""What a cell costs, how large everything in it is, and how its gradients fade or grow over time.

Shapes: T time steps, H hidden size, S numbers of all states together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from rnnzoo import engine
from rnnzoo.cell import Bias, Cell, Diagonal, InputWeight, RecurrentWeight, Weight
from rnnzoo.engine.plan import plan, serial_products
from rnnzoo.engine.trace import aten, has_rows, tensors
from rnnzoo.errors import UserError
from rnnzoo.explain.equations import Reading, read
from rnnzoo.explain.expression import Symbol
from rnnzoo.explain.notation import Notation

PROBE = (101, 103)
"""Sizes I and H by which a dimension is recognised: primes that no hyperparameter is likely to be."""

KINDS: dict[type[Weight], str] = {
    InputWeight: "input weight", RecurrentWeight: "recurrent weight", Diagonal: "diagonal weight", Bias: "bias",
    Weight: "weight",
}  # fmt: skip

LAGS = 64
"""Steps over which gradients are followed."""


@dataclass(frozen=True)
class Cost:
    """What one time step of one sequence takes.

    Args:
        parameters: numbers that are learned.
        hoisted: multiply-adds on the input and for the output, which all time steps do together.
        serial: multiply-adds that wait for the state of the step before.
        state_bytes: of all states in single precision.
        products: matrix products that follow one another within a step.
        kind: parallel, diagonal, serial or untraceable.

    Of a cell that cannot be traced `hoisted`, `serial` and `products` are unknown, None.
    """

    parameters: int
    hoisted: int | None
    serial: int | None
    state_bytes: int
    products: int | None
    kind: str


def cost(cell: Cell) -> Cost:
    """Count what a cell does. Products of weights with weights, made once a sequence, are left out."""
    parameters = sum(p.numel() for p in cell.parameters())
    state_bytes = 4 * sum(math.prod(shape) for shape in cell.state_shapes())
    kind = engine.kind(cell).partition(",")[0]
    try:
        planned = plan(cell)
    except UserError:
        return Cost(parameters, None, None, state_bytes, None, kind)
    hoisted = _multiply_adds(planned.project) + _of_readout(cell)
    return Cost(parameters, hoisted, _multiply_adds(planned.recur), state_bytes, serial_products(planned), kind)


def _multiply_adds(graph: fx.Graph) -> int:
    """Multiplications a row, of matrix products and element by element."""
    count = 0
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor) or not has_rows(node):
            continue
        numbers = math.prod(node.meta["val"].shape[1:])
        if node.target in (aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default):
            *_, left, _ = tensors(node) if len(tensors(node)) > 1 else tensors(node) * 2
            count += int(numbers * left.meta["val"].shape[-1])
        elif node.target in (aten.mul.Tensor, aten.div.Tensor):
            count += int(numbers)
    return count


def _of_readout(cell: Cell) -> int:
    """Multiply-adds of the readout's matrix products for one sequence."""
    x = torch.zeros(1, cell.input_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        cell.readout(x, *cell.initial_state(x))
    return counter.get_total_flops() // 2


class Row(NamedTuple):
    """A symbol, what it is, its shape by name ("n_h × n_i") and by number ("128 × 64")."""

    symbol: Symbol
    what: str
    dims: str
    shape: str


def shapes(cell: Cell) -> list[Row]:
    """Everything in a cell's equations with its shape: given first, then what is computed, in order."""
    reading = read(cell)
    kind = type(cell)
    own = {name: getattr(cell, name) for name in cell.hyperparameters}
    probe = kind(*PROBE, **own)
    names = _names(probe)
    of_probe = read(probe).shapes
    numbers = ("hyperparameter", "size")
    given = sorted(
        (s for s in reading.given if s.role not in numbers),
        key=lambda symbol: ("input", "state", "weight", "fixed").index(symbol.role),
    )
    symbols = [*given, *(t for e in reading.equations for t in e.targets)]
    return [
        Row(symbol, _what(cell, reading, symbol), _written(of_probe[symbol], names), _written(reading.shapes[symbol]))
        for symbol in dict.fromkeys(symbols)
    ]


def _names(probe: Cell) -> dict[int, str]:
    """What a dimension of the probe is called: by the number that it is there."""
    names = {1: "1"}
    declared = [weight.dims for weight in probe.weights.values()] + [state.dims for state in probe.states.values()]
    for dim in itertools.chain.from_iterable(declared):
        if isinstance(dim, str) and dim not in ("input", "hidden"):
            names[getattr(probe, dim)] = Notation().symbol(Symbol(dim, role="size"))
    inputs, hidden = PROBE
    sums = {inputs: "n_i", hidden: "n_h", 2 * hidden: "2 n_h", 3 * hidden: "3 n_h", inputs + hidden: "n_i + n_h"}
    return {**{size + hidden: f"n_h + {name}" for size, name in names.items() if size != 1}, **names, **sums}


def _written(shape: tuple[int, ...], names: dict[int, str] | None = None) -> str:
    return " × ".join((names or {}).get(size, str(size)) for size in shape) or "1"


def _what(cell: Cell, reading: Reading, symbol: Symbol) -> str:
    if symbol.role in ("weight", "fixed"):
        weight = cell.weights[symbol.name]
        if symbol.role == "fixed":
            return "fixed"
        return {
            "InputWeight": "input weight",
            "RecurrentWeight": "recurrent weight",
            "Diagonal": "diagonal weight",
        }.get(type(weight).__name__, "bias" if type(weight).__name__ == "Bias" else "weight") + (
            f" of the {weight.role} gate" if weight.role else ""
        )
    if symbol.role == "state":
        return "new state" if symbol.time == "t" else "state"
    return {"input": "input", "output": "output"}.get(symbol.role, "computed")


class Flow(NamedTuple):
    """How strongly the output depends on the states of 1, 2, ... steps before."""

    norms: tuple[float, ...]

    @property
    def factor(self) -> float:
        """What the norm is multiplied by each step, in the mean over the second half of the lags; 0 if it ends."""
        middle, last = self.norms[len(self.norms) // 2], self.norms[-1]
        return (last / middle) ** (1 / (len(self.norms) - 1 - len(self.norms) // 2)) if min(middle, last) > 0 else 0.0

    @property
    def verdict(self) -> str:
        if self.factor == 0.0:
            return "cut off"
        return "vanishing" if self.factor < 0.98 else "exploding" if self.factor > 1.02 else "kept"


def gradient_flow(cell: Cell, lags: int = LAGS) -> Flow:
    """‖∂y_T/∂s_{T-k}‖₂ for k = 1 ... lags: output y, all states s, input from N(0, 1), T = lags.

    The spectral norm is the largest factor by which a small change of the states can still change the output k steps
    later. The cell runs on one sequence, copied once for each number of the output, so that one backward pass gives all
    rows of all Jacobians.
    """
    like = next(cell.parameters(), torch.empty(0))
    x = torch.randn(lags, 1, cell.input_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x.to(like.dtype).expand(-1, cell.output_size, -1)
    state = cell.initial_state(x[0])
    kept = []
    for x_t in x:
        # copies, because an LSTM's h was made from its c, and that way from c to the output is not to count
        state = tuple(s.clone() if s.requires_grad else s.clone().requires_grad_() for s in state)
        kept.append(state)
        state = cell(x_t, *state)
    output = cell.readout(x[-1], *state)
    wanted = list(itertools.chain.from_iterable(kept))
    gradients = torch.autograd.grad(output, wanted, torch.eye(len(output), dtype=output.dtype), allow_unused=True)
    return Flow(tuple(_norms(gradients, len(state)))[::-1])


def _norms(gradients: tuple[Tensor | None, ...], states: int) -> Iterator[float]:
    for start in range(0, len(gradients), states):
        found = [g.flatten(1) for g in gradients[start : start + states] if g is not None]
        yield float(torch.linalg.matrix_norm(torch.cat(found, 1), 2)) if found else 0.0
