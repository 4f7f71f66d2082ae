"""The record of a search: a JSON line per epoch of a trial, and one per begin and end, so that a kill loses nothing.

Tune's own result grid forgets the epochs before a restore; these files do not.
"""

import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from tune.objective import Objective
from tune.space import Point

TRIALS_FILE: Final = "trials.jsonl"
EVENTS_FILE: Final = "events.jsonl"

What = Literal["session", "waiting", "started", "stopped", "budget", "ended", "diverged", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRecord:
    """What a trial reported after one epoch."""

    trial_id: str
    point: Point
    """What the trial draws of the search space."""
    epoch: int
    checkpoint_path: str
    metrics: dict[str, float]
    """All figures of the epoch, as the training loop reports them."""
    ended: float
    """When it was reported, by `time.time()`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialEvent:
    """That a trial began or came to an end, or that the search was started or resumed."""

    what: What
    """`waiting`: its process is there; `started`: it has a slot; `stopped` is early, by ASHA; `budget`: that was spent;
    `ended` is by itself."""
    at: float
    """By `time.time()`."""
    trial_id: str = ""
    """Empty for a session."""
    point: Point = field(default_factory=dict)
    reason: str = ""
    """Why it failed or diverged."""


def append_record(path: Path, record: EpochRecord | TrialEvent) -> None:
    """Append one epoch or event, on a line of its own even if a kill left half a line before it."""
    line = json.dumps(asdict(record)).encode() + b"\n"
    with path.open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            line = line if file.read() == b"\n" else b"\n" + line
        file.write(line)


def begin_session(folder: Path) -> None:
    """Note in a search's events that it is started, or goes on."""
    append_record(folder / EVENTS_FILE, TrialEvent(what="session", at=time.time()))


def read_records(path: Path) -> list[EpochRecord]:
    """All epochs of all trials; of an epoch that a resumed trial ran again, the later one."""
    records = (EpochRecord(**values) for values in _read_lines(path))
    return list({(record.trial_id, record.epoch): record for record in records}.values())


def read_events(path: Path) -> list[TrialEvent]:
    """All begins and ends, in order."""
    return [TrialEvent(**values) for values in _read_lines(path)]


def best_record(records: Iterable[EpochRecord], objective: Objective) -> EpochRecord:
    """The best epoch of the best trial. One that diverged has no checkpoint.

    The later one among equals, which accuracies often are: of those Train has kept the later checkpoint alone.
    """
    return min(records, key=lambda one: (not one.checkpoint_path, objective.loss(one.metrics), -one.epoch))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [values for line in lines if (values := _parse(line)) is not None]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return None  # the last line of a search that was killed while writing it
    return values
