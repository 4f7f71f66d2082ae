"""The state machine as a document: what AWS would refuse, and where a failure could get lost."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator
from cfnlint import api as cfnlint

from bintally.errors import ConfigError
from serve.aws import states
from serve.aws.bundle import RAY_IMAGE_ENVIRONMENT
from serve.aws.commands import Deploy
from serve.aws.states_args import StateMachineArgs
from serve.container.app import MAX_BODY_VARIABLE

ROOT = Path(__file__).parents[3]
COMMITTED = ROOT / "serve/aws/state_machine.json"
FLAGS = {
    "bucket": "bins",
    "endpoint": "bin-counter",
    "role": "arn:aws:iam::123456789012:role/bintally",
    "function": "arn:aws:lambda:us-east-1:123456789012:function:pipeline",
    "topic": "arn:aws:sns:us-east-1:123456789012:told",
    "training_image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/bintally-training:1",
    "image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/bintally:1",
    "source": "s3://bins",
    "recipe": "smoke",
}
State = dict[str, Any]


def machine(**others: Any) -> dict[str, State]:  # noqa: ANN401  # fields of every type
    """The states of one with everything filled in."""
    made: dict[str, State] = states.definition(StateMachineArgs(**{**FLAGS, **others}))["States"]
    return made


def nexts(state: State) -> Iterator[str]:
    """Where a state leads to."""
    for place in (state, *state.get("Choices", ()), *state.get("Catch", ())):
        yield from (place[name] for name in ("Next", "Default") if name in place)


def flags_of(values: dict[str, str]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", value)]


VARIANTS = [{}, {"engine": "moto"}, {"kind": "serverless"}, {"training_instance_type": "ml.m5.xlarge"}]


def test_the_committed_file_is_what_the_command_writes() -> None:
    assert json.loads(COMMITTED.read_text()) == states.definition(StateMachineArgs())


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_state_is_reached_and_every_end_is_one(variant: dict[str, str]) -> None:
    made = machine(**variant)
    seen, waiting = set(), ["Begin"]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += nexts(made[name])
    assert seen == set(made)
    ends = {name: state["Type"] for name, state in made.items() if not list(nexts(state))}
    assert ends == {"Kept": "Succeed", "Deployed": "Succeed", "Failed": "Fail"}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_no_failure_gets_lost_and_throttling_is_waited_for(variant: dict[str, str]) -> None:
    """Before the model is deployed every failure rolls back; after that, and on the way back, it is told at least."""
    made = machine(**variant)
    tasks = {name: state for name, state in made.items() if state["Type"] == "Task"}
    caught = {name: [catch["Next"] for catch in state["Catch"]] for name, state in tasks.items()}
    assert all(catch["ErrorEquals"] == ["States.ALL"] for state in tasks.values() for catch in state["Catch"])
    told = {"NotifyKept": ["Failed"], "NotifyDeployed": ["Failed"], "NotifyFailed": ["Failed"]}
    told["CleanUp"] = ["NotifyDeployed"]  # the new model serves
    back = {name: ["RollBack"] for name in tasks if name not in {*told, "RollBack"}}
    assert caught == back | told | {"RollBack": ["NotifyFailed"]}
    for name, state in tasks.items():
        waited_for = {error for retry in state["Retry"] for error in retry["ErrorEquals"]}
        assert waited_for & {"ThrottlingException", "Lambda.TooManyRequestsException"}, name
        assert "States.ALL" not in waited_for


def filled(template: Any) -> Any:  # noqa: ANN401  # JSON has every shape
    """Parameters as a service would see them, with a name for whatever comes from the state."""
    if isinstance(template, dict):
        return {
            key.removesuffix(".$"): "a-name" if key.endswith(".$") else filled(value) for key, value in template.items()
        }
    return [filled(one) for one in template] if isinstance(template, list) else template


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_request_is_one_that_the_service_knows(variant: dict[str, str]) -> None:
    """By the model of the API that botocore carries: names, types, limits."""
    session = botocore.session.get_session()
    for name, state in machine(**variant).items():
        if state["Type"] == "Task" and "lambda" not in state["Resource"]:
            *_, service, action = state["Resource"].removesuffix(".sync").split(":")
            model = session.get_service_model(service)
            operation = model.operation_model(action[0].upper() + action[1:])
            report = ParamValidator().validate(filled(state["Parameters"]), operation.input_shape)
            assert not report.has_errors(), (name, report.generate_report())


def test_sagemaker_keeps_to_the_limits_that_botocore_does_not_check() -> None:
    made = machine(endpoint="e" * 40)
    job = made["Train"]["Parameters"]
    assert job["StoppingCondition"]["MaxWaitTimeInSeconds"] >= job["StoppingCondition"]["MaxRuntimeInSeconds"]
    assert all(len(word) <= 256 for word in made["Manifest"]["Parameters"]["AppSpecification"]["ContainerArguments"])
    containers = [m["CreateModel"]["Parameters"]["PrimaryContainer"] for m in (made, machine(kind="serverless"))]
    for container, limit in zip(containers, ("6291456", "4194304"), strict=True):
        assert container["Environment"] == {MAX_BODY_VARIABLE: limit, **RAY_IMAGE_ENVIRONMENT}


def test_cfn_lint_finds_nothing_but_what_is_put_in() -> None:
    """By Amazon's schema of the language; the definition stands in a template as a user's would."""
    made = states.definition(StateMachineArgs())
    properties = {"RoleArn": FLAGS["role"], "Definition": made}
    resource = {"Type": "AWS::StepFunctions::StateMachine", "Properties": properties}
    text = {"AWSTemplateFormatVersion": "2010-09-09", "Resources": {"Pipeline": resource}}
    assert faults_of(text) == []
    del made["States"]["Train"]["Next"]
    assert faults_of(text) != []


def faults_of(template: dict[str, Any]) -> list[str]:
    """What cfn-lint says, without its hints on how to write templates."""
    return [
        f"{found.rule.id} {found.message}"
        for found in cfnlint.lint_all(json.dumps(template))
        if found.rule.id[0] != "I"
    ]


def test_what_is_not_given_is_as_deploy_has_it() -> None:
    args = Deploy(bucket="b", role=FLAGS["role"])
    for name in ("kind", "instance_type", "memory_mb", "max_concurrency"):
        assert getattr(StateMachineArgs(), name) == getattr(args, name)


def test_the_engines_differ_in_how_they_wait_alone() -> None:
    aws, moto = machine(), machine(engine="moto")
    assert set(moto) - set(aws) == {"Manifested", "Trained"}
    assert ".sync" not in json.dumps(moto)
    assert json.dumps(aws).count(".sync") == 2
    for state in (*aws.values(), *moto.values()):
        state.pop("Retry", None)
        state.pop("Seconds", None)
    same = {name for name in aws if aws[name] == moto[name]}
    assert set(aws) - same == {"Manifest", "Train"}


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "serve/export.py"), "state-machine", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_fills_in_what_it_is_told_and_names_the_rest(tmp_path: Path) -> None:
    out = tmp_path / "machine.json"
    done = run("--out", str(out), *flags_of({name: FLAGS[name] for name in ("bucket", "role")}))
    assert done.returncode == 0, done.stderr
    assert done.stderr == "left to be filled: Endpoint, Function, Image, Recipe, Source, Topic, TrainingImage\n"
    text = out.read_text()
    assert FLAGS["role"] in text
    assert "s3://bins/bintally/training" in text


@pytest.mark.parametrize("form", [["--source-flags", "--signed --region eu-west-1"], ["--source-flags=--unpadded"]])
def test_flags_may_be_the_value_of_a_flag(form: list[str]) -> None:
    done = run(*form, "--fit-flags", "--num-workers 4")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)["States"]
    variables = made["Train"]["Parameters"]["Environment"]
    words = form[-1].removeprefix("--source-flags=")
    assert (variables["BINTALLY_FLAGS"], variables["BINTALLY_FIT_FLAGS"]) == (words, "--num-workers 4")
    arguments = made["Manifest"]["Parameters"]["AppSpecification"]["ContainerArguments"]
    assert arguments[-len(words.split()) :] == words.split()


def test_the_command_prints_when_no_file_is_named() -> None:
    done = run(*flags_of(FLAGS))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["States"] == machine()
    assert "${" not in done.stdout


def test_a_wrong_flag_is_one_line() -> None:
    done = run("--bucket", "s3://bins")
    assert done.returncode == 2
    assert done.stderr.startswith("error: bucket must be the name of a bucket")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"bucket": "s3://bins"}, "bucket"),
        ({"endpoint": "Bins"}, "endpoint"),
        ({"role": "bintally"}, "role"),
        ({"function": "pipeline"}, "function"),
        ({"topic": "told"}, "topic"),
        ({"image": "bintally"}, "image"),
        ({"source": "/bins"}, "source"),
        ({"recipe": "best"}, "recipe"),
        ({"min_gain": -1.0}, "min_gain"),
        ({"min_gain": float("nan")}, "min_gain"),
        ({"min_gain": float("inf")}, "min_gain"),
        ({"kind": "serverless", "memory_mb": 1000}, "memory_mb"),
        ({"kind": "serverless", "max_concurrency": 0}, "max_concurrency"),
        ({"instance_type": "m5.xlarge"}, "instance_type"),
        ({"instance_type": "ml.g5.xlarge"}, "instance_type ml.g5.xlarge has GPUs"),
        ({"training_instance_type": "g5"}, "training_instance_type"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        StateMachineArgs(**values)
