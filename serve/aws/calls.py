"""Calls to AWS by their boto3 names, each error as one line; or only printed (`DryRun`)."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from bintally.errors import AwsError, AwsNotFoundError, ConfigError

NUM_CONNECTIONS: Final = 32  # at once, to one service
READ_TIMEOUT_S: Final = 70  # SageMaker itself gives a model 60 s
NOT_FOUND: Final = ("NoSuchBucket", "NoSuchKey", "ResourceNotFound")

_SIGN_IN: Final = "sign in again (aws sso login, or new keys)"
_KEYS: Final = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_ALLOW: Final = "allow it; `python serve/export.py policies` prints what the credentials and the role need"
_LIMIT: Final = (
    "raise the limit in Service Quotas, or change instance_type, num_instances, memory_mb or max_concurrency"
)
ADVICE: Final = {
    "NoCredentialsError": _KEYS,
    "PartialCredentialsError": _KEYS,
    "ProfileNotFound": "correct AWS_PROFILE",
    "ExpiredToken": _SIGN_IN,
    "ExpiredTokenException": _SIGN_IN,
    "UnauthorizedSSOTokenError": _SIGN_IN,
    "SSOTokenLoadError": _SIGN_IN,
    "TokenRetrievalError": _SIGN_IN,
    "InvalidAccessKeyId": _KEYS,
    "InvalidClientTokenId": _KEYS,
    "UnrecognizedClientException": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "AccessDenied": _ALLOW,
    "AccessDeniedException": _ALLOW,
    "ResourceLimitExceeded": _LIMIT,
    "NoSuchBucket": "name another bucket, or make this one",
    "EndpointConnectionError": "check the region and the network",
    "ConnectTimeoutError": "check the region and the network",
}
"""What to change, by AWS's name for an error."""


