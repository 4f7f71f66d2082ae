"""A folder as a read-only S3 bucket on the loopback: enough of S3 for obstore, boto3, pyarrow and curl, and cheap.

    python benchmarks/s3_server.py --folder /tmp/bins --latency-ms 30

GET with Range, HEAD and ListObjectsV2 with prefix, delimiter and pages; path-style addresses; nobody is asked for a
signature. The folder is listed once, at the start. Bodies come from memory, up to a limit. With rates above 0 it also
misbehaves on purpose, see benchmarks/parts/faults.py:

    python benchmarks/s3_server.py --folder /tmp/bins --slow-down-rate 0.1 --stall-rate 0.01

From one SIGUSR1 to the next, all answers are 503.
"""

import asyncio
import hashlib
import signal
import socket
import struct
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import tyro

from benchmarks.parts.faults import Fault, FaultPlan, Faults

# SO_LINGER of 0 seconds: closing the socket sends a reset instead of a clean end.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerArgs:
    """What to serve, and how slowly."""

    folder: Path = Path()
    """The content of the bucket."""
    bucket: str = "bins"
    """Its name: objects are at http://127.0.0.1:port/bucket/key."""
    port: int = 0
    """0 takes a free one; the endpoint is printed."""
    latency_ms: float = 0.0
    """Every answer is held back for so long, as a distant bucket would."""
    cache_mb: int = 512
    """Bodies kept in memory."""
    quick: bool = False
    """Stop as soon as it listens; `make bench` gives this flag to every script here."""
    faults: tyro.conf.OmitArgPrefixes[Faults] = field(default_factory=Faults)


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer."""

    status: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Folder:
    """The objects of the bucket: sorted keys, and the bodies that were read last."""

    def __init__(self, root: Path, cache_bytes: int) -> None:
        self._root = root
        self._sizes = {
            str(path.relative_to(root)): path.stat().st_size for path in sorted(root.rglob("*")) if path.is_file()
        }
        self.keys = sorted(self._sizes)
        self._free_bytes = cache_bytes
        self._cache: OrderedDict[str, tuple[bytes, str]] = OrderedDict()

    def size(self, key: str) -> int:
        """Size in bytes."""
        return self._sizes[key]

    def read(self, key: str) -> tuple[bytes, str] | None:
        """Body and ETag; None if there was no such key at the start."""
        if key not in self._sizes:
            return None
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        body = (self._root / key).read_bytes()
        entry = (body, f'"{hashlib.md5(body).hexdigest()}"')  # noqa: S324  # an ETag is an MD5
        self._cache[key] = entry
        self._free_bytes -= len(body)
        while self._free_bytes < 0:
            self._free_bytes += len(self._cache.popitem(last=False)[1][0])
        return entry


class Outage:
    """Whether nobody gets an object now."""

    on = False

    def turn(self) -> None:
        """Begin one, or end it."""
        self.on = not self.on


class Connection(asyncio.Protocol):
    """One kept-alive connection; requests have no body and are answered in order, each after the latency."""

    def __init__(
        self, folder: Folder, bucket: str, latency_s: float, outage: Outage, plan: FaultPlan | None = None
    ) -> None:
        self._folder, self._bucket, self._latency_s = folder, bucket, latency_s
        self._outage, self._plan = outage, plan
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
            packet, fault = self._answer(head.decode("latin-1"))
            if self._latency_s:
                asyncio.get_running_loop().call_later(self._latency_s, self._send, packet, fault)
            else:
                self._send(packet, fault)

    def _send(self, packet: bytes, fault: Fault | None = None) -> None:
        if not self._transport or self._transport.is_closing():
            return
        if fault is None or fault in (Fault.SLOW_DOWN, Fault.WRONG_LENGTH):  # these two are in the packet
            self._transport.write(packet)
            return
        cut = (packet.index(b"\r\n\r\n") + 4 + len(packet)) // 2
        self._transport.write(packet[:cut])
        if fault is Fault.STALL:
            assert self._plan is not None
            asyncio.get_running_loop().call_later(self._plan.faults.stall_s, self._send, packet[cut:])
        elif fault is Fault.RESET:
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._transport.abort()
        else:
            self._transport.close()

    def _answer(self, head: str) -> tuple[bytes, Fault | None]:
        request, *lines = head.split("\r\n")
        method, target, _ = request.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        fault = Fault.SLOW_DOWN if self._outage.on else self._plan.next_fault(target) if self._plan else None
        answer = answer_request(self._folder, self._bucket, method, target, headers.get("range"))
        if fault is not None:
            answer = _spoil(answer, fault)
        fields = {"Content-Length": str(len(answer.body)), "Accept-Ranges": "bytes", **answer.headers}
        top = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        packet = f"HTTP/1.1 {answer.status}\r\n{top}\r\n".encode() + (b"" if method == "HEAD" else answer.body)
        return packet, fault


def _spoil(answer: Answer, fault: Fault) -> Answer:
    if fault is Fault.SLOW_DOWN:
        return _error("503 Slow Down", "SlowDown")
    if fault is Fault.WRONG_LENGTH:
        return replace(answer, headers=answer.headers | {"Content-Length": str(len(answer.body) // 2)})
    return answer


def answer_request(folder: Folder, bucket: str, method: str, target: str, wanted_range: str | None) -> Answer:
    """The answer to one request; that to HEAD has the body of GET, which is not sent."""
    url = urlsplit(target)
    name, _, key = unquote(url.path).lstrip("/").partition("/")
    if method not in ("GET", "HEAD"):
        return _error("405 Method Not Allowed", "MethodNotAllowed")
    if name != bucket:
        return _error("404 Not Found", "NoSuchBucket")
    if not key:
        return _list(folder, bucket, {name: values[-1] for name, values in parse_qs(url.query).items()})
    entry = folder.read(key)
    return _error("404 Not Found", "NoSuchKey") if entry is None else _object(*entry, wanted_range)


def _object(body: bytes, etag: str, wanted_range: str | None) -> Answer:
    headers = {
        "ETag": etag,
        "Last-Modified": formatdate(0, usegmt=True),
        "Content-Type": "application/octet-stream",
    }
    if wanted_range is None or not wanted_range.startswith("bytes="):
        return Answer("200 OK", body, headers)
    first, _, last = wanted_range.removeprefix("bytes=").partition("-")
    start = int(first) if first else max(0, len(body) - int(last))
    stop = min(int(last) + 1, len(body)) if first and last else len(body)
    if start >= stop:
        return _error("416 Requested Range Not Satisfiable", "InvalidRange")
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
    return Answer("206 Partial Content", body[start:stop], headers)


def _list(folder: Folder, bucket: str, query: dict[str, str]) -> Answer:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after = query.get("continuation-token") or query.get("start-after", "")
    max_keys = min(int(query.get("max-keys", "1000")), 1000)
    entries: list[str] = []
    index = max(bisect_left(folder.keys, prefix), bisect_right(folder.keys, after))
    last = after
    while index < len(folder.keys) and folder.keys[index].startswith(prefix) and len(entries) < max_keys:
        last = folder.keys[index]
        group = _common_prefix(last, prefix, delimiter)
        if group:
            last = group + "\U0010ffff"  # behind every key of the group
            entries.append(f"<CommonPrefixes><Prefix>{escape(group)}</Prefix></CommonPrefixes>")
        else:
            entries.append(
                f"<Contents><Key>{escape(last)}</Key><LastModified>1970-01-01T00:00:00.000Z</LastModified>"
                f"<Size>{folder.size(last)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
        index = bisect_right(folder.keys, last)
    more = index < len(folder.keys) and folder.keys[index].startswith(prefix)
    token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if more else ""
    return _xml(
        "200 OK",
        f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{bucket}</Name>'
        f"<Prefix>{escape(prefix)}</Prefix><KeyCount>{len(entries)}</KeyCount><MaxKeys>{max_keys}</MaxKeys>"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(entries)}</ListBucketResult>",
    )


def _common_prefix(key: str, prefix: str, delimiter: str) -> str | None:
    inside, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
    return prefix + inside + found if found else None


def _error(status: str, code: str) -> Answer:
    return _xml(status, f"<Error><Code>{code}</Code><Message>{status}</Message></Error>")


def _xml(status: str, text: str) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()
    return Answer(status, body, {"Content-Type": "application/xml"})


async def serve(args: ServerArgs) -> None:
    """Serve until cancelled; prints the endpoint as soon as it listens."""
    folder = Folder(args.folder, args.cache_mb * 2**20)
    plan = FaultPlan(args.faults) if any(rate for _, rate in args.faults.rates) else None
    loop, outage = asyncio.get_running_loop(), Outage()
    loop.add_signal_handler(signal.SIGUSR1, outage.turn)
    server = await loop.create_server(
        lambda: Connection(folder, args.bucket, args.latency_ms / 1000, outage, plan), "127.0.0.1", args.port
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    if not args.quick:
        await server.serve_forever()


@contextmanager
def s3_server(folder: Path, *, latency_ms: float = 0.0, faults: Faults | None = None) -> Iterator[tuple[str, int]]:
    """A server in a process of its own: its endpoint and process id."""
    import subprocess
    import sys

    command = [sys.executable, __file__, "--folder", str(folder), "--latency-ms", str(latency_ms)]
    command += faults.to_flags() if faults else []
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        endpoint = server.stdout.readline().strip()
        if not endpoint:
            raise RuntimeError("the S3 server did not start; its message is above")
        yield endpoint, server.pid
    finally:
        server.terminate()
        server.wait(timeout=10)


def main() -> None:
    """Parse the command line and serve."""
    asyncio.run(serve(tyro.cli(ServerArgs, description=__doc__)))


if __name__ == "__main__":
    main()
