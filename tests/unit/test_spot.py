"""train/spot.py with a metadata service on the loopback that asks for a session token, as EC2's does."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from train.spot import read_metadata, seconds_left, watch


class Metadata(ThreadingHTTPServer):
    """Answers GET only with the token that it gave last."""

    def __init__(self) -> None:
        self.values = {"instance-life-cycle": "spot", "instance-id": "i-0spot"}
        self.refuse = 0  # so many requests fail first
        self.num_tokens = 0
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:  # http.server's name
        if self.path != "/latest/api/token" or not self.headers["X-aws-ec2-metadata-token-ttl-seconds"]:
            self._answer(400)
        elif self.server.refuse:
            self.server.refuse -= 1
            self._answer(503)
        else:
            self.server.num_tokens += 1
            self._answer(200, f"token{self.server.num_tokens}")

    def do_GET(self) -> None:
        value = self.server.values.get(self.path.removeprefix("/latest/meta-data/"))
        if self.headers["X-aws-ec2-metadata-token"] != f"token{self.server.num_tokens}":
            self._answer(401)
        else:
            self._answer(404 if value is None else 200, value or "")

    def _answer(self, status: int, text: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with Metadata() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def service(metadata: Metadata) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{metadata.server_port}", trust_env=False) as client:
        yield client


def test_what_is_not_there_is_none(metadata: Metadata, service: httpx.Client) -> None:
    assert read_metadata(service, "instance-id") == "i-0spot"
    assert read_metadata(service, "spot/instance-action") is None


def test_a_node_that_is_not_spot_is_not_watched(
    metadata: Metadata, service: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata.values["instance-life-cycle"] = "on-demand"
    watch(service, "127.0.0.1:1")
    assert capsys.readouterr().out.endswith("this is no spot node: there is nothing to watch for\n")


def test_a_service_that_fails_is_asked_again(
    metadata: Metadata, service: httpx.Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.spot._POLL_S", 0.01)
    metadata.values["instance-life-cycle"] = "on-demand"
    metadata.refuse = 3
    watch(service, "127.0.0.1:1")
    told = capsys.readouterr().out
    assert told.count("will ask again: HTTPStatusError: Server error '503") == 1  # not every time
    assert "no spot node" in told


@pytest.mark.parametrize(("due", "left_s"), [("2026-11-22T02:02:00Z", 120), ("2026-11-22T01:00:00Z", 0)])
def test_the_time_that_is_left(due: str, left_s: int) -> None:
    now = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
    assert seconds_left(f'{{"action": "terminate", "time": "{due}"}}', now) == left_s
