"""Undecoded photos to rows, and to exact batches for any number of workers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from bintally.batch import BATCH_ROWS, COUNT, HEIGHT, ID, IMAGE, NEXT_POSITION, PADDING, POSITION, WIDTH, ArrayBatch
from bintally.errors import ConfigError, ImageError
from bintally.image import check_header, decode_photo
from data.blocks import FetchSpec, photos_of

TASK_ROWS: Final = 512  # what a task costs besides its work is spread over so many rows
TASK_BYTES: Final = 80_000_000  # of decoded rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """How workers share a global batch: worker r takes the r-th of equal parts."""

    global_batch_size: int
    num_workers: int = 1

    def __post_init__(self) -> None:
        if self.global_batch_size % self.num_workers:
            raise ConfigError(
                f"global_batch_size {self.global_batch_size} cannot be shared equally by num_workers {self.num_workers}"
            )

    @property
    def local_batch_size(self) -> int:
        """Rows of a global batch that one worker takes."""
        return self.global_batch_size // self.num_workers

    def batches_per_task(self, row_bytes: int) -> int:
        """Global batches that one task decodes."""
        return max(1, min(TASK_ROWS, TASK_BYTES // row_bytes) // self.global_batch_size)


def decode_rows(table: pa.Table, spec: FetchSpec, *, with_sizes: bool = False) -> ArrayBatch:
    """Decode a block; photos that are none are reported and left out. With sizes, rows have those of their files."""
    images = np.empty((len(table), spec.data.image_size, spec.data.image_size, 3), np.uint8)
    good = _decode_into(images, np.arange(len(table)), table, spec)
    kept = np.flatnonzero(good)
    rows = {
        ID: np.asarray(table[ID].to_pylist(), np.str_)[kept],
        POSITION: table[POSITION].to_numpy()[kept],
        IMAGE: images if len(kept) == len(table) else images[kept],
        COUNT: table[COUNT].to_numpy()[kept],
    }
    if with_sizes:
        sizes = [check_header(photo) for photo, is_good in zip(photos_of(table), good, strict=True) if is_good]
        rows[WIDTH], rows[HEIGHT] = np.array(sizes, np.int64).reshape(-1, 2).T
    return rows


def decode_batches(table: pa.Table, spec: FetchSpec, share: Share, num_batches: int) -> ArrayBatch:
    """Decode the rows of `num_batches` global batches, the rows of worker 0 first, then those of worker 1, and so on.

    The number of rows that come back is always num_batches * global_batch_size: what is missing, at the end of an epoch
    or because a photo turns out to be none, is PADDING. So every worker gets equally many, and the n-th batch of each
    is its part of the n-th global batch.
    """
    size, local = share.global_batch_size, share.local_batch_size
    batch, within = np.divmod(np.arange(num_batches * size), size)
    worker, row = np.divmod(within, local)
    place = worker * num_batches * local + batch * local + row  # where the i-th row comes back

    images = np.zeros((num_batches * size, spec.data.image_size, spec.data.image_size, 3), np.uint8)
    counts = np.full(num_batches * size, PADDING, np.int64)
    ids = np.full(num_batches * size, "", object)
    good = _decode_into(images, place, table, spec)
    counts[place[: len(table)]] = np.where(good, table[COUNT].to_numpy(), PADDING)
    ids[place[: len(table)]] = np.where(good, np.asarray(table[ID].to_pylist(), object), "")
    _fill_up(images, counts, place.reshape(num_batches, size))

    batch_rows = np.bincount(batch[: len(table)], weights=good, minlength=num_batches).astype(np.int64)
    last = np.minimum(np.arange(1, num_batches + 1) * size, len(table)) - 1  # row of the block that ends each batch
    next_position = table[POSITION].to_numpy()[last] + 1 if len(table) else np.zeros(num_batches, np.int64)
    batch_of = np.empty(num_batches * size, np.int64)
    batch_of[place] = batch
    return {
        ID: ids.astype(np.str_),
        IMAGE: images,
        COUNT: counts,
        BATCH_ROWS: batch_rows[batch_of],
        NEXT_POSITION: next_position[batch_of],
    }


def _decode_into(images: np.ndarray, places: np.ndarray, table: pa.Table, spec: FetchSpec) -> np.ndarray:
    """Decode row i into images[places[i]]; whether that went well, for each row. Reports what did not."""
    good = np.ones(len(table), bool)
    drops: dict[str, str] = {}
    for number, photo in enumerate(photos_of(table)):
        try:
            decode_photo(photo, spec.data.pixels, out=images[places[number]])
        except ImageError as error:
            good[number] = False
            drops[table[ID][number].as_py()] = error.reason
    if drops:
        spec.ledger.record(drops)
    return good


def _fill_up(images: np.ndarray, counts: np.ndarray, batches: Iterable[np.ndarray]) -> None:
    """Repeat photos of the same global batch where rows are missing, so that statistics over a batch stay sound."""
    for places in batches:
        missing, present = places[counts[places] == PADDING], places[counts[places] != PADDING]
        if len(missing) and len(present):
            images[missing] = images[np.resize(present, len(missing))]
