"""What each training worker runs, top to bottom: batches in, one report with a checkpoint per epoch out."""

import json
import math
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import ray.train
import ray.train.torch
import torch
from ray.data.collate_fn import NumpyBatchCollateFn
from torch import Tensor, nn
from torch.nn import functional as F

from bintally.batch import COUNT, IMAGE, ArrayBatch
from bintally.checkpoint import METRICS_FILE, load_weights, save_checkpoint
from bintally.config import Recipe, recipe_from_dict
from bintally.metrics import CountTally
from bintally.model import Counter, build_model
from train.augment import augment
from train.optim import build_optimizer, build_schedule

RESUME_FILE: Final = "resume.pt"  # optimiser state for Train's restarts; not part of the checkpoint that is served
DIVERGED: Final = 1e30  # ASHA never stops a trial that reports NaN, so a diverged loss is reported as this
SHUFFLE_ROWS: Final = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """What the loop needs to know."""

    recipe: Recipe
    num_train: int
    """Training rows over all workers; sets the length of the learning-rate schedule."""
    shuffle_locally: bool
    """Whether rows come in the same order each epoch and are to be shuffled on the worker."""

    def pack(self) -> dict[str, Any]:
        """As the plain dict that Ray sends to the workers."""
        return asdict(self)

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


class ToTensors(NumpyBatchCollateFn):
    """Photos and counts as tensors; ids are strings and stay behind. Ray moves the result to the device."""

    def __call__(self, batch: ArrayBatch) -> dict[str, Tensor]:  # type: ignore[override]  # Ray annotates a wider one
        """(batch, height, width, 3) uint8 and (batch,) int64."""
        return {name: torch.tensor(batch[name]) for name in (IMAGE, COUNT)}  # copies: Ray's arrays are read-only


def train_loop(values: dict[str, Any]) -> None:
    """Train on this worker's share of the rows; reports once per epoch."""
    config = LoopConfig.unpack(values)
    recipe = config.recipe
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    batch_size = recipe.optim.global_batch_size // context.get_world_size()
    num_steps = recipe.max_epochs * math.ceil(config.num_train / recipe.optim.global_batch_size)
    torch.manual_seed(recipe.seed)

    model = build_model(recipe.model, num_classes=recipe.data.num_classes).to(device)
    optimizer = build_optimizer(model, recipe.optim)
    schedule = build_schedule(optimizer, recipe.optim, num_steps=num_steps)
    fit = Fit(recipe, model, optimizer, schedule)
    first_epoch = _resume(fit)
    ddp_model = ray.train.torch.prepare_model(model)
    train_rows, val_rows = ray.train.get_dataset_shard("train"), ray.train.get_dataset_shard("val")

    for epoch in range(first_epoch, recipe.max_epochs + 1):
        started = time.monotonic()
        seed = recipe.seed * 1000 + epoch
        generator = torch.Generator().manual_seed(seed * 1000 + context.get_world_rank())  # each rank draws its own
        batches = train_rows.iter_torch_batches(
            batch_size=batch_size,
            collate_fn=ToTensors(),
            prefetch_batches=2,
            local_shuffle_buffer_size=SHUFFLE_ROWS if config.shuffle_locally else None,
            local_shuffle_seed=seed,
        )
        train_loss, num_images = _train_epoch(ddp_model, fit, batches, generator)
        train_s = time.monotonic() - started
        val_batches = val_rows.iter_torch_batches(batch_size=4 * batch_size, collate_fn=ToTensors(), prefetch_batches=2)
        tally = _all_reduce(_validate(ddp_model, val_batches, recipe.data.num_classes), device)
        metrics = _epoch_metrics(epoch, train_loss, tally) | {
            "lr": optimizer.param_groups[0]["lr"],
            "train_s": train_s,
            "epoch_s": time.monotonic() - started,
            "images_per_s": num_images * context.get_world_size() / train_s,
        }
        _report(metrics, fit)


def _train_epoch(
    ddp_model: nn.Module, fit: Fit, batches: Iterable[dict[str, Tensor]], generator: torch.Generator
) -> tuple[float, int]:
    """One pass over this worker's rows; mean loss over them and their number."""
    ddp_model.train()
    loss_sum = torch.zeros(())
    num_images = 0
    for batch in batches:
        logits = ddp_model(augment(batch[IMAGE], generator))
        loss = F.cross_entropy(logits, batch[COUNT])
        fit.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(ddp_model.parameters(), max_norm=1.0)
        fit.optimizer.step()
        fit.schedule.step()
        # Added up on the device: reading it here would wait for the GPU at every step.
        loss_sum = loss_sum.to(loss.device) + loss.detach() * len(batch[COUNT])
        num_images += len(batch[COUNT])
    return float(loss_sum) / max(1, num_images), num_images


@torch.inference_mode()
def _validate(model: nn.Module, batches: Iterable[dict[str, Tensor]], num_classes: int) -> CountTally:
    model.eval()
    tally = CountTally.empty(num_classes)
    for batch in batches:
        tally = tally + CountTally.of(model(batch[IMAGE]), batch[COUNT])
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
