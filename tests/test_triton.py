"""Triton kernels without a GPU: run by Triton's interpreter against the plain loop, and compiled for GPUs.

A cell costs half a second, a process five; the machine code of one cell ten seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rnnzoo import Cell, Recurrent, list_cells
from rnnzoo.engine import choose
from rnnzoo.engine.plan import plan
from rnnzoo.engine.triton_blocks import LEAST, Blocks, divide
from rnnzoo.engine.triton_cost import chunks, graphs, operated, verdict, walked, whole
from rnnzoo.engine.triton_emit import write

HERE = Path(__file__).parent

LEFT: dict[str, str] = {}
"""Cells without a form in Triton, and the operation that has none."""

MEETING = ["lstm", "gru", "mgu", "lem", "min_gru", "eunn", "fast_weights", "mamba"]
"""With one product a step and several, without any, with states in pieces, with sums, and with matrices as states."""

SCANNED = ["min_gru", "lru", "gla"]
"""With a real state, a complex one, and a matrix."""

FORMS = [
    *("full", "column", "row", "time", "constant", "constant per sequence", "vector", "number", "column of a matrix"),
    *("row of a matrix", "row of all matrices", "column of all matrices", "of a matrix by number"),
]

JOBS = [
    *(f"{name},5,1" for name in list_cells() if name not in LEFT),
    *(f"{name},20,2" for name in MEETING),
    *(f"scan,{name}" for name in (*SCANNED, *FORMS)),
    "operations",
]
"""What tests/triton_interpreted.py is asked for."""

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: pip install triton, on Linux")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    """What it says of each."""
    command = [sys.executable, "-W", "ignore", str(HERE / "triton_interpreted.py"), *JOBS]
    paths = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(line.split("\t", 1) for line in done.stdout.splitlines())


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_kernels_in_the_interpreter(job: str, interpreted: dict[str, str]) -> None:
    """Outputs, states and gradients equal those of the plain loop, from random states and with ragged lengths.

    Also where two programs keep a part of the features each, and meet to read those of the other.
    """
    found = {part: what for part, what in interpreted.items() if part == job or part.startswith(f"{job},")}
    assert found and {part: what for part, what in found.items() if what not in ("agrees", "is not traced")} == {}


class Odd(Cell):
    """An operation that has no form in Triton."""

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.atan2(x, h)


def test_what_has_no_form_is_left_to_graphs_by_name() -> None:
    cell = Recurrent(Odd, 3, 3)._cell(0)
    assert verdict(plan(cell)) == "aten.atan2.default has no form in Triton"
    assert "by graphs of kernels: aten.atan2.default has no form in Triton" in choose(cell, 10**9, "cuda")[1]


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_compiled_for_a_gpu(capability: int) -> None:
    """Machine code that spills nothing: with the matrices in shared memory, and with loads that are begun ahead."""
    from triton_resources import compiled, resources, scan

    made = plan(Recurrent("gru", 64, 64)._cell(0))
    registers, shared, spilled = resources(compiled(made, Blocks(8, 4, held=100_000), capability, "step"))
    assert registers < 255 and not spilled
    assert 3 * 64 * 16 * 4 <= shared <= 100_000
    kernel = scan("walk", capability, complex=True)
    registers, _, spilled = resources(kernel)
    assert registers < 128 and not spilled
    assert "cp.async" in kernel.asm["ptx"]


@pytest.mark.parametrize("batch", [1, 7, 64, 130, 1000, 30000])
@pytest.mark.parametrize("widest", [1, 5, 64, 100, 256, 1000, 4096])
def test_all_programs_run_at_once(batch: int, widest: int) -> None:
    """Programs that wait for each other must; and together they have all rows and features."""
    blocks = divide(batch, widest, True, 132, 227 << 10, "ieee")
    rows = -(-batch // blocks.rows)
    assert blocks.parts == 1 or rows * blocks.parts <= 132
    assert blocks.rows & (blocks.rows - 1) == 0
    width = max(LEAST, 1 << (-(-widest // blocks.parts) - 1).bit_length())
    assert width * blocks.parts >= widest > width * (blocks.parts - 1)


def test_the_estimate() -> None:
    """The case that RESULTS.md works out by hand, and one whose products are all that counts."""
    source = write(plan(Recurrent("lstm", 256, 256)._cell(0)), Blocks(LEAST, 1))
    blocks = divide(64, 256, True, 132, 227 << 10, "ieee")
    assert (blocks.rows, blocks.parts) == (8, 16)
    assert whole(source, blocks, 64) == pytest.approx((4.5, 5.1), abs=0.1)
    assert graphs(source, 64) == pytest.approx((6.0, 6.0), abs=0.1)
    assert verdict(plan(Recurrent("lstm", 256, 256)._cell(0))) is None
    assert "estimated at" in str(verdict(plan(Recurrent("lstm", 8, 1024)._cell(0))))


def test_the_estimate_of_scans() -> None:
    """RESULTS.md works out the first case; wherever there is a kernel, it is estimated to take less than operations."""
    assert chunks(16384, 2048, 4) > 1
    assert walked(16384, 2048, 4) == pytest.approx(2458, rel=0.01)
    assert walked(16384, 2048, 4, chunks(16384, 2048, 4)) < 200
    assert chunks(128, 64 * 128, 4) == chunks(256, 64 * 256 * 256, 4) == 1
    for T, lanes, size in product((2, 7, 31, 32, 100, 1000, 10**5), (1, 100, 10**4, 10**6, 10**7), (4, 8, 16)):
        assert walked(T, lanes, size, chunks(T, lanes, size)) <= operated(T, lanes, size)
