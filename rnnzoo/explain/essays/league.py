"""Which cell for what: what a league of all cells on several tasks has come to, read from its CSV file.

Columns: cell, task, metric, value, validation (the same metric on the part that chooses the learning rate), seed,
parameters, learning_rate, seconds, settings (what the run was given beside the league's own, nothing in the league as
it stands); a line for each training.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from markupsafe import Markup

from rnnzoo.errors import UserError
from rnnzoo.explain import chart
from rnnzoo.explain.essays.page import Essay, Found

RESULTS = Path(__file__).parents[1] / "league.csv"
"""Where the league leaves its results."""

COLUMNS = (
    "cell", "task", "metric", "value", "validation", "seed", "parameters", "learning_rate", "seconds", "settings",
)  # fmt: skip

LOWER = ("loss", "mse", "mae", "rmse", "perplexity", "bits_per_character", "error")
"""What a metric's name ends in that is best where it is lowest."""

ROUNDS = 300
"""Bootstrap samples."""

BEST = 10
"""Cells that a task's table has."""


@dataclass(frozen=True)
class Trained:
    """One training: a line of the file."""

    cell: str
    task: str
    metric: str
    value: float
    validation: float
    seed: int
    parameters: int
    learning_rate: float
    seconds: float
    settings: str = ""

    @property
    def key(self) -> tuple[str, str, float, int, str]:
        """No two lines have the same."""
        return self.task, self.cell, self.learning_rate, self.seed, self.settings

    @property
    def contest(self) -> str:
        """The task; with other settings it is another one."""
        return f"{self.task} with {self.settings}" if self.settings else self.task


@dataclass(frozen=True)
class Entry:
    """A cell on a task, at the learning rate of the most seeds, and of those the best by the median validation.

    Args:
        values: of each seed, best first.
        place: from 1 on.
        tied: whether its values overlap with those of the task's first.
    """

    cell: str
    values: list[float]
    parameters: int
    learning_rate: float
    seconds: float
    place: int = 0
    tied: bool = False

    @property
    def middle(self) -> float:
        return median(self.values)

    @property
    def diverged(self) -> bool:
        """Whether the median is no number."""
        return math.isnan(self.middle)

    @property
    def spread(self) -> float | None:
        """The standard deviation over the seeds, where there are several and all came to a number."""
        several = len(self.values) > 1 and all(map(math.isfinite, self.values))
        return float(np.std(self.values, ddof=1)) if several else None


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
        low: the 5 % quantile of that rank over bootstrap samples of tasks and seeds (Efron 1979), and
        high: the 95 % quantile.
        leads: tasks on which it was among the best.
        seconds: of a training, the median over tasks.
    """

    cell: str
    rank: float
    leads: int
    tasks: int
    seconds: float
    low: float
    high: float


def read(path: Path) -> list[Trained]:
    """The lines of a league's file. Raises `UserError` naming file, line and column for what is not as it should be."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or (), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise UserError(f"{path}: has no results with the column {missing[0]}; columns are {', '.join(COLUMNS)}")
    foreign = [column for column in columns if column not in COLUMNS]
    if foreign:
        raise UserError(f"{path}: has a column {foreign[0]!r} more than {', '.join(COLUMNS)}; take it out")
    found: list[Trained] = []
    lines: dict[tuple[Any, ...], int] = {}
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise UserError(f"{path}: line {number}: has not the {len(COLUMNS)} fields of the first line")
        values: dict[str, Any] = {}
        for column, kind in Trained.__annotations__.items():
            try:
                values[column] = {"str": str, "int": int, "float": float}[kind](row[column])
            except (TypeError, ValueError):
                raise UserError(f"{path}: line {number}: {column}={row[column]!r} is not a number") from None
        found.append(Trained(**values))
        first = lines.setdefault(found[-1].key, number)
        if first != number:
            raise UserError(f"{path}: line {number}: is of the same run as line {first}; take one of them out")
    return found


def rank(trained: Iterable[Trained]) -> list[Task]:
    """Each task's cells, best first; a training that came to no number counts as the worst."""
    by_task: dict[tuple[str, str], list[Trained]] = defaultdict(list)
    for run in trained:
        by_task[run.contest, run.metric].append(run)
    return [Task(task, metric, _ranked(metric, runs)) for (task, metric), runs in sorted(by_task.items())]


