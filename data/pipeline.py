"""Ids to labelled, decoded rows with Ray Data; nothing is listed twice, and every id becomes a row or a reason.

    chunks of the epoch's order -> fetch record and photo together -> decode and resize -> rows, or exact batches

Fetching waits and decoding works, so they are stages of their own that overlap. What passes between them is undecoded,
a fraction of the rows' size. Plans keep the order, so the same seed gives the same rows in the same order.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import Dataset, ExecutionOptions, ExecutionResources

from data.blocks import FetchSpec, fetch_block
from data.clock import EpochClock
from data.decode import TASK_BYTES, Share, decode_batches, decode_rows
from data.order import Sampling, balanced_order, epoch_order

BLOCK_IDS: Final = 512  # ids in one block; what a task costs besides its work is spread over so many
MAX_CHUNKS: Final = 256  # tasks of one epoch: each costs the driver 1 ms at the start
BUFFERED_TASKS_PER_CPU: Final = 4  # blocks of decoded rows, being made or waiting
FETCH_TASKS_PER_CPU: Final = 0.25  # one fetches faster than two CPUs decode, also at 30 ms per request

_CHUNK: Final = "chunk"


@dataclass(frozen=True, slots=True)
class IdTable:
    """The ids of a split, in Ray's object store, where every task finds them."""

    _ref: Any
    num_ids: int

    @classmethod
    def put(cls, ids: Sequence[str], counts: Sequence[int] | None = None) -> "IdTable":
        """Store ids and, where they are known beforehand, their labels."""
        table = (np.asarray(ids, np.str_), None if counts is None else np.asarray(counts, np.int64))
        return cls(ray.put(table), len(ids))

    def get(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Ids and labels, without a copy."""
        table: tuple[np.ndarray, np.ndarray | None] = ray.get(self._ref)
        return table


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochOrder:
    """Which ids the next execution of a plan reads, and from where on."""

    sampling: Sampling | None = None
    """None reads all ids in their given order."""
    clock: EpochClock | None = None
    """Tells the epoch; needed with sampling."""

    def next(self, counts: np.ndarray | None, num_ids: int) -> tuple[np.ndarray, int]:
        """Indices of the ids in order, and the position to begin at."""
        if self.sampling is None:
            return np.arange(num_ids), 0
        assert self.clock is not None
        epoch, start = self.clock.read()
        if self.sampling.balanced:
            assert counts is not None
            return balanced_order(counts, self.sampling, epoch), start
        return epoch_order(num_ids, self.sampling, epoch), start


def stream_rows(table: IdTable, spec: FetchSpec, *, with_sizes: bool = False, block_rows: int | None = None) -> Dataset:
    """A lazy dataset of the rows of these ids, in their order, with the columns id, position, image and count.

    With sizes, they have the width and height of the photo's file, too, in pixels. With `block_rows`, a task decodes
    about so many, for consumers in the same task that take long over them.

    Iterating raises AccessDeniedError, SourceUnreachableError or TooManyFaultsError (wrapped by Ray, see
    `data.session.unwrap`) when objects may not be read, when not one object of a whole block could be fetched, or when
    the ledger's limit is passed.
    """
    fetched = _fetched(table, table.num_ids, spec, EpochOrder())
    if block_rows is not None:
        fetched = fetched.repartition(target_num_rows_per_block=block_rows)
    decode = partial(decode_rows, spec=spec, with_sizes=with_sizes)
    return fetched.map_batches(decode, batch_size=None, batch_format="pyarrow")


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchStream:
    """Exact batches for a number of workers that is not known before they start."""

    spec: FetchSpec
    num_ids: int
    """Of an epoch."""
    global_batch_size: int

    @classmethod
    def of(
        cls, table: IdTable, spec: FetchSpec, order: EpochOrder, global_batch_size: int
    ) -> tuple["BatchStream", Dataset]:
        """A stream, and its photos as they are fetched, which are the same for any number of workers."""
        num_ids = order.sampling.epoch_size(table.num_ids) if order.sampling else table.num_ids
        stream = cls(spec=spec, num_ids=num_ids, global_batch_size=global_batch_size)
        return stream, _fetched(table, num_ids, spec, order)

    def batches(self, photos: Dataset, num_workers: int) -> Dataset:
        """A lazy dataset with the columns of `bintally.batch`, to be split equally among the workers.

        Split by `streaming_split(num_workers, equal=True)`, as Ray Train does, and read in batches of
        `Share.local_batch_size`, the n-th batches of all workers are together the n-th global batch; its rows depend on
        the order alone. Every row comes exactly once. Batches without a row (`batch_rows` 0) may follow the last one.

        Raises:
            ConfigError: so many workers cannot share a batch equally.
        """
        share = Share(global_batch_size=self.global_batch_size, num_workers=num_workers)
        most = -(-self.num_ids // share.global_batch_size)
        num_batches = min(share.batches_per_task(self.spec.data.image_size**2 * 3), most)
        decode = partial(decode_batches, spec=self.spec, share=share, num_batches=num_batches)
        # Ray fuses these two, as long as they ask for the same resources: only then does a task get exactly the rows of
        # its batches, across the edges of the blocks before, and give a block to each worker.
        rows_per_task, rows_per_worker = num_batches * share.global_batch_size, num_batches * share.local_batch_size
        return photos.map_batches(decode, batch_size=rows_per_task, batch_format="pyarrow").repartition(
            target_num_rows_per_block=rows_per_worker, strict=True
        )


def execution_options() -> ExecutionOptions:
    """How plans run: in order, since Ray else deals blocks to whoever is free, and in bounded memory.

    Ray Train has to be given them, too: it runs plans with options of its own.
    """
    # Left to itself, Ray fills half of the object store with rows that nobody has asked for yet.
    limit = ExecutionResources(object_store_memory=BUFFERED_TASKS_PER_CPU * TASK_BYTES * max(2.0, _num_cpus()))
    return ExecutionOptions(preserve_order=True, resource_limits=limit)


def _num_cpus() -> float:
    return float(ray.cluster_resources().get("CPU", 0))


def _fetched(table: IdTable, num_ids: int, spec: FetchSpec, order: EpochOrder) -> Dataset:
    num_chunks = min(MAX_CHUNKS, max(1, -(-num_ids // BLOCK_IDS)))
    chunks: Dataset = ray.data.from_blocks([pa.table({_CHUNK: [number]}) for number in range(num_chunks)])
    chunks.context.execution_options = execution_options()
    fetch = partial(fetch_chunk, num_chunks=num_chunks, table=table, spec=spec, order=order)
    # They wait more than they work. With a share of a CPU, they would leave less than decoding needs where a training
    # has one CPU for its data; without a limit, Ray would start them all, and the first block would wait for its turn.
    # Ray warns of a limit above the number of chunks.
    concurrency = min(num_chunks, max(2, math.ceil(FETCH_TASKS_PER_CPU * _num_cpus())))
    return chunks.map_batches(fetch, batch_size=None, batch_format="pyarrow", num_cpus=0, concurrency=concurrency)


def fetch_chunk(
    batch: pa.Table, *, num_chunks: int, table: IdTable, spec: FetchSpec, order: EpochOrder
) -> Iterator[pa.Table]:
    """Fetch one chunk of what is left of the epoch, a block at a time."""
    ids, counts = table.get()
    indices, start = order.next(counts, len(ids))
    chunk = batch[_CHUNK][0].as_py()
    first, stop = (start + chunk_edge(number, num_chunks, len(indices) - start) for number in (chunk, chunk + 1))
    for begin in range(first, stop, BLOCK_IDS):
        chosen = indices[begin : min(begin + BLOCK_IDS, stop)]
        labels = None if counts is None else counts[chosen].tolist()
        yield fetch_block(spec, ids[chosen].tolist(), begin, labels)
    if first >= stop:
        yield fetch_block(spec, [], first)  # a block without rows tells the columns


def chunk_edge(number: int, num_chunks: int, num_ids: int) -> int:
    """Where a chunk begins: the first ones hold a block, so that the first batch comes soon, later ones ever more."""
    growth = max(0.0, num_ids / num_chunks - BLOCK_IDS) / num_chunks
    return min(num_ids, round(number * (BLOCK_IDS + growth * number)))
