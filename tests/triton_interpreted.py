"""Kernels that Triton's interpreter runs on a CPU, against torch.

A program of its own, for the interpreter must be chosen before Triton is imported: `TRITON_INTERPRET=1 python
tests/triton_interpreted.py JOB...` prints a line for each job, or for each part of one:

- CELL,H,PARTS: a cell's loop against the plain loop. With several PARTS the programs of a row run in turn, from one
  meeting to the next, in changing order;
- scan,CELL: the same of a cell that is affine in its state, solved as a whole and in chunks;
- scan,FORM: a recurrence in which a has one of the shapes in `FORMS`, against a loop;
- operations: what steps are made of, each on sixteen numbers of its own, in a step that has them all.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import gc
import inspect
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from listed import EVERY, Listed
from test_linear_scan import FORMS as VECTORS
from test_linear_scan import inputs
from test_listed import SIZES, Weighted
from test_operations import BINARY, UNARY
from torch import Tensor
from triton.runtime import interpreter

from rnnzoo import Recurrent, State
from rnnzoo.check import everything
from rnnzoo.engine import scan, serial, trace, triton_functions, triton_scan
from rnnzoo.engine.linear_scan import linear_scan
from rnnzoo.engine.triton_blocks import Blocks
from rnnzoo.engine.triton_kernel import TritonKernel

T, B, I = 3, 3, 3  # noqa: E741  I is the input size everywhere in this project


class Program(threading.Thread):
    """A program of a kernel, which waits for its turn at the beginning and whenever it meets others."""

    def __init__(self, kernel: Callable[..., None], arguments: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.kernel, self.arguments = kernel, arguments
        self.turn, self.waits = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None
        self.done = False
        self.start()

    def run(self) -> None:
        self.turn.acquire()
        try:
            self.kernel(**self.arguments)
        except BaseException as error:
            self.error = error
        self.done = True
        self.waits.release()

    def go_on(self) -> None:
        """Run to the next meeting or to the end."""
        if not self.done:
            self.turn.release()
            self.waits.acquire()
        if self.error is not None:
            raise self.error


def meet(counter: Any, goal: Any) -> None:
    program = threading.current_thread()
    assert isinstance(program, Program)
    program.waits.release()
    program.turn.acquire()


def side_by_side(kernel: Callable[..., None]) -> Callable[..., None]:
    """What the interpreter calls for each program of a grid; with the last one, all are run to their ends."""
    programs: list[Program] = []

    def program(**arguments: Any) -> None:
        programs.append(Program(kernel, arguments))
        programs[-1].go_on()
        if len(programs) == math.prod(interpreter.interpreter_builder.grid_dim):
            order = programs[:]
            while not all(p.done for p in programs):
                for p in order:
                    p.go_on()
                order.reverse()

    program.__signature__ = inspect.signature(kernel)  # type: ignore[attr-defined]
    return program


def difference(name: str, H: int, engine: str = "serial", resets: bool = False) -> float:
    """By how much outputs, states or gradients differ, relative to their greatest number; ragged lengths."""
    torch.manual_seed(0)
    layer = Recurrent(name, I, H, engine="reference").double()
    other = Recurrent(name, I, H, engine="reference").double()
    other.load_state_dict(layer.state_dict())
    other.engine = engine  # only now: it would be traced in float32 before
    steps = T if engine == "serial" else 7
    x, lengths = torch.randn(steps, B, I, dtype=torch.float64), torch.tensor([2, steps, 1])
    states = [torch.rand(1, *s.shape, dtype=torch.float64) for s in layer._cell(0).initial_state(x[0])]
    if resets:
        anew = torch.rand(steps, B) < 0.3
        for m in (layer, other):
            m.forward = partial(m.forward, resets=anew)  # type: ignore[method-assign]
    expected, found = (everything(m, x, states, lengths) for m in (layer, other))
    if engine == "serial":  # which has a kernel of its own for inference
        with torch.no_grad():
            expected["inference"], found["inference"] = (
                m(x, states[0] if len(states) == 1 else tuple(states))[0] for m in (layer, other)
            )
    return max(apart(found[key], value) for key, value in expected.items())


def apart(found: Tensor, expected: Tensor) -> float:
    """By how much two tensors differ, relative to the greatest number, or to one."""
    if not expected.numel():
        return 0.0
    gap = float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))
    return gap if gap == gap else math.inf


def loop(name: str, H: int, parts: int) -> str | float:
    """A cell's loop in one kernel."""
    blocks = None if parts == 1 else Blocks(2, parts, deep=16)
    serial.LOOPS["triton"] = lambda plan, half: TritonKernel(plan, half, blocks)
    with serial.only("triton"):
        if serial.refuses(Recurrent(name, I, H).double()._cell(0)) is not None:
            return "is not traced"
        return difference(name, H)


