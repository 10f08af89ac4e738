"""Loops that Triton's interpreter runs on a CPU, against the plain loop.

A program of its own, for the interpreter must be chosen before Triton is imported:
`TRITON_INTERPRET=1 python tests/triton_interpreted.py H PARTS CELL...` prints a line for each cell. With several PARTS
the programs of a row run in turn, from one meeting to the next, in changing order.
"""

from __future__ import annotations

import inspect
import math
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import triton.language as tl  # noqa: F401  the interpreter looks for it here
from triton.runtime import interpreter

from rnnzoo import Recurrent
from rnnzoo.check import everything
from rnnzoo.engine import serial, triton_functions
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


def difference(name: str, H: int) -> float:
    """By how much outputs, states or gradients differ, relative to their greatest number; ragged lengths."""
    torch.manual_seed(0)
    layer = Recurrent(name, I, H, engine="reference").double()
    other = Recurrent(name, I, H, engine="serial").double()
    other.load_state_dict(layer.state_dict())
    x, lengths = torch.randn(T, B, I, dtype=torch.float64), torch.tensor([2, T, 1])
    states = [torch.rand(1, *s.shape, dtype=torch.float64) for s in layer._cell(0).initial_state(x[0])]
    expected, found = everything(layer, x, states, lengths), everything(other, x, states, lengths)
    with torch.no_grad():  # a kernel of its own
        expected["inference"], found["inference"] = (
            m(x, states[0] if len(states) == 1 else tuple(states))[0] for m in (layer, other)
        )
    worst = 0.0
    for key, value in expected.items():
        if value.numel():
            gap = float((found[key] - value).abs().max()) / max(1.0, float(value.abs().max()))
            worst = max(worst, gap if gap == gap else math.inf)
    return worst


def main(H: int, parts: int, names: list[str]) -> None:
    triton_functions.meet = meet
    TritonKernel.proven = True  # by this comparison
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)  # half of the time
    blocks = None if parts == 1 else Blocks(2, parts, deep=16)
    serial.LOOPS["triton"] = lambda plan, half: TritonKernel(plan, half, blocks)
    if parts > 1:
        begin = interpreter.GridExecutor.__init__

        def init(self: Any, fn: Any, *others: Any) -> None:
            begin(self, fn, *others)
            self.fn = side_by_side(self.fn)

        interpreter.GridExecutor.__init__ = init
    with serial.only("triton"):
        for name in names:
            try:
                if serial.refuses(Recurrent(name, I, H)._cell(0)) is not None:
                    print(name, "is not traced", flush=True)
                    continue
                worst = difference(name, H)
                print(name, worst if worst > 1e-9 else "agrees", flush=True)
            except Exception as error:
                print(name, type(error).__name__, " ".join(str(error).split())[:300], flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
