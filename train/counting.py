"""Where checkpoints count the rows of a plan: in the tasks that decode them, or in actors that have a GPU each."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, Final

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from bintally.batch import ArrayBatch
from bintally.checkpoint import Checkpoint
from bintally.errors import ClusterTooSmallError
from train.turns import cluster_resources

BATCH: Final = 64
TASK_ROWS: Final = (
    128  # a slow network on a CPU takes seconds for so many: what is shown and written comes in these steps
)

Count = Callable[..., pa.Table]
"""Called with a batch and the checkpoints; what becomes of the batch."""


def count_by(rows: Dataset, checkpoints: Sequence[Checkpoint], count: Count, *, use_gpu: bool) -> Dataset:
    """What `count` makes of the rows, batch by batch. Needs a running Ray.

    On CPUs it is fused with what makes the rows, and each process loads the checkpoints once.

    Raises:
        ClusterTooSmallError: GPUs were asked for, and there will be none.
    """
    pool = gpu_pool(ray.cluster_resources(), cluster_resources()) if use_gpu else None
    models = ray.put(list(checkpoints))
    if pool is None:
        return rows.map_batches(partial(_count_on_cpu, models=models, count=count), batch_size=BATCH)
    return rows.map_batches(
        _GpuCounter, fn_constructor_args=(models, count), batch_size=BATCH, num_gpus=1, compute=pool
    )


def gpu_pool(running: dict[str, float], possible: dict[str, float]) -> ActorPoolStrategy:
    """An actor for each GPU of the cluster.

    GPUs that run cost the same when idle, so all are taken. Without one the first actor makes the autoscaler start a
    node; more are asked for while there is work for them.

    Args:
        running: totals of the nodes that run.
        possible: with those that the autoscaler may start.

    Raises:
        ClusterTooSmallError: there is no GPU in either.
    """
    most = int(possible.get("GPU", 0))
    if not most:
        raise ClusterTooSmallError(
            "--use-gpu, but the cluster has no GPU, nor may its autoscaler start a node with one"
        )
    return ActorPoolStrategy(min_size=max(1, int(running.get("GPU", 0))), max_size=most)


@lru_cache(maxsize=1)
def _load(models: Any) -> list[Checkpoint]:  # noqa: ANN401  # a reference into Ray's object store
    """The checkpoints, once per process."""
    loaded: list[Checkpoint] = ray.get(models)
    return loaded


def _count_on_cpu(batch: ArrayBatch, *, models: Any, count: Count) -> pa.Table:  # noqa: ANN401  # as _load
    return count(batch, *_load(models))


class _GpuCounter:
    """One actor with one GPU."""

    def __init__(self, models: Any, count: Count) -> None:  # noqa: ANN401  # as _load
        self._checkpoints = [replace(one, model=one.model.to("cuda")) for one in ray.get(models)]
        self._count = count

    def __call__(self, batch: ArrayBatch) -> pa.Table:
        """Count one batch of rows."""
        return self._count(batch, *self._checkpoints)
