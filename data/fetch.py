"""Ids to labelled, undecoded photos: two GETs per bin, both under way together.

A block is an Arrow table with the columns id, position, count and photo (the bytes of the file): small beside decoded
rows, so that forming exact batches moves little.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from bintally.batch import COUNT, ID, POSITION
from bintally.config import DataConfig
from bintally.errors import ImageError, LabelError, RowError, SourceUnreachableError
from data.bucket import IMAGE_PREFIX, LABEL_PREFIX, Bucket, open_bucket
from data.cache import CacheConfig, open_cache
from data.drops import DropLedger
from data.labels import parse_record
from data.shards import CachedBin

MAX_IN_FLIGHT: Final = 128  # GETs under way per task; hides latency, stays far below S3's request limits
PHOTO: Final = "photo"

FetchedBin = tuple[bytes | None, bytes | None] | SourceUnreachableError
"""(record, photo), None for an object that does not exist; or why neither came."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchSpec:
    """What a task needs to know to fetch any id."""

    data: DataConfig
    ledger: DropLedger
    """Hears of every dropped id."""
    cache: CacheConfig | None = None
    """Where this node keeps what it fetched; None keeps nothing."""


def fetch_block(spec: FetchSpec, ids: Sequence[str], first: int, counts: Sequence[int] | None = None) -> pa.Table:
    """Fetch and label ids that follow each other in the epoch's order; report those that cannot be used.

    Args:
        spec: where from.
        ids: bins to fetch.
        first: position of the first one.
        counts: labels that replace those of the records, which are not fetched then.

    Raises:
        AccessDeniedError: an object may not be read; that is no matter of one row.
        SourceUnreachableError: nothing of the whole block could be fetched.
    """
    fetched = _fetch_or_recall(spec, ids, with_records=counts is None)
    rows: list[tuple[str, int, int, bytes]] = []
    drops: dict[str, str] = {}
    for number, (bin_id, one) in enumerate(zip(ids, fetched, strict=True)):
        try:
            count, photo = read_bin(one, spec.data.max_count, None if counts is None else counts[number])
            rows.append((bin_id, first + number, count, photo))
        except RowError as error:
            drops[bin_id] = error.reason
    if drops:
        spec.ledger.record(drops)
    return _to_table(rows)


def fetch_bins(bucket: Bucket, ids: Sequence[str], *, with_records: bool = True) -> list[FetchedBin]:
    """Record and photo of each id, in the order of the ids, on an event loop of their own.

    Args:
        bucket: where from.
        ids: bins to fetch.
        with_records: without, the record is given as empty bytes.

    Raises:
        AccessDeniedError: an object may not be read.
        SourceUnreachableError: nothing of them could be fetched.
    """
    fetched = asyncio.run(_fetch_bins(bucket, ids, with_records=with_records))
    _check_any(fetched)
    return fetched


def _check_any(fetched: Sequence[FetchedBin]) -> None:
    if fetched and all(isinstance(one, SourceUnreachableError) for one in fetched):
        raise SourceUnreachableError(f"none of {len(fetched)} bins could be fetched; the first: {fetched[0]}")


def _fetch_or_recall(spec: FetchSpec, ids: Sequence[str], *, with_records: bool) -> list[FetchedBin]:
    """As `fetch_bins`, but what the cache holds is not fetched, and what is fetched whole is kept there."""
    bucket = open_bucket(spec.data)
    if spec.cache is None:
        return fetch_bins(bucket, ids, with_records=with_records)
    cache = open_cache(spec.cache, f"{bucket.where} {'bins' if with_records else 'photos'}")
    found: dict[str, FetchedBin] = {
        bin_id: bin_ for bin_id, bin_ in cache.get_many(ids).items() if not _lacks_photo(bin_, spec.data.max_count)
    }
    missing = [bin_id for bin_id in ids if bin_id not in found]
    fetched = dict(zip(missing, asyncio.run(_fetch_bins(bucket, missing, with_records=with_records)), strict=True))
    cache.put_many(dict(_worth_keeping(fetched, spec.data.max_count)))
    together = [found.get(bin_id) or fetched[bin_id] for bin_id in ids]
    _check_any(together)
    return together


def _lacks_photo(cached: CachedBin, max_count: int) -> bool:
    """Whether a cached bin was put without its photo by a run with a lower max_count."""
    record, photo = cached
    return photo is None and not _is_filtered(record, max_count)


def _worth_keeping(fetched: dict[str, FetchedBin], max_count: int) -> Iterator[tuple[str, CachedBin]]:
    """Whole bins; of those that max_count filters out, the record alone."""
    for bin_id, one in fetched.items():
        if not isinstance(one, SourceUnreachableError) and one[0] is not None and one[1] is not None:
            yield bin_id, (one[0], None if _is_filtered(one[0], max_count) else one[1])


def _is_filtered(record: bytes, max_count: int) -> bool:
    try:
        return bool(record) and parse_record(record).expected_quantity > max_count
    except LabelError:
        return False


async def _fetch_bins(bucket: Bucket, ids: Sequence[str], *, with_records: bool) -> list[FetchedBin]:
    slots = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def get(key: str) -> bytes | None:
        async with slots:
            return await bucket.get(key)

    async def fetch(bin_id: str) -> FetchedBin:
        photo_key = f"{IMAGE_PREFIX}/{bin_id}.jpg"
        try:
            if not with_records:
                return b"", await get(photo_key)
            record, photo = await asyncio.gather(get(f"{LABEL_PREFIX}/{bin_id}.json"), get(photo_key))
        except SourceUnreachableError as error:
            return error
        return record, photo

    return await asyncio.gather(*map(fetch, ids))


def read_bin(fetched: FetchedBin, max_count: int, count: int | None = None) -> tuple[int, bytes]:
    """Count and undecoded photo of a fetched bin.

    Args:
        fetched: what came.
        max_count: the last count that is not filtered out.
        count: a label that replaces the record's.

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
    label = parse_record(record).expected_quantity if count is None else count
    if label > max_count:
        raise RowError("count_above_max", str(label))
    return label, photo


def _to_table(rows: list[tuple[str, int, int, bytes]]) -> pa.Table:
    ids, positions, counts, photos = zip(*rows, strict=True) if rows else ((), (), (), ())
    return pa.table(
        {
            ID: pa.array(ids, pa.string()),
            POSITION: pa.array(positions, pa.int64()),
            COUNT: pa.array(counts, pa.int64()),
            PHOTO: _binary(photos),
        }
    )


def _binary(values: Iterable[bytes]) -> pa.LargeBinaryArray:
    """One copy of the bytes; `pa.array` would make several as it grows."""
    values = tuple(values)
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))]
    )


def photos_of(table: pa.Table) -> Iterator[bytes]:
    """The photos of a block, one after the other."""
    for chunk in table[PHOTO].chunks:
        for photo in chunk:
            yield photo.as_py()
