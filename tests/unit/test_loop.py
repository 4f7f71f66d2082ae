"""The loop over the batches of an epoch, without Ray Train: what it stores while it waits, and how an epoch ends."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from bintally.batch import BATCH_ROWS, COUNT, ID, IMAGE, NEXT_POSITION, ArrayBatch
from bintally.errors import NoUsableRowsError
from bintally.model import build_model
from bintally.recipes import smoke
from data.feed import OnWait
from train.loop import DivergedError, LoopConfig, Run, _train_epoch
from train.monitor import Monitor
from train.optim import Schedule, build_optimizer
from train.state import Fit, Progress
from train.workers import Notice, Worker

NUM_IDS = 40


class Feed:
    """Batches, and a long wait before the last one."""

    def __init__(self, num_batches: int) -> None:
        self._num_batches = num_batches

    def epoch(self, number: int, *, start: int = 0, on_wait: OnWait | None = None) -> Iterator[ArrayBatch]:
        """See data.feed."""
        for step in range(self._num_batches):
            if step == self._num_batches - 1 and on_wait is not None:
                on_wait(60.0)
            random = np.random.default_rng((number, start, step))
            yield {
                ID: np.array([f"{row:05d}" for row in range(4)]),
                IMAGE: random.integers(0, 256, (4, 32, 32, 3), np.uint8),
                COUNT: random.integers(0, 6, 4),
                BATCH_ROWS: np.full(4, 4),
                NEXT_POSITION: np.full(4, (step + 1) * 10),
            }


class Waiting(Notice):
    """Hears in each wait that a node goes."""

    def in_wait(self, store: Callable[[], None]) -> Callable[[float], None]:
        """See train.workers."""
        return lambda _: store()


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[Progress]:
    """Where the checkpoints within the epoch stand."""
    found: list[Progress] = []
    monkeypatch.setattr("train.loop.report_partial", lambda _fit, progress, _keep: found.append(progress))
    return found


def train(config: LoopConfig, num_batches: int, *, poison: bool = False, epoch: int = 1) -> tuple[Progress, float]:
    """An epoch of so many batches, and the rate of its last step; poisoned, its gradients are no numbers."""
    recipe, worker = smoke(), Worker(0, 1, torch.device("cpu"))
    model = build_model(recipe.model, num_classes=6, image_size=32)
    if poison:
        torch.nn.init.constant_(next(model.parameters()), float("nan"))
    optimizer = build_optimizer(model, recipe.optim)
    fit = Fit(recipe, model, optimizer, Schedule(optimizer, recipe.optim, recipe.max_epochs), None)
    with Monitor(model, worker.device, num_classes=6) as monitor:
        feed = Feed(num_batches)
        run = Run(config, fit, worker, Waiting(worker, None, "train"), monitor, feed, feed)
        return _train_epoch(run, model, Progress(epoch=epoch)), optimizer.param_groups[0]["lr"]


def test_a_wait_stores_how_far_the_epoch_came(loop_config: Callable[..., LoopConfig], stored: list[Progress]) -> None:
    trained, _ = train(loop_config(num_ids=NUM_IDS), 4)
    assert [(one.step, one.position, one.num_images) for one in stored] == [(3, 30, 12)]
    assert (trained.step, trained.position, trained.num_images) == (4, 40, 16)
    assert trained.after_epoch(1.0, {}).after_epoch(1.0, {}).steps_before == 4


def test_what_has_diverged_is_not_stored_in_a_wait(
    loop_config: Callable[..., LoopConfig], stored: list[Progress]
) -> None:
    with pytest.raises(DivergedError, match="not finite since batch 1 of epoch 1"):
        train(loop_config(num_ids=NUM_IDS), 4, poison=True)
    assert stored == []


@pytest.mark.usefixtures("stored")
def test_the_rate_goes_by_the_place_in_the_epoch_and_not_by_the_number_of_steps(
    loop_config: Callable[..., LoopConfig],
) -> None:
    """As a third of 60 ids is dropped, 4 batches of 10 rows reach the end."""
    optim = smoke().optim
    for num_ids, place in ((40, 0.75), (400, 0.075)):
        _, rate = train(loop_config(num_ids=num_ids), 4, epoch=2)
        share = 0.5 * (1 + np.cos(np.pi * (1 + place - 0.2) / 1.8))  # of two epochs, a tenth is the warm-up
        assert rate == pytest.approx(optim.lr * share)


def test_an_epoch_without_a_row_is_an_error(loop_config: Callable[..., LoopConfig]) -> None:
    with pytest.raises(NoUsableRowsError, match="no usable row in the train split"):
        train(loop_config(num_ids=NUM_IDS), 0)
