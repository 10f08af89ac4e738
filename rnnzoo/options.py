"""What any cell can be given without its equations being written again.

`Modifier` changes how a cell's `step` runs: layer norm, recurrent dropout, zoneout. `with_dropped_weights` leaves out
some of its weights, and `initialise` draws them in another way. All raise `UserError` for cells that cannot honour what
is asked, by name and reason.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rnnzoo.cell import Bias, Cell, InputWeight, RecurrentWeight, plain_step
from rnnzoo.errors import UserError, nearest

GAIN = "norm_gain"
"""The parameter that layer norm adds to a cell: the gains of all its products, one after another."""

INITIALIZERS: dict[str, Callable[[Tensor], object] | None] = {
    "default": None,
    "torch": None,
    "orthogonal": nn.init.orthogonal_,
    "xavier": nn.init.xavier_uniform_,
    "identity": nn.init.eye_,
}
"""By name: `default` is what the cell declares; `torch` draws every `InputWeight`, `RecurrentWeight` and `Bias`
uniformly from ±1/√H, as torch's own layers do; the others fill every `RecurrentWeight`."""


class Product(NamedTuple):
    """One product of matrices in `step`, [·, before] @ [before, after]: of the state or of other rows with something
    learned, or neither."""

    before: int
    after: int
    of_rows: bool
    of_state: bool


