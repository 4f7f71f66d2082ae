"""A recipe and its rows become a TorchTrainer; used alike for one fit and for each trial of a search."""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyarrow.fs import FileSystem
from ray.train import CheckpointConfig, FailureConfig, RunConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2.api.config import ScalingConfig  # ray.train's, whose annotations are Train v1's

from bintally.config import Recipe
from bintally.errors import ClusterTooSmallError, ConfigError
from bintally.loss import class_weights
from bintally.model import build_model
from data.args import ResourceArgs
from data.training_rows import TrainingRows
from data.worker_batches import WorkerBatches
from train.elastic import RESIZE_S, START_S, ElasticPolicy, ElasticTrainer
from train.figures import BEST_NLL, Keep
from train.give_up import GiveUp
from train.loop import LoopConfig, train_loop
from train.news import News
from train.storage import mend_record
from train.turns import DATA_CPUS, StartInTurn


def check_fits(recipe: Recipe, resources: ResourceArgs, num_train: int) -> None:
    """Refuse a batch size that the workers cannot share or that the rows cannot fill.

    Raises:
        ConfigError: names the value to change.
    """
    batch = recipe.optim.global_batch_size
    if batch > num_train:
        raise ConfigError(
            f"global_batch_size {batch} is larger than the training split of {num_train} rows;"
            f" choose {num_train} at most, or more images"
        )
    for name, workers in (("num_workers", resources.num_workers), ("min_workers", resources.min_workers or 1)):
        if batch % workers:
            raise ConfigError(f"global_batch_size {batch} cannot be shared equally by {name} {workers}")


def check_rows(recipe: Recipe, resources: ResourceArgs, rows: TrainingRows) -> None:
    """Refuse a recipe that the rows, now that they are known, do not suit.

    Raises:
        ConfigError: names the value to change.
    """
    check_fits(recipe, resources, rows.num_train)
    if recipe.loss.class_weights:
        assert rows.class_rows is not None
        class_weights(torch.tensor(rows.class_rows))
    empty = [str(count) for count, num_rows in enumerate(rows.class_rows or ()) if num_rows == 0]
    if empty and recipe.balanced:
        raise ConfigError(
            f"balanced: no training row has the count {', '.join(empty)}, so it cannot be visited as often as the"
            " others; lower data.max_count, take more ids, or switch balanced off"
        )
    if empty and not recipe.allow_empty_counts:
        raise ConfigError(
            f"no training row has the count {', '.join(empty)}, which the model could never learn: take more ids, lower"
            " data.max_count, or allow it by allow_empty_counts=true (--set, or --space of a search)"
        )


def check_model(recipe: Recipe) -> None:
    """Build the model once, where its errors are one line instead of a worker's traceback.

    Raises:
        ConfigError: the backbone is unknown.
        WeightsError: the weights cannot be found, downloaded or fitted.
    """
    build_model(recipe.model, num_classes=recipe.data.num_classes, image_size=recipe.data.image_size)


def trainings_at_once(cluster: dict[str, float], resources: ResourceArgs) -> int:
    """How many trainings the cluster can run side by side without waiting for one another.

    Args:
        cluster: totals as `cluster_resources` gives them.
        resources: what one training asks for.

    Raises:
        ClusterTooSmallError: not even one.
    """
    cpus, gpus, workers = int(cluster.get("CPU", 0)), int(cluster.get("GPU", 0)), resources.num_workers
    if workers < 1:
        raise ConfigError(f"num_workers must be at least 1, not {workers}")
    if resources.use_gpu and gpus < workers:
        raise ClusterTooSmallError(
            f"num_workers {workers} with --use-gpu needs {workers} GPUs; the cluster has {gpus}, counting nodes that"
            " its autoscaler may start. Choose fewer workers, or a cluster with more GPUs"
        )
    if cpus < workers + DATA_CPUS:
        raise ClusterTooSmallError(
            f"num_workers {workers} needs {workers + DATA_CPUS} CPUs (one per worker, {DATA_CPUS} for data); the"
            f" cluster has {cpus}. Choose fewer workers, or on one machine --num-cpus {workers + DATA_CPUS}"
        )
    by_cpu = cpus // (workers + DATA_CPUS)
    by_gpu = gpus // workers if resources.gpus_per_worker == 1 else gpus * int(1 / resources.gpus_per_worker)
    return min(by_cpu, by_gpu) if resources.use_gpu else by_cpu


