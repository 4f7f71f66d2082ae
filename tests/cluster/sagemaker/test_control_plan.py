"""What is asked of SageMaker for a plan, and which answers of an endpoint are believed."""

import sys
import threading
import time
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from bintally.errors import ConfigError
from serve.aws.calls import Aws
from serve.aws.control import _call_whole
from serve.aws.images import ray_image
from serve.aws.invoke import find_fault
from serve.aws.plan import DeployPlan

PLAN = DeployPlan(
    name="bins",
    kind="realtime",
    sha256="0" * 64,
    version="0" * 12,
    bucket="kept",
    role="arn:aws:iam::123456789012:role/bins",
    image="image",
    instance_type="ml.m5.xlarge",
    num_instances=2,
    memory_mb=3072,
    max_concurrency=5,
)
GOOD: dict[str, Any] = {
    "count": 1,
    "probabilities": {"0": 0.25, "1": 0.5, "2": 0.25},
    "model": {"version": "0" * 12},
}


def test_names_say_what_is_asked_for() -> None:
    again, larger = replace(PLAN), replace(PLAN, num_instances=3)
    other = replace(PLAN, sha256="1" * 64)
    assert (again.model, again.config) == (PLAN.model, PLAN.config)
    assert larger.model == PLAN.model
    assert larger.config["EndpointConfigName"] != PLAN.config["EndpointConfigName"]
    assert other.model["ModelName"] != PLAN.model["ModelName"]
    assert other.config["EndpointConfigName"] != PLAN.config["EndpointConfigName"]


@pytest.mark.parametrize("kind", ["ml.g5.xlarge", "ml.gr6.4xlarge", "ml.p4d.24xlarge", "ml.g5g.xlarge"])
def test_gpus_that_nothing_would_count_on_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"instance_type {kind} has GPUs"):
        replace(PLAN, instance_type=kind)


def test_the_container_knows_what_sagemaker_lets_through() -> None:
    serverless = replace(PLAN, kind="serverless")
    limits = [plan.model["PrimaryContainer"]["Environment"]["BINTALLY_MAX_BODY_BYTES"] for plan in (PLAN, serverless)]
    assert limits == [str(6 * 1024 * 1024), str(4 * 1024 * 1024)]


@pytest.mark.parametrize("name", ["Bins", "a" * 41, "a--b", "-a", "a-", "a_b", ""])
def test_names_that_aws_or_its_policies_would_not_take(name: str) -> None:
    with pytest.raises(ConfigError, match="name must be"):
        replace(PLAN, name=name)


@pytest.mark.parametrize(
    ("region", "instance", "image"),
    [
        ("eu-west-1", "ml.m5.xlarge", "763104351884.dkr.ecr.eu-west-1.amazonaws.com/ray:serve-ml-sagemaker-cpu-v1.4"),
        (
            "eu-south-1",
            "ml.m5.xlarge",
            "692866216735.dkr.ecr.eu-south-1.amazonaws.com/ray:serve-ml-sagemaker-cpu-v1.4",
        ),
        (
            "cn-north-1",
            "ml.c5.large",
            "727897471807.dkr.ecr.cn-north-1.amazonaws.com.cn/ray:serve-ml-sagemaker-cpu-v1.4",
        ),
    ],
)
def test_the_table_of_images(region: str, instance: str, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sagemaker", None)  # not installed
    assert ray_image(region, instance) == image


def test_the_extra_is_asked_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def retrieve(*name: str, **values: str) -> str:
        asked.append((name, values))
        return "from the extra"

    for module, members in (
        ("sagemaker", {}),
        ("sagemaker.core", {}),
        ("sagemaker.core.image_uris", {"retrieve": retrieve}),
    ):
        made = ModuleType(module)
        vars(made).update(members)
        monkeypatch.setitem(sys.modules, module, made)
    sys.modules["sagemaker.core"].image_uris = sys.modules["sagemaker.core.image_uris"]  # type: ignore[attr-defined]
    assert ray_image("eu-west-1", "ml.m5.xlarge") == "from the extra"
    assert asked == [(("ray-serve",), {"region": "eu-west-1", "version": "1.4", "instance_type": "ml.m5.xlarge"})]


def test_a_right_answer_is_believed() -> None:
    assert find_fault(GOOD, "0" * 12) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": 2}, "not the most probable"),
        ({"count": None}, "no count"),
        ({"probabilities": {"0": 0.25, "1": 0.5}}, "probabilities"),
        ({"probabilities": {"0": -0.5, "1": 1.5}}, "probabilities"),
        ({"probabilities": {"0": float("nan"), "1": 1.0}}, "probabilities"),
        ({"probabilities": {}}, "probabilities"),
        ({"model": {"version": "1" * 12}}, "111111111111 answers"),
        ({"model": None}, "model"),
    ],
)
def test_a_wrong_answer_is_not(change: dict[str, Any], says: str) -> None:
    fault = find_fault(GOOD | change, "0" * 12)
    assert fault is not None
    assert says in fault


def test_a_signal_as_a_call_begins_leaves_nothing_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the call would make something after the undo has looked."""
    made: list[str] = []

    class SlowAws(Aws):
        def call(self, service: str, operation: str, **arguments: object) -> dict[str, Any]:
            time.sleep(0.2)
            made.append(f"{service}.{operation}")
            return dict(arguments)

    def start_and_hear_ctrl_c(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    start = threading.Thread.start
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_and_hear_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            _call_whole(SlowAws("us-east-1"), "update_endpoint")
    before = made.copy()
    time.sleep(0.5)
    assert made == before
