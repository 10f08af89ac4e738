"""`rnnzoo claims`: what papers claimed of their cells, tried here, beside a contrast that is to fail.

A claim is an experiment, `conf/experiment/claim/NAME.yaml`, with a section `claim`: the paper, what it says, its
figure, the metric, the runs by name with the arguments that each adds, how many seeds each has, and the comparisons of
the runs' mean metrics that must hold. A run that is there already is not repeated, one that was stopped goes on.
"""

from __future__ import annotations

import csv
import math
import operator
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rnnzoo.errors import UserError
from rnnzoo.explain.essays.claims import COLUMNS
from rnnzoo.files import make_folder, writing
from rnnzoo.hydra.command_line import CONF
from rnnzoo.hydra.done import DIVERGED, experiments, is_done, measured, naming, summary
from rnnzoo.plain import printable

CLAIMS = CONF / "experiment" / "claim"

DESCRIBING = ("cells", "paper", "says", "figure there", "tried here", "metric")
"""Columns of the table that a claim's file tells."""

COMPARE: dict[str, Callable[[float, float], bool]] = {"<": operator.lt, ">": operator.gt}


@dataclass(frozen=True)
class Claim:
    """A claim as its file has it.

    Args:
        name: of the file.
        cells: those that it is about.
        paper: who says so.
        says: what they say.
        figure: what they measured, and where.
        here: how it is tried here, in a line.
        metric: of a run's summary.
        runs: further arguments of each run, by its name.
        seeds: every run is done with seeds 1, 2, ...
        holds: comparisons such as "irnn < 0.01", "rnn > 10 * irnn" of runs' means and numbers; `trivial` is the answer
            of something that has learned nothing, as the run's summary states it.
    """

    name: str
    cells: list[str]
    paper: str
    says: str
    figure: str
    here: str
    metric: str
    runs: dict[str, list[str]]
    holds: list[str]
    seeds: int = 1

    def jobs(self, out: Path) -> dict[tuple[str, int], tuple[Path, list[str]]]:
        """Folder and arguments of every run, by its name and seed."""
        return {
            (run, seed): (
                out / self.name / f"{run}-{seed}",
                [f"experiment=claim/{self.name}", *more, *([f"seed={seed}"] if seed > 1 else [])],
            )
            for run, more in self.runs.items()
            for seed in range(1, self.seeds + 1)
        }


def find(names: Sequence[str]) -> list[Claim]:
    """The claims of these names, all of them for none. Raises `UserError` for an unknown one."""
    return [read(path) for path in experiments(CLAIMS, names, "no claim is named {!r}")]


def read(path: Path) -> Claim:
    """The claim in a file."""
    section: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["claim"]
    return Claim(path.stem, **section)


def publish(names: Sequence[str], out: Path, only_show: bool = False) -> list[dict[str, str]]:
    """Do what runs are missing, unless only to be shown what is there; print the table and write it to claims.csv.

    Args:
        names: of the claims; none for all.
        out: the folder of the runs, one for each claim.
        only_show: do nothing that is missing.

    Lines of other claims in claims.csv stay, and so do those whose runs are no longer there. Raises `UserError` for an
    unknown name, for a folder that holds another run than the claim wants, and for a claims.csv with other columns.
    """
    claims, path = find(names), out / "claims.csv"
    make_folder("--out", out)
    kept = {row["claim"]: row for row in _written(path)}
    rows = []
    for claim in claims:
        jobs = claim.jobs(out)
        for (run, seed), (folder, arguments) in jobs.items():
            if not is_done(folder, arguments) and not only_show:
                print(printable(f"{claim.name}: {run}, seed {seed}"), flush=True)
                _train(folder, arguments)
        row, missing = _row(claim, {job: folder for job, (folder, _) in jobs.items()})
        rows.append(_better(kept.get(claim.name), row) if missing else row)
    kept |= {row["claim"]: row for row in rows}
    with writing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(kept[name] for name in sorted(kept))
    _print(rows)
    print(printable(f"written: {path}"))
    return rows


def _written(path: Path) -> list[dict[str, str]]:
    """The lines of a table that was written before."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it, to have it written anew") from None
    if any(tuple(row) != COLUMNS or None in row.values() for row in rows):
        raise UserError(f"{path}: is not a table of claims as written here; move it, to have it written anew")
    return rows


def _train(folder: Path, arguments: list[str]) -> None:
    """A run in a process of its own, so that its measured memory and threads are a run's."""
    given = [f"resume={folder}"] if (folder / "checkpoints" / "last.ckpt").is_file() else [
        *arguments, f"hydra.run.dir={folder}"
    ]  # fmt: skip
    ended = subprocess.run([sys.executable, "-m", "rnnzoo", "train", *given])
    if ended.returncode and not (folder / DIVERGED).is_file():
        raise UserError(f"this run failed: rnnzoo train {shlex.join(given)}")


def _row(claim: Claim, folders: Mapping[tuple[str, int], Path]) -> tuple[dict[str, str], int]:
    """A claim's line of the table, its values as text, and how many of its runs are missing."""
    found: dict[str, list[float]] = {}
    seconds, missing = 0.0, 0
    for (run, _), folder in folders.items():
        with naming(folder / "summary.json"):
            ended = summary(folder)
            if ended is None:
                missing += 1
                continue
            found.setdefault(run, []).append(measured(ended, claim.metric))
            trivial = f"baseline/trivial_{claim.metric.rpartition('/')[2]}"
            if trivial in ended.get("metrics", ()):
                found["trivial"] = [float(ended["metrics"][trivial])]
            seconds += float(ended["seconds_training"]) + float(ended["seconds_validation"])
    means = {name: statistics.fmean(values) for name, values in found.items()}
    verdict = f"{missing} of {len(folders)} runs are missing" if missing else judge(claim.holds, means)
    row = {
        "claim": claim.name, "cells": " ".join(claim.cells), "paper": claim.paper, "says": claim.says,
        "figure there": claim.figure, "tried here": claim.here, "metric": claim.metric,
        "figures here": "; ".join(f"{name} {_shown(found[name])}" for name in found),
        "held": verdict, "seconds": f"{seconds:.0f}",
    }  # fmt: skip
    return row, missing


def judge(holds: Sequence[str], means: Mapping[str, float]) -> str:
    """ "yes", or which comparisons do not hold."""
    wrong = []
    for comparison in holds:
        left, sign, right = next(comparison.partition(f" {sign} ") for sign in COMPARE if f" {sign} " in comparison)
        if not COMPARE[sign.strip()](_value(left, means), _value(right, means)):
            wrong.append(comparison)
    return f"no: {'; '.join(wrong)}" if wrong else "yes"


def _value(text: str, means: Mapping[str, float]) -> float:
    """A number, the mean of a run, or a number times one."""
    factor, times, name = text.rpartition(" * ")
    value = means[name] if name in means else float(name)
    return float(factor) * value if times else value


def _better(before: dict[str, str] | None, row: dict[str, str]) -> dict[str, str]:
    """The line that was there, if it tells the end of the same claim; else the line with runs missing."""
    same = before is not None and all(before[column] == row[column] for column in DESCRIBING)
    return before if before is not None and same and before["held"].startswith(("yes", "no:")) else row


def _shown(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 and all(map(math.isfinite, values)) else ""
    return f"{statistics.fmean(values):.4g}{spread}"


def _print(rows: list[dict[str, str]]) -> None:
    columns = ("claim", "figure there", "figures here", "held", "seconds")
    table = Table(*columns)
    for row in rows:
        table.add_row(*(escape(row[column]) for column in columns))
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 200)
    console.print(table)
