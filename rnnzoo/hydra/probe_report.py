"""What `rnnzoo probe` shows of its tables: a summary in the terminal, a picture of each run, and one page."""

from __future__ import annotations

import base64
import html
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rnnzoo.plain import printable

Rows = list[dict[str, Any]]
"""Of a table, by column."""


def draw(tables: dict[str, Rows], title: str) -> Figure:
    """All tables but the summary, a panel each; a colour for each layer."""
    figure = Figure(figsize=(15, 12), layout="constrained")
    figure.suptitle(title)
    (gradient, reach, read), (plane, singular, exponents), (paths, units, gates) = figure.subplots(3, 3)
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
        singular.plot(column("singular_values", "rank"), column("singular_values", "value"), ".", color=color)
        exponents.plot(column("exponents", "rank"), column("exponents", "exponent"), "o-", color=color)
        units.plot(sorted(column("units", "time constant")), color=color)
        for variable, style in zip(dict.fromkeys(column("decodability", "variable")), cycle(("-", "--", ":", "-."))):
            curve = [row for row in of_layer["decodability"] if row["variable"] == variable]
            label = f"{variable} ({layer})"
            read.plot([r["step"] for r in curve], [r["r2"] for r in curve], style, color=color, label=label)
        for sequence in dict.fromkeys(column("trajectories", "sequence")):
            path = [row for row in of_layer["trajectories"] if row["sequence"] == sequence]
            paths.plot([r["first"] for r in path], [r["second"] for r in path], color=color, linewidth=0.7, alpha=0.5)
        for row in of_layer["fixed_points"]:
            face, form = ("none" if row["unstable directions"] else color), ("o" if row["kind"] == "fixed" else "s")
            paths.plot(row["first"], row["second"], form, color=color, markerfacecolor=face, markersize=8)
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
    singular.set(xlabel="rank", title="singular values of the step's Jacobian")
    exponents.set(xlabel="rank", title="largest Lyapunov exponents")
    paths.set(xlabel="first principal component", ylabel="second")
    paths.set_title("paths; fixed ● and slow ■ points: full attract, hollow repel", fontsize="medium")
    read.set(xlabel="time step t", ylim=(-0.1, 1.05), title="R² of a linear map from the states")
    gates.set(xlim=(0, 1), title="gates: mean (bar), share closed (|)")
    gates.invert_yaxis()
    gradient.legend(frameon=False)
    if tables["decodability"]:
        read.legend(frameon=False, fontsize="small")
    else:
        read.text(0.5, 0.5, "the task names no variable", ha="center", transform=read.transAxes)
    return figure


def show(rows: Rows, title: str) -> None:
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


def _readings(pages: list[tuple[str, dict[str, Rows], Path]]) -> str:
    """What can be read off the states: for each variable of each layer R² at its best step and at the last."""
    head = ("run", "layer", "variable", "R² at best", "at step", "R² at the last step")
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    for title, tables, _ in pages:
        curves: dict[tuple[str, str], Rows] = {}
        for row in tables["decodability"]:
            curves.setdefault((row["layer"], row["variable"]), []).append(row)
        for (layer, variable), curve in curves.items():
            best = max(curve, key=lambda row: row["r2"])
            cells = (title, layer, variable, _shown(best["r2"]), best["step"], _shown(curve[-1]["r2"]))
            lines.append("".join(f"<td>{html.escape(printable(cell))}</td>" for cell in cells))
    rows = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        "<h2>What can be read off the states</h2>\n<p>R² of a linear map from the states to a variable of the task, by "
        "cross-validated ridge regression: 1 if it is read off exactly, 0 if no better than the mean.</p>\n"
        f"<table>{rows}</table>"
    )


def page(pages: list[tuple[str, dict[str, Rows], Path]]) -> str:
    """One page for all runs: a table with a column for each layer of each, and their pictures."""
    columns = [(title, row) for title, tables, _ in pages for row in tables["summary"]]
    keys = list(dict.fromkeys(key for _, row in columns for key in row))
    titles = "".join(f"<td>{html.escape(printable(title))}</td>" for title, _ in columns)
    lines = [f"<tr><th>run</th>{titles}</tr>"]
    for key in keys:
        values = "".join(f"<td>{html.escape(_shown(row.get(key)))}</td>" for _, row in columns)
        lines.append(f"<tr><th>{html.escape(key)}</th>{values}</tr>")
    pictures = [_readings(pages)] if any(tables["decodability"] for _, tables, _ in pages) else []
    for title, _, folder in pages:
        picture = folder / "probe.png"
        pictures.append(f"<h2>{html.escape(printable(title))}</h2>")
        if picture.is_file():
            data = base64.b64encode(picture.read_bytes()).decode()
            pictures.append(f'<img alt="All tables but the summary, drawn" src="data:image/png;base64,{data}">')
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Dynamics</title>\n<style>{STYLE}</style>\n<h1>Dynamics</h1>\n"
        f"<table>{''.join(lines)}</table>\n" + "\n".join(pictures) + "\n</html>\n"
    )
