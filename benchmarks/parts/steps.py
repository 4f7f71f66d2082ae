"""The loops that `benchmarks/train_step.py` compares, on the same drawn batch."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bintally.batch import BATCH_ROWS, COUNT, ID, IMAGE, NEXT_POSITION, ArrayBatch
from bintally.config import ComputeConfig, ModelConfig, OptimConfig, Recipe
from bintally.model import Counter, build_model
from bintally.recipes import demo
from bintally.source_config import DataConfig
from train.augment import augment, draw
from train.monitor import Monitor
from train.optim import Schedule, build_optimizer
from train.state import Fit
from train.step import Stepper, on_device
from train.tracking import TrackerName, tracked
from train.workers import Worker

NUM_STEPS = 100_000  # of the schedule: more than are taken

Loop = Callable[[int], None]


class NoMonitor:
    """In the place of a Monitor, and does nothing."""

    def phase(self, _name: str) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()

    def steps(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches."""
        return batches

    def after_backward(self) -> None:
        """Nothing."""

    def after_step(self, loss_sum: Tensor, num_rows: int) -> None:
        """Nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopSetting:
    """What the loops train on."""

    backbone: str
    image_size: int
    batch_size: int
    device: str
    precision: str


def make_loop(name: str, setting: LoopSetting) -> Loop:
    """A function that takes so many steps, with a model of its own; those of all names begin with the same weights."""
    recipe = Recipe(
        name="benchmark",
        data=DataConfig(image_size=setting.image_size),
        model=ModelConfig(backbone=setting.backbone),
        optim=OptimConfig(lr=1e-4, global_batch_size=setting.batch_size),
        compute=ComputeConfig(precision=cast("Literal['fp32', 'bf16']", setting.precision)),
        max_epochs=1,
    )
    batch = _draw_batch(setting.batch_size, setting.image_size)
    make: dict[str, Callable[[Recipe, ArrayBatch, torch.device], Loop]] = {
        "bare_loop": _bare_loop,
        "bintally": partial(_own_loop, monitored=True),
        "no_monitor": partial(_own_loop, monitored=False),
    }
    return make[name](recipe, batch, torch.device(setting.device))


def peak_memory_mb(name: str, setting: LoopSetting, num_steps: int) -> float:
    """Of a loop alone in its process: what was allocated on the GPU; without one what the process held at most."""
    make_loop(name, setting)(num_steps)
    if setting.device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def tracking_cpu_ms(num_epochs: int) -> dict[str, float]:
    """CPU time of each tracker per epoch of 40 figures, which is what the driver spends beside the workers."""
    figures = {f"figure_{number}": number / 7 for number in range(40)}
    names: tuple[TrackerName, ...] = ("tensorboard", "mlflow")
    spent: dict[str, float] = {}
    for name in names:
        with TemporaryDirectory() as folder, tracked([name], Path(folder), demo()) as (tracker,):
            tracker(0, figures)
            started = time.process_time()
            for epoch in range(1, num_epochs + 1):
                tracker(epoch, figures)
            spent[name] = round(1000 * (time.process_time() - started) / num_epochs, 2)
    return spent


def _draw_batch(size: int, image_size: int) -> ArrayBatch:
    random = np.random.default_rng(0)
    return {
        ID: np.array([f"{number:05d}" for number in range(size)]),
        IMAGE: random.integers(0, 256, (size, image_size, image_size, 3), np.uint8),
        COUNT: random.integers(0, 6, size),
        BATCH_ROWS: np.full(size, size),
        NEXT_POSITION: np.full(size, size),
    }


def _model(recipe: Recipe, device: torch.device) -> Counter:
    torch.manual_seed(0)
    model = build_model(recipe.model, num_classes=recipe.data.num_classes, image_size=recipe.data.image_size)
    return model.to(device)


def _bare_loop(recipe: Recipe, batch: ArrayBatch, device: torch.device) -> Loop:
    model = _model(recipe, device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.optim.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS)
    generator = torch.Generator().manual_seed(0)
    bf16 = recipe.compute.precision == "bf16"

    def take(num_steps: int) -> None:
        for _ in range(num_steps):
            images = torch.tensor(batch[IMAGE]).to(device, non_blocking=True)
            counts = torch.tensor(batch[COUNT]).to(device, non_blocking=True)
            images = augment(images, draw(recipe.augment, len(images), generator))
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(model(images).float(), counts)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        loss.item()  # waits for the GPU

    return take


def _own_loop(recipe: Recipe, batch: ArrayBatch, device: torch.device, *, monitored: bool) -> Loop:
    model = _model(recipe, device).train()
    optimizer = build_optimizer(model, recipe.optim)
    fit, worker = Fit(recipe, model, optimizer, Schedule(optimizer, recipe.optim, 1), None), Worker(0, 1, device)

    def take(num_steps: int) -> None:
        with _monitor(model, device, recipe, monitored) as monitor:
            stepper = Stepper(fit, model, worker, monitor, None, epoch=1)
            batches = on_device(repeat(batch, num_steps), device, monitor)
            for number, one in enumerate(monitor.steps(batches)):
                fit.schedule.begin_step(number / NUM_STEPS, (number + 1) / NUM_STEPS)
                loss, _ = stepper.step(one, number)
            loss.item()

    return take


@contextmanager
def _monitor(model: Counter, device: torch.device, recipe: Recipe, monitored: bool) -> Iterator[Monitor]:
    if not monitored:
        yield cast("Monitor", NoMonitor())
        return
    # Begins behind the first steps, all of which are sampled: a training has them once.
    with Monitor(model, device, num_classes=recipe.data.num_classes, steps_done=1000) as monitor:
        yield monitor
