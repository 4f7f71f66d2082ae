"""The record of a search: one JSON line per epoch of a trial, appended as it happens, so that a kill loses nothing.

Tune's own result grid forgets the epochs before a restore; this file does not.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tune.objective import Objective
from tune.space import Point

TRIALS_FILE: Final = "trials.jsonl"


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


def append_record(path: Path, record: EpochRecord) -> None:
    """Append one epoch, on a line of its own even if a kill left half a line before it."""
    line = json.dumps(asdict(record)).encode() + b"\n"
    with path.open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            line = line if file.read() == b"\n" else b"\n" + line
        file.write(line)


def read_records(path: Path) -> list[EpochRecord]:
    """All epochs of all trials; of an epoch that a resumed trial ran again, the later one."""
    if not path.exists():
        return []
    records = (_parse(line) for line in path.read_text().splitlines())
    latest = {(record.trial_id, record.epoch): record for record in records if record is not None}
    return list(latest.values())


def best_record(records: Iterable[EpochRecord], objective: Objective) -> EpochRecord:
    """The best epoch of the best trial. One that diverged has no checkpoint.

    The later one among equals, which accuracies often are: of those Train has kept the later checkpoint alone.
    """
    return min(records, key=lambda one: (not one.checkpoint_path, objective.loss(one.metrics), -one.epoch))


def _parse(line: str) -> EpochRecord | None:
    try:
        values: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return None  # the last line of a search that was killed while writing it
    return EpochRecord(**values)
