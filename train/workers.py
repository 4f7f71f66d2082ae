"""What the workers of a training say to each other, besides DDP's gradients. Every worker must call these alike."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from bintally.model import Counter


@dataclass(frozen=True, slots=True)
class Worker:
    """This worker among the others."""

    rank: int
    num_workers: int
    device: torch.device

    @classmethod
    def here(cls) -> "Worker":
        """The one in which this is called."""
        context = ray.train.get_context()
        return cls(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())

    def wrap(self, model: Counter) -> nn.Module:
        """The model for training: DDP among several workers. Parameters that are frozen now must stay so."""
        wrapped: nn.Module = ray.train.torch.prepare_model(model)
        return wrapped

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all workers."""
        return self._reduce(values, distributed.ReduceOp.SUM)

    def any(self, flag: bool) -> bool:
        """Whether any worker raises the flag."""
        return bool(self._reduce(torch.tensor(flag, dtype=torch.uint8), distributed.ReduceOp.MAX))

    def gather(self, value: list[Any]) -> list[Any]:
        """The lists of all workers, one after the other."""
        if self.num_workers == 1:
            return value
        parts: list[Any] = [None] * self.num_workers
        distributed.all_gather_object(parts, value)
        return [one for part in parts for one in part]

    def share_buffers(self, model: nn.Module) -> None:
        """Take rank 0's buffers, as batch norms' statistics: in the last step of an epoch, the workers' drift apart."""
        if self.num_workers > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, src=0)

    def _reduce(self, values: Tensor, how: Any) -> Tensor:  # noqa: ANN401  # ReduceOp's members have no public type
        if self.num_workers == 1:
            return values
        on_device = values.to(self.device)  # NCCL takes nothing else
        distributed.all_reduce(on_device, op=how)
        return on_device.to(values.device)


def without_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Gradients stay on this worker until a backward pass outside."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()