def chunked(count: int) -> AbstractContextManager[None]:
    """Have recurrences solved in so many chunks."""
    triton_scan.chunks = lambda T, lanes, size: count
    return scan.only("triton")


def scanned(name: str) -> float:
    """A cell that is affine in its state, or a recurrence."""
    worst = 0.0
    for count, second in product((1, 3), (False, True)):
        with chunked(count):
            worst = max(worst, recurrence(name, second) if name in FORMS else difference(name, 5, "scan", second))
    return worst


FORMS: dict[str, Callable[[int], tuple[int, ...]]] = VECTORS | {
    "column of a matrix": lambda T: (T, 2, 3, 1),
    "row of a matrix": lambda T: (T, 2, 1, 5),
    "row of all matrices": lambda T: (T, 1, 1, 5),
    "column of all matrices": lambda T: (1, 1, 3, 1),
    "of a matrix by number": lambda T: (T, 1, 3, 5),
}
"""Shapes of a that broadcast to b [T, 2, 3] or b [T, 2, 3, 5]."""


def recurrence(form: str, anew: bool) -> float:
    """h_t = a_t · h_{t-1} + b_t, real and complex, and its gradients, against a loop."""
    worst = 0.0
    for dtype, steps in product((torch.float64, torch.complex128), (1, 8)):
        a, b, h0 = inputs(FORMS[form](steps), steps, dtype)
        if a.dim() > 3:
            b, h0 = (torch.randn(*x.shape, 5, dtype=dtype) for x in (b, h0))
        marks = torch.rand(steps, 2, *[1] * (b.dim() - 2)) < 0.3 if anew else None
        weight, found = torch.randn(b.shape, dtype=dtype), []
        for kernel in (False, True):
            tensors = [x.clone().requires_grad_() for x in (a, b, h0)]
            h = linear_scan(*tensors, marks, kernel=True) if kernel else one_by_one(*tensors, marks)
            loss = (h * weight).sum()
            found.append([h, *torch.autograd.grad(loss.real if dtype.is_complex else loss, tensors)])
        worst = max(worst, *(apart(x, y) for x, y in zip(found[1], found[0])))
    return worst


def one_by_one(a: Tensor, b: Tensor, h: Tensor, anew: Tensor | None) -> Tensor:
    states = []
    for t, (a_t, b_t) in enumerate(zip(a.expand(b.shape), b)):
        h = a_t * h + b_t if anew is None else torch.where(anew[t], b_t, a_t * h + b_t)
        states.append(h)
    return torch.stack(states)


LISTED = (
    "gather", "index by a list", "max(dim)", "argmin", "one_hot", "scatter_add", "index_add",
    "scatter_add to what is read elsewhere", "prod", "cumsum", "cumsum of the middle", "cumprod", "strided slice",
    "matrix state @ weight", "all rows' rows", "bmm", "conv1d", "arange", "torch.tensor",
)  # fmt: skip
"""Of `listed.py`: a kind of each. All of it has a form, but takes a minute."""

NAMES = (
    "log2",
    "exp2",
    "aten.tan.",
    "round",
    "trunc",
    "isnan",
    "isinf",
    "fmax",
    "fmin",
    "fmod",
    "remainder",
    "xor",
    "pow 2.5",
)
"""Parts of names in `test_operations.py` of what no cell has."""

