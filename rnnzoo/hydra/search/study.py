"""A sweep's study: trials in a database that any number of processes share, each of which may be killed at any moment.

Who runs a trial gives signs of life in an attribute of it. Others judge by their own clocks whether these go on, so
that clocks need not agree. A trial whose process died is given up and repeated under a new number. Which trials count
is a function of the trials alone, so that processes that know nothing of each other keep one budget.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, OptunaError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from rnnzoo.errors import UserError
from rnnzoo.plain import masked

SIGN, FOLDER, ERROR, REPEATS = "sign of life", "folder", "error", "repeats"
"""Attributes of a trial: when it was last heard of, its run's folder, why its job was refused, the number of the trial
whose process died."""

STORAGE = "RNNZOO_SWEEP_STORAGE"
"""The variable that tells trials the URL of a database with a password, which no file of theirs may hold."""

SIGNS = 6
"""Signs of life in the time after which a trial counts as dead."""

PATIENCE = 60
"""Seconds to wait for a database that others are writing to."""


@contextmanager
def storage_at(url: str) -> Iterator[RDBStorage]:
    """The database at an SQLAlchemy URL, its tables made if need be; `UserError` when that cannot be."""
    if "@" in url and "://" not in url:  # it is not told again, for which part is the password nobody can know
        raise UserError(
            "sweep.storage: must be a database's URL, as in postgresql+psycopg2://host/name or sqlite:///FILE"
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    warnings.simplefilter("ignore", ExperimentalWarning)
    lite = url.startswith("sqlite")
    for last in (False, False, True):
        try:
            storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": PATIENCE}} if lite else None)
            break
        except ImportError as error:
            raise UserError(
                f"sweep.storage={masked(url)}: needs a package more: pip install {_missing(error)}"
            ) from error
        except (OptunaError, sqlalchemy.exc.SQLAlchemyError) as error:
            if last or not isinstance(error, sqlalchemy.exc.DBAPIError):
                cause = getattr(error.__cause__ or error, "orig", error.__cause__ or error)
                raise UserError(f"sweep.storage={masked(url)}: {masked(str(cause).splitlines()[0])}") from error
            time.sleep(0.5)  # another process may be making the tables at this moment
    if lite:  # else two processes may both find a trial waiting before either takes it
        sqlalchemy.event.listen(storage.engine, "connect", _leave_transactions_to_us)
        sqlalchemy.event.listen(storage.engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
        storage.engine.dispose()
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


@contextmanager
def naming_storage(url: str) -> Iterator[None]:
    """Within, whatever the database refuses is a `UserError` that names it: a file that is read-only, say."""
    try:
        yield
    except (OptunaError, sqlalchemy.exc.SQLAlchemyError) as error:
        cause = error.__cause__ or error
        line = str(getattr(cause, "orig", cause)).splitlines()[0]
        raise UserError(f"sweep.storage={masked(url)}: {masked(line)}") from error


def _missing(error: BaseException) -> str:
    """The module behind an ImportError that tells of another one."""
    cause = error.__cause__
    return _missing(cause) if isinstance(cause, ImportError) else getattr(error, "name", None) or str(error)


def _leave_transactions_to_us(connection: object, record: object) -> None:
    connection.isolation_level = None  # type: ignore[attr-defined]


class SignsOfLife:
    """While in use, gives signs of life for some trials from a thread of its own."""

    def __init__(self, trials: Sequence[Trial], dead_after: float) -> None:
        self.trials, self.interval = list(trials), dead_after / SIGNS
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._go_on, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *exception: object) -> None:
        self.over.set()
        self.thread.join()

    def _go_on(self) -> None:
        while self.trials:
            for trial in list(self.trials):
                try:
                    trial.storage.set_trial_user_attr(trial._trial_id, SIGN, time.time())
                except UpdateFinishedTrialError:
                    self.trials.remove(trial)
                except StorageInternalError:
                    pass  # a database that is away for a while; the next sign may reach it
            if self.over.wait(self.interval):
                return


def given_up(trial: FrozenTrial) -> bool:
    """Whether a trial came to no end of its own: its process died, or it was begun beyond the budget."""
    return trial.state == TrialState.FAIL and ERROR not in trial.user_attrs


class Budget:
    """The trials of a study that count, which are at most `n_trials`, whoever runs them.

    Args:
        study: shared with other processes.
        n_trials: of the whole study.
        dead_after: seconds without a sign of life after which a trial's process counts as dead.
        attempts: how often a trial whose processes die is begun before it counts as failed.
    """

    def __init__(self, study: optuna.Study, n_trials: int, dead_after: float, attempts: int) -> None:
        self.study, self.n_trials, self.dead_after, self.attempts = study, n_trials, dead_after, attempts
        self.heard: dict[int, tuple[object, float]] = {}

    def counted(self) -> list[FrozenTrial]:
        """The trials that count, in order of their numbers: those not given up, and one repetition of each given up."""
        trials = self.study.get_trials(deepcopy=False)
        counted, repeated = [], set()
        for trial in trials:
            original = trial.user_attrs.get(REPEATS)
            if original is not None:
                if original in repeated or not given_up(trials[original]):
                    continue
                repeated.add(original)
            if not given_up(trial):
                counted.append(trial)
        return counted[: self.n_trials]

    def spent(self) -> bool:
        """Whether all trials that the study may have are finished."""
        counted = self.counted()
        return len(counted) == self.n_trials and all(trial.state.is_finished() for trial in counted)

    def claim(self) -> Trial | None:
        """A trial to run; None when there is none left, or when another process was quicker."""
        counted = self.counted()
        if len(counted) == self.n_trials and all(trial.state != TrialState.WAITING for trial in counted):
            return None
        trial = self.study.ask()
        if all(other.number != trial.number for other in self.counted()):
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        return trial

    def give_up_the_dead(self) -> None:
        """Give up every running trial that has shown no sign of life for long enough."""
        now = time.monotonic()
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            sign = trial.user_attrs.get(SIGN)
            last, since = self.heard.get(trial.number, (None, None))
            if since is None or last != sign:
                self.heard[trial.number] = (sign, now)
            elif now - since > self.dead_after:
                give_up(self.study, trial, self.attempts)


def give_up(study: optuna.Study, trial: FrozenTrial, attempts: int) -> None:
    """End a running trial whose process is dead: keep its result if it had one, else let it be repeated.

    The repetition is there before the trial ends, lest it be lost if this process dies too; it counts only then.
    """
    try:
        value = _result(trial)
        if value is not None:
            study.tell(trial.number, value)
            return
        begun, earlier = 1, trial
        while (original := earlier.user_attrs.get(REPEATS)) is not None:
            begun, earlier = begun + 1, study.get_trials(deepcopy=False)[original]
        if begun >= attempts:
            study._storage.set_trial_user_attr(trial._trial_id, ERROR, f"its process died, {begun} times")
        elif trial.params:
            study.enqueue_trial(trial.params, user_attrs={REPEATS: trial.number})
        study.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):
        pass  # it has ended after all


def _result(trial: FrozenTrial) -> float | None:
    """What a run has left that was killed between its last line and telling of it."""
    path = Path(trial.user_attrs.get(FOLDER, "")) / "summary.json"
    try:
        summary = json.loads(path.read_bytes())
        return float(summary["metrics"][summary["monitor"]])
    except (OSError, ValueError, KeyError):
        return None


def open_study(
    name: str,
    storage: RDBStorage,
    direction: Literal["minimize", "maximize"],
    space: str,
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner,
) -> optuna.Study:
    """The study of that name, made if need be; `UserError` if it is there with another direction or search space."""
    study = optuna.create_study(
        study_name=name, storage=storage, direction=direction, load_if_exists=True, sampler=sampler, pruner=pruner
    )
    recorded = study.user_attrs.get("space")
    if recorded is None:
        study.set_user_attr("space", space)
    elif recorded != space:
        raise UserError(f"sweep.study={name}: is a study of {recorded}, not of {space}; name another study")
    if study.direction != StudyDirection[direction.upper()]:
        raise UserError(f"sweep.study={name}: wants its metric {study.direction.name.lower()}d; name another study")
    return study
