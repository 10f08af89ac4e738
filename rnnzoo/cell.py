"""What a cell is: parameters and hyperparameters declared at class top, and one `step` of its equations.

Shapes: B batch, I input size, H hidden size, T time steps.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, get_args, get_origin, overload

import torch
from torch import Tensor, nn

from rnnzoo.errors import UserError, nearest

Initializer: TypeAlias = "Callable[[Tensor], object] | float | str"
"""Fills a parameter in place: a function (`torch.nn.init.orthogonal_`), a constant, or the name of a hyperparameter or
of a method of the cell that takes the tensor."""


Role: TypeAlias = Literal["", "forget", "input", "update"]
"""What a gate's bias decides when it grows: the old state is kept ("forget"), the new is let in ("input"), or the new
takes the old one's place ("update")."""


NO_FLOAT64 = ("mps",)
"""Kinds of devices that have no numbers in double precision."""


def finest(x: Tensor) -> torch.dtype:
    """The most precise type of numbers that the device of x has."""
    return torch.float32 if x.device.type in NO_FLOAT64 else torch.float64


class Weight:
    """A parameter of a cell, declared by its dimensions, and the tensor itself when read from a cell.

    A dimension is "input", "hidden", a number, or the name of an `int` hyperparameter or of a property that returns
    one. Without `init` a matrix starts Glorot-uniform, anything else at zero. What is not `trainable` is drawn or
    computed once, saved with the cell, and never learned. `role` says what the bias of a gate decides.
    """

    name = ""

    def __init__(
        self, *dims: str | int, init: Initializer | None = None, trainable: bool = True, role: Role = ""
    ) -> None:
        if init is None:
            init = nn.init.xavier_uniform_ if len(dims) > 1 else 0.0
        if not (callable(init) or isinstance(init, (int, float, str))):
            raise TypeError(f"init must be a function, a number, or a hyperparameter's or method's name, not {init!r}")
        for dim in dims:
            if type(dim) not in (str, int):
                raise TypeError(f"{dim!r} is no dimension; an initialiser is given as init=")
        if role not in get_args(Role):
            raise TypeError(f"role must be one of {get_args(Role)}, not {role!r}")
        self.dims = dims
        self.init = init
        self.trainable = trainable
        self.role = role

    def __set_name__(self, owner: type, name: str) -> None:
        if self.name:
            raise TypeError(f"{self.name} and {name} share one declaration; declare each of them")
        self.name = name

    @overload
    def __get__(self, cell: None, owner: type) -> Weight: ...
    @overload
    def __get__(self, cell: Cell, owner: type) -> Tensor: ...
    def __get__(self, cell: Cell | None, owner: type) -> Weight | Tensor:
        if cell is None:
            return self
        tensor: Tensor | None = cell._parameters.get(self.name)
        if tensor is None:
            tensor = cell._buffers.get(self.name)
        if tensor is None:  # AttributeError, because nn.Module asks `hasattr` before it registers a parameter
            raise AttributeError(f"{type(cell).__name__} has not yet allocated {self.name}")
        return tensor

    def shape(self, cell: Cell) -> tuple[int, ...]:
        return _shape(cell, self.dims)

    def fill(self, cell: Cell) -> None:
        tensor = self.__get__(cell, type(cell))
        init = getattr(cell, self.init) if isinstance(self.init, str) else self.init
        with torch.no_grad():
            init(tensor) if callable(init) else tensor.fill_(init)


def _uniform(tensor: Tensor) -> None:
    bound = 1 / math.sqrt(tensor.shape[-1])
    nn.init.uniform_(tensor, -bound, bound)


def _fold(tensor: Tensor) -> None:
    rows = torch.arange(len(tensor), device=tensor.device)
    tensor.zero_()[rows, rows % tensor.shape[1]] = 1


