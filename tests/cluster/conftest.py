"""Epochs as a training reads them: one thread per worker, and what all of them got put together."""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from bintally.batch import BATCH_ROWS, COUNT, ID, IMAGE, NEXT_POSITION, PADDING, ArrayBatch
from data.blocks import FetchSpec
from data.clock import EpochClock
from data.decode import Share
from data.feed import Feed, StoredFeed, StreamFeed
from data.order import Sampling
from data.pipeline import BatchStream, EpochOrder, IdTable, stream_rows
from data.stored import StoredRows


class GlobalBatch(NamedTuple):
    """The parts of all workers, the first worker's first; what depends on their number is checked and left out."""

    ids: tuple[str, ...]
    counts: tuple[int, ...]
    images: str
    next_position: int

    @classmethod
    def of(cls, parts: Sequence[ArrayBatch]) -> "GlobalBatch":
        """Put together the parts of one batch."""
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        ids, counts = whole[ID].tolist(), whole[COUNT].tolist()
        real = whole[COUNT] != PADDING
        assert len({len(part[COUNT]) for part in parts}) == 1
        assert set(whole[BATCH_ROWS].tolist()) == {int(real.sum())}
        assert len(set(whole[NEXT_POSITION].tolist())) == 1
        assert [bin_id for bin_id, count in zip(ids, counts, strict=True) if count == PADDING] == [""] * (~real).sum()
        digest = hashlib.blake2b(np.ascontiguousarray(whole[IMAGE][real])).hexdigest()
        return cls(tuple(ids), tuple(counts), digest, int(whole[NEXT_POSITION][0]))

    def rows(self) -> dict[str, int]:
        """Count by id, without padding."""
        return {bin_id: count for bin_id, count in zip(self.ids, self.counts, strict=True) if count != PADDING}


class Reader:
    """All workers of one training over one split."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = feeds

    def epoch(self, number: int = 1, *, start: int = 0) -> list[GlobalBatch]:
        """The global batches of one epoch, which all workers must be given equally many of."""
        with ThreadPoolExecutor(len(self._feeds)) as pool:
            parts = list(pool.map(lambda feed: list(feed.epoch(number, start=start)), self._feeds))
        return [GlobalBatch.of(part) for part in zip(*parts, strict=True)]


@pytest.fixture(scope="session")
def streamed() -> Callable[..., Reader]:
    """`streamed(table, spec, sampling, size=, workers=)`: workers that stream their batches."""

    def make(table: IdTable, spec: FetchSpec, sampling: Sampling | None, *, size: int = 32, workers: int = 1) -> Reader:
        share = Share(global_batch_size=size, num_workers=workers)
        clock = EpochClock.start().of("training")
        stream, photos = BatchStream.of(table, spec, EpochOrder(sampling=sampling, clock=clock), size)
        shards: list[Any] = stream.batches(photos, workers).streaming_split(workers, equal=True)
        return Reader([StreamFeed(shard, share, rank, clock) for rank, shard in enumerate(shards)])

    return make


@pytest.fixture(scope="session")
def stored() -> Callable[..., Reader]:
    """`stored(table, spec, sampling, size=, workers=)`: workers that pick theirs from memory."""

    def make(table: IdTable, spec: FetchSpec, sampling: Sampling | None, *, size: int = 32, workers: int = 1) -> Reader:
        share = Share(global_batch_size=size, num_workers=workers)
        rows = StoredRows.of(stream_rows(table, spec).materialize(), table.num_ids)
        return Reader([StoredFeed(rows, share, rank, sampling) for rank in range(workers)])

    return make


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Sequence[GlobalBatch]], dict[str, int]]:
    """`rows_of(batches)`: count by id; no id may come twice."""

    def gather(batches: Sequence[GlobalBatch]) -> dict[str, int]:
        rows: dict[str, int] = {}
        for batch in batches:
            assert not rows.keys() & batch.rows().keys()
            rows |= batch.rows()
        return rows

    return gather


@pytest.fixture(scope="session")
def tiny_bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More bins than one task fetches or decodes, each with a photo of its own; one in 50 has no record."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("bin-images", "metadata"):
        (folder / name).mkdir()
    random = np.random.default_rng(0)
    for number in range(1_200):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (4, 5, 3), np.uint8)).resize((40, 32)).save(file, "JPEG")
        (folder / f"bin-images/{number:05d}.jpg").write_bytes(file.getvalue())
        if number % 50:
            # Skewed, as the counts of real bins are.
            record = {"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": 0}
            if count := min(5, number % 10):
                record = {"BIN_FCSKU_DATA": {"B0": {"quantity": count}}, "EXPECTED_QUANTITY": count}
            (folder / f"metadata/{number:05d}.json").write_text(json.dumps(record))
    return folder
