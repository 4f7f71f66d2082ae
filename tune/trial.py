"""One trial of a search: a point of the space becomes a training of its own.

Runs in a Tune actor that only drives; the work is done by the workers of its TorchTrainer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune as ray_tune
from ray.train import Checkpoint
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.tune.integration.ray_train import TuneReportCallback

from bintally.config import Recipe
from data.args import ResourceArgs
from data.training_rows import TrainingRows
from train.state import FOR_THE_DRIVER, PARTIAL
from train.trainer import build_trainer
from tune.objective import SCORE, Objective
from tune.space import Point, recipe_at


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSetup:
    """What all trials of a search share, besides the rows."""

    recipe: Recipe
    resources: ResourceArgs
    objective: Objective
    storage_path: Path


def run_trial(point: Point, *, setup: TrialSetup, rows: TrainingRows) -> None:
    """Train the shared recipe at one point of the search space; reports each epoch to Tune."""
    recipe = recipe_at(setup.recipe, point)
    build_trainer(
        recipe,
        rows,
        setup.resources,
        # A name made of the trial's id: a restarted trial goes on with the checkpoints of its first life.
        name=f"train-{ray_tune.get_context().get_trial_id()}",
        storage_path=setup.storage_path,
        callback=ReportEpochs(setup.objective),
        keep=(setup.objective.metric, setup.objective.mode),
    ).fit()


class ReportEpochs(TuneReportCallback):
    """Tells Tune of whole epochs: by a report in mid-epoch ASHA would judge an epoch that has not ended."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Tune's has no annotations
        self._objective = objective

    def after_report(
        self, run_context: TrainRunContext, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Called by Train once per report."""
        if not metrics[0].get(PARTIAL):
            figures = {name: value for name, value in metrics[0].items() if name not in FOR_THE_DRIVER}
            figures[SCORE] = self._objective.loss(figures)
            super().after_report(run_context, [figures], checkpoint)
