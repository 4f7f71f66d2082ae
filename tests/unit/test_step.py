"""One optimiser step: the same gradients however a batch is cut up, and what is drawn depends on the seed alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bintally.batch import BATCH_ROWS, COUNT, ID, IMAGE, NEXT_POSITION, PADDING, ArrayBatch
from bintally.config import ComputeConfig, Recipe
from bintally.model import build_model
from bintally.recipes import smoke
from train.monitor import Monitor
from train.optim import Schedule, build_optimizer
from train.state import Fit
from train.step import Stepper, on_device, shrink_photos
from train.workers import Worker

CPU = torch.device("cpu")


def draw_batch(size: int = 8) -> ArrayBatch:
    random = np.random.default_rng(0)
    counts = random.integers(0, 6, size)
    counts[-1] = PADDING
    return {
        ID: np.array([f"{number:05d}" for number in range(size)]),
        IMAGE: random.integers(0, 256, (size, 32, 32, 3), np.uint8),
        COUNT: counts,
        BATCH_ROWS: np.full(size, size - 1),
        NEXT_POSITION: np.full(size, size),
    }


def weights_after_a_step(recipe: Recipe, *, epoch: int = 1, number: int = 0) -> torch.Tensor:
    torch.manual_seed(0)
    model = build_model(recipe.model, num_classes=6).train()
    optimizer = build_optimizer(model, recipe.optim)
    schedule = Schedule(optimizer, recipe.optim, 1)
    with Monitor(model, CPU, num_classes=6) as monitor:
        stepper = Stepper(Fit(recipe, model, optimizer, schedule, None), model, Worker(0, 1, CPU), monitor, None, epoch)
        for batch in monitor.steps(on_device([draw_batch()], CPU, monitor)):
            assert batch.ids == [f"{number:05d}" for number in range(7)]  # without the padding
            stepper.step(batch, number)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_micro_batches_give_the_gradients_of_the_whole(size: int) -> None:
    # Adam's first step would make as much of a gradient of rounding errors as of a real one.
    recipe = replace(smoke(), optim=replace(smoke().optim, optimizer="sgd", lr=0.1, warmup_fraction=0.0))
    whole = weights_after_a_step(recipe)
    parts = weights_after_a_step(replace(recipe, compute=ComputeConfig(micro_batch_size=size)))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_what_is_drawn_depends_on_seed_epoch_and_step(seed: int) -> None:
    recipe = replace(smoke(), seed=seed)
    first = weights_after_a_step(recipe, epoch=2, number=3)
    assert torch.equal(weights_after_a_step(recipe, epoch=2, number=3), first)
    assert not torch.equal(weights_after_a_step(recipe, epoch=2, number=4), first)
    assert not torch.equal(weights_after_a_step(recipe, epoch=3, number=3), first)


def test_shrunk_photos_keep_their_brightness_and_layout() -> None:
    images = torch.full((2, 32, 32, 3), 200, dtype=torch.uint8)
    images[:, :, 16:] = 100
    smaller = shrink_photos(images, 16)
    assert smaller.shape == (2, 16, 16, 3)
    assert smaller[0, 8, 2].tolist() == [200, 200, 200]
    assert smaller[0, 8, 13].tolist() == [100, 100, 100]
