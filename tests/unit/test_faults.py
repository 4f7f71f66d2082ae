"""The bucket client against a server that misbehaves on purpose, and the faults of that server themselves."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from benchmarks.parts.faults import Fault, FaultPlan, Faults, fault_of
from benchmarks.s3_server import s3_server as serve_folder
from bintally.errors import ConfigError, SourceUnreachableError
from bintally.source_config import DataConfig
from data.bucket import Bucket, open_bucket
from data.patience import BrokenBodyError, check_whole

Answer = tuple[int, bytes]
StartServer = Callable[[Callable[[str], Answer]], str]

ALL_RATES = (
    {"slow_down_rate": 1.0},
    {"reset_rate": 1.0},
    {"stall_rate": 1.0, "stall_s": 5.0},
    {"short_rate": 1.0},
    {"wrong_length_rate": 1.0},
)
PHOTO_END = b"\xff\xd9"


@pytest.fixture(scope="module")
def objects() -> dict[str, bytes]:
    """60 photos, or what has the ends of one, and their records."""
    found: dict[str, bytes] = {}
    for number in range(60):
        found[f"bin-images/{number:05d}.jpg"] = b"\xff\xd8" + os.urandom(1000 * number) + PHOTO_END
        items = {f"B{item}": {"quantity": 1, "name": "}" * item} for item in range(number)}
        found[f"metadata/{number:05d}.json"] = json.dumps({"BIN_FCSKU_DATA": items, "EXPECTED_QUANTITY": 1}).encode()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, objects: dict[str, bytes]) -> Path:
    path = tmp_path_factory.mktemp("faulty")
    for key, content in objects.items():
        (path / key).parent.mkdir(exist_ok=True)
        (path / key).write_bytes(content)
    return path


def impatient(url: str, **options: float) -> Bucket:
    settings: dict[str, float] = {"max_wait_s": 0.1, "read_timeout_s": 0.3} | options
    return open_bucket(DataConfig(source="s3://bins", endpoint_url=url), **settings)  # type: ignore[arg-type]


async def get_all(bucket: Bucket, keys: list[str]) -> dict[str, bytes | None]:
    return dict(zip(keys, await asyncio.gather(*map(bucket.get, keys)), strict=True))


# The client


@pytest.mark.parametrize("seed", [0, 1])
def test_every_object_comes_whole_through_all_faults(folder: Path, objects: dict[str, bytes], seed: int) -> None:
    faults = Faults(
        faults_seed=seed,
        slow_down_rate=0.1,
        reset_rate=0.1,
        stall_rate=0.05,
        stall_s=5,
        short_rate=0.1,
        wrong_length_rate=0.1,
    )
    with serve_folder(folder, faults=faults) as (url, _):
        assert asyncio.run(get_all(impatient(url), list(objects))) == objects


@pytest.mark.parametrize("rates", ALL_RATES, ids=lambda rates: next(iter(rates)))
def test_a_server_that_does_nothing_else_is_given_up_in_time(folder: Path, rates: dict[str, float]) -> None:
    started = time.monotonic()
    faults = Faults(**rates)  # type: ignore[arg-type]
    with serve_folder(folder, faults=faults) as (url, _), pytest.raises(SourceUnreachableError, match="s3://bins at "):
        asyncio.run(impatient(url, max_retries=1, read_timeout_s=0.1).get("metadata/00050.json"))
    assert time.monotonic() - started < 10


def test_a_stall_is_asked_again_and_not_waited_for(s3_server: StartServer) -> None:
    asked: list[str] = []

    def answer(path: str) -> Answer:
        asked.append(path)
        if len(asked) == 1:
            time.sleep(5)
        return 200, b"{}"

    bucket, started = impatient(s3_server(answer)), time.monotonic()
    assert asyncio.run(bucket.get("metadata/00001.json")) == b"{}"
    assert time.monotonic() - started < 3
    assert len(asked) == 2


def test_what_is_missing_needs_no_patience(folder: Path) -> None:
    with serve_folder(folder) as (url, _):
        assert asyncio.run(impatient(url).get("bin-images/99999.jpg")) is None


def test_a_bad_request_is_not_repeated(s3_server: StartServer) -> None:
    asked: list[str] = []

    def answer(path: str) -> Answer:
        asked.append(path)
        return 400, b"<Error/>"

    with pytest.raises(SourceUnreachableError, match="400"):
        asyncio.run(impatient(s3_server(answer)).get("metadata/00001.json"))
    assert len(asked) == 1


def test_any_store_makes_a_bucket() -> None:
    bucket = Bucket(MemoryStore(), "memory")
    bucket.store.put("bin-images/00001.jpg", b"photo")
    assert bucket.list_ids() == ["00001"]
    assert asyncio.run(get_all(bucket, ["bin-images/00001.jpg", "bin-images/00002.jpg"])) == {
        "bin-images/00001.jpg": b"photo",
        "bin-images/00002.jpg": None,
    }


# Which body is whole


ETAG_OF_ABC = '"900150983cd24fb0d6963f7d28e17f72"'


@pytest.mark.parametrize(
    ("body", "etag"),
    [
        (b"abc", ETAG_OF_ABC),
        (b"no matter", None),
        (b"no matter", '"0"'),
        (b"no matter", '"900150983cd24fb0d6963f7d28e17f72-3"'),  # uploaded in three parts
        (b"\xff\xd8 photo under SSE-KMS \xff\xd9", ETAG_OF_ABC),
        (b"\x89PNG under SSE-KMS IEND\xaeB`\x82", ETAG_OF_ABC),
        (b'{"under": "SSE-KMS"}\n', ETAG_OF_ABC),
    ],
)
def test_what_nothing_speaks_against_is_whole(body: bytes, etag: str | None) -> None:
    assert check_whole(body, etag) is body


@pytest.mark.parametrize(
    "body", [b"ab", b"", b"\xff\xd8 half a photo", b'{"half": {"a": 1}', b"\xff\xd9 the end came first"]
)
def test_what_is_no_object_and_has_another_digest_is_broken(body: bytes) -> None:
    with pytest.raises(BrokenBodyError, match=ETAG_OF_ABC):
        check_whole(body, ETAG_OF_ABC)


# What only a raw server can do


def ask_raw(answer: Callable[[str], bytes], *, signed: bool = False) -> bytes | None:
    """The record that a server gives which writes `answer(head)` and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer((await reader.readuntil(b"\r\n\r\n")).decode()))
        writer.close()

    async def ask() -> bytes | None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        bucket = open_bucket(DataConfig(source="s3://bins", endpoint_url=url, signed=signed), max_wait_s=0.1)
        async with server:
            return await bucket.get("metadata/00001.json")

    return asyncio.run(ask())