class InputWeight(Weight):
    """[I, H] unless other dimensions are given, multiplies the input; Glorot-uniform."""

    def __init__(self, *dims: str | int, init: Initializer = nn.init.xavier_uniform_) -> None:
        super().__init__(*(dims or ("input", "hidden")), init=init)


class RawInput(Weight):
    """[I, H], not trainable: x @ it is the raw input where a paper adds or multiplies x itself to a state.

    The identity where I = H; features are padded with zeros where I < H; feature k is added to unit k mod H where
    I > H.
    """

    def __init__(self) -> None:
        super().__init__("input", "hidden", init=_fold, trainable=False)


class RecurrentWeight(Weight):
    """[H, H] unless other dimensions are given, multiplies the state; orthogonal."""

    def __init__(self, *dims: str | int, init: Initializer = nn.init.orthogonal_) -> None:
        super().__init__(*(dims or ("hidden", "hidden")), init=init)


class Bias(Weight):
    """[H] unless other dimensions are given, added; zero."""

    def __init__(self, *dims: str | int, init: Initializer = 0.0, role: Role = "") -> None:
        super().__init__(*(dims or ("hidden",)), init=init, role=role)


class Diagonal(Weight):
    """[H], multiplies a state element by element; uniform in ±1/√H."""

    def __init__(self, init: Initializer = _uniform) -> None:
        super().__init__("hidden", init=init)


class Scalar(Weight):
    """[], one number; zero."""

    def __init__(self, init: Initializer = 0.0) -> None:
        super().__init__(init=init)


def gate(bias: Initializer = 0.0, role: Role = "") -> tuple[InputWeight, RecurrentWeight, Bias]:
    """The usual three of a gate, W [I, H], U [H, H] and b [H]: `W_f, U_f, b_f = gate(bias=1.0, role="forget")`."""
    return InputWeight(), RecurrentWeight(), Bias(init=bias, role=role)


class State:
    """A state of `step` that is not [B, H]: its dimensions after the batch, given as a weight's are.

    `S = State("hidden", "hidden")` is a matrix memory S [B, H, H]; `t = State(1)`, one number a sequence, is a clock.
    """

    def __init__(self, *dims: str | int) -> None:
        self.dims = dims


def _shape(cell: Cell, dims: tuple[str | int, ...]) -> tuple[int, ...]:
    sizes = {"input": cell.input_size, "hidden": cell.hidden_size}
    shape = tuple(dim if isinstance(dim, int) else sizes[dim] if dim in sizes else getattr(cell, dim) for dim in dims)
    for dim, size in zip(dims, shape):
        if size < 1:
            raise UserError(f"{type(cell).__name__}: {dim} must be a positive integer, not {size!r}")
    return shape


class Hyperparameter(NamedTuple):
    """A declared hyperparameter: its type, its default, and the values it is limited to, if it is."""

    type: type
    default: Any
    choices: tuple[Any, ...]

    def check(self, owner: str, name: str, value: Any) -> Any:
        fits = type(value) is self.type or (self.type is float and type(value) is int)
        if not fits or (self.choices and value not in self.choices):
            wanted = " or ".join(map(repr, self.choices)) or self.type.__name__
            raise UserError(f"{owner}: {name} must be {wanted}, not {value!r}")
        return self.type(value)


