"""Times Triton's loops beside the other engines on a GPU, each case in a process of its own, compiled side by side.

`python tests/gpu_triton.py [SECONDS]` prints a table; cases that are not ready after so many seconds are left out.
"""

import json
import select
import subprocess
import sys
import time
from contextlib import nullcontext
from itertools import product

BIG, SMALL = (256, 64, 256, 256), (128, 64, 128, 128)

WAYS = {
    "held 8": {"rows": 8, "parts": 16, "held": 150000},
    "held 16": {"rows": 16, "parts": 16, "held": 150000},
    "held 16 warps 8": {"rows": 16, "parts": 16, "held": 150000, "warps": 8},
    "read 8": {"rows": 8, "parts": 16},
    "tf32x3 16": {"rows": 16, "parts": 16, "held": 150000, "precision": "tf32x3"},
    "tf32x3 16 warps 2": {"rows": 16, "parts": 16, "held": 150000, "precision": "tf32x3", "warps": 2},
    "tf32 16": {"rows": 16, "parts": 16, "held": 150000, "precision": "tf32"},
    "rows 16 alone": {"rows": 16, "parts": 1, "deep": 32, "warps": 8},
}


def cases():
    for cell, size in product(("lstm", "gru", "mgu", "lem", "min_gru"), (BIG, SMALL)):
        yield cell, size, "triton", {}
    for way in WAYS.values():
        yield "lstm", BIG, "triton", way
    for engine in ("native", "reference"):
        for cell, size in product(("lstm", "gru"), (BIG, SMALL)):
            yield cell, size, engine, {}
    for cell in ("mgu", "lem", "min_gru"):
        yield cell, BIG, "reference", {}
    for cell in ("lstm", "mgu"):
        yield cell, BIG, "graphs", {}


def work(cell, size, engine, way):
    """Compile and compare one case, say so, and time it when told to."""
    import torch

    from rnnzoo import Recurrent
    from rnnzoo.check import everything
    from rnnzoo.engine import serial
    from rnnzoo.engine.triton_blocks import Blocks
    from rnnzoo.engine.triton_kernel import TritonKernel

    T, B, I, H = size  # noqa: E741
    blocks = Blocks(**way) if way else None
    serial.LOOPS["triton"] = lambda plan, half: TritonKernel(plan, half, blocks)
    torch.manual_seed(0)
    layer = Recurrent(cell, I, H, engine="reference").cuda()
    short = torch.randn(16, B, I, device="cuda")
    states = [torch.rand(1, *s.shape, device="cuda") for s in layer._cell(0).initial_state(short[0])]
    compiled = engine in serial.LOOPS
    worst = 0.0
    x = torch.randn(T, B, I, device="cuda", requires_grad=True)

    def once(train=True):
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.set_grad_enabled(train):
            y, _ = layer(x)
            if train:
                y.sum().backward()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    with serial.only(engine) if compiled else nullcontext():
        for lengths in (None, torch.randint(1, 17, (B,))) if engine == "triton" else (None,):
            layer.engine = "reference"
            expected = {k: v.clone() for k, v in everything(layer, short, states, lengths).items()}
            layer.engine = "serial" if compiled else engine
            found = everything(layer, short, states, lengths)
            for key, value in expected.items():
                gap = float((found[key] - value).abs().max() / value.abs().max().clamp(min=1e-3))
                worst = max(worst, gap if gap == gap else float("inf"))
        once(), once(False)
        print("ready", flush=True)
        sys.stdin.readline()
        once(), once(False)
        many = 3 if engine == "reference" else 10
        print(json.dumps([min(once(False) for _ in range(many)), min(once() for _ in range(many)), worst]), flush=True)


def main(limit=80.0):
    """Start all cases, wait for them, and time one after the other."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("needs a CUDA device")
    began = time.monotonic()
    workers = []
    for case in cases():
        command = [sys.executable, __file__, json.dumps(case)]
        workers.append((case, subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True)))
    print("cell     size                 engine                      µs a step: forward     both  error")
    ready = []
    for case, worker in workers:
        cell, size, engine, way = case
        label = next((name for name, some in WAYS.items() if some == way), "default") if engine == "triton" else ""
        text = f"{cell:8} {size!s:20} {engine:9} {label:18}"
        left = max(0.1, limit - (time.monotonic() - began))
        if not select.select([worker.stdout], [], [], left)[0]:
            worker.kill()
            print(text, "not ready", flush=True)
        elif worker.stdout.readline() != "ready\n":
            print(text, (worker.communicate()[1].strip().splitlines() or ["nothing"])[-1][:300], flush=True)
        else:
            ready.append((text, size[0], worker))
    print(f"{len(ready)} of {len(workers)} ready after {time.monotonic() - began:.0f} s", flush=True)
    for text, steps, worker in ready:
        try:
            out, _ = worker.communicate("go\n", timeout=10)
            forward, both, worst = json.loads(out)
            print(f"{text} {forward / steps * 1e6:20.2f} {both / steps * 1e6:8.2f}  {worst:.0e}", flush=True)
        except Exception as error:
            worker.kill()
            print(text, type(error).__name__, str(error)[:200], flush=True)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].startswith("["):
        work(*json.loads(sys.argv[1]))
    else:
        main(*map(float, sys.argv[1:]))
