"""Clients of audits: those that leave or read no further, several at once, and requests beside them."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.audit import MAX_AUDITS, MAX_PHOTOS
from serve.models import load_models
from serve.predictor import Counted
from serve.service import CounterService, Job
from serve.settings import Settings
from serve.telemetry import Instruments

AuditServer = Any  # of conftest.py
StartServer = Callable[..., AuditServer]
SlowS3 = tuple[str, list[str], threading.Event]
TableOf = Callable[..., dict[str, Any]]
WaitUntil = Callable[..., None]


def test_a_client_that_leaves_ends_its_audit(
    audit_server: StartServer, slow_s3: SlowS3, table_of: TableOf, wait_until: WaitUntil
) -> None:
    endpoint, asked, go = slow_s3
    server = audit_server(audit_source="s3://bins", audit_endpoint_url=endpoint)
    table = table_of(str(number) for number in range(1000))
    with httpx.stream("POST", f"{server.url}/v1/audit", json=table) as response:
        lines = response.iter_lines()  # named, since httpx hangs up once it is collected
        assert json.loads(next(lines))["kind"] == "progress"
        wait_until(lambda: len(asked) == MAX_PHOTOS)
        assert server.metric('bintally_audits_total{outcome="left"}') == 0
    wait_until(lambda: server.metric('bintally_audits_total{outcome="left"}') == 1)
    go.set()
    time.sleep(0.3)
    assert len(asked) == MAX_PHOTOS
    assert server.metric("bintally_photos_in_flight") == 0


def test_a_client_that_reads_no_further_is_given_up(
    audit_server: StartServer,
    table_of: TableOf,
    wait_until: WaitUntil,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve.audit_routes.TAKE_WITHIN_S", 0.5)
    server = audit_server(audit_source=f"file://{tmp_path}")
    body = json.dumps(table_of(str(number) for number in range(12_000))).encode()
    head = b"POST /v1/audit HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that the answer is more than sockets buffer
        client.connect(("127.0.0.1", httpx.URL(server.url).port))
        client.sendall(head % len(body) + body)
        lines = client.makefile("rb")
        next(line for line in lines if b'"kind":"progress"' in line)
        wait_until(lambda: server.metric('bintally_audits_total{outcome="left"}') == 1, 30)
        assert b'"kind":"summary"' not in lines.read()


def test_the_number_of_audits_is_bounded(
    audit_server: StartServer, slow_s3: SlowS3, table_of: TableOf, wait_until: WaitUntil
) -> None:
    endpoint, asked, go = slow_s3
    server = audit_server(audit_source="s3://bins", audit_endpoint_url=endpoint)
    with ThreadPoolExecutor(MAX_AUDITS) as threads:
        audits = [threads.submit(server.audit, table_of(["1", "2"])) for _ in range(MAX_AUDITS)]
        wait_until(lambda: len(asked) == 2 * MAX_AUDITS)
        refused = server.ask(table_of(["1"]))
        go.set()
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"] == "1"
        assert all(audit.result().last["kind"] == "summary" for audit in audits)
    assert server.audit(table_of(["1"])).last["kind"] == "summary"


def test_two_audits_leave_room_for_requests(
    audit_server: StartServer, bucket_dir: Callable[..., Path], table_of: TableOf, photo: Callable[..., bytes]
) -> None:
    """With room for four photos, two requests at a time are never refused, and no photo of an audit is, either."""
    ids = [f"{number:05d}" for number in range(50)]
    folder = bucket_dir(dict.fromkeys(ids, 1))
    server = audit_server(audit_source=f"file://{folder}", max_in_flight=4)
    body = photo(size=(400, 300))
    headers = {"content-type": "image/jpeg"}

    def ask_until_done(audits: list[Any]) -> list[int]:
        with httpx.Client() as client:
            statuses = []
            while not all(audit.done() for audit in audits):
                reply = client.post(f"{server.url}/v1/count", content=body, headers=headers, timeout=10)
                statuses.append(reply.status_code)
            return statuses

    with ThreadPoolExecutor(4) as threads:
        audits = [threads.submit(server.audit, table_of(ids)) for _ in range(2)]
        clients = [threads.submit(ask_until_done, audits) for _ in range(2)]
        statuses = [status for client in clients for status in client.result()]
    assert len(statuses) > 10
    assert set(statuses) == {200}
    for audit in audits:
        assert len(audit.result().bins) == len(ids)
        assert audit.result().problems == {}


def test_a_photo_of_an_audit_waits_while_half_of_the_room_is_taken(
    served_checkpoint: Path, photo: Callable[..., bytes]
) -> None:
    async def run(num_requests: int) -> list[str]:
        settings = Settings(checkpoint=str(served_checkpoint), max_in_flight=4)
        service = CounterService(settings, load_models(settings), Instruments())
        gates = [asyncio.Event() for _ in range(num_requests + 1)]
        order: list[str] = []
        starts: asyncio.Queue[int] = asyncio.Queue()
        started = 0

        async def engine(job: Job) -> Counted:
            nonlocal started
            started += 1
            starts.put_nowait(started)
            await gates[started - 1].wait()
            return job.predictor.count([job.photo])[0]

        async def ask(name: str, counting: Awaitable[object]) -> None:
            await counting
            order.append(name)

        service.engine = engine
        requests = [asyncio.create_task(ask("request", service.count(photo(), None, ""))) for _ in range(num_requests)]
        for _ in range(num_requests):
            await starts.get()
        name, predictor = service.choose(None, "")
        audit = asyncio.create_task(ask("audit", service.count_when_quiet(photo(), name, predictor)))
        gates[-1].set()  # its photo could pass at once
        await asyncio.sleep(0.3)
        seen = [*order, f"{started} started"]
        for gate in gates:
            gate.set()
        await asyncio.gather(*requests, audit)
        await service.close()
        return seen

    assert asyncio.run(run(1)) == ["audit", "2 started"]
    assert asyncio.run(run(2)) == ["2 started"]
    assert asyncio.run(run(4)) == ["4 started"]  # and it was not refused
