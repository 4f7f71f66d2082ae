"""What a training does about memory: how a lack of it shows, and how many photos at once fit."""

from dataclasses import replace
from typing import Final

import torch

from bintally.errors import RunError
from bintally.loss import row_losses
from train.state import Fit
from train.workers import Worker

_SPARE_COPIES: Final = 3  # of the weights: two averages of AdamW, and DDP's buckets of gradients


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted, on a GPU or a CPU."""
    # torch has no class of its own for CPUs
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator: can't allocate" in str(
        error
    )


def with_fitting_batches(fit: Fit, worker: Worker) -> Fit:
    """The fit with micro-batches that every worker has memory for: as many photos at once as fit, halved until they do.

    All workers must call it, before the model is wrapped.

    Raises:
        RunError: not even one photo fits.
    """
    recipe = fit.recipe
    size = recipe.compute.micro_batch_size or recipe.optim.global_batch_size // worker.num_workers
    while worker.any(not _fits(fit, size, worker.device)):
        if size == 1:
            raise RunError("not even one photo at once fits into memory: choose a smaller image_size or backbone")
        size = (size + 1) // 2
    return replace(fit, recipe=replace(recipe, compute=replace(recipe.compute, micro_batch_size=size)))


def _fits(fit: Fit, num_photos: int, device: torch.device) -> bool:
    """Whether a step on so many photos of the largest size ends; leaves the model as it was."""
    buffers = {name: buffer.clone() for name, buffer in fit.model.named_buffers()}  # batch norm's statistics
    try:
        _try_step(fit, num_photos, device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        fit.optimizer.zero_grad(set_to_none=True)
        for name, buffer in fit.model.named_buffers():
            buffer.copy_(buffers[name])
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def _try_step(fit: Fit, num_photos: int, device: torch.device) -> None:
    size = fit.recipe.data.image_size
    spare = [torch.empty_like(one) for one in fit.model.parameters() for _ in range(_SPARE_COPIES)]
    images = torch.zeros(num_photos, size, size, 3, dtype=torch.uint8, device=device)
    counts = torch.zeros(num_photos, dtype=torch.int64, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=fit.recipe.compute.precision == "bf16"):
        outputs = fit.model(images)
    row_losses(outputs, counts, fit.model.head, fit.recipe.loss).sum().backward()
    del spare  # held until here
