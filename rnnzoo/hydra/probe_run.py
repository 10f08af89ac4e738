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

TABLES = ("summary", "gradients", "reach", "eigenvalues", "gates", "units", "trajectories", "fixed_points")
"""What is written, each to a CSV file."""


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
    tables: dict[str, Rows] = {name: [] for name in TABLES}
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
        print(printable(f"{where['layer']}: Jacobians of {size:,} × {size:,} numbers are left out"))
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
    still = dynamics.fixed_points(cell, visited[-1], x.mean((0, 1)), steps=500)
    centre, axes = visited.flatten(0, 1).mean(0), probe.principal_axes(visited, 2)
    for sequence, path in enumerate(((visited - centre) @ axes).unbind(1)):
        tables["trajectories"] += [
            {**where, "sequence": sequence, "step": t, "first": float(a), "second": float(b)}
            for t, (a, b) in enumerate(path)
        ]
    for (a, b), speed, unstable in zip((still.points - centre) @ axes, still.speeds, still.unstable):
        place = {"first": float(a), "second": float(b)}
        tables["fixed_points"].append({**where, **place, "speed": float(speed), "unstable directions": unstable})
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
    """Gradients, reach, eigenvalues, time constants, paths with fixed points, gates; a colour for each layer."""
    figure = Figure(figsize=(14, 8), layout="constrained")
    figure.suptitle(title)
    (gradient, reach, paths), (plane, units, gates) = figure.subplots(2, 3)
    turn = torch.linspace(0, 2 * torch.pi, 200)
    plane.plot(turn.cos(), turn.sin(), color="0.6", linewidth=0.8)
    for number, layer in enumerate(row["layer"] for row in tables["summary"]):
        of_layer = {name: [row for row in rows if row["layer"] == layer] for name, rows in tables.items()}
        color = f"C{number}"

        def column(name: str, key: str, of_layer: dict[str, Rows] = of_layer) -> list[Any]:
            return [row[key] for row in of_layer[name]]

        gradient.plot(column("gradients", "step"), column("gradients", "norm"), color=color, label=layer)
        reach.plot(column("reach", "lag"), column("reach", "norm"), color=color)
        plane.plot(column("eigenvalues", "real"), column("eigenvalues", "imaginary"), ".", color=color)
        units.plot(sorted(column("units", "time constant")), color=color)
        for sequence in dict.fromkeys(column("trajectories", "sequence")):
            path = [row for row in of_layer["trajectories"] if row["sequence"] == sequence]
            paths.plot([r["first"] for r in path], [r["second"] for r in path], color=color, linewidth=0.7, alpha=0.5)
        for row in of_layer["fixed_points"]:
            face = "none" if row["unstable directions"] else color
            paths.plot(row["first"], row["second"], "o", color=color, markerfacecolor=face, markersize=8)
        names = [f"{gate} ({layer})" for gate in column("gates", "gate")]
        gates.barh(names, column("gates", "mean"), color=color)
        gates.plot(column("gates", "closed"), names, "|", color="0.3", markersize=12)
    for axes, along, kind in (
        (gradient, "time step t", "‖ ∂ loss / ∂ state(t) ‖"),
        (reach, "lag k in time steps", "‖ ∂ state(T) / ∂ state(T − k) ‖"),
        (units, "units, by their time constant", "time constants in steps"),
    ):
        axes.set(yscale="log", xlabel=along, title=kind)
    plane.set_aspect("equal", "datalim")
    plane.set_title("eigenvalues of the step's Jacobian")
    paths.set(xlabel="first principal component", ylabel="second", title="paths; fixed points ● attract, ○ repel")
    gates.set(xlim=(0, 1), title="gates: mean (bar), share closed (|)")
    gates.invert_yaxis()
    gradient.legend(frameon=False)
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
