"""What the workers of a training say to each other, besides DDP's gradients. Every worker must call these alike."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import ray.train
import ray.train.torch
import torch
from ray.train.v2._internal.execution.context import get_train_context
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from bintally.model import Counter
from train.news import News

_ASK_S: Final = 2.0  # between two questions; each costs a call to an actor, for which all workers wait
_DRY_S: Final = 10.0  # without a batch, after a notice: the data tasks of all workers have stopped


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


class Notice:
    """Hears that a node of this training is to be taken away (train/spot.py), from Ray Train's own watch."""

    def __init__(self, worker: Worker, news: News | None, name: str) -> None:
        """For one worker, which asks from now on.

        Args:
            worker: that asks.
            news: hears of it from rank 0.
            name: of the training.
        """
        self._worker, self._news, self._name = worker, news, name
        self._asked = time.monotonic()
        self._heard = False

    def came(self) -> bool:
        """Whether it is news that a node goes; the same on all workers, and true once."""
        now = time.monotonic()
        if self._heard or not self._worker.any(self._worker.rank == 0 and now - self._asked >= _ASK_S):
            return False
        self._asked = now
        return self._ask()

    def in_wait(self, store: Callable[[], None]) -> Callable[[float], None]:
        """What a worker does while it waits for a batch, by the seconds so far: ask as `came` does, and store if so.

        A node that goes takes no more data tasks. If there is no other one, all workers run dry at the same batch,
        since a task makes the parts of all. Were one of them to step on all the same, the others would wait for it here
        and it for them in its step, until Train starts all of them again when the node is gone.
        """

        def ask(waited_s: float) -> None:
            told = get_train_context().preemption_context.preemption_info  # to this worker alone: costs nothing
            if told is not None and not self._heard and waited_s >= _DRY_S and self._ask():
                store()

        return ask

    def _ask(self) -> bool:
        """What rank 0 knows, once all workers ask."""
        self._heard = ray.train.get_preemption_info() is not None
        if self._heard and self._worker.rank == 0 and self._news is not None:
            self._news.put(f"{self._name}: a node is taken away; a checkpoint is stored before")
        return self._heard


def without_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Gradients stay on this worker until a backward pass outside."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()
