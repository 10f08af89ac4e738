"""Verify, then trust: what an engine computes on a device is compared with the plain loop before it is relied on.

The suite proves the C++ kernels for all cells. What else is compiled hangs on a device, a driver and compilers that no
suite has seen, so its first run is a trial: a few time steps of the real input by both, and outputs, states and
gradients compared. The verdict is kept beside the compiled kernels, under the same rules as these, for the plan, the
device, the driver and all versions; of what is damaged, or others may have written, a new one is made.

Shapes: T time steps, B batch, I input size.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
import weakref
from collections.abc import Hashable, MutableMapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx

from rnnzoo.cell import Cell
from rnnzoo.engine import library, reference
from rnnzoo.engine.plan import Plan, plan
from rnnzoo.engine.trace import reason, recorded
from rnnzoo.errors import UserError

logger = logging.getLogger("rnnzoo")

STEPS = 9
"""Time steps of a trial: more than are run in one call where several are, and not a whole number of calls."""

BEFORE = 2
"""Time steps by the plain loop before a trial, so that its states are such as occur."""


OTHERWISE = "; use engine=reference"


class Doubt(UserError):
    """Why an engine is not to be trusted with a cell on a device."""


def check(name: str, engine: ModuleType, prepared: Any, cell: Cell, x: Tensor) -> None:
    """Raise `Doubt` where `engine`, called `name`, does not compute what the plain loop does over x [T, B, I].

    `prepared` is what the engine's `prepare` gave. What is found once is remembered. All that a run over x and the
    backward pass after it need is compiled.
    """
    subject = engine.unproven(prepared, cell, x)
    if subject is None:
        return
    made = plan(cell, x)
    about = (name, *subject, str(_product(x)), str(x.device))
    known = _verdicts.setdefault(made, {})
    if about not in known:
        steps = max(STEPS, engine.tried(prepared, cell, x) if hasattr(engine, "tried") else 0)
        known[about] = _verdict(name, engine, made, about, cell, x, steps)
    if known[about] is None:
        try:
            engine.ready(prepared, cell, x)
        except UserError as error:
            known[about] = str(error).removesuffix(OTHERWISE)
    if known[about] is not None:
        raise Doubt(f"{made.name}: engine={name} is not trusted on {device(x)}: {known[about]}{OTHERWISE}")


_verdicts: MutableMapping[Plan, dict[Hashable, str | None]] = weakref.WeakKeyDictionary()


def _verdict(
    name: str, engine: ModuleType, made: Plan, about: tuple[Any, ...], cell: Cell, x: Tensor, steps: int
) -> str | None:
    """What was found before, or is found now: what is wrong, or None."""
    facts = {"engine": list(map(str, about)), "device": device(x), **versions(), "plan": _digest(made)}
    path = None
    try:
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
        path = library._folder(made.name) / f"{made.name}-{key}.json"
        return _read(path)
    except (OSError, ValueError, UserError) as error:  # ValueError: no verdict is there, or what is there is none
        logger.debug("no verdict on %s: %s", made.name, error)
    start = time.perf_counter()
    try:
        wrong, lasting = trial(engine, cell, x, steps), True
    except Exception as error:
        wrong, lasting = reason(error).removesuffix(OTHERWISE), not isinstance(error, torch.OutOfMemoryError)
    seconds = time.perf_counter() - start
    logger.info("engine=%s on %s with %s: %s (%.1f s)", name, device(x), made.name, wrong or "as it should be", seconds)
    if path is not None and lasting:
        try:
            _write(path, json.dumps({"wrong": wrong, **facts}, indent=1))
        except OSError as error:
            logger.debug("the verdict on %s cannot be kept: %s", made.name, error)
        else:
            wrong = wrong and f"{wrong} (remove {path} to try again)"
    return wrong


def trial(engine: ModuleType, cell: Cell, x: Tensor, steps: int = STEPS) -> str | None:
    """What an engine computes otherwise than the plain loop over the beginning of x [T, B, I], or None.

    All rows are taken, as an engine may have been compiled for so many, in full and up to lengths from 1 on.
    """
    saving = recorded(cell, x)  # before `inference_mode` allows gradients again
    with torch.inference_mode(False), torch.set_grad_enabled(saving):
        times = torch.arange(BEFORE + steps, device=x.device) % len(x)
        x = x.detach()[times].clone().nan_to_num(0.0, 0.0, 0.0)
        with torch.no_grad():
            _, state = reference.run(cell, x[:BEFORE], cell.initial_state(x[0]))
        lengths = 1 + torch.arange(x.shape[1], device=x.device) % steps
        for ends in (None, lengths):
            # hooks of a checkpoint around all this would compute it again; these keep what is saved as it is
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
                expected, found = (_results(e, cell, x[BEFORE:], state, ends) for e in (reference, engine))
            for name, value in expected.items():
                wrong = _difference(value, found[name], _product(x))
                if wrong is not None:
                    return f"{name} {wrong}"
    return None


def _results(
    engine: Any, cell: Cell, x: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None
) -> dict[str, Tensor]:
    """Output, states and, if they are recorded, the gradients of a random linear function of these, by name."""
    saving = torch.is_grad_enabled()
    x, *states = (t.detach().clone().requires_grad_(saving and t.is_floating_point()) for t in (x, *state))
    output, final = engine.run(cell, x, tuple(states), lengths)
    results = {"output": output} | {f"state {n}": s for n, s in zip(cell.state_names, final)}
    named = {"x": x} | {f"state {n}": s for n, s in zip(cell.state_names, states)} | dict(cell.named_parameters())
    asking = {name: t for name, t in named.items() if t.requires_grad}
    summed = [r for r in results.values() if r.requires_grad]
    found = {name: r.detach() for name, r in results.items()}
    if summed:
        generator = torch.Generator(x.device).manual_seed(0)
        weights = [torch.randn(r.shape, generator=generator, dtype=r.dtype, device=r.device) for r in summed]
        gradients = torch.autograd.grad(summed, list(asking.values()), weights, allow_unused=True)
        for (name, tensor), gradient in zip(asking.items(), gradients):
            found[f"gradient of {name}"] = torch.zeros_like(tensor) if gradient is None else gradient
    return found


def _difference(expected: Tensor, found: Tensor, product: torch.dtype | None) -> str | None:
    """What distinguishes two tensors beyond the rounding of their dtype, or of that of products, or None."""
    if expected.shape != found.shape:
        return f"is of shape {list(found.shape)}, not {list(expected.shape)}"
    epsilon = torch.finfo(product or expected.dtype).eps
    if expected.is_cuda and torch.backends.cuda.matmul.allow_tf32:
        epsilon = max(epsilon, 2**-10)
    same = (expected == found) | (expected.isnan() & found.isnan())
    size = torch.where(expected.isfinite(), expected, 0).norm()
    error = float(torch.where(same, 0, expected - found).norm() / (size + torch.finfo(expected.dtype).tiny))
    return None if error <= epsilon**0.5 else f"differs by {error:.0e} of its size"


def _product(x: Tensor) -> torch.dtype | None:
    """What autocast would have products computed in, or None."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def device(x: Tensor) -> str:
    """The device of a tensor in words."""
    return torch.cuda.get_device_name(x.device) if x.is_cuda else f"{x.device.type} ({_processor()})"


