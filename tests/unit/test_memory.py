"""Exhausted memory, really exhausted: how it is told, and micro-batches that fit."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ray.exceptions import RayTaskError
from ray.train import ControllerError, WorkerGroupError

from bintally.errors import ConfigError, RunError, SourceUnreachableError, TooManyFaultsError
from train.give_up import final_error, final_failure
from train.memory import is_out_of_memory
from tune.callbacks import last_line

ROOT = Path(__file__).parents[2]
BATCH_SIZE, IMAGE_SIZE = 128, 256

FIT = f"""
import json, resource, torch
from dataclasses import replace
from pathlib import Path
from bintally.config import with_settings
from bintally.model import build_model
from bintally.recipes import smoke
from train.memory import with_fitting_batches
from train.optim import Schedule, build_optimizer
from train.state import Fit
from train.workers import Worker

torch.set_num_threads(1)
recipe = with_settings(smoke(), ["optim.global_batch_size={BATCH_SIZE}", "data.image_size={IMAGE_SIZE}"])
model = build_model(recipe.model, num_classes=6)
before = {{name: value.clone() for name, value in model.state_dict().items()}}
optimizer = build_optimizer(model, recipe.optim)
fit = Fit(recipe, model, optimizer, Schedule(optimizer, recipe.optim, 2), None)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_MB * 2**20,) * 2)
fitting = with_fitting_batches(fit, Worker(0, 1, torch.device("cpu")))
print(json.dumps({{
    "size": fitting.recipe.compute.micro_batch_size,
    "same": all(torch.equal(value, before[name]) for name, value in model.state_dict().items()),
    "gradients": sum(one.grad is not None for one in model.parameters()),
}}))
"""


def fit_into(spare_mb: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FIT.replace("SPARE_MB", str(spare_mb))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_micro_batches_are_halved_until_they_fit_and_the_model_stays_as_it_was() -> None:
    done = fit_into(500)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["size"] in (8, 16, 32, 64)
    assert told["same"]
    assert told["gradients"] == 0


def test_a_photo_that_does_not_fit_alone_is_an_error() -> None:
    done = fit_into(1)
    assert done.returncode == 1
    assert "RunError: not even one photo at once fits into memory" in done.stderr


def exhausted() -> BaseException:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    return caught.value


def test_an_exhausted_allocator_is_known() -> None:
    assert is_out_of_memory(exhausted())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_what_a_restart_would_meet_again_is_final() -> None:
    error = final_error(exhausted())
    assert isinstance(error, RunError)
    assert "compute.fit_memory=true" in str(error)
    for ours in (ConfigError("x"), TooManyFaultsError("x")):
        assert final_error(ours) is ours


def test_exhausted_memory_is_told_as_the_reason_of_a_trial() -> None:
    for failure in (WorkerGroupError("on rank 0", {0: exhausted()}), ControllerError(final_error(exhausted()))):  # type: ignore[arg-type, dict-item]
        final = final_failure(failure)
        assert isinstance(final, RunError)
        told = RayTaskError("run_trial", "Traceback\n  somewhere", final)  # what Tune stores of a trial
        assert last_line(pickle.loads(pickle.dumps(told))).startswith("out of memory: ")  # noqa: S301
    assert final_failure(WorkerGroupError("on rank 0", {0: ConnectionResetError("peer")})) is None


def test_what_may_go_away_is_left_to_a_restart() -> None:
    assert final_error(SourceUnreachableError("503")) is None
    assert final_error(ValueError("x")) is None
    assert final_error(ConnectionResetError("peer")) is None
