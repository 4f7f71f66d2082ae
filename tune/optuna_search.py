"""Points that Optuna suggests from the results so far. Imported only for --sampler tpe and bohb: Optuna is an extra."""

from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from train.figures import DIVERGED
from tune.config import SearchConfig
from tune.objective import SCORE
from tune.record import read_events
from tune.space import Choice, Dimension, Point, epochs_at


def build_searcher(config: SearchConfig, events: Path) -> OptunaSearch:
    """The searcher of `tpe` or `bohb`; its first ten points are random, by the recipe's seed.

    Args:
        config: the search.
        events: its begins and ends, by which a resumed one knows trials that Tune forgot.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options: dict[str, Any] = {
        "events": events,
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

    def __init__(self, *, events: Path, **options: Any) -> None:  # noqa: ANN401  # OptunaSearch's
        self._events = events
        super().__init__(**options)

    def suggest(self, trial_id: str) -> Point | None:
        """Called by Tune for the point of a new trial.

        One that Tune had not stored before a kill is asked for again, when what Optuna has learnt may be less than it
        was. Its checkpoints are of the point that it began with, and so it goes on with that.
        """
        point: Point | None = super().suggest(trial_id)
        begun = {one.trial_id: one.point for one in read_events(self._events)}.get(trial_id)
        if point is None or begun is None or begun == point:
            return point
        assert self._ot_study is not None
        self._ot_study.tell(self._ot_trials.pop(trial_id), state=TrialState.FAIL)
        self._ot_study.enqueue_trial(begun)
        again: Point = super().suggest(trial_id)
        return again

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
        return bool(result["epoch"] >= epochs_at(trial.params, self._max_epochs) and result[SCORE] < DIVERGED)
