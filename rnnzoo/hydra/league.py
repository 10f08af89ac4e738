"""`rnnzoo league`: every cell on the same short tasks, with as many parameters as the others, in pieces that go on.

A task of the league is an experiment, `conf/experiment/league/NAME.yaml`, whose `league` names the metric that counts
and whose multirun has all cells, some learning rates and some seeds. Each cell has the first seed at every rate, and
the others at the rate whose validation metric was best. What is there already is not repeated, so that the league can
be stopped at any time, and runs may come from elsewhere, such as `rnnzoo train experiment=league/NAME` on a cluster.
"""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rnnzoo.errors import UserError, nearest
from rnnzoo.explain.essays.league import COLUMNS, LOWER, Trained, rank, read
from rnnzoo.files import make_folder, writing
from rnnzoo.hydra.command_line import CONF
from rnnzoo.hydra.done import experiments, is_done, measured, naming, summary
from rnnzoo.plain import printable
from rnnzoo.registry import list_cells

TASKS = CONF / "experiment" / "league"

BEST = 5
"""Cells of a task that are named at the end."""
MISSING = 10
"""Cells without a run in a task that are."""


@dataclass(frozen=True)
class Task:
    """A task of the league as its file has it.

    Args:
        name: of the file.
        metric: that counts, without the part of the data: best by val/..., compared by test/...
        rates: learning rates, as they stand in a run's name; the first is tried first.
        seeds: all, the first first.
    """

    name: str
    metric: str
    rates: list[str]
    seeds: list[str]

    def folder(self, out: Path, cell: str, rate: str, seed: str) -> Path:
        return out / self.name / f"{cell}-{float(rate)}-{seed}"

    def arguments(self, cell: str, rate: str, seed: str) -> list[str]:
        return [f"experiment=league/{self.name}", f"model={cell}", f"optimizer.lr={rate}", f"seed={seed}"]


def find(names: Sequence[str]) -> list[Task]:
    """The league's tasks of these names, all of them for none. Raises `UserError` for an unknown one."""
    return [_read(path) for path in experiments(TASKS, names, "--tasks {}: not in the league")]


def _read(path: Path) -> Task:
    settings: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    params = settings["hydra"]["sweeper"]["params"]
    rates, seeds = (str(params[key]).split(",") for key in ("optimizer.lr", "seed"))
    return Task(path.stem, settings["league"]["metric"], rates, seeds)


def play(
    cells: Sequence[str], tasks: Sequence[str], out: Path, more: Sequence[str] = (), only_show: bool = False
) -> list[Trained]:
    """Do what runs are missing, unless only to be shown what is there, and write out/league.csv after each piece.

    Args:
        cells: that play; none for all registered ones.
        tasks: by name; none for all.
        out: the folder of the runs. Those in its league.csv count as done, also without their folders.
        more: arguments for every run, such as hydra/launcher=joblib.
        only_show: do nothing that is missing.

    Raises `UserError` for an unknown name, and for a folder that holds another run than the league wants.
    """
    known = list_cells()
    for cell in cells:
        if cell not in known:
            raise UserError(f"no cell is named {cell!r}; {nearest(cell, known)}")
    playing, listed = find(tasks), list(cells) or known
    make_folder("--out", out)
    league = League(out, more, only_show)
    for number in range(max(len(task.rates) for task in playing)):
        for task in playing:
            for rate in task.rates[number : number + 1]:
                league.piece(task, listed, rate, task.seeds[0])
    for number in range(1, max(len(task.seeds) for task in playing)):
        for task in playing:
            for seed in task.seeds[number : number + 1]:
                for rate in task.rates:
                    league.piece(task, [cell for cell in listed if league.best_rate(task, cell) == rate], rate, seed)
    table = league.write()
    there = {(run.task, run.cell) for run in table}
    for task in playing:
        runs = [run for run in table if run.task == task.name]
        without = [cell for cell in listed if (task.name, cell) not in there]
        told = f"{task.name}: {len(runs)} runs of {len({run.cell for run in runs})} cells"
        for ranked in rank(runs):
            best = ", ".join(f"{entry.cell} {entry.middle:.4g}" for entry in ranked.entries[:BEST])
            told += f", {ranked.metric} of the best {best}"
        others = f" and {len(without) - MISSING} more" * (len(without) > MISSING)
        print(printable(f"{told}; none of {', '.join(without[:MISSING])}{others}" if without else told))
    print(printable(f"written: {league.path}"))
    return table


