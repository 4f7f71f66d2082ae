"""What the front answers by itself: problems like the server's own, and patience with nobody who sends slowly."""

import http.client
import json
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from http.server import HTTPServer
from typing import Any

import pytest

from serve.front_problems import PROBLEMS
from serve.problems import STATUS_OF

StartReplica = Callable[..., HTTPServer]
Front = Any  # of conftest.py
StartFront = Callable[..., Front]


def test_the_codes_agree_with_those_of_the_server() -> None:
    shared = {code: status for status, (code, _) in PROBLEMS.items() if code in STATUS_OF}
    assert shared == {code: STATUS_OF[code] for code in shared}
    assert {"body_too_large", "overloaded", "deadline_exceeded", "body_timeout", "internal_error"} <= shared.keys()


def test_no_replica_is_503_with_retry_after(front: StartFront) -> None:
    reply = front().ask(X_Request_ID="mine-2")
    reply.check_problem(503, "overloaded")
    assert reply.headers["retry-after"] == "1"
    assert reply.json["request_id"] == "mine-2"


def test_what_went_wrong_is_a_line_of_json(
    replica: StartReplica, front: StartFront, capfd: pytest.CaptureFixture[str]
) -> None:
    replica(0)
    running = front()
    assert running.ask().status == 200  # is not told of
    running.ask("/full", X_Request_ID="mine-3")
    told, deadline = "", time.monotonic() + 5
    while '"logger"' not in told and time.monotonic() < deadline:
        time.sleep(0.05)
        told += capfd.readouterr().err
    (line,) = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    assert (line["request_id"], line["status"], line["logger"]) == ("mine-3", 503, "bintally.front")


def test_each_503_of_a_replica_says_retry(usual: Front) -> None:
    reply = usual.ask("/full")
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")


def test_a_replica_that_ends_in_mid_request_is_502_with_retry_after(replica: StartReplica, front: StartFront) -> None:
    replica(0)
    replica(1)
    reply = front().ask("/v1/count", b"die")
    reply.check_problem(502, "replica_lost")
    assert reply.headers["retry-after"] == "1"


def test_the_502_comes_on_a_kept_connection_too(replica: StartReplica, front: StartFront) -> None:
    replica(0, keeps=True)
    with closing(http.client.HTTPConnection("127.0.0.1", front().port, timeout=20)) as connection:
        for body, status in ((b"x", 200), (b"die", 502)):
            connection.request("POST", "/v1/count", body)
            response = connection.getresponse()
            response.read()
            assert response.status == status


def test_a_silent_replica_is_504(replica: StartReplica, front: StartFront) -> None:
    replica(0)
    front(answer_s=1).ask("/v1/count", b"sleep").check_problem(504, "deadline_exceeded")


def test_a_body_past_the_limit_is_refused_before_it_comes(replica: StartReplica, front: StartFront) -> None:
    replica(0)
    running = front(max_body_bytes=1_000, max_batch_bytes=5_000)
    for path, limit in (("/v1/count", 1_000), ("/v1/verify", 1_000), ("/v1/count:batch", 5_000)):
        assert running.ask(path, bytes(limit)).status == 200
        begun = time.monotonic()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {limit + 1}\r\n\r\n"
        status, answer = running.raw(head.encode())  # and no body
        assert (status, json.loads(answer)["code"]) == (413, "body_too_large")
        assert time.monotonic() - begun < 3
        running.ask(path, bytes(limit + 1)).check_problem(413, "body_too_large")


@pytest.mark.parametrize("path", ["/-/healthz", "/-/routes", "/%2D/healthz", "/%2d%2Fhealthz"])
def test_the_pages_of_ray_serve_are_closed(usual: Front, path: str) -> None:
    usual.ask(path).check_problem(404, "not_found")


@pytest.mark.parametrize("many", [1, 2_000])
def test_headers_have_a_limit(usual: Front, many: int) -> None:
    def headers(num_bytes: int) -> dict[str, str]:
        return {f"X_{number}": "x" * (num_bytes // many) for number in range(many)}

    if many == 1:  # more than 100 are too many for a small replica
        assert usual.ask(**headers(10_000)).status == 200
    usual.ask(**headers(20_000)).check_problem(431, "request_header_fields_too_large")


def test_what_is_no_http_is_400(usual: Front) -> None:
    assert usual.raw(b"GET / HTTP/1.1\r\nHost: x\r\nbad\x01name: 1\r\n\r\n")[0] == 400


def test_a_client_that_asks_too_often_waits(replica: StartReplica, front: StartFront) -> None:
    replica(0)
    running = front(rate_limit=5)
    replies = [running.ask("/v1/models") for _ in range(12)]
    assert [reply.status for reply in replies[:5]] == [200] * 5
    replies[-1].check_problem(429, "too_many_requests")
    assert replies[-1].headers["retry-after"] == "1"
    assert running.ask("/healthz").status == 200  # probes of an orchestrator are not counted
    running.wait_for_status(200, 8)  # though it goes on asking too often


def test_who_asks_too_often_is_told_so_once_all_of_the_body_is_sent(replica: StartReplica, front: StartFront) -> None:
    """Before, a client that still sends may find a broken connection and no answer."""
    replica(0)
    running = front(rate_limit=1)
    assert running.ask("/v1/models").status == 200
    with running.connect() as client:
        client.sendall(b"POST /v1/count HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" + bytes(30_000))
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(20)
        client.sendall(bytes(30_000))
        assert client.recv(65_536).startswith(b"HTTP/1.1 429 ")


def test_300_senders_of_large_beginnings_starve_nobody(replica: StartReplica, front: StartFront) -> None:
    """Past what the front buffers, the rest of a body is waited for by the replica, which holds it at no cost."""
    replica(0, threads=True)
    running = front(queue_s=2)
    running.wait_for_status(200, 3)
    with ExitStack() as stack:
        for _ in range(300):
            slow = stack.enter_context(running.connect())
            slow.sendall(b"POST /v1/count HTTP/1.1\r\nHost: x\r\nContent-Length: 600000\r\n\r\n" + bytes(300_000))
        assert [running.ask("/v1/count", bytes(60_000)).status for _ in range(10)] == [200] * 10


def test_slow_senders_never_reach_a_replica_and_are_told_so(replica: StartReplica, front: StartFront) -> None:
    replica(0)  # one such sender would block it
    running = front(arrive_s=3)
    kinds = [  # what they send, and what they are told
        (b"POST / HTTP/1.1\r\nHost: x\r\nX-A: ", b"408"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nabc", b"body_timeout"),
    ]
    with ExitStack() as stack:
        slow = [(stack.enter_context(running.connect()), *kinds[number % 2]) for number in range(300)]
        for client, sent, _ in slow:
            client.sendall(sent)
        begun = time.monotonic()
        assert [running.ask("/v1/count", bytes(60_000)).status for _ in range(20)] == [200] * 20
        assert time.monotonic() - begun < 2.5  # while all of them were held
        for client, _, told in slow[::25]:
            answer = client.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert told in answer
