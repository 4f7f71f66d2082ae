"""Requests on keep-alive connections in one event loop: as fast as they are answered, or at a rate.

Answers are parsed by httptools, in C, and a request is bytes that were put together once, so that little of the machine
goes to asking.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from math import ceil
from typing import Final, cast
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

FAILED: Final = 0
"""In place of a status: no answer came, or none that is HTTP."""
RETRY_S: Final = 0.05  # after a connection that failed
LOOK_S: Final = 0.02
_BOUNDARY: Final = "bintally-load"


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where requests go, and what is sent each time."""

    host: str
    port: int
    request: bytes
    timeout_s: float = 30.0
    """A request without an answer for so long has failed."""


@dataclass(slots=True)
class Answers:
    """What came back."""

    latencies_s: list[float] = field(default_factory=list)
    """Of answers with status 2xx."""
    statuses: Counter[int] = field(default_factory=Counter)

    def add(self, status: int, seconds: float) -> None:
        """Take in one answer, or the lack of it."""
        self.statuses[status] += 1
        if 200 <= status < 300:
            self.latencies_s.append(seconds)

    def clear(self) -> None:
        """Begin anew."""
        self.latencies_s.clear()
        self.statuses.clear()

    @property
    def errors(self) -> dict[str, int]:
        """How many had no status 2xx, by status."""
        return {
            "failed" if status == FAILED else str(status): number
            for status, number in sorted(self.statuses.items())
            if not 200 <= status < 300
        }


def make_request(url: str, photo: bytes, *, form: str | None = None, headers: tuple[str, ...] = ()) -> bytes:
    """A POST of a photo, as the body or as a file of a form.

    Args:
        url: http://host:port/path.
        photo: bytes of a JPEG.
        form: name of the form's field; None sends the photo as the body.
        headers: further ones, each `Name: value`.
    """
    parts = urlsplit(url)
    body, kind = photo, "image/jpeg"
    if form is not None:
        head = (
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{form}"; filename="photo.jpg"\r\n'
            "Content-Type: image/jpeg\r\n\r\n"
        )
        body = head.encode() + photo + f"\r\n--{_BOUNDARY}--\r\n".encode()
        kind = f"multipart/form-data; boundary={_BOUNDARY}"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"POST {path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def percentile_ms(seconds: list[float], percent: float) -> float | None:
    """The least value that so many per cent do not exceed, in ms; None of nothing."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    return round(1000 * ordered[max(0, ceil(percent / 100 * len(ordered)) - 1)], 2)


class Connection(asyncio.Protocol):
    """One keep-alive connection, with one request at a time on it."""

    def __init__(self) -> None:
        self._parser = HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None
        self.is_open = False

    async def ask(self, target: Target) -> int:
        """Send the request; the status of its answer, or FAILED."""
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[int] = loop.create_future()
        self._answer = answer
        timer = loop.call_later(target.timeout_s, self.close)
        self._transport.write(target.request)
        try:
            return await answer
        finally:
            timer.cancel()

    def close(self) -> None:
        """End it; a request under way has failed."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport, self.is_open = cast("asyncio.Transport", transport), True  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """Called by asyncio."""
        self.is_open = False
        self._settle(FAILED)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            self.close()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if not self._parser.should_keep_alive():
            self.close()
        self._settle(self._parser.get_status_code())

    def _settle(self, status: int) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)


async def connect(target: Target) -> Connection | None:
    """A new connection; None if there is nobody to connect to."""
    try:
        async with asyncio.timeout(target.timeout_s):
            _, connection = await asyncio.get_running_loop().create_connection(Connection, target.host, target.port)
    except (OSError, TimeoutError):
        return None
    return connection


@asynccontextmanager
async def clients_asking(target: Target, concurrency: int, answers: Answers) -> AsyncIterator[None]:
    """So many clients meanwhile, each of which asks again as soon as it is answered."""

    async def ask_on() -> None:
        connection: Connection | None = None
        try:
            while True:
                if connection is None or not connection.is_open:
                    connection = await connect(target)
                if connection is None:
                    answers.add(FAILED, 0.0)
                    await asyncio.sleep(RETRY_S)
                    continue
                begun = time.perf_counter()
                status = await connection.ask(target)
                answers.add(status, time.perf_counter() - begun)
        finally:
            if connection is not None:
                connection.close()

    clients = [asyncio.ensure_future(ask_on()) for _ in range(concurrency)]
    try:
        yield
    finally:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


async def wait_until(is_reached: Callable[[], bool], within_s: float) -> None:
    """Sleep until something is so, or the time is over."""
    deadline = time.monotonic() + within_s
    while not is_reached() and (left := deadline - time.monotonic()) > 0:  # noqa: ASYNC110  # an event would cost each answer
        await asyncio.sleep(min(LOOK_S, left))


async def ask_at_rate(
    target: Target, *, rate: float, seconds: float, max_connections: int, answers: Answers
) -> dict[str, int]:
    """Ask at even intervals, whatever is answered; latencies count from when a request was due.

    Returns:
        Requests that were sent, and those that were not, as all connections were in use.
    """
    begun = time.perf_counter()
    idle: list[Connection] = []
    under_way: set[asyncio.Task[None]] = set()
    num_held = 0

    async def ask(due: float) -> None:
        nonlocal num_held
        connection = idle.pop() if idle else await connect(target)
        status = await connection.ask(target) if connection else FAILED
        answers.add(status, time.perf_counter() - due)
        if connection is not None and connection.is_open:
            idle.append(connection)
        num_held -= 1

    sent = unsent = 0
    for number in range(int(rate * seconds)):
        due = begun + number / rate
        if (early := due - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        idle[:] = [one for one in idle if one.is_open] if number % 100 == 0 else idle
        if num_held >= max_connections:
            unsent += 1
            continue
        num_held += 1
        sent += 1
        task = asyncio.ensure_future(ask(due))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    if under_way:
        await asyncio.wait(under_way, timeout=target.timeout_s)
    for connection in idle:
        with suppress(OSError):
            connection.close()
    return {"sent": sent, "unsent": unsent}
