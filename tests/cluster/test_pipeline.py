"""The stream through a real local Ray: every good row once, every other one with its reason."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from ray.data import Dataset
from ray.exceptions import RayError

from bintally.config import Recipe
from bintally.errors import AccessDeniedError, NoUsableRowsError, SourceNotFoundError
from bintally.recipes import smoke
from bintally.source_config import DataConfig
from data.args import ReadArgs
from data.blocks import FetchSpec
from data.bucket import open_bucket
from data.drops import DropLedger
from data.ingest import count_mix, list_splits, load_training_rows
from data.pipeline import IdTable, stream_rows
from data.session import unwrap
from data.split import is_padded

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


def rows_of(ids: list[str], data: DataConfig, ledger: DropLedger) -> Dataset:
    return stream_rows(IdTable.put(ids), FetchSpec(data=data, ledger=ledger))


def recipe_of(data: DataConfig) -> Recipe:
    return replace(smoke(), data=data)


def record_of(bucket: Path, bin_id: str) -> dict[str, object] | None:
    try:
        values = json.loads((bucket / "metadata" / f"{bin_id}.json").read_text())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def test_every_good_row_arrives_once_with_its_label(bucket: Path) -> None:
    data = DataConfig(source=f"file://{bucket}", image_size=32)
    ids = [bin_id for bin_id in open_bucket(data).list_ids() if is_padded(bin_id)]
    ledger = DropLedger.start()
    seen: dict[str, int] = {}
    for batch in rows_of(ids, data, ledger).iter_batches(batch_size=50):
        assert batch["image"].shape[1:] == (32, 32, 3)
        assert batch["image"].dtype == "uint8"
        for bin_id, count in zip(batch["id"].tolist(), batch["count"].tolist(), strict=True):
            assert bin_id not in seen
            seen[bin_id] = count
    expected = {bin_id: (record_of(bucket, bin_id) or {}).get("EXPECTED_QUANTITY") for bin_id in ids}
    assert all(count == expected[bin_id] for bin_id, count in seen.items())
    assert len(seen) + sum(ledger.table().values()) == len(ids)
    too_many = sum(isinstance(count, int) and count > 5 for count in expected.values())
    assert ledger.table().get("count_above_max", 0) == too_many


def test_synthetic_faults_are_counted_by_reason(synthetic_bucket: Path) -> None:
    data = DataConfig(source=f"file://{synthetic_bucket}", image_size=32)
    ids = [path.stem for path in (synthetic_bucket / "metadata").glob("*.json")]
    ids = sorted({*ids, *(path.stem for path in (synthetic_bucket / "bin-images").glob("*.jpg"))})
    ledger = DropLedger.start()
    num_kept = rows_of(ids, data, ledger).count()
    table = ledger.table()
    assert len(table) >= 4, table
    assert num_kept + sum(table.values()) == len(ids)
    without_photo = sum(not (synthetic_bucket / "bin-images" / f"{bin_id}.jpg").exists() for bin_id in ids)
    without_record = sum(not (synthetic_bucket / "metadata" / f"{bin_id}.json").exists() for bin_id in ids)
    assert table.get("missing_image", 0) == without_photo
    assert table.get("missing_label", 0) == without_record


def test_rows_come_in_the_order_of_their_ids_with_their_positions(synthetic_bucket: Path) -> None:
    data = DataConfig(source=f"file://{synthetic_bucket}", image_size=32)
    ids = open_bucket(data).list_ids()[::-1]
    kept, positions = [], []
    for batch in rows_of(ids, data, DropLedger.start()).iter_batches(batch_size=50):
        kept += batch["id"].tolist()
        positions += batch["position"].tolist()
    assert kept == [ids[position] for position in positions]
    assert positions == sorted(set(positions))


def test_training_rows_are_split_and_counted(bucket: Path) -> None:
    data = DataConfig(source=f"file://{bucket}", image_size=32)
    splits = list_splits(data)
    ledger = DropLedger.start()
    rows = load_training_rows(splits, recipe_of(data), ledger, ReadArgs())
    assert rows.train.stored
    assert rows.val.stored
    train, val = rows.train.stored.open().counts, rows.val.stored.open().counts
    assert (len(train), len(val)) == (len(splits["train"]), len(splits["val"]))
    assert rows.num_train == sum(count_mix(train).values())
    assert set(count_mix(train)) <= set(range(6))
    num_kept = rows.num_train + sum(count_mix(val).values())
    assert num_kept + sum(ledger.table().values()) == len(train) + len(val)


def test_s3_gives_the_same_rows_as_the_folder(s3_endpoint: str, s3_bucket: str, best_bucket: Path) -> None:
    from_s3 = DataConfig(source=s3_bucket, endpoint_url=s3_endpoint, image_size=32)
    from_file = replace(from_s3, source=f"file://{best_bucket}", endpoint_url=None)
    ids = open_bucket(from_s3).list_ids()
    assert len(ids) == 200
    found = []
    for data in (from_s3, from_file):
        rows = {
            bin_id: (count, int(image.sum()))
            for batch in rows_of(ids, data, DropLedger.start()).iter_batches()
            for bin_id, count, image in zip(batch["id"].tolist(), batch["count"].tolist(), batch["image"], strict=True)
        }
        assert rows
        found.append(rows)
    assert found[0] == found[1]


def test_a_missing_bucket_and_an_empty_prefix_are_named(s3_endpoint: str, s3_bucket: str) -> None:
    with pytest.raises(SourceNotFoundError, match="s3://nowhere"):
        list_splits(DataConfig(source="s3://nowhere", endpoint_url=s3_endpoint))
    with pytest.raises(SourceNotFoundError, match="bin-images"):
        list_splits(DataConfig(source="s3://pairs/elsewhere", endpoint_url=s3_endpoint))


def test_forbidden_objects_end_the_stream_with_our_error(s3_endpoint: str, s3_bucket: str) -> None:
    data = DataConfig(source="s3://private", endpoint_url=s3_endpoint, image_size=32)
    with pytest.raises(RayError) as caught:
        rows_of(["00001"], data, DropLedger.start()).materialize()
    assert isinstance(unwrap(caught.value), AccessDeniedError)


def test_a_source_without_a_usable_row_is_refused_with_the_drop_table(tmp_path: Path) -> None:
    for folder in ("bin-images", "metadata"):
        (tmp_path / folder).mkdir()
    for number in range(1, 41):
        (tmp_path / "bin-images" / f"{number:05d}.jpg").write_bytes(b"<html>")
        (tmp_path / "metadata" / f"{number:05d}.json").write_text('{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": 0}')
    data = DataConfig(source=f"file://{tmp_path}", image_size=32, split_by="hash")
    with pytest.raises(NoUsableRowsError, match="not_an_image"):
        load_training_rows(list_splits(data), recipe_of(data), DropLedger.start(), ReadArgs())
