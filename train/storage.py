"""Where Train keeps a run, on a disk or in S3. After a kill or a full disk, halves go, and what is whole is used.

Train lists a checkpoint in its record once the copy into the storage is whole. It never deletes what it has not listed,
and it writes the record in place: a disk that is full then leaves an empty one, with which Train refuses to start. In
S3 an object is whole or not there.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from pyarrow.fs import AwsStandardS3RetryStrategy, FileSelector, FileSystem, FileType, LocalFileSystem, S3FileSystem
from ray.train import Checkpoint
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
    _CheckpointManagerState,
    _TrainingResultState,
)
from safetensors import SafetensorError, safe_open

from bintally.checkpoint import METRICS_FILE
from bintally.model import WEIGHTS_FILE
from data.args import is_remote
from train.figures import Keep

RESUME_FILE: Final = "resume.pt"  # not part of the checkpoint that is served
RECORD_FILE: Final = "checkpoint_manager_snapshot.json"


_S3_ATTEMPTS: Final = 10  # with pauses that grow to 20 s: about a minute and a half in which S3 answers 503


class PatientS3(S3FileSystem):  # type: ignore[misc]  # pyarrow's has no annotations
    """S3 as Train writes to it from any node: at the driver's endpoint, with the credentials of the node.

    pyarrow heeds no AWS_ENDPOINT_URL, and forgets how often to try again when it is sent to another process.
    """

    def __init__(self, endpoint: str | None, region: str) -> None:
        retries = AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS)
        super().__init__(endpoint_override=endpoint, region=region, retry_strategy=retries)
        self._where = endpoint, region

    def __reduce__(self) -> tuple[Any, ...]:
        return PatientS3, self._where


@dataclass(frozen=True, slots=True)
class Storage:
    """Where Train keeps the checkpoints of runs."""

    path: Path
    """An absolute folder; with a filesystem, a path there, as bucket/prefix."""
    filesystem: FileSystem | None = None

    @classmethod
    def of(cls, place: str) -> "Storage":
        """That of a folder, or of s3://bucket/prefix as the environment of this process finds it."""
        if not is_remote(place, "run_dir"):
            return cls(Path(place))
        from data.s3_folder import s3_server

        return cls(Path(place.removeprefix("s3://")), PatientS3(*s3_server()))

    def under(self, *names: str) -> "Storage":
        """A folder in it."""
        return Storage(self.path.joinpath(*names), self.filesystem)


def place_of(checkpoint: Checkpoint) -> str:
    """Where a checkpoint lies: an absolute folder, or s3://bucket/prefix."""
    return f"s3://{checkpoint.path}" if isinstance(checkpoint.filesystem, S3FileSystem) else checkpoint.path


def drop_unlisted(filesystem: FileSystem, run_path: str) -> None:
    """Delete checkpoints that Train has not listed. Nothing may be on its way there."""
    record = _read_record(filesystem, run_path)
    if record is None:
        return
    results = [*record["checkpoint_results"], record["latest_checkpoint_result"]]
    listed = {result["checkpoint_dir_name"] for result in results if result}
    for info in filesystem.get_file_info(FileSelector(run_path)):
        is_checkpoint = info.type == FileType.Directory and info.base_name.startswith("checkpoint_")
        if is_checkpoint and info.base_name not in listed:
            with suppress(OSError):  # it takes room, no more
                filesystem.delete_dir(info.path)


def mend_record(run_dir: Path, keep: Keep) -> None:
    """Write the record anew from the whole checkpoints, if it was cut off; of a run on a disk."""
    path = run_dir / RECORD_FILE
    if not path.exists() or _read_record(LocalFileSystem(), str(run_dir)) is not None:
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


def _read_record(filesystem: FileSystem, run_path: str) -> dict[str, Any] | None:
    """None where there is none, or half of one."""
    try:
        with filesystem.open_input_stream(f"{run_path}/{RECORD_FILE}") as file:
            record: dict[str, Any] = json.loads(file.read())
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
