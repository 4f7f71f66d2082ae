"""The front, a real HAProxy, before small replicas: limits, slow senders, TLS, its own answers, and its own faults."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from bintally.errors import ConfigError, RunError
from serve.front import PROBLEMS, FrontConfig, config_text
from serve.front_process import FrontProcess, running_front
from serve.problems import STATUS_OF, Problem

ROOT = Path(__file__).parents[2]
NUM_PORTS = 4

StartReplica = Callable[..., HTTPServer]
StartFront = Callable[..., FrontProcess]


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
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if body == b"die":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if body == b"sleep":
            time.sleep(1.5)
        self._answer({"bytes": len(body), "replica": self.server.server_port})

    def _answer(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(503 if self.path == "/full" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is the base class's
        """Silence."""


class Keeping(OneAtATime):
    """A replica that keeps connections, as real ones do."""

    protocol_version = "HTTP/1.1"


@pytest.fixture
def ports() -> int:
    """The first replica port; those after it belong to the test, too, and the one before it to the front."""
    return free_ports(NUM_PORTS + 1) + 1


@pytest.fixture
def replica(ports: int) -> Iterator[StartReplica]:
    """`replica(place)`: start one on a port of the range."""
    with ExitStack() as stack:

        def start(place: int, kind: type[OneAtATime] = OneAtATime) -> HTTPServer:
            server = HTTPServer(("127.0.0.1", ports + place), kind)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return server

        yield start


@pytest.fixture
def front(ports: int) -> Iterator[StartFront]:
    """`front(field=...)`: a running front."""
    with ExitStack() as stack:

        def start(**fields: object) -> FrontProcess:
            config = FrontConfig(port=ports - 1, first_replica_port=ports, num_replica_ports=NUM_PORTS, **fields)  # type: ignore[arg-type]
            return stack.enter_context(running_front(config))

        yield start


def ask(
    front: FrontProcess, path: str = "/", body: bytes | None = None, *, method: str = "", **headers: str
) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection("127.0.0.1", front.config.port, timeout=20)
    with closing(connection):
        fields = {key.replace("_", "-"): value for key, value in headers.items()}
        connection.request(method or ("GET" if body is None else "POST"), path, body, fields)
        response = connection.getresponse()
        answer = json.loads(response.read())
        return response.status, {key.lower(): value for key, value in response.getheaders()}, answer


def wait_for_status(front: FrontProcess, status: int, within_s: float) -> float:
    """Seconds until requests are answered so."""
    begun = time.monotonic()
    while time.monotonic() < begun + within_s:
        try:
            if ask(front)[0] == status:
                return time.monotonic() - begun
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"no {status} within {within_s} s")


def raw(front: FrontProcess, data: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to these bytes."""
    with socket.create_connection(("127.0.0.1", front.config.port), timeout=20) as client:
        client.sendall(data)
        head, _, body = b"".join(iter(lambda: client.recv(65_536), b"")).partition(b"\r\n\r\n")
        return int(head.split()[1]), body


# --- What passes ----------------------------------------------------------------------------------------------------


def test_a_request_reaches_the_one_replica_that_listens(replica: StartReplica, front: StartFront) -> None:
    replica(2)  # the other ports count as up until their first check
    running = front()
    for _ in range(10):
        status, _, answer = ask(running, "/v1/count?model=a", bytes(300_000))
        assert (status, answer["bytes"]) == (200, 300_000)


def test_the_replica_learns_who_asks_whatever_the_client_says(replica: StartReplica, front: StartFront) -> None:
    replica(0)
    _, _, answer = ask(front(), X_Request_ID="mine-1", X_Forwarded_For="6.6.6.6", X_Forwarded_Proto="https")
    headers = answer["headers"]
    assert headers["x-request-id"] == "mine-1"
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"


def test_headers_that_ray_would_heed_pass_it_by(replica: StartReplica, front: StartFront) -> None:
    replica(0)
    given = {"X_Request_Timeout_Seconds": "0.5", "X_Request_Disconnect_Disabled": "?1"}
    headers = ask(front(engine="ray"), **given)[2]["headers"]
    assert headers["x-bintally-timeout-seconds"] == "0.5"
    assert not {"x-request-timeout-seconds", "x-request-disconnect-disabled"} & headers.keys()


