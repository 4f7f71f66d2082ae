"""Ids to labelled, decoded rows with Ray Data: one stage, two GETs per bin, nothing listed twice.

    ids -> shuffle -> blocks of ids -> fetch record and photo together -> label, decode, resize -> rows

Every id becomes a row or a reason in the drop table.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import Dataset

from bintally.batch import COUNT, ID, IMAGE, ArrayBatch
from bintally.config import DataConfig
from bintally.errors import ImageError, LabelError, RowError, SourceUnreachableError
from bintally.image import decode_photo
from data.bucket import IMAGE_PREFIX, LABEL_PREFIX, Bucket, open_bucket
from data.drops import DropLedger
from data.labels import parse_record

MAX_IN_FLIGHT: Final = 64  # GETs under way per task; hides latency, stays far below S3's request limits
IDS_PER_TASK: Final = 128

FetchedBin = tuple[bytes | None, bytes | None] | SourceUnreachableError
"""(record, photo), None for an object that does not exist; or why neither came."""


def stream_rows(ids: Sequence[str], data: DataConfig, ledger: DropLedger, *, seed: int | None = None) -> Dataset:
    """A lazy dataset of the rows of these ids, with the columns of `bintally.batch`.

    Args:
        ids: bins to read.
        data: where they lie and how their photos become arrays.
        ledger: hears of every dropped id.
        seed: shuffles the ids, in another order each epoch; None keeps the order.

    Iterating raises AccessDeniedError or SourceUnreachableError (wrapped by Ray, see `data.session.unwrap`) when
    objects may not be read, or when not one object of a whole block could be fetched.
    """
    ds: Dataset = ray.data.from_arrow(pa.table({ID: pa.array(ids, pa.string())}))
    if seed is not None:
        ds = ds.random_shuffle(seed=ray.data.RandomSeedConfig(seed=seed))
    ds = ds.repartition(target_num_rows_per_block=IDS_PER_TASK)
    return ds.map_batches(partial(fetch_rows, data=data, ledger=ledger), batch_size=IDS_PER_TASK)


def fetch_rows(batch: dict[str, np.ndarray], data: DataConfig, ledger: DropLedger) -> ArrayBatch:
    """Fetch, label, decode and resize one block of ids; report those that cannot be used."""
    ids = [str(bin_id) for bin_id in batch[ID]]
    fetched = asyncio.run(fetch_bins(open_bucket(data), ids))
    if ids and all(isinstance(one, SourceUnreachableError) for one in fetched):
        raise SourceUnreachableError(f"none of {len(ids)} bins could be fetched; the first: {fetched[0]}")
    rows: list[tuple[str, np.ndarray, int]] = []
    drops: dict[str, str] = {}
    for bin_id, one in zip(ids, fetched, strict=True):
        try:
            count, photo = read_bin(one, data.max_count)
            rows.append((bin_id, decode_photo(photo, data.pixels), count))
        except RowError as error:
            drops[bin_id] = error.reason
    if drops:
        ledger.record(drops)
    return _to_batch(rows, data.image_size)


async def fetch_bins(bucket: Bucket, ids: Sequence[str]) -> list[FetchedBin]:
    """Record and photo of each id, in the order of the ids, MAX_IN_FLIGHT requests at a time.

    Raises:
        AccessDeniedError: an object may not be read; that is no matter of one row.
    """
    slots = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def get(key: str) -> bytes | None:
        async with slots:
            return await bucket.get(key)

    async def fetch(bin_id: str) -> FetchedBin:
        keys = (f"{LABEL_PREFIX}/{bin_id}.json", f"{IMAGE_PREFIX}/{bin_id}.jpg")
        try:
            record, photo = await asyncio.gather(*map(get, keys))
        except SourceUnreachableError as error:
            return error
        return record, photo

    return await asyncio.gather(*map(fetch, ids))


def read_bin(fetched: FetchedBin, max_count: int) -> tuple[int, bytes]:
    """Count and undecoded photo of a fetched bin.

    Raises:
        RowError: the bin cannot be used, or holds more than max_count items.
    """
    if isinstance(fetched, SourceUnreachableError):
        raise RowError("fetch_failed", str(fetched))
    record, photo = fetched
    if record is None:
        raise LabelError("missing_label")
    if photo is None:
        raise ImageError("missing_image")
    count = parse_record(record).expected_quantity
    if count > max_count:
        raise RowError("count_above_max", str(count))
    return count, photo


def _to_batch(rows: list[tuple[str, np.ndarray, int]], size: int) -> ArrayBatch:
    images = np.stack([image for _, image, _ in rows]) if rows else np.empty((0, size, size, 3), np.uint8)
    return {
        ID: np.array([bin_id for bin_id, _, _ in rows], dtype=np.str_),
        IMAGE: images,
        COUNT: np.array([count for _, _, count in rows], dtype=np.int64),
    }
