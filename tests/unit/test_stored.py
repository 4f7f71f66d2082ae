"""Rows in memory, picked by the order of an epoch: exact batches, for any number of workers, from any position on."""

from collections.abc import Iterator
from itertools import chain, pairwise
from threading import Event

import numpy as np
import pytest

from bintally.batch import BATCH_ROWS, COUNT, ID, IMAGE, NEXT_POSITION, PADDING, POSITION, ArrayBatch
from data.decode import Share
from data.feed import _ahead
from data.order import Sampling, balanced_order, epoch_order
from data.stored import OpenRows

NUM_IDS = 23
DROPPED = (0, 5, 6, 22)
CUTS = (7, 7, 16)
"""Where blocks end; the second one is empty."""


def block(positions: list[int]) -> ArrayBatch:
    """Rows of which each column tells the position; in reality the images are larger."""
    return {
        ID: np.array([f"{position:05d}" for position in positions], object),
        POSITION: np.array(positions, np.int64),
        IMAGE: np.array([[[[position, 1, 2]]] for position in positions], np.uint8).reshape(-1, 1, 1, 3),
        COUNT: np.array([position % 6 for position in positions], np.int64),
    }


def open_rows(dropped: tuple[int, ...] = DROPPED, *, num_ids: int = NUM_IDS) -> OpenRows:
    cuts = [0, *CUTS, num_ids]
    kept = [[p for p in range(*ends) if p not in dropped] for ends in pairwise(cuts)]
    return OpenRows([block(positions) for positions in kept], num_ids)


def global_batches(
    rows: OpenRows, indices: np.ndarray, *, batch_size: int = 4, num_workers: int = 1, start: int = 0
) -> list[ArrayBatch]:
    """What the workers get, put together: the n-th batch of all of them."""
    share = Share(global_batch_size=batch_size, num_workers=num_workers)
    workers = [list(rows.batches(indices, share, rank, start=start)) for rank in range(num_workers)]
    assert len({len(batches) for batches in workers}) == 1, "a worker would wait for the others for ever"
    assert all(len(batch[name]) == share.local_batch_size for batch in chain(*workers) for name in batch)
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*workers, strict=True)
    ]


def kept_positions(indices: np.ndarray, dropped: tuple[int, ...] = DROPPED) -> list[int]:
    """Positions in the order of those ids that have a row."""
    return [position for position, index in enumerate(indices.tolist()) if index not in dropped]


def real_ids(batches: list[ArrayBatch]) -> list[str]:
    return [bin_id for batch in batches for bin_id in batch[ID][batch[COUNT] != PADDING].tolist()]


def assert_equal(batches: list[ArrayBatch], others: list[ArrayBatch]) -> None:
    for one, other in zip(batches, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert np.array_equal(one[name], other[name]), name


@pytest.fixture
def order() -> np.ndarray:
    return epoch_order(NUM_IDS, Sampling(seed=1), 1)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7, 19, 20, 64])
def test_batches_are_the_rows_of_the_order_a_few_at_a_time(order: np.ndarray, batch_size: int) -> None:
    kept = kept_positions(order)
    expected = [kept[begin : begin + batch_size] for begin in range(0, len(kept), batch_size)]
    batches = global_batches(open_rows(), order, batch_size=batch_size)
    for batch, positions in zip(batches, expected, strict=True):
        num_missing = batch_size - len(positions)
        assert batch[ID].tolist() == [f"{order[p]:05d}" for p in positions] + [""] * num_missing
        assert batch[COUNT].tolist() == [order[p] % 6 for p in positions] + [PADDING] * num_missing
        repeated = [positions[n % len(positions)] for n in range(batch_size)]
        assert batch[IMAGE][:, 0, 0, 0].tolist() == order[repeated].tolist()
        assert batch[BATCH_ROWS].tolist() == [len(positions)] * batch_size
        assert batch[NEXT_POSITION].tolist() == [positions[-1] + 1] * batch_size


def test_columns_have_the_types_of_the_contract(order: np.ndarray) -> None:
    for batch in global_batches(open_rows(), order):
        assert batch.keys() == {ID, IMAGE, COUNT, BATCH_ROWS, NEXT_POSITION}
        assert batch[IMAGE].dtype == np.uint8
        assert batch[IMAGE].shape == (4, 1, 1, 3)
        assert {batch[name].dtype for name in (COUNT, BATCH_ROWS, NEXT_POSITION)} == {np.dtype(np.int64)}
        assert batch[ID].dtype.kind == "U"


@pytest.mark.parametrize("num_workers", [2, 4])
@pytest.mark.parametrize("batch_size", [4, 8, 16, 20, 64])
def test_the_global_batches_are_the_same_for_any_number_of_workers(
    order: np.ndarray, batch_size: int, num_workers: int
) -> None:
    alone = global_batches(open_rows(), order, batch_size=batch_size)
    shared = global_batches(open_rows(), order, batch_size=batch_size, num_workers=num_workers)
    assert_equal(shared, alone)


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_every_row_comes_once_an_epoch(num_workers: int) -> None:
    expected = sorted(f"{position:05d}" for position in range(NUM_IDS) if position not in DROPPED)
    for epoch in range(1, 6):
        indices = epoch_order(NUM_IDS, Sampling(seed=0), epoch)
        assert sorted(real_ids(global_batches(open_rows(), indices, num_workers=num_workers))) == expected


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("batch_size", [2, 4, 10])
def test_a_worker_that_goes_on_from_next_position_gets_exactly_the_rest(
    order: np.ndarray, batch_size: int, num_workers: int
) -> None:
    rows = open_rows()
    whole = global_batches(rows, order, batch_size=batch_size, num_workers=num_workers)
    for done in range(1, len(whole) + 1):
        start = int(whole[done - 1][NEXT_POSITION][0])
        rest = global_batches(rows, order, batch_size=batch_size, num_workers=num_workers, start=start)
        assert_equal(rest, whole[done:])


