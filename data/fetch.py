"""The two objects of a bin, fetched together, or recalled from this node's cache; and what makes them a usable bin."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final

from bintally.errors import ImageError, LabelError, RowError, SourceUnreachableError
from bintally.labels import parse_record
from bintally.source_config import DataConfig
from data.bucket import IMAGE_PREFIX, LABEL_PREFIX, Bucket, open_bucket
from data.cache import CacheConfig, open_cache
from data.shards import CachedBin

MAX_IN_FLIGHT: Final = 256  # GETs under way per task: hides 30 ms; half as many do not (benchmarks/ingest.py)

FetchedBin = tuple[bytes | None, bytes | None] | SourceUnreachableError
"""(record, photo), None for an object that does not exist; or why neither came."""


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


def fetch_or_recall(
    data: DataConfig, ids: Sequence[str], config: CacheConfig | None, *, with_records: bool
) -> list[FetchedBin]:
    """As `fetch_bins`, but what the cache holds is not fetched, and what is fetched whole is kept there."""
    bucket = open_bucket(data)
    if config is None:
        return fetch_bins(bucket, ids, with_records=with_records)
    cache = open_cache(config, f"{bucket.where} {'bins' if with_records else 'photos'}")
    found: dict[str, FetchedBin] = {
        bin_id: bin_ for bin_id, bin_ in cache.get_many(ids).items() if not _lacks_photo(bin_, data.max_count)
    }
    missing = [bin_id for bin_id in ids if bin_id not in found]
    fetched = dict(zip(missing, asyncio.run(_fetch_bins(bucket, missing, with_records=with_records)), strict=True))
    cache.put_many(dict(_worth_keeping(fetched, data.max_count)))
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
    label = parse_record(record).expected_quantity if count is None else count
    if label > max_count:
        raise RowError("count_above_max", str(label))
    if photo is None:  # looked at last: the cache keeps no photo of a bin that is filtered out
        raise ImageError("missing_image")
    return label, photo
