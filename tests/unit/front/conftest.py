"""A front, a real HAProxy, before small replicas, and a client that says what came over the wire."""

import http.client
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from serve.front import FrontConfig
from serve.front_process import FrontProcess, running_front
from serve.problems import Problem

NUM_PORTS = 4


def free_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    for first in range(21_000 + os.getpid() % 5_000, 32_000, count):
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


class OneAtATime(BaseHTTPRequestHandler):
    """A replica that a single slow sender would block: it reads one request after the other."""

    server: HTTPServer
    protocol_version = "HTTP/1.0"  # it would wait for the next request of a kept connection, too

    def do_GET(self) -> None:
        self._answer({"path": self.path, "headers": {key.lower(): value for key, value in self.headers.items()}})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:
            return
        if body == b"die":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if body == b"sleep":
            time.sleep(1.5)
        self._answer({"bytes": len(body), "replica": self.server.server_port})

    def _answer(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        with suppress(ConnectionError):  # who asked has left: HAProxy's look at /full, say
            self.send_response(503 if self.path == "/full" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.path == "/trickle":
                for piece in range(5):
                    self.wfile.write(body[piece : piece + 1])
                    time.sleep(0.5)
                body = body[5:]
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is the base class's
        """Silence."""


class Keeping(OneAtATime):
    """A replica that keeps connections, as real ones do."""

    protocol_version = "HTTP/1.1"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    json: Any

    def check_problem(self, status: int, code: str) -> None:
        """It is a problem with the same fields as the server's own errors."""
        assert (self.status, self.json["code"]) == (status, code)
        problem = Problem.model_validate(self.json)
        assert problem.status == status
        assert problem.type == f"urn:bintally:problem:{code}"
        assert self.headers["content-type"] == "application/problem+json"
        assert self.headers["x-request-id"] == problem.request_id != ""


@dataclass(frozen=True, slots=True)
class Front:
    """A running front."""

    process: FrontProcess

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.process.config.port

    def ask(self, path: str = "/", body: bytes | None = None, **headers: str) -> Reply:
        """GET, or POST of a body."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            fields = {key.replace("_", "-"): value for key, value in headers.items()}
            connection.request("GET" if body is None else "POST", path, body, fields)
            response = connection.getresponse()
            answer = json.loads(response.read())
            return Reply(response.status, {key.lower(): value for key, value in response.getheaders()}, answer)

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def raw(self, data: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to these bytes."""
        with self.connect() as client:
            client.sendall(data)
            head, _, body = b"".join(iter(lambda: client.recv(65_536), b"")).partition(b"\r\n\r\n")
            return int(head.split()[1]), body

    def wait_for_status(self, status: int, within_s: float) -> float:
        """Seconds until requests are answered so."""
        begun = time.monotonic()
        while time.monotonic() < begun + within_s:
            try:
                if self.ask().status == status:
                    return time.monotonic() - begun
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"no {status} within {within_s} s")


class Threads(ThreadingHTTPServer):
    """A replica that waits for many bodies at once, as real ones do."""

    daemon_threads = True
    request_queue_size = 400


def start_replica(
    port: int, stack: ExitStack, kind: type[OneAtATime] = OneAtATime, server_kind: type[HTTPServer] = HTTPServer
) -> HTTPServer:
    server = server_kind(("127.0.0.1", port), kind)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    return server


def start_front(ports: int, stack: ExitStack, **fields: Any) -> Front:  # noqa: ANN401  # whatever the fields are
    config = FrontConfig(port=ports - 1, first_replica_port=ports, num_replica_ports=NUM_PORTS, **fields)
    return Front(stack.enter_context(running_front(config)))


@pytest.fixture
def ports() -> int:
    """The first replica port; those after it belong to the test, too, and the one before it to the front."""
    return free_ports(NUM_PORTS + 1) + 1


@pytest.fixture
def replica(ports: int) -> Iterator[Callable[..., HTTPServer]]:
    """`replica(place, keeps=, threads=)`: start one on a port of the range that keeps connections, or takes many."""
    with ExitStack() as stack:
        yield lambda place, keeps=False, threads=False: start_replica(
            ports + place, stack, Keeping if keeps else OneAtATime, Threads if threads else HTTPServer
        )


@pytest.fixture
def front(ports: int) -> Iterator[Callable[..., Front]]:
    """`front(field=...)`: a running front."""
    with ExitStack() as stack:
        yield lambda **fields: start_front(ports, stack, **fields)


@pytest.fixture(scope="session")
def usual() -> Iterator[Front]:
    """A front as it comes, before one replica, for tests that leave both as they were; a start costs 0.2 s of CPU."""
    with ExitStack() as stack:
        ports = free_ports(NUM_PORTS + 1) + 1
        start_replica(ports + 2, stack)
        yield start_front(ports, stack)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key of localhost, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(folder / "key"), "-out", str(folder / "cert")]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "both.pem").write_text((folder / "cert").read_text() + (folder / "key").read_text())
    return folder / "both.pem"
