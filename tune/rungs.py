"""Early stopping: Tune's ASHA, with trials dealt out to brackets by their number, and rungs that survive a kill."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from tune.config import SearchConfig
from tune.objective import Objective
from tune.record import read_records
from tune.slots import number_of


def bracket_of(number: int, num_rungs: Sequence[int]) -> int:
    """Index of the bracket of a trial; one of more rungs gets more trials, e times as many per rung, as with Tune.

    Args:
        number: of the trial.
        num_rungs: of each bracket.
    """
    weights = [math.exp(size - max(num_rungs)) for size in num_rungs]
    return random.Random(number).choices(range(len(weights)), weights)[0]  # noqa: S311  # no secrets


@dataclass(frozen=True, slots=True)
class _Recorded:
    """What a bracket asks of a trial."""

    trial_id: str


class Asha(AsyncHyperBandScheduler):
    """ASHA that decides in a resumed search as it would have without the interruption.

    Tune restores no scheduler, and a restarted trial reports its newest epoch alone, once more. So the rungs are filled
    from the record, epoch by epoch in the order in which they came; and of an epoch that comes again, what was decided
    then holds: meanwhile others may have come to its rung. Brackets do not depend on numpy's global generator.
    """

    def __init__(self, record: Path, objective: Objective, **options: Any) -> None:  # noqa: ANN401  # Ray's
        super().__init__(**options)
        self._record, self._objective = record, objective
        self._decided: dict[tuple[str, int], str] | None = None

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:  # noqa: ANN401  # the signature is Ray's
        """Called by Tune for each new or restored trial."""
        if self._decided is None:  # in the process that runs the search: Tune stores this before any trial
            self._decided = self.decisions()
        super().on_trial_add(tune_controller, trial)
        self._trial_info[trial.trial_id] = self._bracket_of(trial.trial_id)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:  # noqa: ANN401
        """Called by Tune with each report of a trial, unless that has ended it already."""
        assert self._decided is not None
        before = self._decided.get((trial.trial_id, result.get("epoch", 0)))
        return before or str(super().on_trial_result(tune_controller, trial, result))

    def _bracket_of(self, trial_id: str) -> Any:  # noqa: ANN401  # Ray's, and not public
        sizes = [len(one._rungs) for one in self._brackets]  # noqa: SLF001
        return self._brackets[bracket_of(number_of(trial_id), sizes)]

    def decisions(self) -> dict[tuple[str, int], str]:
        """Fill the rungs from the record; what was decided after each epoch of each trial."""
        assert self._metric_op is not None
        return {
            (one.trial_id, one.epoch): TrialScheduler.STOP
            if one.epoch >= self._max_t
            else self._bracket_of(one.trial_id).on_result(
                _Recorded(one.trial_id), one.epoch, self._metric_op * self._objective.loss(one.metrics)
            )
            for one in read_records(self._record)
        }


def build_scheduler(config: SearchConfig, record: Path) -> TrialScheduler:
    """What stops trials early, if anything does; it goes on from a record of epochs."""
    if not config.asha.enabled:
        return FIFOScheduler()
    return Asha(
        record,
        config.objective,
        time_attr="epoch",
        max_t=config.max_epochs,
        grace_period=config.grace_epochs,
        reduction_factor=config.asha.reduction_factor,
        brackets=config.asha.brackets,
    )
