"""`rnnzoo probe RUN`: the dynamics of a trained model on its own data, as a table, CSV files, a picture and a page.

Shapes: T time steps, B sequences, I input size, S numbers of all states together.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnnzoo import Recurrent
from rnnzoo.cell import Cell
from rnnzoo.errors import UserError
from rnnzoo.explain import dynamics, probe
from rnnzoo.explain.equations import gates
from rnnzoo.files import writing
from rnnzoo.hydra import probe_report
from rnnzoo.hydra.probe_report import Rows
from rnnzoo.hydra.trained import Trained, data_of, load
from rnnzoo.lightning.carried_state import CarriedState
from rnnzoo.lightning.figures import save
from rnnzoo.plain import csv_cell, printable
from rnnzoo.progress import steps

STEPS, SEQUENCES = 64, 8
"""At most so many time steps of so many sequences are looked at."""

READ, READ_STEPS = 1024, 32
"""A task's variable is read off the states of so many sequences, at so many time steps."""

SLOW = 0.1
"""Points count as slow up to this share of the mean speed along the trajectories."""

TABLES = (
    "summary", "gradients", "reach", "eigenvalues", "singular_values", "exponents", "gates", "units", "trajectories",
    "fixed_points", "decodability",
)  # fmt: skip
"""What is written, each to a CSV file."""


def probe_runs(runs: Sequence[Path], out: Path | None, page: Path | None = None) -> None:
    """Measure each run and write what was found to its folder `probe`, or below `out`, beside one page for all.

    The page is written to `page` where that is given.

    Raises `UserError` for what is no run, for two that would be written to one folder, and for a model without a
    recurrent layer that reads in one direction.
    """
    pages = []
    models = [load(run) for run in runs]
    folders = [m.folder / "probe" if out is None else out / m.folder.resolve().name for m in models]
    twice = [folder for k, folder in enumerate(folders) if folder in folders[:k]]
    if twice:
        raise UserError(f"{twice[0]}: two of the runs would be written there; probe them one by one")
    for run, folder, trained in zip(runs, folders, models):
        title = f"{trained.settings['task']['name']} · {trained.settings['model']['cell']}"
        print(printable(f"probing {run}: {title}"), flush=True)
        tables = measure(trained)
        for name, rows in tables.items():
            _write(folder / f"{name}.csv", rows)
        save(folder / "probe.png", partial(probe_report.draw, tables, title))
        probe_report.show(tables["summary"], f"{title}, {run}")
        pages.append((f"{title}, {run}", tables, folder))
    page = page or (pages[0][2] if out is None else out) / "probe.html"
    with writing(page) as file:
        file.write_text(probe_report.page(pages), encoding="utf-8")
    print(printable(f"written: {page}"))


def measure(trained: Trained) -> dict[str, Rows]:
    """Everything that is measured, table by table."""
    data = data_of(trained)
    module, layers, inputs, batch = _at_work(trained, data)
    tables: dict[str, Rows] = {name: [] for name in TABLES}
    read = _decodable(module, layers, data)
    for name in steps(layers, "layer"):
        layer = layers[name]
        norms = probe.gradients(layer, lambda: _from_the_start(module).score(batch)[0])
        use = probe.gate_use(layer, inputs[name]) if _has_gates(layer) else [{}] * len(layer.cells)
        for index, (cell, x) in enumerate(zip(layer._cells(), probe.inputs_of(layer, inputs[name]))):
            where = {"layer": f"{name}.{index + 1}"}
            tables["gradients"] += [{**where, "step": t + 1, "norm": float(n)} for t, n in enumerate(norms[index])]
            tables["gates"] += [{**where, "gate": gate, **vars(found)} for gate, found in use[index].items()]
            tables["summary"].append(where | _of_cell(cell, x, where, tables))
            for variable, curve in read[name][index].items():
                tables["decodability"] += [
                    {**where, "variable": variable, "step": t, "r2": value} for t, value in curve.items()
                ]
    return tables


def _from_the_start(module: Any) -> Any:
    """The module, with no state carried along from other batches."""
    if isinstance(module, CarriedState):
        module.carry(None)
    return module


def _decodable(module: Any, layers: dict[str, Recurrent], data: Any) -> dict[str, list[dict[str, dict[int, float]]]]:
    """Of each layer's cells, of each of the task's variables, R² by time step; see `SequenceModule.variables`."""
    states: dict[str, list[list[Tensor]]] = {name: [[] for _ in layer.cells] for name, layer in layers.items()}
    targets: dict[str, list[Tensor]] = {}
    lengths: dict[str, int] = {}
    count = 0
    _from_the_start(module)
    for batch in data.val_dataloader():
        named = module.variables(batch)
        if not named or count >= READ:
            break
        found = probe.states_of(layers, partial(module.score, batch))
        if lengths != (lengths := {name: len(cells[0]) for name, cells in found.items()}) and count:
            break  # the last window of a text is shorter than the others
        count += len(next(iter(found.values()))[0][0])
        for name, cells in found.items():
            for kept, cell in zip(states[name], cells):
                kept.append(cell)
        for variable, target in named.items():
            targets.setdefault(variable, []).append(target)
    joined = {variable: torch.cat(parts, -1) for variable, parts in targets.items()}
    return {
        name: [_read(torch.cat(cell, 1), joined) if cell else {} for cell in cells] for name, cells in states.items()
    }


