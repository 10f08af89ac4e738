"""Speed and memory of cells, side by side with the alternatives in one process.

Every round times all contenders in turn, so that a machine that drifts hits all alike, and what counts are the ratios
inside a round: rnnzoo's time over a rival's, below 1 where rnnzoo is faster.

Shapes: T time steps, B batch, I input size, H hidden size. Times in ms, memory in MB (10^6 bytes).
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.autograd.profiler import profile

from rnnzoo import registry
from rnnzoo.engine import ENGINES, scan, serial
from rnnzoo.engine.trace import reason
from rnnzoo.errors import UserError, nearest
from rnnzoo.plain import printable
from rnnzoo.recurrent import Recurrent

OURS = "rnnzoo"
KINDS = ("fwdbwd", "fwd")
DTYPES = ("float32", "float64", "bfloat16")

TORCHRECURRENT = {
    "antisymmetric": "AntisymmetricRNN", "atr": "ATR", "brc": "BR", "cfn": "CFN", "cornn": "coRNN", "dsgu": "DSGU",
    "fast_grnn": "FastGRNN", "fast_rnn": "FastRNN", "gated_antisymmetric": "GatedAntisymmetricRNN", "indrnn": "IndRNN",
    "intersection_rnn": "IntersectionRNN", "janet": "JANET", "lem": "LEM", "light_ru": "LightRU",
    "lstm_1997": "OriginalLSTM", "lstm_memory_control": "MCLSTM", "lstm_multiplicative": "MultiplicativeLSTM",
    "lstm_peephole": "PeepholeLSTM", "lstm_residual": "ResLSTM", "lstm_wmc": "WMCLSTM", "mgu": "MGU",
    "minimal_rnn": "MinimalRNN", "miru1": "MiRU1", "miru2": "MiRU2", "mut3": "MUT3", "nas": "NAS", "nbrc": "NBR",
    "ran": "RAN", "sgrn": "SGRN", "sgu": "SGU", "star": "STAR", "t_gru": "TGRU", "t_lstm": "TLSTM", "t_rnn": "TRNN",
    "tau_gru": "tauGRU", "ugrnn": "UGRNN", "unicornn": "UnICORNN",
}  # fmt: skip
"""torchrecurrent's layer for a registered name. Its LiGRU, MUT1, MUT2 and SCRN are left out: they do other work than
the papers' (no normalisation, a product where the paper takes x itself, a second product on the state)."""

PACKAGES = {"torchrecurrent": "'rnnzoo[bench]'", "jax": "'rnnzoo[bench]'", "flashrnn": "flashrnn"}
"""Rivals that are packages of their own, and how they are installed."""

Make: TypeAlias = "Callable[[int, int], nn.Module]"
"""Builds a layer from I and H; it maps [T, B, I] to an output [T, B, H] and a state."""


class Size(NamedTuple):
    """One problem to measure."""

    T: int
    B: int
    I: int  # noqa: E741
    H: int

    def __str__(self) -> str:
        return ",".join(map(str, self))


SIZES = (Size(25, 128, 1, 64), Size(128, 64, 128, 128), Size(256, 64, 256, 256), Size(48, 50, 128, 512),
         Size(504, 32, 64, 128))  # fmt: skip


def parse_size(text: str) -> Size:
    """`"128,64,128,128"` to a `Size`; `UserError` for anything but four positive integers."""
    if not re.fullmatch(r"0*[1-9]\d*(,0*[1-9]\d*){3}", text, re.ASCII):
        raise UserError(f"size {text!r} must be four positive integers T,B,I,H such as {SIZES[1]} (cells come first)")
    return Size(*map(int, text.split(",")))


