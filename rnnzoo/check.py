"""The author's kit: whether a cell is what every part of this project takes it for.

`conformance` runs all checks on a cell class, registered or not. Each says what it found and, failing, what to do.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnnzoo.cell import Cell
from rnnzoo.engine import ENGINES
from rnnzoo.engine.plan import own_gradients
from rnnzoo.engine.rehearsal import rehearse
from rnnzoo.engine.trace import sample
from rnnzoo.errors import UserError
from rnnzoo.recurrent import Recurrent

T, B, I, H = 9, 3, 5, 12  # noqa: E741  I is the input size everywhere in this project

SIZES = ((1, 1), (9, 3), (20, 17))
"""T, B for the engines: a single step, and more than one block of rows and of time steps, whole and not."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Relative to the norm of what the plain loop gives."""

LONG = 1000
"""Time steps after which outputs and gradients must still be finite."""


class Failed(Exception):
    """What a check found wrong."""


@dataclass(frozen=True)
class Finding:
    """What one check found: `detail` in numbers or words, `advice` if it failed; `passed` is None if it was skipped."""

    check: str
    passed: bool | None
    detail: str
    advice: str = ""


def conformance(kind: type[Cell], dtypes: Sequence[torch.dtype] = tuple(TOLERANCE)) -> Iterator[Finding]:
    """All checks on a cell class, in order. After one that fails, what builds on it is skipped: it would only find the
    same fault under other names. Engines are compared in `dtypes`."""
    passed = True
    for title, check, advice in CHECKS:
        finding = _found(title, check, advice, kind) if passed else Finding(title, None, AFTER)
        passed = finding.passed is not False and passed
        yield finding
    for engine in (e for e in ENGINES if e != "reference"):
        yield compare(kind, engine, dtypes) if passed else Finding(f"engine={engine} {EQUALS}", None, AFTER)
    yield _found("documented", _documented, "write one; its first line is what `rnnzoo list` shows", kind)


AFTER = "mend what failed above first"
EQUALS = "equals the plain loop"


def _found(title: str, check: Callable[[type[Cell]], str], advice: str, kind: type[Cell]) -> Finding:
    torch.manual_seed(0)
    try:
        return Finding(title, True, check(kind))
    except Exception as error:  # whatever an author's code raises is a finding
        what = str(error).strip().partition("\n")[0]
        if isinstance(error, UserError):  # which says itself what to do
            what, _, cure = what.partition("; ")
            return Finding(title, False, what, cure or advice)
        return Finding(title, False, what if isinstance(error, Failed) else f"{type(error).__name__}: {what}", advice)


def shaken(cell: Cell) -> Cell:
    """The cell in float64 with noise on all parameters: none is zero, nor equal to another."""
    cell = cell.double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return cell


@torch.no_grad()
def reachable(cell: Cell, batch: int) -> tuple[Tensor, ...]:
    """States [B, ...] that can occur: after three random steps clocks have ticked and normalisers are positive."""
    like = sample(cell)
    state = cell.initial_state(like.new_zeros(batch, cell.input_size))
    for _ in range(3):
        state = cell(torch.randn(batch, cell.input_size).to(like), *state)
    return state


def everything(layer: Recurrent, x: Tensor, states: list[Tensor], lengths: Tensor | None) -> dict[str, Tensor]:
    """Output, final states and all gradients, by name, of one random linear function of output and final states."""
    x = x.clone().requires_grad_()
    states = [s.clone().requires_grad_() for s in states]
    output, final = layer(x, states[0] if len(states) == 1 else tuple(states), lengths)
    results = (output, *(final if isinstance(final, tuple) else (final,)))
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(r.shape, generator=generator, dtype=r.dtype).to(r.device) for r in results]
    layer.zero_grad()
    if any(r.requires_grad for r in results):
        torch.autograd.backward(
            [r for r in results if r.requires_grad], [w for w, r in zip(weights, results) if r.requires_grad]
        )
    found = {f"result {k}": r.detach() for k, r in enumerate(results)}
    named = {"x": x} | {f"state {k}": s for k, s in enumerate(states)} | dict(layer.named_parameters())
    return found | {f"gradient of {k}": torch.zeros_like(t) if t.grad is None else t.grad for k, t in named.items()}


