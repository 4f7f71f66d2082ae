"""How many workers a training gets, by the nodes that are there."""

from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.config import ScalingConfig

from train.elastic import ElasticPolicy, most_workers


class Policy(ElasticPolicy):
    """With a cluster that is told: CPUs by node, of which Ray has reserved all."""

    def __init__(self, cpus: dict[str, float], *, batch: int = 16, least: int = 1, most: int = 4) -> None:
        scaling = ScalingConfig(
            num_workers=(least, most), resources_per_worker={"CPU": 1}, elastic_resize_monitor_interval_s=0
        )
        self.news: SimpleQueue[str] = SimpleQueue()
        super().__init__(scaling, global_batch_size=batch, name="train", news=self.news)
        self.cpus = cpus

    def _maybe_send_resource_request(self) -> None:
        pass

    def _get_reserved_resources(self) -> dict[str, dict[str, float]]:
        return {node: {"CPU": number} for node, number in self.cpus.items()}


@pytest.fixture(autouse=True)
def _a_told_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.elastic._LOOK_S", 0.0)


def start_of(policy: Policy, monkeypatch: pytest.MonkeyPatch, *going: str) -> int | None:
    """Workers that a group begins with; None if it waits."""
    staying = {node: number for node, number in policy.cpus.items() if node not in going}
    monkeypatch.setattr("train.elastic.cpus_that_stay", lambda: staying)
    decision = policy.make_decision_for_non_running_worker_group()
    return decision.num_workers if isinstance(decision, ResizeDecision) else None


def heard_from(policy: Policy, running: int, monkeypatch: pytest.MonkeyPatch, *, stored: bool) -> int | None:
    """Workers that a running group is changed to when it has stored a checkpoint, or has not; None leaves it."""
    monkeypatch.setattr("train.elastic.cpus_that_stay", lambda: policy.cpus)
    workers: Any = [None] * running
    handle: Any = None
    state = WorkerGroupState(start_time=0.0, placement_group_handle=handle, workers=workers, sync_actor=handle)
    report = SimpleNamespace(checkpoint="stored") if stored else None
    status: Any = {rank: SimpleNamespace(training_report=report) for rank in range(running)}
    decision = policy.make_decision_for_running_worker_group(state, WorkerGroupPollStatus(worker_statuses=status))
    return decision.num_workers if isinstance(decision, ResizeDecision) else None


@pytest.mark.parametrize(
    ("batch", "possible", "number"), [(64, 4, 4), (64, 3, 2), (6, 5, 3), (7, 6, 1), (16, 0, 0), (1, 8, 1)]
)
def test_the_most_workers_that_share_a_batch_equally(batch: int, possible: int, number: int) -> None:
    assert most_workers(batch, possible) == number


@pytest.mark.parametrize(
    ("cpus", "workers"),
    [
        ({"a": 2.0, "b": 3.0}, 4),
        ({"a": 8.0, "b": 8.0}, 4),
        ({"a": 4.0}, 2),  # three are possible beside the data tasks' CPU, and do not share 16 rows equally
        ({"a": 2.0}, 1),
        ({"a": 1.0}, None),
        ({}, None),
    ],
)
def test_a_group_has_as_many_workers_as_leave_a_cpu_to_data_tasks(
    cpus: dict[str, float], workers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start_of(Policy(cpus), monkeypatch) == workers


def test_fewer_than_the_least_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_of(Policy({"a": 2.0}, least=2), monkeypatch) is None


def test_a_node_that_goes_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_of(Policy({"a": 2.0, "b": 3.0}), monkeypatch, "a") == 2


def test_a_group_grows_when_nothing_is_lost_by_it_and_never_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy({"a": 5.0})
    assert heard_from(policy, 2, monkeypatch, stored=False) is None
    assert heard_from(policy, 2, monkeypatch, stored=True) == 4
    assert heard_from(policy, 4, monkeypatch, stored=True) is None
    policy.cpus = {"a": 2.0}
    assert heard_from(policy, 4, monkeypatch, stored=True) is None
    told = [policy.news.get_nowait() for _ in range(policy.news.qsize())]
    assert told == ["train: goes on with 2 of 4 workers", "train: goes on with 4 of 4 workers"]


def test_what_cannot_be_asked_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Policy, "_get_reserved_resources", lambda _: None)
    policy = Policy({"a": 5.0})
    assert isinstance(policy.make_decision_for_non_running_worker_group(), NoopDecision)
    assert heard_from(policy, 2, monkeypatch, stored=True) is None
