"""The Lambda of counts, run for real: moto's S3, unmodified boto3 through the shim, our container with a real model."""

import base64
import io
import json
import random
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from moto.core import set_initial_no_auth_action_count
from PIL import Image

from serve.aws import lambda_counter
from serve.aws.lambda_handler import handler

ROOT = Path(__file__).parents[3]
Shim = Any  # of shim.py
Settle = Callable[..., None]
BUCKET = "bins"  # of conftest.py
S3 = Any  # a client of boto3
Answer = dict[str, Any]
CONTEXT = SimpleNamespace(aws_request_id="4711")  # what Lambda hands in beside the event


# --- Events, as AWS writes them ---------------------------------------------------------------------------------------


def http_v2(body: bytes, kind: str = "image/jpeg", query: str = "") -> dict[str, Any]:
    """An HTTP API, or a function URL."""
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "POST /count",
        "rawPath": "/count",
        "rawQueryString": query,
        "headers": {"content-type": kind, "accept": "*/*", "host": "a1.execute-api.us-east-1.amazonaws.com"},
        "requestContext": {"http": {"method": "POST", "path": "/count"}, "requestId": "JKJaXmPLvHcESHA="},
        "body": base64.b64encode(body).decode(),
        "isBase64Encoded": True,
    }
    return event | ({"queryStringParameters": dict(urllib.parse.parse_qsl(query))} if query else {})


def http_v1(body: bytes, kind: str = "image/jpeg") -> dict[str, Any]:
    """A REST API."""
    return {
        "resource": "/count",
        "httpMethod": "POST",
        "headers": {"Content-Type": kind, "Accept": "application/json"},
        "multiValueHeaders": {"Content-Type": [kind]},
        "queryStringParameters": None,
        "requestContext": {"requestId": "c6af9ac6", "stage": "prod"},
        "body": base64.b64encode(body).decode(),
        "isBase64Encoded": True,
    }


def json_v1(**values: object) -> dict[str, Any]:
    """A REST API hands JSON on as text."""
    return http_v1(b"", "application/json") | {"body": json.dumps(values), "isBase64Encoded": False}


def noise() -> bytes:
    """A JPEG of some 8 kB."""
    file = io.BytesIO()
    Image.frombytes("RGB", (100, 80), random.Random(0).randbytes(100 * 80 * 3)).save(file, "JPEG")  # noqa: S311
    return file.getvalue()


def by_http(event: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    reply = handler(event, CONTEXT)
    assert "Traceback" not in reply["body"]
    assert reply["headers"]["x-request-id"] == "4711"
    return reply["statusCode"], json.loads(reply["body"])


# --- Counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["v1", "v2", "v1_json", "v2_json", "v1_key", "v2_key"])
def test_a_client_gets_the_count_whatever_the_api(live: Shim, s3: S3, photo: bytes, expected: Answer, way: str) -> None:
    s3.put_object(Bucket=BUCKET, Key="a/b c.jpg", Body=photo)
    coded, place = {"image": base64.b64encode(photo).decode()}, {"bucket": BUCKET, "key": "a/b c.jpg"}
    event = {
        "v1": http_v1(photo),
        "v2": http_v2(photo),
        "v1_json": json_v1(**coded),
        "v2_json": http_v2(json.dumps(coded).encode(), "application/json; charset=utf-8"),
        "v1_key": json_v1(**place),
        "v2_key": http_v2(json.dumps(place).encode(), "application/json"),
    }[way]
    assert by_http(event) == (200, expected)


def test_direct_invocations_get_the_answer_as_an_object(live: Shim, s3: S3, photo: bytes, expected: Answer) -> None:
    s3.put_object(Bucket=BUCKET, Key="a.jpg", Body=photo)
    for event in ({"image": base64.b64encode(photo).decode()}, {"bucket": BUCKET, "key": "a.jpg"}):
        assert handler(event, CONTEXT) == {"statusCode": 200, "retriable": False, "body": expected}


def test_json_lines_go_through(live: Shim, photo: bytes, expected: Answer) -> None:
    line = json.dumps({"image": base64.b64encode(photo).decode()}) + "\n"
    reply = handler(http_v2((line * 2).encode(), "application/jsonlines"), CONTEXT)
    assert reply["headers"]["content-type"].startswith("application/jsonlines")
    assert [json.loads(row) for row in reply["body"].splitlines()] == [expected] * 2


def test_an_expected_quantity_brings_a_verdict(live: Shim, s3: S3, photo: bytes) -> None:
    s3.put_object(Bucket=BUCKET, Key="a.jpg", Body=photo, Metadata={"expected-quantity": "3"})
    place = {"bucket": BUCKET, "key": "a.jpg"}
    for event in (http_v2(photo, query="expected_quantity=3"), json_v1(**place, expected_quantity=3), json_v1(**place)):
        status, answer = by_http(event)
        assert (status, answer["expected_quantity"]) == (200, 3)
        assert answer["verdict"] in ("match", "mismatch", "review")
    assert by_http(json_v1(**place, expected_quantity=2))[1]["expected_quantity"] == 2  # the client knows better


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "status", "code"),
    [
        (http_v2(b"no photo at all"), 415, "not_an_image"),
        (http_v2(noise()[:5000]), 400, "truncated_image"),
        (http_v2(b"x", "text/csv"), 415, "unsupported_media_type"),
        (http_v2(b""), 400, "empty_body"),
        (http_v2(b"{", "application/json"), 400, "invalid_json"),
        (http_v2(b"x", query="expected_quantity=-1"), 400, "invalid_request"),
        (json_v1(bucket=BUCKET, key="missing.jpg"), 404, "no_photo"),
        (json_v1(bucket="nobodys", key="a.jpg"), 404, "no_photo"),
        (json_v1(bucket="no bucket!", key="a.jpg"), 400, "invalid_request"),
        (json_v1(bucket=BUCKET, key=7), 400, "invalid_request"),
        (json_v1(key="a.jpg"), 400, "invalid_request"),
        (http_v1(b"") | {"body": "\ufffd\ufffd", "isBase64Encoded": False}, 500, "misconfigured"),
        (http_v1(b"") | {"body": "no base64"}, 400, "invalid_request"),
        (http_v2(b'{"key": ' + b"[" * 100_000, "application/json"), 400, "invalid_json"),
    ],
)
def test_a_wrong_request_keeps_its_status(live: Shim, event: dict[str, Any], status: int, code: str) -> None:
    answered, problem = by_http(event)
    assert (answered, problem["status"], problem["code"], problem["retriable"]) == (status, status, code, False)
    assert problem["type"] == f"urn:bintally:problem:{code}"
    assert problem["request_id"] == "4711"