def test_any_position_can_be_the_first(order: np.ndarray) -> None:
    for start in range(NUM_IDS + 2):
        expected = [f"{order[position]:05d}" for position in kept_positions(order) if position >= start]
        assert real_ids(global_batches(open_rows(), order, start=start)) == expected


def test_only_the_ids_of_the_order_come() -> None:
    indices = np.array([3, 0, 8, 21, 22, 1])
    assert real_ids(global_batches(open_rows(), indices)) == ["00003", "00008", "00021", "00001"]


def test_an_order_may_visit_an_id_several_times() -> None:
    indices = np.array([3, 8, 3, 3, 8, 0])
    batches = global_batches(open_rows(), indices, batch_size=2, num_workers=2)
    assert real_ids(batches) == ["00003", "00008", "00003", "00003", "00008"]


def test_counts_tell_the_label_of_each_id_and_which_were_dropped() -> None:
    expected = [PADDING if position in DROPPED else position % 6 for position in range(NUM_IDS)]
    assert open_rows().counts.tolist() == expected


def test_balanced_epochs_visit_dropped_ids_never_and_counts_equally_often() -> None:
    rows = open_rows()
    indices = balanced_order(rows.counts, Sampling(seed=0, balanced=True), 1)
    batches = global_batches(rows, indices, num_workers=2)
    counts = np.concatenate([batch[COUNT] for batch in batches])
    often = np.bincount(counts[counts != PADDING])
    assert often.sum() == len(indices) == NUM_IDS - len(DROPPED)
    assert often.max() - often.min() <= 1


def test_blocks_without_a_row_and_their_places_change_nothing(order: np.ndarray) -> None:
    kept = [position for position in range(NUM_IDS) if position not in DROPPED]
    plain = OpenRows([block(kept)], NUM_IDS)
    holes = OpenRows([block([]), block(kept[:9]), block([]), block([]), block(kept[9:]), block([])], NUM_IDS)
    assert_equal(global_batches(holes, order), global_batches(plain, order))


def test_the_order_of_the_blocks_does_not_matter(order: np.ndarray) -> None:
    there = OpenRows([block([0, 1, 2, 3]), block([4, 5, 6]), block([7])], NUM_IDS)
    back = OpenRows([block([7]), block([4, 5, 6]), block([0, 1, 2, 3])], NUM_IDS)
    assert_equal(global_batches(back, order), global_batches(there, order))


def test_fewer_rows_than_a_batch_are_filled_up() -> None:
    rows = OpenRows([block([1, 2])], 3)
    (batch,) = global_batches(rows, np.arange(3), batch_size=8, num_workers=4)
    assert batch[ID].tolist() == ["00001", "00002", "", "", "", "", "", ""]
    assert batch[COUNT].tolist() == [1, 2, *[PADDING] * 6]
    assert batch[IMAGE][:, 0, 0, 0].tolist() == [1, 2] * 4
    assert batch[BATCH_ROWS].tolist() == [2] * 8
    assert batch[NEXT_POSITION].tolist() == [3] * 8


@pytest.mark.parametrize("blocks", [[], [block([])]])
def test_no_rows_are_no_batches(blocks: list[ArrayBatch]) -> None:
    rows = OpenRows(blocks, 5)
    assert global_batches(rows, np.arange(5), num_workers=2) == []
    assert rows.counts.tolist() == [PADDING] * 5


def test_batches_own_their_rows() -> None:
    """The rows are shared with other trials, and Ray maps them read-only."""
    shared = block([0, 1, 2])
    for column in shared.values():
        column.flags.writeable = False
    rows = OpenRows([shared], 3)
    first = global_batches(rows, np.arange(3))[0]
    first[IMAGE][:] = 0
    first[COUNT][:] = 0
    assert shared[IMAGE][:, 0, 0, 0].tolist() == [0, 1, 2]
    assert global_batches(rows, np.arange(3))[0][COUNT].tolist() == [0, 1, 2, PADDING]


# One batch ahead


def batch_of(number: int) -> ArrayBatch:
    return {COUNT: np.array([number])}


def test_a_batch_is_made_while_the_one_before_is_trained_on() -> None:
    begun = [Event() for _ in range(3)]

    def batches() -> Iterator[ArrayBatch]:
        for number, event in enumerate(begun):
            event.set()
            yield batch_of(number)

    coming = _ahead(batches())
    for number in range(3):
        assert next(coming)[COUNT][0] == number
        assert begun[min(number + 1, 2)].wait(10)
        assert not any(event.is_set() for event in begun[number + 2 :]), "more than one ahead"
    assert list(coming) == []


def test_an_error_comes_behind_the_batches_before_it() -> None:
    def batches() -> Iterator[ArrayBatch]:
        yield batch_of(0)
        raise KeyError("gone")

    coming = _ahead(batches())
    assert next(coming)[COUNT][0] == 0
    with pytest.raises(KeyError, match="gone"):
        next(coming)
