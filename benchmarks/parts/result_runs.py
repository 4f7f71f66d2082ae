"""One run of the results: train, then score the test split, each as the command that a person would type.

A run folder holds run.json (settings, seconds), train.log, evaluate.log, what train/fit.py leaves, and test/ with what
train/evaluate.py leaves. What is there is not done again.
"""

import csv
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.parts.abid_folder import LinkedBucket
from benchmarks.parts.result_controls import outcome_figures
from benchmarks.parts.result_rows import Row
from bintally.errors import ConfigError, RunError

ROOT: Final = Path(__file__).resolve().parents[2]
RUN_FILE: Final = "run.json"
LOG_TAIL: Final = 600  # characters
STOP_S: Final = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """What one run is."""

    row: Row
    seed: int
    run_dir: Path
    bucket: LinkedBucket
    settings: tuple[str, ...]
    use_gpu: bool
    weights: Path | None
    """A file or a checkpoint folder to begin with."""
    max_images: int | None

    @property
    def metrics_path(self) -> Path:
        """There once the run is done."""
        return self.run_dir / "test/metrics.json"

    def identity(self) -> dict[str, Any]:
        """What the figures depend on, beside the code; a folder of another identity is not gone on with."""
        return {
            "recipe": self.row.recipe,
            "settings": list(self.settings),
            "seed": self.seed,
            "device": "gpu" if self.use_gpu else "cpu",
            "weights": str(self.weights) if self.weights else None,
            "max_images": self.max_images,
        }

    def train_command(self) -> list[str]:
        """The training."""
        data = self.bucket.data(self.max_images)
        flags = ["--recipe", self.row.recipe, "--seed", str(self.seed), "--run-dir", str(self.run_dir)]
        flags += ["--source", data.source, "--labels", str(data.labels), "--split-by", data.split_by]
        flags += ["--max-images", str(data.max_images)] if data.max_images else []
        flags += ["--weights", str(self.weights)] if self.weights else []
        flags += ["--use-gpu"] if self.use_gpu else []
        flags += ["--set", *self.settings] if self.settings else []
        return [sys.executable, str(ROOT / "train/fit.py"), *flags]

    def evaluate_command(self) -> list[str]:
        """The scoring; the checkpoint knows its bucket, lists and split."""
        flags = ["--checkpoint", str(self.run_dir / "checkpoint"), "--split", "test", "--no-tta"]
        flags += ["--run-dir", str(self.metrics_path.parent), *(["--use-gpu"] if self.use_gpu else [])]
        return [sys.executable, str(ROOT / "train/evaluate.py"), *flags]


def do_run(plan: RunPlan, machine: dict[str, Any]) -> dict[str, Any]:
    """Train and score what is not done yet; the figures of the run.

    Raises:
        ConfigError: the folder holds a run of other settings.
        RunError: a command failed; the message names its log.
    """
    record = open_record(plan, machine)
    if not record.get("trained"):
        _timed(plan, record, "train", plan.train_command())
        record["trained"] = True  # not when a checkpoint is there: a training that diverged keeps one, too
        _write_record(plan, record)
    if not plan.metrics_path.is_file():
        _timed(plan, record, "evaluate", plan.evaluate_command())
    return read_figures(plan, record)


def open_record(plan: RunPlan, machine: dict[str, Any]) -> dict[str, Any]:
    """What run.json says of the run in this folder so far; of a new one, on which machine it begins.

    Raises:
        ConfigError: it had other settings.
    """
    path = plan.run_dir / RUN_FILE
    fresh = plan.identity() | {"machine": machine, "train_s": 0.0, "evaluate_s": 0.0, "trained": False}
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else fresh
    changed = [name for name, value in plan.identity().items() if record.get(name) != value]
    if changed:
        raise ConfigError(f"out holds a run of another {', '.join(changed)} in {plan.run_dir}: choose another folder")
    return record


def read_figures(plan: RunPlan, record: dict[str, Any]) -> dict[str, Any]:
    """Figures of a run that is done: of the test split, and of the validation split in training."""
    test = json.loads(plan.metrics_path.read_text())
    val = json.loads((plan.run_dir / "checkpoint/metrics.json").read_text())
    with (plan.metrics_path.parent / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected, counted = ([int(row[name]) for row in rows] for name in ("expected", "counted"))
    outcome = outcome_figures(plan.bucket.photos_dir, [row["id"] for row in rows], expected, counted)
    return {
        "seed": plan.seed,
        "num_images": test["num_images"],
        "accuracy": test["accuracy"],
        "within_one": test["within_one"],
        "nll": test["nll"],
        "quadratic_kappa": test["quadratic_kappa"],
        "by_source": outcome["by_source"],
        "by_count": outcome["by_count"],
        "interval": test["intervals"]["accuracy"],
        "rmse": test["decoders"]["argmax"]["rmse"],
        "rmse_mean": test["decoders"]["mean"]["rmse"],
        "val_accuracy": val["val_accuracy"],
        "val_nll": val["val_nll"],
        "best_epoch": val["epoch"],
        "machine": record["machine"],
        "train_s": record["train_s"],
        "evaluate_s": record["evaluate_s"],
    }


def run_logged(command: list[str], log_path: Path) -> None:
    """Run a command with its output in a log.

    Raises:
        RunError: it failed; the message has the end of the log.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("a") as log:
        code = _wait(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT))
    if code:
        tail = log_path.read_text(errors="replace")[-LOG_TAIL:].strip()
        raise RunError(f"{Path(command[1]).name} ended with code {code}; the end of {log_path}:\n{tail}")


def _timed(plan: RunPlan, record: dict[str, Any], verb: str, command: list[str]) -> None:
    """Run a command; its seconds add to those of attempts before."""
    started = time.monotonic()
    try:
        run_logged(command, plan.run_dir / f"{verb}.log")
    finally:
        record[f"{verb}_s"] = round(record[f"{verb}_s"] + time.monotonic() - started, 1)
        _write_record(plan, record)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The exit code. When we are stopped, the command ends its Ray first; subprocess.run would kill it at once."""
    try:
        return process.wait()
    except SystemExit:  # a SIGTERM to us alone
        process.terminate()
        process.wait(timeout=STOP_S)
        raise
    except KeyboardInterrupt:  # from the terminal, which has told the command, too
        process.wait(timeout=STOP_S)
        raise


def _write_record(plan: RunPlan, record: dict[str, Any]) -> None:
    (plan.run_dir / RUN_FILE).write_text(json.dumps(record, indent=2) + "\n")
