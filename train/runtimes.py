"""Make the graphs of a checkpoint, try them on validation photos, and store those that pass beside the weights."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, cast

import numpy as np
import torch
from jaxtyping import Int
from ray.exceptions import RayError

from bintally.batch import COUNT, IMAGE, ArrayBatch
from bintally.checkpoint import Checkpoint
from bintally.errors import ExportError, NoUsableRowsError
from bintally.onnx_graph import Answer, Photos, export_graph, open_graph, quantise_graph
from bintally.runtime import record_graph
from bintally.runtime_record import (
    RUNTIME_FILE,
    GraphName,
    GraphRecord,
    RuntimeName,
    RuntimeRecord,
    write_runtime,
)
from bintally.source_config import DataConfig
from data.args import ReadArgs
from data.blocks import FetchSpec
from data.drops import DropLedger, format_table
from data.ingest import cache_of, list_splits, put_ids
from data.pipeline import stream_rows
from data.progress import say
from data.session import ray_session, unwrap
from data.split import Split
from train.counting import BATCH, TASK_ROWS
from train.runtime_gate import Trial, Verdict, judge, make_trial

NUM_CALIBRATION: Final = 256
NUM_VAL: Final = 2_000
TIMED_BATCHES: Final = (1, 8)
ROUNDS: Final = 5
ROUND_S: Final = 0.05  # of CPU at least, of one runtime in one round
_SPARE_IDS: Final = 128  # read beyond what is wanted, in place of those that are dropped


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceleratePlan:
    """Which checkpoint, and where its photos lie."""

    checkpoint_dir: Path
    checkpoint: Checkpoint
    data: DataConfig
    read: ReadArgs
    num_cpus: int | None = None


@dataclass(kw_only=True, slots=True)
class Graphs:
    """What could be made of a checkpoint."""

    files: dict[GraphName, bytes] = field(default_factory=dict)
    records: dict[GraphName, GraphRecord] = field(default_factory=dict)
    answers: dict[RuntimeName, Answer] = field(default_factory=dict)
    failed: dict[GraphName, str] = field(default_factory=dict)
    """Why others could not be made."""

    def add(self, name: GraphName, graph: bytes, image_size: int) -> None:
        """Take in one more.

        Raises:
            ExportError: it cannot count.
        """
        answer = open_graph(graph)
        self.records[name] = record_graph(graph, answer, image_size)
        self.files[name], self.answers[name] = graph, answer


def accelerate(plan: AcceleratePlan) -> RuntimeRecord:
    """Make, try and store the graphs of a checkpoint; what was stored.

    Raises:
        SourceError: the bucket cannot be read, or a split has no usable row.
        ConfigError: the train or val split has no id.
        CheckpointError: the graphs cannot be written.
    """
    splits = list_splits(plan.data)
    with _one_thread():
        with ray_session(plan.num_cpus):
            photos = np.concatenate([photos for photos, _ in _rows(plan, splits["train"], "train", NUM_CALIBRATION)])
            say(f"writing the graphs, 8 bits calibrated on {len(photos)} training photos")
            graphs = make_graphs(plan.checkpoint, photos)
            answers: dict[RuntimeName, Answer] = {"eager": plan.checkpoint.predict, **graphs.answers}
            say(f"trying {', '.join(answers)} on val photos")
            predicted, counts = count_by_each(answers, _rows(plan, splits["val"], "val", NUM_VAL))
        cpu_ms = measure_cpu_ms(answers, photos)
    num_bytes = {"eager": _weights_bytes(plan.checkpoint)} | {name: len(file) for name, file in graphs.files.items()}
    trials: dict[RuntimeName, Trial] = {
        name: make_trial(predicted[name], predicted["eager"], counts, cpu_ms=cpu_ms[name], num_bytes=num_bytes[name])
        for name in answers
    }
    verdict = judge(trials, graphs.failed)
    record = make_record(plan.checkpoint.version, graphs, trials, verdict, num_photos=(len(photos), len(counts)))
    write_runtime(plan.checkpoint_dir, record, {name: graphs.files[name] for name in record.graphs})
    say(format_trials(trials, len(counts)))
    say(f"{verdict.chosen}: {verdict.why}")
    say(f"stored: {plan.checkpoint_dir / RUNTIME_FILE}")
    return record


def make_graphs(checkpoint: Checkpoint, photos: Photos) -> Graphs:
    """Export a checkpoint, and put it into 8 bits by these photos."""
    size = checkpoint.recipe.data.image_size
    graphs = Graphs()
    try:
        graphs.add("onnx_fp32", export_graph(checkpoint.model, size), size)
    except ExportError as error:
        return Graphs(failed={"onnx_fp32": str(error), "onnx_int8": "there is no onnx_fp32 to make it of"})
    try:
        graphs.add("onnx_int8", quantise_graph(graphs.files["onnx_fp32"], photos), size)
    except ExportError as error:
        graphs.failed["onnx_int8"] = str(error)
    return graphs


def count_by_each(
    answers: Mapping[RuntimeName, Answer], rows: Iterable[tuple[Photos, np.ndarray]]
) -> tuple[dict[RuntimeName, np.ndarray], Int[np.ndarray, " photos"]]:
    """What each runtime makes of the same photos, as (photos, classes), and the labels."""
    predicted: dict[RuntimeName, list[np.ndarray]] = {name: [] for name in answers}
    labels: list[np.ndarray] = []
    for photos, counts in rows:
        labels.append(counts)
        for name, answer in answers.items():
            predicted[name].append(answer(photos))
    return {name: np.concatenate(parts) for name, parts in predicted.items()}, np.concatenate(labels)


def measure_cpu_ms(answers: Mapping[RuntimeName, Answer], photos: Photos) -> dict[RuntimeName, dict[int, float]]:
    """CPU time of this process per photo, by batch size; the best of rounds in which the runtimes take turns."""
    best: dict[RuntimeName, dict[int, float]] = {name: {} for name in answers}
    for size in TIMED_BATCHES:
        batch = np.resize(photos, (size, *photos.shape[1:]))
        for _ in range(ROUNDS):
            for name, answer in answers.items():
                best[name][size] = min(best[name].get(size, np.inf), _round_ms(answer, batch) / size)
    return best


def _round_ms(answer: Answer, batch: Photos) -> float:
    begin, calls = time.process_time(), 0
    while (spent := time.process_time() - begin) < ROUND_S:
        answer(batch)
        calls += 1
    return 1e3 * spent / calls


def make_record(
    version: str,
    graphs: Graphs,
    trials: Mapping[RuntimeName, Trial],
    verdict: Verdict,
    *,
    num_photos: tuple[int, int],
) -> RuntimeRecord:
    """What is stored: the graphs that were not refused, and what all of them showed."""
    return RuntimeRecord(
        model_version=version,
        chosen=verdict.chosen,
        why=verdict.why,
        graphs={name: record for name, record in graphs.records.items() if name not in verdict.refused},
        refused=verdict.refused,
        measured={
            "calibration_photos": num_photos[0],
            "val_photos": num_photos[1],
            "runtimes": {name: asdict(trial) for name, trial in trials.items()},
        },
    )


def format_trials(trials: Mapping[RuntimeName, Trial], num_photos: int) -> str:
    """The table for people."""
    lines = [f"on {num_photos:,} val photos:"]
    batches = "".join(f"{f'CPU ms, batch {size}':>16}" for size in TIMED_BATCHES)
    lines += [f"  {'runtime':<10}{'accuracy':>10}{'agreement':>11}{batches}{'MB':>8}"]
    for name, trial in trials.items():
        times = "".join(f"{trial.cpu_ms[size]:16.3f}" for size in TIMED_BATCHES)
        lines.append(f"  {name:<10}{trial.accuracy:>10.2%}{trial.agreement:>11.2%}{times}{trial.num_bytes / 1e6:8.2f}")
    return "\n".join(lines)


def _rows(
    plan: AcceleratePlan, ids: Sequence[str], split: Split, wanted: int
) -> Iterator[tuple[Photos, Int[np.ndarray, " photos"]]]:
    """Photos and labels of so many usable rows of a split, or of all there are, from all over it.

    Raises:
        SourceError: the bucket cannot be read, too much of it is lost, or no row is usable.
    """
    order = [ids[place] for place in np.random.default_rng(0).permutation(len(ids))]
    ledger = DropLedger.start(max_faults=plan.read.max_faults(min(len(ids), wanted)))
    spec = FetchSpec(data=plan.data, ledger=ledger, cache=cache_of(plan.read, plan.data))
    num_read = num_rows = 0
    while num_rows < wanted and num_read < len(order):
        chosen = order[num_read : num_read + wanted - num_rows + _SPARE_IDS]
        num_read += len(chosen)
        for batch in _batches(chosen, spec):
            photos, counts = batch[IMAGE][: wanted - num_rows], batch[COUNT][: wanted - num_rows]
            num_rows += len(counts)
            if len(counts):
                yield photos, counts
    say(f"{split}: {format_table(ledger.table(), num_read)}")
    if not num_rows:
        raise NoUsableRowsError(f"no usable row in the {split} split of {plan.data.source}")


def _batches(ids: list[str], spec: FetchSpec) -> Iterator[ArrayBatch]:
    rows = stream_rows(put_ids(ids, spec.data), spec, block_rows=TASK_ROWS)
    try:
        yield from cast("Iterable[ArrayBatch]", rows.iter_batches(batch_size=BATCH, batch_format="numpy"))
    except RayError as error:
        raise unwrap(error) or error from None


def _weights_bytes(checkpoint: Checkpoint) -> int:
    return sum(tensor.nbytes for tensor in checkpoint.model.state_dict().values())


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch in one thread, as the graphs and the server count."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
