"""Audits, the same by both engines."""

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bintally.verify import recount_order
from serve.predictor import Predictor

pytestmark = pytest.mark.cluster

Server = Any  # of conftest.py
Line = dict[str, Any]


def audit(server: Server, table: Line) -> list[Line]:
    reply = server.post_json("/v1/audit", **table)
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in reply.body.splitlines()]


def num_audits(server: Server, outcome: str) -> float:
    told = server.get("/metrics").body.decode()
    found = re.search(rf'^bintally_audits_total{{[^}}]*outcome="{outcome}"}} (\S+)$', told, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_bins_come_in_the_order_of_a_recount(server: Server, audited_bucket: Path) -> None:
    predictor = Predictor.load(server.checkpoint)
    whole = [f"{number:05d}" for number in range(6)]  # the seventh has no record, the eighth is cut off
    expected = {bin_id: place % 4 for place, bin_id in enumerate(whole)}
    photos = [predictor.decode((audited_bucket / f"bin-images/{bin_id}.jpg").read_bytes())[0] for bin_id in whole]
    probabilities = np.array([predictor.count([photo])[0].probabilities for photo in photos])
    order = [whole[place] for place in recount_order(probabilities, np.array(list(expected.values())))]
    records = [{"bin_id": bin_id, "expected_quantity": number} for bin_id, number in expected.items()]
    records += [{"bin_id": bin_id, "expected_quantity": 1} for bin_id in ("00007", "never")]

    lines = audit(server, {"records": records, "prefix": "bin-images"})

    kinds = [line["kind"] for line in lines]
    bins, summary = [line for line in lines if line["kind"] == "bin"], lines[-1]
    assert kinds == sorted(kinds, key=["progress", "bin", "summary"].index)
    assert [line["bin_id"] for line in bins] == [*order, "00007", "never", None]
    assert [line["problem"] and line["problem"]["code"] for line in bins[6:]] == [
        "truncated_image",
        "no_photo",
        "no_record",
    ]
    assert summary["num_records"] == sum(summary["verdicts"].values()) + 2 == 8
    assert summary["model"]["version"] == predictor.version


def test_a_csv_is_audited(server: Server) -> None:
    reply = server.post(b"bin_id,expected_quantity\n00001,1\nnever,2\n", "text/csv", "/v1/audit?model=second")
    *_, first, second, summary = [json.loads(line) for line in reply.body.splitlines()]
    assert (first["bin_id"], second["bin_id"], second["problem"]["code"]) == ("00001", "never", "no_photo")
    assert summary["model"]["name"] == "second"


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"bin_id,expected_quantity\n00001,many\n", "text/csv", 422, "invalid_request"),
        (b'{"records": [{"key": "../x.jpg", "expected_quantity": 1}]}', "application/json", 422, "invalid_request"),
        (b'{"records": ', "application/json", 400, "invalid_json"),
        (b"\xff\xd8", "image/jpeg", 415, "unsupported_media_type"),
        (b"", "text/csv", 400, "empty_body"),
    ],
)
def test_what_is_no_table_is_refused(server: Server, body: bytes, kind: str, status: int, code: str) -> None:
    reply = server.post(body, kind, "/v1/audit")
    assert (reply.status, reply.code) == (status, code)


def test_lines_come_at_once_and_a_client_that_leaves_ends_its_audit(server: Server) -> None:
    before = num_audits(server, "left")
    records = [{"bin_id": f"never-{number}", "expected_quantity": 1} for number in range(30_000)]
    body = json.dumps({"records": records}).encode()
    head = b"POST /v1/audit HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with server.connect() as client:
        client.sendall(head % len(body) + body)
        next(line for line in client.makefile("rb") if b'"kind":"progress"' in line)
    deadline = time.monotonic() + 120
    while num_audits(server, "left") == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)
