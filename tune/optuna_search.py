"""Points that Optuna suggests from the results so far. Imported only for --sampler tpe and bohb: Optuna is an extra."""

from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from train.figures import DIVERGED
from tune.config import SearchConfig
from tune.objective import SCORE
from tune.space import Choice, Dimension


def build_searcher(config: SearchConfig) -> OptunaSearch:
    """The searcher of `tpe` or `bohb`. Its first ten points are random, by the recipe's seed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options: dict[str, Any] = {
        "space": {field: distribution_of(one) for field, one in config.space.dimensions.items()},
        "metric": SCORE,
        "mode": "min",
        "sampler": optuna.samplers.TPESampler(seed=config.recipe.seed),
    }
    return LastScores(**options) if config.sampler == "tpe" else RungScores(max_epochs=config.max_epochs, **options)


def distribution_of(dimension: Dimension) -> BaseDistribution:
    """As Optuna draws it."""
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.values)
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


class LastScores(OptunaSearch):
    """Learns from the last score of each trial, whatever epoch it is of."""

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the last result comes with `on_trial_complete`, and Optuna would warn of epochs told twice."""


class RungScores(LastScores):
    """Learns from what trials reached, as BOHB does: tells Optuna of those that were stopped early, and at which epoch.

    TPE then ranks trials that ran to their end first, the others by how far they came, and only equals by their score.
    """

    def __init__(self, *, max_epochs: int, **options: Any) -> None:  # noqa: ANN401  # OptunaSearch's
        self._max_epochs = max_epochs
        super().__init__(**options)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Called by Tune when a trial ended or failed."""
        trial = self._ot_trials[trial_id]
        if not result or SCORE not in result or self._ran_out(trial, result) or trial_id in self._completed_trials:
            super().on_trial_complete(trial_id, result, error)
            return
        trial.report(result[SCORE], result["epoch"])
        assert self._ot_study is not None
        self._ot_study.tell(trial, state=TrialState.PRUNED)
        self._completed_trials.add(trial_id)

    def _ran_out(self, trial: optuna.Trial, result: dict[str, Any]) -> bool:
        """Whether it ran to its end with a score that is one."""
        return bool(result["epoch"] >= trial.params.get("max_epochs", self._max_epochs) and result[SCORE] < DIVERGED)
