"""The command `rnnzoo`, also `python -m rnnzoo`: look at the registered cells, and measure them."""

from __future__ import annotations

import argparse
import inspect
import math
import sys
import textwrap
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rnnzoo import bench, bench_report, check, registry
from rnnzoo.cell import Cell
from rnnzoo.engine import ENGINES, choose
from rnnzoo.engine.plan import describe, plan
from rnnzoo.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. Bad input ends with one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(prog="rnnzoo", description="Recurrent cells: a cell is its equations.")
    parser.add_argument("--cells", metavar="FILE", help="a file or module with cells of your own")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="the registered cells")
    listing.add_argument("pattern", nargs="?", default="*", help="a wildcard, as in '*lstm*'")
    showing = commands.add_parser("show", help="one cell: source, equations as code, parameters, engines")
    showing.add_argument("name")
    showing.add_argument("--input-size", type=int, default=64)
    showing.add_argument("--hidden-size", type=int, default=128)
    checking = commands.add_parser("check", help="whether all engines compute a cell alike")
    checking.add_argument("names", nargs="*", metavar="CELL", help="registered names")
    checking.add_argument("--all", action="store_true", help="every registered cell")
    measuring = commands.add_parser("bench", help="speed and memory, side by side with the alternatives")
    measuring.add_argument("names", nargs="*", metavar="CELL", help="registered cells; all without")
    sizes = " ".join(map(str, bench.SIZES))
    measuring.add_argument("--sizes", nargs="+", metavar="T,B,I,H", default=sizes.split(), help=f"default: {sizes}")
    measuring.add_argument("--against", default="torch,loop", help=f"some of {','.join(bench.RIVALS)}")
    measuring.add_argument("--engine", default="auto", help=f"one of auto, {', '.join(ENGINES)}")
    measuring.add_argument("--threads", type=int, help="default: torch's own choice")
    measuring.add_argument("--dtype", default="float32", help=f"one of {', '.join(bench.DTYPES)}")
    measuring.add_argument("--device", default="cpu", help="cpu or cuda")
    measuring.add_argument("--rounds", type=int, default=9, help="in each of which all contenders take their turn")
    measuring.add_argument("--out", type=Path, default=Path("bench"), help="folder of bench.csv and bench.png")
    options = parser.parse_args(arguments)
    try:
        if options.cells:
            registry.load(options.cells)
        if options.command == "list":
            _list(options.pattern)
        elif options.command == "show":
            _show(options.name, options.input_size, options.hidden_size)
        elif options.command == "check":
            return _check(options.names, options.all)
        else:
            _bench(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _list(pattern: str) -> None:
    names = registry.list_cells(pattern)
    if not names:
        raise UserError(f"no cell matches {pattern!r}; `rnnzoo list` shows all")
    table = Table("cell", "states", "what it is", "source")
    for name in names:
        entry = registry.entry(name)
        table.add_row(name, " ".join(entry.cell.state_names), escape(_first_line(entry.cell)), escape(entry.source))
    Console().print(table)


def _show(name: str, input_size: int, hidden_size: int) -> None:
    entry = registry.entry(name)
    cell = entry.cell(input_size, hidden_size)
    console = Console(highlight=False)
    console.print(f"[bold]{name}[/bold]  {escape(entry.source)}\n\n{escape(inspect.getdoc(entry.cell) or '')}\n")
    console.print(textwrap.dedent(inspect.getsource(entry.cell.step)), markup=False)

    table = Table("parameter", "dimensions", "shape", "size")
    for key, weight in entry.cell.weights.items():
        shape = weight.shape(cell)
        table.add_row(
            key, " × ".join(map(str, weight.dims)) or "scalar", " × ".join(map(str, shape)), f"{math.prod(shape):,}"
        )
    table.add_section()
    table.add_row("all", "", "", f"{sum(p.numel() for p in cell.parameters()):,}")
    console.print()
    console.print(table)

    for key, declared in entry.cell.hyperparameters.items():
        among = f", one of {', '.join(map(str, declared.choices))}" if declared.choices else ""
        console.print(f"{key}: {declared.type.__name__} = {declared.default!r}{among}", markup=False)
    console.print(f"states: {', '.join(entry.cell.state_names)}; the output is {_output(entry.cell)}")
    console.print()
    for engine, module in ENGINES.items():
        reason = module.refuses(cell)
        console.print(f"engine={engine}: {'runs it' if reason is None else reason}", markup=False)
    for device in ("cpu", "cuda"):
        for steps, run in ((0, "a short run"), (10**9, "a long run")):
            chosen, why = choose(cell, steps, device)
            console.print(f"engine=auto on {device} takes {chosen} for {run}: {why}", markup=False)
    if ENGINES["serial"].refuses(cell) is None:
        console.print()
        for line in describe(plan(cell)):
            console.print(line, markup=False)


def _check(names: list[str], every: bool) -> int:
    if every == bool(names):
        raise UserError("name the cells to check, or give --all")
    table = Table("cell", "engine", "passes", "error in float64", "in float32", "first call")
    failed = 0
    for name in names or registry.list_cells():
        for finding in check.compare(name, registry.get(name)):
            failed += not finding.passed
            worst = [f"{error:.1e}  {where}" for error, where in finding.error.values()]
            row = [*worst, f"{finding.seconds:.1f} s"] if worst else [escape(finding.reason), "", ""]
            table.add_row(name, finding.engine, "yes" if finding.passed and worst else "no" if worst else "–", *row)
    Console().print(table)
    print(f"{failed} of them differ from the plain loop" if failed else "all engines compute what the plain loop does")
    return int(failed > 0)


def _bench(options: argparse.Namespace) -> None:
    rivals = tuple(dict.fromkeys(options.against.split(",")))
    setting = bench.Setting(rivals, options.engine, options.threads, options.dtype, options.device, options.rounds)
    sizes = [bench.parse_size(text) for text in options.sizes]
    names = options.names or registry.list_cells()
    for name in names:
        registry.get(name)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {options.out}: {error.strerror}; name a folder that can be made") from None
    machine = bench.machine(setting)
    cases = bench_report.write_csv(bench.run(names, sizes, setting), options.out / "bench.csv", machine)
    bench_report.plot(cases, rivals, machine, options.out / "bench.png")
    console = Console()
    console.width = max(console.width, 200)  # in a narrow terminal or a pipe, rich would cut the numbers
    for table in bench_report.tables(cases, rivals):
        console.print(table)
    console.print(machine, f"written: {options.out}/bench.csv, bench.png", sep="\n", markup=False, highlight=False)


def _first_line(cell: type) -> str:
    return (inspect.getdoc(cell) or "").partition("\n")[0]


def _output(cell: type[Cell]) -> str:
    return "its readout" if "readout" in vars(cell) else cell.state_names[0]
