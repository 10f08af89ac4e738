"""`rnnzoo probe RUN`: the dynamics of a trained model on its own data, as a table, CSV files, a picture and a page.

Shapes: T time steps, B sequences, I input size, S numbers of all states together.
"""

from __future__ import annotations

import base64
import csv
import html
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from rnnzoo import Recurrent
from rnnzoo.cell import Cell
from rnnzoo.errors import UserError
from rnnzoo.explain import dynamics, probe
from rnnzoo.explain.equations import gates
from rnnzoo.files import writing
from rnnzoo.hydra.trained import Trained, data_of, load
from rnnzoo.lightning.figures import save
from rnnzoo.plain import csv_cell, printable
from rnnzoo.progress import steps

STEPS, SEQUENCES, FOLLOWED = 64, 8, 2
"""At most so many time steps of so many sequences are looked at; Jacobians along as many as FOLLOWED says."""

LARGEST = 1024
"""Numbers of all states together beyond which Jacobians, of their square, are left out."""

Rows = list[dict[str, Any]]


def probe_runs(runs: Sequence[Path], out: Path | None) -> None:
    """Measure each run and write what was found to its folder `probe`, or below `out`, beside one page for all.

    Raises `UserError` for what is no run, and for a model without a recurrent layer that reads in one direction.
    """
    pages = []
    for run in runs:
        trained = load(run)
        folder = trained.folder / "probe" if out is None else out / trained.folder.resolve().name
        title = f"{trained.settings['task']['name']} · {trained.settings['model']['cell']}"
        print(printable(f"probing {run}: {title}"), flush=True)
        tables = measure(trained)
        for name, rows in tables.items():
            _write(folder / f"{name}.csv", rows)
        save(folder / "probe.png", partial(draw, tables, title))
        _print(tables["summary"], f"{title}, {run}")
        pages.append((f"{title}, {run}", tables, folder))
    page = (pages[0][2] if out is None else out) / "probe.html"
    with writing(page) as file:
        file.write_text(_page(pages), encoding="utf-8")
    print(printable(f"written: {page}"))


def measure(trained: Trained) -> dict[str, Rows]:
    """Everything that is measured, table by table."""
    module, layers, inputs, batch = _at_work(trained)
    tables: dict[str, Rows] = {name: [] for name in ("summary", "gradients", "reach", "eigenvalues", "gates", "units")}
    for name in steps(layers, "layer"):
        layer = layers[name]
        norms = probe.gradients(layer, lambda: module.score(batch)[0])
        use = probe.gate_use(layer, inputs[name]) if _has_gates(layer) else [{}] * len(layer.cells)
        for index, (cell, x) in enumerate(zip(layer._cells(), probe.inputs_of(layer, inputs[name]))):
            where = {"layer": f"{name}.{index + 1}"}
            tables["gradients"] += [{**where, "step": t + 1, "norm": float(n)} for t, n in enumerate(norms[index])]
            tables["gates"] += [{**where, "gate": gate, **vars(found)} for gate, found in use[index].items()]
            tables["summary"].append(where | _of_cell(cell, x, where, tables))
    return tables


def _at_work(trained: Trained) -> tuple[Any, dict[str, Recurrent], dict[str, Tensor], Any]:
    """The module, its layers that read forwards, what they read of the first validation batch, and that batch."""
    module = trained.module
    batch = next(iter(data_of(trained).val_dataloader()))
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
        module.score(batch)
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
    visited = dynamics.trajectory(cell, x)
    size = visited.shape[-1]
    spread = {
        "participation ratio": probe.participation_ratio(visited[1:]),
        "dead units": len(probe.dead(visited[1:])),
        "mean norm": float(visited[1:].norm(dim=-1).mean()),
    }
    if size > LARGEST:
        print(f"{where['layer']}: Jacobians of {size:,} × {size:,} numbers are left out")
        return {"states": size, **spread}
    x, points = x[:, :FOLLOWED], visited[:, :FOLLOWED]
    norms = probe.reach(cell, x, len(x))
    tables["reach"] += [{**where, "lag": k + 1, "norm": float(n)} for k, n in enumerate(norms)]
    some = torch.linspace(0, len(x) - 1, min(len(x), 8)).long()
    found = dynamics.spectrum(dynamics.jacobians(cell, points[some, 0], x[some, 0]))
    tables["eigenvalues"] += [
        {**where, "step": int(t) + 1, "real": float(v.real), "imaginary": float(v.imag)}
        for t, values in zip(some, found.eigenvalues)
        for v in values
    ]
    constants = probe.time_constants(cell, x)
    tables["units"] += [{**where, "unit": n, "time constant": float(c)} for n, c in enumerate(constants)]
    still = dynamics.fixed_points(cell, points[-1], x.mean((0, 1)), steps=500)
    return {
        "states": size,
        "memory length": probe.memory_length(norms),
        "largest exponent": float(dynamics.lyapunov(cell, x, 1)[0]),
        "near the unit circle": found.near,
        **spread,
        "fixed points": len(still.points),
        "of these unstable": sum(n > 0 for n in still.unstable),
    }


