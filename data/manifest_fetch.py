"""The records of many bins, fetched side by side and labelled, in bounded memory."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bintally.errors import LabelError, SourceUnreachableError
from bintally.labels import parse_record
from data.bucket import LABEL_PREFIX, Bucket
from data.manifest_parts import Parts, Row
from data.progress import say

MAX_IN_FLIGHT: Final = 64
MAX_FAILED_IN_A_ROW: Final = 2 * MAX_IN_FLIGHT  # then the source is gone, and half a million retries are no use
TICK_S: Final = 10.0  # between progress lines, and at most between part files, so that a kill loses no more
MAX_COUNT: Final = 2**31 - 1  # of the column


@dataclass(kw_only=True, slots=True)
class Fetch:
    """One pass over the ids that are missing."""

    bucket: Bucket
    parts: Parts
    part_rows: int
    """Rows per part file."""
    num_before: int
    """Bins that earlier passes have done, for the progress."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why a bin could not be fetched; nothing of it is stored, so the next pass tries again."""
    _rows: list[Row] = field(default_factory=list)
    _num_done: int = 0
    _num_failed_in_a_row: int = 0

    async def run(self, ids: Sequence[str]) -> None:
        """Fetch all; what has come is stored also if this ends early.

        Raises:
            AccessDeniedError: a record may not be read.
            SourceUnreachableError: nothing comes any more.
        """
        waiting = iter(ids)
        work: asyncio.Future[Any] = asyncio.gather(*(self._fetch_many(waiting) for _ in range(MAX_IN_FLIGHT)))
        clock: asyncio.Future[Any] = asyncio.create_task(self._tick(len(ids)))
        try:
            ended, _ = await asyncio.wait({work, clock}, return_when=asyncio.FIRST_COMPLETED)
            for future in ended:
                future.result()  # raises what it raised; the clock ends in no other way
        finally:
            work.cancel()
            clock.cancel()
            await asyncio.gather(work, clock, return_exceptions=True)
            self._write_part()

    async def _fetch_many(self, waiting: Iterator[str]) -> None:
        for bin_id in waiting:
            try:
                record = await self.bucket.get(f"{LABEL_PREFIX}/{bin_id}.json")
            except SourceUnreachableError as error:
                self._add_failure(bin_id, error)
                continue
            self._num_failed_in_a_row = 0
            self._num_done += 1
            self._rows.append(label_row(bin_id, record))
            if len(self._rows) >= self.part_rows:
                self._write_part()

    def _add_failure(self, bin_id: str, error: SourceUnreachableError) -> None:
        self.failed[bin_id] = str(error)
        self._num_failed_in_a_row += 1
        if self._num_failed_in_a_row >= MAX_FAILED_IN_A_ROW:
            raise error

    def _write_part(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self.parts.add(rows)

    async def _tick(self, num_ids: int) -> None:
        progress = Progress(num_ids=num_ids, num_before=self.num_before)
        while True:
            await asyncio.sleep(TICK_S)
            self._write_part()
            say(progress.describe(self._num_done, len(self.failed)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a pass is."""

    num_ids: int
    num_before: int
    now_s: Callable[[], float] = time.monotonic
    start_s: float = field(default_factory=time.monotonic)

    def describe(self, num_done: int, num_failed: int) -> str:
        """One line: bins with a row, rate, time to go, and how many failed."""
        tried = num_done + num_failed
        rate = tried / max(self.now_s() - self.start_s, 1e-9)
        left = f"{_clock((self.num_ids - tried) / rate)} left" if rate else "nothing came yet"
        failed = f", {num_failed:,} failed" if num_failed else ""
        here = f"{self.num_before + num_done:,}/{self.num_before + self.num_ids:,}"
        return f"  {here} records, {rate:,.0f}/s, {left}{failed}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def label_row(bin_id: str, record: bytes | None) -> Row:
    """The row of one bin."""
    if record is None:
        return {"id": bin_id, "reason": "missing_label"}
    row: Row = {"id": bin_id, "record_bytes": len(record)}
    try:
        parsed = parse_record(record)
        if parsed.expected_quantity > MAX_COUNT:
            raise LabelError("bad_quantity", f"EXPECTED_QUANTITY is more than {MAX_COUNT}")
    except LabelError as error:
        detail = str(error).removeprefix(f"{error.reason}: ")
        return row | {"reason": error.reason, "detail": _storable(detail)}
    return row | {
        "count": parsed.expected_quantity,
        "num_products": len(parsed.items),
        "asins": [_storable(item.asin or item.fcsku) for item in parsed.items],
        "quantities": [item.quantity for item in parsed.items],
        "names": [_storable(item.name) for item in parsed.items],
    }


def _storable(text: str | None) -> str | None:
    """The text without lone surrogates, which JSON may hold and Parquet may not."""
    return None if text is None else text.encode("utf-8", "replace").decode()
