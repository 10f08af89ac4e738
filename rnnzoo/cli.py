"""The command `rnnzoo`, also `python -m rnnzoo`: look at the registered cells, and measure them."""

from __future__ import annotations

import argparse
import importlib
import inspect
import math
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rnnzoo import bench, bench_report, check, engine, registry
from rnnzoo.cell import Cell
from rnnzoo.engine.plan import describe, plan
from rnnzoo.errors import UserError, nearest
from rnnzoo.explain import diagram, gallery
from rnnzoo.explain.card import SIZES, Card, html, latex, text
from rnnzoo.recurrent import Recurrent

KINDS = ("parallel", "diagonal", "serial")
FORMS = {
    "text": "the equations, for a terminal",
    "latex": "the equations, for a paper",
    "svg": "the diagram of one step",
    "html": "a page with all there is to say",
}
"""What `rnnzoo show` can print instead of its summary."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. Bad input ends with one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(prog="rnnzoo", description="Recurrent cells: a cell is its equations.")
    anywhere = argparse.ArgumentParser(add_help=False)  # before the command and after it
    for place, default in ((parser, None), (anywhere, argparse.SUPPRESS)):
        place.add_argument("--cells", metavar="FILE", default=default, help="a file or module with cells of your own")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", parents=[anywhere], help="the registered cells")
    listing.add_argument("pattern", nargs="?", default="*", help="a wildcard, as in '*lstm*'")
    listing.add_argument("--family", help="only one family, as in lstm; the module that the cell is written in")
    listing.add_argument("--kind", choices=KINDS, help="only cells whose state enters their step so")
    listing.add_argument("--fidelity", action="store_true", help="what each cell was checked against")
    showing = commands.add_parser(
        "show", parents=[anywhere], help="one cell: source, equations as code, parameters, engines"
    )
    showing.add_argument("name")
    showing.add_argument("--input-size", type=int, default=SIZES[0])
    showing.add_argument("--hidden-size", type=int, default=SIZES[1])
    form = showing.add_mutually_exclusive_group()
    for key, what in FORMS.items():
        form.add_argument(f"--{key}", dest="form", action="store_const", const=key, help=f"only {what}")
    form.add_argument("--png", type=Path, metavar="FILE", help="write the diagram to a file")
    building = commands.add_parser(
        "gallery", parents=[anywhere], help="a site of all cells, for a browser, without network or server"
    )
    building.add_argument("out", type=Path, help="folder to write it to")
    building.add_argument("--results", type=Path, metavar="FILE", help="Markdown whose tables have a column 'cell'")
    checking = commands.add_parser(
        "check", parents=[anywhere], help="the conformance suite on a cell of yours or of the zoo"
    )
    checking.add_argument("targets", nargs="*", metavar="TARGET", help="a registered name, or FILE.py:Class")
    checking.add_argument("--all", action="store_true", help="every registered cell")
    measuring = commands.add_parser(
        "bench", parents=[anywhere], help="speed and memory, side by side with the alternatives"
    )
    measuring.add_argument("names", nargs="*", metavar="CELL", help="registered cells; all without")
    measuring.add_argument("--train", action="store_true", help="tasks instead: train.py beside a bare loop")
    sizes = " ".join(map(str, bench.SIZES))
    measuring.add_argument("--sizes", nargs="+", metavar="T,B,I,H", default=sizes.split(), help=f"default: {sizes}")
    measuring.add_argument("--against", default="torch,loop", help=f"some of {','.join(bench.RIVALS)}")
    measuring.add_argument("--engine", default="auto", help=f"one of auto, {', '.join(engine.ENGINES)}")
    measuring.add_argument("--threads", type=int, help="default: torch's own choice")
    measuring.add_argument("--dtype", default="float32", help=f"one of {', '.join(bench.DTYPES)}")
    measuring.add_argument("--device", default="cpu", help="cpu or cuda")
    measuring.add_argument("--rounds", type=int, default=9, help="in each of which all contenders take their turn")
    measuring.add_argument("--out", type=Path, default=Path("bench"), help="folder of bench.csv and bench.png")
    reporting = commands.add_parser(
        "report", help="one table of results from any set of runs, also of several multiruns"
    )
    reporting.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a run, or a folder with runs below it")
    reporting.add_argument(
        "--out", type=Path, default=Path("report"), metavar="FOLDER", help="of results.csv, .md, .html; default: report"
    )
    _add_uses(commands, anywhere)
    options = parser.parse_args(arguments)
    try:
        if options.cells:
            registry.load(options.cells)
        if options.command == "list":
            _list(options.pattern, options.family, options.kind, options.fidelity)
        elif options.command == "show":
            _show(
                Card(registry.entry(options.name), options.input_size, options.hidden_size), options.form, options.png
            )
        elif options.command == "gallery":
            _gallery(options.out, options.results)
        elif options.command == "check":
            return _check(options.targets, options.all)
        elif options.command == "report":
            _report(options.folders, options.out)
        elif options.command == "bench":
            _bench(options)
        else:
            return _use(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _add_uses(commands: Any, anywhere: argparse.ArgumentParser) -> None:
    """The commands that work on a trained model."""

    def use(name: str, what: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(name, parents=[anywhere], help=what)
        command.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or one of its checkpoints")
        return command

    sampling = use("sample", "text from a character language model, as it comes")
    sampling.add_argument("--prime", default="", metavar="TEXT", help="what it goes on from")
    sampling.add_argument("--length", type=int, default=500, metavar="N", help="characters; default: 500")
    sampling.add_argument("--temperature", type=float, default=1.0, help="below 1 safer, above 1 wilder")
    sampling.add_argument("--top-k", type=int, metavar="K", help="only from the K likeliest characters")
    sampling.add_argument("--top-p", type=float, default=1.0, metavar="P", help="only from the likeliest, P in all")
    sampling.add_argument("--greedy", action="store_true", help="always the likeliest character")
    sampling.add_argument("--seed", type=int, help="the same text each time")
    judging = use("predict", "whether reviews are positive")
    source = judging.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="one review")
    source.add_argument("--file", type=Path, help="a review a line, answered by a line of JSON each")
    source.add_argument("stdin", nargs="?", choices=["-"], help="the same from standard input")
    judging.add_argument("--running", action="store_true", help="with the score along the text in the JSON")
    forecasting = use("forecast", "the rows that follow those of a CSV file")
    forecasting.add_argument("data", type=Path, help="a CSV file with the columns that the run was trained on")
    forecasting.add_argument("--plot", type=Path, default=Path("forecast.png"), metavar="FILE", help="of the picture")
    exporting = use("export", "the model as one file that runs without this project")
    form = exporting.add_mutually_exclusive_group(required=True)
    for key, what in (("onnx", "ONNX, for onnxruntime and others"), ("pt2", "PyTorch's, for torch.export.load")):
        form.add_argument(f"--{key}", dest="form", action="store_const", const=key, help=what)
    exporting.add_argument("--out", type=Path, metavar="FILE", help="default: a name of its own in the run's folder")
    use("eval", "the test metrics again, beside the recorded ones")


def _use(options: argparse.Namespace) -> int:
    use = _of_the_clone("use")
    if options.command == "sample":
        top_k = 1 if options.greedy else options.top_k
        use.sample(options.run, options.prime, options.length, options.temperature, top_k, options.top_p, options.seed)
    elif options.command == "predict":
        if options.text is not None:
            use.predict(options.run, [options.text], False, True)
        else:
            use.predict(options.run, _lines(options.file), True, options.running)
    elif options.command == "forecast":
        use.forecast(options.run, options.data, options.plot)
    elif options.command == "export":
        use.export(options.run, options.form, options.out)
    elif options.command == "eval":
        return 0 if use.evaluate(options.run) else 1
    return 0


def _lines(path: Path | None) -> Iterator[str]:
    """The lines of a file, or of standard input for None."""
    try:
        with sys.stdin if path is None else path.open(encoding="utf-8") as file:
            yield from (line.rstrip("\n") for line in file)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8"
        raise UserError(f"--file {path}: {reason}") from None


def _list(pattern: str, family: str | None, kind: str | None, fidelity: bool) -> None:
    entries = [registry.entry(name) for name in registry.list_cells(pattern)]
    if not entries:
        raise UserError(f"no cell matches {pattern!r}; `rnnzoo list` shows all")
    families = {entry.family for entry in entries}
    if family is not None and family not in families:
        raise UserError(f"--family {family}: no such family; {nearest(family, sorted(families))}")
    entries = [entry for entry in entries if family in (None, entry.family)]
    entries = [e for e in entries if kind is None or engine.kind(e.cell(*SIZES)).startswith(kind)]
    if not entries:
        raise UserError(f"no cell among them is {kind}; leave --kind out to see them")
    checked = (
        ("oracle", "compared with", "authors' code read", "paper's text seen") if fidelity else ("states", "what it is")
    )
    table = Table("cell", "family", *checked, "source")
    for entry in entries:
        shown = _fidelity(entry) if fidelity else (" ".join(entry.cell.state_names), _first_line(entry.cell))
        table.add_row(entry.name, entry.family, *map(escape, shown), escape(entry.source))
    console = Console()
    if not console.is_terminal:  # in a pipe, rich would fold the columns to 80
        console.width = max(console.width, 200)
    console.print(table)
    console.print(f"{len(entries)} cells", highlight=False)


def _fidelity(entry: registry.Entry) -> tuple[str, str, str, str]:
    """Where the equations stand once more, the package it was run beside, and what was read."""
    own = entry.module.startswith("rnnzoo.cells.")
    package = entry.package + ("" if entry.independent else ", from the same secondary source")
    return (f"tests/oracles/{entry.family}.py" if own else "–", package or "–", entry.code or "–", entry.seen or "–")


def _show(card: Card, form: str | None, png: Path | None) -> None:
    if png is not None:
        try:
            diagram.png(card.cell, png)
        except OSError as error:
            raise UserError(f"--png {png}: {error.strerror}; name a file that can be written") from None
        print(f"written: {png}")
    elif form is not None:
        print({"text": text, "latex": latex, "svg": lambda card: card.diagram, "html": html}[form](card))
    else:
        _summarise(card)


def _summarise(card: Card) -> None:
    entry, cell = card.entry, card.cell
    console = Console(highlight=False)
    console.print(f"[bold]{card.name}[/bold]  {escape(entry.source)}\n\n{escape(inspect.getdoc(entry.cell) or '')}\n")
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
    oracle, package, code, seen = _fidelity(entry)
    lines.append(f"checked against: oracle {oracle}; package {package}; authors' code {code}; paper's text seen {seen}")
    lines += [f"cannot take {reason}" for reason in _refused(entry.cell, card.input_size, card.hidden_size)]
    lines += ["", f"kind: {engine.kind(cell)}", *_costs(card)]
    for key, module in engine.ENGINES.items():
        lines.append(f"engine={key}: {module.refuses(cell) or 'runs it'}")
    for device in ("cpu", "cuda"):
        for steps, run in ((0, "a short run"), (10**9, "a long run")):
            chosen, why = engine.choose(cell, steps, device)
            lines.append(f"engine=auto on {device} takes {chosen} for {run}: {why}")
    if engine.ENGINES["serial"].refuses(cell) is None:
        lines += ["", *describe(plan(cell))]
    for line in lines:
        console.print(line, markup=False)


def _costs(card: Card) -> Iterator[str]:
    cost, flow = card.cost, card.flow
    if cost.serial is not None:
        yield f"multiply-adds a step: {cost.hoisted:,} for all time steps at once, {cost.serial:,} one after another"
    yield f"state: {cost.state_bytes:,} bytes a sequence"
    yield (
        f"gradient of the output by the states: {flow.norms[0]:.2g} after 1 step, {flow.norms[9]:.2g} after 10, "
        f"{flow.norms[-1]:.2g} after {len(flow.norms)}; {flow.verdict}"
    )


def _gallery(out: Path, results: Path | None) -> None:
    left_out = gallery.build(out, results)
    for name, reason in left_out.items():
        print(f"left out {name}: {reason}", file=sys.stderr)
    print(f"written: {len(registry.list_cells()) - len(left_out)} cells to {out / 'index.html'}")


def _refused(kind: type[Cell], input_size: int, hidden_size: int) -> Iterator[str]:
    """The layer's options that a cell cannot honour, with the reason."""
    options: dict[str, Any] = {
        "layer_norm": True,
        "recurrent_dropout": 0.1,
        "zoneout": 0.1,
        "initializer": "orthogonal",
        "chrono": 100,
    }
    for key, value in options.items():
        try:
            Recurrent(kind, input_size, hidden_size, **{key: value})
        except UserError as error:
            yield str(error)


