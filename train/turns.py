"""Trainings of several commands in one cluster start in turn, so that a CPU stays free for what reads their rows.

Each search counts the whole cluster. Were the workers of two to take all its CPUs, the data tasks that these workers
wait for would never get one. So a group of workers starts only if it leaves a CPU free of all groups; and one group
at a time, since others would count the same CPUs before it has taken them.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import ray
from ray.actor import ActorHandle
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.placement_group import placement_group_table

from data.session import SHARED
from train.news import News

_TURN: Final = {"node:__internal_head__": 0.6}  # of the one that every cluster has: two do not fit
_LOOK_S: Final = 0.5
_TELL_S: Final = 30.0  # a wait shorter than that is not worth a line


class StartInTurn(WorkerGroupCallback):
    """Holds a group of workers back until its CPUs and the data tasks' are free; for workers without GPUs.

    Groups with GPUs ask for no CPU. In a Ray of the command's own, the search itself counts what runs at once.
    """

    def __init__(self, *, num_cpus: int, total_cpus: float, name: str, news: News | None) -> None:
        """A new one.

        Args:
            num_cpus: of the workers, and of the data tasks.
            total_cpus: of the cluster, with nodes that may still be started.
            name: of the training.
            news: hears of a long wait.
        """
        self._num_cpus, self._total_cpus = num_cpus, total_cpus
        self._name, self._news = name, news
        self._turn: ActorHandle[Any] | None = None

    @contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        """Called by Train around the start of a group."""
        if not os.environ.get(SHARED):
            yield
            return
        # Left to Ray, it would have to fit into the placement group of the trial that this runs in.
        turn: Any = ray.remote(num_cpus=0, resources=_TURN, scheduling_strategy="DEFAULT")(_Turn).remote()
        self._turn = turn
        try:
            begun = turn.begin.remote()
            self._wait(lambda: bool(ray.wait([begun], timeout=0)[0]))
            self._wait(lambda: self._num_cpus <= self._total_cpus - cpus_of_groups())
            yield
        finally:
            self._end()

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:  # noqa: ARG002  # Ray's
        """Called by Train when the workers have their places: others may count them now."""
        self._end()
        return {}

    def _wait(self, may_begin: Callable[[], bool]) -> None:
        begun_s, told = time.monotonic(), False
        while not may_begin():
            if not told and self._news is not None and time.monotonic() - begun_s > _TELL_S:
                self._news.put(
                    f"{self._name} waits until {self._num_cpus} CPUs are free: other trainings use this cluster, too"
                )
                told = True
            time.sleep(_LOOK_S)

    def _end(self) -> None:
        if self._turn is not None:
            ray.kill(self._turn)
            self._turn = None


def cpus_of_groups() -> float:
    """CPUs that are reserved for workers, of anyone's trainings."""
    groups: list[dict[str, Any]] = list(placement_group_table().values())
    return sum(
        float(bundle.get("CPU", 0))
        for group in groups
        if group["state"] not in ("PENDING", "REMOVED")
        for bundle in group["bundles"].values()
    )


class _Turn:
    """Has the turn while it lives; it ends with the training that it belongs to."""

    def begin(self) -> None:
        """Returns once it is there."""
