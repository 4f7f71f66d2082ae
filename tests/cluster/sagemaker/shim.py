"""A sagemaker-runtime on the loopback: unmodified boto3 reaches a real server's /invocations.

What AWS does around a model, in one process: names to servers, the limits of a body and of the time to answer, and
the model's errors wrapped as ModelError. AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME has to name its `url`. Signatures are not
checked. Wordings are AWS's, as seen in the issues of its SDKs (sagemaker-python-sdk 171 and 4271).
"""

import http.client
import json
import threading
import urllib.parse
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REALTIME_BYTES = 6 * 1024 * 1024
SERVERLESS_BYTES = 4 * 1024 * 1024
PASSED_ON = ("content-type", "accept")  # of the client's headers, with those that begin with
AMAZON = "x-amzn-sagemaker-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A server behind a name."""

    url: str
    """`http://host:port` of a server with /invocations."""
    serverless: bool = False
    """The limits of a serverless endpoint."""
    answer_s: float = 60
    """How long the server may take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """An answer of AWS itself, instead of the model's."""

    status: int
    code: str
    message: str = "made up by a test"


@dataclass(frozen=True, slots=True)
class Request:
    """What reached a server."""

    endpoint: str
    headers: dict[str, str]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Shim:
    """A running shim. Endpoints and faults may be changed while it runs."""

    url: str
    endpoints: MutableMapping[str, Endpoint] = field(default_factory=dict)
    """By name."""
    faults: list[Fault] = field(default_factory=list)
    """What the next requests meet, first to last, before any endpoint is looked up."""
    requests: list[Request] = field(default_factory=list)
    """Those that were passed on to a server."""

    def answer(self, name: str, headers: dict[str, str], body: bytes) -> "Answer":
        """What AWS would answer to InvokeEndpoint."""
        if self.faults:
            fault = self.faults.pop(0)
            return Answer.error(fault.status, fault.code, fault.message)
        endpoint = self.endpoints.get(name)
        if endpoint is None:
            return Answer.error(400, "ValidationError", f"Endpoint {name} of account 123456789012 not found.")
        if endpoint.serverless and len(body) > SERVERLESS_BYTES:
            return Answer.error(400, "ValidationError", "Request 0 has oversize body.")
        if len(body) > REALTIME_BYTES:  # without a type, botocore calls it by its number, as it does AWS's
            return Answer.error(413, "", f"HTTP content length exceeded {REALTIME_BYTES} bytes.")
        passed = {key: value for key, value in headers.items() if key in PASSED_ON or key.startswith(AMAZON)}
        self.requests.append(Request(name, passed, len(body)))
        return _ask(endpoint, passed, body)


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    def error(cls, status: int, code: str, message: str, **others: object) -> "Answer":
        """One that botocore raises as the exception of this code."""
        headers = {"Content-Type": "application/json"} | ({"x-amzn-ErrorType": code} if code else {})
        return cls(status, headers, json.dumps({"Message": message, **others}).encode())

    @classmethod
    def model_error(cls, status: int, message: str) -> "Answer":
        """The model answered with an error, or, with status 0, not in time."""
        whose = "client" if 400 <= status < 500 else "server"
        told = f'Received {whose} error ({status}) from primary with message "{message}". See the log in CloudWatch.'
        arn = "arn:aws:logs:us-east-1:123456789012:log-group:/aws/sagemaker/Endpoints/shim"
        details = {"OriginalStatusCode": status, "OriginalMessage": message, "LogStreamArn": arn}
        return cls.error(424, "ModelError", told, **details)


def _ask(endpoint: Endpoint, headers: dict[str, str], body: bytes) -> Answer:
    address = urllib.parse.urlsplit(endpoint.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=endpoint.answer_s)
    try:
        connection.request("POST", "/invocations", body, headers)
        reply = connection.getresponse()
        answered = reply.read()
    except TimeoutError:
        return Answer.model_error(0, "Your invocation timed out while waiting for a response from container primary.")
    except OSError:
        return Answer.model_error(502, "The container refused the connection.")
    finally:
        connection.close()
    if reply.status >= 400:
        return Answer.model_error(reply.status, answered.decode(errors="replace"))
    kept = {name: value for name, value in reply.getheaders() if name.lower().startswith(("content-type", AMAZON))}
    return Answer(reply.status, kept | {"x-Amzn-Invoked-Production-Variant": "primary"}, answered)


@contextmanager
def running_shim(endpoints: MutableMapping[str, Endpoint] | None = None) -> Iterator[Shim]:
    """A shim with these endpoints, until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {key.lower(): value for key, value in self.headers.items()}
            match urllib.parse.urlsplit(self.path).path.split("/"):
                case ["", "endpoints", name, "invocations"]:
                    answer = shim.answer(urllib.parse.unquote(name), headers, body)
                case _:
                    answer = Answer.error(404, "UnknownOperationException", f"the shim knows no {self.path}")
            self.send_response(answer.status)
            for key, value in answer.headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    shim = Shim(f"http://127.0.0.1:{server.server_port}", {} if endpoints is None else endpoints)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield shim
    finally:
        server.shutdown()
        server.server_close()
