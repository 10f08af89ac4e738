"""What `-m` runs: all combinations of comma-separated values, or with `sweep=` what Optuna proposes in a search space.

Hydra takes sweepers only from installed packages called `hydra_plugins`; `register_sweepers` gives ours names of that
kind. Optuna and Lightning are imported only where a sweep begins, so that help stays quick.
"""

from __future__ import annotations

import hashlib
import math
import os
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from rnnzoo.errors import UserError
from rnnzoo.hydra.refusals import one_line, refused
from rnnzoo.hydra.search.space import distribution, grid, make_sampler
from rnnzoo.hydra.settings import quoted
from rnnzoo.lightning.ranks import refuse_sweep
from rnnzoo.plain import masked, printable

if TYPE_CHECKING:
    import optuna

    from rnnzoo.hydra.search.study import Budget

BARREN = 5
"""Launches in a row that fail without one of their trials having ended, after which a sweep fails too."""


def register_sweepers() -> None:
    """Make the sweepers known to Hydra."""
    for sweeper in (Combinations, Optuna):
        Plugins.instance().class_name_to_class[f"hydra_plugins.rnnzoo.{sweeper.__name__}"] = sweeper


def note_refused(results: Iterable[JobReturn]) -> None:
    """Keep the lines of jobs whose input was bad, whatever process they ran in; what else went wrong is raised."""
    for result in results:
        refused.extend(result.return_value or ())


class Combinations(Sweeper):
    """Hydra's own sweeper, which by itself drops what its jobs return."""

    def __init__(self, params: dict[str, str] | None = None, max_batch_size: int | None = None) -> None:
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # Hydra executes the module a second time

        self.hydras = BasicSweeper(max_batch_size, params)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydras.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.folder = config.hydra.sweep.dir

    def sweep(self, arguments: list[str]) -> Any:
        refuse_sweep()
        try:
            batches = self.hydras.sweep(arguments)
        except BrokenProcessPool as error:  # as joblib has it, whatever its other processes have done
            raise UserError(
                f"{self.folder}: a process of the sweep was killed, perhaps for want of memory; "
                "jobs that have no summary.json there are to be run again"
            ) from error
        for results in batches:
            note_refused(results)
        return batches


@dataclass(frozen=True)
class Settings:
    """The configuration's section `sweep`.

    Attributes:
        n_trials: of the whole study, those of earlier and of other processes included.
        n_jobs: trials launched together.
        seed: of the sampler; with a trial's number and the trials before, it decides what is proposed.
        storage: SQLAlchemy's URL of a database; None for SQLite in the sweep's folder.
        study: its name in the database; None for one that follows from task, model, search space and sampler.
        trial: the number of the trial that a job is; None for the sweep itself.
        dead_after: seconds without a sign of life after which a trial's process counts as dead.
        attempts: how often a trial whose processes die is begun before it counts as failed.
    """

    n_trials: PositiveInt
    n_jobs: PositiveInt
    sampler: Literal["tpe", "random", "grid", "gp", "cmaes", "qmc"]
    pruner: Literal["none", "median", "percentile", "halving", "hyperband"]
    seed: NonNegativeInt
    storage: str | None
    study: str | None
    trial: None
    dead_after: PositiveFloat
    attempts: PositiveInt


