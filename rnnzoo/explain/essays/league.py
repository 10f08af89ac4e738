"""Which cell for what: what a league of all cells on several tasks has come to, read from its CSV file.

Columns: cell, task, metric, value, seed, parameters, learning_rate, seconds; a line for each training.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from markupsafe import Markup

from rnnzoo.errors import UserError
from rnnzoo.explain import chart
from rnnzoo.explain.essays.page import Essay, Found

RESULTS = Path(__file__).parents[1] / "league.csv"
"""Where the league leaves its results."""

COLUMNS = ("cell", "task", "metric", "value", "seed", "parameters", "learning_rate", "seconds")

LOWER = ("loss", "mse", "mae", "rmse", "perplexity", "bits_per_character", "error")
"""What a metric's name ends in that is best where it is lowest."""

BEST = 10
"""Cells that a task's table has."""


@dataclass(frozen=True)
class Trained:
    """One training: a line of the file."""

    cell: str
    task: str
    metric: str
    value: float
    seed: int
    parameters: int
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Entry:
    """A cell on a task, at the learning rate whose median over the seeds is best.

    Args:
        values: of each seed, best first.
        tied: whether its values overlap with those of the task's first.
    """

    cell: str
    values: list[float]
    parameters: int
    learning_rate: float
    seconds: float
    tied: bool = False

    @property
    def middle(self) -> float:
        return median(self.values)


@dataclass(frozen=True)
class Task:
    """A task's entries, best first."""

    name: str
    metric: str
    entries: list[Entry]


@dataclass(frozen=True)
class Standing:
    """A cell over all tasks that it was trained on: its mean rank, how often it was first or tied with it, its time.

    Args:
        rank: 0 for first of all, 1 for last, the mean over tasks, which may have different numbers of cells.
        leads: tasks on which it was among the best.
        seconds: of a training, the median over tasks.
    """

    cell: str
    rank: float
    leads: int
    tasks: int
    seconds: float


def read(path: Path) -> list[Trained]:
    """The lines of a league's file. Raises `UserError` naming file, line and column for what is not as it should be."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    missing = [column for column in COLUMNS if not rows or column not in rows[0]]
    if missing:
        raise UserError(f"{path}: has no results with the column {missing[0]}; columns are {', '.join(COLUMNS)}")
    found = []
    for number, row in enumerate(rows, 2):
        values: dict[str, Any] = {}
        for column, kind in Trained.__annotations__.items():
            try:
                values[column] = {"str": str, "int": int, "float": float}[kind](row[column])
            except (TypeError, ValueError):
                raise UserError(f"{path}: line {number}: {column}={row[column]!r} is not a number") from None
        found.append(Trained(**values))
    return found


def rank(trained: Iterable[Trained]) -> list[Task]:
    """Each task's cells, best first; a training that came to no number counts as the worst."""
    by_task: dict[tuple[str, str], list[Trained]] = defaultdict(list)
    for run in trained:
        by_task[run.task, run.metric].append(run)
    return [Task(task, metric, _ranked(metric, runs)) for (task, metric), runs in sorted(by_task.items())]


def _ranked(metric: str, runs: list[Trained]) -> list[Entry]:
    sign = 1 if metric.endswith(LOWER) else -1

    def worth(value: float) -> float:
        return math.inf if math.isnan(value) else sign * value

    tries: dict[tuple[str, float], list[Trained]] = defaultdict(list)
    for run in runs:
        tries[run.cell, run.learning_rate].append(run)
    best: dict[str, Entry] = {}
    for (cell, rate), of_rate in tries.items():
        values = sorted((run.value for run in of_rate), key=worth)
        entry = Entry(cell, values, of_rate[0].parameters, rate, median(run.seconds for run in of_rate))
        if cell not in best or worth(entry.middle) < worth(best[cell].middle):
            best[cell] = entry
    first, *others = sorted(best.values(), key=lambda entry: (worth(entry.middle), entry.cell))
    last = worth(first.values[-1])
    return [Entry(**{**vars(entry), "tied": worth(entry.values[0]) <= last}) for entry in (first, *others)]


def standings(tasks: list[Task]) -> list[Standing]:
    """All cells, best mean rank first."""
    ranks: dict[str, list[float]] = defaultdict(list)
    leads: dict[str, int] = defaultdict(int)
    seconds: dict[str, list[float]] = defaultdict(list)
    for task in tasks:
        for place, entry in enumerate(task.entries):
            ranks[entry.cell].append(place / max(len(task.entries) - 1, 1))
            leads[entry.cell] += entry.tied
            seconds[entry.cell].append(entry.seconds)
    found = [Standing(cell, mean(r), leads[cell], len(r), median(seconds[cell])) for cell, r in ranks.items()]
    return sorted(found, key=lambda standing: (standing.rank, standing.cell))


def found() -> dict[str, Any]:
    """Not kept: reading takes no time, and the file may be another one."""
    trained = read(RESULTS)
    tasks = rank(trained)
    return {
        "tasks": tasks,
        "standings": standings(tasks),
        "trainings": len(trained),
        "cells": len({run.cell for run in trained}),
        "seeds": len({run.seed for run in trained}),
        "rates": sorted({run.learning_rate for run in trained}),
        "hours": sum(run.seconds for run in trained) / 3600,
        "best": BEST,
    }


def pictures(say: Any, found: Found) -> Found:
    points = [(math.log10(max(s.seconds, 1e-3)), s.rank) for s in found["standings"]]
    return {
        "cost_chart": Markup(
            chart.lines({"": points}, say.league_log_seconds(), say.league_rank(), say.league_cost_chart(), dots=True)
        )
    }


ESSAY = Essay("league", "essay_league.html", found, pictures)
