"""The names in one folder of a bucket, listed in parallel.

A listing comes in pages of 1,000 keys, each asked for with the last key of the one before: 536 pages of ABID one after
the other take a minute at 100 ms a page. So the first page is read alone, which is all there is of a small bucket, and
the rest as ranges of keys, many at a time, cut by the first two digits of the name.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import obstore
from obstore.store import LocalStore

from data.patience import insist

if TYPE_CHECKING:
    from obstore.store import ObjectStore

PAGE_SIZE: Final = 1000
MAX_LISTINGS: Final = 64  # ranges listed at a time
_CUTS: Final = (*(f"{number:02d}" for number in range(100)), ":")  # : follows 9, so other names are a range, too


@dataclass(kw_only=True, slots=True)
class Listing:
    """The names found so far."""

    store: "ObjectStore"
    folder: str
    """Without a slash at its end."""
    suffix: str
    """Wanted names end so; it is cut off. No key without a suffix is wanted, so none is equal to a cut."""
    on_progress: Callable[[int], None]
    """Called with the number of names so far, once per page."""
    names: set[str] = field(default_factory=set)

    async def read(self) -> set[str]:
        """List the folder; what lies in folders below it stays out."""
        if isinstance(self.store, LocalStore):
            await self._read_unsorted()
            return self.names
        first = await _Pages(self.store, self.folder).read()
        if first != sorted(first):  # S3's directory buckets keep no order, so ranges have no meaning there
            await self._read_unsorted()
        elif len(first) < PAGE_SIZE:
            self._add(first)
        else:
            self._add(first)
            await self._read_ranges(first[-1])
        return self.names

    async def _read_unsorted(self) -> None:
        async def read_all() -> None:
            async for page in obstore.list(self.store, prefix=self.folder, chunk_size=PAGE_SIZE):
                self._add(entry["path"] for entry in page)

        await insist(read_all)

    async def _read_ranges(self, after: str) -> None:
        cuts = [key for key in (f"{self.folder}/{cut}" for cut in _CUTS) if key > after]
        slots = asyncio.Semaphore(MAX_LISTINGS)

        async def read_range(start: str, stop: str | None) -> None:
            async with slots:
                pages = _Pages(self.store, self.folder, start)
                while keys := await pages.read():
                    self._add(key for key in keys if stop is None or key < stop)
                    if stop is not None and keys[-1] > stop:
                        break

        await asyncio.gather(*(read_range(*ends) for ends in zip([after, *cuts], [*cuts, None], strict=True)))

    def _add(self, keys: Iterable[str]) -> None:
        start, end = len(self.folder) + 1, -len(self.suffix)
        names = (key[start:end] for key in keys if key.endswith(self.suffix))
        self.names.update(name for name in names if name and "/" not in name)
        self.on_progress(len(self.names))


@dataclass(slots=True)
class _Pages:
    """The keys behind one key, page by page; a listing that breaks goes on behind the last page that came."""

    store: "ObjectStore"
    folder: str
    after: str | None = None
    _stream: "obstore.ListStream[Sequence[obstore.ObjectMeta]] | None" = None

    async def read(self) -> list[str]:
        """The next keys; none at the end."""
        keys = await insist(self._try_read)
        self.after = keys[-1] if keys else self.after
        return keys

    async def _try_read(self) -> list[str]:
        stream = self._stream or obstore.list(self.store, prefix=self.folder, offset=self.after, chunk_size=PAGE_SIZE)
        self._stream = None  # unless the page comes
        page: Sequence[obstore.ObjectMeta] = await anext(stream, [])
        self._stream = stream
        return [entry["path"] for entry in page]
