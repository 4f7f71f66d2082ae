"""The command that starts a server, on Ray, behind the front: two replicas under faults, overload and change.

One server for the whole file; each test leaves it as it was, but for the last two.
"""

import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from benchmarks.parts.usage import family
from bintally.checkpoint import load_checkpoint
from bintally.ports import free_port
from serve.front import FrontConfig
from serve.front_process import running_front

pytestmark = pytest.mark.cluster

Answer = Any  # of conftest.py
Server = Any  # of conftest.py
WaitUntil = Callable[..., float]


def statuses(answers: list[Answer]) -> Counter[int]:
    return Counter(one.status for one in answers)


# --- What is served -------------------------------------------------------------------------------------------------


def test_it_counts_as_the_checkpoint_does(server: Server) -> None:
    answer = server.count(X_Request_ID="mine")
    assert answer.status == 200, answer.body
    assert answer.body["model"]["version"] == load_checkpoint(server.checkpoints[0]).version
    assert answer.body["request_id"] == "mine"


def test_the_token_is_asked_for(server: Server) -> None:
    answer = server.count(Authorization="Bearer another")
    assert (answer.status, answer.body["code"]) == (401, "unauthorized")
    assert server.ask("/readyz", Authorization="").status == 200


def test_a_deadline_of_the_client_is_a_problem_of_ours_not_rays(server: Server) -> None:
    answer = server.count(X_Request_Timeout_Seconds="0.000001")
    assert (answer.status, answer.body["code"]) == (504, "deadline_exceeded")


def test_nothing_listens_beyond_this_machine_for_requests(server: Server) -> None:
    ports = {server.port, *server.replica_ports()}
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if " 0A " in line]
    mine = {address for address in listening if int(address.split(":")[1], 16) in ports}
    assert len(mine) == 1 + server.num_replicas
    assert {address.split(":")[0] for address in mine} == {"0100007F"}  # 127.0.0.1


def test_tls_and_a_rate_limit_before_the_same_replicas(server: Server, tmp_path: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", "key", "-out", "cert"], cwd=tmp_path, check=True, capture_output=True)
    pem = tmp_path / "both.pem"
    pem.write_text((tmp_path / "cert").read_text() + (tmp_path / "key").read_text())
    first, *others = server.replica_ports()
    config = FrontConfig(
        port=free_port(), first_replica_port=first, num_replica_ports=1 + len(others), tls_cert=pem, rate_limit=3
    )
    with running_front(config):
        context = ssl.create_default_context(cafile=str(pem))
        answers = [server.count(config.port, context) for _ in range(12)]
    assert answers[0].status == 200
    assert set(statuses(answers)) == {200, 429}
    assert {one.retry_after for one in answers if one.status == 429} == {"1"}


def test_the_metrics_of_both_replicas_add_up(server: Server) -> None:
    def counted() -> float:
        lines = server.ask("/metrics").body.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("bintally_photos_counted_total{"))

    before = counted()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: server.count(), range(40)))
    assert statuses(answers) == {200: 40}
    assert [counted() - before for _ in range(4)] == [40.0] * 4  # whichever replica tells


# --- Clients that are slow or many ----------------------------------------------------------------------------------


@pytest.mark.faults
def test_300_slow_senders_starve_nobody(server: Server) -> None:
    head = (
        b"POST /v1/count HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nAuthorization: Bearer %s\r\n"
        % server.token.encode()
    )
    with ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20)) for _ in range(300)
        ]
        for number, client in enumerate(slow):
            client.sendall(head + (b"Content-Length: 50000\r\n\r\n\xff" if number % 2 else b"X-Slow: "))
        begun = time.monotonic()
        answers = [server.count() for _ in range(10)]
        assert statuses(answers) == {200: 10}
        assert time.monotonic() - begun < server.body_timeout_s  # so all of them were held meanwhile
        told = [client.recv(65_536) for client in slow]
    assert {answer[:13] for answer in told} == {b"HTTP/1.1 408 "}
    lines = server.ask("/metrics").body.splitlines()
    assert not [line for line in lines if 'status="408"' in line]  # no replica has heard of them


@pytest.mark.faults
def test_overload_is_503_with_retry_after_and_passes_at_once(server: Server, wait_until: WaitUntil) -> None:
    with server.load(num_clients=4 * server.num_replicas * server.max_in_flight) as answers:
        time.sleep(4)
    told = statuses(answers)
    assert set(told) == {200, 503}
    assert told[200] > 50
    assert {(one.retry_after, one.body["code"]) for one in answers if one.status == 503} == {("1", "overloaded")}
    accepted = sorted(one.seconds for one in answers if one.status == 200)
    assert accepted[int(0.99 * len(accepted))] < 5
    recovery_s = wait_until(lambda: server.count().status == 200, 5)
    assert recovery_s < 5
    assert statuses([server.count() for _ in range(10)]) == {200: 10}


