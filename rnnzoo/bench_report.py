"""What a bench leaves: bench.csv, tables and bench.png. Ratios are rnnzoo over a rival, below 1 where it needs less."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from rich.markup import escape
from rich.table import Table

from rnnzoo.bench import KINDS, OURS, Case, Size, parse_size
from rnnzoo.errors import UserError

RATIOS = {"fwdbwd": "fwd+bwd", "fwd": "fwd", "memory": "memory"}
COLUMNS = (
    "cell", "T", "B", "I", "H", "contender", "engine", "fwd_ms", "fwd_iqr_ms", "fwdbwd_ms", "fwdbwd_iqr_ms",
    "memory_mb", "first_s", "fwd_ratio", "fwdbwd_ratio", "memory_ratio", "refused", "machine",
)  # fmt: skip


def write_csv(cases: Iterable[Case], path: Path, machine: str, resume: bool = False) -> list[Case]:
    """Write each case as it comes, so that an interrupted bench keeps what it has; one row a contender.

    With `resume` they are added to those that are there.
    """
    written = []
    resume = resume and path.is_file()
    with path.open("a" if resume else "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if not resume:
            writer.writeheader()
        for case in cases:
            writer.writerows({**row, "machine": machine} for row in _rows(case))
            file.flush()
            written.append(case)
    return written


def read_csv(path: Path) -> dict[tuple[str, Size], dict[str, dict[str, str]]]:
    """What a bench left: of each cell at each size the row of each contender, by the columns' names.

    Raises `UserError` for a file that is no bench.csv.
    """
    found: dict[tuple[str, Size], dict[str, dict[str, str]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError("its columns are others")
            for row in reader:
                key = row["cell"], parse_size(",".join(row[name] for name in Size._fields))
                found.setdefault(key, {})[row["contender"]] = row
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: not the bench.csv of a bench ({error}); name another folder with --out") from None
    return found


def markdown(path: Path, rivals: Sequence[str]) -> str:
    """A bench.csv as a table of Markdown for each size: rnnzoo's time, and its ratio to each rival's."""
    cases = read_csv(path)
    lines = []
    for size in dict.fromkeys(size for _, size in cases):
        lines += [f"Forward and backward at (T, B, I, H) = ({', '.join(map(str, size))}):", ""]
        lines += [f"| cell | engine | ms | {' | '.join(f'÷ {rival}' for rival in rivals)} |"]
        lines += [f"|{'---|' * (3 + len(rivals))}"]
        for (cell, its), rows in cases.items():
            if its == size:
                ours = rows.get(OURS, {})
                time = f"{float(ours['fwdbwd_ms']):.3g}" if ours.get("fwdbwd_ms") else f"refused: {ours.get('refused')}"
                found = (rows.get(rival, {}).get("fwdbwd_ratio") for rival in rivals)
                ratios = " | ".join(f"{float(ratio):.2f}" if ratio else "" for ratio in found)
                lines.append(f"| {cell} | {ours.get('engine', '')} | {time} | {ratios} |")
        lines.append("")
    return "\n".join(lines)


def _rows(case: Case) -> list[dict[str, Any]]:
    head = {"cell": case.cell, **case.size._asdict()}
    rows = [{**head, "contender": name, "refused": reason} for name, reason in case.refused.items()]
    for name, measured in case.measured.items():
        numbers: dict[str, float | None] = {"memory_mb": measured.memory_mb, "first_s": measured.first_s}
        for kind in KINDS:
            numbers |= {f"{kind}_ms": measured.median(kind), f"{kind}_iqr_ms": measured.iqr(kind)}
        if name != OURS:
            numbers |= {f"{what}_ratio": case.ratio(what, name) for what in RATIOS}
        shown = {key: f"{number:.6g}" for key, number in numbers.items() if number is not None}
        rows.append({**head, "contender": name, "engine": measured.engine, **shown})
    return rows


def tables(cases: Sequence[Case], rivals: Sequence[str]) -> tuple[Table, Table]:
    """Every case in full; and the geometric mean of each ratio, by cell and over all, with the worst case."""
    full = Table(title="medians over the rounds; ratios are rnnzoo ÷ rival", title_justify="left")
    for heading in ("cell", "T,B,I,H", "engine"):
        full.add_column(heading)
    for heading in ("fwd\nms", "fwd+bwd\nms", "spread\n%", "memory\nMB", "first\ncall s"):
        full.add_column(heading, justify="right")
    for rival in rivals:
        full.add_column(f"÷ {rival}\nf+b  fwd  mem", justify="right")
    for case in cases:
        ratios = ("  ".join(_shown(case.ratio(what, rival)) for what in RATIOS) for rival in rivals)
        full.add_row(case.cell, str(case.size), *_measured(case), *ratios)

    reasons = dict.fromkeys(f"{case.cell}: {case.refused[OURS]}" for case in cases if OURS in case.refused)
    full.caption, full.caption_justify = escape("\n".join(reasons)), "left"

    columns = [(what, rival) for rival in rivals for what in RATIOS]
    means = Table(title="geometric means over the sizes", title_justify="left")
    means.add_column("cell")
    for what, rival in columns:
        means.add_column(f"{RATIOS[what]}\n÷ {rival}", justify="right")
    for cell, of_cell in _by_cell(cases).items():
        means.add_row(cell, *(_shown(mean(of_cell, *column)) for column in columns))
    means.add_section()
    means.add_row("all", *(_shown(mean(cases, *column)) for column in columns))
    means.add_row("worst", *(_worst(cases, *column) for column in columns))
    return full, means


def _measured(case: Case) -> list[str]:
    """The engine and rnnzoo's own numbers."""
    if OURS not in case.measured:
        return ["refused", *[""] * 5]
    ours = case.measured[OURS]
    total = ours.median("fwdbwd")
    numbers = (ours.median("fwd"), total, 100 * ours.iqr("fwdbwd") / total, ours.memory_mb, ours.first_s)
    return [ours.engine, *(f"{number:.3g}" if number < 1000 else f"{number:.0f}" for number in numbers)]


