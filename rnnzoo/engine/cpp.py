"""Plans as C++ kernels: the whole loop over time in one call, each thread with its own rows of the batch.

Any number of time steps, rows and ragged lengths runs through the same kernel. Kernels are compiled once and kept on
disk, in `kernels` under `$RNNZOO_CACHE` (default `~/.cache/rnnzoo`); `$CXX` names the compiler (default `g++`).

Shapes: T time steps, B batch; every tensor is [T, B, ...] but states at one time, [B, ...], and shared tensors.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, fx

from rnnzoo.engine.lower import Lowering, Place, Unsupported, pitch, shape_of
from rnnzoo.engine.plan import Plan
from rnnzoo.engine.trace import inputs, outputs
from rnnzoo.errors import UserError

FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared",
    "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip

TYPES = {torch.float32: "float", torch.float64: "double"}


class Kernel:
    """A plan compiled for the CPU. Raises `Unsupported` for an operation without a C++ form.

    Raises `UserError` when there is no working compiler.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.source = source(plan)
        self._library = _load(self.source, plan.name)

    def forward(
        self, leaves: Sequence[Tensor], stacks: Sequence[Tensor], shared: Sequence[Tensor], saved: Sequence[Tensor],
        lengths: Tensor | None, steps: int, saving: bool,
    ) -> None:  # fmt: skip
        """Run all time steps, filling `stacks` and `saved`.

        Each stack [T + 1, B, ...] holds its state's initial value first; one of [2, B, ...] keeps the last two values
        only, the last one at T modulo 2. Without `saved` the kernel for inference runs.
        """
        function = self._library.step if saving else self._library.recur
        wrap = (ctypes.c_int64 * len(stacks))(*(len(stack) for stack in stacks))
        self._call(function, stacks[0].shape[1], steps, wrap, lengths, [*leaves, *stacks, *shared, *saved])

    def backward(self, given: Sequence[Tensor | None], results: Sequence[Tensor], lengths: Tensor | None, steps: int) -> None:
        """Run all time steps backwards; see `back_parameters` for what is given and what results."""
        batch = results[0].shape[0]
        self._call(self._library.back, batch, steps, None, lengths, [*given, *results])

    def _call(self, function, batch, steps, wrap, lengths, tensors) -> None:  # type: ignore[no-untyped-def]
        pointers = (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))
        ends = None if lengths is None else ctypes.c_void_p(lengths.data_ptr())
        threads = min(torch.get_num_threads(), batch)
        function(ctypes.c_int64(steps), ctypes.c_int64(batch), ctypes.c_int64(threads), wrap, ends, pointers)


def source(plan: Plan) -> str:
    """The C++ of a plan: functions `recur` (inference), `step` and `back`."""
    dtype = inputs(plan.recur)[0].meta["val"].dtype
    if dtype not in TYPES:
        raise Unsupported(f"numbers of {dtype}")
    header = Path(__file__).with_name("kernel.h").read_text()
    parts = [f"using S = {TYPES[dtype]};", header, _forward("recur", plan, plan.recur)]
    parts += [_forward("step", plan, plan.derived.step), _backward(plan)]
    return "\n".join(parts)


def _forward(name: str, plan: Plan, graph: fx.Graph) -> str:
    states = plan.states
    places, pointers = {}, []
    for k, node in enumerate(inputs(graph)):
        label = str(node.target)
        place = Place.dense(label, shape_of(node), 0 if label.startswith("shared") else None)
        places[label] = place
        if label in states:
            state = states.index(label)
            pointers.append(f"S* {label} = p[{k}] + ((t % wrap[{state}]) * B + first) * {place.pitch};")
            pointers.append(f"S* new_{label} = p[{k}] + (((t + 1) % wrap[{state}]) * B + first) * {place.pitch};")
        elif label.startswith("shared"):
            pointers.append(f"S* {label} = p[{k}];")
        else:
            pointers.append(f"S* {label} = p[{k}] + (t * B + first) * {place.pitch};")
    results = []
    for k, node in enumerate(outputs(graph)):
        label = f"new_{states[k]}" if k < len(states) else f"saved{k - len(states)}"
        results.append(Place.dense(label, shape_of(node)))
        if k >= len(states):
            pointers.append(f"S* {label} = p[{len(inputs(graph)) + k - len(states)}] + (t * B + first) * {results[-1].pitch};")
    lowered = Lowering(graph, places, list(results))
    hold = [f"hold(rows, {places[s].pitch}, lengths + first, t, {s}, new_{s});" for s in states]
    step = ["for (int64_t t = 0; t < T; ++t) {", *pointers, lowered.code(), "if (lengths) {", *hold, "}", "}"]
    shared = {str(n.target): k for k, n in enumerate(inputs(graph)) if str(n.target).startswith("shared")}
    return _function(name, lowered, shared, [], step)