def test_a_server_without_ray_gets_them_as_they_are(replica: StartReplica, front: StartFront) -> None:
    replica(0)
    headers = ask(front(engine="local"), X_Request_Timeout_Seconds="0.5")[2]["headers"]
    assert headers["x-request-timeout-seconds"] == "0.5"


@pytest.mark.parametrize("given", ["", "a b", "x" * 65])
def test_a_request_without_a_usable_id_gets_one(replica: StartReplica, front: StartFront, given: str) -> None:
    replica(0)
    running = front()
    ids = {ask(running, X_Request_ID=given)[2]["headers"]["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(re.fullmatch(r"[0-9a-f-]{36}", one) for one in ids)


def test_tls_is_1_2_or_later(replica: StartReplica, front: StartFront, tmp_path: Path) -> None:
    replica(0)
    pem = make_certificate(tmp_path)
    running = front(tls_cert=pem)

    def connect(most: ssl.TLSVersion) -> str | None:
        context = ssl.create_default_context(cafile=str(pem))
        context.minimum_version, context.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, most
        context.set_ciphers("ALL:@SECLEVEL=0")  # else the client itself refuses the old version
        client = socket.create_connection(("127.0.0.1", running.config.port), timeout=20)
        with client, context.wrap_socket(client, server_hostname="localhost") as wrapped:
            wrapped.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            assert b'"x-forwarded-proto": "https"' in b"".join(iter(lambda: wrapped.recv(65_536), b""))
            return wrapped.version()

    assert connect(ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    assert connect(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    with pytest.warns(DeprecationWarning, match="TLSv1_1"), pytest.raises(ssl.SSLError):
        connect(ssl.TLSVersion.TLSv1_1)


def make_certificate(folder: Path) -> Path:
    """Certificate and key of localhost, in one file."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(folder / "key"), "-out", str(folder / "cert")]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "both.pem").write_text((folder / "cert").read_text() + (folder / "key").read_text())
    return folder / "both.pem"


# --- What the front answers by itself -------------------------------------------------------------------------------


def check_problem(answer: tuple[int, dict[str, str], Any], status: int, code: str) -> None:
    assert (answer[0], answer[2]["code"]) == (status, code)
    problem = Problem.model_validate(answer[2])  # the same fields as of the server's own errors
    assert problem.status == status
    assert problem.type == f"urn:bintally:problem:{code}"
    assert answer[1]["content-type"] == "application/problem+json"
    assert answer[1]["x-request-id"] == problem.request_id != ""


def test_the_codes_agree_with_those_of_the_server() -> None:
    shared = {code: status for status, (code, _) in PROBLEMS.items() if code in STATUS_OF}
    assert shared == {code: STATUS_OF[code] for code in shared}
    assert {"body_too_large", "overloaded", "deadline_exceeded", "body_timeout", "internal_error"} <= shared.keys()


def test_no_replica_is_503_with_retry_after(front: StartFront) -> None:
    running = front()
    answer = ask(running, X_Request_ID="mine-2")
    check_problem(answer, 503, "overloaded")
    assert answer[1]["retry-after"] == "1"
    assert answer[2]["request_id"] == "mine-2"


def test_what_went_wrong_is_a_line_of_json(
    replica: StartReplica, front: StartFront, capfd: pytest.CaptureFixture[str]
) -> None:
    replica(0)
    running = front()
    assert ask(running)[0] == 200  # is not told of
    ask(running, "/full", X_Request_ID="mine-3")
    told, deadline = "", time.monotonic() + 5
    while '"logger"' not in told and time.monotonic() < deadline:
        time.sleep(0.05)
        told += capfd.readouterr().err
    (line,) = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    assert (line["request_id"], line["status"], line["logger"]) == ("mine-3", 503, "bintally.front")


def test_each_503_of_a_replica_says_retry(replica: StartReplica, front: StartFront) -> None:
    replica(0)
    status, headers, _ = ask(front(), "/full")
    assert (status, headers["retry-after"]) == (503, "1")


def test_a_replica_that_ends_in_mid_request_is_502_with_retry_after(replica: StartReplica, front: StartFront) -> None:
    replica(0)
    replica(1)
    answer = ask(front(), "/v1/count", b"die")
    check_problem(answer, 502, "replica_lost")
    assert answer[1]["retry-after"] == "1"


def test_the_502_comes_on_a_kept_connection_too(replica: StartReplica, front: StartFront) -> None:
    replica(0, Keeping)
    with closing(http.client.HTTPConnection("127.0.0.1", front().config.port, timeout=20)) as connection:
        for body, status in ((b"x", 200), (b"die", 502)):
            connection.request("POST", "/v1/count", body)
            response = connection.getresponse()
            response.read()
            assert response.status == status


def test_a_silent_replica_is_504(replica: StartReplica, front: StartFront) -> None:
    replica(0)
    check_problem(ask(front(answer_s=1), "/v1/count", b"sleep"), 504, "deadline_exceeded")


@pytest.mark.parametrize(("path", "limit"), [("/v1/count", 1_000), ("/v1/verify", 1_000), ("/v1/count:batch", 5_000)])
def test_a_body_past_the_limit_is_refused_before_it_comes(
    replica: StartReplica, front: StartFront, path: str, limit: int
) -> None:
    replica(0)
    running = front(max_body_bytes=1_000, max_batch_bytes=5_000)
    assert ask(running, path, bytes(limit))[0] == 200
    begun = time.monotonic()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {limit + 1}\r\n\r\n"
    status, answer = raw(running, head.encode())  # and no body
    assert (status, json.loads(answer)["code"]) == (413, "body_too_large")
    assert time.monotonic() - begun < 3
    check_problem(ask(running, path, bytes(limit + 1)), 413, "body_too_large")


@pytest.mark.parametrize("path", ["/-/healthz", "/-/routes"])
def test_the_pages_of_ray_serve_are_closed(replica: StartReplica, front: StartFront, path: str) -> None:
    replica(0)
    check_problem(ask(front(), path), 404, "not_found")


def test_headers_have_a_limit(replica: StartReplica, front: StartFront) -> None:
    replica(0)
    running = front()
    assert ask(running, X_Large="x" * 10_000)[0] == 200
    check_problem(ask(running, X_Large="x" * 20_000), 431, "request_header_fields_too_large")


def test_what_is_no_http_is_400(front: StartFront) -> None:
    assert raw(front(), b"GET / HTTP/1.1\r\nHost: x\r\nbad\x01name: 1\r\n\r\n")[0] == 400


def test_a_client_that_asks_too_often_waits(replica: StartReplica, front: StartFront) -> None:
    replica(0)
    running = front(rate_limit=5)
    answers = [ask(running, "/v1/models") for _ in range(12)]
    assert [status for status, _, _ in answers[:5]] == [200] * 5
    check_problem(answers[-1], 429, "too_many_requests")
    assert answers[-1][1]["retry-after"] == "1"
    assert ask(running, "/healthz")[0] == 200  # probes of an orchestrator are not counted
    wait_for_status(running, 200, 8)  # though it goes on asking too often


# --- Slow senders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nX-A: ", b"408", id="headers"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nabc", b"body_timeout", id="body"),
    ],
)
def test_slow_senders_never_reach_a_replica_and_are_told_so(
    replica: StartReplica, front: StartFront, sent: bytes, told: bytes
) -> None:
    replica(0)  # one such sender would block it
    running = front(arrive_s=3)
    with ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", running.config.port), timeout=20))
            for _ in range(300)
        ]
        for client in slow:
            client.sendall(sent)
        begun = time.monotonic()
        answers = [ask(running, "/v1/count", bytes(60_000)) for _ in range(20)]
        assert [status for status, _, _ in answers] == [200] * 20
        assert time.monotonic() - begun < 2.5  # while all of them were held
        for client in slow[::50]:
            answer = client.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert told in answer


# --- Faults of replicas and of the front ----------------------------------------------------------------------------


def test_a_replica_that_is_gone_loses_no_request(replica: StartReplica, front: StartFront) -> None:
    first = replica(0)
    second = replica(1)
    running = front()
    wait_for_status(running, 200, 3)
    seen = {ask(running, "/v1/count", b"x")[2]["replica"] for _ in range(10)}
    assert seen == {first.server_port, second.server_port}
    first.shutdown()
    first.server_close()  # the front learns it by a request, which another replica then answers
    assert {ask(running, "/v1/count", b"x")[2]["replica"] for _ in range(10)} == {second.server_port}


def test_a_replica_that_comes_later_is_found(replica: StartReplica, front: StartFront) -> None:
    running = front()
    assert ask(running)[0] == 503
    replica(3)
    assert wait_for_status(running, 200, 5) < 3


def test_the_front_comes_back_within_a_second(
    replica: StartReplica, front: StartFront, capfd: pytest.CaptureFixture[str]
) -> None:
    replica(0)
    running = front()
    time.sleep(1)
    killed = running.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    assert wait_for_status(running, 200, 10) < 3
    assert running.pid != killed
    assert "HAProxy ended with -9; starting it again" in capfd.readouterr().err


def test_a_reload_takes_the_new_limits_and_loses_no_request(replica: StartReplica, front: StartFront) -> None:
    replica(0)
    replica(1)
    running = front()
    wait_for_status(running, 200, 3)
    time.sleep(1)  # until both replicas have been checked
    going, before = threading.Event(), running.pid

    def keep_asking() -> list[int]:
        statuses = []
        while not going.is_set():
            statuses.append(ask(running, "/v1/count", bytes(50_000))[0])
        return statuses

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(keep_asking) for _ in range(4)]
        time.sleep(0.3)
        running.reload(FrontConfig(**{**fields_of(running.config), "max_batch_bytes": 10}))
        deadline = time.monotonic() + 10
        while ask(running, "/v1/other", bytes(11))[0] != 413:
            assert time.monotonic() < deadline
        time.sleep(0.3)
        going.set()
        statuses = [status for one in asking for status in one.result()]
    assert set(statuses) == {200}
    assert len(statuses) > 20
    assert running.pid != before


def fields_of(config: FrontConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in FrontConfig.__dataclass_fields__}


def test_a_refused_reload_changes_nothing(replica: StartReplica, front: StartFront, tmp_path: Path) -> None:
    replica(0)
    running = front()
    before = running.pid
    with pytest.raises(ConfigError, match="refuses"):
        running.reload(FrontConfig(**{**fields_of(running.config), "tls_cert": tmp_path / "absent.pem"}))
    assert (ask(running)[0], running.pid) == (200, before)


def test_a_stop_lets_requests_under_way_end(replica: StartReplica, front: StartFront) -> None:
    replica(0)
    running = front()
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(ask, running, "/v1/count", b"sleep")
        time.sleep(0.5)
        running.stop()
        assert under_way.result()[0] == 200
    with pytest.raises(ConnectionRefusedError):
        ask(running)


def test_a_taken_port_is_an_error(front: StartFront, ports: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports - 1))
        other.listen()
        with pytest.raises(RunError, match=r"cannot listen at .*--port"):
            front()


# --- The command ----------------------------------------------------------------------------------------------------


def command(*flags: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, str(ROOT / "serve/front.py"), *flags], text=True, stdout=subprocess.PIPE)


def test_the_command_prints_the_configuration() -> None:
    process = command("--print", "--port", "8443", "--rate-limit", "7")
    assert process.communicate(timeout=20)[0] == config_text(FrontConfig(port=8443, rate_limit=7))


def test_haproxy_ends_with_the_command_even_by_kill_9(ports: int) -> None:
    flags = ["--port", str(ports - 1), "--first-replica-port", str(ports), "--num-replica-ports", "2"]
    process = command(*flags)
    assert process.stdout is not None
    assert process.stdout.readline() == f"front at http://127.0.0.1:{ports - 1}\n"
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    (haproxy,) = [pid for one in children for pid in one.read_text().split()]
    assert (Path("/proc") / haproxy / "comm").read_text() == "haproxy\n"
    arguments = (Path("/proc") / haproxy / "cmdline").read_text().split("\0")
    process.kill()
    process.communicate(timeout=10)
    deadline = time.monotonic() + 5
    while (Path("/proc") / haproxy).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    shutil.rmtree(Path(arguments[arguments.index("-f") + 1]).parent)  # which nobody was left to remove


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"port": 0}, "port"),
        ({"port": 70_000}, "65536"),
        ({"first_replica_port": 65_530}, "65536"),
        ({"rate_limit": 0}, "rate_limit"),
        ({"buffered_bytes": 1}, "buffered_bytes"),
        ({"host": "0.0.0.0\n    bind :1"}, "spaces"),
        ({"tls_cert": Path("a b.pem")}, "spaces"),
    ],
)
def test_values_that_make_no_sense(fields: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        FrontConfig(**fields)