@cache
def _processor() -> str:
    return hashlib.sha256(library._processor().encode()).hexdigest()[:8]


@cache
def versions() -> dict[str, str]:
    """Of all that makes and runs what is compiled, this package's engine by its own text."""
    driver = Path("/proc/driver/nvidia/version")
    text = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*")) if path.is_file())
    found = {"driver": driver.read_text().partition("\n")[0] if driver.exists() else "", "torch": torch.__version__}
    try:
        found["triton"] = version("triton")
    except PackageNotFoundError:
        found["triton"] = ""
    return found | {"CUDA": str(torch.version.cuda), "rnnzoo": hashlib.sha256(text).hexdigest()[:16]}


def _digest(made: Plan) -> str:
    """A plan by its graphs and their sizes."""
    graphs = (made.prepare, made.project, made.recur)
    return hashlib.sha256("\n".join(map(_text, graphs)).encode()).hexdigest()[:24]


def _text(graph: fx.Graph) -> str:
    values = [n.meta["val"] for n in graph.nodes if n.op == "placeholder"]
    return "\n".join([*(f"{list(v.shape)} {v.dtype}" for v in values), str(graph)])


def _write(path: Path, text: str) -> None:
    """Write a verdict, its checksum before it, so that it is whole or not there."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
    Path(file.name).replace(path)  # only its owner may read or write what tempfile makes


def _read(path: Path) -> str | None:
    """A verdict. Raises `ValueError` or `OSError` where there is none that is whole and one's own."""
    with path.open(encoding="utf-8") as file:
        if library._of_others(os.fstat(file.fileno())):
            raise ValueError(f"others may write to {path}")
        digest, _, text = file.read().partition("\n")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise ValueError(f"{path} is damaged")
    wrong = json.loads(text)["wrong"]
    return wrong and f"{wrong} (remove {path} to try again)"