def compare(kind: type[Cell], engine: str, dtypes: Sequence[torch.dtype] = tuple(TOLERANCE)) -> Finding:
    """Whether an engine gives what the plain loop does; one that does not take the cell is skipped, with its reason."""
    title = f"engine={engine} {EQUALS}"
    layer = Recurrent(kind, I, H, engine="reference").to(dtypes[0]).eval()
    reason = ENGINES[engine].refuses(layer._cell(0))
    if reason is not None:
        return Finding(title, None, f"not for this cell: {reason.partition('; use engine=')[0]}")
    layer.engine = engine
    started = time.perf_counter()
    try:
        layer(torch.randn(2, 1, I, dtype=dtypes[0]))
    except UserError as error:
        return Finding(title, False, str(error), OURS)
    seconds = time.perf_counter() - started
    worst = {dtype: max(_errors(kind, engine, dtype)) for dtype in dtypes}
    detail = ", ".join(
        f"{str(dtype).removeprefix('torch.')} {error:.0e} ({what})" for dtype, (error, what) in worst.items()
    )
    passed = all(error < TOLERANCE[dtype] for dtype, (error, _) in worst.items())
    return Finding(title, passed, f"{detail}; first call {seconds:.1f} s", "" if passed else OURS)


OURS = "this is a fault of rnnzoo: please report it; train with engine=reference meanwhile"


def _errors(kind: type[Cell], engine: str, dtype: torch.dtype) -> Iterator[tuple[float, str]]:
    """Relative errors of everything that a layer computes, with the name of each."""
    for steps, batch in SIZES:
        for ragged in (False, True):
            torch.manual_seed(steps)
            layers = [Recurrent(kind, I, H, bidirectional=True, engine="reference").to(dtype).eval() for _ in range(2)]
            layers[1].load_state_dict(layers[0].state_dict())
            layers[1].engine = engine  # set late: a layer made with it would be planned in float32 too
            x = torch.randn(steps, batch, I, dtype=dtype)
            states = [torch.stack(s) for s in zip(*(reachable(layers[0]._cell(k), batch) for k in range(2)))]
            lengths = torch.randint(1, steps + 1, (batch,)) if ragged else None
            if lengths is not None:
                x[torch.arange(steps)[:, None] >= lengths] = float("nan")
            expected, found = (everything(layer, x, states, lengths) for layer in layers)
            for key, value in expected.items():
                scale = value.norm() + torch.finfo(dtype).tiny
                error = float((found[key] - value).norm() / scale)
                yield (error if error == error else float("inf")), f"{key} at T={steps}, B={batch}"


def _layer(kind: type[Cell]) -> Recurrent:
    layer = Recurrent(kind, I, H, engine="reference").double().eval()
    shaken(layer._cell(0))
    return layer


def _x(batch: int = B) -> Tensor:
    return torch.randn(T, batch, I, dtype=torch.float64)


