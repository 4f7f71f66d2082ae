"""What the Lambda of counts asks: the endpoint, and S3 for photos; every failure as a problem with a status of HTTP.

It goes into the zip of serve/aws/lambda_handler.py: boto3 and the standard library alone.
"""

import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Self

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    ParamValidationError,
    ReadTimeoutError,
)

JSON: Final = "application/json"
PHOTO: Final = "application/x-image"  # whatever decodes
PAUSES_S: Final = (0.2, 0.8)  # before the second and the third try, halved to doubled by chance
THROTTLED: Final = {"ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded", "SlowDown"}
READ_TIMEOUT_S: Final = 70  # AWS gives the model 60


class SettingsError(ValueError):
    """The function's environment is wrong; the message names the variable to change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The function's environment."""

    endpoint: str
    prefix: str
    max_bytes: int

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> Self:
        """The settings of an environment.

        Raises:
            SettingsError: a variable is missing or wrong.
        """
        endpoint = variables.get("BINTALLY_ENDPOINT", "")
        if not endpoint:
            raise SettingsError("BINTALLY_ENDPOINT is not set: give the function the name of its SageMaker endpoint")
        prefix = variables.get("BINTALLY_PREFIX", "counts/")
        if prefix and not prefix.endswith("/"):
            raise SettingsError(f"BINTALLY_PREFIX must be empty or end with a slash, not {prefix!r}")
        max_bytes = variables.get("BINTALLY_MAX_BYTES", "6291456")
        if not max_bytes.isdecimal() or int(max_bytes) < 1:
            raise SettingsError(f"BINTALLY_MAX_BYTES must be a number of bytes, not {max_bytes!r}")
        return cls(endpoint=endpoint, prefix=prefix, max_bytes=int(max_bytes))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request gets, by whatever event it came."""

    status: int
    kind: str
    """Content type."""
    text: str
    code: str | None = None
    """Of a problem."""
    retriable: bool = False
    """The same request may succeed later."""

    @property
    def value(self) -> object:
        """The body as JSON; JSON lines as a list."""
        lines = [json.loads(line) for line in self.text.splitlines()] if "jsonlines" in self.kind else None
        return json.loads(self.text) if lines is None else lines


class RefusedError(Exception):
    """A request that gets no count: why, by a stable code for programs and a sentence for people."""

    def __init__(self, status: int, code: str, detail: str, *, retriable: bool = False) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.retriable = status, code, detail, retriable

    def answer(self, request_id: str) -> Answer:
        """As a problem (RFC 9457), like the server's own."""
        body = {
            "type": f"urn:bintally:problem:{self.code}",
            "title": HTTPStatus(self.status).phrase if self.status in set(HTTPStatus) else "Refused",
            **{name: getattr(self, name) for name in ("status", "detail", "code", "retriable")},
            "request_id": request_id,
        }
        return Answer(self.status, "application/problem+json", json.dumps(body), self.code, self.retriable)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One request to the endpoint."""

    body: bytes
    kind: str = PHOTO
    """Content type."""
    accept: str = JSON
    quantity: str | None = None
    """The expected quantity, as the client wrote it."""


@dataclass(frozen=True, slots=True)
class Counter:
    """What asks the endpoint, and fetches photos from S3."""

    settings: Settings
    runtime: Any
    s3: Any

    @classmethod
    def start(cls, variables: Mapping[str, str]) -> Self:
        """A counter by an environment.

        Raises:
            SettingsError: a variable is missing or wrong.
        """
        settings = Settings.read(variables)
        # Of boto3's own retries none: after a timeout of the model they would take the function's time again.
        once = Config(connect_timeout=5, read_timeout=READ_TIMEOUT_S, retries={"total_max_attempts": 1})
        s3 = Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard"})
        return cls(settings, boto3.client("sagemaker-runtime", config=once), boto3.client("s3", config=s3))

    def count(self, asked: Asked) -> Answer:
        """Ask the endpoint, again only if it throttles.

        Raises:
            RefusedError: there is no count.
        """
        if not asked.body:
            raise RefusedError(400, "empty_body", "send a photo")
        self.check_size(len(asked.body))
        request = {"EndpointName": self.settings.endpoint, "ContentType": asked.kind, "Accept": asked.accept}
        for pause_s in (*PAUSES_S, None):
            try:
                reply = self.runtime.invoke_endpoint(**request, **_attributes(asked.quantity), Body=asked.body)
                return Answer(200, reply.get("ContentType", JSON), reply["Body"].read().decode())
            except ClientError as error:
                if pause_s is None or error.response["Error"]["Code"] not in THROTTLED:
                    raise _refusal_of_aws(error, self.settings.endpoint) from None
                time.sleep(pause_s * random.uniform(0.5, 2))  # noqa: S311  # so that clients come back apart
            except BotoCoreError as error:
                raise _refusal_of_network(error) from None
        raise AssertionError("the last try returns or raises")

    def check_size(self, num_bytes: int) -> None:
        """Refuse what the endpoint would.

        Raises:
            RefusedError: it is too much.
        """
        most = self.settings.max_bytes
        if num_bytes > most:
            raise RefusedError(413, "body_too_large", f"{num_bytes:,} bytes; the endpoint takes {most:,}: shrink it")

    def fetch(self, bucket: object, key: object, quantity: str | None = None) -> Asked:
        """A photo on S3, whose metadata may tell the expected quantity (x-amz-meta-expected-quantity).

        Raises:
            RefusedError: it is missing, forbidden, too large or out of reach.
        """
        place = f"s3://{bucket}/{key}"
        try:
            found = self.s3.get_object(Bucket=bucket, Key=key)
            self.check_size(found["ContentLength"])
            return Asked(body=found["Body"].read(), quantity=quantity or found["Metadata"].get("expected-quantity"))
        except ParamValidationError:
            raise RefusedError(400, "invalid_request", f"bucket and key name no object: {place}") from None
        except BotoCoreError as error:
            raise RefusedError(502, "source_unreachable", f"{place}: {error}", retriable=True) from None
        except ClientError as error:
            raise _refusal_of_s3(error, place) from None

    def store(self, bucket: str, key: str, value: object) -> None:
        """Write JSON to S3.

        Raises:
            RefusedError: it could not be written.
        """
        try:
            self.s3.put_object(Bucket=bucket, Key=key, Body=json.dumps(value), ContentType=JSON)
        except (ClientError, BotoCoreError) as error:
            detail = f"s3://{bucket}/{key}: {error}; the function's role needs s3:PutObject"
            raise RefusedError(502, "answer_not_written", detail, retriable=True) from None


def _attributes(quantity: str | None) -> dict[str, str]:
    if quantity is None:
        return {}
    if not (quantity.isascii() and quantity.isdecimal()):
        raise RefusedError(400, "invalid_request", f"expected_quantity must be a whole number, not {quantity[:40]!r}")
    return {"CustomAttributes": f"expected_quantity={quantity}"}


def _refusal_of_aws(error: ClientError, endpoint: str) -> RefusedError:
    code, told = error.response["Error"]["Code"], error.response["Error"]["Message"]
    if code == "ModelError":
        return _refusal_of_model(error.response)
    if code in THROTTLED:
        return RefusedError(503, "throttled", f"{endpoint} has too many requests: ask again later", retriable=True)
    if code == "413" or "oversize body" in told or "length less than" in told:
        return RefusedError(413, "body_too_large", f"{endpoint} takes no body of this size: send a smaller photo")
    if code == "ValidationError":
        return RefusedError(500, "misconfigured", f"{told} Check BINTALLY_ENDPOINT and the function's region.")
    if error.response["ResponseMetadata"]["HTTPStatusCode"] in (401, 403) or code.startswith("AccessDenied"):
        return RefusedError(500, "misconfigured", f"allow the function's role sagemaker:InvokeEndpoint of {endpoint}")
    return RefusedError(502, "endpoint_failed", f"{endpoint} failed with {code}", retriable=True)


def _refusal_of_model(response: Mapping[str, Any]) -> RefusedError:
    """4xx of the model go through as they are; what the model could not do is a gateway's 502 or 504."""
    status = int(response.get("OriginalStatusCode", 500))
    if status in (0, 504):  # 0: AWS waited no longer
        return RefusedError(504, "model_timeout", "the model did not answer in time", retriable=True)
    try:
        problem = json.loads(response["OriginalMessage"])
        code, detail = str(problem["code"]), str(problem["detail"])
    except (ValueError, KeyError, TypeError):  # another container's words, which may be a traceback
        code, detail = "model_refused", f"the model answered with status {status}"
    if 400 <= status < 500:
        return RefusedError(status, code, detail, retriable=status in (408, 429))
    return RefusedError(502, "model_failed", f"the model failed with status {status} ({code})", retriable=True)


def _refusal_of_network(error: BotoCoreError) -> RefusedError:
    if isinstance(error, (ReadTimeoutError, ConnectTimeoutError)):
        return RefusedError(504, "model_timeout", "the endpoint did not answer in time", retriable=True)
    if isinstance(error, (HTTPClientError, EndpointConnectionError)):
        return RefusedError(502, "endpoint_unreachable", "the endpoint was not reached", retriable=True)
    if isinstance(error, ParamValidationError):
        return RefusedError(400, "invalid_request", "the headers are not such as SageMaker passes on")
    return RefusedError(500, "misconfigured", f"the endpoint could not be asked: {error}")  # as without credentials


def _refusal_of_s3(error: ClientError, place: str) -> RefusedError:
    code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
    if status == 404:
        return RefusedError(404, "no_photo", f"there is no {place}")
    if status == 403:  # S3 says it of missing keys, too, to those who may not list the bucket
        return RefusedError(403, "not_allowed", f"{place} is not there, or the function's role lacks s3:GetObject")
    return RefusedError(502, "source_unreachable", f"{place} could not be read ({code})", retriable=status >= 500)
