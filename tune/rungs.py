"""Early stopping: Tune's ASHA, with trials dealt out to brackets by their number."""

import math
import random
from collections.abc import Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from tune.config import SearchConfig


def bracket_of(number: int, num_rungs: Sequence[int]) -> int:
    """Index of the bracket of a trial; one of more rungs gets more trials, e times as many per rung, as with Tune.

    Args:
        number: of the trial.
        num_rungs: of each bracket.
    """
    weights = [math.exp(size - max(num_rungs)) for size in num_rungs]
    return random.Random(number).choices(range(len(weights)), weights)[0]  # noqa: S311  # no secrets


class Asha(AsyncHyperBandScheduler):
    """ASHA whose brackets do not depend on numpy's global generator: a resumed trial comes into its own again."""

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:  # noqa: ANN401  # the signature is Ray's
        """Called by Tune for each new or restored trial."""
        super().on_trial_add(tune_controller, trial)
        number = int(trial.trial_id.rpartition("_")[2])
        bracket = bracket_of(number, [len(one._rungs) for one in self._brackets])  # noqa: SLF001  # nothing public
        self._trial_info[trial.trial_id] = self._brackets[bracket]


def build_scheduler(config: SearchConfig) -> TrialScheduler:
    """What stops trials early, if anything does."""
    if not config.asha.enabled:
        return FIFOScheduler()
    return Asha(
        time_attr="epoch",
        max_t=config.max_epochs,
        grace_period=config.grace_epochs,
        reduction_factor=config.asha.reduction_factor,
        brackets=config.asha.brackets,
    )
