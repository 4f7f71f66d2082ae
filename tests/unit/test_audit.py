"""Audits over real HTTP: a server without Ray, a bucket in a folder or on an S3 server, and what clients do to it."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from bintally.errors import ConfigError, ImageError
from bintally.verify import recount_order
from serve.audit import MAX_AUDITS, MAX_PHOTOS, MAX_UNREACHABLE
from serve.models import load_models
from serve.predictor import Counted, Predictor
from serve.service import CounterService, Job
from serve.settings import Settings
from serve.telemetry import Instruments

StartServer = Callable[..., str]
StartS3 = Callable[[Callable[[str], tuple[int, bytes]]], str]
Line = dict[str, Any]

EXPECTED = 3
NO_SUCH_BUCKET = b"<Error><Code>NoSuchBucket</Code></Error>"


def table_of(bin_ids: Iterable[str], expected_quantity: int = EXPECTED) -> dict[str, Any]:
    return {"records": [{"bin_id": bin_id, "expected_quantity": expected_quantity} for bin_id in bin_ids]}


def post(url: str, table: dict[str, Any], **query: str) -> list[Line]:
    response = httpx.post(f"{url}/v1/audit", json=table, params=query, timeout=120)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def bins_of(lines: list[Line]) -> list[Line]:
    return [line for line in lines if line["kind"] == "bin"]


def problems_of(lines: list[Line]) -> dict[str, str]:
    return {line["key"]: line["problem"]["code"] for line in bins_of(lines) if line["problem"]}


def metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return float(next((line.rsplit(" ", 1)[1] for line in lines if line.startswith(f"{name} ")), 0))


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def count(predictor: Predictor, photo: bytes) -> Counted | str:
    """The count of a photo, or why it has none."""
    try:
        return predictor.count([predictor.decode(photo)[0]])[0]
    except ImageError as error:
        return error.reason


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


def test_the_bins_of_a_bucket_come_in_the_order_of_a_recount(
    local_server: StartServer, synthetic_bucket: Path, served_checkpoint: Path
) -> None:
    """Among them photos and records that are missing, and photos that cannot be read; the queue is worked out anew."""
    photos = {f"bin-images/{path.name}": path.read_bytes() for path in (synthetic_bucket / "bin-images").iterdir()}
    keys = sorted(photos)
    left_out, absent = keys[:3], ["bin-images/never.jpg"]
    expected = {key: place % 8 for place, key in enumerate(keys[3:] + absent)}  # the model counts to 5
    records = [{"key": key, "expected_quantity": number} for key, number in expected.items()]

    lines = post(local_server(audit_source=f"file://{synthetic_bucket}"), {"records": records, "prefix": "bin-images"})

    predictor = Predictor.load(served_checkpoint)
    counted = {key: count(predictor, photo) for key, photo in photos.items()}
    unusable = {key: why for key, why in counted.items() if isinstance(why, str) and key in expected}
    good = {key: one for key, one in counted.items() if isinstance(one, Counted) and key in expected}
    in_table = [key for key in expected if key in good]
    order = recount_order(
        np.array([good[key].probabilities for key in in_table]), np.array([expected[key] for key in in_table])
    )
    assert unusable
    bins, summary = bins_of(lines), lines[-1]
    assert [line["rank"] for line in bins] == list(range(1, len(keys) + 2))
    assert [line["key"] for line in bins[: len(order)]] == [in_table[place] for place in order]
    assert [line["key"] for line in bins[len(order) :]] == [key for key in expected if key not in good] + left_out
    assert problems_of(lines) == unusable | dict.fromkeys(absent, "no_photo") | dict.fromkeys(left_out, "no_record")
    for line in bins[: len(order)]:
        verdict = predictor.verify(good[line["key"]], expected[line["key"]])
        assert (line["verdict"], line["reason"]) == (verdict.decision, verdict.reason)
        assert line["p_match"] == pytest.approx(verdict.p_match, abs=1e-4)  # batches of other sizes round otherwise
        assert (line["expected_quantity"], line["count"]) == (expected[line["key"]], good[line["key"]].count)
        assert line["range"]["low"] <= line["count"] <= line["range"]["high"]
    decisions = Counter(line["verdict"] for line in bins[: len(order)])
    assert len(decisions) == 3
    assert summary["verdicts"] == decisions
    assert summary["problems"] == Counter(problems_of(lines).values())
    assert (summary["kind"], summary["num_records"]) == ("summary", len(records))
    assert summary["thresholds"] == {"match": 0.3, "mismatch": 0.1}
    assert summary["model"]["version"] == predictor.version


def test_progress_comes_first_and_adds_up(local_server: StartServer, bucket_dir: Callable[..., Path]) -> None:
    ids = [f"{number:05d}" for number in range(30)]
    folder = bucket_dir(dict.fromkeys(ids, 1))
    lines = post(local_server(audit_source=f"file://{folder}"), table_of(ids))
    kinds = [line["kind"] for line in lines]
    progress = [line["num_done"] for line in lines if line["kind"] == "progress"]
    assert kinds == sorted(kinds, key=["progress", "bin", "summary"].index)
    assert (progress[0], progress[-1]) == (0, 30)
    assert progress == sorted(progress)


def test_a_csv_is_audited_without_a_listing(local_server: StartServer, bucket_dir: Callable[..., Path]) -> None:
    folder = bucket_dir({"00001": 1, "00002": 2, "00003": 3})
    url = local_server(audit_source=f"file://{folder}")
    table = "bin_id,expected_quantity\n00001,1\n00002,2\n00009,3\n"
    response = httpx.post(f"{url}/v1/audit", content=table, headers={"content-type": "text/csv; charset=utf-8"})
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert {line["bin_id"] for line in bins_of(lines)} == {"00001", "00002", "00009"}
    assert problems_of(lines) == {"bin-images/00009.jpg": "no_photo"}
    assert metric(url, 'bintally_audits_total{outcome="done"}') == 1
    assert metric(url, 'bintally_audited_bins_total{outcome="no_photo"}') == 1


def test_openapi_describes_the_lines(local_server: StartServer) -> None:
    openapi = httpx.get(f"{local_server()}/openapi.json").json()
    answer = openapi["paths"]["/v1/audit"]["post"]["responses"]["200"]["content"]["application/x-ndjson"]["schema"]
    assert "type" not in answer  # FastAPI takes what is no JSONResponse for a string
    kinds = [openapi["components"]["schemas"][one["$ref"].rsplit("/", 1)[1]] for one in answer["oneOf"]]
    assert [kind["properties"]["kind"]["const"] for kind in kinds] == ["progress", "bin", "summary", "error"]


def test_a_bucket_on_s3(local_server: StartServer, s3_endpoint: str, s3_bucket: str) -> None:
    url = local_server(audit_source=s3_bucket, audit_endpoint_url=s3_endpoint)
    everything = post(url, table_of(["never"]), prefix="bin-images/")
    keys = [line["key"] for line in bins_of(everything) if line["problem"]["code"] == "no_record"]
    assert len(keys) > 100
    records = [{"key": key, "expected_quantity": EXPECTED} for key in [*keys, "bin-images/never.jpg"]]
    lines = post(url, {"records": records})
    assert {line["key"] for line in bins_of(lines)} == {*keys, "bin-images/never.jpg"}
    assert problems_of(lines)["bin-images/never.jpg"] == "no_photo"
    assert sum(lines[-1]["verdicts"].values()) > 100


@pytest.mark.parametrize(
    ("status", "body"), [(403, b"<Error><Code>AccessDenied</Code></Error>"), (404, NO_SUCH_BUCKET), (400, b"")]
)
def test_a_bucket_that_cannot_be_read_ends_the_audit(
    local_server: StartServer, s3_server: StartS3, status: int, body: bytes
) -> None:
    url = local_server(audit_source="s3://bins", audit_endpoint_url=s3_server(lambda _: (status, body)))
    *_, last = post(url, table_of(str(number) for number in range(100 * MAX_UNREACHABLE)))
    assert (last["kind"], last["problem"]["code"]) == ("error", "source_unreachable")
    assert "127.0.0.1" not in json.dumps(last)  # where the bucket lies is for the log
    assert metric(url, 'bintally_audits_total{outcome="failed"}') == 1
    assert metric(url, 'bintally_audited_bins_total{outcome="source_unreachable"}') < 2 * MAX_UNREACHABLE
    refused = httpx.post(f"{url}/v1/audit", json=table_of(["1"]) | {"prefix": "bin-images"})
    assert (refused.status_code, refused.json()["code"]) == (502, "source_unreachable")


@pytest.mark.parametrize(("signed", "code"), [(False, "source_unreachable"), (True, "not_an_image")])
def test_requests_are_signed_only_if_the_settings_say_so(
    local_server: StartServer,
    s3_endpoint: str,
    s3_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    signed: bool,
    code: str,
) -> None:
    """The private bucket has one object, which is no photo."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "owner")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
    url = local_server(audit_source="s3://private", audit_endpoint_url=s3_endpoint, audit_signed=signed)
    assert problems_of(post(url, table_of(["00001"]))) == {"bin-images/00001.jpg": code}