def draw(tables: dict[str, Rows], title: str) -> Figure:
    """Gradients by step, reach by lag, eigenvalues, and time constants, a colour for each layer."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    figure.suptitle(title)
    kinds = figure.subplots(2, 2).flat
    for axes, (table, x, y, kind) in zip(
        kinds,
        (
            ("gradients", "step", "norm", "‖∂L/∂s(t)‖ by step t"),
            ("reach", "lag", "norm", "‖∂s(T)/∂s(T − k)‖ by lag k"),
            ("eigenvalues", "real", "imaginary", "eigenvalues of the step's Jacobian"),
            ("units", "unit", "time constant", "time constants in steps"),
        ),
    ):
        for number, layer in enumerate(dict.fromkeys(row["layer"] for row in tables[table])):
            rows = [row for row in tables[table] if row["layer"] == layer]
            values = [row[y] for row in rows]
            along = range(len(rows)) if table == "units" else [row[x] for row in rows]
            style = f"C{number}" + ("." if table == "eigenvalues" else "-")
            axes.plot(along, sorted(values) if table == "units" else values, style, label=layer)
        if table == "eigenvalues":
            turn = torch.linspace(0, 2 * torch.pi, 200)
            axes.plot(turn.cos(), turn.sin(), color="0.6", linewidth=0.8)
            axes.set_aspect("equal", "datalim")
        else:
            axes.set(yscale="log", xlabel="unit, by its time constant" if table == "units" else x)
        axes.set_title(kind)
        if tables[table]:
            axes.legend(frameon=False)
    return figure


def _write(path: Path, rows: Rows) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with writing(path) as started, started.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([csv_cell(row.get(key, "")) for key in columns] for row in rows)


def _print(rows: Rows, title: str) -> None:
    table = Table("", *(row["layer"] for row in rows), title=escape(printable(title)), title_justify="left")
    for key in list(dict.fromkeys(key for row in rows for key in row))[1:]:
        table.add_row(key, *(_shown(row.get(key)) for row in rows))
    Console().print(table)


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto } td, th { padding: .2em .8em; text-align: left }
tr + tr td { border-top: 1px solid #8884 } img { max-width: 100%; background: #fff; border-radius: .4rem }
"""


def _page(pages: list[tuple[str, dict[str, Rows], Path]]) -> str:
    """One page for all runs: a table with a column for each layer of each, and their pictures."""
    columns = [(title, row) for title, tables, _ in pages for row in tables["summary"]]
    keys = list(dict.fromkeys(key for _, row in columns for key in row))
    lines = []
    for key in keys:
        values = "".join(f"<td>{html.escape(_shown(row.get(key)))}</td>" for _, row in columns)
        lines.append(f"<tr><th>{html.escape(key)}</th>{values}</tr>")
    pictures = []
    for title, _, folder in pages:
        picture = folder / "probe.png"
        pictures.append(f"<h2>{html.escape(printable(title))}</h2>")
        if picture.is_file():
            data = base64.b64encode(picture.read_bytes()).decode()
            pictures.append(
                f'<img alt="gradients, reach, eigenvalues, time constants" src="data:image/png;base64,{data}">'
            )
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Dynamics</title>\n<style>{STYLE}</style>\n<h1>Dynamics</h1>\n"
        f"<table>{''.join(lines)}</table>\n" + "\n".join(pictures) + "\n</html>\n"
    )
