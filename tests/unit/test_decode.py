"""Undecoded photos become rows, and global batches that are the same for any number of workers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pyarrow as pa
import pytest

from bintally.batch import BATCH_ROWS, COUNT, HEIGHT, ID, IMAGE, NEXT_POSITION, PADDING, POSITION, WIDTH, ArrayBatch
from bintally.errors import ConfigError
from bintally.image import decode_photo
from bintally.source_config import DataConfig, Resize
from data.blocks import PHOTO, FetchSpec
from data.decode import TASK_BYTES, TASK_ROWS, Share, decode_batches, decode_rows
from data.drops import DropLedger

SIZE = 16
Photo = Callable[..., bytes]
MakeTable = Callable[..., pa.Table]


@dataclass
class Ledger:
    """Stands for the actor that keeps the reasons."""

    drops: dict[str, str] = field(default_factory=dict)

    def record(self, drops: dict[str, str]) -> None:
        """As `DropLedger.record`."""
        self.drops |= drops


def make_spec(ledger: Ledger | None = None) -> FetchSpec:
    data = DataConfig(source="file:///nowhere", image_size=SIZE)
    return FetchSpec(data=data, ledger=cast("DropLedger", ledger or Ledger()))


@pytest.fixture
def table(photo: Photo) -> MakeTable:
    """`table(rows, broken={row: bytes})`: fetched rows that differ in all; positions have gaps, as after drops."""

    def make(num_rows: int, *, broken: dict[int, bytes] | None = None) -> pa.Table:
        numbers = range(num_rows)
        photos = [(broken or {}).get(number) or photo(seed=number, size=(20, 24)) for number in numbers]
        columns = {
            ID: pa.array([f"{number:05d}" for number in numbers], pa.string()),
            POSITION: pa.array([100 + 3 * number for number in numbers], pa.int64()),
            COUNT: pa.array([number % 6 for number in numbers], pa.int64()),
            PHOTO: pa.array(photos, pa.large_binary()),
        }
        return pa.table(columns)

    return make


def global_batches(rows: ArrayBatch, share: Share, num_batches: int) -> list[ArrayBatch]:
    """What the workers get, put together: each one's blocks, and the n-th batch of all of them."""
    local = share.local_batch_size
    per_worker = num_batches * local
    assert {len(column) for column in rows.values()} == {share.num_workers * per_worker}
    workers = [
        {name: column[rank * per_worker :][:per_worker] for name, column in rows.items()}
        for rank in range(share.num_workers)
    ]
    return [
        {name: np.concatenate([worker[name][n * local : (n + 1) * local] for worker in workers]) for name in rows}
        for n in range(num_batches)
    ]


def decoded(
    table: pa.Table, *, num_batches: int, num_workers: int = 1, batch_size: int = 4, ledger: Ledger | None = None
) -> list[ArrayBatch]:
    share = Share(global_batch_size=batch_size, num_workers=num_workers)
    return global_batches(decode_batches(table, make_spec(ledger), share, num_batches), share, num_batches)


def column(batches: list[ArrayBatch], name: str) -> list[list[int | str]]:
    return [batch[name].tolist() for batch in batches]


# decode_batches


@pytest.mark.parametrize("num_workers", [1, 2, 4])
@pytest.mark.parametrize("num_rows", [12, 11, 9, 8, 3, 1, 0])
def test_the_global_batches_are_the_same_for_any_number_of_workers(
    table: MakeTable, num_rows: int, num_workers: int
) -> None:
    rows = table(num_rows, broken={2: b"no photo", 8: b"no photo"})
    alone = decoded(rows, num_batches=3)
    shared = decoded(rows, num_batches=3, num_workers=num_workers)
    for one, other in zip(alone, shared, strict=True):
        assert one.keys() == other.keys() == {ID, IMAGE, COUNT, BATCH_ROWS, NEXT_POSITION}
        for name in one:
            assert np.array_equal(one[name], other[name]), name


def test_full_batches_hold_the_rows_in_their_order(table: MakeTable) -> None:
    rows = table(8)
    batches = decoded(rows, num_batches=2)
    assert column(batches, ID) == [["00000", "00001", "00002", "00003"], ["00004", "00005", "00006", "00007"]]
    assert column(batches, COUNT) == [[0, 1, 2, 3], [4, 5, 0, 1]]
    assert column(batches, BATCH_ROWS) == [[4] * 4, [4] * 4]
    assert column(batches, NEXT_POSITION) == [[110] * 4, [122] * 4]  # behind positions 109 and 121
    photos = [decode_photo(data, make_spec().data.pixels) for data in rows[PHOTO].to_pylist()]
    assert np.array_equal(np.concatenate([batch[IMAGE] for batch in batches]), photos)


