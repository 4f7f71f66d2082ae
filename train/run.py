"""One training from start to checkpoint, with progress in the terminal."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from ray.train import Checkpoint, TrainingFailedError, UserCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.util.queue import Queue

from bintally.checkpoint import written_whole
from bintally.config import Recipe
from bintally.errors import RunError
from data.args import ReadArgs, ResourceArgs
from data.drops import DropLedger, format_table
from data.ingest import list_splits, load_training_rows
from data.progress import say
from data.session import ray_session, unwrap
from data.training_rows import TrainingRows
from train.model_card import write_model_card
from train.run_folder import METRICS_FILE, describe_run, findings_of, read_epochs, write_run_reports
from train.state import PARTIAL, RESUME_FILE
from train.tracking import Tracker, TrackerName, figures_of, tracked
from train.trainer import build_trainer, check_fits, check_model, check_rows, cluster_resources, trainings_at_once


def fit(
    recipe: Recipe, read: ReadArgs, resources: ResourceArgs, run_dir: Path, track: Sequence[TrackerName] = ()
) -> Path:
    """Train a recipe; the folder of its best checkpoint.

    Raises:
        BinTallyError: the source, the cluster or the training failed; the message says how.
    """
    check_model(recipe)
    splits = list_splits(recipe.data)
    check_fits(recipe, resources, len(splits["train"]))  # before Ray starts; again when the rows are known
    with ray_session(resources.num_cpus):
        trainings_at_once(cluster_resources(), resources)
        ledger = DropLedger.start(max_faults=read.max_faults(len(splits["train"]) + len(splits["val"])))
        rows = load_training_rows(splits, recipe, ledger, read)
        check_rows(recipe, resources, rows)
        describe_run(run_dir, recipe)
        say(f"training {recipe.name} for {recipe.max_epochs} epochs in {run_dir}")
        with tracked(track, run_dir, recipe) as trackers, _shown_epochs(run_dir, recipe, trackers) as callback:
            trainer = build_trainer(recipe, rows, resources, name="train", storage_path=run_dir, callback=callback)
            try:
                result = trainer.fit()
            except SystemExit:  # how Ray Train answers Ctrl-C, and Ray a SIGTERM: code 1, without a word
                say(f"stopped; the same command with --run-dir {run_dir} goes on with it")
                raise KeyboardInterrupt from None
            except TrainingFailedError as error:
                ledger.check()
                raise unwrap(error) or RunError(f"the training failed: {error}") from error
            finally:
                keep_drops(rows, run_dir)
        write_run_reports(run_dir, recipe)
        diverged = next((epoch["diverged"] for epoch in read_epochs(run_dir / METRICS_FILE) if "diverged" in epoch), "")
        if not result.best_checkpoints:
            raise RunError(f"the training ended without a checkpoint: {diverged or 'no epoch ended'}")
        checkpoint, metrics = min(result.best_checkpoints, key=lambda pair: pair[1]["val_nll"])
        target = keep_checkpoint(Path(checkpoint.path), run_dir / "checkpoint")
        write_model_card(target, recipe, metrics)
        say(f"best epoch {metrics['epoch']}: {describe(metrics)}")
        say(f"checkpoint: {target}")
        if diverged:
            raise RunError(f"the training diverged after the epoch that was kept: {diverged}")
        return target


def keep_drops(rows: TrainingRows, run_dir: Path) -> None:
    """Write the drop table to the run folder; of a stream, show it too: it was not known before."""
    table = rows.spec.ledger.table()
    (run_dir / "drops.json").write_text(json.dumps(table, indent=2) + "\n")
    if rows.train.stored is None:
        say(format_table(table, rows.train.ids.num_ids + rows.val.ids.num_ids))


def keep_checkpoint(source: Path, target: Path) -> Path:
    """Copy a training's checkpoint without what only a restart needs.

    Raises:
        CheckpointError: the copy could not be written, or there is nothing to copy.
    """
    with written_whole(target) as partial:
        left_behind = shutil.ignore_patterns(RESUME_FILE, ".metadata.json")
        shutil.copytree(source, partial, ignore=left_behind, dirs_exist_ok=True)
    return target


def describe(metrics: dict[str, Any]) -> str:
    """The figures of one epoch in one line."""
    return (
        f"val nll {metrics['val_nll']:.3f}, accuracy {metrics['val_accuracy']:.1%}, rmse {metrics['val_rmse']:.2f};"
        f" train loss {metrics['train_loss']:.3f}; {metrics['images_per_s']:,.0f} images/s"
    )


class ForwardEpochs(UserCallback):
    """Sends rank 0's figures of each epoch from Train's controller, wherever it runs, to the driver."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(
        self,
        run_context: TrainRunContext,
        metrics: list[dict[str, Any]],
        checkpoint: Checkpoint | None,
    ) -> None:
        """Called by Train once per report; the figures of all ranks are equal but for timing."""
        if not metrics[0].get(PARTIAL):
            self._queue.put(metrics[0])


@contextmanager
def _shown_epochs(run_dir: Path, recipe: Recipe, trackers: Sequence[Tracker]) -> Iterator[ForwardEpochs]:
    """Show each epoch as it ends, append it to metrics.jsonl, and track it."""
    queue = Queue(actor_options={"num_cpus": 0})

    def show() -> None:
        told: set[str] = set()
        with (run_dir / METRICS_FILE).open("a") as log:
            while (metrics := queue.get()) is not None:
                print(json.dumps(metrics), file=log, flush=True)
                say(f"epoch {metrics['epoch']}/{recipe.max_epochs}: {describe(metrics)}")
                for track in trackers:
                    track(metrics["epoch"], figures_of(metrics))
                for finding in findings_of(metrics):
                    if finding.rule not in told:
                        say(f"health: {finding.saw}, since {finding.since}; {finding.advice}")
                    told.add(finding.rule)

    thread = Thread(target=show, daemon=True)
    thread.start()
    try:
        yield ForwardEpochs(queue)
    finally:
        queue.put(None)
        thread.join(timeout=5)
        queue.shutdown()
