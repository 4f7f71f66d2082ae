"""A model that loads, and models that are broken: /ping never says what is not so."""

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bintally.checkpoint import load_checkpoint, save_checkpoint
from serve.predictor import probe_photo

pytestmark = pytest.mark.cluster

RunContainer = Callable[..., Any]  # of conftest.py


def test_a_container_that_loads_does_not_answer(
    waiting_model: Path, running_container: RunContainer, tmp_path: Path
) -> None:
    with running_container(waiting_model, tmp_path) as container:
        while "waiting" not in container.log.read_text():
            assert container.process.poll() is None
            time.sleep(0.05)
        assert container.host.status() == 0
        (waiting_model / "flag").touch()
        container.wait()
        assert container.host.invoke(probe_photo()).status == 200


@pytest.fixture(params=["damaged", "NaN"])
def broken_model(request: pytest.FixtureRequest, packed_model: Path, tmp_path: Path) -> tuple[Path, str]:
    """An unpacked tarball that cannot count, and what has to be said of it."""
    model = shutil.copytree(packed_model, tmp_path / "model")
    weights = model / "checkpoint/model.safetensors"
    if request.param == "damaged":
        weights.write_bytes(weights.read_bytes()[:-100])
        return model, "is damaged"
    checkpoint = load_checkpoint(model / "checkpoint")
    torch.nn.init.constant_(next(checkpoint.model.parameters()), float("nan"))
    save_checkpoint(model / "checkpoint", checkpoint.model, checkpoint.recipe, {})
    return model, "answers NaN"


def test_a_container_ends_on_a_broken_model(
    broken_model: tuple[Path, str], running_container: RunContainer, tmp_path: Path
) -> None:
    model, words = broken_model
    with running_container(model, tmp_path) as container:
        while container.process.poll() is None:
            assert container.host.status() == 0
            time.sleep(0.05)
        assert container.process.returncode == 2
    log = container.log.read_text()
    assert log.startswith("error: ")
    assert log.count("\n") == 1
    assert words in log


@pytest.mark.parametrize("broken_model", ["damaged"], indirect=True)
def test_ray_builds_no_application_of_a_broken_model(
    broken_model: tuple[Path, str], python: Path, out_of_reach: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    model, words = broken_model
    done = subprocess.run(
        [python, "-c", "import deployment; deployment.app({})"],
        cwd=tmp_path,
        env=out_of_reach(model, model / "code"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("bintally.errors.CheckpointError: ")
    assert words in done.stderr.splitlines()[-1]
