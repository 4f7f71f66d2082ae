"""Batch inference with Ray Data: ids in, a row of predictions per bin out, the photos never leave the tasks.

ids without a row -> fetched and decoded -> counted, mirrored too, and measured -> parts on disk
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
from jaxtyping import Float, UInt8
from ray.data import Dataset
from ray.exceptions import RayError

from bintally.batch import COUNT, HEIGHT, ID, IMAGE, POSITION, WIDTH, ArrayBatch
from bintally.checkpoint import Checkpoint
from bintally.quality import LUMA, measure_sharpness
from bintally.source_config import DataConfig
from data.args import ReadArgs
from data.blocks import FetchSpec
from data.drops import DropLedger
from data.ingest import cache_of, put_ids
from data.pipeline import stream_rows
from data.progress import say
from data.reporting import progress_of
from data.session import unwrap
from train.counting import TASK_ROWS, count_by
from train.evaluate_parts import BRIGHTNESS, FLIPPED, PROBABILITIES, REASON, SCHEMA, SHARPNESS, PredictionParts

PART_ROWS: Final = 8_192
PART_S: Final = 15.0  # what a kill costs at most
TRANSIENT: Final = "fetch_failed"
"""A reason that another run may not meet, so that bins lost to it get no row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InferSpec:
    """Which bins are counted by what."""

    checkpoint: Checkpoint
    data: DataConfig
    split: str
    """For people, and to tell one folder of predictions from another."""
    tta: bool
    """Count the mirrored photos, too."""
    use_gpu: bool = False

    def identity(self) -> dict[str, Any]:
        """What the predictions depend on, JSON-ready."""
        return {"model_version": self.checkpoint.version, "split": self.split, "tta": self.tta} | asdict(self.data)


def infer(ids: Sequence[str], spec: InferSpec, read: ReadArgs, parts: PredictionParts) -> pa.Table:
    """Give every id that has no row yet its row; the rows of all ids, in their order. Needs a running Ray.

    Bins that could not be fetched in spite of retries get none; the same command tries them again.

    Raises:
        SourceError: the bucket cannot be read, or too much of it is lost.
        ClusterTooSmallError: GPUs were asked for, and there will be none.
    """
    done = parts.read()
    ledger = DropLedger.start(max_faults=read.max_faults(len(ids)))
    lost = done.filter(pa.compute.is_valid(done[REASON]))
    ledger.record(dict(zip(lost[ID].to_pylist(), lost[REASON].to_pylist(), strict=True)))
    known = set(done[ID].to_pylist())
    todo = [bin_id for bin_id in ids if bin_id not in known]
    if known:
        say(f"going on: {len(ids) - len(todo):,} of {len(ids):,} bins have their predictions")
    if todo:
        fetch = FetchSpec(data=spec.data, ledger=ledger, cache=cache_of(read, spec.data))
        _infer_todo(todo, _plan(todo, spec, fetch), ledger, parts)
    rows = parts.read()
    failed = {bin_id: reason for bin_id, reason in ledger.reasons(todo).items() if reason == TRANSIENT}
    return pa.concat_tables([rows, dropped_rows(failed)]).sort_by(ID)


def _plan(todo: Sequence[str], spec: InferSpec, fetch: FetchSpec) -> Dataset:
    rows = stream_rows(put_ids(list(todo), spec.data), fetch, with_sizes=True, block_rows=TASK_ROWS)
    return count_by(rows, [spec.checkpoint], partial(count_rows, tta=spec.tta), use_gpu=spec.use_gpu)


def _infer_todo(todo: Sequence[str], plan: Dataset, ledger: DropLedger, parts: PredictionParts) -> None:
    """Run the plan, which keeps the order of the ids: all before the last row that came are counted or dropped."""
    show = progress_of(len(todo))
    waiting: list[pa.Table] = []
    begin = num_passed = 0
    written = time.monotonic()

    def write(end: int) -> None:
        reasons = ledger.reasons(todo[begin:end])
        lasting = {bin_id: reason for bin_id, reason in reasons.items() if reason != TRANSIENT}
        rows = pa.concat_tables([*waiting, dropped_rows(lasting)])
        if rows.num_rows:
            parts.add(rows)

    try:
        for block in cast("Iterable[pa.Table]", plan.iter_batches(batch_size=None, batch_format="pyarrow")):
            if not block.num_rows:
                continue
            num_passed = block[POSITION][-1].as_py() + 1
            waiting.append(block.drop_columns([POSITION]).cast(SCHEMA))
            show(num_passed)
            if sum(map(len, waiting)) >= PART_ROWS or time.monotonic() - written > PART_S:
                write(num_passed)
                waiting, begin, written = [], num_passed, time.monotonic()
    except RayError as error:
        raise unwrap(error) or error from None
    write(len(todo))
    if num_passed < len(todo):  # the last ones were dropped
        show(len(todo))


def dropped_rows(reasons: dict[str, str]) -> pa.Table:
    """A row for each dropped bin, with nothing but its reason."""
    return pa.Table.from_pylist([{ID: bin_id, REASON: reason} for bin_id, reason in reasons.items()], schema=SCHEMA)


def count_rows(batch: ArrayBatch, checkpoint: Checkpoint, *, tta: bool) -> pa.Table:
    """The predictions of some rows: the columns of SCHEMA, and the position."""
    images = batch[IMAGE]
    num_images = len(images)
    counted = checkpoint.predict(images) if num_images else np.zeros((0, 1), np.float32)
    flipped = checkpoint.predict(np.ascontiguousarray(images[:, :, ::-1])) if num_images and tta else None
    brightness, sharpness = measure_photos(images)
    return pa.table(
        {
            ID: pa.array(batch[ID].tolist(), pa.string()),
            COUNT: batch[COUNT],
            PROBABILITIES: pa.array(list(counted), pa.list_(pa.float32())),
            FLIPPED: pa.nulls(num_images, pa.list_(pa.float32()))
            if flipped is None
            else pa.array(list(flipped), pa.list_(pa.float32())),
            BRIGHTNESS: pa.array(brightness, pa.float32()),
            SHARPNESS: pa.array(sharpness, pa.float32()),
            WIDTH: batch[WIDTH],
            HEIGHT: batch[HEIGHT],
            REASON: pa.nulls(num_images, pa.string()),
            POSITION: batch[POSITION],
        }
    )


def measure_photos(
    images: UInt8[np.ndarray, "images size size 3"],
) -> tuple[Float[np.ndarray, " images"], Float[np.ndarray, " images"]]:
    """Brightness and sharpness, of the photos as the model sees them: both depend on the size it takes."""
    measured = np.zeros((2, len(images)))
    for number, image in enumerate(images):
        grey = image.astype(np.float32) @ LUMA
        measured[:, number] = grey.mean(), measure_sharpness(grey)
    return measured[0], measured[1]