class Aws:
    """Calls to AWS in one region. Threads may share it."""

    is_dry = False

    def __init__(self, region: str, *, poll_s: float = 10.0) -> None:
        """Connect with the first call.

        Args:
            region: where.
            poll_s: pause between two looks at what SageMaker is doing.
        """
        self.region = region
        self.poll_s = poll_s
        self._clients: dict[str, Any] = {}

    def call(self, service: str, operation: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401  # boto3's
        """Make one call, by its names in boto3.

        Raises:
            AwsNotFoundError: what it names is not there.
            AwsError: AWS refuses, or cannot be reached.
        """
        with _one_line(operation):
            return getattr(self._client(service), operation)(**arguments) or {}

    def pages(self, service: str, operation: str, **arguments: str) -> Iterator[dict[str, Any]]:
        """All pages of a listing.

        Raises:
            AwsError: AWS refuses, or cannot be reached.
        """
        with _one_line(operation):
            yield from self._client(service).get_paginator(operation).paginate(**arguments)

    def read(self, service: str, operation: str, **arguments: Any) -> bytes:  # noqa: ANN401  # boto3's
        """The body that a call gives.

        Raises:
            AwsNotFoundError: what it names is not there.
            AwsError: AWS refuses, or cannot be reached.
        """
        with _one_line(operation):
            body: bytes = getattr(self._client(service), operation)(**arguments)["Body"].read()
            return body

    def say(self, message: str) -> None:
        """Print one line of progress, with the time of day."""
        print(f"{datetime.now().astimezone():%H:%M:%S} {message}", flush=True)

    def _client(self, service: str) -> Any:  # noqa: ANN401  # boto3 makes its types at run time
        if service not in self._clients:
            # A model that does not answer is not asked again behind the back of who waits for it.
            tries = 1 if service == "sagemaker-runtime" else 6
            config = Config(
                retries={"mode": "standard", "total_max_attempts": tries},
                read_timeout=READ_TIMEOUT_S,
                max_pool_connections=NUM_CONNECTIONS,
            )
            make: Any = boto3.client  # mypy knows it service by service
            self._clients[service] = make(service, region_name=self.region, config=config)
        return self._clients[service]


class DryRun(Aws):
    """Prints each call and makes none.

    It answers as AWS would where nothing is there yet, but what the calls before it have made.
    """

    is_dry = True

    def __init__(self, region: str, **replies: dict[str, Any]) -> None:
        """Take some replies, by operation, that AWS would give because something is there."""
        super().__init__(region, poll_s=0.0)
        self._replies = replies

    def call(self, service: str, operation: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401  # boto3's
        """Print one call.

        Raises:
            AwsNotFoundError: it asks for what no call has made.
        """
        told = ", ".join(f"{name}={_told(value)}" for name, value in arguments.items())
        print(f"{service}.{operation}({told})", flush=True)
        if operation in ("create_endpoint", "update_endpoint"):
            self._replies["describe_endpoint"] = {"EndpointStatus": "InService", **arguments}
        if operation == "delete_endpoint":
            self._replies.pop("describe_endpoint", None)
        if operation not in self._replies and operation.startswith("describe_"):
            raise AwsNotFoundError(f"{operation}: nothing is there in a dry run")
        return self._replies.get(operation, {})

    def read(self, service: str, operation: str, **arguments: Any) -> bytes:  # noqa: ANN401  # boto3's
        """Print one call; its body is an empty object."""
        self.call(service, operation, **arguments)
        return b"{}"

    def pages(self, service: str, operation: str, **arguments: str) -> Iterator[dict[str, Any]]:
        """Print one listing."""
        yield self.call(service, operation, **arguments)

    def say(self, message: str) -> None:
        """Nothing: what it would tell has not happened."""


def choose_region(region: str | None) -> str:
    """The region that is asked for, or that the environment names.

    Raises:
        ConfigError: there is none, or AWS_PROFILE names no profile.
    """
    try:
        found = region or os.environ.get("AWS_REGION") or boto3.Session().region_name
    except BotoCoreError as error:
        raise ConfigError(f"region cannot be looked up: {error}; {ADVICE.get(type(error).__name__, '')}") from None
    if not found:
        raise ConfigError("region is not set: add --region, or set AWS_REGION")
    return found


def _told(value: object) -> str:
    return f"<{len(value):,} bytes>" if isinstance(value, bytes) else repr(value)


@contextmanager
def _one_line(operation: str) -> Iterator[None]:
    """Turn boto3's errors into ours."""
    try:
        yield
    except ClientError as error:
        raise _explain(operation, error) from None
    except (BotoCoreError, Boto3Error) as error:
        if isinstance(error.__context__, ClientError):  # an upload tells it as a sentence alone
            raise _explain(operation, error.__context__) from None
        name = type(error).__name__
        raise AwsError(_line(operation, str(error), ADVICE.get(name, "")), name) from None


def _explain(operation: str, error: ClientError) -> AwsError:
    reply: dict[str, Any] = dict(error.response)
    code, message = reply["Error"].get("Code", ""), reply["Error"].get("Message", "")
    if code in NOT_FOUND or "Could not find" in message:
        return AwsNotFoundError(_line(operation, message, ADVICE.get(code, "")), code)
    if code == "ModelError":
        status = reply.get("OriginalStatusCode")
        return AwsError(f"the model answers {status}: {_detail_of(reply.get('OriginalMessage', ''))}", code, status)
    advice = ADVICE.get(code, "")
    if "assume" in message.lower():
        advice = (
            "role must name one that SageMaker may assume; `python serve/export.py policies` prints its trust policy"
        )
    return AwsError(_line(operation, f"{code}: {message}", advice), code)


def _detail_of(body: str) -> str:
    """What the problem in an answer says."""
    try:
        problem = json.loads(body)
        return f"{problem['code']}: {problem['detail']}"
    except (ValueError, KeyError, TypeError):
        return " ".join(body.split())[:300] or "nothing"


def _line(operation: str, message: str, advice: str = "") -> str:
    text = f"{operation}: {' '.join(message.split())}"
    return f"{text.rstrip('.')}; {advice}" if advice else text
