"""Clients of a server that is struck: what each request came to, and the longest silence.

They ask again as serve/client.py does, which is what a user has; one more asks all the time, and tells the silence.
"""

import http.client
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import pairwise
from typing import Final

NUM_CLIENTS: Final = 4
PAUSE_S: Final = 0.02  # of a client between two requests, at most
PROBE_S: Final = 0.1  # between two requests of the one that tells the silence
PATIENCE_S: Final = 60.0  # of a client with an answer
TRY_AGAIN: Final = (429, 503)  # as in serve/client.py, which a script beside benchmarks/serve.py cannot import
FIRST_WAIT_S: Final = 0.25
MAX_TRIES: Final = 7  # of a request; by FIRST_WAIT_S they are spread over 16 s
BROKEN: Final = 0
"""In place of a status: the request was sent, and no whole answer came."""
REFUSED: Final = -1
"""In place of a status: nobody took the connection, so the request was not accepted."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One try of a request."""

    ended: float
    """By `time.monotonic()`."""
    status: int
    retry_after_s: float | None = None
    """As the answer says."""

    @property
    def may_retry(self) -> bool:
        """Whether serve/client.py asks again."""
        return self.status in (BROKEN, REFUSED, *TRY_AGAIN) or self.retry_after_s is not None


@dataclass(frozen=True, slots=True)
class Heard:
    """What the clients of a server were told."""

    requests: list[list[Asked]] = field(default_factory=list)
    """The tries of each request, which end with a count, or without one."""
    probes: list[Asked] = field(default_factory=list)
    """Of the client that asks all the time, and each time once."""

    @property
    def num_lost(self) -> int:
        """Requests that got no count, although they were sent again."""
        return sum(tries[-1].status != HTTPStatus.OK for tries in self.requests)

    @property
    def num_again(self) -> int:
        """Requests that had to be sent again."""
        return sum(len(tries) > 1 for tries in self.requests)


def words_of(one: Asked) -> str:
    """What became of a try."""
    if one.status in (HTTPStatus.OK, BROKEN, REFUSED):
        return {HTTPStatus.OK: "counted", BROKEN: "cut off", REFUSED: "not accepted"}[one.status]
    return f"answered {one.status} {'without' if one.retry_after_s is None else 'with'} Retry-After"


def longest_silence(heard: Heard, struck: float) -> float:
    """Seconds between two counts, or between the last one and the end, at most; from the fault on."""
    asked = [*heard.probes, *(one for tries in heard.requests for one in tries)]
    counted = sorted(one.ended for one in asked if one.status == HTTPStatus.OK)
    last_before = max((ended for ended in counted if ended <= struck), default=struck)
    times = [last_before, *(ended for ended in counted if ended > struck), max(one.ended for one in asked)]
    return max(later - earlier for earlier, later in pairwise(times))


@contextmanager
def clients_asking(port: int, photo: bytes, dice: random.Random) -> Iterator[Heard]:
    """Clients that count a photo again and again meanwhile, each after pauses of its own; what they are told."""
    heard, done = Heard(), threading.Event()

    def ask_on(pauses: random.Random) -> None:
        while not done.wait(pauses.uniform(0, PAUSE_S)):
            heard.requests.append(ask_until_counted(port, photo))

    def probe() -> None:
        while not done.wait(PROBE_S):
            heard.probes.append(ask(port, photo))

    with ThreadPoolExecutor(NUM_CLIENTS + 1) as pool:
        clients = [pool.submit(ask_on, random.Random(dice.random())) for _ in range(NUM_CLIENTS)]  # noqa: S311
        clients.append(pool.submit(probe))
        try:
            yield heard
        finally:
            done.set()
    for client in clients:
        client.result()


def ask_until_counted(port: int, photo: bytes, max_tries: int = MAX_TRIES) -> list[Asked]:
    """All tries of a request, sent again when and after what serve/client.py waits for."""
    tries = [ask(port, photo)]
    while tries[-1].may_retry and len(tries) < max_tries:
        time.sleep(tries[-1].retry_after_s or FIRST_WAIT_S * 2 ** (len(tries) - 1))
        tries.append(ask(port, photo))
    return tries


def is_healthy(port: int) -> bool:
    """Whether a replica takes requests at a port."""
    with (
        suppress(OSError, http.client.HTTPException),
        closing(http.client.HTTPConnection("127.0.0.1", port, timeout=2)) as connection,
    ):
        connection.request("GET", "/-/healthz")
        return connection.getresponse().status == HTTPStatus.OK
    return False


def ask(port: int, photo: bytes) -> Asked:
    """Count a photo, on a connection of its own."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        try:
            connection.connect()
        except OSError:
            return Asked(time.monotonic(), REFUSED)
        try:
            connection.request("POST", "/v1/count", photo, {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            return Asked(time.monotonic(), BROKEN)
        after = answer.headers["Retry-After"]
        return Asked(time.monotonic(), answer.status, None if after is None else float(after))
