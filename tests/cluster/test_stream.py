"""Exact global batches: a matter of seed and epoch alone, not of workers, memory, or where an epoch is taken up."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bintally.source_config import DataConfig
from data.blocks import FetchSpec
from data.bucket import open_bucket
from data.decode import TASK_ROWS
from data.drops import DropLedger
from data.order import Sampling
from data.pipeline import BLOCK_IDS, IdTable

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]

MakeReader = Callable[..., Any]
RowsOf = Callable[[Any], dict[str, int]]

NUM_TINY = 1_200
OFFICIAL_MISSING = "00003"


def tiny_counts(*, with_record: bool = True) -> dict[str, int]:
    return {f"{n:05d}": min(5, n % 10) for n in range(NUM_TINY) if n % 50 or not with_record}


def spec_of(folder: Path, image_size: int = 32) -> FetchSpec:
    return FetchSpec(data=DataConfig(source=f"file://{folder}", image_size=image_size), ledger=DropLedger.start())


# Workers and memory make no difference


def test_the_same_seed_gives_the_same_batches_on_any_number_of_workers(
    bucket: Path, streamed: MakeReader, rows_of: RowsOf
) -> None:
    spec, sampling = spec_of(bucket), Sampling(seed=3)
    ids = open_bucket(spec.data).list_ids()[:240]
    table = IdTable.put(ids)
    alone = streamed(table, spec, sampling).epoch(1)
    assert streamed(table, spec, sampling, workers=4).epoch(1) == alone
    seen = rows_of(alone)
    assert len(seen) + sum(spec.ledger.table().values()) == len(ids)
    for bin_id, count in seen.items():
        assert json.loads((bucket / f"metadata/{bin_id}.json").read_text())["EXPECTED_QUANTITY"] == count


def test_rows_in_memory_give_the_batches_of_the_stream(bucket: Path, streamed: MakeReader, stored: MakeReader) -> None:
    spec, sampling = spec_of(bucket), Sampling(seed=4)
    # Of broken photos a stream learns too late: it leaves gaps where rows in memory have none.
    whole = [bin_id for bin_id in open_bucket(spec.data).list_ids()[:240] if is_whole(bucket, bin_id)]
    table = IdTable.put(whole)
    in_memory = stored(table, spec, sampling)
    for number in (1, 2):
        batches = in_memory.epoch(number)
        assert stored(table, spec, sampling, workers=4).epoch(number) == batches
        assert streamed(table, spec, sampling, workers=2).epoch(number) == batches
        assert {len(batch.ids) for batch in batches} == {32}


def is_whole(bucket: Path, bin_id: str) -> bool:
    try:
        with Image.open(bucket / f"bin-images/{bin_id}.jpg") as image:
            image.load()
            return min(image.size) >= 16
    except OSError:
        return False


def test_many_tasks_give_the_same_batches_too(
    tiny_bucket: Path, streamed: MakeReader, stored: MakeReader, rows_of: RowsOf
) -> None:
    assert min(NUM_TINY / BLOCK_IDS, NUM_TINY / TASK_ROWS) > 2, "too few bins for several tasks"
    spec, sampling = spec_of(tiny_bucket), Sampling(seed=5)
    table = IdTable.put(list(tiny_counts(with_record=False)))
    four, one = (streamed(table, spec, sampling, size=16, workers=workers) for workers in (4, 1))
    first = four.epoch(1)
    assert one.epoch(1) == first
    assert stored(table, spec, sampling, size=16, workers=2).epoch(1) == first
    assert rows_of(first) == tiny_counts()
    assert [len(batch.rows()) for batch in first[:-1]] == [16] * (len(tiny_counts()) // 16)
    assert spec.ledger.table() == {"missing_label": NUM_TINY - len(tiny_counts())}

    # The same plan goes through the bins anew, in another order.
    second = four.epoch(2)
    assert rows_of(second) == tiny_counts()
    assert [batch.ids for batch in second] != [batch.ids for batch in first]
    assert one.epoch(2) == second


# Going on in the middle


def test_an_epoch_goes_on_where_it_was_cut_on_other_workers(
    tiny_bucket: Path, streamed: MakeReader, stored: MakeReader
) -> None:
    spec, sampling = spec_of(tiny_bucket), Sampling(seed=6)
    table = IdTable.put(list(tiny_counts(with_record=False)))
    whole = stored(table, spec, sampling, size=16, workers=4).epoch(3)
    in_memory = stored(table, spec, sampling, size=16, workers=1)
    stream = streamed(table, spec, sampling, size=16, workers=2)
    for cut in (1, 40, 72):  # the streams begin in the first, the second and the last task
        start = whole[cut - 1].next_position
        assert stream.epoch(3, start=start) == whole[cut:]
        assert in_memory.epoch(3, start=start) == whole[cut:]


def test_broken_photos_change_nothing_in_where_to_go_on(synthetic_bucket: Path, streamed: MakeReader) -> None:
    spec, sampling = spec_of(synthetic_bucket), Sampling(seed=7)
    table = IdTable.put(open_bucket(spec.data).list_ids())
    reader = streamed(table, spec, sampling, workers=4)
    whole = reader.epoch(2)
    assert any("" in batch.ids for batch in whole[:-1]), "no photo of this bucket is broken"
    assert streamed(table, spec, sampling, workers=1).epoch(2, start=whole[3].next_position) == whole[4:]
    assert reader.epoch(2, start=whole[-1].next_position) == []


# Parts of the ids, and counts that are known beforehand


def test_ten_epochs_of_a_tenth_visit_everything_once(
    tiny_bucket: Path, streamed: MakeReader, stored: MakeReader, rows_of: RowsOf
) -> None:
    spec, sampling = spec_of(tiny_bucket), Sampling(seed=8, epoch_fraction=0.1)
    table = IdTable.put(list(tiny_counts(with_record=False)))
    in_memory = stored(table, spec, sampling, size=16, workers=2)
    epochs = [in_memory.epoch(number) for number in range(1, 11)]
    assert rows_of([batch for epoch in epochs for batch in epoch]) == tiny_counts()
    assert {len(rows_of(epoch)) for epoch in epochs} <= set(range(105, 121))
    reader = streamed(table, spec, sampling, size=16, workers=2)
    assert [reader.epoch(number) for number in (1, 2)] == epochs[:2]


def test_balanced_epochs_have_every_count_equally_often(
    tiny_bucket: Path, streamed: MakeReader, stored: MakeReader
) -> None:
    spec, sampling = spec_of(tiny_bucket), Sampling(seed=9, epoch_fraction=0.25, balanced=True)
    known = tiny_counts()
    table = IdTable.put(list(known), list(known.values()))
    batches = streamed(table, spec, sampling, size=16, workers=2).epoch(1)
    rows = [row for batch in batches for row in zip(batch.ids, batch.counts, strict=True) if row[0]]
    counts = Counter(count for _, count in rows)
    assert set(counts) == set(range(6))
    assert max(counts.values()) - min(counts.values()) <= 1
    assert all(known[bin_id] == count for bin_id, count in rows)
    assert stored(table, spec, sampling, size=16).epoch(1) == batches


def test_listed_labels_need_no_records(
    tmp_path: Path, tiny_bucket: Path, streamed: MakeReader, rows_of: RowsOf
) -> None:
    shutil.copytree(tiny_bucket / "bin-images", tmp_path / "bin-images")
    (tmp_path / f"bin-images/{OFFICIAL_MISSING}.jpg").unlink()
    listed = {bin_id: (int(bin_id) + 1) % 8 for bin_id in list(tiny_counts(with_record=False))[:300]}
    spec = spec_of(tmp_path)
    table = IdTable.put(list(listed), list(listed.values()))
    batches = streamed(table, spec, Sampling(seed=10), workers=4).epoch(1)
    kept = {bin_id: count for bin_id, count in listed.items() if count <= 5 and bin_id != OFFICIAL_MISSING}
    assert rows_of(batches) == kept
    num_above = sum(count > 5 for count in listed.values())
    assert spec.ledger.table() == {"count_above_max": num_above, "missing_image": 1}


def test_validation_reads_in_the_given_order(tiny_bucket: Path, streamed: MakeReader) -> None:
    spec, known = spec_of(tiny_bucket), tiny_counts()
    ids = list(known)[:100]
    reader = streamed(IdTable.put(ids), spec, None, workers=4)
    for number in (1, 2):
        batches = reader.epoch(number)
        assert [bin_id for batch in batches for bin_id in batch.ids if bin_id] == ids
