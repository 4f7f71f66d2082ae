"""A training whose data stop coming tells of it at once, as the loop sets its monitor up."""

from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import Any

import torch

from bintally.model import build_model
from bintally.recipes import smoke
from data.decode import Share
from data.feed import FeedSpec
from train.figures import BEST_NLL
from train.loop import LoopConfig, _monitor
from train.optim import build_optimizer, build_schedule
from train.state import Fit, Progress
from train.workers import Worker


def config_of(news: Any) -> LoopConfig:  # noqa: ANN401  # a queue of this process in the place of Ray's
    feed = FeedSpec(share=Share(global_batch_size=16), sampling=None, clock=None, stored=None)
    return LoopConfig(
        recipe=smoke(),
        num_train=64,
        train=feed,
        val=feed,
        class_rows=None,
        checkpoint_s=60.0,
        on_health="warn",
        stalled_s=0.2,
        keep=BEST_NLL,
        launched=0.0,
        name="train-7",
        news=news,
    )


def fit_of() -> Fit:
    recipe = smoke()
    model = build_model(recipe.model, num_classes=6, image_size=32)
    optimizer = build_optimizer(model, recipe.optim)
    return Fit(recipe, model, optimizer, build_schedule(optimizer, recipe.optim, num_steps=8, steps_per_epoch=4), None)


def lines_of(rank: int, patience_s: float) -> list[str]:
    """What is told while a feed gives two batches and then waits, until it is told or the patience is over."""
    news: SimpleQueue[str] = SimpleQueue()
    told: list[str] = []

    def batches() -> Iterator[int]:
        yield 1
        yield 2
        try:
            told.append(news.get(timeout=patience_s))
        except Empty:
            return

    with _monitor(config_of(news), fit_of(), Worker(rank, 2, torch.device("cpu")), Progress()) as monitor:
        for _ in monitor.steps(batches()):
            monitor.after_step(torch.zeros(()), 16)
    return told


def test_a_stall_is_told_while_it_lasts() -> None:
    (line,) = lines_of(rank=0, patience_s=100)
    assert line.startswith("train-7: no sign of life for ")
    assert "after step 2, and still none; look at the workers' logs" in line


def test_one_worker_of_several_tells_it() -> None:
    assert lines_of(rank=1, patience_s=2) == []
