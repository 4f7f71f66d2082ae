"""Ids to blocks of labelled, undecoded photos.

A block is an Arrow table with the columns id, position, count and photo (the bytes of the file): small beside decoded
rows, so that forming exact batches moves little.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from bintally.batch import COUNT, ID, PADDING, POSITION
from bintally.errors import RowError
from bintally.source_config import DataConfig
from data.cache import CacheConfig
from data.drops import DropLedger
from data.fetch import fetch_or_recall, read_bin

PHOTO: Final = "photo"


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
        counts: labels that replace those of the records, which are not fetched then; an id of PADDING is left out.

    Raises:
        AccessDeniedError: an object may not be read; that is no matter of one row.
        SourceUnreachableError: nothing of the whole block could be fetched.
    """
    wanted = [number for number in range(len(ids)) if counts is None or counts[number] != PADDING]
    fetched = fetch_or_recall(spec.data, [ids[number] for number in wanted], spec.cache, with_records=counts is None)
    rows: list[tuple[str, int, int, bytes]] = []
    drops: dict[str, str] = {}
    for number, one in zip(wanted, fetched, strict=True):
        try:
            count, photo = read_bin(one, spec.data.max_count, None if counts is None else counts[number])
            rows.append((ids[number], first + number, count, photo))
        except RowError as error:
            drops[ids[number]] = error.reason
    if drops:
        spec.ledger.record(drops)
    return _to_table(rows)


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