def back_parameters(plan: Plan) -> tuple[list[str], list[str]]:
    """What the kernel `back` takes, in order, by name.

    Given: `out_h` (gradient of the stack of each state, or none), `end_h` (of its last value, or none), then what the
    graph reads, stacks for `h` and `new_h` alike. Results: `d_h` [B, ...] for each state, `d_leaf0`..., `kept0`...
    """
    read = [str(n.target) for n in inputs(plan.derived.back) if not str(n.target).startswith("d_new_")]
    read = list(dict.fromkeys(name.removeprefix("new_") for name in read))
    given = [f"out_{s}" for s in plan.states] + [f"end_{s}" for s in plan.states] + read
    leaves = len(outputs(plan.project))
    results = [f"d_{s}" for s in plan.states] + [f"d_leaf{k}" for k in range(leaves)]
    return given, results + [f"kept{k}" for k in range(plan.derived.kept)]


def _backward(plan: Plan) -> str:
    graph, states = plan.derived.back, plan.states
    given, results = back_parameters(plan)
    number = {name: k for k, name in enumerate([*given, *results])}
    shapes = {str(n.target): shape_of(n) for n in inputs(plan.recur)}
    sizes = {s: Place.dense(s, shapes[s]).pitch for s in states}
    places, pointers = {}, []
    for node in inputs(graph):
        label = str(node.target)
        place = places[label] = Place.dense(label, shape_of(node), 0 if label.startswith("shared") else None)
        if label.startswith("d_new_"):
            continue
        if label.startswith("shared"):
            pointers.append(f"S* {label} = p[{number[label]}];")
        else:
            step = "(t + 1)" if label.removeprefix("new_") in states and label not in states else "t"
            pointers.append(f"S* {label} = p[{number[label.removeprefix('new_')]}] + ({step} * B + first) * {place.pitch};")
    wanted: list[Place | None] = []
    for label, node in zip(results, outputs(graph)):
        place = Place.dense(label, shapes[label[2:]] if node is None else shape_of(node))
        wanted.append(place)
        if label[2:] not in states:
            pointers.append(f"S* {label} = p[{number[label]}] + (t * B + first) * {place.pitch};")
    lowered = Lowering(graph, places, wanted)
    start, before, hold, end, extra = [], [], [], [], []
    for s in states:
        n = sizes[s]
        extra += [(f"d_new_{s}", n), (f"d_{s}", n), (f"held_{s}", n)]
        start.append(f"if (p[{number[f'end_{s}']}]) std::memcpy(d_new_{s}, p[{number[f'end_{s}']}] + first * {n}, rows * {n} * sizeof(S));")
        start.append(f"else std::memset(d_new_{s}, 0, rows * {n} * sizeof(S));")
        before.append(f"if (p[{number[f'out_{s}']}]) add(rows * {n}, p[{number[f'out_{s}']}] + (t * B + first) * {n}, d_new_{s});")
        before.append(f"if (lengths) {{ std::memcpy(held_{s}, d_new_{s}, rows * {n} * sizeof(S)); clear(rows, {n}, lengths + first, t, d_new_{s}); }}")
        hold.append(f"if (lengths) hold(rows, {n}, lengths + first, t, held_{s}, d_{s});")
        hold.append(f"std::swap(d_new_{s}, d_{s});")
        end.append(f"std::memcpy(p[{number[f'd_{s}']}] + first * {n}, d_new_{s}, rows * {n} * sizeof(S));")
    step = [*start, "for (int64_t t = T - 1; t >= 0; --t) {", *pointers, *before, lowered.code(), *hold, "}", *end]
    shared = {name: k for name, k in number.items() if name.startswith("shared")}
    return _function("back", lowered, shared, extra, step)


