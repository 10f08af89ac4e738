"""A sweep's trial, seen from the run that it is: signs of life, pruning, and the word of its end."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from optuna.exceptions import OptunaError, TrialPruned, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from rnnzoo import UserError
from rnnzoo.hydra.refusals import ProcessDied, located
from rnnzoo.hydra.search.study import ERROR, FOLDER, STORAGE, SignsOfLife, give_up, storage_at
from rnnzoo.hydra.task_classes import find_class
from rnnzoo.lightning.framework import pl
from rnnzoo.lightning.module import Diverged
from rnnzoo.lightning.preempt import watch
from rnnzoo.lightning.ranks import rank
from rnnzoo.plain import masked, printable

PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "percentile": lambda: optuna.pruners.PercentilePruner(25.0),
    "halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
}


class OwnTrial(pl.Callback):
    """The trial that this run is. As a callback it ends the run with `TrialPruned` when the pruner has seen enough.

    Args:
        sweep: the configuration's section, whose `trial` is the number.
        storage: of the study.
        folder: of the run.
        monitor: the metric that the study is about, one of validation.

    Attributes:
        value: of the metric in the best epoch, once it is known.
    """

    def __init__(self, sweep: Mapping[str, Any], storage: RDBStorage, folder: Path, monitor: str) -> None:
        self.monitor, self.validations, self.attempts = monitor, 0, sweep["attempts"]
        self.value: float | None = None
        self.study = optuna.load_study(study_name=sweep["study"], storage=storage, pruner=PRUNERS[sweep["pruner"]]())
        of_study = storage.get_study_id_from_name(sweep["study"])
        self.trial = optuna.Trial(self.study, storage.get_trial_id_from_study_id_trial_number(of_study, sweep["trial"]))
        try:
            if rank() == 0:
                self.trial.set_user_attr(FOLDER, str(folder.resolve()))
        except UpdateFinishedTrialError:
            raise UserError(f"trial {self.trial.number} was given up before it began; it is repeated") from None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        self.validations += 1
        prune = False
        if trainer.is_global_zero:
            self.trial.report(float(trainer.callback_metrics[self.monitor]), self.validations)
            prune = self.trial.should_prune()
        if trainer.strategy.broadcast(prune):
            raise TrialPruned

    def tell(self, state: TrialState, value: float | None = None, error: object = None) -> None:
        """Tell the study how the run has ended, unless it was given up in the meantime."""
        try:
            if error is not None:
                self.trial.set_user_attr(ERROR, masked(" ".join(str(error).split())))
            self.study.tell(self.trial, value, state)
        except (ValueError, UpdateFinishedTrialError):
            print(printable(f"trial {self.trial.number} was silent for too long and has been given up; it is repeated"))


@contextmanager
def own_trial(settings: Mapping[str, Any], folder: Path) -> Iterator[OwnTrial]:
    """The trial that this run is; the study is told of its end.

    A result is told, and so is that the run was pruned, diverged, was refused for bad input or has failed, which raises
    once more. A run that a signal ends is given up, to be repeated.
    """
    sweep, kind = settings["sweep"], find_class(settings["task"], "module")
    with storage_at(os.environ.get(STORAGE) or sweep["storage"]) as storage:
        yield from _told(OwnTrial(sweep, storage, folder, kind.monitor), sweep["dead_after"])


def _told(own: OwnTrial, dead_after: float) -> Iterator[OwnTrial]:
    number = own.trial.number
    if rank() > 0:
        with suppress(TrialPruned, Diverged):
            yield own
        return
    with SignsOfLife([own.trial], dead_after):
        try:
            yield own
        except TrialPruned:
            own.tell(TrialState.PRUNED)
            print(printable(f"trial {number} pruned after {own.validations} validations"), flush=True)
        except Diverged as error:  # a pruned trial without a value is the worst to a sampler, a failed one unknown
            own.tell(TrialState.PRUNED, error=error)
            print(printable(f"trial {number}: {error}"), flush=True)
        except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
            own.tell(TrialState.FAIL, error=error)
            raise
        except Exception as error:
            if isinstance(error, (OptunaError, SQLAlchemyError)):  # the database's fault, not the trial's
                raise ProcessDied(str(error)) from error
            own.tell(TrialState.FAIL, error=located(error))
            raise
        except BaseException:
            watch.last = None  # the same command repeats the trial
            give_up(own.study, own.study.get_trials(deepcopy=False)[number], own.attempts)
            raise
        else:
            if own.value is None or math.isnan(own.value):
                own.tell(TrialState.PRUNED, error=f"{own.monitor} is {own.value}")
            else:
                own.tell(TrialState.COMPLETE, own.value)