class League:
    """The runs in a folder and in the table there. Arguments as `play` has them."""

    def __init__(self, out: Path, more: Sequence[str], only_show: bool) -> None:
        self.out, self.more, self.only_show, self.path = out, more, only_show, out / "league.csv"
        kept = read(self.path) if self.path.is_file() else []
        self.kept = {(run.task, run.cell, run.learning_rate, run.seed): run for run in kept}

    def result(self, task: Task, cell: str, rate: str, seed: str) -> Trained | None:
        """A run's line of the table, if it has ended."""
        folder = task.folder(self.out, cell, rate, seed)
        with naming(folder / "summary.json"):
            ended = summary(folder)
            if ended is None:
                return self.kept.get((task.name, cell, float(rate), int(seed)))
            metric = f"test/{task.metric}"
            return Trained(
                cell, task.name, metric, measured(ended, metric), measured(ended, f"val/{task.metric}"), int(seed),
                int(ended["parameters"]), float(rate), float(ended["seconds_training"]),
            )  # fmt: skip

    def best_rate(self, task: Task, cell: str) -> str | None:
        """That of the first seed's best validation, of the rates at which it has come to a number."""
        found = {rate: self.result(task, cell, rate, task.seeds[0]) for rate in task.rates}
        sign = 1 if task.metric.endswith(LOWER) else -1
        tried = {rate: sign * run.validation for rate, run in found.items() if run and math.isfinite(run.validation)}
        return min(tried, key=lambda rate: tried[rate]) if tried else None

    def piece(self, task: Task, cells: Sequence[str], rate: str, seed: str) -> None:
        """Do those of a task's runs at one rate and seed that are missing, in one process."""
        if self.only_show:
            return
        missing = []
        for cell in cells:
            wanted = [*task.arguments(cell, rate, seed), *self.more]
            if not is_done(task.folder(self.out, cell, rate, seed), wanted):
                missing += [cell] if self.result(task, cell, rate, seed) is None else []
        if not missing:
            return
        print(printable(f"{task.name}, learning rate {rate}, seed {seed}: {len(missing)} cells"), flush=True)
        arguments = [*task.arguments(",".join(missing), rate, seed), *self.more]
        arguments.append(f"hydra.sweep.dir={self.out / task.name}")
        try:
            code = subprocess.run([sys.executable, "-m", "rnnzoo", "train", *arguments]).returncode
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same command goes on") from None
        if code not in (0, 1):  # 1: some were refused or diverged, which it has said
            raise UserError(f"rnnzoo train {' '.join(arguments)}: ended with {code}; the same command goes on")
        self.write()

    def write(self) -> list[Trained]:
        """All that is there of any cell, task, rate and seed of the league, and what else the file had, as the file."""
        found = [
            self.result(task, cell, rate, seed)
            for task in find([])
            for cell in sorted({*list_cells(), *(run.cell for run in self.kept.values())})
            for rate in sorted(task.rates, key=float)
            for seed in task.seeds
        ]
        table = [run for run in found if run is not None]
        there = {(run.task, run.cell, run.learning_rate, run.seed) for run in table}
        table += [run for key, run in self.kept.items() if key not in there]  # of a league with other tasks or rates
        with writing(self.path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, COLUMNS)
            rows.writeheader()
            rows.writerows({column: getattr(run, column) for column in COLUMNS} for run in table)
        return table
