"""What a training worker reads its epochs from, whether the rows are kept in memory or streamed.

Both kinds give the same batches for the same seed, on any number of workers: one worker's part of each global batch,
each row of the epoch exactly once over all workers, and the same number of batches on each.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from ray.data import DataIterator

from bintally.batch import BATCH_ROWS, ArrayBatch
from data.clock import EpochClock
from data.decode import Share
from data.order import Sampling, balanced_order, epoch_order
from data.stored import StoredRows

OnWait = Callable[[float], None]
"""Called each second while a batch is waited for, with the seconds since it was asked for."""
_LOOK_S: Final = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedSpec:
    """A split as any worker of a training can open it. Can be sent to any process."""

    global_batch_size: int
    sampling: Sampling | None
    clock: EpochClock | None
    """Which the plan of a shuffled stream reads."""
    stored: StoredRows | None
    """None streams."""

    def open(self, rank: int, num_workers: int, shard: Any) -> "Feed":  # noqa: ANN401  # Ray's iterators have no common public type
        """One worker's side.

        Args:
            rank: which worker.
            num_workers: that share each batch; another number after a restart goes on with the same batches.
            shard: its part of a `BatchStream`; without meaning for stored rows.

        Raises:
            ConfigError: so many cannot share a batch equally.
        """
        share = Share(global_batch_size=self.global_batch_size, num_workers=num_workers)
        if self.stored is not None:
            return StoredFeed(self.stored, share, rank, self.sampling)
        return StreamFeed(shard, share, rank, self.clock)


@runtime_checkable  # beartype checks annotations with it in tests
class Feed(Protocol):
    """One worker's side of a split."""

    def epoch(self, number: int, *, start: int = 0, on_wait: OnWait | None = None) -> Iterator[ArrayBatch]:
        """This worker's batches of one epoch, with the columns of `bintally.batch`.

        Args:
            number: from 1.
            start: position in the epoch's order to go on from: a batch's `next_position`.
            on_wait: hears of a wait; rows in memory make none.
        """
        ...


class StoredFeed:
    """Batches picked from rows in Ray's object store."""

    def __init__(self, stored: StoredRows, share: Share, rank: int, sampling: Sampling | None) -> None:
        self._rows = stored.open()
        self._share, self._rank, self._sampling = share, rank, sampling
        self._num_ids = stored.num_ids

    def epoch(self, number: int, *, start: int = 0, on_wait: OnWait | None = None) -> Iterator[ArrayBatch]:  # noqa: ARG002  # there is none
        """See Feed."""
        yield from _ahead(self._rows.batches(self._order(number), self._share, self._rank, start=start))

    def _order(self, number: int) -> np.ndarray:
        if self._sampling is None:
            return np.arange(self._num_ids)
        if self._sampling.balanced:
            return balanced_order(self._rows.counts, self._sampling, number)
        return epoch_order(self._num_ids, self._sampling, number)


@dataclass(frozen=True, slots=True)
class StreamFeed:
    """Batches of a `data.pipeline.BatchStream` that Ray Train split among the workers."""

    shard: Any
    share: Share
    rank: int
    clock: EpochClock | None
    """Which the plan reads, if it is shuffled."""

    def epoch(self, number: int, *, start: int = 0, on_wait: OnWait | None = None) -> Iterator[ArrayBatch]:
        """See Feed."""
        if self.clock is not None and self.rank == 0:
            self.clock.set(number, start)  # the plan starts when all workers iterate, so after this
        shard: DataIterator = self.shard
        # Ray makes a batch ahead in any case; asked for more, it waits for a second block before it gives the first.
        batches = iter(shard.iter_batches(batch_size=self.share.local_batch_size, prefetch_batches=0))
        for batch in _with_waits(batches, on_wait) if on_wait else batches:
            if batch[BATCH_ROWS][0] > 0:  # else it follows the last one, on all workers alike
                yield batch


def _ahead(batches: Iterator[ArrayBatch]) -> Iterator[ArrayBatch]:
    """The same batches; each is made in a thread while the one before is trained on."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def _with_waits(batches: Iterator[ArrayBatch], on_wait: OnWait) -> Iterator[ArrayBatch]:
    """The same batches; each is waited for in a thread, so that this one can do something meanwhile."""
    pool = ThreadPoolExecutor(1)
    try:
        while True:
            asked, coming = time.monotonic(), pool.submit(next, batches, None)
            while not wait([coming], timeout=_LOOK_S).done:
                on_wait(time.monotonic() - asked)
            if (batch := coming.result()) is None:
                return
            yield batch
    finally:
        pool.shutdown(wait=False)  # the one that nobody takes any more may never come
