"""The file format of the cache: immutable shards, each the bytes of many bins and a footer that says where they lie.

    record photo record photo ... | footer as JSON | length and CRC of the footer, magic

The checksum of an entry covers its bucket, id and lengths too, so that bytes from a wrong place never pass. It is a
CRC-32: it has to tell damage, not malice, and takes 0.014 ms per photo where BLAKE2b takes 0.065 ms.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CachedBin = tuple[bytes, bytes | None]
"""(record, photo) of a bin as fetched; photo None where the record alone is kept."""

_TRAILER: Final = struct.Struct("<II8s")
_MAGIC: Final = b"BinTalS1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """Where in its shard a bin lies."""

    bin_id: str
    offset: int
    record_bytes: int
    photo_bytes: int | None
    """None: the record alone is kept."""
    checksum: int

    @property
    def end(self) -> int:
        """Offset of the byte after the last."""
        return self.offset + self.record_bytes + (self.photo_bytes or 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A shard that is not written yet."""

    entries: list[Entry]
    chunks: list[bytes]
    """What the file holds, in pieces as they came."""
    num_bytes: int


def checksum(source: str, bin_id: str, record: bytes, photo: bytes | None) -> int:
    """CRC-32 of what an entry is and what it holds."""
    what = f"{source}\n{bin_id}\n{len(record)}\n{-1 if photo is None else len(photo)}\n".encode()
    return zlib.crc32(photo or b"", zlib.crc32(record, zlib.crc32(what)))


def pack_shard(source: str, bins: Mapping[str, CachedBin]) -> Shard:
    """Lay out the bins of one bucket, by id; copies no photo."""
    entries: list[Entry] = []
    chunks: list[bytes] = []
    offset = 0
    for bin_id, (record, photo) in bins.items():
        entry = Entry(
            bin_id=bin_id,
            offset=offset,
            record_bytes=len(record),
            photo_bytes=None if photo is None else len(photo),
            checksum=checksum(source, bin_id, record, photo),
        )
        entries.append(entry)
        chunks += [record, photo or b""]
        offset = entry.end
    rows = [[one.bin_id, one.record_bytes, one.photo_bytes, one.checksum] for one in entries]
    footer = json.dumps({"source": source, "bins": rows}).encode()
    chunks += [footer, _TRAILER.pack(len(footer), zlib.crc32(footer), _MAGIC)]
    return Shard(entries=entries, chunks=chunks, num_bytes=offset + len(footer) + _TRAILER.size)


def write_shard(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a shard that is whole from the moment it can be seen.

    No fsync: after a power cut the checksums tell what reached the disk, and the rest is fetched again.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    unfinished = path.with_suffix(".tmp")
    try:
        with unfinished.open("wb") as file:
            file.writelines(chunks)
        unfinished.rename(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def read_footer(path: Path) -> tuple[str, list[Entry]] | None:
    """Source and entries of a shard; None if it is none, or not whole.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        trailer_at = file.seek(0, os.SEEK_END) - _TRAILER.size
        file.seek(max(trailer_at, 0))
        tail = file.read()
        if trailer_at < 0:
            return None
        length, crc, magic = _TRAILER.unpack(tail)
        if magic != _MAGIC or length > trailer_at:
            return None
        file.seek(trailer_at - length)
        footer = file.read(length)
    if zlib.crc32(footer) != crc:
        return None
    content = json.loads(footer)
    entries: list[Entry] = []
    for bin_id, record_bytes, photo_bytes, check in content["bins"]:
        offset = entries[-1].end if entries else 0
        entries.append(
            Entry(
                bin_id=bin_id,
                offset=offset,
                record_bytes=record_bytes,
                photo_bytes=photo_bytes,
                checksum=check,
            )
        )
    return content["source"], entries


def read_entry(fd: int, file_bytes: int, source: str, entry: Entry) -> CachedBin | None:
    """The bin at a place of an open shard; None if what lies there is not it, or damaged.

    pread, not mmap: a shard that is cut short meanwhile would kill the process with SIGBUS.

    Raises:
        OSError: the disk cannot be read.
    """
    if entry.offset < 0 or entry.record_bytes < 0 or (entry.photo_bytes or 0) < 0 or entry.end > file_bytes:
        return None  # also keeps a damaged index from asking for petabytes
    record = os.pread(fd, entry.record_bytes, entry.offset)
    photo = None
    if entry.photo_bytes is not None:
        photo = os.pread(fd, entry.photo_bytes, entry.offset + entry.record_bytes)
    return (record, photo) if checksum(source, entry.bin_id, record, photo) == entry.checksum else None
