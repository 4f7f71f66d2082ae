"""All that changes while a recipe is fitted, on its way to a checkpoint and back.

A checkpoint in mid-epoch has the same files as one at its end. What a restart needs lies in a file of its own beside
them, so that a run goes on with the same numbers as if it had never stopped.
"""

import json
import shutil
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import ray.train
import torch
from ray.train import Checkpoint, CheckpointUploadMode

from bintally.checkpoint import METRICS_FILE, save_checkpoint
from bintally.config import Recipe
from bintally.errors import CheckpointError
from bintally.model import Counter
from train.ema import WeightAverage
from train.figures import Keep
from train.optim import Schedule
from train.storage import RESUME_FILE, drop_unlisted

FOR_THE_DRIVER: Final = ("health", "findings")  # no figures of a checkpoint
WORST: Final = 1e35  # no epoch's loss; finite, since Train's record of its checkpoints cannot be read with infinity
PARTIAL: Final = "partial"  # marks the report of an epoch that has not ended; only checkpoints count of it


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a training stands."""

    epoch: int = 1
    """The epoch to go on with."""
    step: int = 0
    """Global batches of it that were trained on."""
    position: int = 0
    """Where in the epoch's order of ids the next batch begins."""
    steps_before: int = 0
    """Global batches of all epochs before it."""
    loss_sum: float = 0.0
    """Of the epoch so far, over all workers."""
    num_images: int = 0
    """As loss_sum."""
    best_nll: float = float("inf")
    """Lowest validation NLL of all epochs."""
    num_worse: int = 0
    """Epochs since that one."""
    health: tuple[dict[str, Any], ...] = ()
    """What this worker's monitor saw, epoch by epoch."""

    def after_epoch(self, val_nll: float, health: dict[str, Any]) -> "Progress":
        """At the start of the next epoch."""
        better = val_nll < self.best_nll
        return Progress(
            epoch=self.epoch + 1,
            steps_before=self.steps_before + self.step,
            best_nll=val_nll if better else self.best_nll,
            num_worse=0 if better else self.num_worse + 1,
            health=(*self.health, health),
        )


@dataclass(frozen=True, slots=True)
class Fit:
    """A recipe on its way."""

    recipe: Recipe
    model: Counter
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    average: WeightAverage | None

    def averaged(self) -> AbstractContextManager[None]:
        """With the weights that are scored and kept."""
        return self.average.applied(self.model) if self.average else nullcontext()

    def learning(self) -> AbstractContextManager[None]:
        """Within `averaged`, with the weights that go on learning."""
        return self.average.lifted(self.model) if self.average else nullcontext()


def report(metrics: dict[str, Any], fit: Fit, progress: Progress) -> None:
    """Report to Train; rank 0 adds a checkpoint, which is stored while the training goes on. All workers must call it.

    Raises:
        CheckpointError: it could not be written, as when the disk is full.
    """
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(metrics)
        return
    folder = Path(tempfile.mkdtemp(prefix="bintally-checkpoint-"))  # Train deletes it when it is stored
    figures = {name: value for name, value in metrics.items() if name not in FOR_THE_DRIVER}
    write_state(folder, figures, fit, progress)
    ray.train.report(
        metrics,
        checkpoint=Checkpoint.from_directory(folder),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
    )


def write_state(folder: Path, figures: dict[str, Any], fit: Fit, progress: Progress) -> None:
    """Write a checkpoint with what a restart needs into a folder, which is gone if that fails.

    Raises:
        CheckpointError: it could not be written, as when the disk is full.
    """
    state = {
        "optimizer": fit.optimizer.state_dict(),
        "schedule": fit.schedule.state_dict(),
        "progress": asdict(progress),
        "weights": fit.model.state_dict(),
        "average": fit.average.state_dict() if fit.average else None,
    }
    try:
        with fit.averaged():
            save_checkpoint(folder, fit.model, fit.recipe, figures)
        torch.save(state, folder / RESUME_FILE)
    except (OSError, RuntimeError, CheckpointError) as error:  # RuntimeError: torch's own for a file that cannot grow
        shutil.rmtree(folder, ignore_errors=True)
        raise CheckpointError(f"checkpoint {folder} could not be written: {error}") from error


def report_partial(fit: Fit, progress: Progress, keep: Keep) -> None:
    """A checkpoint in mid-epoch, which never counts as the best one."""
    metric, mode = keep
    metrics = {PARTIAL: True, "epoch": progress.epoch, metric: WORST if mode == "min" else -WORST}
    report(metrics, fit, progress)


def resume(fit: Fit) -> Progress:
    """Load the newest checkpoint of this run, if it was restarted.

    An epoch that ended with it is reported once more: the kill may have come before a search heard of it.
    """
    if ray.train.get_context().get_world_rank() == 0:
        storage = ray.train.get_context().get_storage()
        drop_unlisted(storage.storage_filesystem, storage.experiment_fs_path)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progress()
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / RESUME_FILE, map_location="cpu", weights_only=True)
        metrics = json.loads((Path(folder) / METRICS_FILE).read_text())
    _load(fit, state)
    progress = Progress(**state["progress"])
    if not metrics.get(PARTIAL):
        report(metrics, fit, progress)
    return progress


def _load(fit: Fit, state: dict[str, Any]) -> None:
    fit.model.load_state_dict(state["weights"])
    fit.optimizer.load_state_dict(state["optimizer"])
    fit.schedule.load_state_dict(state["schedule"])
    if fit.average:
        fit.average.load_state_dict(state["average"])
