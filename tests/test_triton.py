"""Triton kernels without a GPU: run by Triton's interpreter against the plain loop, and compiled for GPUs.

A cell costs half a second, a process five; the machine code of one cell ten seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from rnnzoo import Recurrent, list_cells
from rnnzoo.engine.places import Unsupported
from rnnzoo.engine.plan import plan
from rnnzoo.engine.triton_blocks import LEAST, Blocks, divide
from rnnzoo.engine.triton_cost import graphs, pays, whole
from rnnzoo.engine.triton_emit import write

HERE = Path(__file__).parent

LEFT = {"clockwork": "remainder"}
"""Cells without a form in Triton, and the operation that has none."""

MEETING = ["lstm", "gru", "mgu", "lem", "min_gru", "eunn", "nru", "fast_weights", "mamba"]
"""With one product a step and several, without any, with states in pieces, with sums, and with matrices as states."""

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: pip install triton, on Linux")


def interpreted(H: int, parts: int, names: list[str]) -> dict[str, str]:
    """What tests/triton_interpreted.py says of each cell."""
    command = [sys.executable, "-W", "ignore", str(HERE / "triton_interpreted.py"), str(H), str(parts), *names]
    paths = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("group", range(4))
def test_loops_of_all_cells(group: int) -> None:
    """Outputs, states and gradients equal those of the plain loop, from random states and with ragged lengths."""
    names = [name for name in list_cells()[group::4] if name not in LEFT]
    found = interpreted(5, 1, names)
    assert list(found) == names
    assert {name: what for name, what in found.items() if what not in ("agrees", "is not traced")} == {}


@needs_triton
@pytest.mark.slow
def test_programs_that_share_rows() -> None:
    """The same where two programs keep a part of the features each, and meet to read those of the other."""
    assert interpreted(20, 2, MEETING) == dict.fromkeys(MEETING, "agrees")


@pytest.mark.parametrize("name", sorted(LEFT))
def test_what_has_no_form(name: str) -> None:
    made = plan(Recurrent(name, 3, 5)._cell(0))
    with pytest.raises(Unsupported, match=LEFT[name]):
        write(made, Blocks(LEAST, 1))
    assert not pays(made)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_compiled_for_a_gpu(capability: int) -> None:
    """Machine code that spills nothing, with the matrices in shared memory."""
    from triton_resources import compiled, resources

    made = plan(Recurrent("gru", 64, 64)._cell(0))
    registers, shared, spilled = resources(compiled(made, Blocks(8, 4, held=100_000), capability, "step"))
    assert registers < 255 and not spilled
    assert 3 * 64 * 16 * 4 <= shared <= 100_000


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
    assert whole(source, blocks, 64) == pytest.approx((4.7, 5.3), abs=0.1)
    assert graphs(source, 64) == pytest.approx((6.2, 6.2), abs=0.1)
    assert pays(plan(Recurrent("lstm", 256, 256)._cell(0)))
    assert not pays(plan(Recurrent("lstm", 8, 1024)._cell(0)))
