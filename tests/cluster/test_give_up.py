"""What ends a training at once, in a real worker group."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from bintally.errors import RunError
from data.session import ray_session, unwrap
from train.give_up import GiveUp

pytestmark = [pytest.mark.cluster, pytest.mark.faults]


def attempts_of(fail: Callable[[], None], folder: Path) -> tuple[int, TrainingFailedError]:
    """How often a worker began, and how the training ended."""
    begun = folder / "begun.txt"

    def loop() -> None:
        with begun.open("a") as file:
            file.write("once\n")
        fail()

    config = RunConfig(
        storage_path=str(folder),
        callbacks=[GiveUp()],  # type: ignore[list-item]  # annotated for Train v1's callbacks
        failure_config=FailureConfig(max_failures=1),
    )
    with pytest.raises(TrainingFailedError) as caught:
        TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=1), run_config=config).fit()
    return len(begun.read_text().splitlines()), caught.value


def new_dir(path: Path) -> Path:
    path.mkdir()
    return path


def exhaust() -> None:
    torch.empty(10**15)


def stumble() -> None:
    raise ConnectionResetError("peer")


def test_exhausted_memory_is_not_tried_again_and_a_lost_connection_is(tmp_path: Path) -> None:
    with ray_session(num_cpus=3):
        num_exhausted, exhausted = attempts_of(exhaust, new_dir(tmp_path / "exhausted"))
        num_stumbled, stumbled = attempts_of(stumble, new_dir(tmp_path / "stumbled"))
    assert (num_exhausted, num_stumbled) == (1, 2)
    assert unwrap(stumbled) is None
    error = unwrap(exhausted)
    assert isinstance(error, RunError)
    assert "out of memory" in str(error)