# --- Processes that die ---------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_kill_9_of_a_replica_fails_only_what_it_worked_on(server: Server, wait_until: WaitUntil) -> None:
    replicas = server.pids("ray::ServeReplica")
    assert len(replicas) == server.num_replicas
    with server.load() as answers:
        time.sleep(1)
        os.kill(replicas[0], signal.SIGKILL)
        time.sleep(2)
    failed = [one for one in answers if one.status != 200]
    assert len(failed) <= 4  # as many as clients
    told = {(one.status, one.retry_after, one.body and one.body["code"]) for one in failed}
    # 0: half of an answer was sent already; nothing can turn that one into a 502 (decision 0007).
    assert told <= {(502, "1", "replica_lost"), (0, None, None)}
    assert statuses(failed)[0] <= 1
    assert statuses(answers)[200] > 20
    wait_until(lambda: len(set(server.pids("ray::ServeReplica")) - {replicas[0]}) == server.num_replicas, 60)


@pytest.mark.faults
def test_kill_9_of_the_front_is_over_in_seconds(server: Server, wait_until: WaitUntil) -> None:
    (haproxy,) = server.pids("haproxy.cfg")
    os.kill(haproxy, signal.SIGKILL)
    assert wait_until(lambda: server.count().status == 200, 10) < 5
    assert haproxy not in server.pids("haproxy.cfg")


# --- Changes --------------------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_a_model_is_swapped_without_a_failed_request(server: Server, wait_until: WaitUntil) -> None:
    replicas = sorted(server.pids("ray::ServeReplica"))
    new = load_checkpoint(server.checkpoints[1]).version
    with server.load() as answers:
        server.configure(checkpoint=str(server.checkpoints[1]))
        server.reload()
        wait_until(lambda: {one.body["model"]["version"] for one in answers[-8:]} == {new}, 30)
    assert set(statuses(answers)) == {200}
    assert {one.body["model"]["version"] for one in answers} == {new, load_checkpoint(server.checkpoints[0]).version}
    assert sorted(server.pids("ray::ServeReplica")) == replicas


def test_what_has_changed_only_inside_of_files_is_read_again(server: Server, wait_until: WaitUntil) -> None:
    tokens, (first, second) = server.config_path.with_name("tokens"), server.checkpoints
    before, new = load_checkpoint(second).version, load_checkpoint(first).version
    kept = shutil.copytree(second, server.config_path.with_name("kept"), dirs_exist_ok=True)
    server.configure(checkpoint=str(second))
    server.reload()
    try:
        tokens.write_text("another\n")
        shutil.copytree(first, second, dirs_exist_ok=True)
        with server.load() as answers:
            server.reload()
            wait_until(lambda: {one.status for one in answers[-8:]} == {401}, 10)
        assert set(statuses(answers)) == {200, 401}
        asked = [server.count(Authorization="Bearer another") for _ in range(8)]
        assert {one.body["model"]["version"] for one in asked} == {new}
    finally:
        shutil.copytree(kept, second, dirs_exist_ok=True)
        tokens.write_text(f"{server.token}\n")
        server.reload()
    assert server.count().body["model"]["version"] == before
    tokens.write_text("\n")
    server.reload(until="holds no token")
    assert server.count().status == 200
    tokens.write_text(f"{server.token}\n")


@pytest.mark.faults
def test_what_cannot_be_loaded_leaves_all_as_it_was(server: Server) -> None:
    version = server.count().body["model"]["version"]
    server.configure(checkpoint="/nonexistent/checkpoint")
    server.reload(until="error: nothing was reloaded: no checkpoint at /nonexistent/checkpoint")
    assert server.count().body["model"]["version"] == version


@pytest.mark.faults
def test_a_replica_that_is_taken_away_loses_no_request(server: Server, wait_until: WaitUntil) -> None:
    with server.load() as answers:
        server.configure(num_replicas=1)
        server.reload()
        wait_until(lambda: len(server.pids("ray::ServeReplica")) == 1, 60)
    assert set(statuses(answers)) == {200}


@pytest.mark.faults
def test_sigterm_answers_what_is_under_way_and_leaves_no_process(server: Server, wait_until: WaitUntil) -> None:
    started = family(server.process.pid)
    with server.load(2) as answers:
        time.sleep(0.5)
        server.process.terminate()
        server.process.wait(60)
    assert server.process.returncode == 143
    # A kept connection may be closed between two requests; a request that was begun is answered.
    begun = [one for one in answers if one.status]
    assert set(statuses(begun)) <= {200, 503}
    wait_until(lambda: not [pid for pid in started if Path(f"/proc/{pid}").exists()], 20)
