"""Train's folder of a run after a kill or a full disk: what is left in halves goes, what is whole is used.

Train lists a checkpoint in its record once the copy into the storage is whole. It never deletes what it has not listed,
and it writes the record in place: a disk that is full then leaves an empty one, with which Train refuses to start.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
    _CheckpointManagerState,
    _TrainingResultState,
)
from safetensors import SafetensorError, safe_open

from bintally.checkpoint import METRICS_FILE
from bintally.model import WEIGHTS_FILE
from train.figures import Keep

RESUME_FILE: Final = "resume.pt"  # not part of the checkpoint that is served
RECORD_FILE: Final = "checkpoint_manager_snapshot.json"


def drop_unlisted(run_dir: Path) -> None:
    """Delete checkpoints that Train has not listed. Nothing may be on its way there."""
    record = _read_record(run_dir)
    if record is None:
        return
    results = [*record["checkpoint_results"], record["latest_checkpoint_result"]]
    listed = {result["checkpoint_dir_name"] for result in results if result}
    for folder in run_dir.glob("checkpoint_*/"):
        if folder.name not in listed:
            shutil.rmtree(folder, ignore_errors=True)


def mend_record(run_dir: Path, keep: Keep) -> None:
    """Write the record anew from the whole checkpoints, if it was cut off."""
    path = run_dir / RECORD_FILE
    if not path.exists() or _read_record(run_dir) is not None:
        return
    metric, mode = keep
    results = [_result(folder) for folder in sorted(run_dir.glob("checkpoint_*/")) if _is_whole(folder)]
    if not results:
        path.unlink()
        return
    best_last = sorted(results, key=lambda result: result.metrics[metric], reverse=mode == "min")
    state = _CheckpointManagerState(
        checkpoint_results=best_last,
        checkpoint_report_indices=[results.index(result) for result in best_last],
        latest_checkpoint_result=results[-1],
        pending_training_results=[],
        pending_validation_specs=[],
        current_report_index=len(results),
        validated_checkpoint_dir_names=[],
        timed_out_validation_checkpoint_dir_names=[],
        failed_validation_checkpoint_dir_names=[],
    )
    partial = path.with_suffix(".partial")
    partial.write_text(state.json())
    partial.replace(path)


def _read_record(run_dir: Path) -> dict[str, Any] | None:
    """None where there is none, or half of one."""
    try:
        record: dict[str, Any] = json.loads((run_dir / RECORD_FILE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return record


def _result(folder: Path) -> _TrainingResultState:
    metrics = json.loads((folder / METRICS_FILE).read_text())
    return _TrainingResultState(checkpoint_dir_name=folder.name, metrics=metrics)


def _is_whole(folder: Path) -> bool:
    try:
        torch.load(folder / RESUME_FILE, map_location="cpu", weights_only=True)
        json.loads((folder / METRICS_FILE).read_text())
        with safe_open(folder / WEIGHTS_FILE, "pt"):  # compares the size of the file with its header
            return True
    except (OSError, RuntimeError, EOFError, json.JSONDecodeError, SafetensorError):
        return False
