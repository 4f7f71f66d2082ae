"""Fetched bins become rows or reasons; without Ray, on a folder and on a small S3 server."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from bintally.batch import COUNT, ID, IMAGE, ArrayBatch
from bintally.config import DataConfig, Resize
from bintally.errors import AccessDeniedError, ImageError, LabelError, RowError, SourceUnreachableError
from bintally.image import decode_photo
from data.bucket import Bucket, open_bucket
from data.drops import REASONS, DropLedger, format_table
from data.pipeline import MAX_IN_FLIGHT, fetch_bins, fetch_rows, read_bin

MakeBucket = Callable[..., Path]
Photo = Callable[..., bytes]


@dataclass
class Ledger:
    """Stands for the actor that keeps the reasons."""

    drops: dict[str, str] = field(default_factory=dict)

    def record(self, drops: dict[str, str]) -> None:
        """As `DropLedger.record`."""
        self.drops |= drops


def fetch(data: DataConfig, ids: list[str]) -> tuple[ArrayBatch, dict[str, str]]:
    """The rows of these ids, and the reasons of those that are none."""
    ledger = Ledger()
    rows = fetch_rows({ID: np.array(ids)}, data, cast("DropLedger", ledger))
    return rows, ledger.drops


def from_folder(folder: Path, ids: list[str], *, max_count: int = 5) -> tuple[ArrayBatch, dict[str, str]]:
    return fetch(DataConfig(source=f"file://{folder}", image_size=32, max_count=max_count), ids)


# fetch_rows


def test_rows_have_the_columns_of_the_contract(bucket_dir: MakeBucket) -> None:
    rows, drops = from_folder(bucket_dir({"00002": 3, "00001": 0}), ["00002", "00001"])
    assert rows[ID].tolist() == ["00002", "00001"]
    assert rows[COUNT].tolist() == [3, 0]
    assert rows[COUNT].dtype == np.int64
    assert rows[IMAGE].shape == (2, 32, 32, 3)
    assert rows[IMAGE].dtype == np.uint8
    assert drops == {}


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
@pytest.mark.parametrize("fast_decode", [False, True])
def test_pixels_take_the_one_path(bucket_dir: MakeBucket, resize: Resize, fast_decode: bool) -> None:
    folder = bucket_dir({"00001": 0, "00002": 3})
    data = DataConfig(source=f"file://{folder}", image_size=32, resize=resize, fast_decode=fast_decode)
    rows, _ = fetch(data, ["00001", "00002"])
    for bin_id, image in zip(rows[ID], rows[IMAGE], strict=True):
        assert np.array_equal(image, decode_photo((folder / f"bin-images/{bin_id}.jpg").read_bytes(), data.pixels))
    assert not np.array_equal(rows[IMAGE][0], rows[IMAGE][1])


def test_every_broken_object_has_its_reason_and_the_others_stay(bucket_dir: MakeBucket, photo: Photo) -> None:
    whole = photo()
    broken: dict[str, tuple[str, bytes | None, str]] = {
        "00001": ("bin-images/00001.jpg", None, "missing_image"),
        "00003": ("metadata/00003.json", None, "missing_label"),
        "00004": ("metadata/00004.json", b'{"EXPECTED_QUANT', "label_not_json"),
        "00005": ("metadata/00005.json", b"{}", "no_quantity"),
        "00006": ("metadata/00006.json", b'{"EXPECTED_QUANTITY": -1}', "bad_quantity"),
        "00007": ("bin-images/00007.jpg", b"<html></html>", "not_an_image"),
        "00008": ("bin-images/00008.jpg", b"", "not_an_image"),
        "00009": ("bin-images/00009.jpg", whole[: len(whole) // 2], "truncated_image"),
        "00010": ("bin-images/00010.jpg", photo(size=(8, 8)), "absurd_dimensions"),
        "00012": ("metadata/00012.json", b'{"EXPECTED_QUANTITY": 6}', "count_above_max"),
    }
    ids = [f"{number:05d}" for number in range(13)]
    folder = bucket_dir(dict.fromkeys(ids, 1), broken={key: data for key, data, _ in broken.values()})
    rows, drops = from_folder(folder, ids)
    assert drops == {bin_id: reason for bin_id, (_, _, reason) in broken.items()}
    assert rows[ID].tolist() == ["00000", "00002", "00011"]
    assert rows[COUNT].tolist() == [1, 1, 1]
    assert len(rows[IMAGE]) == 3
    assert set(drops.values()) == set(REASONS) - {"fetch_failed"}, "a reason without a test"


def test_the_table_of_drops_explains_each_reason() -> None:
    text = format_table(dict.fromkeys(REASONS, 2), 1_000)
    assert text.startswith(f"dropped {2 * len(REASONS)} of 1,000 ids:")
    assert all(reason in text and why in text for reason, why in REASONS.items())
    assert format_table({}, 1_000) == "dropped 0 of 1,000 ids"


@pytest.mark.parametrize(("max_count", "kept"), [(1, [0, 1]), (5, [0, 1, 5]), (200, [0, 1, 5, 6, 200])])
def test_max_count_is_the_last_count_that_stays(bucket_dir: MakeBucket, max_count: int, kept: list[int]) -> None:
    counts = {f"{number:05d}": number for number in (0, 1, 5, 6, 200)}
    rows, drops = from_folder(bucket_dir(counts), list(counts), max_count=max_count)
    assert rows[COUNT].tolist() == kept
    assert set(drops.values()) <= {"count_above_max"}
    assert len(kept) + len(drops) == 5


def test_a_block_without_a_good_row_keeps_its_columns(bucket_dir: MakeBucket) -> None:
    folder = bucket_dir({"00001": 1})
    for ids in (["00002", "00003"], []):
        rows, drops = from_folder(folder, ids)
        assert {name: (len(column), column.dtype.kind) for name, column in rows.items()} == {
            ID: (0, "U"),
            IMAGE: (0, "u"),
            COUNT: (0, "i"),
        }
        assert rows[IMAGE].shape == (0, 32, 32, 3)
        assert list(drops) == ids


def test_ids_that_look_like_numbers_stay_strings(bucket_dir: MakeBucket) -> None:
    rows, _ = from_folder(bucket_dir({"523": 1, "00523": 2}), ["523", "00523"])
    assert dict(zip(rows[ID].tolist(), rows[COUNT].tolist(), strict=True)) == {"523": 1, "00523": 2}


# When the source fails


def server_data(url: str) -> DataConfig:
    return DataConfig(source="s3://bins", endpoint_url=url, image_size=32)


@pytest.fixture
def few_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten retries with backoff take most of a minute."""
    monkeypatch.setattr("data.pipeline.open_bucket", lambda data: open_bucket(data, max_retries=1))


