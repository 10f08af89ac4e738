"""What a sweep searches, and how: Hydra's overrides as Optuna's distributions, and samplers by name.

Optuna is imported only where it is needed, so that help stays quick.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from rnnzoo.errors import UserError

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


def distribution(override: Override) -> BaseDistribution:
    """The distribution that an override in Hydra's syntax stands for; `UserError` if there is none."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    try:
        if isinstance(value, IntervalSweep):
            low, high, log = value.start, value.end, "log" in value.tags
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log)
            return FloatDistribution(float(low or 0), float(high or 0), log)
        if isinstance(value, RangeSweep):
            numbers = sorted(value.range())
            if not numbers or "log" in value.tags:
                raise ValueError("a range needs numbers at equal steps")
            if all(isinstance(number, int) for number in numbers):
                return IntDistribution(int(numbers[0]), int(numbers[-1]), step=abs(int(value.step)))
            return FloatDistribution(numbers[0], numbers[-1], step=abs(value.step))
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except ValueError as error:
        raise UserError(f"{override.input_line}: {error}") from error


def grid(space: dict[str, BaseDistribution]) -> dict[str, Sequence[Any]]:
    """All values of every key; `UserError` if one has too many to be listed."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    values: dict[str, Sequence[Any]] = {}
    for key, kind in space.items():
        if isinstance(kind, CategoricalDistribution):
            values[key] = kind.choices
        elif isinstance(kind, IntDistribution) and not kind.log:
            values[key] = range(kind.low, kind.high + 1, kind.step)
        elif isinstance(kind, FloatDistribution) and kind.step is not None:
            values[key] = [kind.low + k * kind.step for k in range(round((kind.high - kind.low) / kind.step) + 1)]
        else:
            raise UserError(
                f"{key}: sweep.sampler=grid needs values that can be counted, as in {key}=1,2 or range(1,3)"
            )
    return values


def make_sampler(name: str, seed: int, space: dict[str, BaseDistribution]) -> optuna.samplers.BaseSampler:
    """Optuna's sampler of that name, which goes on where an earlier process ended instead of beginning anew.

    Raises `UserError` when it needs a package that is not there.
    """
    from optuna import samplers

    make: dict[str, Callable[[int], samplers.BaseSampler]] = {
        "tpe": lambda n: samplers.TPESampler(seed=n),
        "random": lambda n: samplers.RandomSampler(seed=n),
        "gp": lambda n: samplers.GPSampler(seed=n),
        "cmaes": lambda n: samplers.CmaEsSampler(seed=n, warn_independent_sampling=False),
        # these two number what they propose themselves, always in the same order
        "qmc": lambda n: _quasi_random(seed),
        "grid": lambda n: samplers.GridSampler(grid(space), seed),
    }
    try:
        return _seeded_by_trial(make[name], seed)
    except ImportError as error:
        missing = {"gp": "scipy", "qmc": "scipy", "cmaes": "cmaes"}[name]
        raise UserError(f"sweep.sampler={name}: needs a package more: pip install {missing}") from error


def _quasi_random(seed: int) -> optuna.samplers.BaseSampler:
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import QMCSampler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # Optuna may change it: nothing for whoever searches
        return QMCSampler(scramble=True, seed=seed, warn_independent_sampling=False)


def _seeded_by_trial(make: Callable[[int], optuna.samplers.BaseSampler], seed: int) -> optuna.samplers.BaseSampler:
    """A sampler whose random numbers follow from seed and trial number: two processes never propose the same.

    What samplers do after a trial is left out: a finished grid would stop an optimisation of Optuna's own.
    """
    from optuna.samplers import BaseSampler

    class SeededByTrial(BaseSampler):
        inner = make(seed)

        def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
            self.inner = make(hash((seed, trial.number)) % 2**32)
            self.inner.before_trial(study, trial)

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
            return self.inner.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return self.inner.sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return self.inner.sample_independent(study, trial, param_name, param_distribution)

    return SeededByTrial()
