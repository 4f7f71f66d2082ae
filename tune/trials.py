"""Where each trial of a search stands, as its record tells it: while it runs, after a resume and at the end."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, Literal

from tune.objective import Objective
from tune.record import EpochRecord, TrialEvent, What
from tune.space import Point

State = Literal["waiting", "running", "stopped early", "out of budget", "ended", "diverged", "failed"]
STATES: Final[dict[What, State]] = {
    "waiting": "waiting",
    "started": "running",
    "stopped": "stopped early",
    "budget": "out of budget",
    "ended": "ended",
    "diverged": "diverged",
    "failed": "failed",
}
_UNENDED: Final[tuple[What, ...]] = ("waiting", "started")
Span = tuple[float, float]
"""Begin and end, by `time.time()`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialView:
    """One trial."""

    trial_id: str
    number: int
    """From 0, in the order in which the trials began."""
    point: Point
    state: State
    """`waiting` for a slot, or until an interrupted search goes on with it."""
    reason: str
    """Why it failed or diverged."""
    epochs: tuple[EpochRecord, ...]
    """In order, without one that diverged."""
    spans: tuple[Span, ...]
    """When it had a slot."""

    @property
    def last_epoch(self) -> int:
        """The newest epoch that it reported; 0 before the first."""
        return self.epochs[-1].epoch if self.epochs else 0

    @property
    def epoch_s(self) -> float | None:
        """Mean seconds of its epochs."""
        seconds = [one.metrics["epoch_s"] for one in self.epochs if "epoch_s" in one.metrics]
        return sum(seconds) / len(seconds) if seconds else None

    @property
    def running_s(self) -> float:
        """Seconds in which it held its workers."""
        return sum(end - begin for begin, end in self.spans)

    def best(self, objective: Objective) -> EpochRecord | None:
        """Its best epoch, the earlier one among equals."""
        return min(self.epochs, key=lambda one: objective.loss(one.metrics), default=None)


def follow_trials(
    records: Iterable[EpochRecord], events: Sequence[TrialEvent], *, now: float | None = None
) -> list[TrialView]:
    """Every trial that began, in that order, then those that get ready to.

    Args:
        records: the epochs of all trials.
        events: their begins and ends.
        now: until when trials run that have no end; None: until the last sign of life.
    """
    epochs: dict[str, list[EpochRecord]] = {}
    for record in records:
        epochs.setdefault(record.trial_id, []).append(record)
    points = {one.trial_id: one.point for one in chain.from_iterable(epochs.values())}
    for what in ("waiting", "started"):  # so that those that have begun come first, in their order
        points = {one.trial_id: one.point for one in events if one.what == what} | points
    signs = sorted([one.at for one in events] + [one.ended for one in chain.from_iterable(epochs.values())])
    spans = _spans(events, signs, now)
    newest = newest_events(events)
    return [
        TrialView(
            trial_id=trial_id,
            number=number,
            point=point,
            state=STATES[newest[trial_id].what] if trial_id in newest else "waiting",
            reason=newest[trial_id].reason if trial_id in newest else "",
            epochs=tuple(sorted(filter(_is_sound, epochs.get(trial_id, [])), key=lambda one: one.epoch)),
            spans=tuple(spans.get(trial_id, ())),
        )
        for number, (trial_id, point) in enumerate(points.items())
    ]


def best_trial_id(trials: Sequence[TrialView], objective: Objective) -> str | None:
    """The trial with the best epoch; the earlier one among equals."""
    scores = {one.trial_id: objective.loss(best.metrics) for one in trials if (best := one.best(objective)) is not None}
    return min(scores, key=scores.__getitem__) if scores else None


def ended_ids(events: Iterable[TrialEvent]) -> set[str]:
    """The trials that came to an end of any kind. Tune's own results forget it of some when it is restored."""
    return {trial_id for trial_id, event in newest_events(events).items() if event.what not in _UNENDED}


def _is_sound(record: EpochRecord) -> bool:
    return bool(record.checkpoint_path)  # an epoch that diverged has none


def newest_events(events: Iterable[TrialEvent]) -> dict[str, TrialEvent]:
    """The last event of each trial that says what it is now: a new session knows of none that runs or waits."""
    newest: dict[str, TrialEvent] = {}
    for event in events:
        if event.what == "session":
            newest = {trial_id: one for trial_id, one in newest.items() if one.what not in _UNENDED}
        else:
            newest[event.trial_id] = event
    return newest


def _spans(events: Iterable[TrialEvent], signs: Sequence[float], now: float | None) -> dict[str, list[Span]]:
    """When each trial ran; what a kill left open ends with the last sign of life before the next session."""
    spans: dict[str, list[Span]] = {}
    begun: dict[str, float] = {}

    def close(trial_id: str, at: float) -> None:
        if trial_id in begun:
            begin = begun.pop(trial_id)
            spans.setdefault(trial_id, []).append((begin, max(begin, at)))

    for event in events:
        if event.what == "session":
            last = max((sign for sign in signs if sign < event.at), default=event.at)
            for trial_id in list(begun):
                close(trial_id, last)
            continue
        close(event.trial_id, event.at)
        if event.what == "started":
            begun[event.trial_id] = event.at
    for trial_id in list(begun):
        close(trial_id, signs[-1] if now is None else now)
    return spans
