"""Trainings of several commands in one cluster start in turn, so that a CPU stays free for what reads their rows.

Each search counts the whole cluster. Were the workers of two to take all its CPUs, the data tasks that these workers
wait for would never get one. So a group of workers starts only if it leaves a CPU free of all groups; and one group
at a time, since others would count the same CPUs before it has taken them.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import ray
import yaml
from ray.actor import ActorHandle
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.worker_group import WorkerGroupContext
from ray.util.placement_group import placement_group_table

from data.session import SHARED
from train.news import News

CLUSTER_FILE: Final = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves its cluster.yaml on the head, which jobs and what drives trainings run on."""
DATA_CPUS: Final = 1  # a search leaves one free for each training it runs; without any, they wait for ever

_TURN: Final = {"node:__internal_head__": 0.6}  # of the one that every cluster has: two do not fit
_LOOK_S: Final = 0.5
_TELL_S: Final = 30.0  # a wait shorter than that is not worth a line


class StartInTurn(WorkerGroupCallback):
    """Holds a group of workers back until its CPUs and the data tasks' are free; for workers without GPUs.

    Workers with GPUs reserve no CPU. In a Ray of the command's own, the search itself counts what runs at once.
    """

    def __init__(self, *, name: str, news: News | None, patience_s: float = math.inf) -> None:
        """For the workers of one training.

        Args:
            name: of the training.
            news: hears of a long wait.
            patience_s: after which the number of workers is decided anew: by then the cluster may have fewer CPUs.
        """
        self._name, self._news, self._patience_s = name, news, patience_s
        self._turn: ActorHandle[Any] | None = None

    @contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        """Called by Train around the start of a group."""
        try:
            yield
        finally:
            self._end()

    def before_worker_group_start(self, worker_group_context: WorkerGroupContext) -> None:
        """Called by Train before a group takes its CPUs; that of before has given back its own.

        Raises:
            WorkerGroupStartupTimeoutError: the patience is over; Train goes on by asking for the number of workers.
        """
        if not os.environ.get(SHARED):
            return
        # Left to Ray, it would have to fit into the placement group of the trial that this runs in.
        turn: Any = ray.remote(num_cpus=0, resources=_TURN, scheduling_strategy="DEFAULT")(_Turn).remote()
        self._turn = turn
        begun, num_workers = turn.begin.remote(), worker_group_context.num_workers
        needed = num_workers + DATA_CPUS
        self._wait(lambda: bool(ray.wait([begun], timeout=0)[0]), num_workers)
        self._wait(lambda: needed <= cluster_resources().get("CPU", 0) - cpus_of_groups(), num_workers)

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:  # noqa: ARG002  # Ray's
        """Called by Train when the workers have their places: others may count them now."""
        self._end()
        return {}

    def _wait(self, may_begin: Callable[[], bool], num_workers: int) -> None:
        begun_s, told = time.monotonic(), False
        while not may_begin():
            if time.monotonic() - begun_s > self._patience_s:
                raise WorkerGroupStartupTimeoutError(num_workers)
            if not told and self._news is not None and time.monotonic() - begun_s > _TELL_S:
                self._news.put(
                    f"{self._name} waits until {num_workers + DATA_CPUS} CPUs are free: other trainings use this"
                    " cluster, or nodes are missing"
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


def cluster_resources() -> dict[str, float]:
    """Totals of the running cluster, with the nodes that its autoscaler may still start."""
    running: dict[str, float] = ray.cluster_resources()
    planned = planned_resources(CLUSTER_FILE.expanduser()) if os.environ.get(SHARED) else {}
    return {name: max(running.get(name, 0), planned.get(name, 0)) for name in {*running, *planned}}


def planned_resources(path: Path) -> dict[str, float]:
    """Totals once the autoscaler has started all it may, by the cluster.yaml it goes by; none without that file.

    Ray has no call for this: 2.60 would tell what was reported to it, and its autoscaler reports nothing.
    """
    if not path.exists():
        return {}
    config = yaml.safe_load(path.read_text())
    head, most = config["head_node_type"], config["max_workers"]
    nodes = [
        one.get("resources", {})
        for name, one in config["available_node_types"].items()
        for _ in range(min(most, one.get("max_workers", most)))
        if name != head
    ]
    of_head = config["available_node_types"][head].get("resources", {})
    total: dict[str, float] = {}
    for name in {name for node in (of_head, *nodes) for name in node}:
        amounts = sorted((node.get(name, 0) for node in nodes), reverse=True)
        total[name] = float(of_head.get(name, 0) + sum(amounts[:most]))
    return total


class _Turn:
    """Has the turn while it lives; it ends with the training that it belongs to."""

    def begin(self) -> None:
        """Returns once it is there."""
