"""A recipe and its rows become a TorchTrainer; used alike for one fit and for each trial of a search."""

import time
from collections.abc import Sequence
from pathlib import Path

import ray
import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback

from bintally.config import Recipe
from bintally.errors import ClusterTooSmallError, ConfigError
from bintally.loss import class_weights
from bintally.model import build_model
from data.args import ResourceArgs
from data.pipeline import execution_options
from data.training_rows import TrainingRows, sampling_of
from train.figures import BEST_NLL, Keep
from train.give_up import GiveUp
from train.loop import LoopConfig, train_loop
from train.news import News
from train.storage import mend_record
from train.turns import StartInTurn

DATA_CPUS = 1  # a search leaves one free for each training it runs; without any, they wait for ever


def check_fits(recipe: Recipe, resources: ResourceArgs, num_train: int) -> None:
    """Refuse a batch size that the workers cannot share or that the rows cannot fill.

    Raises:
        ConfigError: names the value to change.
    """
    batch, workers = recipe.optim.global_batch_size, resources.num_workers
    if batch > num_train:
        raise ConfigError(
            f"global_batch_size {batch} is larger than the training split of {num_train} rows;"
            f" choose {num_train} at most, or more images"
        )
    if batch % workers:
        raise ConfigError(f"global_batch_size {batch} cannot be shared equally by num_workers {workers}")


def check_rows(recipe: Recipe, resources: ResourceArgs, rows: TrainingRows) -> None:
    """Refuse a recipe that the rows, now that they are known, do not suit.

    Raises:
        ConfigError: names the value to change.
    """
    check_fits(recipe, resources, rows.num_train)
    if recipe.loss.class_weights:
        assert rows.class_rows is not None
        class_weights(torch.tensor(rows.class_rows))
    if recipe.balanced:
        assert rows.class_rows is not None
        _check_balance(rows.class_rows)


def _check_balance(class_rows: Sequence[int]) -> None:
    if empty := [str(count) for count, num_rows in enumerate(class_rows) if num_rows == 0]:
        raise ConfigError(
            f"balanced: no training row has the count {', '.join(empty)}, so it cannot be visited as often as the"
            " others; lower data.max_count, take more ids, or switch balanced off"
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
        storage_path: absolute folder for runs.
        callback: hears of each epoch.
        begin: holds the controller back until the workers may start.
        news: hears of a stall while it lasts.
        keep: which checkpoint is best: a figure of train/figures.py, and whether its "min" or "max" is.
    """
    best_by, order = keep
    mend_record(storage_path / name, keep)
    feeds, plans = rows.feeds(recipe, num_workers=resources.num_workers, training=name)
    num_train = sampling_of(recipe).epoch_size(rows.num_train)
    loop = LoopConfig(
        recipe=recipe,
        num_train=num_train,
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
    return TorchTrainer(
        train_loop,
        train_loop_config=loop.pack(),
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=resources.use_gpu,
            resources_per_worker={"CPU": 1, "GPU": resources.gpus_per_worker} if resources.use_gpu else {"CPU": 1},
        ),
        datasets=plans,
        dataset_config=ray.train.DataConfig(execution_options=execution_options()),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage_path),
            callbacks=[GiveUp(), callback, *([begin] if begin else []), *_turns(resources, name, news)],  # type: ignore[list-item]  # annotated for Train v1's
            failure_config=FailureConfig(max_failures=2),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=best_by, checkpoint_score_order=order
            ),
        ),
    )


def _turns(resources: ResourceArgs, name: str, news: News | None) -> list[StartInTurn]:
    if resources.use_gpu:
        return []
    total = cluster_resources().get("CPU", 0.0)
    return [StartInTurn(num_cpus=resources.num_workers + DATA_CPUS, total_cpus=total, name=name, news=news)]


def cluster_resources() -> dict[str, float]:
    """Totals of the running cluster, with the nodes that its autoscaler may still start."""
    running: dict[str, float] = ray.cluster_resources()
    planned = ray._private.state.state.get_max_resources_from_cluster_config() or {}  # noqa: SLF001  # nothing public
    return {name: max(running.get(name, 0), planned.get(name, 0)) for name in {*running, *planned}}
