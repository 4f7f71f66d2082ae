"""The shim, by unmodified boto3, before a small server that says what it was sent."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

Shim = Any  # of shim.py
Invoke = Callable[..., Any]


class Echo(BaseHTTPRequestHandler):
    """Answers by the status that the body asks for, after so many seconds."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(body) if self.headers["Content-Type"] == "application/json" else {}
        time.sleep(asked.get("sleep_s", 0))
        reply = json.dumps({"path": self.path, "num_bytes": len(body), "headers": dict(self.headers)}).encode()
        self.send_response(asked.get("status", 200))
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("X-Amzn-SageMaker-Custom-Attributes", "seen=1")
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def echo_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def invoke(shim: Shim, endpoint: Callable[..., object], echo_url: str) -> Invoke:
    """Invoke an endpoint of the shim."""
    shim.endpoints["live"] = endpoint(echo_url)
    shim.endpoints["small"] = endpoint(echo_url, serverless=True)
    shim.endpoints["hasty"] = endpoint(echo_url, answer_s=0.2)
    shim.endpoints["gone"] = endpoint("http://127.0.0.1:9")
    client = boto3.client("sagemaker-runtime", config=Config(retries={"total_max_attempts": 1}))

    def call(name: str, body: bytes, kind: str = "image/jpeg", **others: str) -> dict[str, Any]:
        answer: dict[str, Any] = client.invoke_endpoint(EndpointName=name, Body=body, ContentType=kind, **others)
        return answer

    return call


def refused(invoke: Invoke, *args: object) -> dict[str, Any]:
    with pytest.raises(ClientError) as caught:
        invoke(*args)
    return dict(caught.value.response)


def test_a_photo_reaches_the_server_with_the_headers_of_the_api_alone(invoke: Invoke) -> None:
    answer = invoke("live", b"\xff\xd8\x00\xff", Accept="application/json", CustomAttributes="expected_quantity=3")
    told = json.loads(answer["Body"].read())
    headers = {key.lower(): value for key, value in told["headers"].items()}
    assert (told["path"], told["num_bytes"]) == ("/invocations", 4)
    assert headers["content-type"] == "image/jpeg"
    assert headers["accept"] == "application/json"
    assert headers["x-amzn-sagemaker-custom-attributes"] == "expected_quantity=3"
    assert "authorization" not in headers
    assert answer["ContentType"] == "application/json; charset=utf-8"
    assert answer["CustomAttributes"] == "seen=1"
    assert answer["InvokedProductionVariant"] == "primary"


@pytest.mark.parametrize("status", [400, 415, 500, 503])
def test_errors_of_the_model_keep_status_and_message(invoke: Invoke, status: int) -> None:
    response = refused(invoke, "live", json.dumps({"status": status}).encode(), "application/json")
    assert response["Error"]["Code"] == "ModelError"
    assert response["OriginalStatusCode"] == status
    assert json.loads(response["OriginalMessage"])["path"] == "/invocations"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 424


def test_a_model_that_takes_too_long_has_status_0(invoke: Invoke) -> None:
    response = refused(invoke, "hasty", b'{"sleep_s": 1}', "application/json")
    assert response["OriginalStatusCode"] == 0
    assert "timed out" in response["OriginalMessage"]


def test_a_server_that_is_gone_is_an_error_of_the_model(invoke: Invoke) -> None:
    assert refused(invoke, "gone", b"x")["OriginalStatusCode"] == 502


def test_an_unknown_endpoint_is_a_validation_error(invoke: Invoke) -> None:
    error = refused(invoke, "other", b"x")["Error"]
    assert error["Code"] == "ValidationError"
    assert "Endpoint other of account" in error["Message"]


def test_bodies_have_the_limits_of_aws(invoke: Invoke, shim: Shim) -> None:
    largest = 6 * 1024 * 1024
    assert json.loads(invoke("live", b"x" * largest)["Body"].read())["num_bytes"] == largest
    assert refused(invoke, "live", b"x" * (largest + 1))["Error"] == {
        "Code": "413",
        "Message": "HTTP content length exceeded 6291456 bytes.",
    }
    small = 4 * 1024 * 1024
    assert json.loads(invoke("small", b"x" * small)["Body"].read())["num_bytes"] == small
    error = refused(invoke, "small", b"x" * (small + 1))["Error"]
    assert error["Code"] == "ValidationError"
    assert "oversize body" in error["Message"]
    assert [request.num_bytes for request in shim.requests] == [largest, small]
