"""The recount queue of an audit: its order, its progress, its formats."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from bintally.errors import ImageError
from bintally.verify import recount_order
from serve.predictor import Counted, Predictor

AuditServer = Any  # of conftest.py
StartServer = Callable[..., AuditServer]
TableOf = Callable[..., dict[str, Any]]


def count(predictor: Predictor, photo: bytes) -> Counted | str:
    """The count of a photo, or why it has none."""
    try:
        return predictor.count([predictor.decode(photo)[0]])[0]
    except ImageError as error:
        return error.reason


def test_the_bins_of_a_bucket_come_in_the_order_of_a_recount(
    audit_server: StartServer, synthetic_bucket: Path, served_checkpoint: Path
) -> None:
    """Among them photos and records that are missing, and photos that cannot be read; the queue is worked out anew."""
    photos = {f"bin-images/{path.name}": path.read_bytes() for path in (synthetic_bucket / "bin-images").iterdir()}
    keys = sorted(photos)
    left_out, absent = keys[:3], ["bin-images/never.jpg"]
    expected = {key: place % 8 for place, key in enumerate(keys[3:] + absent)}  # the model counts to 5
    records = [{"key": key, "expected_quantity": number} for key, number in expected.items()]

    server = audit_server(audit_source=f"file://{synthetic_bucket}")
    audited = server.audit({"records": records, "prefix": "bin-images"})

    predictor = Predictor.load(served_checkpoint)
    counted = {key: count(predictor, photo) for key, photo in photos.items()}
    unusable = {key: why for key, why in counted.items() if isinstance(why, str) and key in expected}
    good = {key: one for key, one in counted.items() if isinstance(one, Counted) and key in expected}
    in_table = [key for key in expected if key in good]
    order = recount_order(
        np.array([good[key].probabilities for key in in_table]), np.array([expected[key] for key in in_table])
    )
    assert unusable
    bins, summary = audited.bins, audited.last
    assert [line["rank"] for line in bins] == list(range(1, len(keys) + 2))
    assert [line["key"] for line in bins[: len(order)]] == [in_table[place] for place in order]
    assert [line["key"] for line in bins[len(order) :]] == [key for key in expected if key not in good] + left_out
    assert audited.problems == unusable | dict.fromkeys(absent, "no_photo") | dict.fromkeys(left_out, "no_record")
    for line in bins[: len(order)]:
        verdict = predictor.verify(good[line["key"]], expected[line["key"]])
        assert (line["verdict"], line["reason"]) == (verdict.decision, verdict.reason)
        assert line["p_match"] == pytest.approx(verdict.p_match, abs=1e-4)  # batches of other sizes round otherwise
        assert (line["expected_quantity"], line["count"]) == (expected[line["key"]], good[line["key"]].count)
        assert line["range"]["low"] <= line["count"] <= line["range"]["high"]
    decisions = Counter(line["verdict"] for line in bins[: len(order)])
    assert len(decisions) == 3
    assert summary["verdicts"] == decisions
    assert summary["problems"] == Counter(audited.problems.values())
    assert (summary["kind"], summary["num_records"]) == ("summary", len(records))
    assert summary["thresholds"] == {"match": 0.3, "mismatch": 0.1}
    assert summary["model"]["version"] == predictor.version


def test_progress_comes_first_and_adds_up(
    audit_server: StartServer, bucket_dir: Callable[..., Path], table_of: TableOf
) -> None:
    ids = [f"{number:05d}" for number in range(30)]
    folder = bucket_dir(dict.fromkeys(ids, 1))
    lines = audit_server(audit_source=f"file://{folder}").audit(table_of(ids)).lines
    kinds = [line["kind"] for line in lines]
    progress = [line["num_done"] for line in lines if line["kind"] == "progress"]
    assert kinds == sorted(kinds, key=["progress", "bin", "summary"].index)
    assert (progress[0], progress[-1]) == (0, 30)
    assert progress == sorted(progress)


def test_a_csv_is_audited_without_a_listing(audit_server: StartServer, bucket_dir: Callable[..., Path]) -> None:
    folder = bucket_dir({"00001": 1, "00002": 2, "00003": 3})
    server = audit_server(audit_source=f"file://{folder}")
    table = b"bin_id,expected_quantity\n00001,1\n00002,2\n00009,3\n"
    audited = server.audit(table, "text/csv; charset=utf-8")
    assert {line["bin_id"] for line in audited.bins} == {"00001", "00002", "00009"}
    assert audited.problems == {"bin-images/00009.jpg": "no_photo"}
    assert server.metric('bintally_audits_total{outcome="done"}') == 1
    assert server.metric('bintally_audited_bins_total{outcome="no_photo"}') == 1


def test_openapi_describes_the_lines(audit_server: StartServer) -> None:
    openapi = httpx.get(f"{audit_server().url}/openapi.json").json()
    answer = openapi["paths"]["/v1/audit"]["post"]["responses"]["200"]["content"]["application/x-ndjson"]["schema"]
    assert "type" not in answer  # FastAPI takes what is no JSONResponse for a string
    kinds = [openapi["components"]["schemas"][one["$ref"].rsplit("/", 1)[1]] for one in answer["oneOf"]]
    assert [kind["properties"]["kind"]["const"] for kind in kinds] == ["progress", "bin", "summary", "error"]


def test_a_photo_is_no_table(audit_server: StartServer, tmp_path: Path) -> None:
    server = audit_server(audit_source=f"file://{tmp_path}")
    assert server.refusal(b"\xff\xd8", "image/jpeg") == (415, "unsupported_media_type")


def test_a_photo_larger_than_the_limit_has_a_problem(
    audit_server: StartServer, bucket_dir: Callable[..., Path], table_of: TableOf
) -> None:
    folder = bucket_dir({"00001": 1, "00002": 1}, broken={"bin-images/00002.jpg": b"\xff" * 100_001})
    server = audit_server(audit_source=f"file://{folder}", max_body_bytes=100_000)
    assert server.audit(table_of(["00001", "00002"])).problems == {"bin-images/00002.jpg": "body_too_large"}
