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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rnnzoo.errors import UserError, nearest
from rnnzoo.explain.essays.league import COLUMNS, LOWER, Trained
from rnnzoo.files import writing
from rnnzoo.hydra.command_line import CONF
from rnnzoo.hydra.done import is_done, naming, summary
from rnnzoo.plain import printable
from rnnzoo.registry import list_cells

TASKS = CONF / "experiment" / "league"


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

    def result(self, out: Path, cell: str, rate: str, seed: str) -> Trained | None:
        """A run's line of the table, if it has ended."""
        folder = self.folder(out, cell, rate, seed)
        with naming(folder / "summary.json"):
            ended = summary(folder)
            if ended is None:
                return None
            measured, metric = ended["metrics"], f"test/{self.metric}"
            return Trained(
                cell, self.name, metric, float(measured[metric]), float(measured[f"val/{self.metric}"]), int(seed),
                int(ended["parameters"]), float(rate), float(ended["seconds_training"]),
            )  # fmt: skip

    def best_rate(self, out: Path, cell: str) -> str | None:
        """That of the best validation, once the first seed has been run at all rates that come to an end."""
        found = {rate: self.result(out, cell, rate, self.seeds[0]) for rate in self.rates}
        sign = 1 if self.metric.endswith(LOWER) else -1
        tried = {rate: sign * run.validation for rate, run in found.items() if run and math.isfinite(run.validation)}
        return min(tried, key=lambda rate: tried[rate]) if tried else None


def find(names: Sequence[str]) -> list[Task]:
    """The league's tasks of these names, all of them for none. Raises `UserError` for an unknown one."""
    known = sorted(path.stem for path in TASKS.glob("*.yaml"))
    for name in names:
        if name not in known:
            raise UserError(f"--tasks {name}: not in the league; {nearest(name, known)}")
    return [_read(TASKS / f"{name}.yaml") for name in names or known]


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
        out: the folder of the runs.
        more: arguments for every run, such as hydra/launcher=joblib.
        only_show: do nothing that is missing.

    Raises `UserError` for an unknown name, and for a folder that holds another run than the league wants.
    """
    known = list_cells()
    for cell in cells:
        if cell not in known:
            raise UserError(f"no cell is named {cell!r}; {nearest(cell, known)}")
    playing, listed = find(tasks), list(cells) or known
    for number in range(max(len(task.rates) for task in playing)):
        for task in playing:
            for rate in task.rates[number : number + 1]:
                _piece(task, listed, rate, task.seeds[0], out, more, only_show)
    for number in range(1, max(len(task.seeds) for task in playing)):
        for task in playing:
            for seed in task.seeds[number : number + 1]:
                for rate in task.rates:
                    of_rate = [cell for cell in listed if task.best_rate(out, cell) == rate]
                    _piece(task, of_rate, rate, seed, out, more, only_show)
    table = _write(out)
    _report(playing, listed, table, out)
    return table


def _piece(
    task: Task, cells: Sequence[str], rate: str, seed: str, out: Path, more: Sequence[str], only_show: bool
) -> None:
    """Those of a task's runs at one rate and seed that are missing, in one process."""
    missing = [
        cell
        for cell in cells
        if not is_done(task.folder(out, cell, rate, seed), [*task.arguments(cell, rate, seed), *more])
    ]
    if only_show or not missing:
        return
    print(printable(f"{task.name}, learning rate {rate}, seed {seed}: {len(missing)} cells"), flush=True)
    arguments = [*task.arguments(",".join(missing), rate, seed), *more, f"hydra.sweep.dir={out / task.name}"]
    code = subprocess.run([sys.executable, "-m", "rnnzoo", "train", *arguments]).returncode
    if code not in (0, 1):  # 1: some were refused or diverged, which it has said
        raise UserError(f"rnnzoo train {' '.join(arguments)}: ended with {code}; rnnzoo league goes on where it was")
    _write(out)


def _write(out: Path) -> list[Trained]:
    """All that is there of any task, cell, rate and seed of the league, as a table and as the file."""
    table = sorted(_found(out), key=lambda run: (run.task, run.cell, run.learning_rate, run.seed))
    out.mkdir(parents=True, exist_ok=True)
    with writing(out / "league.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, COLUMNS)
        rows.writeheader()
        rows.writerows({column: getattr(run, column) for column in COLUMNS} for run in table)
    return table


def _found(out: Path) -> Iterator[Trained]:
    for task in find([]):
        for cell in list_cells():
            for rate in task.rates:
                for seed in task.seeds:
                    run = task.result(out, cell, rate, seed)
                    if run is not None:
                        yield run


def _report(playing: Sequence[Task], cells: Sequence[str], table: Sequence[Trained], out: Path) -> None:
    """What is there and what is missing, and where it stands."""
    there = {(run.task, run.cell) for run in table}
    for task in playing:
        runs = [run for run in table if run.task == task.name]
        without = [cell for cell in cells if (task.name, cell) not in there]
        told = f"{task.name}: {len(runs)} runs of {len({run.cell for run in runs})} cells"
        print(printable(f"{told}; none of {', '.join(without)}" if without else told))
    print(printable(f"written: {out / 'league.csv'}"))