@dataclass(frozen=True)
class Setting:
    """How to measure. `bfloat16` means autocast over float32 parameters and input; `threads=None` leaves them alone."""

    rivals: tuple[str, ...] = ("torch", "loop")
    engine: str = "auto"
    threads: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    rounds: int = 9

    def __post_init__(self) -> None:
        for key, value, known in (
            *(("rival", rival, [*RIVALS]) for rival in self.rivals),
            ("engine", self.engine, ["auto", *ENGINES]),
            ("dtype", self.dtype, DTYPES),
            ("device", self.device, ("cpu", "cuda")),
        ):
            if value not in known:
                raise UserError(f"no {key} is named {value!r}; {nearest(value, known)}")
        for key, number in (("threads", self.threads), ("rounds", self.rounds)):
            if number is not None and number < 1:
                raise UserError(f"{key} must be a positive integer, not {number}")
        for package, source in PACKAGES.items():
            if package in self.rivals and importlib.util.find_spec(package) is None:
                raise UserError(f"{package} is not installed; pip install {source}, or name other rivals")
        if "jax" in self.rivals and (self.dtype, self.device) != ("float32", "cpu"):
            raise UserError("jax is measured in float32 on CPUs only; leave out dtype and device, or name other rivals")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda: torch finds no CUDA device here; use device=cpu")


@dataclass
class Measured:
    """One contender at one size: ms of a call for each round by kind, peak memory, seconds of the first call."""

    engine: str
    ms: dict[str, list[float]]
    memory_mb: float
    first_s: float

    def median(self, kind: str) -> float:
        """Over the rounds, ms."""
        return median(self.ms[kind])

    def iqr(self, kind: str) -> float:
        """The interquartile range over the rounds, ms."""
        low, high = np.percentile(self.ms[kind], [25, 75])
        return float(high - low)


@dataclass
class Case:
    """One cell at one size: what was measured of each contender, and why the others of those that have it refused."""

    cell: str
    size: Size
    measured: dict[str, Measured] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def ratio(self, what: str, rival: str) -> float | None:
        """rnnzoo over the rival: the median over rounds for a kind, else "memory"; None where one was not measured."""
        ours, theirs = self.measured.get(OURS), self.measured.get(rival)
        if ours is None or theirs is None:
            return None
        if what == "memory":
            return ours.memory_mb / theirs.memory_mb
        return median(a / b for a, b in zip(ours.ms[what], theirs.ms[what]))


def run(
    cells: Iterable[str], sizes: Iterable[Size], setting: Setting, done: Container[tuple[str, Size]] = ()
) -> Iterator[Case]:
    """Measure every cell at every size but for what is `done`, with progress on stderr."""
    todo = [(cell, size) for cell, size in product(cells, sizes) if (cell, size) not in done]
    threads = torch.get_num_threads()
    torch.set_num_threads(setting.threads or threads)
    try:
        Contender(nn.RNN, Size(2, 2, 2, 2), setting)  # or the first contender's first call would pay for waking torch
        for number, (cell, size) in enumerate(todo, 1):
            print(printable(f"[{number}/{len(todo)}] {cell} {size}: "), end="", file=sys.stderr, flush=True)
            case = measure(cell, size, setting)
            print(_headline(case), file=sys.stderr)
            yield case
    finally:
        torch.set_num_threads(threads)


def measure(cell: str, size: Size, setting: Setting) -> Case:
    """One cell at one size: all contenders' first calls and memory, then the rounds."""
    case = Case(cell, size)
    contend(case, prepare(case, setting), setting.rounds)
    return case


def prepare(case: Case, setting: Setting) -> dict[str, Contender]:
    """All contenders that take the case, with their first calls behind them; none where rnnzoo refuses it."""
    contenders = {}
    for name, make in _makers(case.cell, setting).items():
        try:
            contenders[name] = Contender(make, case.size, setting)
        except (ValueError, torch.OutOfMemoryError) as error:
            if name == OURS and not isinstance(error, UserError):
                raise
            case.refused[name] = reason(error)
            if name == OURS:
                return {}
    return contenders


def contend(case: Case, contenders: dict[str, Contender], rounds: int) -> None:
    """Fill in the case what was measured of each contender, in so many rounds; nothing where there is none."""
    if not contenders:
        return
    memory = {name: contender.memory_mb() for name, contender in contenders.items()}
    ms = _rounds(contenders, rounds)
    for name, contender in contenders.items():
        engine = str(getattr(contender.layer, "engine_used", ""))
        case.measured[name] = Measured(engine, ms[name], memory[name], contender.first_s)


