"""What a finished study says: its best trial, how it went, and which keys mattered."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import optuna
from matplotlib.figure import Figure
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from rnnzoo.hydra.search.study import ERROR, FOLDER
from rnnzoo.lightning.figures import count_along, drawn, save
from rnnzoo.plain import printable


def conclude(
    study: optuna.Study,
    trials: Sequence[FrozenTrial],
    folder: Path,
    monitor: str,
    command: Callable[[dict[str, Any]], str],
) -> None:
    """Print the best trial with the command that repeats it, and draw history and importance into study.png.

    Args:
        study: the finished study.
        trials: those of its trials that count.
        folder: of the sweep.
        monitor: the metric's name.
        command: what repeats a trial with the given parameters.
    """
    ends = Counter(trial.state.name.lower() for trial in trials)
    print(printable(f"study {study.study_name}: {', '.join(f'{count} {end}' for end, count in ends.most_common())}"))
    for error, count in Counter(trial.user_attrs[ERROR] for trial in trials if ERROR in trial.user_attrs).items():
        print(printable(f"  {count} with: {error}"))
    complete, pruned = (
        {t.number: t.value for t in trials if t.state == state and t.value is not None}
        for state in (TrialState.COMPLETE, TrialState.PRUNED)
    )
    if not complete:
        print("no trial was completed")
        return
    choose = min if study.direction == StudyDirection.MINIMIZE else max
    best = study.get_trials(deepcopy=False)[choose(complete, key=complete.__getitem__)]
    print(printable(f"best trial: {best.number}, {monitor} {best.value:.4g}, in {best.user_attrs.get(FOLDER)}"))
    print(printable(f"as a run: {command(best.params)}"), flush=True)

    path = folder / "study.png"
    if save(path, lambda: _figure(study, complete, pruned, monitor)):
        print(printable(f"written: {path}"), flush=True)


def _figure(study: optuna.Study, complete: dict[int, float], pruned: dict[int, float], monitor: str) -> Figure:
    """History and importance."""
    choose = min if study.direction == StudyDirection.MINIMIZE else max
    importance = _importance(study, list(complete.values()))
    rows = max(len(importance), 8)
    figure = Figure(figsize=(11, 0.3 * rows + 1.8), layout="constrained")
    history, bars = figure.subplots(1, 2)
    history.plot(complete.keys(), complete.values(), "o", color="C0", label="complete")
    history.plot(pruned.keys(), pruned.values(), "x", color="0.6", label="pruned, when it was")
    history.step(
        complete.keys(), list(accumulate(complete.values(), choose)), where="post", color="C3", label="best so far"
    )
    values = [*complete.values(), *pruned.values()]
    wide = 0 < 10 * min(values) < max(values)
    history.set(xlabel="trial", ylabel=monitor, yscale="log" if wide else "linear", title=drawn(study.study_name))
    count_along(history)
    figure.legend(loc="outside lower left", ncols=3, frameon=False)
    bars.barh(list(importance), list(importance.values()), color="C0")
    bars.set(xlabel="share of importance (PED-ANOVA)", xlim=(0, 1), ylim=(rows - 0.5, -0.5))
    if not importance:
        bars.set_title("importance: too few completed trials to tell")
    return figure


def _importance(study: optuna.Study, values: Sequence[float]) -> dict[str, float]:
    """Each parameter's share, largest first; empty when all trials are alike or fewer than four."""
    if len(values) < 4 or len(set(values)) == 1:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is an estimate, and says so on its axis
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
