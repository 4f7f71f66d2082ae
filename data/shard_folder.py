"""The folder of the cache: its lock, its shards, and which of them have to go."""

import fcntl
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_SHARDS: Final = 20_000  # each write looks at all of them, 5 us each

_SHARD: Final = re.compile(r"([0-9a-f]{16})\.shard")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFile:
    """A shard as it lies in the folder."""

    num_bytes: int
    used_s: float
    """When it was last written or read, since the epoch; readers touch it only now and then."""


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies. Numbers are random, so that a stale index never leads to another shard's bytes."""
    return folder / "shards" / f"{number:016x}.shard"


@contextmanager
def locked(path: Path, wait_s: float) -> Iterator[None]:
    """Hold a file lock, which the kernel takes back from a process that ends in whatever way.

    Raises:
        TimeoutError: another process held it for wait_s.
    """
    deadline_s = time.monotonic() + wait_s
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    raise TimeoutError(f"another process has been writing for {wait_s} s") from None
                time.sleep(0.005)
        yield
    finally:
        os.close(fd)  # also drops the lock, as does the end of the process


def find_shards(index_path: Path) -> dict[int, ShardFile]:
    """All shards by number, beside the index that counts.

    Deletes other indexes and what killed processes left, so it needs the lock.
    """
    folder = index_path.parent
    for path in folder.glob("index-*"):
        if not path.name.startswith(index_path.name):  # keeps its journal
            path.unlink(missing_ok=True)
    files: dict[int, ShardFile] = {}
    with os.scandir(folder / "shards") as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # a reader deleted it as damaged
                if match := _SHARD.fullmatch(entry.name):
                    status = entry.stat()
                    files[int(match[1], 16)] = ShardFile(num_bytes=status.st_size, used_s=status.st_mtime)
                elif entry.name.endswith(".tmp"):
                    Path(entry.path).unlink()
    return files


def choose_evictions(
    files: Mapping[int, ShardFile], room_bytes: int, *, max_shards: int = MAX_SHARDS, keep_after_s: float = float("inf")
) -> list[int] | None:
    """The least recently used shards, so many that the others fit into room_bytes.

    None if that takes one used after keep_after_s, or cannot be had at all.
    """
    total = sum(file.num_bytes for file in files.values())
    evicted: list[int] = []
    for number in sorted(files, key=lambda number: files[number].used_s):
        if total <= room_bytes and len(files) - len(evicted) <= max_shards:
            break
        if files[number].used_s > keep_after_s:
            return None
        total -= files[number].num_bytes
        evicted.append(number)
    return evicted if total <= room_bytes else None
