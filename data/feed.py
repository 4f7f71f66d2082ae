"""What a training worker reads its epochs from, whether the rows are kept in memory or streamed.

Both kinds give the same batches for the same seed, on any number of workers: one worker's part of each global batch,
each row of the epoch exactly once over all workers, and the same number of batches on each.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from ray.data import DataIterator

from bintally.batch import BATCH_ROWS, ArrayBatch
from data.clock import EpochClock
from data.decode import Share
from data.order import Sampling, balanced_order, epoch_order
from data.stored import StoredRows


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedSpec:
    """A split as any worker of a training can open it. Can be sent to any process."""

    share: Share
    sampling: Sampling | None
    clock: EpochClock | None
    """Which the plan of a shuffled stream reads."""
    stored: StoredRows | None
    """None streams."""

    def open(self, rank: int, shard: Any) -> "Feed":  # noqa: ANN401  # Ray's iterators have no common public type
        """One worker's side.

        Args:
            rank: which worker.
            shard: its part of the `stream_batches` plan; without meaning for stored rows.
        """
        if self.stored is not None:
            return StoredFeed(self.stored, self.share, rank, self.sampling)
        return StreamFeed(shard, self.share, rank, self.clock)


@runtime_checkable  # beartype checks annotations with it in tests
class Feed(Protocol):
    """One worker's side of a split."""

    def epoch(self, number: int, *, start: int = 0) -> Iterator[ArrayBatch]:
        """This worker's batches of one epoch, with the columns of `bintally.batch`.

        Args:
            number: from 1.
            start: position in the epoch's order to go on from: a batch's `next_position`.
        """
        ...


class StoredFeed:
    """Batches picked from rows in Ray's object store."""

    def __init__(self, stored: StoredRows, share: Share, rank: int, sampling: Sampling | None) -> None:
        self._rows = stored.open()
        self._share, self._rank, self._sampling = share, rank, sampling
        self._num_ids = stored.num_ids

    def epoch(self, number: int, *, start: int = 0) -> Iterator[ArrayBatch]:
        """See Feed."""
        yield from self._rows.batches(self._order(number), self._share, self._rank, start=start)

    def _order(self, number: int) -> np.ndarray:
        if self._sampling is None:
            return np.arange(self._num_ids)
        if self._sampling.balanced:
            return balanced_order(self._rows.counts, self._sampling, number)
        return epoch_order(self._num_ids, self._sampling, number)


@dataclass(frozen=True, slots=True)
class StreamFeed:
    """Batches of a `data.pipeline.stream_batches` plan that Ray Train split among the workers."""

    shard: Any
    share: Share
    rank: int
    clock: EpochClock | None
    """Which the plan reads, if it is shuffled."""

    def epoch(self, number: int, *, start: int = 0) -> Iterator[ArrayBatch]:
        """See Feed."""
        if self.clock is not None and self.rank == 0:
            self.clock.set(number, start)  # the plan starts when all workers iterate, so after this
        shard: DataIterator = self.shard
        # Ray makes a batch ahead in any case; asked for more, it waits for a second block before it gives the first.
        for batch in shard.iter_batches(batch_size=self.share.local_batch_size, prefetch_batches=0):
            if batch[BATCH_ROWS][0] > 0:  # else it follows the last one, on all workers alike
                yield batch
