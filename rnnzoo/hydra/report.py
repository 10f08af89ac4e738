"""One table of results from any set of runs: for the terminal, as CSV, as Markdown, and as a page with curves.

Torch is imported only where a table is written, so that Hydra can load the callback at no cost.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from rnnzoo.errors import UserError
from rnnzoo.files import refuse_missing_parent, writing
from rnnzoo.hydra.done import DIVERGED
from rnnzoo.hydra.finished_run import Run, Summary
from rnnzoo.hydra.recorded import is_foreign
from rnnzoo.plain import csv_cell, markdown, printable

CURVES = 5
"""Rows of the table in one chart, which has as many colours."""

DASH = "–"


def _finite_square(value: float) -> float:
    """The number, infinite where its square is: means and deviations of such cannot be had."""
    if abs(value) > 1e150:
        return math.inf if value > 0 else -math.inf
    return float(value)


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but their seeds, in the order of these."""

    runs: Sequence[Run]

    @property
    def first(self) -> Summary:
        return self.runs[0].summary

    def values(self, name: str) -> list[float]:
        """A metric, or another number of the summary, of those runs that have it."""
        found = (run.summary.metrics.get(name, getattr(run.summary, name, None)) for run in self.runs)
        return [_finite_square(value) for value in found if value is not None]

    def mean(self, name: str) -> float | None:
        values = self.values(name)
        return fmean(values) if values else None

    def spread(self, name: str) -> float | None:
        """Sample standard deviation over the runs; None for one run, of which nothing can be said."""
        values = self.values(name)
        return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None

    def largest(self, name: str) -> float | None:
        return max(self.values(name), default=None)

    @property
    def best(self) -> Run:
        """The run that is best by its monitor."""
        return min(self.runs, key=lambda run: _rank(run.summary, run.summary.metrics.get))

    @property
    def mean_curve(self) -> list[tuple[float, float]]:
        """The mean of the runs' curves over the epochs that all of them have."""
        curves = [dict(run.curve) for run in self.runs if run.curve]
        shared = sorted(set.intersection(*map(set, curves))) if curves else []
        return [(epoch, fmean(curve[epoch] for curve in curves)) for epoch in shared]

    @property
    def seeds(self) -> str:
        return " ".join(str(run.summary.seed) for run in self.runs)


def _rank(summary: Summary, value: Callable[[str], float | None]) -> tuple[tuple[bool, float], ...]:
    """A key that sorts best first by the monitor, then by the test metric; what is missing or not a number last."""
    sign = 1 if summary.mode == "min" else -1
    found = [value(name) for name in (summary.monitor, summary.test)]
    return tuple((True, 0.0) if x is None or math.isnan(x) else (False, sign * x) for x in found)