def response(body: bytes, length: int | None = None, status: str = "200 OK") -> bytes:
    length = len(body) if length is None else length
    dates = "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nConnection: close\r\n"
    return f'HTTP/1.1 {status}\r\n{dates}ETag: "0"\r\nContent-Length: {length}\r\n\r\n'.encode() + body


def test_a_length_larger_than_the_body_is_asked_again() -> None:
    """The client resumes at the end of the object, where there is nothing."""
    heads: list[str] = []

    def answer(head: str) -> bytes:
        heads.append(head)
        if "range: " in head.lower():
            return response(b"", status="416 Requested Range Not Satisfiable")
        return response(b"{}", length=4 if len(heads) == 1 else 2)

    assert ask_raw(answer) == b"{}"
    assert len(heads) == 3


@pytest.mark.parametrize("signed", [False, True])
def test_requests_are_signed_only_when_asked_for(signed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not a secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")  # the config's region counts
    heads: list[str] = []

    def answer(head: str) -> bytes:
        heads.append(head)
        return response(b"{}")

    assert ask_raw(answer, signed=signed) == b"{}"
    assert ("Credential=AKIDEXAMPLE/" in heads[0]) == signed
    assert ("/us-east-1/s3/aws4_request" in heads[0]) == signed


def test_signing_without_credentials_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ConfigError, match="signed needs AWS credentials"):
        open_bucket(DataConfig(source="s3://bins", signed=True))


# The server's faults


def test_faults_come_at_their_rates_and_pass() -> None:
    faults = Faults(slow_down_rate=0.1, reset_rate=0.05, stall_rate=0.01, short_rate=0.2, wrong_length_rate=0.02)
    drawn = Counter(fault_of(faults, f"/bins/{number}", 0) for number in range(20_000))
    for fault, rate in faults.rates:
        assert drawn[fault] / 20_000 == pytest.approx(rate, abs=0.01)
    for number in range(1000):
        assert None in [fault_of(faults, f"/bins/{number}", attempt) for attempt in range(10)]


def test_the_seed_decides_and_each_attempt_is_drawn_anew() -> None:
    faults = Faults(slow_down_rate=0.5)
    first, again = ([FaultPlan(faults).next_fault(str(number)) for number in range(64)] for _ in range(2))
    assert first == again
    assert first != [FaultPlan(Faults(faults_seed=1, slow_down_rate=0.5)).next_fault(str(n)) for n in range(64)]
    plan = FaultPlan(faults)
    assert {plan.next_fault("/bins/1") for _ in range(32)} == {None, Fault.SLOW_DOWN}


@pytest.mark.parametrize("rates", [{"short_rate": -0.1}, {"slow_down_rate": 0.6, "reset_rate": 0.6}])
def test_rates_are_shares(rates: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        Faults(**rates)  # type: ignore[arg-type]


def test_the_flags_of_the_server_are_those_of_the_faults(tmp_path: Path) -> None:
    flags = Faults(faults_seed=7, slow_down_rate=0.5, stall_s=0.5).to_flags()
    server = Path(sys.modules["benchmarks.s3_server"].__file__ or "")
    command = [sys.executable, str(server), "--folder", str(tmp_path), "--quick", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("http://127.0.0.1:")
