"""Records alone, fetched in chunks: each id once, in order, as a record or a reason."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bintally.errors import AccessDeniedError, RowError, SourceUnreachableError
from bintally.labels import BinRecord
from bintally.source_config import DataConfig
from data import records
from data.bucket import Bucket, open_bucket
from data.records import FetchedRecord, fetch_records

MakeBucket = Callable[..., Path]
RECORD = b'{"BIN_FCSKU_DATA": {"B1": {"asin": "B1", "quantity": 2}}, "EXPECTED_QUANTITY": 2}'


def write_records(folder: Path, num_bins: int) -> list[str]:
    (folder / "metadata").mkdir()
    ids = [f"{number:05d}" for number in range(1, num_bins + 1)]
    for number, bin_id in enumerate(ids):
        text = f'{{"BIN_FCSKU_DATA": {{"B": {{"quantity": {number}}}}}, "EXPECTED_QUANTITY": {number}}}'
        (folder / "metadata" / f"{bin_id}.json").write_text(text)
    return ids


def quantity(record: FetchedRecord) -> int:
    assert isinstance(record, BinRecord)
    return record.expected_quantity


def reason(record: FetchedRecord) -> str:
    assert isinstance(record, RowError)
    return record.reason


def bucket_of(folder: Path) -> Bucket:
    return open_bucket(DataConfig(source=f"file://{folder}"))


@pytest.mark.parametrize("num_bins", [0, 1, 1023, 1024, 1025, 2100])
def test_every_record_comes_once_in_the_order_of_the_ids(num_bins: int, tmp_path: Path) -> None:
    ids = write_records(tmp_path, num_bins)[::-1]
    fetched = list(fetch_records(bucket_of(tmp_path), ids))
    assert [bin_id for bin_id, _ in fetched] == ids
    assert [quantity(record) for _, record in fetched] == list(range(num_bins))[::-1]


def test_no_more_is_fetched_than_asked_for(tmp_path: Path) -> None:
    ids = write_records(tmp_path, records.IDS_PER_CHUNK + 1)
    stream = fetch_records(bucket_of(tmp_path), ids)
    next(stream)
    (tmp_path / "metadata" / f"{ids[-1]}.json").unlink()
    assert reason(list(stream)[-1][1]) == "missing_label"


def test_what_is_no_record_has_its_reason(bucket_dir: MakeBucket) -> None:
    broken = {
        "metadata/00002.json": None,
        "metadata/00003.json": b"<html>",
        "metadata/00004.json": RECORD.replace(b'Y": 2', b'Y": 3'),
    }
    folder = bucket_dir({"00001": 3}, broken=broken)
    good, *bad = fetch_records(bucket_of(folder), ["00001", "00002", "00003", "00004"])
    assert quantity(good[1]) == 3
    assert [reason(record) for _, record in bad] == ["missing_label", "label_not_json", "quantity_mismatch"]


def s3(endpoint: str) -> Bucket:
    return open_bucket(DataConfig(source="s3://pairs", endpoint_url=endpoint), max_retries=0)


def test_a_record_that_does_not_arrive_costs_no_other(s3_server: Callable[..., str]) -> None:
    endpoint = s3_server(lambda path: (503, b"") if "00002" in path else (200, RECORD))
    fetched = dict(fetch_records(s3(endpoint), ["00001", "00002", "00003"]))
    assert [quantity(fetched[bin_id]) for bin_id in ("00001", "00003")] == [2, 2]
    assert reason(fetched["00002"]) == "fetch_failed"


def test_a_server_that_gives_nothing_ends_it(s3_server: Callable[..., str]) -> None:
    with pytest.raises(SourceUnreachableError, match="none of 2 records"):
        list(fetch_records(s3(s3_server(lambda _: (503, b""))), ["00001", "00002"]))


def test_a_forbidden_record_ends_it(s3_server: Callable[..., str]) -> None:
    denied = b"<Error><Code>AccessDenied</Code></Error>"
    endpoint = s3_server(lambda path: (403, denied) if "00002" in path else (200, RECORD))
    with pytest.raises(AccessDeniedError):
        list(fetch_records(s3(endpoint), ["00001", "00002"]))
