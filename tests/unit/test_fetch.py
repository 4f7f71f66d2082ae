"""Ids become labelled, undecoded photos or reasons; without Ray, on a folder and on a small S3 server."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pyarrow as pa
import pytest

from bintally.batch import COUNT, ID, POSITION
from bintally.errors import AccessDeniedError, ImageError, LabelError, RowError, SourceUnreachableError
from bintally.source_config import DataConfig
from data.blocks import PHOTO, FetchSpec, fetch_block, photos_of
from data.bucket import Bucket, open_bucket
from data.cache import CacheConfig
from data.drops import REASONS, DropLedger
from data.fetch import MAX_IN_FLIGHT, fetch_bins, read_bin

MakeBucket = Callable[..., Path]
Photo = Callable[..., bytes]
Server = Callable[[Callable[[str], tuple[int, bytes]]], str]

DECODING_REASONS = {"not_an_image", "truncated_image", "absurd_dimensions"}
"""Of photos that are told from others only as they are decoded."""


@dataclass
class Ledger:
    """Stands for the actor that keeps the reasons."""

    drops: dict[str, str] = field(default_factory=dict)

    def record(self, drops: dict[str, str]) -> None:
        """As `DropLedger.record`."""
        self.drops |= drops


def fetch(
    data: DataConfig, ids: Sequence[str], *, first: int = 0, counts: Sequence[int] | None = None
) -> tuple[pa.Table, dict[str, str]]:
    """The rows of these ids, and the reasons of those that are none."""
    ledger = Ledger()
    block = fetch_block(FetchSpec(data=data, ledger=cast("DropLedger", ledger)), ids, first, counts)
    return block, ledger.drops


def from_folder(
    folder: Path, ids: Sequence[str], *, max_count: int = 5, first: int = 0, counts: Sequence[int] | None = None
) -> tuple[pa.Table, dict[str, str]]:
    return fetch(DataConfig(source=f"file://{folder}", max_count=max_count), ids, first=first, counts=counts)


def record(count: int) -> bytes:
    items = {"B000000001": {"quantity": count}} if count else {}
    return json.dumps({"BIN_FCSKU_DATA": items, "EXPECTED_QUANTITY": count}).encode()


# fetch_block


def test_rows_keep_the_order_of_the_ids_and_the_bytes_of_the_photos(bucket_dir: MakeBucket) -> None:
    folder = bucket_dir({"00002": 3, "00001": 0})
    block, drops = from_folder(folder, ["00002", "00001"])
    assert block[ID].to_pylist() == ["00002", "00001"]
    assert block[COUNT].to_pylist() == [3, 0]
    photos = [(folder / f"bin-images/{bin_id}.jpg").read_bytes() for bin_id in ("00002", "00001")]
    assert list(photos_of(block)) == photos
    assert block[PHOTO].to_pylist() == photos
    assert drops == {}


def test_positions_count_dropped_ids_too(bucket_dir: MakeBucket) -> None:
    block, drops = from_folder(bucket_dir({"00001": 0, "00003": 3}), ["00001", "00002", "00003"], first=70)
    assert block[POSITION].to_pylist() == [70, 72]
    assert drops == {"00002": "missing_label"}


def test_every_fault_that_shows_before_decoding_has_its_reason(bucket_dir: MakeBucket, photo: Photo) -> None:
    items = b'"BIN_FCSKU_DATA": {"B1": {"quantity": 2}}'
    broken: dict[str, tuple[str, bytes | None, str]] = {
        "00001": ("bin-images/00001.jpg", None, "missing_image"),
        "00003": ("metadata/00003.json", None, "missing_label"),
        "00004": ("metadata/00004.json", b'{"EXPECTED_QUANT', "label_not_json"),
        "00005": ("metadata/00005.json", b"{}", "no_quantity"),
        "00006": ("metadata/00006.json", b'{"EXPECTED_QUANTITY": -1}', "bad_quantity"),
        "00007": ("metadata/00007.json", b'{"EXPECTED_QUANTITY": 1}', "bad_record"),
        "00008": ("metadata/00008.json", b'{"EXPECTED_QUANTITY": 3, %b}' % items, "quantity_mismatch"),
        "00012": ("metadata/00012.json", record(6), "count_above_max"),
    }
    ids = [f"{number:05d}" for number in range(13)]
    folder = bucket_dir(dict.fromkeys(ids, 1), broken={key: data for key, data, _ in broken.values()})
    block, drops = from_folder(folder, ids)
    assert drops == {bin_id: reason for bin_id, (_, _, reason) in broken.items()}
    assert block[ID].to_pylist() == [bin_id for bin_id in ids if bin_id not in broken]
    assert block[COUNT].to_pylist() == [1, 1, 1, 1, 1]
    assert set(drops.values()) == set(REASONS) - DECODING_REASONS - {"fetch_failed"}, "a reason without a test"


def test_photos_are_not_looked_into(bucket_dir: MakeBucket) -> None:
    folder = bucket_dir({"00001": 1, "00002": 1}, broken={"bin-images/00002.jpg": b"no photo"})
    block, drops = from_folder(folder, ["00001", "00002"])
    assert list(photos_of(block))[1] == b"no photo"
    assert drops == {}


@pytest.mark.parametrize(("max_count", "kept"), [(1, [0, 1]), (5, [0, 1, 5]), (200, [0, 1, 5, 6, 200])])
def test_max_count_is_the_last_count_that_stays(bucket_dir: MakeBucket, max_count: int, kept: list[int]) -> None:
    counts = {f"{number:05d}": number for number in (0, 1, 5, 6, 200)}
    block, drops = from_folder(bucket_dir(counts), list(counts), max_count=max_count)
    assert block[COUNT].to_pylist() == kept
    assert set(drops.values()) <= {"count_above_max"}
    assert len(kept) + len(drops) == 5


def test_a_block_without_a_row_has_the_columns_of_one_with_rows(bucket_dir: MakeBucket) -> None:
    folder = bucket_dir({"00001": 1})
    full, _ = from_folder(folder, ["00001"])
    for ids in (["00002", "00003"], []):
        block, drops = from_folder(folder, ids)
        assert block.schema == full.schema
        assert len(block) == 0
        assert list(photos_of(block)) == []
        assert list(drops) == ids


def test_ids_that_look_like_numbers_stay_strings(bucket_dir: MakeBucket) -> None:
    block, _ = from_folder(bucket_dir({"523": 1, "00523": 2}), ["523", "00523"])
    assert list(zip(block[ID].to_pylist(), block[COUNT].to_pylist(), strict=True)) == [("523", 1), ("00523", 2)]


def test_given_counts_replace_the_records_which_are_not_read(bucket_dir: MakeBucket) -> None:
    broken = {"metadata/00001.json": None, "metadata/00002.json": b"no JSON", "bin-images/00004.jpg": None}
    folder = bucket_dir(dict.fromkeys(["00001", "00002", "00003", "00004"], 1), broken=broken)
    ids = ["00001", "00002", "00003", "00004"]
    block, drops = from_folder(folder, ids, counts=[4, 0, 6, 2])
    assert list(zip(block[ID].to_pylist(), block[COUNT].to_pylist(), strict=True)) == [("00001", 4), ("00002", 0)]
    assert drops == {"00003": "count_above_max", "00004": "missing_image"}


def test_a_cached_bin_that_is_filtered_out_keeps_its_reason(bucket_dir: MakeBucket, tmp_path: Path) -> None:
    ledger = Ledger()
    data = DataConfig(source=f"file://{bucket_dir({'00001': 6, '00002': 1})}")
    cache = CacheConfig(folder=str(tmp_path / "cache"), limit_bytes=10**9)
    spec = FetchSpec(data=data, ledger=cast("DropLedger", ledger), cache=cache)
    for _ in range(2):  # the cache has no photo of what is filtered out; that is no missing one
        assert fetch_block(spec, ["00001", "00002"], 0)[ID].to_pylist() == ["00002"]
        assert ledger.drops == {"00001": "count_above_max"}


# When the source fails


def server_data(url: str) -> DataConfig:
    return DataConfig(source="s3://bins", endpoint_url=url)


@pytest.fixture
def few_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten retries with backoff take most of a minute."""
    monkeypatch.setattr("data.fetch.open_bucket", lambda data: open_bucket(data, max_retries=1))


