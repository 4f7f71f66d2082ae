"""Several checkpoints count the same photos in one pass, so that each photo is fetched and decoded once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import torch
from ray.data import Dataset
from ray.exceptions import RayError

from bintally.batch import COUNT, ID, IMAGE, ArrayBatch
from bintally.checkpoint import Checkpoint
from bintally.errors import NoUsableRowsError
from bintally.metrics import CountTally
from bintally.scores import confusion_of, nll_of
from data.args import ReadArgs
from data.blocks import FetchSpec
from data.drops import DropLedger, format_table
from data.ingest import cache_of, put_ids
from data.pipeline import stream_rows
from data.progress import say
from data.session import unwrap
from data.training_rows import SplitRows
from train.bootstrap import Bootstrap, intervals_of
from train.counting import TASK_ROWS, count_by

_MODEL: Final = "probabilities_{}"  # column of one checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """What each checkpoint made of the same photos."""

    ids: list[str]
    counts: np.ndarray
    """Expected counts."""
    probabilities: tuple[np.ndarray, ...]
    """(images, classes) of each checkpoint."""

    def figures(self, number: int, bootstrap: Bootstrap) -> dict[str, Any]:
        """The figures of one checkpoint, with intervals; JSON-ready."""
        probabilities = self.probabilities[number]
        num_classes = probabilities.shape[1]
        nll, counted = nll_of(probabilities, self.counts), probabilities.argmax(axis=1)
        confusion = torch.from_numpy(confusion_of(self.counts, counted, num_classes))
        intervals = intervals_of(self.ids, self.counts, counted, nll, num_classes, bootstrap)
        return CountTally(confusion=confusion, nll_sum=float(nll.sum())).summary() | {"intervals": intervals}


def count_stored(rows: SplitRows, spec: FetchSpec, checkpoints: Sequence[Checkpoint], *, use_gpu: bool) -> Counted:
    """Count the rows that trainings read: from the object store, or, where they do not fit, streamed once more.

    Raises:
        ClusterTooSmallError: GPUs were asked for, and there will be none.
    """
    kept = rows.stored.dataset() if rows.stored is not None else stream_rows(rows.ids, spec)
    return _count(kept, checkpoints, use_gpu=use_gpu)


def count_split(
    ids: Sequence[str], checkpoints: Sequence[Checkpoint], read: ReadArgs, split: str, *, use_gpu: bool
) -> Counted:
    """Fetch the photos of a split once and count them. The checkpoints must be of the same data.

    Raises:
        SourceError: the bucket cannot be read, too much of it is lost, or no row is usable.
        ClusterTooSmallError: GPUs were asked for, and there will be none.
    """
    data = checkpoints[0].recipe.data
    ledger = DropLedger.start(max_faults=read.max_faults(len(ids)))
    fetch = FetchSpec(data=data, ledger=ledger, cache=cache_of(read, data))
    counted = _count(stream_rows(put_ids(list(ids), data), fetch, block_rows=TASK_ROWS), checkpoints, use_gpu=use_gpu)
    say(format_table(ledger.table(), len(ids)))
    if not counted.ids:
        raise NoUsableRowsError(f"no usable row in the {split} split of {data.source}")
    return counted


def _count(rows: Dataset, checkpoints: Sequence[Checkpoint], *, use_gpu: bool) -> Counted:
    plan = count_by(rows, checkpoints, count_each, use_gpu=use_gpu)
    try:
        batches = list(cast("Iterable[pa.Table]", plan.iter_batches(batch_size=None, batch_format="pyarrow")))
    except RayError as error:
        raise unwrap(error) or error from None
    parts = [part for part in batches if part.num_rows]
    if not parts:
        return Counted(ids=[], counts=np.zeros(0, np.int64), probabilities=())
    table = pa.concat_tables(parts)
    return Counted(
        ids=table[ID].to_pylist(),
        counts=table[COUNT].to_numpy(),
        probabilities=tuple(_matrix(table[_MODEL.format(number)]) for number in range(len(checkpoints))),
    )


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    values: np.ndarray = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1)


def count_each(batch: ArrayBatch, *checkpoints: Checkpoint) -> pa.Table:
    """Id, expected count, and the probabilities by each checkpoint."""
    images = batch[IMAGE]
    predicted = {
        _MODEL.format(number): pa.array(list(one.predict(images)) if len(images) else [], pa.list_(pa.float32()))
        for number, one in enumerate(checkpoints)
    }
    return pa.table({ID: pa.array(batch[ID].tolist(), pa.string()), COUNT: batch[COUNT], **predicted})