def test_columns_have_the_types_of_the_contract(table: MakeTable) -> None:
    for num_rows in (8, 5, 0):
        for batch in decoded(table(num_rows), num_batches=2):
            assert batch[IMAGE].dtype == np.uint8
            assert batch[IMAGE].shape == (4, SIZE, SIZE, 3)
            assert {batch[name].dtype for name in (COUNT, BATCH_ROWS, NEXT_POSITION)} == {np.dtype(np.int64)}
            assert batch[ID].dtype.kind == "U"


def test_the_last_batch_of_an_epoch_is_filled_up(table: MakeTable) -> None:
    batches = decoded(table(6), num_batches=3)
    assert column(batches, ID) == [["00000", "00001", "00002", "00003"], ["00004", "00005", "", ""], [""] * 4]
    assert column(batches, COUNT) == [[0, 1, 2, 3], [4, 5, PADDING, PADDING], [PADDING] * 4]
    assert column(batches, BATCH_ROWS) == [[4] * 4, [2] * 4, [0] * 4]
    assert column(batches, NEXT_POSITION) == [[110] * 4, [116] * 4, [116] * 4]


def test_a_single_row_fills_its_batch(table: MakeTable) -> None:
    (batch,) = decoded(table(1), num_batches=1)
    assert batch[ID].tolist() == ["00000", "", "", ""]
    assert batch[COUNT].tolist() == [0, PADDING, PADDING, PADDING]
    assert batch[BATCH_ROWS].tolist() == [1] * 4
    assert batch[NEXT_POSITION].tolist() == [101] * 4
    assert all(np.array_equal(image, batch[IMAGE][0]) for image in batch[IMAGE])


def test_no_row_at_all_is_padding(table: MakeTable) -> None:
    for batch in decoded(table(0), num_batches=2):
        assert batch[COUNT].tolist() == [PADDING] * 4
        assert batch[BATCH_ROWS].tolist() == [0] * 4


def test_a_photo_that_is_none_becomes_padding_in_its_place_and_is_reported(table: MakeTable, photo: Photo) -> None:
    ledger = Ledger()
    broken = {1: b"<html></html>", 6: photo(size=(8, 8)), 7: photo()[:-100]}
    batches = decoded(table(8, broken=broken), num_batches=2, ledger=ledger)
    assert ledger.drops == {"00001": "not_an_image", "00006": "absurd_dimensions", "00007": "truncated_image"}
    assert column(batches, ID) == [["00000", "", "00002", "00003"], ["00004", "00005", "", ""]]
    assert column(batches, COUNT) == [[0, PADDING, 2, 3], [4, 5, PADDING, PADDING]]
    assert column(batches, BATCH_ROWS) == [[3] * 4, [2] * 4]
    assert column(batches, NEXT_POSITION) == [[110] * 4, [122] * 4]  # behind the broken ones, too


def test_a_batch_of_broken_photos_alone_has_no_row(table: MakeTable) -> None:
    ledger = Ledger()
    first, second = decoded(table(8, broken=dict.fromkeys(range(4), b"none")), num_batches=2, ledger=ledger)
    assert first[BATCH_ROWS].tolist() == [0] * 4
    assert first[COUNT].tolist() == [PADDING] * 4
    assert second[COUNT].tolist() == [4, 5, 0, 1]
    assert len(ledger.drops) == 4


@pytest.mark.parametrize("broken", [{}, {1: b"none"}, {0: b"none", 2: b"none", 5: b"none"}])
def test_padding_repeats_photos_of_the_same_batch_evenly(table: MakeTable, broken: dict[int, bytes]) -> None:
    for batch in decoded(table(11, broken=broken), num_batches=2, batch_size=8, num_workers=2):
        real = batch[COUNT] != PADDING
        photos = [image.tobytes() for image in batch[IMAGE][real]]
        often = [sum(other.tobytes() == one for other in batch[IMAGE]) for one in photos]
        assert sum(often) == 8
        assert max(often) - min(often) <= 1


def test_nothing_is_reported_where_nothing_is_broken(table: MakeTable) -> None:
    class Deaf(Ledger):
        def record(self, drops: dict[str, str]) -> None:
            raise AssertionError(f"each report waits for an actor, and here is none: {drops}")

    decoded(table(5), num_batches=2, ledger=Deaf())
    decode_rows(table(5), make_spec(Deaf()))


# decode_rows


def test_rows_have_the_columns_of_the_contract(table: MakeTable) -> None:
    rows = table(3)
    batch = decode_rows(rows, make_spec())
    assert batch[ID].tolist() == ["00000", "00001", "00002"]
    assert batch[COUNT].tolist() == [0, 1, 2]
    assert batch[POSITION].tolist() == [100, 103, 106]
    assert {batch[name].dtype for name in (COUNT, POSITION)} == {np.dtype(np.int64)}
    assert batch[IMAGE].dtype == np.uint8
    photos = [decode_photo(data, make_spec().data.pixels) for data in rows[PHOTO].to_pylist()]
    assert np.array_equal(batch[IMAGE], photos)
    assert not np.array_equal(batch[IMAGE][0], batch[IMAGE][1])


