"""Score a checkpoint on a split: count every photo, work out the figures, write figures, predictions and the report."""

import csv
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from bintally.checkpoint import Checkpoint, write_calibration
from bintally.errors import ConfigError, NoUsableRowsError
from bintally.source_config import DataConfig
from data.args import ReadArgs
from data.drops import format_table
from data.ingest import list_splits
from data.progress import say
from data.session import ray_session
from data.split import Split
from train.bootstrap import Bootstrap
from train.evaluate_calibrate import doubts_of, fit_calibration, tell_calibration
from train.evaluate_figures import Scored, coverage_by_split, figures_of_all
from train.evaluate_infer import InferSpec, infer
from train.evaluate_parts import REASON, PredictionParts
from train.evaluate_report import write_report
from train.evaluate_slices import slice_figures
from train.evaluate_text import format_summary
from train.published import compare_published

Chosen = Split | Literal["all"]
CALIBRATION_SPLIT: Split = "val"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatePlan:
    """What to score, and how."""

    checkpoint_dir: Path
    checkpoint: Checkpoint
    data: DataConfig
    split: Chosen
    run_dir: Path
    read: ReadArgs
    place: str | None = None
    """Where the user finds the run folder, as s3://bucket/prefix; None is `run_dir`."""
    tta: bool = True
    use_gpu: bool = False
    num_cpus: int | None = None
    calibrate: bool = False
    reviewed: dict[str, frozenset[str]] | None = None
    """Ids by what people said of the photos."""
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __post_init__(self) -> None:
        if self.calibrate and self.split in (CALIBRATION_SPLIT, "all"):
            raise ConfigError(
                f"split {self.split} holds the photos that --calibrate fits on ({CALIBRATION_SPLIT});"
                " its figures would be too good: score another split"
            )


def evaluate(plan: EvaluatePlan) -> dict[str, Any]:
    """Score a checkpoint; the figures, as in metrics.json.

    Raises:
        SourceError: the bucket cannot be read, or the split has no usable row.
        ConfigError: the split has no id, or the folder holds predictions of something else.
        CheckpointError: the calibration cannot be stored.
    """
    ids = ids_by_split(plan)
    with ray_session(plan.num_cpus):
        if plan.calibrate:
            plan = _calibrated(plan, ids[CALIBRATION_SPLIT])
        rows = _predict(plan, plan.split, ids[plan.split], plan.run_dir / "predictions")
    drops = _tell_drops(plan, plan.split, rows)
    scored = Scored.of(rows, plan.checkpoint.recipe.data.num_classes)
    summary = summarise(plan, scored, rows.num_rows, drops, ids)
    _write(plan.run_dir, summary, scored, drops)
    write_report(summary, scored, plan.data, plan.run_dir)
    say(format_summary(summary))
    say(f"report: {plan.place or plan.run_dir}/report.html")
    return summary


def ids_by_split(plan: EvaluatePlan) -> dict[str, list[str]]:
    """The ids to score and those to calibrate on; `all` are those of all splits.

    Raises:
        SourceError: the bucket cannot be listed.
        ConfigError: a split that is needed has no id.
    """
    fitted: tuple[Split, ...] = (CALIBRATION_SPLIT,) if plan.calibrate else ()
    needed = fitted if plan.split == "all" else (plan.split, *fitted)
    splits = list_splits(plan.data, needed=needed)
    whole = sorted(bin_id for members in splits.values() for bin_id in members)
    return dict(splits.items()) | {"all": whole}


def summarise(
    plan: EvaluatePlan, scored: Scored, num_ids: int, drops: dict[str, int], ids: dict[str, list[str]]
) -> dict[str, Any]:
    """Every figure, with what it is a figure of; `ids` are those of `ids_by_split`."""
    checkpoint, data = plan.checkpoint, plan.data
    figures = figures_of_all(scored, checkpoint.calibration, plan.bootstrap)
    if checkpoint.calibration is not None:
        figures["calibration"]["doubts"] = doubts_of(checkpoint.calibration, data, plan.split)
        figures["calibration"]["by_split"] = coverage_by_split(scored, checkpoint.calibration, ids)
    return figures | {
        "slices": slice_figures(scored, plan.reviewed),
        "published": compare_published(data, plan.split, len(scored.ids)),
        "split": plan.split,
        "split_by": data.split_by,
        "source": data.source,
        "ids": data.ids,
        "max_images": data.max_images,
        "max_count": data.max_count,
        "labels": "official lists" if data.labels else "records",
        "num_ids": num_ids,
        "drops": drops,
        "model_version": checkpoint.version,
        "recipe": checkpoint.recipe.name,
        "backbone": checkpoint.recipe.model.backbone,
        "image_size": data.image_size,
    }


def _calibrated(plan: EvaluatePlan, ids: list[str]) -> EvaluatePlan:
    """Fit the calibration, store it in the checkpoint, and go on with it."""
    rows = _predict(replace(plan, tta=False), CALIBRATION_SPLIT, ids, plan.run_dir / "calibration")
    _tell_drops(plan, CALIBRATION_SPLIT, rows)
    scored = Scored.of(rows, plan.checkpoint.recipe.data.num_classes)
    fitted = fit_calibration(scored.probabilities, scored.counts, plan.checkpoint, plan.data, CALIBRATION_SPLIT)
    tell_calibration(fitted)
    write_calibration(plan.checkpoint_dir, fitted)
    return replace(plan, checkpoint=replace(plan.checkpoint, calibration=fitted))


def _predict(plan: EvaluatePlan, split: str, ids: list[str], folder: Path) -> pa.Table:
    say(f"scoring version {plan.checkpoint.version} on the {split} split")
    spec = InferSpec(checkpoint=plan.checkpoint, data=plan.data, split=split, tta=plan.tta, use_gpu=plan.use_gpu)
    with PredictionParts.open(folder, spec.identity()) as parts:
        return infer(ids, spec, plan.read, parts)


def _tell_drops(plan: EvaluatePlan, split: str, rows: pa.Table) -> dict[str, int]:
    """Why ids were dropped, most frequent reason first.

    Raises:
        NoUsableRowsError: all were.
    """
    reasons = rows[REASON].drop_null().value_counts().to_pylist()
    drops = {one["values"]: one["counts"] for one in sorted(reasons, key=lambda one: -one["counts"])}
    if sum(drops.values()) == rows.num_rows:
        table = format_table(drops, rows.num_rows)
        raise NoUsableRowsError(f"no usable row in the {split} split of {plan.data.source}; {table}")
    say(format_table(drops, rows.num_rows))
    return drops


def _write(run_dir: Path, summary: dict[str, Any], scored: Scored, drops: dict[str, int]) -> None:
    (run_dir / "metrics.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    (run_dir / "drops.json").write_text(json.dumps(drops, indent=2) + "\n")
    with (run_dir / "predictions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "expected", "counted", *(f"p{count}" for count in range(scored.num_classes))])
        for bin_id, expected, counted, row in zip(
            scored.ids, scored.counts, scored.counted, scored.probabilities, strict=True
        ):
            table.writerow([bin_id, expected, counted, *(f"{p:.6f}" for p in row)])
