"""How many actors count on GPUs; no Ray is needed."""

import pytest

from bintally.errors import ClusterTooSmallError
from train.counting import gpu_pool

Resources = dict[str, float]


@pytest.mark.parametrize(
    ("running", "possible", "sizes"),
    [
        ({"CPU": 8.0}, {"CPU": 56.0, "GPU": 4.0}, (1, 4)),  # a fresh cluster: the first actor makes a node come
        ({"GPU": 1.0}, {"GPU": 16.0}, (1, 16)),
        ({"GPU": 4.0}, {"GPU": 16.0}, (4, 16)),
        ({"GPU": 4.0}, {"GPU": 4.0}, (4, 4)),
    ],
)
def test_all_gpus_that_run_are_taken_and_others_as_they_come(
    running: Resources, possible: Resources, sizes: tuple[int, int]
) -> None:
    pool = gpu_pool(running, possible)
    assert (pool.min_size, pool.max_size) == sizes


def test_without_a_gpu_that_may_come_there_is_no_counting_on_gpus() -> None:
    with pytest.raises(ClusterTooSmallError, match="--use-gpu, but the cluster has no GPU"):
        gpu_pool({"CPU": 2.0}, {"CPU": 16.0})