def test_a_photo_that_may_not_be_read_does_not_end_an_audit(
    local_server: StartServer, s3_server: StartS3, photo: Callable[..., bytes]
) -> None:
    body = photo()
    endpoint = s3_server(lambda path: (403, b"<Error/>") if path.endswith("0.jpg") else (200, body))
    ids = [str(number) for number in range(10 * MAX_UNREACHABLE)]
    lines = post(local_server(audit_source="s3://bins", audit_endpoint_url=endpoint), table_of(ids))
    assert lines[-1]["problems"] == {"source_unreachable": MAX_UNREACHABLE}


def test_no_secret_beside_the_bucket_is_read(local_server: StartServer, bucket_dir: Callable[..., Path]) -> None:
    folder = bucket_dir({"00001": 1})
    (folder.parent / "secret.jpg").write_bytes((folder / "bin-images/00001.jpg").read_bytes())
    url = local_server(audit_source=f"file://{folder}")
    keys = ["%2e%2e/secret.jpg", "..%2fsecret.jpg", "..\\secret.jpg", "bin-images"]
    lines = post(url, {"records": [{"key": key, "expected_quantity": 1} for key in keys]})
    assert problems_of(lines) == dict.fromkeys(keys, "no_photo")
    refused = httpx.post(f"{url}/v1/audit", json={"records": [{"key": "../secret.jpg", "expected_quantity": 1}]})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    assert "records.0.key" in refused.json()["detail"]
    refused = httpx.post(f"{url}/v1/audit", json=table_of(["1"]), params={"prefix": "../"})
    assert refused.status_code == 422


