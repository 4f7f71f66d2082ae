"""The buckets of audits: folders and S3, what cannot be read, and what nobody may read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bintally.errors import ConfigError
from serve.audit import MAX_UNREACHABLE
from serve.settings import Settings

AuditServer = Any  # of conftest.py
StartServer = Callable[..., AuditServer]
StartS3 = Callable[[Callable[[str], tuple[int, bytes]]], str]
TableOf = Callable[..., dict[str, Any]]

NO_SUCH_BUCKET = b"<Error><Code>NoSuchBucket</Code></Error>"


def test_a_bucket_on_s3(audit_server: StartServer, table_of: TableOf, s3_endpoint: str, s3_bucket: str) -> None:
    server = audit_server(audit_source=s3_bucket, audit_endpoint_url=s3_endpoint)
    everything = server.audit(table_of(["never"]), prefix="bin-images/")
    keys = [line["key"] for line in everything.bins if line["problem"]["code"] == "no_record"]
    assert len(keys) > 100
    records = [{"key": key, "expected_quantity": 3} for key in [*keys, "bin-images/never.jpg"]]
    audited = server.audit({"records": records})
    assert {line["key"] for line in audited.bins} == {*keys, "bin-images/never.jpg"}
    assert audited.problems["bin-images/never.jpg"] == "no_photo"
    assert sum(audited.last["verdicts"].values()) > 100


def test_a_bucket_on_s3_without_an_endpoint_of_its_own(
    audit_server: StartServer,
    table_of: TableOf,
    s3_endpoint: str,
    s3_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    server = audit_server(audit_source=s3_bucket)
    assert list(server.audit(table_of(["never"])).problems.values()) == ["no_photo"]


@pytest.mark.parametrize(
    ("status", "body"), [(403, b"<Error><Code>AccessDenied</Code></Error>"), (404, NO_SUCH_BUCKET), (400, b"")]
)
def test_a_bucket_that_cannot_be_read_ends_the_audit(
    audit_server: StartServer, table_of: TableOf, s3_server: StartS3, status: int, body: bytes
) -> None:
    server = audit_server(audit_source="s3://bins", audit_endpoint_url=s3_server(lambda _: (status, body)))
    last = server.audit(table_of(str(number) for number in range(100 * MAX_UNREACHABLE))).last
    assert (last["kind"], last["problem"]["code"]) == ("error", "source_unreachable")
    assert "127.0.0.1" not in json.dumps(last)  # where the bucket lies is for the log
    assert server.metric('bintally_audits_total{outcome="failed"}') == 1
    assert server.metric('bintally_audited_bins_total{outcome="source_unreachable"}') < 2 * MAX_UNREACHABLE
    assert server.refusal(table_of(["1"]) | {"prefix": "bin-images"}) == (502, "source_unreachable")


@pytest.mark.parametrize(("signed", "code"), [(False, "source_unreachable"), (True, "not_an_image")])
def test_requests_are_signed_only_if_the_settings_say_so(
    audit_server: StartServer,
    table_of: TableOf,
    s3_endpoint: str,
    s3_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    signed: bool,
    code: str,
) -> None:
    """The private bucket has one object, which is no photo."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "owner")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
    server = audit_server(audit_source="s3://private", audit_endpoint_url=s3_endpoint, audit_signed=signed)
    assert server.audit(table_of(["00001"])).problems == {"bin-images/00001.jpg": code}


def test_a_photo_that_may_not_be_read_does_not_end_an_audit(
    audit_server: StartServer, table_of: TableOf, s3_server: StartS3, photo: Callable[..., bytes]
) -> None:
    body = photo()
    endpoint = s3_server(lambda path: (403, b"<Error/>") if path.endswith("0.jpg") else (200, body))
    ids = [str(number) for number in range(10 * MAX_UNREACHABLE)]
    audited = audit_server(audit_source="s3://bins", audit_endpoint_url=endpoint).audit(table_of(ids))
    assert audited.last["problems"] == {"source_unreachable": MAX_UNREACHABLE}


def test_a_bucket_that_says_what_it_has_not_is_not_lost(
    audit_server: StartServer, table_of: TableOf, s3_server: StartS3
) -> None:
    """Photos that may not be read and photos that are not there take turns: the bucket answers all the time."""

    def answer(path: str) -> tuple[int, bytes]:
        return (403, b"<Error/>") if int(path[-5]) % 2 else (404, b"<Error><Code>NoSuchKey</Code></Error>")

    server = audit_server(audit_source="s3://bins", audit_endpoint_url=s3_server(answer))
    audited = server.audit(table_of(str(number) for number in range(10 * MAX_UNREACHABLE)))
    each = 5 * MAX_UNREACHABLE
    assert audited.last.get("problems") == {"no_photo": each, "source_unreachable": each}


def test_no_secret_beside_the_bucket_is_read(
    audit_server: StartServer, bucket_dir: Callable[..., Path], table_of: TableOf
) -> None:
    folder = bucket_dir({"00001": 1})
    (folder.parent / "secret.jpg").write_bytes((folder / "bin-images/00001.jpg").read_bytes())
    server = audit_server(audit_source=f"file://{folder}")
    keys = ["%2e%2e/secret.jpg", "..%2fsecret.jpg", "..\\secret.jpg", "bin-images"]
    audited = server.audit({"records": [{"key": key, "expected_quantity": 1} for key in keys]})
    assert audited.problems == dict.fromkeys(keys, "no_photo")
    refused = server.ask({"records": [{"key": "../secret.jpg", "expected_quantity": 1}]})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    assert "records.0.key" in refused.json()["detail"]
    assert server.ask(table_of(["1"]), prefix="../").status_code == 422


@pytest.mark.parametrize("prefix", ["nowhere/", "metadata"])
def test_a_prefix_without_photos_is_refused(
    audit_server: StartServer, bucket_dir: Callable[..., Path], table_of: TableOf, prefix: str
) -> None:
    server = audit_server(audit_source=f"file://{bucket_dir({'00001': 1})}")
    assert server.refusal(table_of(["00001"]) | {"prefix": prefix}) == (422, "invalid_request")


def test_a_server_without_a_bucket_audits_nothing(audit_server: StartServer, table_of: TableOf) -> None:
    assert audit_server().refusal(table_of(["00001"])) == (404, "audit_is_off")


@pytest.mark.parametrize(
    ("field", "value"), [("audit_source", "/folder"), ("audit_source", "http://x"), ("audit_endpoint_url", "x:1")]
)
def test_a_bucket_that_is_none_is_refused_at_the_start(field: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field} must be"):
        Settings(**{"checkpoint": "x", "audit_source": "s3://bins", field: value})  # type: ignore[arg-type]
