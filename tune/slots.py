"""The slots of a search: where trials train side by side, and for which others that are ready wait.

A trial's driver and Train's controller take longer to start than many an epoch. So more trials begin than there are
slots, and hold no CPU until one is free. Who holds one is what the record says: a trial that was killed or stopped
has nothing to give back, and the time in which a slot is held is told as it is.
"""

import fcntl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.context import TrainRunContext

from tune.record import EVENTS_FILE, TRIALS_FILE, TrialEvent, append_record, read_events, read_records
from tune.space import Point
from tune.trials import newest_events

_LOOK_S: Final = 0.2


class NeverBegunError(Exception):
    """The budget was spent while a trial waited. Ends its training before it has any workers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slots:
    """Those of one search. Can be sent to any process of the head node, where all that drives trials runs."""

    folder: Path
    """Where the record lies."""
    number: int
    """Trials side by side."""
    max_total_epochs: int | None = None
    """Of all trials, after which none begins."""

    def wait(self, trial_id: str, point: Point) -> None:
        """Return once the trial may train.

        Raises:
            NeverBegunError: see `begin`.
        """
        read = 0  # bytes: only what was added can make it this trial's turn
        while (size := (self.folder / EVENTS_FILE).stat().st_size) == read or not self.begin(trial_id, point):
            read = size
            time.sleep(_LOOK_S)

    def begin(self, trial_id: str, point: Point) -> bool:
        """Let a trial have a slot if it is its turn, and note it in the record; whether it may train now.

        Raises:
            NeverBegunError: no trial may begin any more, and this one has not.
        """
        with self._locked():
            events = read_events(self.folder / EVENTS_FILE)
            if self._spent() and not has_begun(trial_id, events):
                raise NeverBegunError
            if not is_its_turn(trial_id, events, self.number):
                return False
            event = TrialEvent(what="started", at=time.time(), trial_id=trial_id, point=point)
            append_record(self.folder / EVENTS_FILE, event)
            return True

    def _spent(self) -> bool:
        limit = self.max_total_epochs
        return limit is not None and len(read_records(self.folder / TRIALS_FILE)) >= limit

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One trial at a time: two that look at once would both find the last slot free."""
        with (self.folder / EVENTS_FILE).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def num_ahead(slots: int) -> int:
    """Trials that get ready while all slots are held: two may end at about the same time."""
    return min(slots, 2)


def is_its_turn(trial_id: str, events: Sequence[TrialEvent], slots: int) -> bool:
    """Whether a slot is free and no trial of a lower number still has to begin, so that their order is the sampled one.

    Args:
        trial_id: of the trial that asks.
        events: of the search so far.
        slots: of the search.
    """
    newest = newest_events(events)
    begun = {number_of(other) for other, event in newest.items() if event.what != "waiting"}
    running = sum(event.what == "started" for other, event in newest.items() if other != trial_id)
    return running < slots and begun.issuperset(range(number_of(trial_id)))


def has_begun(trial_id: str, events: Sequence[TrialEvent]) -> bool:
    """Whether a trial ever had a slot, in this session or before."""
    return any(event.what == "started" and event.trial_id == trial_id for event in events)


def number_of(trial_id: str) -> int:
    """The number of a trial, from 0, in the order in which they were sampled."""
    return int(trial_id.rpartition("_")[2])


class BeginInTurn(ControllerCallback):
    """Keeps a training, its controller ready, from starting workers until its trial has a slot."""

    def __init__(self, slots: Slots, trial_id: str, point: Point) -> None:
        self._slots, self._trial_id, self._point = slots, trial_id, point

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:  # noqa: ARG002  # Ray's signature
        """Called by Train once per controller: workers that are started again keep their slot."""
        self._slots.wait(self._trial_id, self._point)
