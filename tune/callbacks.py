"""What a search does as results come in: record them, tell the user, and keep ASHA's memory over an interruption."""

import time
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler

from data.progress import say
from tune.objective import Objective
from tune.record import EpochRecord, append_record
from tune.space import describe_point

_METRICS = (
    "val_nll",
    "val_accuracy",
    "val_within_one",
    "val_rmse",
    "val_mae",
    "val_num_images",
    "train_loss",
    "images_per_s",
    "epoch_s",
)


class RecordEpochs(Callback):
    """Appends each epoch to the record and prints it."""

    def __init__(self, path: Path, *, objective: Objective, max_epochs: int, num_trials: int) -> None:
        self._path = path
        self._objective = objective
        self._max_epochs = max_epochs
        self._num_trials = num_trials
        self._num_ended = 0
        self._best = float("inf")

    def get_state(self) -> dict[str, Any]:
        """What a resumed search goes on with."""
        return {"num_ended": self._num_ended, "best": self._best}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        self._num_ended, self._best = state["num_ended"], state["best"]

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Called by Tune with each report of a trial."""
        record = EpochRecord(
            trial_id=trial.trial_id,
            point=trial.config,
            epoch=result["epoch"],
            checkpoint_path=result.get("checkpoint_path", ""),
            metrics={name: result[name] for name in {*_METRICS, self._objective.metric}},
            ended=time.time(),
        )
        append_record(self._path, record)
        loss = self._objective.loss(record.metrics)
        better = loss < self._best
        self._best = min(self._best, loss)
        if "diverged" in result:
            say(f"{_name(trial)} diverged: {result['diverged']}")
            return
        say(
            f"{_name(trial)} epoch {record.epoch}/{self._max_epochs}: val nll {result['val_nll']:.3f},"
            f" accuracy {result['val_accuracy']:.1%}, {result['images_per_s']:,.0f} images/s"
            + ("  <- best so far" if better else "")
        )

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called by Tune when a trial ran to its end or was stopped early."""
        self._num_ended += 1
        epoch = (trial.last_result or {}).get("epoch", 0)
        how = "ran to its end" if epoch >= self._max_epochs else f"stopped early after epoch {epoch}"
        say(f"{_name(trial)} {how}; {self._num_ended} of {self._num_trials} trials ended")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called by Tune when a trial failed for good."""
        self._num_ended += 1
        say(f"{_name(trial)} FAILED; its error.txt lies in {self._path.parent}")


class KeepRungs(Callback):
    """Saves ASHA's rungs with the search: Tune restores callbacks, but starts its schedulers anew."""

    def __init__(self, scheduler: AsyncHyperBandScheduler) -> None:
        self._scheduler = scheduler

    def get_state(self) -> dict[str, Any]:
        """Scores by trial id, per rung and bracket."""
        brackets = self._scheduler._brackets  # noqa: SLF001  # the scheduler has no public way to its state
        return {"rungs": [[dict(scores) for _, scores in bracket._rungs] for bracket in brackets]}  # noqa: SLF001

    def set_state(self, state: dict[str, Any]) -> None:
        """Put the scores back into the rungs."""
        for bracket, saved in zip(self._scheduler._brackets, state["rungs"], strict=True):  # noqa: SLF001
            for (_, scores), kept in zip(bracket._rungs, saved, strict=True):  # noqa: SLF001
                scores.update(kept)


def _name(trial: Trial) -> str:
    number = int(trial.trial_id.rpartition("_")[2])
    return f"trial {number} ({describe_point(trial.config)})"