def _read(states: Tensor, targets: dict[str, Tensor]) -> dict[str, dict[int, float]]:
    """R² of each variable whose time, if it has one, is the states' [T, B, S], at some time steps, counted from 1."""
    T, B, _ = states.shape
    fitting = {name: target for name, target in targets.items() if target.dim() == 1 or len(target) == T}
    folds = min(5, B)
    if not fitting or folds < 2:
        return {}
    some = torch.linspace(0, T - 1, min(T, READ_STEPS)).long()
    wanted = torch.stack([target.expand(T, B)[some] for target in fitting.values()], -1)
    found = probe.decodability(states[some].double(), wanted, folds)  # [T, K]
    return {
        name: {int(t) + 1: float(value) for t, value in zip(some, curve) if value.isfinite()}
        for name, curve in zip(fitting, found.T)
    }


def _at_work(trained: Trained, data: Any) -> tuple[Any, dict[str, Recurrent], dict[str, Tensor], Any]:
    """The module, its layers that read forwards, what they read of the first validation batch, and that batch."""
    module = trained.module
    batch = next(iter(data.val_dataloader()))
    found: dict[str, Tensor] = {}
    layers = {name: part for name, part in module.named_modules() if isinstance(part, Recurrent)}

    def keep(name: str) -> Any:
        def hook(layer: Any, given: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            lengths = keywords.get("lengths")
            steps = len(given[0]) if lengths is None else int(lengths[:SEQUENCES].min())
            found.setdefault(name, given[0][:steps][:STEPS, :SEQUENCES].detach())

        return hook

    handles = [layer.register_forward_pre_hook(keep(name), with_kwargs=True) for name, layer in layers.items()]
    with torch.no_grad():
        _from_the_start(module).score(batch)
    for handle in handles:
        handle.remove()
    forward = {name: layer for name, layer in layers.items() if name in found and not layer.bidirectional}
    if not forward:
        raise UserError(
            f"{trained.folder}: its layers read in both directions, and dynamics have one; probe another run"
        )
    return module, forward, found, batch


def _has_gates(layer: Recurrent) -> bool:
    try:
        return bool(gates(layer._cell(0)))
    except UserError:  # a cell that cannot be read has none to be told
        return False


def _of_cell(cell: Cell, x: Tensor, where: dict[str, str], tables: dict[str, Rows]) -> dict[str, Any]:
    """A cell's line of the summary; what is listed by lag, eigenvalue and unit goes to the tables."""
    found = probe.examine(cell, x)
    visited = found.visited
    numbers = {name.replace("_", " "): value for name, value in found.numbers.items()}
    numbers = {"largest exponent" if name == "exponent" else name: value for name, value in numbers.items()}
    summary = {"states": visited.shape[-1], **numbers}
    if found.along is None:
        size = f"{visited.shape[-1]:,}"
        print(printable(f"{where['layer']}: Jacobians of {size} × {size} numbers are left out"))
        return summary
    tables["reach"] += [{**where, "lag": k, "norm": float(n)} for k, n in enumerate(found.along.reach, 1)]
    tables["exponents"] += [{**where, "rank": k, "exponent": float(e)} for k, e in enumerate(found.along.exponents, 1)]
    spectrum = found.along.spectrum
    for t, eigenvalues, singular_values in zip(found.along.steps, spectrum.eigenvalues, spectrum.singular_values):
        at = {**where, "step": int(t) + 1}
        tables["eigenvalues"] += [{**at, "real": float(v.real), "imaginary": float(v.imag)} for v in eigenvalues]
        tables["singular_values"] += [{**at, "rank": k, "value": float(v)} for k, v in enumerate(singular_values, 1)]
    silent = set(probe.dead(visited[1:]))
    tables["units"] += [
        {**where, "unit": n, "time constant": float(constant), "dead": n in silent}
        for n, constant in enumerate(found.along.time_constants)
    ]
    slow = SLOW * float((visited[1:] - visited[:-1]).norm(dim=-1).mean())
    still = dynamics.fixed_points(cell, visited[-1], x.mean((0, 1)), max(dynamics.FIXED, slow), steps=500)
    centre, axes = visited.flatten(0, 1).mean(0), probe.principal_axes(visited, 2)
    for sequence, path in enumerate(((visited - centre) @ axes).unbind(1)):
        tables["trajectories"] += [
            {**where, "sequence": sequence, "step": t, "first": float(a), "second": float(b)}
            for t, (a, b) in enumerate(path)
        ]
    for (a, b), speed, fixed, unstable in zip(
        (still.points - centre) @ axes, still.speeds, still.fixed, still.unstable
    ):
        tables["fixed_points"].append(
            {
                **where,
                "first": a,
                "second": b,
                "speed": speed,
                "kind": "fixed" if fixed else "slow",
                "unstable directions": unstable,
            }
        )
    return {
        **summary,
        "fixed points": sum(still.fixed),
        "of these unstable": sum(fixed and n > 0 for fixed, n in zip(still.fixed, still.unstable)),
        "slow points": len(still.points) - sum(still.fixed),
    }


def _write(path: Path, rows: Rows) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with writing(path) as started, started.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([csv_cell(row.get(key, "")) for key in columns] for row in rows)
