"""What each training worker runs, top to bottom: batches in, one report with a checkpoint per epoch out."""

import json
import math
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import ray.train
import ray.train.torch
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from bintally.batch import BATCH_ROWS, COUNT, IMAGE, PADDING, ArrayBatch
from bintally.checkpoint import METRICS_FILE, load_weights, save_checkpoint
from bintally.config import Recipe, recipe_from_dict
from bintally.metrics import CountTally
from bintally.model import Counter, build_model
from data.feed import Feed, FeedSpec
from train.augment import augment
from train.optim import build_optimizer, build_schedule

RESUME_FILE: Final = "resume.pt"  # optimiser state for Train's restarts; not part of the checkpoint that is served
DIVERGED: Final = 1e30  # ASHA never stops a trial that reports NaN, so a diverged loss is reported as this


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """What the loop needs to know."""

    recipe: Recipe
    num_train: int
    """Training rows of an epoch over all workers; sets the length of the learning-rate schedule."""
    train: FeedSpec
    """What an epoch trains on."""
    val: FeedSpec
    """What it is scored on."""

    def pack(self) -> dict[str, Any]:
        """As the plain dict that Ray sends to the workers."""
        return {
            "recipe": asdict(self.recipe),
            "num_train": self.num_train,
            "train": self.train,
            "val": self.val,
        }

    @classmethod
    def unpack(cls, values: dict[str, Any]) -> "LoopConfig":
        """The inverse of `pack`."""
        return cls(**{**values, "recipe": recipe_from_dict(values["recipe"])})


@dataclass(frozen=True, slots=True)
class Fit:
    """What changes while a recipe is fitted."""

    recipe: Recipe
    model: Counter
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """This worker's part of a global batch, on its device."""

    images: UInt8[Tensor, "batch height width 3"]
    counts: Int64[Tensor, " batch"]
    """PADDING where a row only fills up the batch."""
    num_real: int
    """Rows that are not padding."""
    num_global: int
    """The same over all workers."""


def train_loop(values: dict[str, Any]) -> None:
    """Train on this worker's share of the rows; reports once per epoch."""
    config = LoopConfig.unpack(values)
    recipe = config.recipe
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    num_steps = recipe.max_epochs * math.ceil(config.num_train / recipe.optim.global_batch_size)
    torch.manual_seed(recipe.seed)

    model = build_model(recipe.model, num_classes=recipe.data.num_classes).to(device)
    optimizer = build_optimizer(model, recipe.optim)
    schedule = build_schedule(optimizer, recipe.optim, num_steps=num_steps)
    fit = Fit(recipe, model, optimizer, schedule)
    first_epoch = _resume(fit)
    ddp_model = ray.train.torch.prepare_model(model)
    train_feed, val_feed = _open_feed(config.train, "train"), _open_feed(config.val, "val")

    for epoch in range(first_epoch, recipe.max_epochs + 1):
        started = time.monotonic()
        # Each rank draws its own.
        generator = torch.Generator().manual_seed((recipe.seed * 1000 + epoch) * 1000 + context.get_world_rank())
        batches = _on_device(train_feed.epoch(epoch), device)
        train_loss, num_images = _train_epoch(ddp_model, fit, batches, generator)
        train_s = time.monotonic() - started
        val_batches = _on_device(val_feed.epoch(epoch), device)
        tally = _all_reduce(_validate(ddp_model, val_batches, recipe.data.num_classes), device)
        metrics = _epoch_metrics(epoch, train_loss, tally) | {
            "lr": optimizer.param_groups[0]["lr"],
            "train_s": train_s,
            "epoch_s": time.monotonic() - started,
            "images_per_s": num_images * context.get_world_size() / train_s,
        }
        _report(metrics, fit)


def _open_feed(spec: FeedSpec, split: str) -> Feed:
    shard = None if spec.stored else ray.train.get_dataset_shard(split)
    return spec.open(ray.train.get_context().get_world_rank(), shard)