@pytest.mark.usefixtures("few_retries")
def test_one_object_that_never_comes_is_a_row_lost(
    s3_server: Callable[[Callable[[str], tuple[int, bytes]]], str], photo: Photo
) -> None:
    def answer(path: str) -> tuple[int, bytes]:
        if "00002" in path:
            return 503, b""
        return 200, photo() if path.endswith(".jpg") else b'{"EXPECTED_QUANTITY": 2}'

    rows, drops = fetch(server_data(s3_server(answer)), ["00001", "00002", "00003"])
    assert rows[ID].tolist() == ["00001", "00003"]
    assert drops == {"00002": "fetch_failed"}


@pytest.mark.usefixtures("few_retries")
def test_a_block_of_which_nothing_comes_is_a_failed_source(
    s3_server: Callable[[Callable[[str], tuple[int, bytes]]], str],
) -> None:
    url = s3_server(lambda _: (503, b""))
    with pytest.raises(SourceUnreachableError, match=f"none of 2 bins could be fetched.*{url}"):
        fetch(server_data(url), ["00001", "00002"])


def test_one_forbidden_object_stops_it_all(
    s3_server: Callable[[Callable[[str], tuple[int, bytes]]], str], photo: Photo
) -> None:
    def answer(path: str) -> tuple[int, bytes]:
        if "00002" in path:
            return 403, b"<Error><Code>AccessDenied</Code></Error>"
        return 200, photo() if path.endswith(".jpg") else b'{"EXPECTED_QUANTITY": 2}'

    with pytest.raises(AccessDeniedError, match="s3://bins"):
        fetch(server_data(s3_server(answer)), ["00001", "00002", "00003"])


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


def fetch_all(bucket: SlowBucket, ids: list[str]) -> list[object]:
    return list(asyncio.run(fetch_bins(cast("Bucket", bucket), ids)))


def test_fetched_bins_keep_the_order_of_the_ids() -> None:
    ids = [str(number) for number in range(50)]
    expected = [(f"metadata/{i}.json".encode(), f"bin-images/{i}.jpg".encode()) for i in ids]
    assert fetch_all(SlowBucket(), ids) == expected


def test_requests_under_way_are_many_but_limited() -> None:
    bucket = SlowBucket()
    fetch_all(bucket, [str(number) for number in range(200)])
    assert MAX_IN_FLIGHT // 2 < bucket.most <= MAX_IN_FLIGHT


def test_an_unreachable_object_is_kept_as_the_reason_of_its_bin() -> None:
    error = SourceUnreachableError("timed out")
    first, second, third = fetch_all(SlowBucket({"bin-images/b.jpg": error}), ["a", "b", "c"])
    assert second is error
    assert isinstance(first, tuple)
    assert isinstance(third, tuple)


def test_a_denied_object_is_raised() -> None:
    with pytest.raises(AccessDeniedError):
        fetch_all(SlowBucket({"metadata/b.json": AccessDeniedError("denied")}), ["a", "b", "c"])


# read_bin


def record(count: int) -> bytes:
    return json.dumps({"EXPECTED_QUANTITY": count}).encode()


def test_a_fetched_bin_gives_count_and_photo() -> None:
    assert read_bin((record(3), b"photo"), 5) == (3, b"photo")


@pytest.mark.parametrize(
    ("fetched", "kind", "reason"),
    [
        ((None, b"photo"), LabelError, "missing_label"),
        ((record(3), None), ImageError, "missing_image"),
        ((None, None), LabelError, "missing_label"),
        ((record(6), b"photo"), RowError, "count_above_max"),
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
