"""What gives Tune its next trial: points listed beforehand, or Optuna's suggestions. None begins on a spent budget.

Both keep what they have given in Tune's own state, so that a resumed search goes on behind it.
"""

import copy
import uuid
from collections.abc import Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.experiment.config_parser import _create_trial_from_spec
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Searcher, SearchGenerator

from tune.space import Point
from tune.stoppers import EndTrials


class ListedPoints(BasicVariantGenerator):
    """Points in their order, so many at once, and so many ahead of them once the first have started."""

    def __init__(self, points: Sequence[Point], at_once: int, end: EndTrials, ahead: int) -> None:
        # Tune knows nothing of the workers: more trials than fit would wait for one another for ever. The limit must
        # stand here: TuneConfig's own is ignored beside an explicit generator.
        super().__init__(points_to_evaluate=list(points), max_concurrent=at_once)
        self.end = end
        self._most = at_once + ahead

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:  # noqa: ARG002  # Ray's signature
        """Called by Tune with each report. Before the first, one more would only slow down the start of the others."""
        self.max_concurrent = self._most

    def is_finished(self) -> bool:
        """Whether no trial may follow."""
        return bool(super().is_finished()) or self.end.spent

    def get_state(self) -> dict[str, Any]:
        """What a resumed search goes on with; the points that are left are in it."""
        state: dict[str, Any] = super().get_state()  # type: ignore[no-untyped-call]  # Ray's
        return {name: value for name, value in state.items() if name != "end"}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`; a budget that was spent may be a new one now."""
        super().set_state(state | {"_finished": False})  # type: ignore[no-untyped-call]  # Ray's


class SuggestedPoints(SearchGenerator):
    """What a searcher suggests, so many at once, none ahead of what it learns; numbered as trials of listed points."""

    def __init__(self, searcher: Searcher, at_once: int, end: EndTrials) -> None:
        super().__init__(ConcurrencyLimiter(searcher, max_concurrent=at_once))
        self.end = end
        self._prefix = uuid.uuid4().hex[:5]

    def is_finished(self) -> bool:
        """Whether no trial may follow."""
        return bool(super().is_finished()) or self.end.spent

    def set_state(self, state: dict[str, Any]) -> None:
        """As Tune's; a budget that was spent may be a new one now."""
        super().set_state(state | {"finished": False})

    def create_trial_if_possible(self, experiment_spec: dict[str, Any]) -> Trial | None:
        """The next trial; None while as many run as may. Tune's own gives them ids without a number."""
        trial_id = f"{self._prefix}_{self._counter:05d}"
        point = self.searcher.suggest(trial_id)
        if point is None:
            return None
        self._counter += 1
        spec = copy.deepcopy(experiment_spec) | {"config": point}
        trial: Trial = _create_trial_from_spec(
            spec, self._parser, evaluated_params=point, experiment_tag=str(self._counter), trial_id=trial_id
        )
        return trial
