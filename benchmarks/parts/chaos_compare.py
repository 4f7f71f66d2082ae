"""What a search came to, and what a fault changed of it."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from train.run_folder import METRICS_FILE, read_epochs
from tune.record import EVENTS_FILE, TRIALS_FILE, read_events, read_records
from tune.slots import number_of
from tune.space import Point
from tune.trials import follow_trials

TOLERANCE: Final = 1e-6  # relative; sums of the same numbers in another order differ by less, one row more by more
_COMPARED: Final = ("train_loss", "val_nll", "val_num_images")

EpochKey = tuple[int, int]
"""Number of the trial, from 0 in the order of the points, and of the epoch, from 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """All of a search that does not depend on time, in numbers that are the same for the same seed."""

    best: EpochKey
    """The best epoch of the best trial."""
    points: dict[int, Point]
    """What each trial that began has drawn."""
    states: dict[int, str]
    """How each of them ended."""
    epochs: dict[EpochKey, dict[str, float]]
    """Figures of each."""
    num_train: int
    """Rows of an epoch."""
    num_dropped: int
    """Ids that could not be used."""
    num_repeated: int
    """Epochs that were reported again."""


def read_outcome(run_dir: Path) -> Outcome:
    """The outcome of a search that has ended, from its run folder."""
    records = read_records(run_dir / TRIALS_FILE)
    trials = follow_trials(records, read_events(run_dir / EVENTS_FILE))
    best = json.loads((run_dir / "results.json").read_text())["best"]
    first = min(run_dir.glob(f"trials/*/{METRICS_FILE}"))
    whole = read_epochs(first)[0]
    return Outcome(
        best=(number_of(best["trial_id"]), best["epoch"]),
        points={number_of(one.trial_id): one.point for one in trials if one.spans},
        states={number_of(one.trial_id): one.state for one in trials if one.spans},
        epochs={
            (number_of(one.trial_id), one.epoch): {name: one.metrics[name] for name in _COMPARED} for one in records
        },
        num_train=round(whole["images_per_s"] * whole["train_s"]),
        num_dropped=sum(json.loads((run_dir / "drops.json").read_text()).values()),
        num_repeated=count_repeated(run_dir / TRIALS_FILE),
    )


def count_repeated(path: Path) -> int:
    """Epochs that a trials.jsonl has more than once."""
    return sum(times > 1 for times in Counter(_epoch_keys(path)).values())


def _epoch_keys(path: Path) -> Iterator[tuple[str, int]]:
    """Trial and epoch of each line, but for one that a kill cut off."""
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            values: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            continue
        yield values["trial_id"], values["epoch"]


def lost_ids(expected: Outcome, got: Outcome) -> int:
    """Ids that no worker saw in an epoch, summed over the epochs.

    The training loss of an epoch is the mean over all its rows, so that an epoch with the same loss has seen the same
    rows. Of one with another loss, which of them is not known: all are counted.
    """
    lost = max(0, got.num_dropped - expected.num_dropped)
    for key, figures in expected.epochs.items():
        if key not in got.epochs:
            lost += expected.num_train + int(figures["val_num_images"])
            continue
        lost += max(0, int(figures["val_num_images"] - got.epochs[key]["val_num_images"]))
        same = math.isclose(figures["train_loss"], got.epochs[key]["train_loss"], rel_tol=TOLERANCE)
        lost += 0 if same else expected.num_train
    return lost


def differences(expected: Outcome, got: Outcome) -> list[str]:
    """What is not as without a fault, in words."""
    found = []
    if got.best != expected.best:
        found.append(
            f"best is epoch {got.best[1]} of trial {got.best[0]}, not {expected.best[1]} of {expected.best[0]}"
        )
    if got.points != expected.points:
        found.append(f"trials {sorted(got.points)} have other points than {sorted(expected.points)}")
    if got.states != expected.states:
        found.append(f"trials ended {got.states}, not {expected.states}")
    if missing := sorted(expected.epochs.keys() - got.epochs.keys()):
        found.append(f"epochs {missing} are missing")
    if more := sorted(got.epochs.keys() - expected.epochs.keys()):
        found.append(f"epochs {more} are more")
    for key in sorted(expected.epochs.keys() & got.epochs.keys()):
        for name, value in expected.epochs[key].items():
            if not math.isclose(value, got.epochs[key][name], rel_tol=TOLERANCE):
                found.append(f"{name} of epoch {key[1]} of trial {key[0]} is {got.epochs[key][name]:g}, not {value:g}")
    return found