def _check(targets: list[str], every: bool) -> int:
    if every == bool(targets):
        raise UserError("name the cells to check, or give --all")
    kinds = {target: registry.find(target) for target in targets or registry.list_cells()}
    console = Console()
    failed = {}
    for target, kind in kinds.items():
        table = Table("check", "passed", "found", title=target, title_justify="left")
        findings = list(check.conformance(kind))
        for finding in findings:
            advice = "" if finding.passed else f"\n→ {finding.advice}"
            table.add_row(finding.check, "yes" if finding.passed else "NO", escape(finding.detail + advice))
        if len(kinds) == 1 or not all(finding.passed for finding in findings):
            console.print(table)
        else:
            console.print(f"{target}: all {len(findings)} checks passed", highlight=False, markup=False)
        failed[target] = sum(not finding.passed for finding in findings)
    bad = [f"{target} ({count})" for target, count in failed.items() if count]
    console.print(f"failed: {', '.join(bad)}" if bad else "all checks passed", highlight=False, markup=False)
    return int(bool(bad))


def _bench_training(names: list[str], rounds: int) -> None:
    table = Table("task", "train.py, ms a step", "bare loop, ms a step", "ratio")
    for name in names or ["sine", "char_lm"]:
        found = _of_the_clone("throughput").measure(name, rounds)
        table.add_row(name, f"{found.trained:.2f}", f"{found.bare:.2f}", f"{found.ratio:.2f}")
    Console().print(table)


def _bench(options: argparse.Namespace) -> None:
    if options.train:
        return _bench_training(options.names, options.rounds)
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


def _report(folders: list[Path], out: Path) -> None:
    _of_the_clone("report").publish(folders, out)


def _of_the_clone(module: str) -> ModuleType:
    """A module of `tasks`, which an installed package does not have."""
    try:
        return importlib.import_module(f"tasks.{module}")
    except ImportError as error:
        if error.name not in ("tasks", f"tasks.{module}"):
            raise
        raise UserError("this needs the project's clone; in its folder say python -m rnnzoo instead") from None


def _first_line(cell: type) -> str:
    return (inspect.getdoc(cell) or "").partition("\n")[0]


def _output(cell: type[Cell]) -> str:
    return "its readout" if "readout" in vars(cell) else cell.state_names[0]
