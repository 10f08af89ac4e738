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
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from rnnzoo.errors import UserError, nearest
from rnnzoo.explain.essays.league import COLUMNS, LOWER, Trained, rank, read
from rnnzoo.files import make_folder, writing
from rnnzoo.hydra.command_line import CONF
from rnnzoo.hydra.done import beside, experiments, is_done, measured, naming, settings, summary
from rnnzoo.plain import printable
from rnnzoo.registry import list_cells

TASKS = CONF / "experiment" / "league"

BEST = 5
"""Cells of a task that are named at the end."""
MISSING = 10
"""Cells without a run in a task that are."""
OWN = ("experiment", "model", "optimizer.lr", "seed")
"""Keys that the league gives each run itself."""


@dataclass(frozen=True)
class Task:
    """A task of the league as its file has it.

    Args:
        name: of the file.
        metric: that counts, without the part of the data: best by val/..., compared by test/...
        rates: learning rates, as they stand in a run's name; the first is tried first.
        seeds: all, the first first.
        model: which cells play, as a multirun has it.
    """

    name: str
    metric: str
    rates: list[str]
    seeds: list[str]
    model: str = "glob(*)"

    def cells(self) -> list[str]:
        """Those registered that play unless others are named."""
        playing: Any = OverridesParser.create().parse_override(f"model={self.model}").value()
        return list(playing.filter(list_cells()))

    def folder(self, out: Path, cell: str, rate: str, seed: str) -> Path:
        return out / self.name / f"{cell}-{float(rate)}-{seed}"

    def arguments(self, cell: str, rate: str, seed: str) -> list[str]:
        return [f"experiment=league/{self.name}", f"model={cell}", f"optimizer.lr={rate}", f"seed={seed}"]


def find(names: Sequence[str]) -> list[Task]:
    """The league's tasks of these names, all of them for none. Raises `UserError` for an unknown one."""
    return [_read(path) for path in experiments(TASKS, names, "--tasks {}: not in the league")]


def _read(path: Path) -> Task:
    file: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    params = file["hydra"]["sweeper"]["params"]
    rates, seeds = (str(params[key]).split(",") for key in ("optimizer.lr", "seed"))
    return Task(path.stem, file["league"]["metric"], rates, seeds, params["model"])


def play(
    cells: Sequence[str], tasks: Sequence[str], out: Path, more: Sequence[str] = (), only_show: bool = False
) -> list[Trained]:
    """Do what runs are missing, unless only to be shown what is there, and write out/league.csv after each piece.

    Args:
        cells: that play; none for all that a task's file has.
        tasks: by name; none for all.
        out: the folder of the runs. Those in its league.csv count as done, also without their folders.
        more: arguments for every run, such as hydra/launcher=joblib.
        only_show: do nothing that is missing.

    Raises `UserError` for an unknown name, a key that the league sets itself, a folder that holds another run than the
    league wants, and at the end for runs that have failed.
    """
    known = list_cells()
    for cell in cells:
        if cell not in known:
            raise UserError(f"no cell is named {cell!r}; {nearest(cell, known)}")
    for argument in more:
        if argument.lstrip("+~").partition("=")[0] in OWN:
            raise UserError(f"{argument}: the league sets this itself; name cells and --tasks")
        try:
            settings([argument])
        except HydraException as error:
            raise UserError(f"{argument}: is not KEY=VALUE ({str(error).splitlines()[0]}); correct it") from None
    playing = find(tasks)
    make_folder("--out", out)
    league = League(out, more, only_show)
    for number in range(max(len(task.rates) for task in playing)):
        for task in playing:
            for rate in task.rates[number : number + 1]:
                league.piece(task, cells or task.cells(), rate, task.seeds[0])
    for number in range(1, max(len(task.seeds) for task in playing)):
        for task in playing:
            for seed in task.seeds[number : number + 1]:
                for rate in task.rates:
                    here = [cell for cell in cells or task.cells() if league.best_rate(task, cell) == rate]
                    league.piece(task, here, rate, seed)
    table = league.write()
    for task in playing:
        league.tell(task, cells or task.cells(), table)
    print(printable(f"written: {league.path}"))
    if league.failed:
        runs = "1 run" if league.failed == 1 else f"{league.failed} runs"
        raise UserError(f"{runs} failed, as was said above; the same command tries again")
    return table


class League:
    """The runs in a folder and in the table there. Arguments as `play` has them."""

    def __init__(self, out: Path, more: Sequence[str], only_show: bool) -> None:
        self.out, self.more, self.only_show, self.path = out, more, only_show, out / "league.csv"
        self.settings, self.failed = settings(more), 0
        self.kept = {run.key: run for run in (read(self.path) if self.path.is_file() else [])}

    def result(self, task: Task, cell: str, rate: str, seed: str) -> Trained | None:
        """A run's line of the table, if it has ended; without its folder, that of a run with the same settings."""
        folder = task.folder(self.out, cell, rate, seed)
        with naming(folder / "summary.json"):
            ended = summary(folder)
            if ended is None:
                return self.kept.get((task.name, cell, float(rate), int(seed), self.settings))
            metric = f"test/{task.metric}"
            return Trained(
                cell, task.name, metric, measured(ended, metric), measured(ended, f"val/{task.metric}"), int(seed),
                int(ended["parameters"]), float(rate), float(ended["seconds_training"]),
                beside(folder, task.arguments(cell, rate, seed)),
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
        self.failed += sum(self.result(task, cell, rate, seed) is None for cell in missing)
        self.write()

    def tell(self, task: Task, listed: Sequence[str], table: Sequence[Trained]) -> None:
        """Print who is best, a line for these settings and one for any others that there are."""
        of_task = [run for run in table if run.task == task.name]
        for given in sorted({self.settings, *(run.settings for run in of_task)}):
            runs = [run for run in of_task if run.settings == given]
            there = {run.cell for run in runs}
            told = f"{task.name}{f' with {given}' * bool(given)}: {len(runs)} runs of {len(there)} cells"
            for ranked in rank(runs):
                best = ", ".join(f"{entry.cell} {entry.middle:.4g}" for entry in ranked.entries[:BEST])
                told += f", {ranked.metric} of the best {best}"
            without = [cell for cell in listed if cell not in there] if given == self.settings else []
            others = f" and {len(without) - MISSING} more" * (len(without) > MISSING)
            print(printable(f"{told}; none of {', '.join(without[:MISSING])}{others}" if without else told))

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
        there = {run.key for run in table}
        table += [run for key, run in self.kept.items() if key not in there]  # of other tasks, rates or settings
        with writing(self.path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, COLUMNS)
            rows.writeheader()
            rows.writerows({column: getattr(run, column) for column in COLUMNS} for run in table)
        return table
