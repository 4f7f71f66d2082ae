"""Rows that fit into Ray's object store: fetched once, then picked from shared memory, by any trial in any order.

No task runs in an epoch over them. The batches are those that a `data.pipeline.BatchStream` would give, but for rows
that turned out to be broken: a stream learns of them too late and pads their place.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.data import Dataset
from ray.data.block import BlockAccessor

from bintally.batch import BATCH_ROWS, COUNT, ID, IMAGE, NEXT_POSITION, PADDING, POSITION, ArrayBatch
from data.decode import Share


@dataclass(frozen=True, slots=True)
class StoredRows:
    """References to blocks of rows. Can be sent to any process; the rows live as long as the dataset they came from."""

    _blocks: list[Any]
    num_ids: int
    """Ids of the split, with those that were dropped."""

    @classmethod
    def of(cls, fetched: Dataset, num_ids: int) -> "StoredRows":
        """The rows of a materialized dataset with the columns id, position, image and count."""
        return cls(fetched.get_internal_block_refs(), num_ids)

    def dataset(self) -> Dataset:
        """The rows as a dataset, for tasks that go through all of them."""
        return ray.data.from_arrow_refs(self._blocks)

    def open(self) -> "OpenRows":
        """Map the rows into this process; on another node than theirs they are copied over once."""
        names = [ID, POSITION, IMAGE, COUNT]
        blocks: list[Any] = [BlockAccessor.for_block(block).to_numpy(names) for block in ray.get(self._blocks)]
        return OpenRows([block for block in blocks if len(block[COUNT])], self.num_ids)


class OpenRows:
    """Rows in shared memory, found by the position of their id."""

    def __init__(self, blocks: list[ArrayBatch], num_ids: int) -> None:
        self._blocks = blocks
        self._first_row = np.cumsum([0, *(len(block[COUNT]) for block in blocks)])
        self.counts = np.full(num_ids, PADDING, np.int64)
        """Label of each id of the split; PADDING where it was dropped."""
        self._row_of = np.full(num_ids, -1, np.int64)
        for first, block in zip(self._first_row[:-1], blocks, strict=True):
            self.counts[block[POSITION]] = block[COUNT]
            self._row_of[block[POSITION]] = first + np.arange(len(block[COUNT]))

    def batches(self, indices: np.ndarray, share: Share, rank: int, *, start: int = 0) -> Iterator[ArrayBatch]:
        """One worker's part of each global batch.

        Args:
            indices: the epoch's order, as places of ids in the split.
            share: size of the batches, number of workers.
            rank: which worker.
            start: position in the order to begin at.
        """
        rows = self._row_of[indices]
        positions = start + np.flatnonzero(rows[start:] >= 0)
        size, local = share.global_batch_size, share.local_batch_size
        for begin in range(0, len(positions), size):
            in_batch = positions[begin : begin + size]
            chosen = rows[np.resize(in_batch, size)[rank * local : (rank + 1) * local]]
            num_own = np.clip(len(in_batch) - rank * local, 0, local)
            batch = self._gather(chosen)
            batch[COUNT][num_own:], batch[ID][num_own:] = PADDING, ""
            batch[BATCH_ROWS] = np.full(local, len(in_batch), np.int64)
            batch[NEXT_POSITION] = np.full(local, in_batch[-1] + 1, np.int64)
            yield batch

    def _gather(self, rows: np.ndarray) -> ArrayBatch:
        places = np.searchsorted(self._first_row, rows, side="right") - 1
        picked = [(self._blocks[place], row - self._first_row[place]) for place, row in zip(places, rows, strict=True)]
        return {
            ID: np.array([block[ID][row] for block, row in picked], np.str_),
            IMAGE: np.stack([block[IMAGE][row] for block, row in picked]),
            COUNT: np.array([block[COUNT][row] for block, row in picked], np.int64),
        }