def _headline(case: Case) -> str:
    if OURS not in case.measured:
        return f"refused: {case.refused[OURS]}"
    ratios = (f", {case.ratio('fwdbwd', rival):.2f} of {rival}" for rival in case.measured if rival != OURS)
    return f"{case.measured[OURS].median('fwdbwd'):.3g} ms" + "".join(ratios)


def _makers(cell: str, setting: Setting) -> dict[str, Make]:
    makers: dict[str, Make] = {OURS: partial(Recurrent, cell, engine=setting.engine)}
    for rival in setting.rivals:
        make = RIVALS[rival](cell)
        if make is not None:
            makers[rival] = make
    return makers


def _torch(cell: str) -> Make | None:
    makes: dict[str, Make] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
    return makes.get(cell)


def _loop(cell: str) -> Make:
    return partial(Recurrent, cell, engine="reference")


def _torchrecurrent(cell: str) -> Make | None:
    if cell not in TORCHRECURRENT:
        return None
    return getattr(importlib.import_module("torchrecurrent"), TORCHRECURRENT[cell])


def _jax(cell: str) -> Make:
    return partial(importlib.import_module("rnnzoo.bench_jax").Layer, cell)  # jax takes a second to load


def _engine(engine: str, cell: str) -> Make | None:
    """The layer by an engine, by a loop of `serial`, or by a scan of torch's operations, where that takes the cell."""
    if engine in serial.LOOPS:
        return partial(_ByOneWay, "serial", engine, cell)
    of = ENGINES.get(engine, scan)
    if of.refuses(registry.get(cell)(1, 1)):
        return None
    return partial(Recurrent, cell, engine=engine) if engine in ENGINES else partial(_ByOneWay, "scan", engine, cell)


class _ByOneWay(Recurrent):
    """A layer that runs in one of the ways that an engine has, see `serial.LOOPS` and `scan.WAYS`."""

    def __init__(self, engine: str, way: str, cell: str, input_size: int, hidden_size: int) -> None:
        super().__init__(cell, input_size, hidden_size, engine=engine)
        self.way = way

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        with ENGINES[self.engine].only(self.way):
            return super().forward(*arguments, **keywords)


class _FlashRNN(nn.Module):
    """FlashRNN's LSTM (Pöppel et al. 2024, arXiv:2412.07752): a product of the input, then its kernel over time."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.project = nn.Linear(input_size, 4 * hidden_size)
        self.R = nn.Parameter(torch.randn(4, 1, hidden_size, hidden_size) / hidden_size**0.5)
        self.b = nn.Parameter(torch.zeros(4, 1, hidden_size))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kernels = importlib.import_module("flashrnn.flashrnn")
        Wx = self.project(x).transpose(0, 1).unflatten(-1, self.b.shape)  # [B, T, 4, 1, H]
        dtype = "bfloat16" if torch.is_autocast_enabled(x.device.type) else "float32"
        try:
            states, last = kernels.flashrnn(Wx, self.R, self.b, function="lstm", backend="triton_fused", dtype=dtype)
        except Exception as error:  # it raises what the compiler does where a size is too large for it
            raise ValueError(f"FlashRNN: {reason(error)}") from error
        return states[0, :, :, 0].transpose(0, 1), last  # [T, B, H]


def _flashrnn(cell: str) -> Make | None:
    return _FlashRNN if cell == "lstm" else None


RIVALS: dict[str, Callable[[str], Make | None]] = {
    "torch": _torch, "loop": _loop, "torchrecurrent": _torchrecurrent, "jax": _jax, "flashrnn": _flashrnn,
    **{name: partial(_engine, name) for name in ("native", "scan", "operations", *serial.LOOPS)},
}  # fmt: skip
"""Each gives its layer for a cell's registered name, or None where it has none."""