@dataclass(frozen=True)
class Modifier:
    """Runs a cell's `step` with layer norm, recurrent dropout and zoneout; a `rnnzoo.cell.Modifier`.

    In training the random masks of all time steps come in beside the input's features, so that every engine can run
    the step as it would run any other.
    """

    layer_norm: bool
    recurrent_dropout: float
    zoneout: float
    products: tuple[Product, ...]
    zoned: tuple[int, ...]

    @property
    def normed(self) -> list[int]:
        """Which products are normalised: all but those of a single number, of which only the sign would be left."""
        return [k for k, p in enumerate(self.products) if self.layer_norm and p.of_rows and min(p.before, p.after) > 1]

    @property
    def dropped(self) -> list[int]:
        """The sizes of what recurrent dropout masks, one mask each."""
        return sorted({p.before for p in self.products if p.of_state}) if self.recurrent_dropout else []

    @property
    def frozen(self) -> list[int]:
        """The sizes of the states that zoneout acts on, one mask each."""
        return sorted(set(self.zoned)) if self.zoneout else []

    def width(self, training: bool) -> int:
        """Features of the masks, which there are in training only."""
        return sum(self.dropped) + sum(self.frozen) if training else 0

    @property
    def reads(self) -> tuple[str, ...]:
        """The gains, if there are any."""
        return (GAIN,) if self.normed else ()

    def with_masks(self, x: Tensor) -> Tensor:
        """x [T, B, I] with masks drawn beside it: [T, B, I + width]."""
        steps, batch, _ = x.shape
        kept = x.new_full((1, batch, sum(self.dropped)), 1 - self.recurrent_dropout).bernoulli()
        kept = (kept / (1 - self.recurrent_dropout)).expand(steps, -1, -1)
        return torch.cat([x, kept, x.new_full((steps, batch, sum(self.frozen)), self.zoneout).bernoulli()], -1)

    def __call__(self, cell: Cell, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One step, from x [B, I + width] and all states to the new states."""
        x, *masks = x.split(
            [cell.input_size, *((*self.dropped, *self.frozen) if x.shape[1] > cell.input_size else ())], 1
        )
        dropped = dict(zip(self.dropped, masks))
        frozen = dict(zip(self.frozen, masks[len(self.dropped) :]))
        gains = getattr(cell, GAIN).split([self.products[k].after for k in self.normed]) if self.normed else ()
        gain = dict(zip(self.normed, gains))

        def change(k: int, product: Callable[[Tensor], Tensor], operand: Tensor, matrix: Tensor) -> Tensor:
            if self.products[k].of_state and dropped:
                operand = operand * dropped[operand.shape[1]]
            result = product(operand)
            return F.layer_norm(result, result.shape[1:], gain[k]) if k in gain else result

        with _Products(change) if self.layer_norm or dropped else nullcontext():
            new = plain_step(cell, x, state)
        if not self.zoneout:
            return new
        return tuple(
            frozen.get(size, self.zoneout) * s + (1 - frozen.get(size, self.zoneout)) * n if size else n
            for size, s, n in zip(self.zoned, state, new)
        )


class _Products(TorchFunctionMode):
    """Hands every product of rows with a matrix to `change(number, product, operand, matrix)`."""

    def __init__(self, change: Callable[[int, Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name not in ("matmul", "__matmul__", "mm", "linear") or args[0].dim() != 2 or args[1].dim() != 2:
            return func(*args, **(kwargs or {}))
        self.count += 1
        return self.change(self.count - 1, lambda operand: func(operand, *args[1:], **(kwargs or {})), *args[:2])


def modify(
    cell: Cell,
    layer_norm: bool = False,
    recurrent_dropout: float = 0.0,
    zoneout: float = 0.0,
    learn_initial_state: bool = False,
) -> None:
    """Give a cell layer norm, recurrent dropout, zoneout, and a learned initial state.

    Layer norm (Ba et al. 2016, arXiv:1607.06450, supplementary material) normalises every product with a learned matrix
    in `step` before it is added to another; the gains start at 1, and the cell's own biases are the biases. Recurrent
    dropout (Gal & Ghahramani 2016, arXiv:1512.05287) drops, with this probability and one mask a sequence, what such
    products of the state see; what an element-wise path carries is not touched. Zoneout (Krueger et al. 2017,
    arXiv:1606.01305) lets a unit keep all its states of the step before with this probability, and takes the mean
    when not training. Clocks go on in any case, and start at zero.

    Raises `UserError` when the cell has nothing that the option could act on.
    """
    name = type(cell).__name__
    check_shares(recurrent_dropout=recurrent_dropout, zoneout=zoneout)
    check_flags(layer_norm=layer_norm, learn_initial_state=learn_initial_state)
    if learn_initial_state:
        if type(cell).initial_state is not Cell.initial_state:
            raise UserError(f"learn_initial_state: {name} chooses its initial state itself")
        for state, shape in zip(cell.state_names, cell.state_shapes()):
            if not _clock(cell, state):
                cell.register_parameter(f"initial_{state}", nn.Parameter(torch.zeros(shape)))
    if not (layer_norm or recurrent_dropout or zoneout):
        return
    products = _products(cell) if layer_norm or recurrent_dropout else ()
    made = Modifier(layer_norm, float(recurrent_dropout), float(zoneout), products, _zoned(cell) if zoneout else ())
    if layer_norm and not made.normed:
        raise UserError(f"layer_norm: {name} has no product with a learned matrix of two or more rows and columns")
    if recurrent_dropout and not made.dropped:
        raise UserError(f"recurrent_dropout: {name} has no product of its state with a learned matrix")
    if made.normed:
        cell.register_parameter(GAIN, nn.Parameter(torch.ones(sum(products[k].after for k in made.normed))))
    cell.modifier = made


def dropped_weights(cell: Cell) -> list[str]:
    """The matrices that weight drop acts on: those declared for the state and learned."""
    return [key for key, w in cell.weights.items() if isinstance(w, RecurrentWeight) and w.trainable]


def with_dropped_weights(cell: Cell, share: float) -> Cell:
    """The cell with this share of its state's weights left out, drawn anew, and the others made larger to make up.

    Weight drop (Merity et al. 2018, arXiv:1708.02182, section 2), after DropConnect: one draw for all rows and time
    steps, through which gradients reach the weights that were kept. Raises `UserError` for a matrix that is computed
    from other tensors.
    """
    for key in dropped_weights(cell):
        if key not in cell._parameters:
            raise UserError(f"weight_drop: {key} is pruned or parametrized and so computed from other tensors")
    dropped = {key: F.dropout(getattr(cell, key), share) for key in dropped_weights(cell)}
    view = object.__new__(type(cell))
    vars(view).update(vars(cell) | {"_parameters": cell._parameters | dropped})
    return view


def check_flags(**flags: Any) -> None:
    """Raise `UserError` for an option that is neither true nor false."""
    for key, value in flags.items():
        if type(value) is not bool:
            raise UserError(f"{key} must be true or false, not {value!r}")


def check_shares(**shares: Any) -> None:
    """Raise `UserError` for an option that is no probability below 1."""
    for key, value in shares.items():
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise UserError(f"{key} must be at least 0 and below 1, not {value!r}")


def _products(cell: Cell) -> tuple[Product, ...]:
    """The products in the order in which `step` makes them."""
    probe = copy.deepcopy(cell).requires_grad_(False)

    def run(x_asks: bool) -> list[Product]:
        """What depends on the state, and if `x_asks` on the input, is what asks for a gradient."""
        found = []

        def note(k: int, product: Callable[[Tensor], Tensor], operand: Tensor, matrix: Tensor) -> Tensor:
            result = product(operand)
            asks = operand.requires_grad and not any(matrix is fixed for fixed in probe.buffers())
            found.append(Product(operand.shape[1], result.shape[1], asks, asks))
            return result

        like = next(chain(probe.parameters(), probe.buffers()), torch.empty(0))
        x = like.new_zeros(2, cell.input_size).requires_grad_(x_asks)
        with torch.enable_grad(), _Products(note):
            probe.step(x, *(s.detach().requires_grad_() for s in probe.initial_state(x)))
        return found

    return tuple(p._replace(of_state=q.of_state) for p, q in zip(run(True), run(False)))


def _zoned(cell: Cell) -> tuple[int, ...]:
    """The size of each state, 0 for clocks and past inputs, which go on."""
    sizes = []
    for name, shape in zip(cell.state_names, cell.state_shapes()):
        if len(shape) != 1:
            raise UserError(
                f"zoneout: {type(cell).__name__} has a state {name} of shape {list(shape)}, more than a number a unit"
            )
        sizes.append(0 if _clock(cell, name) or cell.dims_of(name) == ("input",) else shape[0])
    return tuple(sizes)


def _clock(cell: Cell, state: str) -> bool:
    return cell.dims_of(state) == (1,)


def initialise(cell: Cell, initializer: str = "default", forget_bias: float | None = None, chrono: int = 0) -> None:
    """Draw weights anew in another way than the cell declares.

    `initializer` is one of `INITIALIZERS`. `forget_bias` is where the bias of the gate that keeps the old state starts;
    where a gate replaces the old state, its negative. `chrono` (Tallec & Ollivier 2018, arXiv:1804.11188) is
    the longest dependency in time steps, T: a forget gate's biases are drawn from log U(1, T - 1), an input gate's are
    their negative, and so are those of a gate that replaces.

    Raises `UserError` when the cell has nothing of the kind.
    """
    name = type(cell).__name__
    if initializer not in INITIALIZERS:
        extra = "; chrono is a key of its own, chrono=STEPS" if initializer == "chrono" else ""
        raise UserError(f"initializer={initializer!r}: unknown; {nearest(str(initializer), INITIALIZERS)}{extra}")
    if forget_bias is not None and type(forget_bias) not in (int, float):
        raise UserError(f"forget_bias must be a number, not {forget_bias!r}")
    if type(chrono) is not int or chrono < 0 or chrono in (1, 2):
        raise UserError(f"chrono must be a number of time steps of 3 or more, or 0 for none, not {chrono!r}")
    if chrono and forget_bias is not None:
        raise UserError(
            "chrono and forget_bias both set the forget gate's bias; give one of them, and chrono=0 for none"
        )
    kinds = (InputWeight, RecurrentWeight, Bias) if initializer == "torch" else RecurrentWeight
    targets = [key for key, weight in cell.weights.items() if isinstance(weight, kinds)]
    if initializer != "default" and not targets:
        raise UserError(f"initializer={initializer}: {name} has no learned matrix on its state")
    fill = INITIALIZERS[initializer]
    bound = cell.hidden_size**-0.5
    with torch.no_grad():
        for key in targets if initializer != "default" else ():
            tensor = getattr(cell, key)
            fill(tensor) if fill else nn.init.uniform_(tensor, -bound, bound)
    if chrono or forget_bias is not None:
        _set_gates(cell, forget_bias, chrono)


def keeps(cell: Cell | type[Cell]) -> bool:
    """Whether a cell has a gate with a bias that keeps its state or lets go of it."""
    return any(weight.role in ("forget", "update") for weight in cell.weights.values())


@torch.no_grad()
def _set_gates(cell: Cell, forget_bias: float | None, chrono: int) -> None:
    roles = {key: weight.role for key, weight in cell.weights.items() if weight.role}
    if not keeps(cell):
        key = "chrono" if chrono else "forget_bias"
        raise UserError(f"{key}: {type(cell).__name__} has no gate with a bias that keeps its state or lets go of it")
    drawn = torch.empty(cell.hidden_size)
    drawn = drawn.uniform_(1, chrono - 1).log_() if chrono else drawn.fill_(forget_bias or 0.0)
    for key, role in roles.items():
        bias = getattr(cell, key)
        keep = drawn[: bias.shape[-1]] if bias.shape[-1] < len(drawn) else drawn  # one number may serve all units
        if role == "forget" or chrono or role == "update":
            bias.copy_(keep if role == "forget" else -keep)
