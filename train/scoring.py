"""Score a checkpoint on a split: figures beside the trivial answers, every prediction, and pictures."""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int64
from ray.exceptions import RayError

from bintally.batch import COUNT, ID, IMAGE, POSITION
from bintally.checkpoint import Checkpoint
from bintally.config import DataConfig
from bintally.errors import NoUsableRowsError
from bintally.metrics import CountTally
from data.args import ReadArgs
from data.blocks import FetchSpec
from data.drops import DropLedger, format_table
from data.ingest import cache_of, list_splits, put_ids
from data.pipeline import stream_rows
from data.progress import say
from data.session import ray_session, unwrap
from data.split import Split
from train.plots import plot_confusion, plot_sheet

BATCH: Final = 64
MIN_PROBABILITY: Final = 1e-12  # 27.6 nats; one sure mistake must not make the mean infinite
SHEET_SIZE: Final = 40


@dataclass(frozen=True, slots=True)
class Prediction:
    """One scored bin."""

    bin_id: str
    expected: int
    probabilities: np.ndarray
    """Of each count 0..max_count."""

    @property
    def counted(self) -> int:
        """The most probable count."""
        return int(self.probabilities.argmax())


def evaluate(
    checkpoint: Checkpoint, data: DataConfig, split: Split, read: ReadArgs, run_dir: Path, num_cpus: int | None
) -> dict[str, Any]:
    """Score a checkpoint; the figures, as in metrics.json.

    Raises:
        SourceError: the bucket cannot be read, or the split has no usable row.
        ConfigError: the split has no id.
    """
    ids = list_splits(data, needed=(split,))[split]
    with ray_session(num_cpus):
        ledger = DropLedger.start(max_faults=read.max_faults(len(ids)))
        say(f"scoring version {checkpoint.version} on the {split} split")
        tally = CountTally.empty(checkpoint.recipe.data.num_classes)
        predictions: list[Prediction] = []
        sheet: list[tuple[Prediction, np.ndarray]] = []
        stride = math.ceil(len(ids) / SHEET_SIZE)  # neighbours are often one bin, so the sheet takes them far apart
        try:
            rows = stream_rows(put_ids(ids, data), FetchSpec(data=data, ledger=ledger, cache=cache_of(read, data)))
            for batch in rows.iter_batches(batch_size=BATCH):
                probabilities = checkpoint.predict(batch[IMAGE])
                tally = tally + tally_of(probabilities, batch[COUNT])
                scored = list(map(Prediction, batch[ID].tolist(), batch[COUNT].tolist(), probabilities))
                shown = batch[POSITION] % stride == 0
                shown[:1] |= not sheet
                sheet += [(scored[row], batch[IMAGE][row].copy()) for row in np.flatnonzero(shown)]
                predictions += scored
                say(f"  {len(predictions):,} of at most {len(ids):,}")
        except RayError as error:
            raise unwrap(error) or error from None
        drops = ledger.table()
    if not predictions:
        raise NoUsableRowsError(f"no usable row in the {split} split of {data.source}; {format_table(drops, len(ids))}")
    say(format_table(drops, len(ids)))
    origin = {"split": split, "split_by": data.split_by, "source": data.source, "model_version": checkpoint.version}
    summary = tally.summary() | origin
    _write(run_dir, summary, predictions, drops)
    plot_confusion(tally.confusion.numpy(), run_dir / "confusion.png", title=_headline(summary))
    answers = [(one.expected, one.counted, float(one.probabilities.max())) for one, _ in sheet]
    plot_sheet(
        [photo for _, photo in sheet], answers, run_dir / "sheet.png", title=f"{split} split: expected and counted"
    )
    say(format_summary(summary))
    say(f"figures and pictures: {run_dir}")
    return summary


def tally_of(probabilities: Float[np.ndarray, "batch classes"], counts: Int64[np.ndarray, " batch"]) -> CountTally:
    """The tally of one batch; a probability that float32 rounds to 0 counts as MIN_PROBABILITY."""
    logits = torch.from_numpy(probabilities).clamp(min=MIN_PROBABILITY).log()
    return CountTally.of(logits, torch.tensor(counts))  # a copy: arrays of the stream are read-only


def format_summary(summary: dict[str, Any]) -> str:
    """The figures for people, beside the trivial answers."""
    lines = [
        f"{summary['split']} split, {summary['num_images']:,} images of {summary['source']}",
        f"  accuracy        {summary['accuracy']:6.1%}",
        f"  majority class  {summary['majority_accuracy']:6.1%}, random {summary['random_accuracy']:.1%}",
        f"  within one      {summary['within_one']:6.1%}",
        f"  rmse, mae       {summary['rmse']:6.2f} {summary['mae']:.2f} items",
        f"  nll             {summary['nll']:6.3f} nats",
        "  count  images  accuracy  rmse",
    ]
    lines += [
        f"  {count:>5}  {row['num_images']:6,}  {row['accuracy']:8.1%}  {row['rmse']:.2f}"
        for count, row in summary["per_count"].items()
    ]
    return "\n".join(lines)


def _headline(summary: dict[str, Any]) -> str:
    return (
        f"{summary['split']} split, {summary['num_images']:,} images: accuracy {summary['accuracy']:.1%},"
        f" majority class {summary['majority_accuracy']:.1%}"
    )


def _write(run_dir: Path, summary: dict[str, Any], predictions: list[Prediction], drops: dict[str, int]) -> None:
    (run_dir / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")
    (run_dir / "drops.json").write_text(json.dumps(drops, indent=2) + "\n")
    with (run_dir / "predictions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["id", "expected", "counted", *(f"p{count}" for count in range(len(predictions[0].probabilities)))]
        )
        for one in predictions:
            table.writerow([one.bin_id, one.expected, one.counted, *(f"{p:.6f}" for p in one.probabilities)])