class Contender:
    """A layer with an input of its own. Making it includes its first forward and backward, `first_s` seconds.

    They include compiling, unless compiled code is found on disk or left from another size.
    """

    def __init__(self, make: Make, size: Size, setting: Setting) -> None:
        self.device = setting.device
        self.autocast = partial(torch.autocast, setting.device, torch.bfloat16, setting.dtype == "bfloat16")
        dtype = torch.float64 if setting.dtype == "float64" else torch.float32
        draw = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=dtype)
        self.x = draw(size.T, size.B, size.I).to(self.device).requires_grad_()  # [T, B, I]
        start = time.perf_counter()
        self.layer: Any = make(size.I, size.H).to(self.device, dtype)
        self.weights = draw(size.T, size.B, getattr(self.layer, "output_size", size.H)).to(self.device)  # of the output
        if isinstance(self.layer, Recurrent):
            self.layer.expected_calls = 10**9  # what `auto` takes for a long run
        self.fwdbwd()
        self.synchronize()
        self.first_s = time.perf_counter() - start

    def fwd(self) -> None:
        with torch.no_grad(), self.autocast():
            self.layer(self.x)

    def fwdbwd(self) -> None:
        if hasattr(self.layer, "gradients"):  # one that torch's autograd does not see
            self.layer.gradients(self.x, self.weights)
            return
        with self.autocast():
            loss = (self.layer(self.x)[0] * self.weights).sum()
        loss.backward()

    def seconds(self, kind: str, repeats: int = 1) -> float:
        """Of one call, on average; clearing the gradients is outside the clock."""
        call = getattr(self, kind)
        total = 0.0
        for _ in range(repeats):
            self.clear()
            self.synchronize()
            start = time.perf_counter()
            call()
            self.synchronize()
            total += time.perf_counter() - start
        return total / repeats

    def repeats(self, kind: str) -> int:
        """Calls a sample: several where one is too short to be timed well."""
        self.seconds(kind)
        once = self.seconds(kind)
        return 1 if once >= 2e-3 else math.ceil(10e-3 / once)

    def memory_mb(self) -> float:
        """The most that tensors take during forward and backward, above what is there before: MB."""
        self.clear()
        if hasattr(self.layer, "memory_mb"):
            return float(self.layer.memory_mb(self.x, self.weights))
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.fwdbwd()
            return (torch.cuda.max_memory_allocated() - before) / 1e6
        os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # or the profiler writes to stderr each time it is used
        with profile(profile_memory=True) as profiled:
            self.fwdbwd()
        changes = [event for event in profiled.kineto_results.events() if event.name() == "[memory]"]
        changes.sort(key=lambda event: event.start_ns())
        return float(np.cumsum([event.nbytes() for event in changes]).max()) / 1e6

    def clear(self) -> None:
        for tensor in (self.x, *self.layer.parameters()):
            tensor.grad = None

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def _rounds(contenders: dict[str, Contender], rounds: int) -> dict[str, dict[str, list[float]]]:
    """ms of every contender and kind in every round."""
    repeats = {(name, kind): contenders[name].repeats(kind) for name in contenders for kind in KINDS}
    ms: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in KINDS} for name in contenders}
    names = list(contenders)
    gc.collect()
    gc.disable()  # or one contender's garbage would be collected on another's time
    try:
        for number in range(rounds):
            first = number % len(names)  # nobody always runs in the caches that the same other leaves behind
            for kind in KINDS:
                for name in names[first:] + names[:first]:
                    ms[name][kind].append(1e3 * contenders[name].seconds(kind, repeats[name, kind]))
            gc.collect(0)
    finally:
        gc.enable()
    return ms


def machine(setting: Setting) -> str:
    """What the numbers were taken on, in one line."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    device = torch.cuda.get_device_name() if setting.device == "cuda" else found[1] if found else platform.processor()
    threads = setting.threads or torch.get_num_threads()
    plural = "" if threads == 1 else "s"
    return f"{device or platform.machine()}, {threads} thread{plural}, torch {torch.__version__}, {setting.dtype}"
