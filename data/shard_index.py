"""The index of the cache: which shard holds which bin; one SQLite file that all processes of a node share.

It can be lost at any time: the shards' footers hold all of it, and the checksums of the entries, not the index, say
what is true. Hence no fsync. A rollback journal and not a WAL, which would grow as large as readers let it.

A damaged index is never repaired, nor deleted and made again under its name: whoever still has the old one open would
take the new one's journal for its own. The next one has the next number; the highest number counts.
"""

import json
import re
import sqlite3
from collections.abc import Collection, Iterable
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from typing import Final
from urllib.parse import quote

from data.shards import Entry

BUSY_S: Final = 5.0  # readers wait for a commit only, which takes milliseconds
ENTRY_BYTES: Final = 160  # what a bin may add to the index beside twice its id; measured: 60 to 100

_NAME: Final = re.compile(r"index-\d{6}\.sqlite")
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS shards (shard INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS entries (
    source INTEGER, bin_id TEXT, shard INTEGER, start INTEGER,
    record_bytes INTEGER, photo_bytes INTEGER, checksum INTEGER,
    PRIMARY KEY (source, bin_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_shard ON entries (shard);
"""
# The casts give integers whatever a damaged file holds.
_LOOKUP: Final = """
SELECT CAST(IFNULL(shard, -1) AS INTEGER), bin_id, CAST(IFNULL(start, -1) AS INTEGER),
    CAST(IFNULL(record_bytes, -1) AS INTEGER), CAST(photo_bytes AS INTEGER), checksum FROM entries
WHERE source = ? AND bin_id IN (SELECT value FROM json_each(?)) ORDER BY shard, start
"""
_ADD: Final = """
INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (source, bin_id) DO UPDATE SET shard = excluded.shard, start = excluded.start,
    record_bytes = excluded.record_bytes, photo_bytes = excluded.photo_bytes, checksum = excluded.checksum
WHERE excluded.photo_bytes IS NOT NULL OR entries.photo_bytes IS NULL
"""


def newest_index(folder: Path) -> Path | None:
    """The index that counts; None if there is none."""
    return max((path for path in folder.glob("index-*.sqlite") if _NAME.fullmatch(path.name)), default=None)


def create_index(folder: Path) -> Path:
    """An empty index that replaces all there are; whole from the moment it can be seen. Needs the lock.

    Raises:
        sqlite3.Error: it cannot be written.
        OSError: as above.
    """
    newest = newest_index(folder)
    path = folder / f"index-{0 if newest is None else int(newest.stem[6:]) + 1:06d}.sqlite"
    unfinished = path.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    with closing(sqlite3.connect(unfinished)) as index:
        index.executescript(_SCHEMA)
    unfinished.rename(path)
    return path


def open_index(path: Path) -> sqlite3.Connection:
    """Open an index for one operation: it takes 0.2 ms, and the next one may find another file in its place.

    Raises:
        sqlite3.Error: it does not exist, or is damaged.
    """
    index = sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=BUSY_S, isolation_level=None)
    index.execute("PRAGMA synchronous = OFF")
    index.execute("PRAGMA cache_spill = OFF")  # a large change would lock readers out before its commit
    return index


def is_damaged(error: Exception) -> bool:
    """The index itself is bad, not the disk, the permissions or the wait for a lock."""
    return _code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}


def is_busy(error: Exception) -> bool:
    """Another process held the index for all of BUSY_S."""
    return _code(error) == sqlite3.SQLITE_BUSY


def find_entries(index: sqlite3.Connection, source: str, ids: Iterable[str]) -> list[tuple[int, Entry]]:
    """(shard, entry) of those ids that are known, in the order in which they lie on the disk."""
    rows = index.execute(_LOOKUP, (_source_number(source), json.dumps(list(ids))))
    return [
        (shard, Entry(bin_id=bin_id, offset=start, record_bytes=record, photo_bytes=photo, checksum=check))
        for shard, bin_id, start, record, photo, check in rows
    ]


def known_shards(index: sqlite3.Connection) -> set[int]:
    """All shards of the index, of whatever source."""
    return {shard for (shard,) in index.execute("SELECT shard FROM shards")}


def change_index(
    index: sqlite3.Connection, *, gone: Collection[int] = (), new: Iterable[tuple[int, str, list[Entry]]] = ()
) -> None:
    """Forget shards and add (shard, source, entries), all or nothing; a bare record never replaces a whole bin."""
    index.execute("BEGIN IMMEDIATE")
    with index:
        for table in ("entries", "shards"):
            index.executemany(f"DELETE FROM {table} WHERE shard = ?", [(shard,) for shard in gone])  # noqa: S608
        for shard, source, entries in new:
            index.execute("INSERT INTO shards VALUES (?)", (shard,))
            number = _source_number(source)
            rows = ((one.bin_id, shard, one.offset, one.record_bytes, one.photo_bytes, one.checksum) for one in entries)
            index.executemany(_ADD, ((number, *row) for row in rows))


def _code(error: Exception) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF  # the higher bits only detail it


def _source_number(source: str) -> int:
    """A bucket's key in eight bytes; the checksums of the entries hold the whole."""
    return int.from_bytes(blake2b(source.encode(), digest_size=8).digest(), "big", signed=True)
