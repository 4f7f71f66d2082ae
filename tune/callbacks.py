"""What a search does as results come in: record them, tell the user, and keep Tune's state whole."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from ray import cloudpickle
from ray.tune import Callback
from ray.tune.experiment import Trial

from bintally.config import Recipe
from data.progress import say
from data.session import unwrap
from train.tracking import Tracker, TrackerName, figures_of, tracked
from tune.kept_state import keep_state
from tune.live import on_terminal
from tune.objective import Objective
from tune.record import EVENTS_FILE, EpochRecord, TrialEvent, What, append_record, read_events, read_records
from tune.slots import has_begun
from tune.space import describe_point, epochs_at, recipe_at
from tune.stoppers import EndTrials
from tune.trials import STATES, ended_ids

_METRICS: Final = (
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
_TRACKED: Final = {*_METRICS, "lr", "train_s"}


class RecordEpochs(Callback):
    """Appends each epoch, begin and end to the record, and prints it; on a terminal the live table shows the epochs."""

    def __init__(
        self,
        path: Path,
        *,
        objective: Objective,
        max_epochs: int,
        num_trials: int,
        place: str,
        label: str = "trial",
        end: EndTrials | None = None,
    ) -> None:
        """A new one.

        Args:
            path: of the record of epochs; that of begins and ends lies beside it.
            objective: which epoch is the best so far.
            max_epochs: of the longest trial.
            num_trials: in all.
            place: where the run lies for its user.
            label: what one of them is called.
            end: knows which trials a budget ended; None if there is none.
        """
        self._path = path
        self._objective = objective
        self._max_epochs = max_epochs
        self._num_trials = num_trials
        self._place = place
        self._label = label
        self._end = end
        self._early: dict[str, What] = {}
        self._diverged: dict[str, str] = {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called by Tune when the process of a trial has started, also after a fault or a resume; see tune/slots.py."""
        self._append("waiting", trial)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Called by Tune with each report of a trial; one without an epoch is of a trial that never began."""
        if "epoch" not in result:
            return
        record = EpochRecord(
            trial_id=trial.trial_id,
            point=trial.config,
            epoch=result["epoch"],
            checkpoint_path=result.get("checkpoint_path", ""),
            metrics={name: result[name] for name in dict.fromkeys((*_METRICS, self._objective.metric))},
            ended=time.time(),
        )
        best = min((self._objective.loss(one.metrics) for one in read_records(self._path)), default=float("inf"))
        append_record(self._path, record)
        if result.get("done"):  # so by the search; a training that ends by itself says so after its last report
            by_budget = self._end is not None and trial.trial_id in self._end.out_of_budget
            self._early[trial.trial_id] = "budget" if by_budget else "stopped"
        if "diverged" in result:
            self._diverged[trial.trial_id] = result["diverged"]
            say(f"{self._name(trial)} diverged: {result['diverged']}")
        elif not on_terminal():
            epochs = f"epoch {record.epoch}/{epochs_at(record.point, self._max_epochs)}"
            say(
                f"{self._name(trial)} {epochs}: val nll {result['val_nll']:.3f},"
                f" accuracy {result['val_accuracy']:.1%}, {result['images_per_s']:,.0f} images/s"
                + ("  <- best so far" if self._objective.loss(record.metrics) < best else "")
            )

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called by Tune when a trial ran to its end or was stopped early; or waited until the budget was spent."""
        if not has_begun(trial.trial_id, read_events(self._path.with_name(EVENTS_FILE))):
            return
        epoch = (trial.last_result or {}).get("epoch", 0)
        is_whole = epoch >= epochs_at(trial.config, self._max_epochs)
        what = "ended" if is_whole else self._early.get(trial.trial_id, "ended")
        if trial.trial_id in self._diverged:
            self._append("diverged", trial, reason=self._diverged[trial.trial_id])
        else:
            self._append(what, trial)
        how = "ran to its end" if is_whole else f"{STATES[what]} after epoch {epoch}"
        say(f"{self._name(trial)} {how}; {self._num_ended()} of {self._num_trials} {self._label}s ended")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called by Tune when a trial failed for good."""
        reason = _reason_of(trial)
        self._append("failed", trial, reason=reason)
        say(f"{self._name(trial)} FAILED: {reason}; its error.txt lies in {self._place}")

    def _append(self, what: What, trial: Trial, *, reason: str = "") -> None:
        event = TrialEvent(what=what, at=time.time(), trial_id=trial.trial_id, point=trial.config, reason=reason)
        append_record(self._path.with_name(EVENTS_FILE), event)

    def _num_ended(self) -> int:
        return len(ended_ids(read_events(self._path.with_name(EVENTS_FILE))))

    def _name(self, trial: Trial) -> str:
        # By the record, since the ids of some samplers hold no number, and this object may be older than the record.
        events = read_events(self._path.with_name(EVENTS_FILE))
        begun = dict.fromkeys(one.trial_id for one in events if one.what == "started")
        number = list(begun).index(trial.trial_id) if trial.trial_id in begun else len(begun)
        return f"{self._label} {number} ({describe_point(trial.config)})"


class TrackTrials(Callback):
    """Records each trial for TensorBoard and MLflow as a run of its own, all of them under the search's experiment."""

    def __init__(self, names: Sequence[TrackerName], run_dir: Path, recipe: Recipe) -> None:
        self._names = tuple(names)
        self._run_dir = run_dir
        self._recipe = recipe
        self._open: dict[str, tuple[ExitStack, list[Tracker]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what is open: Tune stores its callbacks with the search."""
        return {**self.__dict__, "_open": {}}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Called by Tune with each report of a trial; one without an epoch is of a trial that never began."""
        if "epoch" not in result:
            return
        if trial.trial_id not in self._open:
            stack = ExitStack()
            recipe, run = recipe_at(self._recipe, trial.config), f"trial-{trial.trial_id}"
            trackers = stack.enter_context(tracked(self._names, self._run_dir, recipe, run=run))
            self._open[trial.trial_id] = stack, trackers
        figures = {name: value for name, value in figures_of(result).items() if name in _TRACKED}
        for track in self._open[trial.trial_id][1]:
            track(result["epoch"], figures)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called by Tune when a trial ran to its end or was stopped early."""
        self._close(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called by Tune when a trial failed for good."""
        self._close(trial)

    def _close(self, trial: Trial) -> None:
        if trial.trial_id in self._open:
            self._open.pop(trial.trial_id)[0].close()


class KeepState(Callback):
    """Keeps a whole copy of Tune's own state, see tune/kept_state.py."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Called by Tune with each report of a trial."""
        keep_state(self._folder)


def _reason_of(trial: Trial) -> str:
    """By Tune's own files of the moment: `get_error` reads their copies, which are made some seconds later."""
    pickled, text = trial.pickled_error_file, trial.error_file
    if pickled and Path(pickled).exists():
        return last_line(cloudpickle.loads(Path(pickled).read_bytes()))
    return last_line(Path(text).read_text() if text and Path(text).exists() else None)


def last_line(error: BaseException | str | None) -> str:
    """The line of an error, often wrapped with its traceback by Ray, that says what went wrong."""
    if isinstance(error, BaseException) and (ours := unwrap(error)):
        return " ".join(str(ours).split())
    return str(error).strip().splitlines()[-1] if error and str(error).strip() else "no reason was given"