@dataclass(frozen=True)
class Table:
    """All rows of one task, best first."""

    rows: Sequence[Row]

    @property
    def title(self) -> str:
        first = self.rows[0].first
        return f"{first.task}, {'lowest' if first.mode == 'min' else 'highest'} {first.monitor} first"

    @property
    def common(self) -> list[str]:
        """Overrides that all rows share, task and model apart."""
        return [text for text in self.rows[0].runs[0].choices if all(text in row.runs[0].choices for row in self.rows)]

    def further(self, row: Row) -> str:
        """The overrides that tell a row from another one of the same model."""
        return " ".join(text for text in row.runs[0].choices if text not in self.common)

    def label(self, row: Row) -> str:
        """The row's place, model and further overrides, short enough for a legend."""
        text = f"{self.rows.index(row) + 1} {row.first.model} {self.further(row)}".strip()
        return text if len(text) <= 60 else text[:59] + "…"

    @property
    def best(self) -> Run:
        return Row([row.best for row in self.rows]).best

    def columns(self) -> dict[str, Callable[[Row], str]]:
        """Headings, each with what stands beneath it in a row."""
        first = self.rows[0].first
        columns: dict[str, Callable[[Row], str]] = {"model": lambda row: row.first.model}
        if any(map(self.further, self.rows)):
            columns["overrides"] = self.further
        columns["runs (seeds)"] = lambda row: f"{len(row.runs)} ({row.seeds})"
        for name in (first.monitor, first.test):
            if any(row.values(name) for row in self.rows):
                columns[name] = lambda row, name=name: _with_spread(row, name)  # type: ignore[misc]
        columns["parameters"] = lambda row: f"{row.mean('parameters'):,.0f}"
        columns["seconds an epoch"] = lambda row: _shown(row.mean("seconds_per_epoch") or None)
        columns["steps a second"] = lambda row: _shown(row.mean("steps_per_second"))
        columns["peak memory, MiB"] = lambda row: f"{row.largest('peak_memory_mib'):.0f}"
        if any(row.largest("peak_gpu_memory_mib") for row in self.rows):
            columns["on the GPU, MiB"] = lambda row: _shown(row.largest("peak_gpu_memory_mib"))
        columns["best epoch"] = lambda row: _shown(row.mean("best_epoch"))
        return columns

    def notes(self) -> Iterator[str]:
        """What has to be known to read the numbers."""
        if any(len(row.runs) > 1 for row in self.rows):
            yield "Means over the runs; ± is their sample standard deviation; of peak memory the largest."
        if self.common:
            yield f"All with {' '.join(self.common)}"
        if len({run.summary.machine for row in self.rows for run in row.runs}) > 1:
            yield "The runs were made on different machines: times cannot be compared."

    def charts(self) -> list[str]:
        """SVG of the validation curves, a few rows each: the mean over the runs, each run fainter behind it."""
        from rnnzoo.explain import chart

        monitor, drawn = self.rows[0].first.monitor, []
        rows = [row for row in self.rows if row.mean_curve]
        for k in range(0, len(rows), CURVES):
            means = {self.label(row): row.mean_curve for row in rows[k : k + CURVES]}
            each = {self.label(row): [run.curve for run in row.runs] for row in rows[k : k + CURVES]}
            values = [y for curves in each.values() for curve in curves for _, y in curve if math.isfinite(y)]
            wide = bool(values) and 0 < 10 * min(values) < max(values)
            svg = chart.lines(means, "epoch", monitor, f"{monitor} by epoch: {', '.join(means)}", wide, faint=each)
            drawn.append(svg)
        return drawn


def _shown(value: float | None) -> str:
    return DASH if value is None else f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"


def _with_spread(row: Row, name: str) -> str:
    """Mean and spread to the spread's second digit, which is as far as it can be known."""
    mean, spread = row.mean(name), row.spread(name)
    if mean is None:
        return DASH
    decimals = max(0, 1 - math.floor(math.log10(spread))) if spread else math.inf
    if spread is None or not decimals <= 6:
        return f"{mean:.4g}\u00a0±\u00a0{DASH if spread is None else f'{spread:.2g}'}"
    return f"{mean:.{decimals}f}\u00a0±\u00a0{spread:.{decimals}f}"


@dataclass(frozen=True)
class Found:
    """What lies in some folders: tables of the finished runs, and a line for each kind of other runs."""

    tables: Sequence[Table]
    left_out: Sequence[str]


def collect(folders: Sequence[Path]) -> Found:
    """Read the runs in `folders`, each of which is a run or has runs anywhere below it.

    Raises `UserError` for a folder without any run, and when no run is finished.
    """
    paths: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; name a run's, or one with runs anywhere below it")
        below = list(_runs_below(folder))
        if not below:
            raise UserError(f"{folder}: no run there; a run's folder holds .hydra and, once finished, summary.json")
        paths |= {path.resolve(): path for path in below}
    groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    unfinished: list[str] = []
    diverged: list[str] = []
    foreign: list[str] = []
    damaged: list[str] = []
    for path in paths.values():
        if not (path / "summary.json").exists():
            kind = diverged if (path / DIVERGED).exists() else foreign if is_foreign(path) else unfinished
            kind.append(str(path))
            continue
        try:
            run = Run.read(path)
            of = run.summary
            groups[of.task, of.monitor, of.mode, of.model, run.choices].append(run)
        except (ValueError, OSError) as error:
            damaged.append(f"{path} ({error})")
    left_out = [
        f"{len(named)} {kind}: {', '.join(named)}"
        for kind, named in (
            ("without summary.json, unfinished, pruned or failed", unfinished),
            ("diverged", diverged),
            ("of other Hydra applications", foreign),
            ("damaged", damaged),
        )
        if named
    ]
    if not groups:
        raise UserError(f"no finished run in {', '.join(map(str, folders))}; {'; '.join(left_out)}")
    tables: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for key, runs in sorted(groups.items()):
        tables[key[:3]].append(Row(sorted(runs, key=lambda run: run.summary.seed)))
    ranked = (sorted(rows, key=lambda row: _rank(row.first, row.mean)) for rows in tables.values())
    return Found([Table(rows) for rows in ranked], left_out)


