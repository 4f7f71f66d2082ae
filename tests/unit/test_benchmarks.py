"""The benchmarks' S3 server, as its clients see it, and the shape of what the benchmarks write."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import boto3
import obstore
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from obstore.store import S3Store

from benchmarks.parts.job import BUCKET
from benchmarks.parts.report import describe_machine, format_rows, write_json
from benchmarks.s3_server import s3_server

NUM_RECORDS = 1_003  # more than one page of a listing
PHOTO = bytes(range(256)) * 4


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("bucket")
    for name in ("bin-images", "metadata"):
        (folder / name).mkdir()
    (folder / "bin-images/00001.jpg").write_bytes(PHOTO)
    (folder / "bin-images/a & b.jpg").write_bytes(b"")
    for number in range(NUM_RECORDS):
        (folder / f"metadata/{number:05d}.json").write_text(json.dumps({"EXPECTED_QUANTITY": number}))
    with s3_server(folder) as (url, _pid):
        yield url


@pytest.fixture
def store(endpoint: str) -> S3Store:
    return S3Store(BUCKET, endpoint=endpoint, skip_signature=True, client_options={"allow_http": True})


@pytest.fixture
def client(endpoint: str) -> "boto3.client":  # type: ignore[valid-type]  # boto3 makes its types at run time
    config = Config(signature_version=UNSIGNED)
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=config)


def test_obstore_gets_heads_ranges_and_lists(store: S3Store) -> None:
    key = "bin-images/00001.jpg"
    assert bytes(obstore.get(store, key).bytes()) == PHOTO
    assert obstore.head(store, key)["size"] == len(PHOTO)
    assert bytes(obstore.get_range(store, key, start=10, end=20)) == PHOTO[10:20]
    listed = [entry["path"] for page in obstore.list(store, prefix="metadata") for entry in page]
    assert listed == [f"metadata/{number:05d}.json" for number in range(NUM_RECORDS)]
    assert sorted(obstore.list_with_delimiter(store)["common_prefixes"]) == ["bin-images", "metadata"]


def test_boto3_gets_heads_ranges_and_lists(client: "boto3.client") -> None:  # type: ignore[valid-type]
    of_photo = {"Bucket": BUCKET, "Key": "bin-images/00001.jpg"}
    assert client.get_object(**of_photo)["Body"].read() == PHOTO
    assert client.head_object(**of_photo)["ContentLength"] == len(PHOTO)
    assert client.get_object(**of_photo, Range="bytes=-3")["Body"].read() == PHOTO[-3:]
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="metadata/", MaxKeys=400)
    assert [page["KeyCount"] for page in pages] == [400, 400, 203]
    photos = client.list_objects_v2(Bucket=BUCKET, Prefix="bin-images/")["Contents"]
    assert [entry["Key"] for entry in photos] == ["bin-images/00001.jpg", "bin-images/a & b.jpg"]


def test_what_is_missing_is_told_as_s3_tells_it(store: S3Store, client: "boto3.client") -> None:  # type: ignore[valid-type]
    with pytest.raises(FileNotFoundError):
        obstore.get(store, "bin-images/99999.jpg")
    with pytest.raises(ClientError, match="NoSuchKey"):
        client.get_object(Bucket=BUCKET, Key="bin-images/99999.jpg")
    with pytest.raises(ClientError, match="404"):
        client.head_object(Bucket=BUCKET, Key="bin-images/99999.jpg")
    with pytest.raises(ClientError, match="NoSuchBucket"):
        client.list_objects_v2(Bucket="other")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "bins/../../etc/passwd", 404), ("GET", "bins/%2e%2e/%2e%2e/etc/passwd", 404), ("DELETE", "bins/x", 405)],
)
def test_nothing_but_the_folder_is_read(endpoint: str, method: str, path: str, status: int) -> None:
    with pytest.raises(HTTPError) as caught:
        urlopen(Request(f"{endpoint}/{path}", method=method))  # noqa: S310  # our own server
    assert caught.value.code == status
    assert b"<Code>" in caught.value.read()


def test_results_have_a_figure_per_row_and_no_names_of_machines(tmp_path: Path) -> None:
    rows = {
        "floor": {"cpu_s_per_1000": 1.0, "images_per_s": 900.0, "rss_mb": 100.0},
        "bintally": {
            "cpu_s_per_1000": 1.5,
            "images_per_s": 600.0,
            "rss_mb": 400.0,
            "cpu_s_per_1000_warm": 1.2,
            "images_per_s_warm": 700.0,
        },
        "webdataset": {"skipped": "not installed"},
    }
    write_json(rows, describe_machine(), 300, tmp_path / "ingest.json")
    results = json.loads((tmp_path / "ingest.json").read_text())
    assert results["rows"] == rows
    assert {"rows", "num_images", "machine", "method"} == set(results)
    assert {"cpu", "cores", "load_at_start", "python", "ray"} <= set(results["machine"])
    assert sys.prefix not in json.dumps(results)
    table = format_rows(rows, ("",))
    assert "(1.50x)" in table
    assert "not installed" in table