def _on_device(batches: Iterable[ArrayBatch], device: torch.device) -> Iterator[DeviceBatch]:
    for batch in batches:
        yield DeviceBatch(
            images=torch.tensor(batch[IMAGE]).to(device, non_blocking=True),  # a copy: Ray's arrays are read-only
            counts=torch.tensor(batch[COUNT]).to(device, non_blocking=True),
            num_real=int((batch[COUNT] != PADDING).sum()),
            num_global=int(batch[BATCH_ROWS][0]),
        )


def _train_epoch(
    ddp_model: nn.Module, fit: Fit, batches: Iterable[DeviceBatch], generator: torch.Generator
) -> tuple[float, int]:
    """One pass over this worker's rows; mean loss over them and their number."""
    ddp_model.train()
    num_workers = ray.train.get_context().get_world_size()
    loss_sum = torch.zeros(())
    num_images = 0
    for batch in batches:
        logits = ddp_model(augment(batch.images, generator))
        loss = F.cross_entropy(logits, batch.counts, ignore_index=PADDING, reduction="sum")
        fit.optimizer.zero_grad(set_to_none=True)
        # DDP averages over the workers; so this is the mean over the rows of the global batch, however it is shared.
        (loss * num_workers / batch.num_global).backward()
        nn.utils.clip_grad_norm_(ddp_model.parameters(), max_norm=1.0)
        fit.optimizer.step()
        fit.schedule.step()
        # Added up on the device: reading it here would wait for the GPU at every step.
        loss_sum = loss_sum.to(loss.device) + loss.detach()
        num_images += batch.num_real
    return float(loss_sum) / max(1, num_images), num_images


@torch.inference_mode()
def _validate(model: nn.Module, batches: Iterable[DeviceBatch], num_classes: int) -> CountTally:
    model.eval()
    tally = CountTally.empty(num_classes)
    for batch in batches:
        real = batch.counts != PADDING
        if batch.num_real:
            tally = tally + CountTally.of(model(batch.images[real]), batch.counts[real])
    return tally


def _all_reduce(tally: CountTally, device: torch.device) -> CountTally:
    """The tally of all workers together."""
    if not torch.distributed.is_initialized():
        return tally
    vector = tally.to_vector().to(device)
    torch.distributed.all_reduce(vector)
    return CountTally.from_vector(vector)


def _epoch_metrics(epoch: int, train_loss: float, tally: CountTally) -> dict[str, float | int]:
    """The figures of one epoch, finite even if the training diverged."""
    summary = tally.summary()
    val_nll = summary["nll"] if math.isfinite(summary["nll"]) else DIVERGED
    return {
        "epoch": epoch,
        "train_loss": train_loss if math.isfinite(train_loss) else DIVERGED,
        "val_nll": val_nll,
        **{f"val_{name}": summary[name] for name in ("accuracy", "within_one", "rmse", "mae", "num_images")},
    }


def _report(metrics: dict[str, Any], fit: Fit) -> None:
    """Report the epoch; rank 0 adds the checkpoint. A barrier over all workers."""
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp) / "checkpoint"
        save_checkpoint(folder, fit.model, fit.recipe, metrics)
        state = {
            "optimizer": fit.optimizer.state_dict(),
            "schedule": fit.schedule.state_dict(),
            "epoch": metrics["epoch"],
        }
        torch.save(state, folder / RESUME_FILE)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _resume(fit: Fit) -> int:
    """Load the newest checkpoint of this run, if it was restarted; the epoch to begin with, from 1.

    The epoch of that checkpoint is reported once more: the kill may have come before a search heard of it.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 1
    with checkpoint.as_directory() as folder:
        load_weights(Path(folder), fit.model)
        state = torch.load(Path(folder) / RESUME_FILE, map_location="cpu", weights_only=True)
        metrics = json.loads((Path(folder) / METRICS_FILE).read_text())
    fit.optimizer.load_state_dict(state["optimizer"])
    fit.schedule.load_state_dict(state["schedule"])
    _report(metrics, fit)
    return int(state["epoch"]) + 1
