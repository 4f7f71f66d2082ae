"""An optional cache of fetched bins on a node's disk, shared by all trials that run there.

    <folder>/bintally-cache-1/  lock  index-000000.sqlite  shards/<number>.shard

Writers take turns under a file lock that the kernel drops with its holder, so that kill -9 leaves at most an unfinished
file for the next writer to delete. Readers take no lock; a shard that vanished is a miss. Every entry is checked as it
is read, and a shard with one bad entry goes as a whole.

Nothing here ever fails a run: what cannot be read is not cached, what cannot be written is not kept, and the log says
so once per process.
"""

import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Final

from bintally.errors import ConfigError
from data.shard_folder import shard_path
from data.shard_index import find_entries, is_busy, newest_index, open_index
from data.shard_writer import Room, store_bins
from data.shards import CachedBin, Entry, read_entry

LAYOUT: Final = "bintally-cache-1"
MIN_FREE_BYTES: Final = 1 << 30  # of the disk, which checkpoints and logs need more
LOCK_WAIT_S: Final = 5.0  # a write takes some 20 ms
PAUSE_S: Final = 60.0  # after a wait in vain, so that one stopped process does not slow all others
TOUCH_S: Final = 60.0  # how exactly last uses are told apart

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    """Where a node keeps what it fetched, and how much of it."""

    folder: str
    """Absolute; made at the first write. The cache takes one folder in it for itself."""
    limit_bytes: int
    """Shards and index together stay at or below this."""
    keep_s: float = 0.0
    """Shards used within so many seconds stay, and new ones that find no room are not kept; 0 evicts by last use alone.

    Matters where the data is larger than the cache: each epoch's order is new, so the least recently used shard is no
    less wanted than the others, and a cache that keeps what it has is hit most. Then it should exceed an epoch's time.
    """

    def __post_init__(self) -> None:
        if not Path(self.folder).is_absolute():
            raise ConfigError(f"cache must be an absolute folder, not {self.folder!r}")
        if self.limit_bytes < 1:
            raise ConfigError(f"cache_gb must be more than 0, not {self.limit_bytes / 1e9:g}")
        if not self.keep_s >= 0:
            raise ConfigError(f"keep_s of the cache must be 0 or more seconds, not {self.keep_s}")


@dataclass(kw_only=True, slots=True)
class Cache:
    """The cached bins of one bucket."""

    config: CacheConfig
    source: str
    """Tells buckets apart."""
    min_free_bytes: int = MIN_FREE_BYTES
    """Nothing is written that would leave less of the disk free."""
    _paused_until_s: float = 0.0
    _said: set[str] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        """What belongs to the cache and to nothing else."""
        return Path(self.config.folder) / LAYOUT

    def get_many(self, ids: Sequence[str]) -> dict[str, CachedBin]:
        """Those bins that are cached, byte for byte as they were put. A photo of None was not kept, and may exist."""
        found: list[tuple[int, Entry]] = []
        with self._surviving():
            path = None if self._is_paused() else newest_index(self.folder)
            if path is not None:
                with closing(open_index(path)) as index:
                    found = find_entries(index, self.source, ids)
        bins: dict[str, CachedBin] = {}
        for number, group in groupby(found, key=itemgetter(0)):
            with self._surviving(), suppress(FileNotFoundError):  # evicted since the index was asked
                bins |= self._read_shard(shard_path(self.folder, number), [entry for _, entry in group])
        return bins

    def put_many(self, bins: Mapping[str, CachedBin]) -> None:
        """Keep these bins as one new shard, except those that are cached already.

        Args:
            bins: (record, photo) by id; None for a photo that will not be needed.
        """
        if bins and not self._is_paused():
            with self._surviving():
                store_bins(self.folder, self.source, bins, self._room, wait_s=LOCK_WAIT_S)

    def tidy(self) -> None:
        """Delete what killed processes left and what exceeds the limit, unless another process is writing anyway."""
        with self._surviving(), suppress(TimeoutError):
            if self.folder.exists():
                store_bins(self.folder, self.source, {}, self._room, wait_s=0)

    @property
    def _room(self) -> Room:
        return Room(limit_bytes=self.config.limit_bytes, keep_s=self.config.keep_s, min_free_bytes=self.min_free_bytes)

    def _is_paused(self) -> bool:
        return time.monotonic() < self._paused_until_s

    def _read_shard(self, path: Path, entries: list[Entry]) -> dict[str, CachedBin]:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if time.time() - status.st_mtime > TOUCH_S:
                with suppress(OSError):  # a read-only disk
                    os.utime(fd)
            read = {entry.bin_id: read_entry(fd, status.st_size, self.source, entry) for entry in entries}
        finally:
            os.close(fd)
        whole = {bin_id: cached for bin_id, cached in read.items() if cached is not None}
        if len(whole) < len(read):
            self._say(f"{path.name} is damaged and was dropped; its bins are fetched again")
            path.unlink(missing_ok=True)
        return whole

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """A cache that cannot be used makes a run slower, and nothing else."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            if isinstance(error, TimeoutError) or is_busy(error):
                self._paused_until_s = time.monotonic() + PAUSE_S
            self._say(f"{error}; what it could not read or write is fetched again")

    def _say(self, message: str) -> None:
        if message not in self._said and len(self._said) < 10:
            self._said.add(message)
            _LOG.warning("cache %s: %s", self.config.folder, message)


@lru_cache(maxsize=8)
def open_cache(config: CacheConfig, source_key: str) -> Cache:
    """The cache of a bucket; one per process. Tidies it up, and writes nothing where there is none yet.

    Args:
        config: where and how large.
        source_key: names the bucket, with its endpoint and region; what lies under another name is never found.
    """
    cache = Cache(config=config, source=source_key)
    cache.tidy()
    return cache
