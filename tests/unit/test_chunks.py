"""The tasks of an epoch, without Ray: together they fetch its order once, whatever its size and wherever it begins."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pytest

from bintally.batch import BATCH_ROWS, COUNT, ID, NEXT_POSITION, PADDING, POSITION, ArrayBatch
from bintally.source_config import DataConfig
from data.blocks import FetchSpec
from data.clock import EpochClock, _Clock
from data.decode import Share, decode_batches, decode_rows
from data.drops import DropLedger
from data.order import Sampling, balanced_order, epoch_order
from data.pipeline import BLOCK_IDS, EpochOrder, IdTable, chunk_edge, fetch_chunk
from data.stored import OpenRows

MakeBucket = Callable[..., Path]
IDS = [f"{number:05d}" for number in range(1, 24)]
BROKEN: dict[str, bytes | None] = {
    "metadata/00003.json": None,
    "metadata/00004.json": b"no JSON",
    "bin-images/00023.jpg": None,
}
KEPT = [bin_id for bin_id in IDS if bin_id not in {"00003", "00004", "00023"}]


@dataclass
class Ledger:
    """Stands for the actor that keeps the reasons."""

    drops: dict[str, str] = field(default_factory=dict)

    def record(self, drops: dict[str, str]) -> None:
        """As `DropLedger.record`."""
        self.drops |= drops


@dataclass
class Table:
    """Stands for ids in Ray's object store."""

    ids: list[str]
    counts: list[int] | None = None

    def get(self) -> tuple[np.ndarray, np.ndarray | None]:
        """As `IdTable.get`."""
        return np.array(self.ids, np.str_), None if self.counts is None else np.array(self.counts, np.int64)


@dataclass
class Clock:
    """Stands for the clock's actor."""

    epoch: int = 1
    start: int = 0

    def read(self) -> tuple[int, int]:
        """As `EpochClock.read`."""
        return self.epoch, self.start