def test_a_photo_that_may_not_be_read_is_403(live: Shim) -> None:
    @set_initial_no_auth_action_count(0)
    def ask() -> tuple[int, Answer]:
        return by_http(json_v1(bucket=BUCKET, key="a.jpg"))

    status, problem = ask()
    assert (status, problem["code"]) == (403, "not_allowed")


def test_what_is_too_large_is_413_wherever_it_is_found(
    live: Shim, s3: S3, settle: Settle, container_url: str, endpoint: Callable[..., object]
) -> None:
    large = b"x" * (6 * 1024 * 1024 + 1)
    s3.put_object(Bucket=BUCKET, Key="large.jpg", Body=large)
    assert by_http(http_v2(large))[1]["code"] == "body_too_large"
    assert by_http(json_v1(bucket=BUCKET, key="large.jpg"))[0] == 413
    settle(BINTALLY_MAX_BYTES=str(10**9))
    assert by_http(http_v2(large))[0] == 413  # SageMaker's word
    live.endpoints["live"] = endpoint(container_url, serverless=True)
    assert by_http(http_v2(large[: 5 * 1024 * 1024]))[0] == 413
    assert live.requests == []


@pytest.mark.parametrize(
    ("fault", "status", "code", "retriable"),
    [
        ((503, "ServiceUnavailable"), 502, "endpoint_failed", True),
        ((500, "InternalFailure"), 502, "endpoint_failed", True),
        ((429, "ModelNotReadyException"), 502, "endpoint_failed", True),
        ((403, "AccessDeniedException"), 500, "misconfigured", False),
        ((400, "ValidationError"), 500, "misconfigured", False),
    ],
)
def test_errors_of_sagemaker_are_not_tried_again(
    live: Shim,
    photo: bytes,
    make_fault: Callable[..., object],
    fault: tuple[int, str],
    status: int,
    code: str,
    retriable: bool,
) -> None:
    live.faults[:] = [make_fault(*fault), make_fault(400, "ThrottlingException")]
    answered, problem = by_http(http_v2(photo))
    assert (answered, problem["code"], problem["retriable"]) == (status, code, retriable)
    assert len(live.faults) == 1


def test_a_throttled_request_is_tried_three_times(
    live: Shim, photo: bytes, expected: Answer, make_fault: Callable[..., object]
) -> None:
    throttled = make_fault(400, "ThrottlingException")
    live.faults[:] = [throttled] * 2
    assert by_http(http_v2(photo)) == (200, expected)
    live.faults[:] = [throttled] * 4
    status, problem = by_http(http_v2(photo))
    assert (status, problem["code"], problem["retriable"], len(live.faults)) == (503, "throttled", True, 1)


def test_an_endpoint_that_is_not_there_is_told_with_the_variable_to_change(
    live: Shim, photo: bytes, settle: Settle
) -> None:
    settle(BINTALLY_ENDPOINT="other")
    status, problem = by_http(http_v2(photo))
    assert (status, problem["code"]) == (500, "misconfigured")
    assert "Endpoint other of account" in problem["detail"]
    assert "BINTALLY_ENDPOINT" in problem["detail"]


def test_a_model_that_fails_or_is_gone_is_502_and_a_slow_one_504(
    live: Shim, photo: bytes, endpoint: Callable[..., object], make_fault: Callable[..., object]
) -> None:
    live.endpoints["live"] = endpoint("http://127.0.0.1:9")
    status, problem = by_http(http_v2(photo))
    assert (status, problem["code"], problem["retriable"]) == (502, "model_failed", True)
    assert handler(http_v2(photo), CONTEXT)["headers"]["retry-after"] == "1"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        live.endpoints["live"] = endpoint(f"http://127.0.0.1:{silent.getsockname()[1]}", answer_s=0.1)
        status, problem = by_http(http_v2(photo))
    assert (status, problem["code"], problem["retriable"]) == (504, "model_timeout", True)


def test_a_sagemaker_that_is_silent_or_gone_is_504_or_502(
    live: Shim, photo: bytes, settle: Settle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lambda_counter, "READ_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        settle(AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=url)
        assert by_http(http_v2(photo))[0] == 504
    settle(AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=url)
    status, problem = by_http(http_v2(photo))
    assert (status, problem["code"]) == (502, "endpoint_unreachable")


@pytest.mark.parametrize("event", [{"hello": 1}, {}, [1], "photo"])
def test_an_event_of_no_known_form_is_told_the_forms(live: Shim, event: Any) -> None:  # noqa: ANN401  # JSON
    reply = handler(event, CONTEXT)
    assert reply["statusCode"] == 400
    assert '{"bucket": ..., "key": ...}' in reply["body"]["detail"]
