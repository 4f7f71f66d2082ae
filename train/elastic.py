"""Trainings with as many workers as the cluster has room for (--min-workers), whatever nodes are lost or come.

Ray Train's elastic policy decides, from the resources that Ray reserves for a training on the nodes that are there. It
is told here what it does not know: that workers share a batch equally, that data tasks need a CPU, that a node which
is drained goes, and that a group which is made larger loses all since its newest checkpoint.
"""

import os
import time
from typing import Any, Final

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer  # ray.train's, whose annotations are Train v1's

from train.news import News
from train.turns import DATA_CPUS

RESIZE_S: Final = 60.0  # a group lives for at least so long before it is made larger: its start takes some 20
START_S: Final = 20  # for workers whose places are known to be free; a node that died is noticed after some 15
_ASK_S: Final = 5.0
_LOOK_S: Final = 1.0

_Reserved = dict[str, dict[str, float]]  # resources by node


class ElasticTrainer(TorchTrainer):
    """A TorchTrainer with a policy that is none of Ray's own."""

    def __init__(self, *args: Any, policy: "ElasticPolicy", **kwargs: Any) -> None:  # noqa: ANN401  # TorchTrainer's
        """As TorchTrainer, and how many workers it has."""
        super().__init__(*args, **kwargs)
        self._policy = policy

    def _initialize_and_run_controller(self, **kwargs: Any) -> Any:  # noqa: ANN401  # Ray's
        return super()._initialize_and_run_controller(**kwargs | {"scaling_policy": self._policy})


class ElasticPolicy(ElasticScalingPolicy):
    """How many workers a training has, now that so many nodes are there. Lives in Train's controller."""

    def __init__(self, scaling_config: ScalingConfig, *, global_batch_size: int, name: str, news: News | None) -> None:
        """For one training.

        Args:
            scaling_config: with the least and the largest number of workers.
            global_batch_size: that they share equally.
            name: of the training.
            news: hears of another number of workers.
        """
        super().__init__(scaling_config)
        self._batch_size, self._name, self._news = global_batch_size, name, news
        self._told = scaling_config.max_workers

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Called by Train once; the controller has a process of its own."""
        os.environ[WORKER_GROUP_START_TIMEOUT_S_ENV_VAR] = str(START_S)
        super().after_controller_start(train_run_context)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Called by Train, again at once as long as nothing can start."""
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            self._tell(0)
            time.sleep(_LOOK_S)
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """Called by Train each time that it has heard from the workers."""
        running = worker_group_state.num_workers
        self._tell(running)
        report = worker_group_status.worker_statuses[0].training_report
        if report is None or report.checkpoint is None:
            self._maybe_send_resource_request()  # type: ignore[no-untyped-call]
            return NoopDecision()
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        return NoopDecision() if isinstance(decision, ResizeDecision) and decision.num_workers < running else decision

    def _tell(self, running: int) -> None:
        if running != self._told and self._news is not None:
            least, most = self.scaling_config.min_workers, self.scaling_config.max_workers
            now = (
                f"goes on with {running} of {most} workers"
                if running
                else f"waits for nodes with room for {least} workers"
            )
            self._news.put(f"{self._name}: {now}")
        self._told = running

    def _get_reserved_resources(self) -> _Reserved | None:
        # Ray's own asks what the coordinator saw up to 20 s ago, dead nodes among it.
        reserved = self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
        try:
            answer: _Reserved = ray.get(reserved, timeout=_ASK_S)
        except RayError:
            return None
        return answer

    def _count_possible_workers(self, reserved_resources: _Reserved) -> int:
        cpus = cpus_that_stay()
        reserved = {node: resources for node, resources in reserved_resources.items() if node in cpus}
        possible = super()._count_possible_workers(reserved)
        if not self.scaling_config.use_gpu:
            possible = min(possible, int(sum(cpus.values())) - DATA_CPUS)
        return most_workers(self._batch_size, possible)


def cpus_that_stay() -> dict[str, float]:
    """CPUs of each node that is there and not about to go."""
    draining = ray._private.state.state.get_draining_nodes()  # noqa: SLF001  # nothing public
    alive = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]
    return {node["NodeID"]: node["Resources"].get("CPU", 0.0) for node in alive}


def most_workers(global_batch_size: int, possible: int) -> int:
    """The most workers, of so many that are possible, that share a batch equally; 0 if none is possible."""
    return next((number for number in range(possible, 0, -1) if global_batch_size % number == 0), 0)