@pytest.fixture
def spec(bucket_dir: MakeBucket) -> FetchSpec:
    folder = bucket_dir({bin_id: number % 6 for number, bin_id in enumerate(IDS)}, broken=BROKEN)
    return FetchSpec(data=DataConfig(source=f"file://{folder}", image_size=16), ledger=cast("DropLedger", Ledger()))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 ids are more than these tests have."""
    monkeypatch.setattr("data.pipeline.BLOCK_IDS", 4)


def order_at(sampling: Sampling | None, epoch: int = 1, start: int = 0) -> EpochOrder:
    return EpochOrder(sampling=sampling, clock=cast("EpochClock", Clock(epoch, start)))


def fetch_all(spec: FetchSpec, order: EpochOrder, *, num_chunks: int = 3, table: Table | None = None) -> pa.Table:
    """The blocks of all tasks, one after the other."""
    blocks = [
        block
        for number in range(num_chunks)
        for block in fetch_chunk(
            pa.table({"chunk": [number]}),
            num_chunks=num_chunks,
            table=cast("IdTable", table or Table(IDS)),
            spec=spec,
            order=order,
        )
    ]
    assert len({str(block.schema) for block in blocks}) == 1
    assert len(blocks) >= num_chunks, "a task without a block tells no columns"
    return pa.concat_tables(blocks)


@pytest.mark.parametrize("num_chunks", [1, 2, 5, 23, 40])
def test_the_tasks_fetch_every_id_once_and_in_order(spec: FetchSpec, num_chunks: int) -> None:
    rows = fetch_all(spec, EpochOrder(), num_chunks=num_chunks)
    assert rows[ID].to_pylist() == KEPT
    assert rows[POSITION].to_pylist() == [IDS.index(bin_id) for bin_id in KEPT]


@pytest.mark.parametrize("epoch", [1, 2, 11])
def test_the_clock_tells_which_epoch_is_fetched(spec: FetchSpec, epoch: int) -> None:
    sampling = Sampling(seed=5, epoch_fraction=0.3)
    rows = fetch_all(spec, order_at(sampling, epoch))
    visited = [IDS[index] for index in epoch_order(len(IDS), sampling, epoch)]
    assert rows[ID].to_pylist() == [bin_id for bin_id in visited if bin_id in KEPT]


@pytest.mark.parametrize("num_ids", [0, 1, 130_000, 131_073, 535_234])
def test_a_whole_bucket_takes_few_tasks_and_the_first_ones_are_small(
    num_ids: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.pipeline.BLOCK_IDS", BLOCK_IDS)
    edges = [chunk_edge(number, 256, num_ids) for number in range(257)]
    assert (edges[0], edges[-1]) == (0, num_ids)
    sizes = np.diff(edges)
    assert min(sizes) >= 0
    assert max(sizes[:3]) <= 1.1 * BLOCK_IDS
    assert max(sizes) <= 8 * BLOCK_IDS


@pytest.mark.parametrize("num_chunks", [1, 4])
def test_tasks_go_on_from_any_position(spec: FetchSpec, num_chunks: int) -> None:
    sampling = Sampling(seed=5)
    whole = fetch_all(spec, order_at(sampling), num_chunks=num_chunks)
    for start in range(len(IDS) + 1):
        rest = fetch_all(spec, order_at(sampling, start=start), num_chunks=num_chunks)
        assert rest.to_pylist() == [row for row in whole.to_pylist() if row[POSITION] >= start]


def test_known_counts_are_the_labels(spec: FetchSpec) -> None:
    counts = [9 if bin_id == "00007" else 5 for bin_id in IDS]
    rows = fetch_all(spec, order_at(Sampling(seed=0)), table=Table(IDS, counts))
    assert set(rows[COUNT].to_pylist()) == {5}
    assert cast("Ledger", spec.ledger).drops == {"00007": "count_above_max", "00023": "missing_image"}


def test_ids_that_are_known_to_be_unusable_are_not_fetched(spec: FetchSpec) -> None:
    counts = [PADDING if bin_id in {"00001", "00009", "00023"} else 5 for bin_id in IDS]
    rows = fetch_all(spec, EpochOrder(), table=Table(IDS, counts))
    kept = [bin_id for bin_id in IDS if bin_id not in {"00001", "00009", "00023"}]
    assert rows[ID].to_pylist() == kept
    assert rows[POSITION].to_pylist() == [IDS.index(bin_id) for bin_id in kept]
    assert set(rows[COUNT].to_pylist()) == {5}
    assert cast("Ledger", spec.ledger).drops == {}  # they have their reasons already


def test_balanced_epochs_follow_the_known_counts(spec: FetchSpec) -> None:
    counts = [PADDING, PADDING, *[0] * 12, *[1] * 9]
    sampling = Sampling(seed=0, balanced=True)
    rows = fetch_all(spec, order_at(sampling, 2), table=Table(IDS, counts))
    visited = [IDS[index] for index in balanced_order(np.array(counts), sampling, 2)]
    assert rows[ID].to_pylist() == [bin_id for bin_id in visited if bin_id != "00023"]
    assert not {"00001", "00002"} & set(visited)


# The whole way, streamed and in memory


def streamed(spec: FetchSpec, order: EpochOrder, share: Share, rank: int) -> list[ArrayBatch]:
    """One worker's batches: Ray gives a task the rows of two batches, and a worker its block of what comes back."""
    rows, local = fetch_all(spec, order), share.local_batch_size
    batches: list[ArrayBatch] = []
    for begin in range(0, len(rows), 2 * share.global_batch_size):
        columns = decode_batches(rows[begin : begin + 2 * share.global_batch_size], spec, share, num_batches=2)
        batches += [
            {name: column[first : first + local] for name, column in columns.items()}
            for first in (2 * rank * local, (2 * rank + 1) * local)
        ]
    return [batch for batch in batches if batch[BATCH_ROWS][0] > 0]


@pytest.mark.parametrize("num_workers", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [4, 8, 24])
def test_batches_are_the_same_streamed_and_in_memory(spec: FetchSpec, batch_size: int, num_workers: int) -> None:
    share, sampling = Share(global_batch_size=batch_size, num_workers=num_workers), Sampling(seed=3)
    stored = OpenRows([decode_rows(fetch_all(spec, EpochOrder()), spec)], len(IDS))
    for epoch in (1, 2):
        indices = epoch_order(len(IDS), sampling, epoch)
        for rank in range(num_workers):
            picked = list(stored.batches(indices, share, rank))
            for one, other in zip(streamed(spec, order_at(sampling, epoch), share, rank), picked, strict=True):
                assert one.keys() == other.keys()
                assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_stream_goes_on_where_any_batch_ended(spec: FetchSpec, num_workers: int) -> None:
    share, sampling = Share(global_batch_size=4, num_workers=num_workers), Sampling(seed=3)
    for rank in range(num_workers):
        whole = streamed(spec, order_at(sampling), share, rank)
        for done, batch in enumerate(whole, start=1):
            rest = streamed(spec, order_at(sampling, start=int(batch[NEXT_POSITION][0])), share, rank)
            for one, other in zip(rest, whole[done:], strict=True):
                assert all(np.array_equal(one[name], other[name]) for name in one)


# The clock


def test_a_clock_begins_with_the_first_epoch() -> None:
    assert _Clock().read("a") == (1, 0)


def test_each_training_has_a_hand_of_its_own() -> None:
    clock = _Clock()
    clock.set("a", 3, 40)
    clock.set("b", 2, 0)
    clock.set("a", 4, 0)
    assert (clock.read("a"), clock.read("b"), clock.read("c")) == ((4, 0), (2, 0), (1, 0))