@pytest.mark.usefixtures("few_retries")
def test_one_object_that_never_comes_is_a_row_lost(s3_server: Server, photo: Photo) -> None:
    def answer(path: str) -> tuple[int, bytes]:
        if "00002" in path:
            return 503, b""
        return 200, photo() if path.endswith(".jpg") else record(2)

    block, drops = fetch(server_data(s3_server(answer)), ["00001", "00002", "00003"])
    assert block[ID].to_pylist() == ["00001", "00003"]
    assert drops == {"00002": "fetch_failed"}


@pytest.mark.usefixtures("few_retries")
def test_a_block_of_which_nothing_comes_is_a_failed_source(s3_server: Server) -> None:
    url = s3_server(lambda _: (503, b""))
    with pytest.raises(SourceUnreachableError, match=f"none of 2 bins could be fetched.*{url}"):
        fetch(server_data(url), ["00001", "00002"])


def test_one_forbidden_object_stops_it_all(s3_server: Server, photo: Photo) -> None:
    def answer(path: str) -> tuple[int, bytes]:
        if "00002" in path:
            return 403, b"<Error><Code>AccessDenied</Code></Error>"
        return 200, photo() if path.endswith(".jpg") else record(2)

    with pytest.raises(AccessDeniedError, match="s3://bins"):
        fetch(server_data(s3_server(answer)), ["00001", "00002", "00003"])


