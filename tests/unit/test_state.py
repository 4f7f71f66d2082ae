"""A checkpoint that cannot be written whole."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from bintally.errors import CheckpointError
from bintally.model import build_model
from bintally.recipes import smoke
from train.optim import Schedule, build_optimizer
from train.state import Fit, Progress, write_state
from train.storage import RESUME_FILE

MB = 10**6


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """The kernel lets no file of this process grow further, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def fit() -> Fit:
    recipe = smoke()
    model = build_model(recipe.model, num_classes=6)
    optimizer = build_optimizer(model, recipe.optim)
    model(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).sum().backward()
    optimizer.step()
    return Fit(recipe, model, optimizer, Schedule(optimizer, recipe.optim, 2), None)


# The weights take 0.9 MB, what a restart needs three times that.
@pytest.mark.parametrize("num_bytes", [MB // 10, 3 * MB // 2])
def test_a_full_disk_leaves_no_half_checkpoint(num_bytes: int, fit: Fit, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    with files_of_at_most(num_bytes), pytest.raises(CheckpointError, match="could not be written"):
        write_state(folder, {"val_nll": 1.0}, fit, Progress())
    assert list(tmp_path.iterdir()) == []


def test_a_whole_checkpoint_has_what_a_restart_needs(fit: Fit, tmp_path: Path) -> None:
    write_state(tmp_path / "checkpoint", {"val_nll": 1.0}, fit, Progress(epoch=3, position=7))
    state = torch.load(tmp_path / "checkpoint" / RESUME_FILE, weights_only=True)
    assert (state["progress"]["epoch"], state["progress"]["position"]) == (3, 7)
