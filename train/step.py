"""One optimiser step, from this worker's part of a global batch."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from bintally.batch import BATCH_ROWS, COUNT, ID, IMAGE, NEXT_POSITION, PADDING, ArrayBatch
from bintally.loss import row_losses
from train.augment import augment, draw
from train.monitor import Monitor
from train.state import Fit
from train.workers import Worker, without_sync


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """This worker's part of a global batch, on its device."""

    images: UInt8[Tensor, "batch height width 3"]
    counts: Int64[Tensor, " batch"]
    """PADDING where a row only fills up the batch."""
    ids: list[str]
    """Of the rows that are not padding."""
    num_global: int
    """Rows that are not padding, over all workers."""
    next_position: int
    """Where in the epoch's order of ids the next batch begins."""


def on_device(batches: Iterable[ArrayBatch], device: torch.device, monitor: Monitor) -> Iterator[DeviceBatch]:
    """Copy batches to a device as they come."""
    for batch in batches:
        with monitor.phase("copy"):
            images, counts = (_copy(batch[name], device).to(device, non_blocking=True) for name in (IMAGE, COUNT))
        yield DeviceBatch(
            images=images,
            counts=counts,
            ids=batch[ID][batch[COUNT] != PADDING].tolist(),
            num_global=int(batch[BATCH_ROWS][0]),
            next_position=int(batch[NEXT_POSITION][0]),
        )


def _copy(values: np.ndarray, device: torch.device) -> Tensor:
    """A copy, since Ray's arrays are read-only; for a GPU in pinned memory, from where it fetches by itself."""
    if device.type != "cuda":
        return torch.tensor(values)
    pinned = torch.empty(values.shape, dtype=torch.from_numpy(values[:0].copy()).dtype, pin_memory=True)
    pinned.numpy()[:] = values
    return pinned


@dataclass(frozen=True, slots=True)
class Stepper:
    """Takes steps of one epoch."""

    fit: Fit
    model: nn.Module
    """What DDP made of the fit's model."""
    worker: Worker
    monitor: Monitor
    weights: Float[Tensor, " classes"] | None
    """Factor of the rows of each count."""
    epoch: int

    def step(self, batch: DeviceBatch, number: int) -> tuple[Tensor, Tensor]:
        """Summed loss of this worker's rows, and the norm of the gradient before clipping; both stay on the device.

        What is drawn at random depends on seed, epoch and number alone, so that a restarted training draws the same.
        Augmentation is the same on any number of workers; dropout differs, as do batch norms' statistics on CPUs.

        Args:
            batch: what to learn from.
            number: of the global batch in its epoch, from 0.
        """
        fit, monitor = self.fit, self.monitor
        images = self._varied(batch.images, number)
        torch.manual_seed(self._seed(number) + self.worker.rank)  # for networks with dropout
        fit.optimizer.zero_grad(set_to_none=True)
        size = fit.recipe.compute.micro_batch_size or len(images)
        loss_sum = torch.zeros((), device=images.device)
        for start in range(0, len(images), size):
            is_last = start + size >= len(images)
            part = slice(start, start + size)
            with nullcontext() if is_last else without_sync(self.model):
                loss_sum += self._accumulate(images[part], batch.counts[part], batch.num_global)
        monitor.after_backward()
        with monitor.phase("optimizer"):
            norm = nn.utils.clip_grad_norm_(fit.model.parameters(), fit.recipe.optim.clip_norm or float("inf"))
            fit.optimizer.step()
            if fit.average:
                fit.average.update(fit.model)
        monitor.after_step(loss_sum, len(batch.ids))
        return loss_sum, norm

    def _accumulate(self, images: Tensor, counts: Tensor, num_global: int) -> Tensor:
        """Add the gradients of some rows; their summed loss."""
        recipe = self.fit.recipe
        with self.monitor.phase("forward"):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.compute.precision == "bf16"):
                outputs = self.model(images)
            loss = row_losses(outputs, counts, self.fit.model.head, recipe.loss, self.weights).sum()
        with self.monitor.phase("backward"):
            # DDP averages over the workers; so this is the mean over the rows of the global batch, whoever has them.
            (loss * self.worker.num_workers / num_global).backward()
        return loss.detach()

    def _varied(self, images: Tensor, number: int) -> Tensor:
        """The photos as they are trained on; the same whichever worker has them."""
        recipe, local = self.fit.recipe, len(images)
        generator = torch.Generator().manual_seed(self._seed(number))
        draws = draw(recipe.augment, local * self.worker.num_workers, generator)
        varied = augment(images, draws.rows(slice(self.worker.rank * local, (self.worker.rank + 1) * local)))
        size = recipe.size_in(self.epoch)
        return varied if size == varied.shape[1] else shrink_photos(varied, size)

    def _seed(self, number: int) -> int:
        entropy = np.random.SeedSequence((self.fit.recipe.seed, self.epoch, number))
        return int(entropy.generate_state(1, np.uint64)[0]) >> 2  # torch takes 63 bits; ranks are added


def shrink_photos(images: UInt8[Tensor, "batch height width 3"], size: int) -> UInt8[Tensor, "batch {size} {size} 3"]:
    """Photos of another size, antialiased."""
    pixels = images.permute(0, 3, 1, 2).float()
    smaller = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return smaller.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