def build_trainer(
    recipe: Recipe,
    rows: TrainingRows,
    resources: ResourceArgs,
    *,
    name: str,
    storage_path: Path,
    callback: UserCallback,
    filesystem: FileSystem | None = None,
    begin: ControllerCallback | None = None,
    news: News | None = None,
    keep: Keep = BEST_NLL,
) -> TorchTrainer:
    """A trainer that keeps its best checkpoint, besides the newest to resume from.

    Args:
        recipe: what to train.
        rows: the rows to train and validate on.
        resources: workers and GPUs.
        name: of the run; the same name and path continue an interrupted run.
        storage_path: absolute folder for runs, or a path in `filesystem`.
        callback: hears of each epoch.
        filesystem: of S3, where the run lies there; None is that of this machine.
        begin: holds the controller back until the workers may start.
        news: hears of a stall while it lasts.
        keep: which checkpoint is best: a figure of train/figures.py, and whether its "min" or "max" is.
    """
    best_by, order = keep
    if filesystem is None:
        mend_record(storage_path / name, keep)
    feeds, streams = rows.feeds(recipe, training=name)
    loop = LoopConfig(
        recipe=recipe,
        num_ids=rows.num_ids_of_epoch(recipe),
        train=feeds["train"],
        val=feeds["val"],
        class_rows=rows.class_rows,
        checkpoint_s=resources.checkpoint_s,
        on_health=resources.on_health,
        stalled_s=resources.stalled_s,
        launched=time.time(),
        name=name,
        keep=keep,
        news=news,
    )
    least, most = resources.min_workers, resources.num_workers
    scaling = ScalingConfig(
        num_workers=most if least is None else (least, most),
        elastic_resize_monitor_interval_s=RESIZE_S,
        use_gpu=resources.use_gpu,
        resources_per_worker=held_by_worker(resources),
    )
    make: Any = TorchTrainer
    if least is not None:
        policy = ElasticPolicy(scaling, global_batch_size=recipe.optim.global_batch_size, name=name, news=news)
        make = partial(ElasticTrainer, policy=policy)
    trainer: TorchTrainer = make(
        train_loop,
        train_loop_config=loop.pack(),
        scaling_config=scaling,
        datasets={split: photos for split, (_, photos) in streams.items()},
        dataset_config=WorkerBatches({split: stream for split, (stream, _) in streams.items()}),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage_path),
            storage_filesystem=filesystem,
            callbacks=[GiveUp(), callback, *([begin] if begin else []), *turns_of(resources, name, news)],  # type: ignore[list-item]  # annotated for Train v1's
            failure_config=FailureConfig(max_failures=2),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=best_by, checkpoint_score_order=order
            ),
        ),
    )
    return trainer


def held_by_worker(resources: ResourceArgs) -> dict[str, float]:
    """What one worker reserves. With a GPU no CPU: groups that took all would starve the data tasks for ever."""
    return {"GPU": resources.gpus_per_worker} if resources.use_gpu else {"CPU": 1.0}


def turns_of(resources: ResourceArgs, name: str, news: News | None) -> list[StartInTurn]:
    """What makes a training wait until it leaves a CPU to data tasks; nothing if its workers reserve none."""
    if "CPU" not in held_by_worker(resources):
        return []
    return [StartInTurn(name=name, news=news, patience_s=float(START_S) if resources.min_workers else math.inf)]