def _ranked(metric: str, runs: list[Trained]) -> list[Entry]:
    sign = 1 if metric.endswith(LOWER) else -1

    def worth(value: float) -> float:
        return math.inf if math.isnan(value) else sign * value

    tries: dict[tuple[str, float], list[Trained]] = defaultdict(list)
    for run in runs:
        tries[run.cell, run.learning_rate].append(run)
    best: dict[str, tuple[tuple[int, float], Entry]] = {}
    for (cell, rate), of_rate in tries.items():
        values = sorted((run.value for run in of_rate), key=worth)
        entry = Entry(cell, values, of_rate[0].parameters, rate, median(run.seconds for run in of_rate))
        choice = (-len(values), median(worth(run.validation) for run in of_rate))
        if cell not in best or choice < best[cell][0]:
            best[cell] = choice, entry
    entries = sorted((entry for _, entry in best.values()), key=lambda entry: (worth(entry.middle), entry.cell))
    last = worth(entries[0].values[-1])
    return [replace(entry, place=place, tied=worth(entry.values[0]) <= last) for place, entry in enumerate(entries, 1)]


def standings(tasks: list[Task]) -> list[Standing]:
    """All cells, best mean rank first."""
    cells = sorted({entry.cell for task in tasks for entry in task.entries})
    entries = {cell: [entry for task in tasks for entry in task.entries if entry.cell == cell] for cell in cells}
    generator = np.random.default_rng(1)
    ranks = np.array([_mean_ranks(tasks, cells)] + [_mean_ranks(tasks, cells, generator) for _ in range(ROUNDS)])
    low, high = np.nanquantile(ranks[1:], (0.05, 0.95), axis=0)
    found = []
    for k, cell in enumerate(cells):
        leads, seconds = sum(e.tied for e in entries[cell]), median(e.seconds for e in entries[cell])
        found.append(Standing(cell, ranks[0, k], leads, len(entries[cell]), seconds, low[k], high[k]))
    return sorted(found, key=lambda standing: (standing.rank, standing.cell))


def _mean_ranks(tasks: list[Task], cells: list[str], generator: np.random.Generator | None = None) -> np.ndarray:
    """Each cell's mean rank over tasks, by the median of its seeds; tasks and seeds drawn anew by a generator."""
    number = {cell: k for k, cell in enumerate(cells)}
    drawn = tasks if generator is None else [tasks[k] for k in generator.integers(len(tasks), size=len(tasks))]
    ranks = np.full((len(drawn), len(cells)), np.nan)
    for row, task in zip(ranks, drawn):
        sign = 1 if task.metric.endswith(LOWER) else -1
        found = []
        for entry in task.entries:
            values = np.nan_to_num(sign * np.array(entry.values), nan=np.inf)
            found.append(np.median(values if generator is None else generator.choice(values, len(values))))
        order = np.argsort(found, kind="stable")  # entries come best first, so that equals keep their order
        for place, k in enumerate(order):
            row[number[task.entries[k].cell]] = place / max(len(order) - 1, 1)
    there = np.isfinite(ranks).sum(0)  # of the tasks drawn, a cell may have been on none
    return np.where(there > 0, np.nansum(ranks, axis=0) / np.maximum(there, 1), np.nan)


def places() -> dict[str, list[tuple[Task, Entry]]]:
    """Each cell's entries on the tasks of the committed league; nothing where there has been no league yet."""
    found: dict[str, list[tuple[Task, Entry]]] = defaultdict(list)
    for task in rank(read(RESULTS)) if RESULTS.is_file() else []:
        for entry in task.entries:
            found[entry.cell].append((task, entry))
    return found


def found() -> dict[str, Any]:
    """Not kept: reading takes no time, and the file may be another one."""
    trained = read(RESULTS)
    tasks = rank(trained)
    by_cell = {(task.name, entry.cell): entry for task in tasks for entry in task.entries}
    return {
        "tasks": tasks,
        "standings": standings(tasks),
        "by_cell": by_cell,
        "trainings": len(trained),
        "cells": len({run.cell for run in trained}),
        "seeds": len({run.seed for run in trained}),
        "tried": _tried(trained),
        "hours": sum(run.seconds for run in trained) / 3600,
        "best": BEST,
    }


def _tried(trained: list[Trained]) -> dict[tuple[float, ...], list[str]]:
    """The learning rates that were tried, each choice with the tasks that had it."""
    of_task: dict[str, set[float]] = defaultdict(set)
    for run in trained:
        of_task[run.contest].add(run.learning_rate)
    tried: dict[tuple[float, ...], list[str]] = defaultdict(list)
    for task, rates in sorted(of_task.items()):
        tried[tuple(sorted(rates))].append(task)
    return tried


def pictures(say: Any, found: Found) -> Found:
    points = [(math.log10(max(s.seconds, 1e-3)), s.rank) for s in found["standings"]]
    return {
        "cost_chart": Markup(
            chart.lines({"": points}, say.league_log_seconds(), say.league_rank(), say.league_cost_chart(), dots=True)
        )
    }


ESSAY = Essay("league", "essay_league.html", found, pictures)
