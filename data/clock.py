"""Which epoch a training is in, for the tasks that fetch its rows.

A Ray Data plan is made once and executed anew each epoch, without a word of which one it is, nor after a restart of
where to go on. So the training says it here, and the tasks ask here.
"""

from dataclasses import dataclass
from typing import Any, Self

import ray

from data.session import beside_driver


@dataclass(frozen=True, slots=True)
class EpochClock:
    """Where a training is. Can be sent to any task; lives as long as one copy does."""

    _actor: Any
    _training: str

    @classmethod
    def start(cls) -> Self:
        """A clock on the running Ray."""
        return cls(ray.remote(**beside_driver())(_Clock).remote(), "")

    def of(self, training: str) -> Self:
        """The hand of one training; a clock serves any number of them with a single process."""
        return type(self)(self._actor, training)

    def set(self, epoch: int, start: int) -> None:
        """Say what is read next: an epoch, from 1, from a position in its order. Waits until tasks would see it."""
        ray.get(self._actor.set.remote(self._training, epoch, start))

    def read(self) -> tuple[int, int]:
        """Epoch and position; (1, 0) before they are set."""
        where: tuple[int, int] = ray.get(self._actor.read.remote(self._training))
        return where


class _Clock:
    def __init__(self) -> None:
        self._where: dict[str, tuple[int, int]] = {}

    def set(self, training: str, epoch: int, start: int) -> None:
        self._where[training] = (epoch, start)

    def read(self, training: str) -> tuple[int, int]:
        return self._where.get(training, (1, 0))
