"""When trials end that ASHA would let go on: when the budget is spent, and when they diverged."""

import time
from pathlib import Path
from typing import Any, Final

from ray.tune import Stopper

from data.progress import say
from train.figures import DIVERGED
from tune.config import BudgetConfig
from tune.objective import SCORE
from tune.record import read_records


def spent_on(budget: BudgetConfig, *, num_epochs: int, elapsed_s: float) -> str | None:
    """What of a budget is used up, in words; None if nothing is.

    Args:
        budget: of the search.
        num_epochs: that all its trials have run, also before it was resumed.
        elapsed_s: since it was started or resumed.
    """
    if budget.epochs is not None and num_epochs >= budget.epochs:
        return f"{num_epochs} epochs have run, and max_total_epochs is {budget.epochs}"
    if budget.time_s is not None and elapsed_s >= budget.time_s:
        return f"time_budget_s {budget.time_s:g} is over"
    return None


class EndTrials(Stopper):
    """Ends each trial after the epoch in which the budget is spent; and one that diverged, even if ASHA spares it.

    ASHA lets the first trial at a rung go on, whatever its score.

    Tune's own way, `stop_all`, would end trials in mid-epoch. Tune stores it twice, with the generator and with its own
    state. Both copies become the newest one of this process, so that a resumed search heeds one, with a clock that
    starts anew.
    """

    def __init__(self, budget: BudgetConfig, records: Path) -> None:
        self._budget = budget
        self._records = records
        self._epochs: set[tuple[str, int]] | None = None
        self._started = 0.0
        self.out_of_budget: set[str] = set()
        """Trials that ended since it was spent."""
        self._told = False
        _NEWEST[records] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return _newest, (self._budget, self._records)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether the trial ends with this result."""
        spent = self.spent
        assert self._epochs is not None
        if "epoch" in result:
            self._epochs.add((trial_id, result["epoch"]))
            spent = self.spent
        if spent:
            self.out_of_budget.add(trial_id)
        return spent or result.get(SCORE, 0.0) >= DIVERGED

    def stop_all(self) -> bool:
        """Never: a trial ends its epoch."""
        return False

    @property
    def spent(self) -> bool:
        """Whether no trial may begin."""
        if self._epochs is None:  # in the process that runs the search, be it started or resumed
            self._epochs = {(record.trial_id, record.epoch) for record in read_records(self._records)}
            self._started = time.monotonic()
        why = spent_on(self._budget, num_epochs=len(self._epochs), elapsed_s=time.monotonic() - self._started)
        if why is not None and not self._told:
            say(f"{why}: trials end after the epoch they are in")
            self._told = True
        return why is not None


_NEWEST: Final[dict[Path, EndTrials]] = {}


def _newest(budget: BudgetConfig, records: Path) -> EndTrials:
    return _NEWEST.get(records) or EndTrials(budget, records)
