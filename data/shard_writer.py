"""The writing side of the cache: one process at a time follows the folder, makes room and adds one shard.

The folder is the truth and the index follows it at every write: rows of vanished shards go, and shards that it does not
know (their writer was killed, or the index was lost) are taken in by their footers.
"""

import secrets
import shutil
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from data.shard_folder import ShardFile, choose_evictions, find_shards, locked, shard_path
from data.shard_index import (
    ENTRY_BYTES,
    change_index,
    create_index,
    find_entries,
    is_damaged,
    known_shards,
    newest_index,
    open_index,
)
from data.shards import CachedBin, Shard, pack_shard, read_footer, write_shard

INDEX_SLACK_BYTES: Final = 64 << 10  # empty tables, half-filled pages, the journal's header


class DiskFullError(OSError):
    """The disk is so full that it should be left alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """How much may be written."""

    limit_bytes: int
    """All files of the cache together stay at or below this."""
    keep_s: float
    """Shards used within so many seconds are not evicted for new ones."""
    min_free_bytes: int
    """Stays free on the disk."""


def store_bins(folder: Path, source: str, bins: Mapping[str, CachedBin], room: Room, *, wait_s: float) -> None:
    """Write the bins that are not stored yet as one shard, evicting others for it; without bins, only tidy up.

    Args:
        folder: belongs to the cache alone.
        source: the bucket of the bins.
        bins: by id.
        room: how much may be written.
        wait_s: for another process that is writing.

    Raises:
        DiskFullError: nothing was written.
        OSError: the folder cannot be written; TimeoutError after wait_s.
        sqlite3.Error: the index cannot be written.
    """
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    new_bytes = sum(len(record) + len(photo or b"") for record, photo in bins.values())
    if bins and shutil.disk_usage(folder).free - new_bytes < room.min_free_bytes:
        raise DiskFullError(f"the disk has less than {room.min_free_bytes:,} bytes left")
    with locked(folder / "lock", wait_s):
        try:
            _store(newest_index(folder) or create_index(folder), source, bins, room)
        except sqlite3.Error as error:
            if not is_damaged(error):
                raise
            _store(create_index(folder), source, bins, room)


def _store(index_path: Path, source: str, bins: Mapping[str, CachedBin], room: Room) -> None:
    folder = index_path.parent
    with closing(open_index(index_path)) as index:
        files = find_shards(index_path)
        _follow(index, folder, files)
        shard = pack_shard(source, _without_stored(index, source, bins, files))
        room_bytes = room.limit_bytes - _bytes_beside(folder, shard)
        if shard.entries:
            keep_after_s = time.time() - room.keep_s if room.keep_s else float("inf")
            evicted = choose_evictions(files, room_bytes, keep_after_s=keep_after_s)
        else:
            evicted = choose_evictions(files, max(room_bytes, 0))  # a limit that was lowered holds at once
        if evicted is None:
            return
        for number in evicted:
            shard_path(folder, number).unlink(missing_ok=True)
        number = secrets.randbits(63)
        if shard.entries:
            write_shard(shard_path(folder, number), shard.chunks)
        change_index(index, gone=evicted, new=[(number, source, shard.entries)] if shard.entries else [])


def _follow(index: sqlite3.Connection, folder: Path, files: dict[int, ShardFile]) -> None:
    """Make the index say what the folder holds; drops shards that are not whole from both."""
    known = known_shards(index)
    if gone := known - files.keys():
        change_index(index, gone=gone)
    for number in sorted(files.keys() - known, key=lambda number: files[number].used_s):
        footer = read_footer(shard_path(folder, number))
        if footer is None:
            shard_path(folder, number).unlink(missing_ok=True)
            del files[number]
        else:
            change_index(index, new=[(number, *footer)])


def _without_stored(
    index: sqlite3.Connection, source: str, bins: Mapping[str, CachedBin], files: Mapping[int, ShardFile]
) -> dict[str, CachedBin]:
    """Those that no shard holds, or only without the photo that is there now."""
    stored = [entry for number, entry in find_entries(index, source, bins) if number in files]
    has_photo = {entry.bin_id: entry.photo_bytes is not None for entry in stored}
    return {
        bin_id: (record, photo)
        for bin_id, (record, photo) in bins.items()
        if bin_id not in has_photo or (photo is not None and not has_photo[bin_id])
    }


def _bytes_beside(folder: Path, shard: Shard) -> int:
    """What else counts against the limit beside the shards that are there, while the shard is being added."""
    index_bytes = sum(path.stat().st_size for path in folder.glob("index-*"))
    grown_bytes = sum(ENTRY_BYTES + 2 * len(entry.bin_id.encode()) for entry in shard.entries)
    journal_bytes = index_bytes  # at most: the journal holds each page that changes, as it was
    return shard.num_bytes + index_bytes + grown_bytes + journal_bytes + INDEX_SLACK_BYTES
