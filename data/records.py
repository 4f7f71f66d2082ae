"""Records alone, without photos: for what a bucket holds, not for training."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final

from bintally.errors import LabelError, RowError, SourceUnreachableError
from bintally.labels import BinRecord, parse_record
from data.bucket import LABEL_PREFIX, Bucket

MAX_IN_FLIGHT: Final = 64  # GETs under way; hides latency, stays far below S3's request limits
IDS_PER_CHUNK: Final = 1024

FetchedRecord = BinRecord | RowError
"""The record of a bin, or why there is none."""


def fetch_records(bucket: Bucket, ids: Sequence[str]) -> Iterator[tuple[str, FetchedRecord]]:
    """The record of each id, in the order of the ids; keeps one chunk of 1,024 in memory.

    Raises:
        AccessDeniedError: a record may not be read.
        SourceUnreachableError: of a whole chunk, not one record could be fetched.
    """
    for start in range(0, len(ids), IDS_PER_CHUNK):
        chunk = ids[start : start + IDS_PER_CHUNK]
        fetched = asyncio.run(_fetch_chunk(bucket, chunk))
        if all(isinstance(one, RowError) and one.reason == "fetch_failed" for one in fetched):
            raise SourceUnreachableError(f"none of {len(chunk)} records could be fetched; the first: {fetched[0]}")
        yield from zip(chunk, fetched, strict=True)


async def _fetch_chunk(bucket: Bucket, ids: Sequence[str]) -> list[FetchedRecord]:
    slots = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def fetch(bin_id: str) -> FetchedRecord:
        async with slots:
            return await _fetch_record(bucket, bin_id)

    return await asyncio.gather(*map(fetch, ids))


async def _fetch_record(bucket: Bucket, bin_id: str) -> FetchedRecord:
    try:
        record = await bucket.get(f"{LABEL_PREFIX}/{bin_id}.json")
        return LabelError("missing_label") if record is None else parse_record(record)
    except SourceUnreachableError as error:
        return RowError("fetch_failed", str(error))
    except LabelError as error:
        return error
