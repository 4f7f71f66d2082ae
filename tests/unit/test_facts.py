"""Facts of one bin: the measures mean what they say, and a bin that cannot be used says why."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bintally.errors import SourceUnreachableError
from bintally.quality import LUMA
from bintally.source_config import DataConfig
from data import facts as facts_module
from data.bucket import open_bucket
from data.facts import (
    SCHEMA,
    THUMB_SIDE,
    BinFacts,
    measure_bin,
    measure_block,
    measure_clutter,
    shrink,
    to_table,
)

Photo = Callable[..., bytes]


def record(count: int, **items: int) -> bytes:
    contents = {asin: {"asin": asin, "quantity": quantity} for asin, quantity in items.items()}
    return json.dumps({"BIN_FCSKU_DATA": contents, "EXPECTED_QUANTITY": count}).encode()


def test_a_good_bin_is_measured(photo: Photo) -> None:
    picture = photo(size=(300, 200))
    facts = measure_bin("00001", record(3, B2=1, B1=2), picture)
    assert facts.fault == facts.detail == ""
    assert (facts.count, facts.asins) == (3, ("B1", "B2"))
    assert (facts.width, facts.height) == (300, 200)
    assert facts.photo_bytes == len(picture)
    assert facts.record_bytes == len(record(3, B2=1, B1=2))
    assert len(facts.thumb) == THUMB_SIDE**2


@pytest.mark.parametrize(("level", "luma"), [((0, 0, 0), 0), ((255, 255, 255), 255), ((255, 0, 0), 76.2)])
def test_luma_is_that_of_the_picture(level: tuple[int, int, int], luma: float) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), level).save(file, "PNG")
    facts = measure_bin("1", record(0), file.getvalue())
    assert facts.luma == pytest.approx(luma, abs=0.1)
    assert facts.sharpness == pytest.approx(0, abs=1e-6)
    assert facts.clutter == pytest.approx(0, abs=1e-6)
    assert len(set(facts.thumb)) == 1


@pytest.mark.parametrize(
    ("records", "picture", "fault"),
    [
        (None, b"x", "missing_label"),
        (b"{}", b"x", "no_quantity"),
        (b"[", b"x", "label_not_json"),
        (record(2, B1=1), b"x", "quantity_mismatch"),
        (record(1, B1=1), b"<html>", "not_an_image"),
    ],
)
def test_a_fault_is_told_by_the_reason_of_the_drop_table(records: bytes | None, picture: bytes, fault: str) -> None:
    facts = measure_bin("00001", records, picture)
    assert facts.fault == fault
    assert facts.thumb == b""


def test_missing_and_truncated_photos_are_faults(photo: Photo) -> None:
    assert measure_bin("1", record(1, B1=1), None).fault == "missing_image"
    whole = photo(size=(300, 200))
    assert measure_bin("1", record(1, B1=1), whole[: len(whole) // 2]).fault == "truncated_image"


def test_the_detail_names_both_sums() -> None:
    detail = measure_bin("1", record(4, B1=1, B2=2), b"x").detail
    assert "4" in detail
    assert "3" in detail


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (224, 224)).astype(np.float32)


def test_clutter_does_not_depend_on_the_light() -> None:
    busy = shrink(noise(), 32)
    assert measure_clutter(busy * 0.5) == pytest.approx(measure_clutter(busy), rel=1e-5)
    assert measure_clutter(busy) > 10 * measure_clutter(np.full((32, 32), 90.0) + np.arange(32) * 0.1)


def test_shrinking_keeps_means() -> None:
    small = shrink(noise(), 16)
    assert small.shape == (16, 16)
    assert small.mean() == pytest.approx(noise().mean(), rel=1e-5)
    assert small[0, 1] == pytest.approx(noise()[:14, 14:28].mean(), rel=1e-5)


def test_luma_weights_add_up_to_one() -> None:
    assert LUMA.sum() == pytest.approx(1)


def test_a_table_holds_what_was_measured_and_may_be_empty(photo: Photo) -> None:
    facts = [measure_bin("00001", record(1, B1=1), photo()), BinFacts(bin_id="00002", fault="fetch_failed")]
    table = to_table(facts)
    assert table.schema == SCHEMA == to_table([]).schema
    assert [BinFacts(**row | {"asins": tuple(row["asins"])}) for row in table.to_pylist()] == facts


def test_a_block_is_fetched_in_the_order_of_its_ids(bucket_dir: Callable[..., Path]) -> None:
    folder = bucket_dir({"00001": 2, "00002": 0, "00003": 1}, broken={"bin-images/00003.jpg": None})
    data = DataConfig(source=f"file://{folder}")
    table = measure_block({"id": np.array(["00003", "00001", "00002"])}, data)
    assert table["bin_id"].to_pylist() == ["00003", "00001", "00002"]
    assert table["fault"].to_pylist() == ["missing_image", "", ""]
    assert table["count"].to_pylist() == [0, 2, 0]


def test_a_source_that_answers_nothing_is_an_error_and_one_lost_bin_is_not(
    s3_server: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = s3_server(lambda path: (500, b"") if "00002" in path or "s3" in path else (404, b""))
    data = DataConfig(source="s3://pairs", endpoint_url=endpoint)
    monkeypatch.setattr(facts_module, "open_bucket", lambda config: open_bucket(config, max_retries=0))
    table = measure_block({"id": np.array(["00001", "00002"])}, data)
    assert table["fault"].to_pylist() == ["missing_label", "fetch_failed"]
    with pytest.raises(SourceUnreachableError, match="none of 1 bins"):
        measure_block({"id": np.array(["00002"])}, data)