def test_a_photo_larger_than_the_limit_has_a_problem(
    local_server: StartServer, bucket_dir: Callable[..., Path]
) -> None:
    folder = bucket_dir({"00001": 1, "00002": 1}, broken={"bin-images/00002.jpg": b"\xff" * 100_001})
    lines = post(local_server(audit_source=f"file://{folder}", max_body_bytes=100_000), table_of(["00001", "00002"]))
    assert problems_of(lines) == {"bin-images/00002.jpg": "body_too_large"}


@pytest.mark.parametrize("prefix", ["nowhere/", "metadata"])
def test_a_prefix_without_photos_is_refused(
    local_server: StartServer, bucket_dir: Callable[..., Path], prefix: str
) -> None:
    url = local_server(audit_source=f"file://{bucket_dir({'00001': 1})}")
    refused = httpx.post(f"{url}/v1/audit", json=table_of(["00001"]) | {"prefix": prefix})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")


def test_a_server_without_a_bucket_audits_nothing(local_server: StartServer) -> None:
    refused = httpx.post(f"{local_server()}/v1/audit", json=table_of(["00001"]))
    assert (refused.status_code, refused.json()["code"]) == (404, "audit_is_off")


@pytest.mark.parametrize(
    ("field", "value"), [("audit_source", "/folder"), ("audit_source", "http://x"), ("audit_endpoint_url", "x:1")]
)
def test_a_bucket_that_is_none_is_refused_at_the_start(field: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field} must be"):
        Settings(**{"checkpoint": "x", "audit_source": "s3://bins", field: value})  # type: ignore[arg-type]