OPERATIONS: dict[str, Listed] = {name: EVERY[name] for name in LISTED}
for key, one in UNARY.items():
    if any(name in str(key) for name in NAMES):
        OPERATIONS[str(key)] = lambda v, m, W, K, b, f=one: f(v)
for key, two in BINARY.items():
    if any(name in str(key) for name in NAMES):
        OPERATIONS[str(key)] = lambda v, m, W, K, b, f=two: f(v, v.flip(1))


class Operations(Weighted):
    """All operations, one beside the other."""

    y, v = State(sum(SIZES.get(name, 16) for name in OPERATIONS)), State(16 * len(OPERATIONS))

    def step(self, x: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        each = zip(OPERATIONS.values(), v.unflatten(-1, (-1, 16)).unbind(1), strict=True)
        return torch.cat([self.apply(operation, part) for operation, part in each], -1), v


def operations() -> Iterator[tuple[str, float]]:
    """Numbers and gradients of each operation against torch, on ordinary numbers."""
    torch.manual_seed(0)
    rows = torch.randn(2, 16, dtype=torch.float64)
    rows[1, :8] = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 3.0, -3.0, 0.0])
    layer = Recurrent(Operations, 1, 1, engine="reference").double()
    sizes, found = [SIZES.get(name, 16) for name in OPERATIONS], []
    for engine in ("reference", "serial"):
        layer.engine = engine
        v = rows.repeat(1, len(OPERATIONS))[None].requires_grad_()
        with serial.only("triton"):
            output, _ = layer(rows.new_zeros(1, 2, 1), (rows.new_zeros(1, 2, sum(sizes)), v))
        (gradient,) = torch.autograd.grad(output.sum(), v)
        found.append([output.detach()[0].split(sizes, -1), gradient[0].split(16, -1)])
    for k, name in enumerate(OPERATIONS):
        pairs = [(theirs[k].nan_to_num(9.0), ours[k].nan_to_num(9.0)) for theirs, ours in zip(*found)]
        yield name, max(apart(ours, theirs) for theirs, ours in pairs)


def quick() -> None:
    """Save the interpreter most of its time."""
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
    # Triton's functions are changed once, not at each call of a kernel, or of a function in one, and back
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda fn: interpreter._LangPatchScope()
    interpreter.FunctionRewriter.rewrite_ast = lambda self: self.fn  # whose numbers are not made tensors
    interpreter.ReduceOps.generic_reduce = halved
    trace._try = lambda *arguments: None  # other tests do it
    gc.freeze()
    gc.set_threshold(100_000)


def halved(reduction: Any, numbers: tuple[Any]) -> list[Any]:
    """A reduction by its own function, of all rows at once and of a power of two numbers half with half."""
    (x,) = numbers
    left = np.moveaxis(x.handle.data, reduction.axis, -1)
    while left.shape[-1] > 1:
        halves = (reduction.to_tensor(half, x.dtype) for half in np.split(left, 2, axis=-1))
        left = reduction.combine_fn.fn(*halves).handle.data
    return [reduction.to_tensor(left[..., 0], x.dtype)]


def main(jobs: list[str]) -> None:
    triton_functions.meet = meet
    TritonKernel.proven = True  # by this comparison
    quick()
    begin = interpreter.GridExecutor.__init__

    def init(self: Any, fn: Any, *others: Any) -> None:
        begin(self, fn, *others)
        self.fn = side_by_side(self.fn)

    interpreter.GridExecutor.__init__ = init
    for job in jobs:
        kind, _, rest = job.partition(",")
        try:
            if kind == "operations":
                for name, gap in operations():
                    say(f"operations,{name}", gap)
            elif kind == "scan":
                say(job, scanned(rest))
            else:
                say(job, loop(kind, *map(int, rest.split(","))))
        except Exception as error:
            say(job, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def say(job: str, found: str | float) -> None:
    """Print what was found, or by how much something differs."""
    print(job, found if isinstance(found, str) or found > 1e-9 else "agrees", sep="\t", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
