"""A training whose data stop coming tells of it at once, as the loop sets its monitor up."""

from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue

import torch

from bintally.model import build_model
from bintally.recipes import smoke
from train.loop import LoopConfig, _monitor
from train.optim import Schedule, build_optimizer
from train.state import Fit, Progress
from train.workers import Worker


def fit_of() -> Fit:
    recipe = smoke()
    model = build_model(recipe.model, num_classes=6, image_size=32)
    optimizer = build_optimizer(model, recipe.optim)
    return Fit(recipe, model, optimizer, Schedule(optimizer, recipe.optim, 2), None)


def lines_of(make: Callable[..., LoopConfig], rank: int, patience_s: float) -> list[str]:
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

    config = make(stalled_s=0.2, name="train-7", news=news)
    with _monitor(config, fit_of(), Worker(rank, 2, torch.device("cpu")), Progress()) as monitor:
        for _ in monitor.steps(batches()):
            monitor.after_step(torch.zeros(()), 16)
    return told


def test_a_stall_is_told_while_it_lasts(loop_config: Callable[..., LoopConfig]) -> None:
    (line,) = lines_of(loop_config, rank=0, patience_s=100)
    assert line.startswith("train-7: no sign of life for ")
    assert "after step 2, and still none; look at the workers' logs" in line


def test_one_worker_of_several_tells_it(loop_config: Callable[..., LoopConfig]) -> None:
    assert lines_of(loop_config, rank=1, patience_s=2) == []