class Optuna(Sweeper):
    """Runs the trials that Optuna proposes, `sweep.n_jobs` at a time, until the study's budget is spent.

    Args:
        params: overrides in Hydra's syntax, ahead of those on the command line. `a,b`, `choice()` and `glob()` are
            categories, `range()` numbers at equal steps, `interval()` all numbers between two, `int(interval())`
            integers with both ends; `tag(log, ...)` makes equal ratios equally likely.
        max_batch_size: of Hydra's own sweeper; not used.
    """

    def __init__(self, params: dict[str, str] | None = None, max_batch_size: int | None = None) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Read search space and settings, and give the sweep its folder. Raises `UserError` naming the key."""
        from rnnzoo.hydra.search.study import STORAGE
        from rnnzoo.hydra.task_classes import find_class
        from rnnzoo.lightning.arguments import build, refuse_unknown

        self.hydra_context, self.config = hydra_context, config
        self.task: str = config.task.name
        section: dict[str, Any] = OmegaConf.to_container(config.sweep, resolve=True)  # type: ignore[assignment]
        refuse_unknown(section, [Settings], "sweep")
        self.settings = settings = build(Settings, section, "sweep")
        if settings.n_jobs > 1 and config.hydra.launcher._target_.endswith("BasicLauncher"):
            raise UserError(f"sweep.n_jobs={settings.n_jobs}: needs processes to run in; say hydra/launcher=joblib")

        # read as Hydra's own sweeper does: where a key is given twice, the last one holds
        arguments = [f"{key}={value}" for key, value in self.params.items()] + list(config.hydra.overrides.task)
        parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        overrides = {override.get_key_element(): override for override in parser.parse_overrides(arguments)}
        self.space = {key: distribution(o) for key, o in overrides.items() if o.is_sweep_override()}
        self.fixed = {key: o.get_value_element_as_str() for key, o in overrides.items() if key not in self.space}
        if not self.space:
            raise UserError("sweep: nothing to search; say KEY=a,b or KEY='interval(1,2)', or choose one of conf/sweep")
        if "task" in self.space:
            raise UserError(f"{overrides['task'].input_line}: losses of different tasks cannot be compared")

        find: Any = find_class(config.task, "module")
        self.monitor: str = find.monitor
        config.sweep.study = settings.study or self._name()  # the sweep's folder follows from it
        self.study_name: str = config.sweep.study
        self.folder = Path(config.hydra.sweep.dir)
        self.storage = settings.storage or f"sqlite:///{self.folder.resolve() / 'study.db'}"
        self.fixed.pop("sweep.storage", None)  # which may hold a password, and trials record what they are given
        os.environ.pop(STORAGE, None)
        if masked(self.storage) != self.storage:
            os.environ[STORAGE] = self.storage
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    @property
    def described(self) -> str:
        """What is searched and what is fixed, in an order that does not depend on the command's."""
        fixed = {k: v for k, v in self.fixed.items() if k != "sweep" and not k.startswith("sweep.")}
        return " ".join(sorted([f"{k}={v}" for k, v in fixed.items()] + [f"{k}:{v}" for k, v in self.space.items()]))

    def _name(self) -> str:
        """The same for the same search, whatever its budget, storage and launcher."""
        chosen = [self.task, *(self.fixed[key] for key in ("model",) if key in self.fixed)]
        searched = " ".join([self.described, *(str(getattr(self.settings, k)) for k in ("sampler", "pruner", "seed"))])
        return "_".join([*chosen, hashlib.sha256(searched.encode()).hexdigest()[:8]])

    def sweep(self, arguments: list[str]) -> Any:
        """Run trials until as many as wanted have ended, here or elsewhere."""
        from rnnzoo.hydra.search.conclusion import conclude
        from rnnzoo.hydra.search.study import Budget, naming_storage, open_study, storage_at
        from rnnzoo.hydra.search.trial import PRUNERS
        from rnnzoo.lightning.metrics import mode_of

        refuse_sweep()
        s = self.settings
        for key, kind in self.space.items():  # bad ones show now, not when they are proposed
            first = {k: getattr(other, "choices", [getattr(other, "low", None)])[0] for k, other in self.space.items()}
            for value in getattr(kind, "choices", ()):  # with all others, for a key may be only one task's or cell's
                job = self.fixed | first | {key: value}
                self.validate_batch_is_legal([[f"{k}={v}" for k, v in job.items()]])
        self.folder.mkdir(parents=True, exist_ok=True)
        sampler, pruner = make_sampler(s.sampler, s.seed, self.space), PRUNERS[s.pruner]()
        direction: Literal["minimize", "maximize"] = "minimize" if mode_of(self.monitor) == "min" else "maximize"
        n_trials = (
            min(s.n_trials, math.prod(map(len, grid(self.space).values()))) if s.sampler == "grid" else s.n_trials
        )
        with naming_storage(self.storage), storage_at(self.storage) as storage:
            study = open_study(self.study_name, storage, direction, self.described, sampler, pruner)
            budget = Budget(study, n_trials, s.dead_after, s.attempts)
            print(printable(f"study {self.study_name}: {len(budget.counted())} of {n_trials} trials there"), flush=True)
            results = self._spend(study, budget)
            conclude(study, budget.counted(), self.folder, self.monitor, self._command)
        return results

    def _spend(self, study: optuna.Study, budget: Budget) -> list[Sequence[JobReturn]]:
        """Launch trials until the budget is spent."""
        from rnnzoo.hydra.search.study import SignsOfLife

        returns, barren, waiting = [], 0, False
        while not budget.spent():
            budget.give_up_the_dead()
            claimed = (budget.claim() for _ in range(self.settings.n_jobs))
            trials = [trial for trial in claimed if trial is not None]
            if not trials:
                if not waiting:
                    print("waiting for trials that run elsewhere or whose processes are dead", flush=True)
                waiting = True
                time.sleep(min(1.0, budget.dead_after / 10))
                continue
            waiting = False
            with SignsOfLife(trials, budget.dead_after):
                composed = [(trial, self._overrides(study, trial)) for trial in trials]
                trials, jobs = [t for t, job in composed if job], [job for _, job in composed if job]
                if not jobs:
                    continue
                try:
                    results = self.launcher.launch(jobs, initial_job_idx=trials[0].number)
                    note_refused(results)
                    tell_refused(study, trials, results)
                    returns.append(results)
                    barren = 0
                except Exception as error:
                    ended = [study.get_trials(deepcopy=False)[t.number].state.is_finished() for t in trials]
                    barren = 0 if any(ended) else barren + 1
                    if all(ended) or barren == BARREN:
                        raise
                    line = masked(" ".join(str(error).split())[:200])
                    told = f"a process died ({type(error).__name__}: {line}); its trials will be repeated"
                    print(printable(told), flush=True)
        return returns

    def _overrides(self, study: optuna.Study, trial: optuna.Trial) -> list[str]:
        """A trial's job, empty if it cannot be composed, which is the trial's failure.

        Raises `UserError` if its folder is taken.
        """
        from optuna.trial import TrialState

        from rnnzoo.hydra.search.study import ERROR

        proposed = {key: trial._suggest(key, kind) for key, kind in self.space.items()}
        job = [f"{key}={value}" for key, value in (self.fixed | proposed).items()]
        job += [
            f"sweep.study='{self.study_name}'",
            f"sweep.storage={quoted(masked(self.storage))}",
            f"sweep.trial={trial.number}",
        ]
        try:
            if (self.folder / str(trial.number)).exists():
                raise UserError(f"{self.folder / str(trial.number)} is there, but its study is not; move it away")
            self.validate_batch_is_legal([job])
        except BaseException as error:
            wrong_together = isinstance(error, (HydraException, OmegaConfBaseException))
            if wrong_together:
                refused.append(f"error: trial {trial.number}: {one_line(error)}")
                print(refused[-1], file=sys.stderr, flush=True)
                trial.set_user_attr(ERROR, refused[-1])
            study.tell(trial, state=TrialState.FAIL)
            if wrong_together:
                return []
            raise
        return job

    def _command(self, params: dict[str, Any]) -> str:
        """What repeats a trial as a run of its own, for a shell."""
        chosen = {k: v for k, v in (self.fixed | params).items() if k != "sweep" and not k.startswith("sweep.")}
        return shlex.join(["rnnzoo", "train", *(f"{key}={value}" for key, value in chosen.items())])


def tell_refused(study: optuna.Study, trials: Sequence[optuna.Trial], results: Sequence[JobReturn]) -> None:
    """Tell the study of jobs that were refused before they could do so themselves."""
    from optuna.trial import TrialState

    from rnnzoo.hydra.search.study import ERROR

    for trial, result in zip(trials, results):
        if result.return_value and study.get_trials(deepcopy=False)[trial.number].state == TrialState.RUNNING:
            trial.set_user_attr(ERROR, result.return_value[0])
            study.tell(trial, state=TrialState.FAIL)
