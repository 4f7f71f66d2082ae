"""Replicas that go and come, a front that is killed, reloaded and stopped."""

import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import pytest

from bintally.errors import ConfigError, RunError

StartReplica = Callable[..., HTTPServer]
Front = Any  # of conftest.py
StartFront = Callable[..., Front]


def test_a_replica_that_is_gone_loses_no_request(replica: StartReplica, front: StartFront) -> None:
    first = replica(0)
    second = replica(1)
    running = front()
    running.wait_for_status(200, 3)
    seen = {running.ask("/v1/count", b"x").json["replica"] for _ in range(10)}
    assert seen == {first.server_port, second.server_port}
    first.shutdown()
    first.server_close()  # the front learns it by a request, which another replica then answers
    assert {running.ask("/v1/count", b"x").json["replica"] for _ in range(10)} == {second.server_port}


def test_a_replica_that_comes_later_is_found(replica: StartReplica, front: StartFront) -> None:
    running = front()
    assert running.ask().status == 503
    replica(3)
    assert running.wait_for_status(200, 5) < 3


def test_the_front_comes_back_within_a_second(
    replica: StartReplica, front: StartFront, capfd: pytest.CaptureFixture[str]
) -> None:
    replica(0)
    running = front()
    time.sleep(1)
    killed = running.process.pid
    os.kill(killed, signal.SIGKILL)
    assert running.wait_for_status(200, 10) < 3
    assert running.process.pid != killed
    assert "HAProxy ended with -9; starting it again" in capfd.readouterr().err


def test_a_reload_takes_the_new_limits_and_loses_no_request(replica: StartReplica, front: StartFront) -> None:
    replica(0)
    replica(1)
    running = front()
    running.wait_for_status(200, 3)
    time.sleep(1)  # until both replicas have been checked
    going, before = threading.Event(), running.process.pid

    def keep_asking() -> list[int]:
        statuses = []
        while not going.is_set():
            statuses.append(running.ask("/v1/count", bytes(50_000)).status)
        return statuses

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(keep_asking) for _ in range(4)]
        time.sleep(0.3)
        running.process.reload(replace(running.process.config, max_batch_bytes=10))
        deadline = time.monotonic() + 10
        while running.ask("/v1/other", bytes(11)).status != 413:
            assert time.monotonic() < deadline
        time.sleep(0.3)
        going.set()
        statuses = [status for one in asking for status in one.result()]
    assert set(statuses) == {200}
    assert len(statuses) > 20
    assert running.process.pid != before


def test_a_reload_cuts_no_answer_however_long_it_lasts(replica: StartReplica, front: StartFront) -> None:
    replica(0)
    running = front(answer_s=1)
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(running.ask, "/trickle")
        time.sleep(0.5)
        running.process.reload(replace(running.process.config, max_batch_bytes=10))
        assert under_way.result().json["path"] == "/trickle"


def test_a_reload_of_the_same_closes_no_kept_connection(replica: StartReplica, front: StartFront) -> None:
    replica(0)
    running = front()
    running.wait_for_status(200, 3)
    before = running.process.pid
    with closing(http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)) as kept:
        for _ in range(3):
            kept.request("GET", "/healthz")
            assert kept.getresponse().read()
            port = kept.sock.getsockname()[1]
            running.process.reload(running.process.config)
            time.sleep(0.5)
            kept.request("GET", "/healthz")
            assert kept.getresponse().read()
            assert kept.sock.getsockname()[1] == port
    assert running.process.pid == before


def test_a_refused_reload_changes_nothing(replica: StartReplica, front: StartFront, tmp_path: Path) -> None:
    replica(0)
    running = front()
    before = running.process.pid
    with pytest.raises(ConfigError, match="refuses"):
        running.process.reload(replace(running.process.config, tls_cert=tmp_path / "absent.pem"))
    assert (running.ask().status, running.process.pid) == (200, before)


def test_a_stop_lets_requests_under_way_end(replica: StartReplica, front: StartFront) -> None:
    replica(0)
    running = front()
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(running.ask, "/v1/count", b"sleep")
        time.sleep(0.5)
        running.process.stop()
        assert under_way.result().status == 200
    with pytest.raises(ConnectionRefusedError):
        running.ask()


def test_a_taken_port_is_an_error(front: StartFront, ports: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports - 1))
        other.listen()
        with pytest.raises(RunError, match=r"cannot listen at .*--port"):
            front()