def _shown(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"[{'green' if ratio < 0.95 else 'red' if ratio > 1.05 else 'default'}]{ratio:.2f}[/]"


def _by_cell(cases: Iterable[Case]) -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.cell, []).append(case)
    return found


def _ratios(cases: Iterable[Case], what: str, rival: str) -> list[tuple[float, Case]]:
    """The ratios of those cases that have one."""
    return [(ratio, case) for case in cases if (ratio := case.ratio(what, rival)) is not None]


def mean(cases: Iterable[Case], what: str, rival: str) -> float | None:
    """The geometric mean of a ratio over the cases that have it; None where none has."""
    found = [ratio for ratio, _ in _ratios(cases, what, rival)]
    return geometric_mean(found) if found else None


def _worst(cases: Iterable[Case], what: str, rival: str) -> str:
    ratio, case = max(_ratios(cases, what, rival), key=lambda found: found[0], default=(None, None))
    return f"{_shown(ratio)}\n{case.cell}\n{case.size}" if case else ""


def plot(cases: Sequence[Case], rivals: Sequence[str], machine: str, path: Path) -> None:
    """Draw one panel a ratio: bars from 1 to each cell's geometric mean, a dot for each size; to the left is less."""
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter

    bars: list[tuple[float, str, list[Case]]] = []
    labels: dict[str, float] = {}
    y = 0.0
    for cell, of_cell in {**_by_cell(cases), "all cells": list(cases)}.items():
        # a rival takes room only where it has the cell: torch has three of the zoo
        has = [rival for rival in rivals if _ratios(of_cell, "fwdbwd", rival)]
        bars += [(y + slot, rival, of_cell) for slot, rival in enumerate(has)]
        labels[cell if has else f"{cell} (no ratio)"] = y + max(len(has) - 1, 0) / 2
        y += max(len(has), 1) + 0.6

    figure = Figure(figsize=(13, 1.7 + 0.2 * y), layout="constrained")
    panels = figure.subplots(1, len(RATIOS), sharey=True)
    for axes, (what, title) in zip(panels, RATIOS.items()):
        for height, rival, of_cell in bars:
            average = mean(of_cell, what, rival)
            assert average is not None
            colour = f"C{rivals.index(rival)}"
            axes.barh(height, average - 1, 0.86, left=1, color=colour, alpha=0.75)
            single = [ratio for ratio, _ in _ratios(of_cell, what, rival)]
            axes.plot(single, [height] * len(single), ".", color="0.2", markersize=3)
            axes.text(1.01, height, f"{average:.2f}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        axes.axvline(1, color="0.2", linewidth=1)
        axes.set_xscale("log", base=2)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0.45), max(high, 2.2))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
        axes.set_title(f"{title}: rnnzoo ÷ rival", fontsize=10)
    panels[0].set_yticks(list(labels.values()), list(labels))
    panels[0].set_ylim(y - 0.9, -0.7)
    keys: list[Artist] = [Patch(color=f"C{number}", alpha=0.75, label=f"÷ {r}") for number, r in enumerate(rivals)]
    keys.append(Line2D([], [], linestyle="", marker=".", color="0.2", label="one size (bar: geometric mean)"))
    figure.legend(handles=keys, loc="outside upper center", ncols=len(keys), frameon=False)
    figure.supxlabel(machine, fontsize=8, color="0.4")
    figure.savefig(path, dpi=120)
