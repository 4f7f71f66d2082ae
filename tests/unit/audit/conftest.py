"""Audits over real HTTP: a server without Ray, and what it answers."""

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

Line = dict[str, Any]
StartS3 = Callable[[Callable[[str], tuple[int, bytes]]], str]

EXPECTED = 3


@dataclass(frozen=True, slots=True)
class Audited:
    """The lines of an audit."""

    lines: list[Line]

    @property
    def bins(self) -> list[Line]:
        """The recount queue."""
        return [line for line in self.lines if line["kind"] == "bin"]

    @property
    def problems(self) -> dict[str, str]:
        """Why bins have no count, by key."""
        return {line["key"]: line["problem"]["code"] for line in self.bins if line["problem"]}

    @property
    def last(self) -> Line:
        """The summary, or the error."""
        return self.lines[-1]


@dataclass(frozen=True, slots=True)
class AuditServer:
    """A running server."""

    url: str

    def ask(self, table: dict[str, Any] | bytes, kind: str = "application/json", **query: str) -> httpx.Response:
        """The answer as it is."""
        content = table if isinstance(table, bytes) else json.dumps(table).encode()
        return httpx.post(
            f"{self.url}/v1/audit", content=content, headers={"content-type": kind}, params=query, timeout=120
        )

    def audit(self, table: dict[str, Any] | bytes, kind: str = "application/json", **query: str) -> Audited:
        """The lines of an audit that begins."""
        response = self.ask(table, kind, **query)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/x-ndjson"
        return Audited([json.loads(line) for line in response.text.splitlines()])

    def refusal(self, table: dict[str, Any] | bytes, kind: str = "application/json", **query: str) -> tuple[int, str]:
        """Status and code of an audit that does not begin."""
        response = self.ask(table, kind, **query)
        return response.status_code, response.json()["code"]

    def metric(self, name: str) -> float:
        """A figure of the server; 0 if it has none."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return float(next((line.rsplit(" ", 1)[1] for line in lines if line.startswith(f"{name} ")), 0))


@pytest.fixture
def audit_server(local_server: Callable[..., str]) -> Callable[..., AuditServer]:
    """`audit_server(**fields_of_settings)`: a running server."""
    return lambda **settings: AuditServer(local_server(**settings))


@pytest.fixture(scope="session")
def table_of() -> Callable[..., dict[str, Any]]:
    """`table_of(bin_ids)`: a record table of these bins."""

    def make(bin_ids: Iterable[str]) -> dict[str, Any]:
        return {"records": [{"bin_id": bin_id, "expected_quantity": EXPECTED} for bin_id in bin_ids]}

    return make


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """`wait_until(condition, seconds)`."""

    def wait(condition: Callable[[], bool], seconds: float = 10.0) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until
            time.sleep(0.02)

    return wait


@pytest.fixture
def slow_s3(s3_server: StartS3, photo: Callable[..., bytes]) -> tuple[str, list[str], threading.Event]:
    """An S3 server that answers with a photo only once the event is set; its endpoint and the paths asked for."""
    asked: list[str] = []
    go = threading.Event()
    body = photo()

    def answer(path: str) -> tuple[int, bytes]:
        asked.append(path)
        go.wait(30)
        return 200, body

    return s3_server(answer), asked, go
