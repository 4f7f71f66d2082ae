"""The IAM documents: what they name, that IAM's own grammar takes them, and no more than was meant."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from bintally.errors import ConfigError
from serve.aws import policies
from serve.aws.commands import main
from serve.aws.iam import Place
from serve.aws.policies import policies_of

ACCOUNT = "123456789012"
PLACE = Place(
    name="bins",
    bucket="kept",
    role=f"arn:aws:iam::{ACCOUNT}:role/bins",
    region="eu-west-1",
    photos="s3://abid/copy/bin-images/",
    answers="s3://kept/counts/",
    repository="bintally-sagemaker",
)
POLICIES = policies_of(PLACE)
STATES = json.loads((Path(policies.__file__).with_name("state_machine.json")).read_text())["States"]
TRUSTS = ("execution_role_trust", "lambda_trust", "state_machine_trust")
# Actions that IAM allows on all resources or none, and why.
ANY_RESOURCE = {
    "cloudwatch:PutMetricData": "metrics have no ARN; the namespace is narrowed by a condition",
    "ecr:GetAuthorizationToken": "the token is the account's, not a repository's",
    "sagemaker:ListEndpointConfigs": "a listing has no ARN",
    "sagemaker:ListModels": "a listing has no ARN",
}
# Endings of names that nobody knows beforehand: hashes, keys of objects, streams of logs.
PATTERNS = (
    rf"arn:aws:sagemaker:eu-west-1:{ACCOUNT}:(model|endpoint-config|transform-job|processing-job|training-job)/bins-\*",
    r"arn:aws:s3:::(kept/(bintally|counts)|abid/(copy/(bin-images|metadata)|counts))/\*",
    rf"arn:aws:logs:eu-west-1:{ACCOUNT}:log-group:/aws/(lambda/bins(-pipeline)?|sagemaker/(Endpoints/bins|[A-Z][a-z]+Jobs)):\*",
    rf"arn:aws:events:eu-west-1:{ACCOUNT}:rule/StepFunctionsGetEventsForSageMaker\*",
)


def statements() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in POLICIES.keys() - TRUSTS:
        for statement in POLICIES[name]["Statement"]:
            yield name, statement


def action_of(task: str) -> str:
    service, call = task.removesuffix(".sync").removeprefix("aws-sdk:").split(":")
    return f"{service}:{call[0].upper()}{call[1:]}"


def resources(statement: dict[str, Any]) -> list[str]:
    found = statement["Resource"]
    return [found] if isinstance(found, str) else found


def test_iam_takes_every_document(aws: None, s3_endpoint: str) -> None:
    iam = boto3.client("iam", endpoint_url=s3_endpoint)
    for name, document in POLICIES.items():
        text = json.dumps(document)
        if name in TRUSTS:
            iam.create_role(RoleName=f"control-{name}", AssumeRolePolicyDocument=text)
        else:
            iam.create_policy(PolicyName=f"control-{name}", PolicyDocument=text)
        assert len(text) < 6144  # IAM's limit for a policy, without white space


def test_no_action_is_a_pattern() -> None:
    for _, statement in statements():
        assert all(re.fullmatch(r"[a-z0-9]+:[A-Za-z]+", action) for action in statement["Action"])


def test_all_resources_are_named_but_where_iam_knows_no_other() -> None:
    for _, statement in statements():
        if statement["Resource"] == "*":
            assert set(statement["Action"]) <= ANY_RESOURCE.keys()
        else:
            assert not set(statement["Action"]) & ANY_RESOURCE.keys()
            for resource in resources(statement):
                assert "*" not in resource or any(re.fullmatch(one, resource) for one in PATTERNS)


def test_every_reason_for_all_resources_is_of_use() -> None:
    asked = {action for _, statement in statements() for action in statement["Action"]}
    assert ANY_RESOURCE.keys() <= asked


def test_roles_trust_one_service_and_the_role_goes_to_sagemaker_alone() -> None:
    (trust,) = POLICIES["execution_role_trust"]["Statement"]
    assert trust["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    assert trust["Condition"] == {"StringEquals": {"aws:SourceAccount": ACCOUNT}}
    passing = {name: one for name, one in statements() if "iam:PassRole" in one["Action"]}
    assert passing.keys() == {"deployer", "state_machine"}
    for one in passing.values():
        assert one["Resource"] == PLACE.role
        assert one["Condition"] == {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}


def test_the_state_machine_may_do_what_it_does_and_no_more() -> None:
    """Step Functions' own names of calls, but for what `.sync` and lambda:invoke ask for beside them."""
    tasks = [state["Resource"].split(":::")[1] for state in STATES.values() if state["Type"] == "Task"]
    actions = set(map(action_of, tasks)) - {"lambda:Invoke"} | {"lambda:InvokeFunction"}
    allowed = {action for name, one in statements() if name == "state_machine" for action in one["Action"]}
    for_sync = {f"sagemaker:{verb}{job}" for verb in ("Describe", "Stop") for job in ("ProcessingJob", "TrainingJob")}
    for_sync |= {"sagemaker:AddTags", "events:DescribeRule", "events:PutRule", "events:PutTargets"}
    assert allowed == actions | for_sync | {"iam:PassRole"}


def test_other_partitions_and_regions_have_their_own_names() -> None:
    china = Place(
        name="bins",
        bucket="kept",
        role=f"arn:aws-cn:iam::{ACCOUNT}:role/bins",
        region="cn-north-1",
        photos="s3://kept/bin-images/",
        answers="s3://kept/counts/",
        repository="bintally-sagemaker",
    )
    text = json.dumps(policies_of(china))
    assert "arn:aws:" not in text
    assert "arn:aws-cn:ecr:cn-north-1:727897471807:repository/ray" in text


def test_the_command_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--bucket", "kept", "--role", PLACE.role, "--name", "bins", "--region", "eu-west-1"]
    with pytest.raises(SystemExit) as ended:
        main(["policies", *flags, "--photos", "s3://abid/copy/bin-images", "--answers", "s3://kept/counts"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out) == POLICIES


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "Bins"),
        ("bucket", "s3://kept"),
        ("role", "bins"),
        ("photos", "s3://abid/photos/"),
        ("answers", "counts/"),
    ],
)
def test_a_wrong_value_is_named(field: str, value: str) -> None:
    values = {name: getattr(PLACE, name) for name in PLACE.__slots__} | {field: value}
    with pytest.raises(ConfigError, match=field):
        Place(**values)
