"""One training from start to checkpoint, with progress in the terminal."""

import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ray.train import Checkpoint, Result, TrainingFailedError, UserCallback
from ray.train.v2._internal.execution.context import TrainRunContext

from bintally.checkpoint import METRICS_FILE as FIGURES_FILE
from bintally.checkpoint import written_whole
from bintally.cli import CANNOT_WRITE
from bintally.config import Recipe
from bintally.errors import BinTallyError, CheckpointError, RunError
from data.args import ReadArgs, ResourceArgs
from data.drops import DropLedger, format_table
from data.ingest import list_splits, load_training_rows
from data.progress import say
from data.session import ray_session, unwrap
from data.split import digest_of
from data.training_rows import TrainingRows
from train.give_up import causes_of, final_error
from train.model_card import write_model_card
from train.news import News, heard
from train.run_folder import (
    HEALTH_FILE,
    METRICS_FILE,
    EpochLog,
    check_recipe,
    describe_run,
    findings_of,
    read_epochs,
)
from train.run_reports import write_run_reports
from train.state import PARTIAL
from train.storage import RESUME_FILE, Storage
from train.tracking import Tracker, TrackerName, figures_of, tracked
from train.trainer import build_trainer, check_fits, check_model, check_rows, trainings_at_once
from train.turns import cluster_resources

_OF_S3 = "AWS Error"  # in pyarrow's errors, which have no class of their own


def fit(
    recipe: Recipe,
    read: ReadArgs,
    resources: ResourceArgs,
    run_dir: Path,
    track: Sequence[TrackerName] = (),
    place: str | None = None,
) -> Path:
    """Train a recipe; the folder of its best checkpoint.

    Args:
        recipe: what to train.
        read: how the bucket is read.
        resources: workers and GPUs.
        run_dir: where the driver works.
        track: where epochs are recorded, too.
        place: where the run lies for users and workers, s3://bucket/prefix; None is `run_dir`.

    Raises:
        BinTallyError: the source, the cluster or the training failed; the message says how.
    """
    place = place or str(run_dir)
    check_recipe(run_dir, recipe, place)
    check_model(recipe)
    splits = list_splits(recipe.data)
    check_fits(recipe, resources, len(splits["train"]))  # before Ray starts; again when the rows are known
    with ray_session(resources.num_cpus):
        trainings_at_once(cluster_resources(), resources)
        ledger = DropLedger.start(max_faults=read.max_faults(len(splits["train"]) + len(splits["val"])))
        rows = load_training_rows(splits, recipe, ledger, read)
        check_rows(recipe, resources, rows)
        describe_run(run_dir, recipe)
        say(f"training {recipe.name} for {recipe.max_epochs} epochs in {place}")
        with tracked(track, run_dir, recipe) as trackers, _shown_epochs(run_dir, recipe, trackers) as news:
            result = _train(recipe, rows, resources, run_dir, place, news)
        write_run_reports(run_dir, recipe)
        diverged = next((epoch["diverged"] for epoch in read_epochs(run_dir / METRICS_FILE) if "diverged" in epoch), "")
        whole_epochs = [pair for pair in result.best_checkpoints or [] if not pair[1].get(PARTIAL)]
        if not whole_epochs:
            raise RunError(f"the training ended without a checkpoint: {diverged or 'no epoch ended'}")
        checkpoint, metrics = min(whole_epochs, key=lambda pair: pair[1]["val_nll"])
        with checkpoint.as_directory() as folder:
            target = keep_checkpoint(Path(folder), run_dir / "checkpoint", val_ids=digest_of(splits["val"]))
        write_model_card(target, recipe, metrics)
        say(f"best epoch {metrics['epoch']}: {describe(metrics)}")
        say(f"checkpoint: {place}/checkpoint")
        if diverged:
            raise RunError(f"the training diverged after the epoch that was kept: {diverged}")
        if resources.on_health == "stop":
            _check_health(run_dir, recipe, place)
        return target


def _train(
    recipe: Recipe, rows: TrainingRows, resources: ResourceArgs, run_dir: Path, place: str, news: News
) -> Result:
    storage = Storage.of(place)
    trainer = build_trainer(
        recipe,
        rows,
        resources,
        name="train",
        storage_path=storage.path,
        filesystem=storage.filesystem,
        callback=ForwardEpochs(news),
        news=news,
    )
    try:
        return trainer.fit()
    except SystemExit:  # how Ray Train answers Ctrl-C, and Ray a SIGTERM: code 1, without a word
        say(f"stopped; {_go_on(place)}")
        raise KeyboardInterrupt from None
    except TrainingFailedError as error:
        rows.spec.ledger.check()
        raise failure_of(error, place) from error
    finally:
        # Ray Train leaves a handler behind, which asks the ended training to stop and then exits with 0.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with suppress(OSError):  # on a full disk; what the training says of it says more
            keep_drops(rows, run_dir)