def test_a_photo_is_no_table(local_server: StartServer, tmp_path: Path) -> None:
    headers = {"content-type": "image/jpeg"}
    refused = httpx.post(
        f"{local_server(audit_source=f'file://{tmp_path}')}/v1/audit", content=b"\xff\xd8", headers=headers
    )
    assert (refused.status_code, refused.json()["code"]) == (415, "unsupported_media_type")


def test_a_client_that_leaves_ends_its_audit(
    local_server: StartServer, slow_s3: tuple[str, list[str], threading.Event]
) -> None:
    endpoint, asked, go = slow_s3
    url = local_server(audit_source="s3://bins", audit_endpoint_url=endpoint)
    table = table_of(str(number) for number in range(1000))
    with httpx.stream("POST", f"{url}/v1/audit", json=table) as response:
        lines = response.iter_lines()  # named, since httpx hangs up once it is collected
        assert json.loads(next(lines))["kind"] == "progress"
        wait_until(lambda: len(asked) == MAX_PHOTOS)
        assert metric(url, 'bintally_audits_total{outcome="left"}') == 0
    wait_until(lambda: metric(url, 'bintally_audits_total{outcome="left"}') == 1)
    go.set()
    time.sleep(0.3)
    assert len(asked) == MAX_PHOTOS
    assert metric(url, "bintally_photos_in_flight") == 0


def test_a_client_that_reads_no_further_is_given_up(
    local_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.audit_routes.TAKE_WITHIN_S", 0.5)
    url = local_server(audit_source=f"file://{tmp_path}")
    table = table_of(str(number) for number in range(30_000))  # whose answer is more than sockets buffer
    with httpx.stream("POST", f"{url}/v1/audit", json=table, timeout=30) as response:
        lines = response.iter_lines()
        assert json.loads(next(lines))["kind"] == "progress"
        wait_until(lambda: metric(url, 'bintally_audits_total{outcome="left"}') == 1, 30)
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)


def test_the_number_of_audits_is_bounded(
    local_server: StartServer, slow_s3: tuple[str, list[str], threading.Event]
) -> None:
    endpoint, asked, go = slow_s3
    url = local_server(audit_source="s3://bins", audit_endpoint_url=endpoint)
    with ThreadPoolExecutor(MAX_AUDITS) as threads:
        audits = [threads.submit(post, url, table_of(["1", "2"])) for _ in range(MAX_AUDITS)]
        wait_until(lambda: len(asked) == 2 * MAX_AUDITS)
        refused = httpx.post(f"{url}/v1/audit", json=table_of(["1"]))
        go.set()
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"] == "1"
        assert all(audit.result()[-1]["kind"] == "summary" for audit in audits)
    assert post(url, table_of(["1"]))[-1]["kind"] == "summary"


def test_two_audits_leave_room_for_requests(
    local_server: StartServer, bucket_dir: Callable[..., Path], photo: Callable[..., bytes]
) -> None:
    """With room for four photos, two requests at a time are never refused, and no photo of an audit is, either."""
    ids = [f"{number:05d}" for number in range(100)]
    folder = bucket_dir(dict.fromkeys(ids, 1))
    url = local_server(audit_source=f"file://{folder}", max_in_flight=4)
    body = photo(size=(400, 300))
    headers = {"content-type": "image/jpeg"}

    def ask_until_done(audits: list[Any]) -> list[int]:
        with httpx.Client() as client:
            statuses = []
            while not all(audit.done() for audit in audits):
                statuses.append(client.post(f"{url}/v1/count", content=body, headers=headers, timeout=10).status_code)
            return statuses

    with ThreadPoolExecutor(4) as threads:
        audits = [threads.submit(post, url, table_of(ids)) for _ in range(2)]
        clients = [threads.submit(ask_until_done, audits) for _ in range(2)]
        statuses = [status for client in clients for status in client.result()]
    assert len(statuses) > 20
    assert set(statuses) == {200}
    for audit in audits:
        assert len(bins_of(audit.result())) == len(ids)
        assert problems_of(audit.result()) == {}


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