def test_records_are_not_asked_for_where_counts_are_given(s3_server: Server, photo: Photo) -> None:
    asked: list[str] = []

    def answer(path: str) -> tuple[int, bytes]:
        asked.append(path)
        return 200, photo()

    fetch(server_data(s3_server(answer)), ["00001", "00002"], counts=[1, 2])
    assert sorted(asked) == ["/bins/bin-images/00001.jpg", "/bins/bin-images/00002.jpg"]


# fetch_bins, on a bucket that is a few lines


@dataclass
class SlowBucket:
    """Answers each key with itself, in an order of its own, and counts requests under way."""

    failing: dict[str, Exception] = field(default_factory=dict)
    under_way: int = 0
    most: int = 0

    async def get(self, key: str) -> bytes | None:
        """As `Bucket.get`."""
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(sum(key.encode()) % 3 * 1e-3)
        self.under_way -= 1
        if key in self.failing:
            raise self.failing[key]
        return key.encode()


def fetch_all(bucket: SlowBucket, ids: list[str], *, with_records: bool = True) -> list[object]:
    return list(fetch_bins(cast("Bucket", bucket), ids, with_records=with_records))


def test_fetched_bins_keep_the_order_of_the_ids() -> None:
    ids = [str(number) for number in range(50)]
    expected = [(f"metadata/{i}.json".encode(), f"bin-images/{i}.jpg".encode()) for i in ids]
    assert fetch_all(SlowBucket(), ids) == expected


def test_without_records_photos_come_alone() -> None:
    ids = [str(number) for number in range(50)]
    assert fetch_all(SlowBucket(), ids, with_records=False) == [(b"", f"bin-images/{i}.jpg".encode()) for i in ids]


def test_no_ids_need_no_request() -> None:
    bucket = SlowBucket()
    assert fetch_all(bucket, []) == []
    assert bucket.most == 0


def test_requests_under_way_are_many_but_limited() -> None:
    bucket = SlowBucket()
    fetch_all(bucket, [str(number) for number in range(200)])
    assert MAX_IN_FLIGHT // 2 < bucket.most <= MAX_IN_FLIGHT


@pytest.mark.parametrize("key", ["bin-images/b.jpg", "metadata/b.json"])
def test_an_unreachable_object_is_kept_as_the_reason_of_its_bin(key: str) -> None:
    error = SourceUnreachableError("timed out")
    first, second, third = fetch_all(SlowBucket({key: error}), ["a", "b", "c"])
    assert second is error
    assert isinstance(first, tuple)
    assert isinstance(third, tuple)


@pytest.mark.parametrize("key", ["bin-images/b.jpg", "metadata/b.json"])
def test_a_denied_object_is_raised(key: str) -> None:
    with pytest.raises(AccessDeniedError):
        fetch_all(SlowBucket({key: AccessDeniedError("denied")}), ["a", "b", "c"])


# read_bin


def test_a_fetched_bin_gives_count_and_photo() -> None:
    assert read_bin((record(3), b"photo"), 5) == (3, b"photo")


@pytest.mark.parametrize("count", [0, 5])
def test_a_given_count_replaces_the_one_of_the_record(count: int) -> None:
    assert read_bin((b"", b"photo"), 5, count) == (count, b"photo")


@pytest.mark.parametrize(
    ("fetched", "kind", "reason"),
    [
        ((None, b"photo"), LabelError, "missing_label"),
        ((record(3), None), ImageError, "missing_image"),
        ((None, None), LabelError, "missing_label"),
        ((record(6), b"photo"), RowError, "count_above_max"),
        ((record(6), None), RowError, "count_above_max"),
        ((b"{}", b"photo"), LabelError, "no_quantity"),
        (SourceUnreachableError("timed out"), RowError, "fetch_failed"),
    ],
)
def test_a_bin_that_cannot_be_used_says_why(
    fetched: tuple[bytes | None, bytes | None] | SourceUnreachableError, kind: type[RowError], reason: str
) -> None:
    with pytest.raises(kind) as caught:
        read_bin(fetched, 5)
    assert caught.value.reason == reason
