"""One trial of a search: a point of the space becomes a training of its own.

Runs in a Tune actor that only drives; the work is done by the workers of its TorchTrainer.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from ray import tune as ray_tune
from ray.train import Checkpoint, TrainingFailedError
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY, TuneReportCallback

from bintally.config import Recipe, read_recipe, write_recipe
from bintally.errors import RunError
from data.args import ResourceArgs
from data.training_rows import TrainingRows
from train.figures import DIVERGED
from train.give_up import causes_of, final_failure
from train.news import News
from train.run_folder import METRICS_FILE, RECIPE_FILE, EpochLog
from train.state import FOR_THE_DRIVER, PARTIAL
from train.storage import Storage, place_of
from train.trainer import build_trainer
from tune.config import SearchConfig
from tune.objective import SCORE, Objective
from tune.slots import BeginInTurn, NeverBegunError, Slots, number_of
from tune.space import Point, recipe_at

_TRIALS: Final = "trials"
_PREFIX: Final = "train-"  # of the folders of the trials
_FAILED_FILE: Final = "failed.txt"  # why a trial can only fail again


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSetup:
    """What all trials of a search share, besides the rows."""

    recipe: Recipe
    resources: ResourceArgs
    objective: Objective
    place: str
    """Where the run lies for its user."""
    storage_path: Path
    """Folder of the trials' folders."""
    storage: Storage
    """Where their checkpoints lie: there, or in S3 under the same names."""
    slots: Slots
    """Of which each trial takes one."""
    news: News
    """Takes lines for the driver's terminal."""

    @classmethod
    def of(cls, config: SearchConfig, run_dir: Path, news: News, at_once: int, place: str) -> Self:
        """That of a search and its run folder, which lies at `place` for its user."""
        return cls(
            recipe=config.recipe,
            resources=config.resources,
            objective=config.objective,
            place=place,
            storage_path=run_dir / _TRIALS,
            storage=Storage.of(place).under(_TRIALS),
            slots=Slots(folder=run_dir, number=at_once, max_total_epochs=config.budget.epochs),
            news=news,
        )

    def within(self, folder: str, recipe: Recipe, slots: Slots) -> Self:
        """That of trainings of another recipe, in a folder of the same run."""
        return replace(
            self,
            recipe=recipe,
            place=f"{self.place}/{folder}",
            storage_path=self.storage_path.parent / folder / _TRIALS,
            storage=Storage.of(self.place).under(folder, _TRIALS),
            slots=slots,
        )


def run_trial(point: Point, *, setup: TrialSetup, rows: TrainingRows) -> None:
    """Train the shared recipe at one point of the search space; reports each epoch to Tune.

    Raises:
        BinTallyError: what a restart would meet again; Tune's restart of the trial meets it at once.
        TrainingFailedError: what may go away.
    """
    recipe = recipe_at(setup.recipe, point)
    trial_id = ray_tune.get_context().get_trial_id()
    # A name made of the trial's id: a restarted trial goes on with the checkpoints of its first life.
    folder = setup.storage_path / f"{_PREFIX}{trial_id}"
    folder.mkdir(parents=True, exist_ok=True)
    failed = folder / _FAILED_FILE
    if failed.exists():
        raise RunError(failed.read_text())
    write_recipe(recipe, folder / RECIPE_FILE)
    name = f"trial {number_of(trial_id)}"
    trainer = build_trainer(
        recipe,
        rows,
        setup.resources,
        name=folder.name,
        storage_path=setup.storage.path,
        filesystem=setup.storage.filesystem,
        callback=ReportEpochs(setup.objective, EpochLog(folder), setup.news, name),
        begin=BeginInTurn(setup.slots, trial_id, point),
        keep=(setup.objective.metric, setup.objective.mode),
        news=setup.news,
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        if any(isinstance(cause, NeverBegunError) for cause in causes_of(error)):
            ray_tune.report({SCORE: DIVERGED})  # Tune wants one of every trial; without an epoch nobody records it
            return
        if final := final_failure(error):
            failed.write_text(str(final))
            raise final from error
        raise


def allow_again(storage_path: Path) -> None:
    """Let trials that failed be tried again: a new session may find what they lacked."""
    for failed in storage_path.glob(f"{_PREFIX}*/{_FAILED_FILE}"):
        failed.unlink()


def write_trial_reports(storage_path: Path) -> None:
    """Write curves, health.json and profile.html of each trial into its folder."""
    from train.run_reports import write_run_reports  # with matplotlib, whose import would cost each trial a second

    for epochs in storage_path.glob(f"{_PREFIX}*/{METRICS_FILE}"):
        write_run_reports(epochs.parent, read_recipe(epochs.parent / RECIPE_FILE))


class ReportEpochs(TuneReportCallback):
    """Tells Tune of whole epochs: by a report in mid-epoch ASHA would judge an epoch that has not ended."""

    def __init__(self, objective: Objective, log: EpochLog, news: News, name: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Tune's has no annotations
        self._objective, self._log, self._news, self._name = objective, log, news, name

    def after_report(
        self, run_context: TrainRunContext, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Called by Train once per report."""
        if not metrics[0].get(PARTIAL):
            figures = {name: value for name, value in metrics[0].items() if name not in FOR_THE_DRIVER}
            figures[SCORE] = self._objective.loss(figures)
            if checkpoint:
                figures[CHECKPOINT_PATH_KEY] = place_of(checkpoint)  # Tune's own lacks the s3://
            super().after_report(run_context, [figures], None)
            for line in self._log.add(metrics[0]):
                self._news.put(f"{self._name} {line}")