def failure_of(error: TrainingFailedError, place: Path | str) -> BinTallyError:
    """What ended a training, told to the user: our own error, storage that refuses, or a bug with its traceback."""
    for cause in causes_of(error):
        if ours := final_error(cause) or unwrap(cause):
            return ours
        if isinstance(cause, OSError) and (cause.errno in CANNOT_WRITE or _OF_S3 in str(cause)):
            reason = os.strerror(cause.errno) if cause.errno else str(cause).splitlines()[0]
            return CheckpointError(
                f"a checkpoint could not be stored in {place}: {reason}; the one before is whole, and {_go_on(place)}"
            )
    return RunError(f"the training failed: {error}")


def _go_on(place: Path | str) -> str:
    return f"the same command with --run-dir {place} goes on with it"


def _check_health(run_dir: Path, recipe: Recipe, place: str) -> None:
    """Tell what ended a training early; a finding of its last epoch ended nothing.

    Raises:
        RunError: its newest epoch has a finding that ends one.
    """
    newest = read_epochs(run_dir / METRICS_FILE)[-1]
    grave = [f"{finding.rule} ({finding.saw})" for finding in findings_of(newest) if finding.severity == "stop"]
    if grave and newest["epoch"] < recipe.max_epochs:
        raise RunError(
            f"the training was stopped after epoch {newest['epoch']} by --on-health stop: {', '.join(grave)};"
            f" {place}/{HEALTH_FILE} says more, and the best epoch was kept"
        )


def keep_drops(rows: TrainingRows, run_dir: Path) -> None:
    """Write the drop table to the run folder; of a stream, show it too: it was not known before."""
    table = rows.spec.ledger.table()
    (run_dir / "drops.json").write_text(json.dumps(table, indent=2) + "\n")
    if rows.train.stored is None:
        say(format_table(table, rows.train.ids.num_ids + rows.val.ids.num_ids))


def keep_checkpoint(source: Path, target: Path, **figures: str) -> Path:
    """Copy a training's checkpoint without what only a restart needs.

    Args:
        source: as the training has stored it.
        target: the folder to write.
        figures: go into its metrics.json, too.

    Raises:
        CheckpointError: the copy could not be written, or there is nothing to copy.
    """
    with written_whole(target) as partial:
        left_behind = shutil.ignore_patterns(RESUME_FILE, ".metadata.json")
        shutil.copytree(source, partial, ignore=left_behind, dirs_exist_ok=True)
        if figures:
            path = partial / FIGURES_FILE
            path.write_text(json.dumps(json.loads(path.read_text()) | figures, indent=2) + "\n")
    return target


def describe(metrics: dict[str, Any]) -> str:
    """The figures of one epoch in one line."""
    return (
        f"val nll {metrics['val_nll']:.3f}, accuracy {metrics['val_accuracy']:.1%}, rmse {metrics['val_rmse']:.2f};"
        f" train loss {metrics['train_loss']:.3f}; {metrics['images_per_s']:,.0f} images/s"
    )


class ForwardEpochs(UserCallback):
    """Sends rank 0's figures of each epoch from Train's controller, wherever it runs, to the driver."""

    def __init__(self, news: News) -> None:
        self._news = news

    def after_report(
        self,
        run_context: TrainRunContext,
        metrics: list[dict[str, Any]],
        checkpoint: Checkpoint | None,
    ) -> None:
        """Called by Train once per report; the figures of all ranks are equal but for timing."""
        if not metrics[0].get(PARTIAL):
            self._news.put(metrics[0])


@contextmanager
def _shown_epochs(run_dir: Path, recipe: Recipe, trackers: Sequence[Tracker]) -> Iterator[News]:
    """Show each epoch as it ends, append it to metrics.jsonl, and track it; lines are shown as they are."""
    log = EpochLog(run_dir)

    def hear(news: dict[str, Any] | str) -> None:
        if isinstance(news, str):
            say(news)
            return
        found = log.add(news)
        say(f"epoch {news['epoch']}/{recipe.max_epochs}: {describe(news)}")
        for track in trackers:
            track(news["epoch"], figures_of(news))
        for line in found:
            say(line)

    with heard(hear) as news:
        yield news
