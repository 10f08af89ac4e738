"""A study's budget, its dead and its living, on SQLite and with processes of their own."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from rnnzoo import UserError
from rnnzoo.hydra.search.space import make_sampler
from rnnzoo.hydra.search.study import ERROR, FOLDER, REPEATS, SIGN, Budget, SignsOfLife, give_up, open_study, storage_at

SPACE = {"x": FloatDistribution(0.0, 1.0)}


@contextmanager
def opened(folder: Path, name: str = "s", space: str = "x") -> Iterator[optuna.Study]:
    with storage_at(f"sqlite:///{folder / 'study.db'}") as storage:
        yield open_study(name, storage, "minimize", space, make_sampler("random", 1, {}), optuna.pruners.NopPruner())


@pytest.fixture
def study(tmp_path: Path) -> Iterator[optuna.Study]:
    with opened(tmp_path) as study:
        yield study


def begun(budget: Budget) -> optuna.Trial:
    trial = budget.claim()
    assert trial is not None
    trial.suggest_float("x", 0.0, 1.0)
    return trial


def state(study: optuna.Study, number: int) -> TrialState:
    return study.get_trials(deepcopy=False)[number].state


def test_no_more_trials_than_wanted(study: optuna.Study) -> None:
    budget, other = Budget(study, 3, 60, 5), Budget(study, 3, 60, 5)
    for each in (budget, other, budget):
        study.tell(begun(each), 1.0)
    assert budget.claim() is None and other.claim() is None and budget.spent()
    more = Budget(study, 4, 60, 5)
    assert not more.spent() and begun(more).number == 3


def test_others_running_are_counted_but_not_ended(study: optuna.Study) -> None:
    budget = Budget(study, 1, 60, 5)
    begun(budget)
    assert budget.claim() is None and not budget.spent()


def test_a_trial_asked_for_beyond_the_budget_does_not_count(study: optuna.Study) -> None:
    budget = Budget(study, 2, 60, 5)
    study.tell(begun(budget), 1.0)
    late = study.ask()  # two processes have asked at the same moment for the last one
    later = study.ask()
    assert [trial.number for trial in budget.counted()] == [0, late.number]
    study.tell(later, state=TrialState.FAIL)
    study.tell(late, 1.0)
    assert budget.spent()


def test_the_dead_are_repeated_under_a_new_number(study: optuna.Study) -> None:
    budget = Budget(study, 2, 0.05, 5)
    dead = begun(budget)
    budget.give_up_the_dead()  # seen for the first time
    assert state(study, dead.number) == TrialState.RUNNING
    time.sleep(0.1)
    budget.give_up_the_dead()
    assert state(study, dead.number) == TrialState.FAIL
    again = begun(budget)
    assert again.number != dead.number and again.params == dead.params and again.user_attrs[REPEATS] == dead.number
    study.tell(again, 1.0)
    study.tell(begun(budget), 2.0)
    assert budget.spent() and [trial.value for trial in budget.counted()] == [1.0, 2.0]


def test_the_living_are_left_alone(study: optuna.Study) -> None:
    budget = Budget(study, 2, 0.3, 5)
    alive, dead = begun(budget), begun(budget)
    with SignsOfLife([alive], 0.3):
        for _ in range(8):
            budget.give_up_the_dead()
            time.sleep(0.1)
    assert state(study, alive.number) == TrialState.RUNNING and state(study, dead.number) == TrialState.FAIL


def test_signs_of_life_end_with_the_trial(study: optuna.Study) -> None:
    trial = begun(Budget(study, 1, 60, 5))
    signs = SignsOfLife([trial], 0.06)
    with signs:
        time.sleep(0.05)
        first = study.get_trials()[0].user_attrs[SIGN]
        time.sleep(0.1)
        assert study.get_trials()[0].user_attrs[SIGN] > first
        study.tell(trial, 1.0)
        signs.thread.join(5)
        assert not signs.thread.is_alive()


def test_a_result_that_was_not_told_is_kept(study: optuna.Study, tmp_path: Path) -> None:
    budget = Budget(study, 1, 60, 5)
    trial = begun(budget)
    trial.set_user_attr(FOLDER, str(tmp_path))
    (tmp_path / "summary.json").write_text(json.dumps({"monitor": "val/loss", "metrics": {"val/loss": 0.25}}))
    give_up(study, study.get_trials()[0], 5)
    assert budget.spent() and study.best_value == 0.25


def test_who_always_dies_has_failed_in_the_end(study: optuna.Study) -> None:
    budget = Budget(study, 1, 60, 3)
    for _ in range(3):
        assert not budget.spent()
        begun(budget)
        give_up(study, study.get_trials()[-1], 3)
    assert budget.spent() and budget.counted()[0].user_attrs[ERROR] == "its process died, 3 times"


def test_giving_up_twice_makes_one_repetition(study: optuna.Study) -> None:
    budget = Budget(study, 2, 60, 5)
    begun(budget)
    trial = study.get_trials()[0]
    study.enqueue_trial(trial.params, user_attrs={REPEATS: 0})  # by a process that died right after
    give_up(study, trial, 5)
    give_up(study, trial, 5)
    assert [t.number for t in budget.counted()] == [1]


def test_a_repetition_does_not_count_while_the_trial_lives(study: optuna.Study) -> None:
    budget = Budget(study, 2, 60, 5)
    trial = begun(budget)
    study.enqueue_trial(trial.params, user_attrs={REPEATS: trial.number})
    assert [t.number for t in budget.counted()] == [0]
    study.tell(trial, 1.0)
    assert [t.number for t in budget.counted()] == [0]


def test_a_study_of_another_space_is_refused(study: optuna.Study, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"sweep.study=s: is a study of x, not of y; name another study"),
        opened(tmp_path, space="y"),
    ):
        pass


@pytest.mark.parametrize(
    ("url", "problem"),
    [("nonsense", "Could not parse"), ("sqlite:////nowhere/at/all.db", "unable to open"), ("nodb://host/x", "nodb")],
)
def test_databases_that_cannot_be_had(url: str, problem: str) -> None:
    with pytest.raises(UserError, match=f"^sweep.storage={url}: .*{problem}"), storage_at(url):
        pass


def test_an_interrupted_study_proposes_what_it_would_have(tmp_path: Path) -> None:
    def proposed(name: str, breaks: tuple[int, ...]) -> list[float]:
        values: list[float] = []
        for start, end in pairwise([0, *breaks, 6]):
            with opened(tmp_path, name) as study:
                for _ in range(start, end):
                    trial = begun(Budget(study, 6, 60, 5))
                    values.append(trial.params["x"])
                    study.tell(trial, values[-1])
        return values

    whole = proposed("whole", ())
    assert proposed("broken", (1, 3, 4)) == whole
    assert len(set(whole)) == 6


def work(folder: Path, n_trials: int, gate: Any) -> None:
    with opened(folder) as study:
        budget = Budget(study, n_trials, 60, 5)
        gate.wait()
        while not budget.spent():
            trial = budget.claim()
            if trial is not None:
                study.tell(trial, trial.suggest_float("x", 0.0, 1.0))


def test_processes_that_know_nothing_of_each_other(study: optuna.Study, tmp_path: Path) -> None:
    for k in range(8):  # which two could find waiting at the same moment
        study.enqueue_trial({"x": k / 8})
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(3)
    workers = [context.Process(target=work, args=(tmp_path, 12, gate)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    counted = Budget(study, 12, 60, 5).counted()
    assert [trial.state for trial in counted] == [TrialState.COMPLETE] * 12
    assert len({trial.params["x"] for trial in counted}) == 12
    complete = [trial for trial in study.get_trials() if trial.state == TrialState.COMPLETE]
    assert len(complete) == 12  # none was run for nothing


def test_a_password_in_what_is_no_url_is_not_told() -> None:
    told = r"^sweep\.storage: must be a database's URL"
    with pytest.raises(UserError, match=told) as refused, storage_at("me:hunter2@host/name"):
        pass
    assert "hunter2" not in str(refused.value)
