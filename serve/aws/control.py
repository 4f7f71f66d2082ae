"""An endpoint made, changed and deleted, by plain boto3 calls.

A deployment that fails or is stopped undoes what it made. What a killed one leaves, the same command goes on with, and
`delete` deletes.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from bintally.errors import AwsError, AwsNotFoundError, ConfigError
from serve.aws.belongings import NAME_FIELD, bucket_of, delete_all, delete_bundles, made_for
from serve.aws.calls import Aws
from serve.aws.invoke import smoke
from serve.aws.lambda_names import is_of_either, is_ours
from serve.aws.plan import DeployPlan
from serve.aws.undo import Undo, undone_on_failure

CHANGING: Final = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
"""States of an endpoint that end by themselves, and in which it can be neither changed nor deleted."""
TELL_EVERY_S: Final = 30.0


def deploy(aws: Aws, plan: DeployPlan, bundle: Path, *, smoke_s: float) -> None:
    """Make or change an endpoint until it serves the plan, and check that it counts.

    Args:
        aws: where.
        plan: what is to serve.
        bundle: the tarball whose hash the plan names.
        smoke_s: how long the endpoint may fail to count after SageMaker calls it InService.

    Raises:
        AwsError: a step failed, and what was made is undone.
        ConfigError: the endpoint is not BinTally's.
    """
    endpoint = _find(aws, plan.name)
    wanted = plan.config["EndpointConfigName"]
    if endpoint and endpoint["EndpointStatus"] != "InService":
        # SageMaker can only delete it. That is left to the user, since it may still serve what it did before.
        raise AwsError(f"{_describe(endpoint)}; delete it: `python serve/export.py delete --name {plan.name}`")
    if endpoint and endpoint["EndpointConfigName"] == wanted:
        smoke(aws, plan.name, plan.version, smoke_s)
        aws.say(f"nothing to do: endpoint {plan.name} serves this bundle as {wanted}")
    else:
        with undone_on_failure(aws, plan.name) as undo:
            _upload(aws, plan, bundle, undo)
            _create(aws, "model", plan.model, undo)
            _create(aws, "endpoint_config", plan.config, undo)
            _turn(aws, plan.name, wanted, endpoint, undo)
            _check(settle(aws, plan.name), plan.name, wanted)
            smoke(aws, plan.name, plan.version, smoke_s)
        aws.say(f"endpoint {plan.name} serves model {plan.version}")
    # What executions of the state machine made is theirs: they may need it to go back.
    made = made_for(aws, plan.name, endpoint, is_ours)
    delete_all(aws, [(kind, one) for kind, one in made if one not in (wanted, plan.model["ModelName"])])


def delete(aws: Aws, name: str, bucket: str | None = None) -> None:
    """Delete an endpoint with its models, configurations and bundles, and what killed deployments of this name left.

    Args:
        aws: where.
        name: of the endpoint.
        bucket: has bundles of it, too. Others are found by the models.

    Raises:
        AwsError: AWS refuses, or cannot be reached.
        ConfigError: the endpoint is not BinTally's.
    """
    endpoint = _find(aws, name)
    found = made_for(aws, name, endpoint, is_of_either)
    buckets = {bucket_of(aws, model) for kind, model in found if kind == "model"} | {bucket}
    delete_endpoint(aws, name)
    delete_all(aws, found)
    num_bundles = sum(delete_bundles(aws, one, name) for one in buckets if one)
    if not endpoint and not found and not num_bundles:
        aws.say(f"nothing is there by the name {name}")


def _find(aws: Aws, name: str) -> dict[str, Any] | None:
    """The endpoint at rest, if there is one.

    Raises:
        ConfigError: it is not BinTally's.
    """
    endpoint = settle(aws, name)
    if endpoint and not aws.is_dry and not is_of_either(endpoint["EndpointConfigName"], name):
        raise ConfigError(
            f"name {name} is that of an endpoint with the configuration {endpoint['EndpointConfigName']}, which"
            " BinTally has not made; choose another name"
        )
    return endpoint


def settle(aws: Aws, name: str) -> dict[str, Any] | None:
    """Wait until an endpoint stays as it is, and tell meanwhile in what state it is.

    SageMaker ends every change by itself; an endpoint that does not start has failed after some 20 minutes.

    Returns:
        What describe_endpoint says; None if there is no such endpoint.

    Raises:
        AwsError: AWS refuses, or cannot be reached.
    """
    told, next_s = "", 0.0
    while True:
        try:
            endpoint = aws.call("sagemaker", "describe_endpoint", EndpointName=name)
        except AwsNotFoundError:
            return None
        status = endpoint["EndpointStatus"]
        if status not in CHANGING:
            return endpoint
        if status != told or time.monotonic() >= next_s:
            aws.say(f"endpoint {name}: {status} since {endpoint['LastModifiedTime'].astimezone():%H:%M:%S}")
            told, next_s = status, time.monotonic() + TELL_EVERY_S
        time.sleep(aws.poll_s)


def delete_endpoint(aws: Aws, name: str) -> None:
    """Delete an endpoint, and wait until it is gone.

    Raises:
        AwsError: AWS refuses, or cannot be reached.
    """
    if settle(aws, name):
        aws.call("sagemaker", "delete_endpoint", EndpointName=name)
        if settle(aws, name):
            raise AwsError(f"endpoint {name} is still there after delete_endpoint")
        aws.say(f"deleted endpoint {name}")


def _upload(aws: Aws, plan: DeployPlan, bundle: Path, undo: Undo) -> None:
    # Not head_object: of an object that is not there it says "forbidden" to those who may list this folder alone.
    pages = aws.pages("s3", "list_objects_v2", Bucket=plan.bucket, Prefix=plan.key)
    if any(one["Key"] == plan.key for page in pages for one in page.get("Contents", ())):
        return
    place = {"Bucket": plan.bucket, "Key": plan.key}
    undo.append((f"s3://{plan.bucket}/{plan.key}", lambda: aws.call("s3", "delete_object", **place)))
    aws.say(f"uploading {bundle.stat().st_size:,} bytes to s3://{plan.bucket}/{plan.key}")
    aws.call("s3", "upload_file", Filename=str(bundle), **place)


def _create(aws: Aws, kind: str, request: dict[str, Any], undo: Undo) -> None:
    """Make a model or configuration, unless it is there: its name says what is in it."""
    field = NAME_FIELD[kind]
    name = {field: request[field]}
    try:
        aws.call("sagemaker", f"describe_{kind}", **name)
    except AwsNotFoundError:
        undo.append((f"{kind} {request[field]}", lambda: aws.call("sagemaker", f"delete_{kind}", **name)))
        _call_whole(aws, f"create_{kind}", **request)
        aws.say(f"created {kind} {request[field]}")


def _turn(aws: Aws, name: str, wanted: str, endpoint: dict[str, Any] | None, undo: Undo) -> None:
    """Make the endpoint, or give it another configuration."""
    request = {"EndpointName": name, "EndpointConfigName": wanted}
    if endpoint is None:
        undo.append((f"endpoint {name}", lambda: delete_endpoint(aws, name)))
        _call_whole(aws, "create_endpoint", **request)
        aws.say(f"endpoint {name} is being created, which takes minutes")
    else:
        before = endpoint["EndpointConfigName"]
        undo.append((f"change of endpoint {name} from {before}", lambda: _turn_back(aws, name, before)))
        _call_whole(aws, "update_endpoint", **request)
        aws.say(f"endpoint {name} is being updated; it serves {before} meanwhile")


def _call_whole(aws: Aws, operation: str, **request: Any) -> None:  # noqa: ANN401  # boto3's
    """Make a call to its end, whatever signal comes: cut short, it might make something after the undo has looked."""
    with ThreadPoolExecutor(1) as pool:  # a signal is heard once the thread has ended
        pool.submit(bool).result()  # a signal while the thread starts would leave it running, unknown to the pool
        pool.submit(aws.call, "sagemaker", operation, **request).result()


def _turn_back(aws: Aws, name: str, before: str) -> None:
    """Give an endpoint its former configuration, unless SageMaker has done so."""
    endpoint = settle(aws, name)
    if endpoint and endpoint["EndpointConfigName"] != before:
        aws.call("sagemaker", "update_endpoint", EndpointName=name, EndpointConfigName=before)
        endpoint = settle(aws, name)
    _check(endpoint, name, before)


def _check(endpoint: dict[str, Any] | None, name: str, wanted: str) -> None:
    """See that an endpoint serves a configuration.

    Raises:
        AwsError: it does not.
    """
    if endpoint is None:
        raise AwsError(f"endpoint {name} was deleted meanwhile")
    if (endpoint["EndpointStatus"], endpoint["EndpointConfigName"]) != ("InService", wanted):
        raise AwsError(f"{wanted} does not start: {_describe(endpoint)}")


def _describe(endpoint: dict[str, Any]) -> str:
    """The state of an endpoint, and where to look for its reason."""
    name, reason = endpoint["EndpointName"], endpoint.get("FailureReason", "SageMaker gives no reason").rstrip(".")
    log = f"the containers' log is CloudWatch's group /aws/sagemaker/Endpoints/{name}"
    return f"endpoint {name} is {endpoint['EndpointStatus']}: {reason}; {log}"
