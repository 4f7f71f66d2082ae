"""What a search cost and what it saved: epochs, worker hours and, for a price, money; and how busy its slots were."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tune.record import TrialEvent
from tune.space import epochs_at
from tune.trials import Span, TrialView, follow_trials

HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What all trials of a search took together, and what early stopping saved."""

    epochs_run: int
    epochs_saved: int
    """That trials which ASHA stopped early did not run."""
    worker_hours: float
    """In which trials held their workers, the start of these included."""
    worker_hours_saved: float
    """The epochs saved, at the mean time of their own trial's epochs."""
    unit: str
    """GPU-hours or CPU-worker-hours."""
    price_per_hour: float | None
    """Of one worker."""

    def figures(self) -> dict[str, Any]:
        """JSON-ready; money only for a given price."""
        money = self.price_per_hour
        return {
            "epochs_run": self.epochs_run,
            "epochs_saved": self.epochs_saved,
            "unit": self.unit,
            "hours": self.worker_hours,
            "hours_saved": self.worker_hours_saved,
            "price_per_hour": money,
            "cost": None if money is None else money * self.worker_hours,
            "cost_saved": None if money is None else money * self.worker_hours_saved,
        }


def costs_of(
    trials: Sequence[TrialView],
    *,
    max_epochs: int,
    num_workers: float,
    use_gpu: bool = False,
    price_per_hour: float | None = None,
) -> Costs:
    """What the trials took, beside all of them run to the end.

    Trials that failed, diverged, were out of budget or never began saved nothing: early stopping had no part in it.

    Args:
        trials: of the search.
        max_epochs: of the longest trial; a point may have fewer of its own.
        num_workers: CPU workers, or GPUs, that each trial held; a worker may hold part of a GPU.
        use_gpu: which of them.
        price_per_hour: of one.
    """
    stopped = [one for one in trials if one.state == "stopped early"]
    saved = [epochs_at(one.point, max_epochs) - one.last_epoch for one in stopped]
    saved_s = sum(epochs * (one.epoch_s or 0.0) for epochs, one in zip(saved, stopped, strict=True))
    used_s = sum(one.running_s or sum(epoch.metrics.get("epoch_s", 0.0) for epoch in one.epochs) for one in trials)
    return Costs(
        epochs_run=sum(len(one.epochs) for one in trials),
        epochs_saved=sum(saved),
        worker_hours=num_workers * used_s / HOUR_S,
        worker_hours_saved=num_workers * saved_s / HOUR_S,
        unit="GPU-hours" if use_gpu else "CPU-worker-hours",
        price_per_hour=price_per_hour,
    )


def busy_share(events: Sequence[TrialEvent], at_once: int, num_trials: int) -> float | None:
    """Share of the slots that trials held while others were still waiting; None if none ever waited.

    A slot is held from a trial's turn to its end, so that the start of its workers counts, too: held is not training.

    Args:
        events: begins and ends of trials and sessions.
        at_once: slots: trials that can run side by side.
        num_trials: of the whole search.
    """
    busy_s = slots_s = 0.0
    for begin, end, num_running, num_ended in _steps(events):
        if num_trials - num_ended - num_running > 0:
            busy_s += (end - begin) * num_running
            slots_s += (end - begin) * at_once
    return busy_s / slots_s if slots_s else None


def running_over_time(events: Sequence[TrialEvent]) -> list[tuple[float, int]]:
    """How many trials run from a moment on, by `time.time()`; none between an interruption and the next session."""
    points: list[tuple[float, int]] = []
    until: float | None = None
    for begin, end, num_running, _ in _steps(events):
        if until is not None and begin > until:
            points.append((until, 0))
        points.append((begin, num_running))
        until = end
    return points if until is None else [*points, (until, 0)]


def _steps(events: Sequence[TrialEvent]) -> Iterable[tuple[float, float, int, int]]:
    """Begin and end of each stretch between two events, the trials that ran in it, and those that had ended.

    The time between an interruption and the next session is left out.
    """
    trials = follow_trials([], events)
    spans: list[Span] = [span for trial in trials for span in trial.spans]
    ended: set[str] = set()
    for event, after in pairwise(events):
        if event.what not in ("session", "waiting", "started"):
            ended.add(event.trial_id)
        if after.what != "session":
            num_running = sum(begin <= event.at < end for begin, end in spans)
            yield event.at, after.at, num_running, len(ended)
