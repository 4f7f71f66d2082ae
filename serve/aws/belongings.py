"""What belongs to an endpoint beside itself: configurations, models and bundles, found and deleted."""

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from bintally.errors import AwsNotFoundError
from serve.aws.calls import Aws
from serve.aws.lambda_names import is_of_either
from serve.aws.plan import bundles_of

NAME_FIELD: Final = {"model": "ModelName", "endpoint_config": "EndpointConfigName"}


def models_behind(aws: Aws, config: str) -> list[str]:
    """The models of a configuration; none if it is not there.

    Raises:
        AwsError: AWS refuses, or cannot be reached.
    """
    try:
        found = aws.call("sagemaker", "describe_endpoint_config", EndpointConfigName=config)
    except AwsNotFoundError:
        return []
    return [variant["ModelName"] for variant in found["ProductionVariants"]]


def made_for(
    aws: Aws, name: str, endpoint: dict[str, Any] | None, is_made: Callable[[str, str], bool]
) -> list[tuple[str, str]]:
    """Kind and name of the configurations and models behind an endpoint, and of others that were made for it.

    Args:
        aws: where.
        name: of the endpoint.
        endpoint: what describe_endpoint says; None if there is none.
        is_made: whether a name is that of something made for the endpoint.

    Raises:
        AwsError: AWS refuses, or cannot be reached.
    """
    configs = {endpoint["EndpointConfigName"]} if endpoint else set()
    models = {one for config in configs for one in models_behind(aws, config) if aws.is_dry or is_of_either(one, name)}
    listings = (
        ("endpoint_config", "list_endpoint_configs", "EndpointConfigs", configs),
        ("model", "list_models", "Models", models),
    )
    for kind, operation, field, found in listings:
        for page in aws.pages("sagemaker", operation, NameContains=f"{name}-"):
            found |= {one[NAME_FIELD[kind]] for one in page.get(field, []) if is_made(one[NAME_FIELD[kind]], name)}
    return [(kind, one) for kind, _, _, found in listings for one in sorted(found)]


def delete_all(aws: Aws, found: list[tuple[str, str]]) -> None:
    """Delete models and configurations, where they are still there."""
    for kind, name in found:
        with suppress(AwsNotFoundError):
            aws.call("sagemaker", f"delete_{kind}", **{NAME_FIELD[kind]: name})
            aws.say(f"deleted {kind} {name}")


def bucket_of(aws: Aws, model: str) -> str | None:
    """Where the bundle of a model lies."""
    try:
        container = aws.call("sagemaker", "describe_model", ModelName=model).get("PrimaryContainer", {})
    except AwsNotFoundError:
        return None
    found = re.match(r"s3://([^/]+)/", container.get("ModelDataUrl", ""))
    return found[1] if found else None


def delete_bundles(aws: Aws, bucket: str, name: str) -> int:
    """Delete all bundles of an endpoint in a bucket; how many there were."""
    pages = aws.pages("s3", "list_objects_v2", Bucket=bucket, Prefix=bundles_of(name))
    keys = [one["Key"] for page in pages for one in page.get("Contents", ())]
    # Trained models of the state machine lie deeper, should an endpoint be called as their folder.
    keys = [key for key in keys if re.fullmatch(r"[^/]+/model\.tar\.gz", key.removeprefix(bundles_of(name)))]
    for key in keys:
        aws.call("s3", "delete_object", Bucket=bucket, Key=key)
        aws.say(f"deleted s3://{bucket}/{key}")
    return len(keys)