def _tuple(state: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def _drawing_alike(cell: Cell, *given: Tensor) -> tuple[Tensor, ...]:
    """A step, in which chance is the same each time."""
    torch.manual_seed(0)
    return cell.forward(*given)


def _same(found: Tensor, expected: Tensor, what: str, tolerance: float = 1e-9) -> float:
    """The relative error of `found`; raises `Failed` when it is above the tolerance."""
    if found.shape != expected.shape:
        raise Failed(f"{what} has shape {list(found.shape)}, not {list(expected.shape)}")
    expected = expected.detach()
    error = float((found.detach() - expected).norm() / (expected.norm() + torch.finfo(expected.dtype).tiny))
    if not error <= tolerance:
        raise Failed(f"{what} differs by {error:.0e}" if error == error else f"{what} is not a number")
    return error


def _declaration(kind: type[Cell]) -> str:
    if not kind.state_names:
        raise Failed(f"{kind.__name__} has no step")
    choices = [{key: choice} for key, h in kind.hyperparameters.items() for choice in h.choices]
    found = [f"{sum(p.numel() for p in kind(I, H).parameters()):,} parameters at I={I}, H={H}"]
    for options in [{}, *choices]:
        cell = kind(I, H, **options)
        for key in cell.weights:
            if not getattr(cell, key).isfinite().all():
                raise UserError(f"{key} does not start as finite numbers; give it another init=")
        found.append(rehearse(cell) or f"states {', '.join(kind.state_names)}")
    return "; ".join(dict.fromkeys(found))


def _documented(kind: type[Cell]) -> str:
    if not kind.__doc__:
        raise Failed("the class has no docstring")
    return kind.__doc__.strip().partition("\n")[0]


def _shapes(kind: type[Cell]) -> str:
    for dtype in (torch.float32, torch.float64):
        layer = Recurrent(kind, I, H, 2, bidirectional=True, engine="reference").to(dtype)
        output, state = layer(torch.randn(T, B, I, dtype=dtype))
        if output.shape != (T, B, layer.output_size) or output.dtype != dtype:
            raise Failed(f"the output is {output.dtype} {list(output.shape)}, not {dtype} {[T, B, layer.output_size]}")
        for name, shape, s in zip(kind.state_names, layer._cell(3).initial_state(torch.zeros(B, I)), _tuple(state)):
            if s.shape[:2] != (4, B) or s.dim() != shape.dim() + 1 or s.dtype != dtype:
                raise Failed(f"state {name} is {s.dtype} {list(s.shape)}, not {dtype} {[4, *shape.shape]}")
    one = Recurrent(kind, 1, 1, engine="reference")
    features = one(torch.randn(2, 1, 1))[0].shape[-1]
    if features != one.output_size:
        raise Failed(f"readout gives {features} features at I = H = 1 where output_size says {one.output_size}")
    return f"output [T, B, {kind(I, H).output_size}]"


def _rows(kind: type[Cell]) -> str:
    layer, x = _layer(kind), _x()
    other = x.clone()
    other[:, 1] = torch.randn_like(other[:, 1])
    before, after = layer(x)[0], layer(other)[0]
    _same(after[:, ::2], before[:, ::2], "a row's output, when another row's input is changed,", 1e-12)
    return "changing one row changes no other"


def _causal(kind: type[Cell]) -> str:
    layer, x = _layer(kind), _x()
    other = x.clone()
    other[4:] = torch.randn_like(other[4:])
    _same(layer(other)[0][:4], layer(x)[0][:4], "an earlier output, when later inputs are changed,", 1e-12)
    return "later inputs change no earlier output"


def _batches(kind: type[Cell]) -> str:
    layer, x = _layer(kind), _x(7)
    whole = layer(x)[0]
    for batch in (1, 2):
        _same(layer(x[:, :batch])[0], whole[:, :batch], f"the output of {batch} of 7 rows")
    _same(layer(x[:, 0])[0], whole[:, 0], "the output of a sequence without a batch")
    none = layer(x[:, :0])[0]
    if none.shape != whole[:, :0].shape:
        raise Failed(f"the output of no rows is of shape {list(none.shape)}")
    return "0, 1, 2 and 7 rows agree"


def _padding(kind: type[Cell]) -> str:
    layer, x = _layer(kind), _x()
    lengths = [T, 1, 4]
    padded = x.clone()
    for row, length in enumerate(lengths):
        padded[length:, row] = float("nan")
    output, final = layer(padded, lengths=lengths)
    for row, length in enumerate(lengths):
        alone, end = layer(x[:length, row : row + 1])
        _same(output[:length, row : row + 1], alone, f"the output of a padded sequence of {length}")
        for name, s, e in zip(kind.state_names, _tuple(final), _tuple(end)):
            _same(s[:, row : row + 1], e, f"the final {name} of a padded sequence of {length}")
    return "padded and truncated sequences agree"


def _chunks(kind: type[Cell]) -> str:
    layer, x = _layer(kind), _x()
    whole, end = layer(x)
    first, state = layer(x[:4])
    second, state = layer(x[4:], state)
    steps, state_of_steps = [], None
    for x_t in x:
        y, state_of_steps = layer.step(x_t, state_of_steps)
        steps.append(y)
    stepper = layer.stepper()
    frozen = torch.stack([stepper(x_t) for x_t in x])
    for way, output, final in (
        ("two pieces", torch.cat([first, second]), state),
        ("single steps", torch.stack(steps), state_of_steps),
        ("steps of a stepper", frozen, stepper.state),
    ):
        assert final is not None
        _same(output, whole, f"the output in {way} with the state carried")
        for name, s, e in zip(kind.state_names, _tuple(final), _tuple(end)):
            _same(s, e, f"the final {name} in {way}")
    return "two pieces, single steps and the whole agree"


def _pure(kind: type[Cell]) -> str:
    cell = shaken(kind(I, H))
    given = [torch.randn(B, I, dtype=torch.float64), *reachable(cell, B)]
    kept = [t.clone() for t in given]
    results = [_drawing_alike(cell, *given) for _ in range(2)]
    if not all(torch.equal(a, b) for a, b in zip(given, kept)):
        raise Failed("step writes to its arguments")
    for name, a, b in zip(kind.state_names, *results):
        _same(a, b, f"{name}, when the same step is taken twice,", 0.0)
    return "the same step gives the same result"


def _gradients(kind: type[Cell]) -> str:
    cell = shaken(kind(3, 4))
    own = own_gradients(cell)
    if own:
        return f"{', '.join(own)} has a gradient of its own, which is no derivative: not compared with numerical ones"
    count = len(cell.state_names)
    given = [torch.randn(2, 3, dtype=torch.float64), *reachable(cell, 2), *cell.parameters()]

    def step(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        state = _drawing_alike(cell, x, *others[:count])
        return cell.readout(x, *state), *state

    # the numerical derivative perturbs its arguments in place, so that the cell sees its parameters move
    torch.autograd.gradcheck(step, tuple(t.requires_grad_() for t in given), fast_mode=True)
    return "equal to numerical derivatives"


def _alive(kind: type[Cell]) -> str:
    layer = _layer(kind).train()  # some parameters only learn then, as phased_lstm's leak
    output, _ = layer(_x())
    if output.requires_grad:
        (output * torch.randn_like(output)).sum().backward()
    dead = [key for key, p in layer._cell(0).named_parameters() if p.grad is None or not p.grad.ne(0).any()]
    if dead:
        raise Failed(f"no gradient reaches {', '.join(dead)}")
    return f"all {len(list(layer.parameters()))} get gradient"


def _finite(kind: type[Cell]) -> str:
    layer = Recurrent(kind, I, H, engine="reference")
    x = torch.randn(LONG, 2, I, requires_grad=True)
    output, _ = layer(x)
    output.square().mean().backward()
    for what, tensor in {"x": x.grad, **{key: p.grad for key, p in layer._cell(0).named_parameters()}}.items():
        if tensor is not None and not tensor.isfinite().all():
            raise Failed(f"the gradient of {what} is not finite")
    if not output.isfinite().all():
        raise Failed("the output is not finite")
    return f"outputs up to {float(output.detach().abs().max()):.2g} at T={LONG}"


def _round_trip(kind: type[Cell]) -> str:
    first = shaken(kind(I, H))
    options = json.loads(json.dumps({key: getattr(first, key) for key in kind.hyperparameters}))
    second = kind(I, H, **options).double()
    second.load_state_dict(first.state_dict())
    third = pickle.loads(pickle.dumps(first))
    x = torch.randn(B, I, dtype=torch.float64)
    expected = _drawing_alike(first, x, *first.initial_state(x))
    for way, cell in (("loaded from its state dict", second), ("pickled", third)):
        for name, s, e in zip(kind.state_names, _drawing_alike(cell, x, *cell.initial_state(x)), expected):
            _same(s, e, f"{name} of a cell {way}", 0.0)
    return "state dict, hyperparameters and pickle give the same cell"


def _half(kind: type[Cell]) -> str:
    layer = Recurrent(kind, I, H, engine="reference").eval()
    x = torch.randn(T, B, I)
    expected = layer(x)[0]
    found = layer.bfloat16()(x.bfloat16())[0]
    if found.dtype != torch.bfloat16:
        raise Failed(f"with bfloat16 weights and inputs the output is {found.dtype}")
    own = own_gradients(kind(I, H))
    if own:  # as a threshold has: what rounding pushes over it is another spike
        if not found.isfinite().all():
            raise Failed("the output in bfloat16 is not finite")
        return f"finite; {', '.join(own)} may turn what is rounded into something else: not compared with float32"
    error = _same(found.float(), expected, "the output in bfloat16", 0.1)
    return f"within {error:.0e} of float32"


CHECKS: tuple[tuple[str, Callable[[type[Cell]], str], str], ...] = (
    ("declaration and step are valid", _declaration, "see docs/own_cell.md for what a cell declares"),
    ("shapes and dtypes", _shapes, "use no fixed sizes and no fixed dtype in step and readout"),
    ("rows of a batch are independent", _rows, "take no sum, mean or norm over dimension 0, and reshape no rows away"),
    ("causal", _causal, "step may see x and the states it is given, nothing else"),
    ("any batch size", _batches, "use no fixed batch size in step; x.shape[0] tells it"),
    ("padded equals truncated", _padding, "keep all that step remembers in its states"),
    ("pieces with carried state equal the whole", _chunks,
     "keep all that step remembers in its states, and let readout depend on x and the new states only"),
    ("pure", _pure, "write nothing in place, and leave chance to zoneout and recurrent_dropout"),
    ("gradients are right", _gradients,
     "look for detach, no_grad and rounding; what is no derivative on purpose belongs into an autograd.Function"),
    ("no dead parameter", _alive, "use every declared parameter in step or readout, or declare it trainable=False"),
    (f"finite after {LONG:,} steps", _finite,
     "start recurrent weights orthogonal or smaller, bound the state, or divide by a sum that cannot vanish"),
    ("saved, configured and pickled alike", _round_trip,
     "keep the class at the top level of its module, and set no attributes outside of declarations"),
    ("bfloat16", _half, "make constants of x's dtype, and keep sums that lose digits short"),
)  # fmt: skip
"""Title, check and advice; an engine's comparison follows for each engine, and a look at the docstring."""
