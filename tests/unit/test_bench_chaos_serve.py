"""What a client of a struck server is told, and what is made of it."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.chaos import METHOD
from benchmarks.parts import chaos_clients
from benchmarks.parts.chaos_clients import (
    BROKEN,
    REFUSED,
    Asked,
    Heard,
    ask,
    ask_until_counted,
    is_healthy,
    longest_silence,
)
from benchmarks.parts.chaos_serve import OUTAGE_LIMIT_S, judge
from bintally.ports import free_port
from serve import client


class Replica(BaseHTTPRequestHandler):
    """Answers what the body asks for."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/-/healthz" else 404)
        self.end_headers()

    def do_POST(self) -> None:
        wanted = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if wanted == "cut off":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
            return
        status, _, header = wanted.partition(" ")
        self.send_response(int(status))
        if header:
            self.send_header(header, "1")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Replica) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def flaky_port() -> Iterator[int]:
    """Of a server that cuts off the first request, is full at the second, and counts the third."""
    told = iter((b"", b"503 Full\r\nRetry-After: 1", b"200 OK"))

    class Flaky(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if status := next(told):
                self.wfile.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(
    ("wanted", "status", "num_tries"),
    [
        (b"200", 200, 1),
        (b"502 Retry-After", 502, 2),
        (b"503", 503, 2),
        (b"500", 500, 1),  # of Ray's own proxy, which serve/client.py takes for an answer
        (b"cut off", BROKEN, 2),
    ],
)
def test_a_request_is_sent_again_when_serve_client_does(port: int, wanted: bytes, status: int, num_tries: int) -> None:
    tries = ask_until_counted(port, wanted, max_tries=2)
    assert [one.status for one in tries] == [status] * num_tries
    assert Heard([tries]).num_again == num_tries - 1
    assert Heard([tries]).num_lost == (status != 200)
    assert is_healthy(port)


def test_our_clients_wait_as_serve_client_does() -> None:
    assert (chaos_clients.TRY_AGAIN, chaos_clients.FIRST_WAIT_S) == (client.TRY_AGAIN, client.FIRST_WAIT_S)
    assert client.FIRST_WAIT_S * 2 ** (chaos_clients.MAX_TRIES - 2) < client.MAX_WAIT_S


def test_the_method_tells_the_limit() -> None:
    assert f"no outage was above {OUTAGE_LIMIT_S:.0f} s" in METHOD


def test_a_request_that_is_cut_off_and_then_counted_is_not_lost(flaky_port: int) -> None:
    tries = ask_until_counted(flaky_port, b"any")
    assert [one.status for one in tries] == [BROKEN, 503, 200]
    assert (Heard([tries]).num_lost, Heard([tries]).num_again) == (0, 1)


def test_what_nobody_takes_was_not_accepted() -> None:
    nobody = free_port()
    assert (ask(nobody, b"200").status, is_healthy(nobody)) == (REFUSED, False)


@pytest.mark.parametrize(
    ("counted", "silence_s"),
    [((1.0, 9.0, 10.5, 14.0, 15.0), 3.5), ((1.0, 9.5, 10.5), 4.5), ((9.0,), 6.0), ((), 5.0), ((14.0,), 4.0)],
)
def test_the_silence_is_the_longest_time_without_a_count_from_the_fault_on(
    counted: tuple[float, ...], silence_s: float
) -> None:
    probes = [*(Asked(ended, 200) for ended in reversed(counted)), Asked(12.0, BROKEN)]
    assert longest_silence(Heard([[Asked(15.0, 502, 1)]], probes), 10.0) == silence_s
    requests = [[Asked(12.0, BROKEN), Asked(15.0, 502, 1)], *([one] for one in probes)]
    assert longest_silence(Heard(requests), 10.0) == silence_s


COUNTED = [Asked(9.0, 200)], [Asked(11.0, 200)]
AGAIN = [Asked(10.2, BROKEN), Asked(10.5, 502, 1.0), Asked(11.5, 200)]


def test_a_row_tells_what_became_of_all_requests() -> None:
    row = judge("serve_x", "a replica", Heard([*COUNTED, AGAIN]), 10.0, 7.25, [])
    assert (row.recovered, row.lost, row.repeated_epochs, row.outage_s) == (True, 0, None, 2.0)
    tries = "1 cut off, 1 answered 502 with Retry-After"
    assert row.told == (f"a replica killed: of 3 requests 1 were sent again (tries: {tries}); as before after 7.2 s")


@pytest.mark.parametrize(
    ("more", "back_s", "left", "lost", "why"),
    [
        ([], None, [], 0, "not all"),
        ([], 1.0, ["ray::Replica"], 0, "ray::Replica"),
        ([[Asked(10.5, 500)]], 1.0, [], 1, "1 requests never got a count"),
        ([[Asked(10.5, BROKEN)]] * 500, 1.0, [], 500, "500 requests never got a count"),
        ([[Asked(11.1 + OUTAGE_LIMIT_S, 200)]], 1.0, [], 0, "10.1 s without an answer, more than 10"),
    ],
)
def test_what_is_lost_late_or_left_is_no_recovery(
    more: list[list[Asked]], back_s: float | None, left: list[str], lost: int, why: str
) -> None:
    row = judge("serve_x", "a replica", Heard([*COUNTED, *more]), 10.0, back_s, left)
    assert (row.recovered, row.lost) == (False, lost)
    assert why in row.told
