"""What moto lacks of SageMaker: models that serve. A thin proxy in front of moto's server, which does all the rest.

Every request is passed on to moto as it came, and moto's answer goes back, but for these:

- CreateEndpoint: the bundle of the model is fetched from S3, as the model's request names it, and the container's app
  serves it with the model's environment, in a thread of this process. The shim has its address by the endpoint's
  name. An app that does not start makes DescribeEndpoint say Failed, and why, as SageMaker does.
- UpdateEndpoint, which moto does not have: the same with the model of the new configuration. If its app does not start,
  the endpoint goes on with the old one and DescribeEndpoint has a FailureReason, as SageMaker's rollback leaves it.
- CreateTransformJob, of which moto says Completed and writes nothing: the app answers every object under the prefix,
  and what it answers is written as KEY.out below the output path. One error fails the job; others' answers stay.
- What a test asks for: `faults` answers an operation with an error of AWS, `on` runs something when one is called,
  `changing` lets so many looks at an endpoint find it Creating, `job_fails` lets transform jobs fail.

Not there: images, roles, instances, permissions, time. Only what the requests say is checked, by moto.
"""

import io
import json
import os
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

import boto3
import httpx
import uvicorn

from bintally.errors import BinTallyError
from serve.container.app import build_app


@dataclass(slots=True)
class FakeSageMaker:
    """moto with models that serve."""

    moto: str
    """URL of moto's server."""
    serve_at: Callable[[str, str | None, bool], None]
    """Is told endpoint, URL of its server or None, and whether it is serverless."""
    folder: Path
    """Takes unpacked bundles."""
    url: str = ""
    requests: list[str] = field(default_factory=list)
    """Operations that were asked for, as `CreateModel`."""
    faults: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Code and message of an error, by operation."""
    on: dict[str, Callable[[], object]] = field(default_factory=dict)
    """What is to happen when an operation is called, once."""
    changing: int = 0
    """Looks at an endpoint that still find it Creating."""
    job_fails: str | None = None
    """Why the next transform jobs fail, once they have answered all they can."""
    _servers: dict[str, uvicorn.Server] = field(default_factory=dict)
    """Running apps, by bundle and environment."""
    _reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What DescribeEndpoint says otherwise than moto."""
    _jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What DescribeTransformJob says otherwise than moto."""

    def answer(self, operation: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to a request."""
        self.requests.append(operation)
        if act := self.on.pop(operation, None):
            act()
        if operation in self.faults:
            code, message = self.faults[operation]
            return 400, json.dumps({"__type": code, "Message": message}).encode()
        request = json.loads(body)
        if operation == "UpdateEndpoint":
            return 200, json.dumps(self._update(request)).encode()
        if operation == "DeleteEndpoint":
            self._reports.pop(request["EndpointName"], None)
            self.serve_at(request["EndpointName"], None, False)
        passed = {name: value for name, value in headers.items() if name.lower() not in ("host", "content-length")}
        reply = httpx.post(self.moto, content=body, headers=passed)
        if reply.is_success and reply.content:
            return 200, json.dumps(self._follow(operation, request, reply.json())).encode()
        return reply.status_code, reply.content

    def _follow(self, operation: str, request: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
        """Do what moto does not, after it; the reply as it goes out."""
        if operation == "CreateEndpoint":
            name = request["EndpointName"]
            if reason := self._serve(name, request["EndpointConfigName"]):
                self._reports[name] = {"EndpointStatus": "Failed", "FailureReason": reason}
        if operation == "DescribeEndpoint":
            reply |= self._reports.get(request["EndpointName"], {})
            if self.changing:
                self.changing -= 1
                reply["EndpointStatus"] = "Creating"
        if operation == "CreateTransformJob":
            self._jobs[request["TransformJobName"]] = self._transform(request)
        if operation == "DescribeTransformJob":
            reply |= self._jobs.get(request["TransformJobName"], {})
        return reply

    def client(self, service: str) -> Any:  # noqa: ANN401  # boto3 makes its types at run time
        """A client of moto itself."""
        return boto3.client(service, endpoint_url=self.moto)  # type: ignore[call-overload]

    def _update(self, request: dict[str, Any]) -> dict[str, Any]:
        name, wanted = request["EndpointName"], request["EndpointConfigName"]
        moto = self.client("sagemaker")
        before = moto.describe_endpoint(EndpointName=name)["EndpointConfigName"]
        self._reports.pop(name, None)
        if reason := self._serve(name, wanted):
            self._reports[name] = {"FailureReason": reason}
            wanted = before
        moto.delete_endpoint(EndpointName=name)
        arn: str = moto.create_endpoint(EndpointName=name, EndpointConfigName=wanted)["EndpointArn"]
        return {"EndpointArn": arn}

    def _serve(self, name: str, config: str) -> str | None:
        """Let the model of a configuration serve an endpoint; why it does not start."""
        moto = self.client("sagemaker")
        (variant,) = moto.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"]
        try:
            url = self._start(variant["ModelName"], {})
        except BinTallyError as error:
            return f"The primary container did not pass the ping health check: {error}."
        self.serve_at(name, url, "ServerlessConfig" in variant)
        return None

    def _start(self, model: str, environment: dict[str, str]) -> str:
        """URL of an app that serves a model."""
        container = self.client("sagemaker").describe_model(ModelName=model)["PrimaryContainer"]
        environment = container.get("Environment", {}) | environment
        key = json.dumps([container["ModelDataUrl"], environment], sort_keys=True)
        if key not in self._servers:
            bucket, _, path = container["ModelDataUrl"].removeprefix("s3://").partition("/")
            bundle = self.client("s3").get_object(Bucket=bucket, Key=path)["Body"].read()
            folder = self.folder / str(len(self._servers))
            with tarfile.open(fileobj=io.BytesIO(bundle)) as tar:
                tar.extractall(folder, filter="data")
            with patch.dict(os.environ, environment), redirect_stderr(io.StringIO()):  # the container's own log
                app = build_app(folder)
            server = self._servers[key] = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
            threading.Thread(target=server.run, daemon=True).start()
            while not server.started:
                time.sleep(0.01)
        return f"http://127.0.0.1:{self._servers[key].servers[0].sockets[0].getsockname()[1]}"

    def close(self) -> None:
        """End the apps."""
        for server in self._servers.values():
            server.should_exit = True

    def _transform(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer every object under the prefix; the job as it ended."""
        url, s3 = self._start(request["ModelName"], request.get("Environment", {})), self.client("s3")
        source, target = request["TransformInput"], request["TransformOutput"]
        bucket, _, prefix = source["DataSource"]["S3DataSource"]["S3Uri"].removeprefix("s3://").partition("/")
        out, _, folder = target["S3OutputPath"].removeprefix("s3://").partition("/")
        headers = {"content-type": source["ContentType"], "accept": target["Accept"]}
        failure = self.job_fails
        for one in s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]:
            body = s3.get_object(Bucket=bucket, Key=one["Key"])["Body"].read()
            reply = httpx.post(f"{url}/invocations", content=body, headers=headers)
            if reply.is_success:
                s3.put_object(Bucket=out, Key=f"{folder}{one['Key'].removeprefix(prefix)}.out", Body=reply.content)
            else:
                failure = f"ClientError: {reply.status_code}, see job logs for more information"
        return {"TransformJobStatus": "Failed", "FailureReason": failure} if failure else {}


@contextmanager
def running_sagemaker(fake: FakeSageMaker) -> Iterator[FakeSageMaker]:
    """The proxy, until the end of the block, at its `url`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            operation = self.headers["X-Amz-Target"].removeprefix("SageMaker.")
            status, answer = fake.answer(operation, dict(self.headers), body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            with suppress(ConnectionError):  # a client that was stopped
                self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        fake.close()
