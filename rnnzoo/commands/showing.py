"""`rnnzoo show`: all there is to say about one cell."""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rnnzoo import engine, registry
from rnnzoo.cell import Cell
from rnnzoo.commands.listing import fidelity_of
from rnnzoo.engine.plan import describe, plan
from rnnzoo.errors import UserError
from rnnzoo.explain import diagram
from rnnzoo.explain.card import Card, html, latex, text
from rnnzoo.files import refuse_as_file, writing
from rnnzoo.plain import printable
from rnnzoo.recurrent import Recurrent


def show(name: str, input_size: int, hidden_size: int, form: str | None, png: Path | None) -> None:
    """Print a cell's card, or one of its forms; write its diagram to `png` if that is given."""
    card = Card(registry.described(name), input_size, hidden_size)
    if png is not None:
        refuse_as_file("--png", png)
        with writing(png) as partial:
            diagram.png(card.cell, partial)
        print(printable(f"written: {png}"))
    elif form is not None:
        print(printable({"text": text, "latex": latex, "svg": lambda card: card.diagram, "html": html}[form](card)))
    else:
        _summarise(card)


def _summarise(card: Card) -> None:
    entry, cell = card.entry, card.cell
    console = Console(highlight=False)
    source, described = (escape(printable(text or "")) for text in (entry.source, inspect.getdoc(entry.cell)))
    console.print(f"[bold]{card.name}[/bold]  {source}\n\n{described}\n")
    try:
        equations = text(card)
    except UserError as error:
        equations = str(error)
    console.print(textwrap.indent(equations, "    "), markup=False)
    console.print()
    console.print(card.code, markup=False)

    table = Table("parameter", "dimensions", "shape", "size", "")
    for key, weight in entry.cell.weights.items():
        shape = weight.shape(cell)
        dims = " × ".join(map(str, weight.dims)) or "scalar"
        note = f"{weight.role} gate" if weight.role else "" if weight.trainable else "fixed"
        table.add_row(key, dims, " × ".join(map(str, shape)), f"{math.prod(shape):,}", note)
    table.add_section()
    table.add_row("learned", "", "", f"{sum(p.numel() for p in cell.parameters()):,}", "")
    console.print()
    console.print(table)

    lines = [f"family: {entry.family}"]
    for key, declared in entry.cell.hyperparameters.items():
        among = f", one of {', '.join(map(str, declared.choices))}" if declared.choices else ""
        lines.append(f"hyperparameter {key}: {declared.type.__name__} = {declared.default!r}{among}")
    for key, shape in zip(entry.cell.state_names, cell.state_shapes()):
        lines.append(f"state {key}: {' × '.join(map(str, ('B', *shape)))}")
    lines.append(f"output: {_output(entry.cell)}, {cell.output_size} features")
    oracle, package, code, seen = fidelity_of(entry)
    lines.append(f"checked against: oracle {oracle}; package {package}; authors' code {code}; paper's text seen {seen}")
    lines += [f"cannot take {reason}" for reason in _refused(entry.cell, card.input_size, card.hidden_size)]
    lines += ["", f"kind: {engine.kind(cell)}", *_costs(card)]
    for key, module in engine.ENGINES.items():
        lines.append(f"engine={key}: {module.refuses(cell) or 'runs it'}")
    if engine.matrix.refuses(cell) is None:
        lines[-1] += f", with {engine.matrix.memory(cell).describe()}"
    for device in ("cpu", "cuda"):
        for steps, run in ((0, "a short run"), (10**9, "a long run")):
            chosen, why = engine.choose(cell, steps, device)
            lines.append(f"engine=auto on {device} takes {chosen} for {run}: {why}")
    if engine.ENGINES["serial"].refuses(cell) is None:
        lines += ["", *describe(plan(cell))]
    for line in lines:
        console.print(printable(line), markup=False)


def _costs(card: Card) -> Iterator[str]:
    cost, flow = card.cost, card.flow
    if cost.serial is not None:
        yield f"multiply-adds a step: {cost.hoisted:,} for all time steps at once, {cost.serial:,} one after another"
    yield f"state: {cost.state_bytes:,} bytes a sequence"
    yield (
        f"gradient of the output by the states: {flow.norms[0]:.2g} after 1 step, {flow.norms[9]:.2g} after 10, "
        f"{flow.norms[-1]:.2g} after {len(flow.norms)}; {flow.verdict}"
    )


def _refused(kind: type[Cell], input_size: int, hidden_size: int) -> Iterator[str]:
    """The layer's options that a cell cannot honour, with the reason."""
    options: dict[str, Any] = {
        "layer_norm": True,
        "recurrent_dropout": 0.1,
        "zoneout": 0.1,
        "weight_drop": 0.1,
        "initializer": "orthogonal",
        "chrono": 100,
    }
    for key, value in options.items():
        try:
            Recurrent(kind, input_size, hidden_size, **{key: value})
        except UserError as error:
            yield str(error)


def _output(cell: type[Cell]) -> str:
    return "its readout" if "readout" in vars(cell) else cell.state_names[0]