def _runs_below(folder: Path) -> Iterator[Path]:
    """Run folders in `folder` or below, in order of their names, numbers as numbers."""
    for root, below, files in os.walk(folder):
        if ".hydra" in below or "summary.json" in files:
            below.clear()
            yield Path(root)
        below.sort(key=lambda name: (len(name), name) if name.isdigit() else (math.inf, name))


def publish(folders: Sequence[Path], out: Path) -> None:
    """Print the tables of the runs in `folders` and write them to results.csv, .md and .html in `out`.

    Raises `UserError` as `collect` does, and when a file cannot be written.
    """
    refuse_missing_parent("--out", out)
    found = collect(folders)
    if out.is_file():
        raise UserError(f"{out}: is a file; name a folder for the results")
    _print(found)
    for name, text in (("csv", as_csv(found)), ("md", as_markdown(found)), ("html", as_html(found))):
        with writing(out / f"results.{name}") as partial:
            partial.write_text(text, encoding="utf-8", newline="")
    print(printable(f"written: {out / 'results.csv'}, results.md, results.html"), flush=True)


def _print(found: Found) -> None:
    from rich import table as rich
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    if not console.is_terminal:  # in a pipe, rich would fold the columns to 80
        console.width = max(console.width, 200)
    for table in found.tables:
        columns = table.columns()
        shown = rich.Table(title=escape(printable(table.title)), title_justify="left")
        for heading in columns:
            side: Literal["left", "right"] = "left" if heading in ("model", "overrides") else "right"
            shown.add_column(escape(printable(heading)), justify=side, overflow="fold")
        for row in table.rows:
            shown.add_row(*(escape(printable(cell(row))) for cell in columns.values()))
        console.print(shown)
        for line in (*table.notes(), f"best run: {table.best.folder}", f"repeat it: {table.best.command}"):
            console.print(printable(line), markup=False, soft_wrap=True)
    for line in found.left_out:
        console.print(printable(line), markup=False, soft_wrap=True)


def as_csv(found: Found) -> str:
    """All tables as one, numbers in full; `command` repeats the row's best run."""
    text = io.StringIO()
    means = ("parameters", "seconds_per_epoch", "steps_per_second", "best_epoch")
    peaks = ("peak_memory_mib", "peak_gpu_memory_mib")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([
        "task", "model", "overrides", "runs", "seeds", "metric", "val_mean", "val_sd", "test_mean", "test_sd",
        *means, *peaks, "command",
    ])  # fmt: skip
    for row in (row for table in found.tables for row in table.rows):
        first, best = row.first, row.best
        writer.writerow(map(csv_cell, [
            first.task, first.model, shlex.join(best.choices), len(row.runs), row.seeds, first.monitor,
            *(number(name) for name in (first.monitor, first.test) for number in (row.mean, row.spread)),
            *map(row.mean, means), *map(row.largest, peaks), best.command,
        ]))  # fmt: skip
    return text.getvalue()


def as_markdown(found: Found) -> str:
    """The tables with their notes and commands."""
    parts = []
    for table in found.tables:
        columns = table.columns()
        cells = [list(columns), *([cell(row) for cell in columns.values()] for row in table.rows)]
        lines = ["| " + " | ".join(markdown(text) for text in line) + " |" for line in cells]
        lines.insert(1, "|" + "---|" * len(columns))
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", table.best.command)), default=0))
        again = f"Best run: {markdown(table.best.folder)}\n\n{fence}bash\n{printable(table.best.command)}\n{fence}"
        parts += [f"## {markdown(table.title)}", "\n".join(lines), *map(markdown, table.notes()), again]
    return "\n\n".join([*parts, *map(markdown, found.left_out)]) + "\n"


def as_html(found: Found) -> str:
    """A page that stands alone: the tables, and the validation curves behind them."""
    from markupsafe import Markup

    from rnnzoo.explain.card import stylesheet, templates

    template = templates().from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    return printable(template.render(found=found, style=Markup(stylesheet())))


class AtTheEnd(Callback):
    """Ends a multirun with the table of its runs."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        try:
            publish([folder], folder)
        except UserError as error:
            print(printable(f"no table of results: {error}"), file=sys.stderr)