def test_rows_have_the_sizes_of_their_files_if_asked_for(table: MakeTable, photo: Photo) -> None:
    sizes = [(80, 64), (33, 120), (64, 64)]
    broken = {number: photo(size=size) for number, size in enumerate(sizes)} | {1: b"none"}
    batch = decode_rows(table(3, broken=broken), make_spec(), with_sizes=True)
    assert list(zip(batch[WIDTH].tolist(), batch[HEIGHT].tolist(), strict=True)) == [sizes[0], sizes[2]]
    empty = decode_rows(table(2, broken={0: b"none", 1: b"none"}), make_spec(), with_sizes=True)
    assert (len(empty[WIDTH]), len(empty[HEIGHT])) == (0, 0)
    assert WIDTH not in decode_rows(table(3), make_spec())


def test_rows_leave_out_photos_that_are_none(table: MakeTable, photo: Photo) -> None:
    ledger = Ledger()
    broken = {0: b"\x00", 2: photo(size=(8, 8)), 3: photo()[:-100]}
    batch = decode_rows(table(5, broken=broken), make_spec(ledger))
    whole = decode_rows(table(5), make_spec())
    assert ledger.drops == {"00000": "not_an_image", "00002": "absurd_dimensions", "00003": "truncated_image"}
    assert batch.keys() == whole.keys()
    for name, values in batch.items():
        assert np.array_equal(values, whole[name][[1, 4]]), name


def test_blocks_without_a_good_row_keep_their_columns(table: MakeTable) -> None:
    full = decode_rows(table(1), make_spec())
    for rows in (table(0), table(2, broken={0: b"none", 1: b"none"})):
        batch = decode_rows(rows, make_spec())
        assert {name: (len(values), values.dtype.kind) for name, values in batch.items()} == {
            name: (0, values.dtype.kind) for name, values in full.items()
        }
        assert batch[IMAGE].shape == (0, SIZE, SIZE, 3)


def test_rows_of_a_block_in_chunks(table: MakeTable) -> None:
    rows = table(5)
    chunked = pa.concat_tables([rows[:2], rows[2:2], rows[2:]])
    assert chunked[PHOTO].num_chunks > 1
    batch, whole = decode_rows(chunked, make_spec()), decode_rows(rows, make_spec())
    assert all(np.array_equal(batch[name], whole[name]) for name in whole)


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
@pytest.mark.parametrize("fast_decode", [False, True])
def test_pixels_take_the_one_path(table: MakeTable, photo: Photo, resize: Resize, fast_decode: bool) -> None:
    data = DataConfig(source="file:///nowhere", image_size=32, resize=resize, fast_decode=fast_decode)
    spec = FetchSpec(data=data, ledger=cast("DropLedger", Ledger()))
    large = photo(seed=9, size=(200, 140))
    rows = table(3, broken={1: large})
    expected = [decode_photo(one, data.pixels) for one in rows[PHOTO].to_pylist()]
    assert np.array_equal(decode_rows(rows, spec)[IMAGE], expected)
    batch = decode_batches(rows, spec, Share(global_batch_size=3), num_batches=1)
    assert np.array_equal(batch[IMAGE], expected)


# Share


@pytest.mark.parametrize(("batch_size", "num_workers", "local"), [(16, 1, 16), (16, 4, 4), (6, 3, 2), (4, 4, 1)])
def test_a_share_is_an_equal_part(batch_size: int, num_workers: int, local: int) -> None:
    assert Share(global_batch_size=batch_size, num_workers=num_workers).local_batch_size == local


@pytest.mark.parametrize(("batch_size", "num_workers"), [(16, 3), (2, 4), (7, 2)])
def test_a_batch_that_cannot_be_shared_equally(batch_size: int, num_workers: int) -> None:
    with pytest.raises(ConfigError, match=f"global_batch_size {batch_size} .* num_workers {num_workers}"):
        Share(global_batch_size=batch_size, num_workers=num_workers)


@pytest.mark.parametrize("batch_size", [1, 32, 100, 500])
@pytest.mark.parametrize("side", [16, 224, 1024])
def test_a_task_decodes_as_many_whole_batches_as_its_limits_allow(batch_size: int, side: int) -> None:
    row_bytes = side**2 * 3
    num_rows = Share(global_batch_size=batch_size).batches_per_task(row_bytes) * batch_size
    limit = min(TASK_ROWS, TASK_BYTES / row_bytes)
    assert num_rows == batch_size or num_rows <= limit < num_rows + batch_size + 1


def test_a_task_decodes_one_batch_at_least() -> None:
    assert Share(global_batch_size=10_000).batches_per_task(2048**2 * 3) == 1