def _function(name: str, lowered: Lowering, shared: dict[str, int], extra: list[tuple[str, int]], step: list[str]) -> str:
    """A C++ function over blocks of rows, with packed matrices and scratch memory."""
    buffers = [(n, pitch(place)) for n, place in lowered.scratches.items()] + [(n, str(size)) for n, size in extra]
    total = " + ".join(f"rows_at_most * {size}" for _, size in buffers) or "0"
    carved = [f"S* {n} = memory; memory += rows_at_most * {size};" for n, size in buffers]
    allocations, packing, frees = [], [], []
    for pack, (place, K, N) in lowered.packs.items():
        allocations.append(f"S* {pack} = allocate({K} * padded({N}));")
        down, right = place.strides
        packing.append(f"pack(p[{shared[place.base]}] + {place.offset}, {K}, {N}, {down}, {right}, {pack});")
        frees.append(f"std::free({pack});")
    # with products, many rows share what is fetched of a matrix; without, few rows stay in the nearest cache
    most = 96 if lowered.packs else 8
    return "\n".join([
        f'extern "C" void {name}(int64_t T, int64_t B, int64_t threads, const int64_t* wrap, const int64_t* lengths, S* const* p) {{',
        f"int64_t blocks = threads * ((B + threads * {most} - 1) / (threads * {most}));",
        "int64_t rows_at_most = (B + blocks - 1) / blocks;",
        *allocations,
        "#pragma omp parallel num_threads(threads)",
        "{",
        *packing,
        f"S* const own = allocate({total});",
        "#pragma omp for schedule(static)",
        "for (int64_t block = 0; block < blocks; ++block) {",
        "const int64_t first = block * rows_at_most;",
        "const int64_t rows = B - first < rows_at_most ? B - first : rows_at_most;",
        "if (rows <= 0) continue;",
        "S* memory = own;",
        *carved,
        *step,
        "}",
        "std::free(own);",
        "}",
        *frees,
        "}",
    ])  # fmt: skip


_libraries: dict[str, ctypes.CDLL] = {}


def _load(source: str, name: str) -> ctypes.CDLL:
    """Compile, unless that was done before, and load."""
    compiler = os.environ.get("CXX", "g++")
    machine = f"{_version(compiler)} {platform.machine()} {_processor()} {FLAGS}"
    key = hashlib.sha256(f"{machine}\n{source}".encode()).hexdigest()[:24]
    if key not in _libraries:
        folder = Path(os.environ.get("RNNZOO_CACHE") or Path.home() / ".cache" / "rnnzoo") / "kernels"
        path = folder / f"{name}-{key}.so"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _compile(compiler, source, path, name)
        _libraries[key] = ctypes.CDLL(str(path))
    return _libraries[key]


def _compile(compiler: str, source: str, path: Path, name: str) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        text = Path(scratch) / f"{name}.cpp"
        text.write_text(source)
        built = Path(scratch) / "kernel.so"
        command = [compiler, *FLAGS, str(text), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            line = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[-300:])
            raise UserError(f"{name}: {compiler} cannot compile its kernel: {line}; use engine=reference")
        os.replace(built, path)  # at once, so that another process never loads half a file


@cache
def _version(compiler: str) -> str:
    if shutil.which(compiler) is None:
        raise UserError(f"engine=serial needs a C++ compiler, and there is no {compiler}; install one or set CXX")
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout.partition("\n")[0]


@cache
def _processor() -> str:
    """What the machine's processor can do: kernels in a shared home folder must not reach a lesser one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
