"""What Triton's kernels take of a GPU, compiled for it without one: a table of registers, shared memory and spills.

`python tests/triton_resources.py [CELL...]`, for 64 rows and states of 64 to 512 units, for A100 (sm_80) and H100 or
H200 (sm_90), and then those of scans. Compiling takes some seconds each, all of it a quarter of an hour.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rnnzoo import Recurrent
from rnnzoo.engine import triton_scan
from rnnzoo.engine.library import module
from rnnzoo.engine.plan import Plan, plan
from rnnzoo.engine.triton_blocks import LANES, LEAST, STAGES, Blocks, divide
from rnnzoo.engine.triton_emit import write

CELLS = ("rnn", "lstm", "gru", "mgu", "lstm_peephole", "lem", "janet", "cfn", "min_gru", "indrnn")
SIZES = (64, 128, 256, 512)
DEVICES = {90: (132, 227 << 10), 80: (108, 163 << 10)}
"""By compute capability: programs at once, and bytes of shared memory for each."""


def compiled(plan: Plan, blocks: Blocks, capability: int, name: str) -> Any:
    """The kernel `name` (recur, step or back) of a plan, compiled for a GPU of this compute capability."""
    function = getattr(module(write(plan, blocks).text, plan.name), name)
    types = {"lengths": "*i64", "counters": "*i32"}
    first = function.arg_names.index("T")
    signature = {a: types.get(a, "*fp32") if k < first else "i32" for k, a in enumerate(function.arg_names)}
    aligned: dict[Any, Any] = {(k,): [["tt.divisibility", 16]] for k in range(first)}
    options = {"num_warps": blocks.warps, "num_stages": 1, "enable_fp_fusion": True}
    return triton.compile(
        ASTSource(function, signature, {}, aligned), target=GPUTarget("cuda", capability, 32), options=options
    )


def scan(name: str, capability: int, complex: bool, anew: bool = False) -> Any:
    """`walk` or `compose` of triton_scan for numbers in float32, compiled for a GPU."""
    function = getattr(triton_scan, name)
    flags: dict[str, Any] = {"REVERSE": False, "COMPLEX": complex, "ANEW": anew, "BLOCK": LANES, "AHEAD": STAGES}
    pointers = function.arg_names[: function.arg_names.index("T")]
    kinds = dict.fromkeys(pointers, "*fp32") | dict.fromkeys(flags, "constexpr")
    signature = {argument: kinds.get(argument, "i32") for argument in function.arg_names}
    target, options = GPUTarget("cuda", capability, 32), {"num_warps": LANES // 32}
    return triton.compile(ASTSource(function, signature, flags), target=target, options=options)


def resources(kernel: Any) -> tuple[int, int, int]:
    """Registers of a thread, bytes of shared memory of a program, bytes that each thread spills."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (registers,), (stack,) = (re.findall(rf"{name}:(\d+)", text) for name in ("REG", "STACK"))
    return int(registers), int(kernel.metadata.shared), int(stack)


def rows(cells: tuple[str, ...]) -> Iterator[str]:
    for capability, (programs, memory) in DEVICES.items():
        for cell in cells:
            for H in SIZES:
                made = plan(Recurrent(cell, H, H)._cell(0))
                meets = any(write(made, Blocks(LEAST, 1)).meets)
                blocks = divide(64, H, meets, programs, memory, "ieee")
                found = [resources(compiled(made, blocks, capability, name)) for name in ("step", "back")]
                numbers = " | ".join(f"{r} | {s / 1024:.0f} | {spilled}" for r, s, spilled in found)
                grid = f"{-(-64 // blocks.rows)} x {blocks.parts}"
                yield f"| sm_{capability} | {cell} | {H} | {grid} | {numbers} |"


if __name__ == "__main__":
    print("| | cell | H | programs | forward: registers | KiB | spilled | backward: registers | KiB | spilled |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows(tuple(sys.argv[1:]) or CELLS):
        print(row, flush=True)
    print("\n| | kernel | numbers | starts anew | registers | KiB | spilled |\n|---|---|---|---|---|---|---|")
    for capability, name, complex, anew in product(DEVICES, ("walk", "compose"), (False, True), (False, True)):
        registers, shared, spilled = resources(scan(name, capability, complex, anew))
        words = "complex" if complex else "real", "yes" if anew else "no"
        print(f"| sm_{capability} | {name} | {' | '.join(words)} | {registers} | {shared / 1024:.0f} | {spilled} |")
