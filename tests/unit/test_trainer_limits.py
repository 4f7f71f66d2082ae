"""What fits on a cluster, decided before anything waits for ever."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bintally.config import LossConfig, Recipe, with_settings
from bintally.errors import ClusterTooSmallError, ConfigError
from bintally.recipes import smoke
from data.args import ResourceArgs
from data.blocks import FetchSpec
from data.clock import EpochClock
from data.drops import DropLedger
from data.feed import FeedSpec
from data.order import Sampling
from data.pipeline import IdTable
from data.stored import StoredRows
from data.training_rows import SplitRows, TrainingRows, sampling_of
from train.loop import LoopConfig
from train.trainer import check_fits, check_rows, held_by_worker, trainings_at_once, turns_of


def recipe(batch_size: int) -> Recipe:
    return with_settings(smoke(), [f"optim.global_batch_size={batch_size}"])


@pytest.mark.parametrize(("batch_size", "num_workers", "num_train"), [(16, 1, 16), (16, 4, 100), (1, 1, 1), (6, 3, 6)])
def test_a_batch_that_can_be_shared_and_filled(batch_size: int, num_workers: int, num_train: int) -> None:
    check_fits(recipe(batch_size), ResourceArgs(num_workers=num_workers), num_train)


def test_a_batch_larger_than_the_split() -> None:
    with pytest.raises(ConfigError, match=r"global_batch_size 17 .* 16 rows; choose 16 at most"):
        check_fits(recipe(17), ResourceArgs(), 16)


@pytest.mark.parametrize(("batch_size", "num_workers"), [(16, 3), (2, 4), (7, 2)])
def test_a_batch_that_cannot_be_shared_equally(batch_size: int, num_workers: int) -> None:
    with pytest.raises(ConfigError, match=f"global_batch_size {batch_size} .* num_workers {num_workers}"):
        check_fits(recipe(batch_size), ResourceArgs(num_workers=num_workers), 1000)


@pytest.mark.parametrize(("batch_size", "min_workers"), [(16, 3), (12, 5)])
def test_a_batch_that_the_least_workers_cannot_share_equally(batch_size: int, min_workers: int) -> None:
    resources = ResourceArgs(num_workers=batch_size // 2, min_workers=min_workers).resolve()
    with pytest.raises(ConfigError, match=f"global_batch_size {batch_size} .* min_workers {min_workers}"):
        check_fits(recipe(batch_size), resources, 1000)


@pytest.mark.parametrize("min_workers", [0, -1, 5])
def test_a_least_number_of_workers_that_makes_no_sense(min_workers: int) -> None:
    with pytest.raises(ConfigError, match=f"min_workers must lie between 1 and num_workers 4, not be {min_workers}"):
        ResourceArgs(num_workers=4, min_workers=min_workers).resolve()


def test_a_training_that_may_have_fewer_workers_counts_by_the_most() -> None:
    assert trainings_at_once({"CPU": 16.0}, ResourceArgs(num_workers=4, min_workers=1)) == 3


def rows_of(class_rows: tuple[int, ...]) -> TrainingRows:
    split = SplitRows(ids=IdTable(None, 100))
    spec = FetchSpec(data=smoke().data, ledger=DropLedger(None))
    clock = EpochClock(None, "a")
    return TrainingRows(train=split, val=split, spec=spec, clock=clock, num_train=100, class_rows=class_rows)


@pytest.mark.parametrize("change", [{"balanced": True}, {"loss": LossConfig(class_weights=True)}])
def test_a_count_without_training_rows_cannot_be_weighed_or_balanced(change: dict[str, Any]) -> None:
    fitted = replace(recipe(16), **change)
    check_rows(fitted, ResourceArgs(), rows_of((50, 10, 10, 10, 10, 10)))
    with pytest.raises(ConfigError, match=rf"{next(iter(change))}.*: no training row has the count 0, 4"):
        check_rows(fitted, ResourceArgs(), rows_of((0, 40, 20, 20, 0, 20)))


def test_a_count_without_training_rows_is_refused_unless_that_is_meant() -> None:
    check_rows(recipe(16), ResourceArgs(), rows_of((1, 39, 20, 20, 10, 10)))
    with pytest.raises(ConfigError, match=r"no training row has the count 0, 4, .*allow_empty_counts=true"):
        check_rows(recipe(16), ResourceArgs(), rows_of((0, 40, 20, 20, 0, 20)))
    meant = replace(recipe(16), allow_empty_counts=True)
    check_rows(meant, ResourceArgs(), rows_of((0, 40, 20, 20, 0, 20)))


@pytest.mark.parametrize(
    ("cpus", "num_workers", "at_once"),
    [(2, 1, 1), (3, 1, 1), (4, 1, 2), (16, 1, 8), (3, 2, 1), (5, 2, 1), (6, 2, 2), (96, 8, 10)],
)
def test_cpu_trainings_take_a_cpu_per_worker_and_one_for_data(cpus: float, num_workers: int, at_once: int) -> None:
    assert trainings_at_once({"CPU": float(cpus), "memory": 1e9}, ResourceArgs(num_workers=num_workers)) == at_once


@pytest.mark.parametrize(
    ("cpus", "gpus", "num_workers", "at_once"),
    [(96, 8, 1, 8), (96, 8, 4, 2), (96, 8, 3, 2), (96, 8, 8, 1), (8, 8, 1, 4), (9, 8, 8, 1)],
)
def test_gpu_trainings_take_the_scarcer_of_both(cpus: int, gpus: int, num_workers: int, at_once: int) -> None:
    cluster = {"CPU": float(cpus), "GPU": float(gpus)}
    assert trainings_at_once(cluster, ResourceArgs(num_workers=num_workers, use_gpu=True)) == at_once


@pytest.mark.parametrize(
    ("gpus", "share", "at_once"), [(1, 0.5, 2), (1, 0.25, 4), (2, 0.3, 6), (8, 0.1, 48), (1, 1.0, 1), (1, 0.6, 1)]
)
def test_small_trainings_share_gpus(gpus: int, share: float, at_once: int) -> None:
    resources = ResourceArgs(use_gpu=True, gpus_per_worker=share).resolve()
    assert trainings_at_once({"CPU": 96.0, "GPU": float(gpus)}, resources) == at_once


@pytest.mark.parametrize(
    ("share", "num_workers", "fault"),
    [(0.0, 1, "at most at 1"), (2.0, 1, "at most at 1"), (float("nan"), 1, "at most at 1"), (0.5, 2, "num_workers 1")],
)
def test_shares_of_a_gpu_that_make_no_sense(share: float, num_workers: int, fault: str) -> None:
    with pytest.raises(ConfigError, match=f"gpus_per_worker .*{fault}"):
        ResourceArgs(use_gpu=True, gpus_per_worker=share, num_workers=num_workers).resolve()


@pytest.mark.parametrize(
    "resources",
    [
        ResourceArgs(),
        ResourceArgs(use_gpu=True),
        ResourceArgs(use_gpu=True, gpus_per_worker=0.25),
        ResourceArgs(min_workers=1),
    ],
)
def test_who_reserves_cpus_starts_in_turn_so_that_data_tasks_are_never_starved(resources: ResourceArgs) -> None:
    held = held_by_worker(resources)
    assert bool(turns_of(resources, "a", None)) == ("CPU" in held)
    assert held == ({"GPU": resources.gpus_per_worker} if resources.use_gpu else {"CPU": 1})


def test_gpus_do_not_count_for_a_training_on_cpus() -> None:
    assert trainings_at_once({"CPU": 8.0, "GPU": 1.0}, ResourceArgs(num_workers=1)) == 4


@pytest.mark.parametrize(("cpus", "num_workers"), [(1, 1), (4, 4), (0, 1)])
def test_too_few_cpus_say_how_many_are_needed(cpus: int, num_workers: int) -> None:
    needed = num_workers + 1
    with pytest.raises(ClusterTooSmallError, match=rf"needs {needed} CPUs.* has {cpus}\b.*--num-cpus {needed}"):
        trainings_at_once({"CPU": float(cpus)}, ResourceArgs(num_workers=num_workers))


@pytest.mark.parametrize("cluster", [{"CPU": 96.0}, {"CPU": 96.0, "GPU": 1.0}])
def test_too_few_gpus_say_how_many_are_needed(cluster: dict[str, float]) -> None:
    with pytest.raises(ClusterTooSmallError, match=rf"needs 2 GPUs; the cluster has {int(cluster.get('GPU', 0))}\b"):
        trainings_at_once(cluster, ResourceArgs(num_workers=2, use_gpu=True))


def test_a_cluster_without_any_resource() -> None:
    with pytest.raises(ClusterTooSmallError, match="has 0"):
        trainings_at_once({}, ResourceArgs())


@pytest.mark.parametrize("num_workers", [0, -1])
def test_no_workers(num_workers: int) -> None:
    with pytest.raises(ConfigError, match="num_workers must be at least 1"):
        trainings_at_once({"CPU": 8.0}, ResourceArgs(num_workers=num_workers))


@pytest.mark.parametrize(
    "sampling", [None, Sampling(seed=9), Sampling(seed=2**32 - 1, epoch_fraction=0.1, balanced=True)]
)
@pytest.mark.parametrize("stored", [None, StoredRows([], 77)])
def test_what_the_workers_get_survives_its_dict(
    sampling: Sampling | None, stored: StoredRows | None, loop_config: Callable[..., LoopConfig]
) -> None:
    train = FeedSpec(global_batch_size=16, sampling=sampling, clock=EpochClock(None, "a"), stored=stored)
    val = replace(train, global_batch_size=64, sampling=None, clock=None)
    fitted = replace(smoke(), seed=9, epoch_fraction=0.1, balanced=True)
    loop = loop_config(recipe=fitted, train=train, val=val, class_rows=(7, 70), on_health="stop", launched=1.5)
    packed = loop.pack()
    assert isinstance(packed, dict)
    assert packed["recipe"]["optim"]["lr"] == smoke().optim.lr
    assert LoopConfig.unpack(packed) == loop
    assert LoopConfig.unpack(pickle.loads(pickle.dumps(packed))) == loop  # noqa: S301  # what Ray does with it


def test_unpacking_leaves_the_dict_as_it_is(loop_config: Callable[..., LoopConfig]) -> None:
    packed = loop_config().pack()
    assert LoopConfig.unpack(packed) == LoopConfig.unpack(packed)
    assert isinstance(packed["recipe"], dict)


def test_a_recipe_says_how_its_epochs_visit_the_rows() -> None:
    fitted = replace(smoke(), seed=9, epoch_fraction=0.1, balanced=True)
    assert sampling_of(fitted) == Sampling(seed=9, epoch_fraction=0.1, balanced=True)