class Modifier(Protocol):
    """Runs a cell's `step` in a changed way, on numbers of its own beside the input's features.

    It can be hashed and compared, so that a compiled step serves all cells that are changed alike.
    """

    def width(self, training: bool) -> int:
        """Features that it has beside the input's, in training or in evaluation."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the cell's parameters that it reads and `step` does not."""

    def __call__(self, cell: Cell, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One step, from x [B, I + width] and all states to the new states."""


def plain_step(cell: Cell, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The cell's step as it is written, its new states always in a tuple.

    Raises `UserError` when it returns anything else than a tensor or a tuple.
    """
    new = cell.step(x, *state)
    if isinstance(new, tuple):
        return new
    if not isinstance(new, Tensor):
        what = "nothing" if new is None else f"a {type(new).__name__}"
        raise UserError(f"{type(cell).__name__}.step returns {what}; write return {', '.join(cell.state_names)}")
    return (new,)


class Cell(nn.Module):
    """A recurrent cell. Subclasses declare parameters and hyperparameters and write `step`; all else is derived.

    A class attribute made by `InputWeight`, `RecurrentWeight`, `Bias`, `Diagonal`, `Scalar`, `RawInput`, `Weight` or
    `gate` is a parameter; one made by `State` tells the shape of the state of that name. An annotated `float`, `int`,
    `bool`, `str` or `Literal[...]` with a value is a hyperparameter: a keyword of the constructor and a field of the
    configuration.

    `step(self, x, *state)` maps x [B, I] and the states, [B, H] each, to the next states: a tensor, or a tuple for
    several. Names, number and order of the states are those of its arguments; a `State` of the same name tells another
    shape. It is pure: arithmetic, `@` and
    torch functions, no writes in place, no branching on data, no mixing of batch rows. The first state is
    the output unless `readout` is defined.
    """

    weights: ClassVar[dict[str, Weight]] = {}
    states: ClassVar[dict[str, State]] = {}
    hyperparameters: ClassVar[dict[str, Hyperparameter]] = {}
    state_names: ClassVar[tuple[str, ...]] = ()

    modifier: Modifier | None = None
    """Runs `step` in a changed way: see `rnnzoo.options` and `rnnzoo.resets`."""

    step: Callable[..., Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        bases = [base for base in reversed(cls.__mro__) if issubclass(base, Cell) and base is not Cell]
        declared = {n: d for base in bases for n, d in vars(base).items() if isinstance(d, (Weight, State))}
        cls.weights = {n: d for n, d in declared.items() if isinstance(d, Weight)}
        cls.states = {n: d for n, d in declared.items() if isinstance(d, State)}
        cls.hyperparameters = _hyperparameters(cls, bases)
        cls.state_names = _state_names(cls)
        _check_declarations(cls, declared)

    def __init__(self, input_size: int, hidden_size: int, **hyperparameters: Any) -> None:
        """Parameters are allocated and initialised; `UserError` for sizes below 1 and unknown hyperparameters."""
        super().__init__()
        name = type(self).__name__
        for key, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            if type(size) is not int or size < 1:
                raise UserError(f"{name}: {key} must be a positive integer, not {size!r}")
        for key in hyperparameters:
            if key not in self.hyperparameters:
                raise UserError(f"{name} has no hyperparameter {key!r}; {nearest(key, self.hyperparameters)}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        for key, declared in self.hyperparameters.items():
            setattr(self, key, declared.check(name, key, hyperparameters.get(key, declared.default)))
        for key, weight in self.weights.items():
            tensor = torch.empty(weight.shape(self))
            if weight.trainable:
                self.register_parameter(key, nn.Parameter(tensor))
            else:
                self.register_buffer(key, tensor)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter anew from its declared initialiser."""
        for weight in self.weights.values():
            weight.fill(self)

    def readout(self, x: Tensor, *state: Tensor) -> Tensor:
        """The output, from the input and the new states; any leading dimensions ([B] or [T, B])."""
        return state[0]

    @property
    def output_size(self) -> int:
        """Features of the output: those of the first state, or H where `readout` is defined."""
        return self.hidden_size if type(self).readout is not Cell.readout else self.state_shapes()[0][-1]

    @property
    def features(self) -> int:
        """Features of x as `forward` gets it: I, and what the modifier has beside them."""
        return self.input_size + (self.modifier.width(self.training) if self.modifier else 0)

    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each state after the batch: (H,) unless a `State` says otherwise."""
        return tuple(_shape(self, self.dims_of(name)) for name in self.state_names)

    @classmethod
    def dims_of(cls, state: str) -> tuple[str | int, ...]:
        """The dimensions that a state was declared with, after the batch."""
        return cls.states[state].dims if state in cls.states else ("hidden",)

    def initial_state(self, x: Tensor) -> tuple[Tensor, ...]:
        """States for x [B, I], one for each name in `state_names`: zero, or where it is learned, `initial_NAME`."""
        zeros = (x.new_zeros(x.shape[0], *shape) for shape in self.state_shapes())
        learned = (self._parameters.get(f"initial_{name}") for name in self.state_names)
        return tuple(zero if start is None else zero + start for zero, start in zip(zeros, learned))

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """One step, from x [B, I] and all states to the tuple of new states."""
        return plain_step(self, x, state) if self.modifier is None else self.modifier(self, x, state)

    def extra_repr(self) -> str:
        chosen = "".join(f", {name}={getattr(self, name)!r}" for name in self.hyperparameters)
        return f"{self.input_size}, {self.hidden_size}{chosen}"


RESERVED = (
    "cell", "input_size", "hidden_size", "num_layers", "bidirectional", "batch_first", "dropout", "layer_norm",
    "recurrent_dropout", "zoneout", "weight_drop", "projection", "residual", "block", "learn_initial_state",
    "initializer", "forget_bias", "chrono", "checkpoint_every", "engine",
)  # fmt: skip
"""Keywords of `Recurrent`, which no hyperparameter can be named after."""


def _hyperparameters(cls: type[Cell], bases: list[type]) -> dict[str, Hyperparameter]:
    found = {}
    for base in bases:
        for name, kind in inspect.get_annotations(base, eval_str=True).items():
            origin: Any = get_origin(kind)
            if name not in vars(base) or origin is ClassVar:
                continue
            choices = get_args(kind) if origin is Literal else ()
            plain = type(choices[0]) if choices else kind
            if plain not in (float, int, bool, str):
                raise TypeError(f"{cls.__name__}.{name} must be annotated float, int, bool, str or Literal, not {kind}")
            if name in RESERVED:
                raise TypeError(f"{cls.__name__}.{name}: Recurrent has a keyword of that name; choose another")
            # the value is the class's own, so that a subclass may change it without annotating it again
            declared = Hyperparameter(plain, getattr(cls, name), choices)
            declared.check(cls.__name__, name, declared.default)
            found[name] = declared
    return found


def _state_names(cls: type[Cell]) -> tuple[str, ...]:
    step = getattr(cls, "step", None)
    if step is None:
        return ()
    arguments = list(inspect.signature(step).parameters.values())
    plain = all(a.kind is a.POSITIONAL_OR_KEYWORD and a.default is a.empty for a in arguments)
    if len(arguments) < 3 or not plain:
        raise TypeError(f"{cls.__name__}.step must take self, x and its states, without defaults")
    return tuple(a.name for a in arguments[2:])


def _check_declarations(cls: type[Cell], declared: dict[str, Weight | State]) -> None:
    sizes = ["input", "hidden", *(n for n, h in cls.hyperparameters.items() if h.type is int)]
    for name, declaration in declared.items():
        for dim in declaration.dims:
            if isinstance(dim, str) and dim not in sizes and not isinstance(getattr(cls, dim, None), property):
                raise TypeError(f"{cls.__name__}.{name} has unknown dimension {dim!r}; {nearest(dim, sizes)}")
        start = None if isinstance(declaration, State) else declaration.init
        if isinstance(declaration, State) and cls.state_names and name not in cls.state_names:
            raise TypeError(f"{cls.__name__}.{name} is no state of step; {nearest(name, cls.state_names)}")
        if isinstance(start, str) and start not in cls.hyperparameters and not callable(getattr(cls, start, None)):
            hint = nearest(start, cls.hyperparameters)
            raise TypeError(f"{cls.__name__}.{name} starts from unknown hyperparameter {start!r}; {hint}")
