"""The evaluation as a command: stopped and gone on with, refused, calibrated, over a whole bucket."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from bintally.calibration import Calibration
from bintally.checkpoint import load_checkpoint, save_checkpoint
from bintally.model import build_model
from bintally.recipes import smoke

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
Refused = Callable[..., str]
TOLERANT = ("--max-dropped", "20%")  # the synthetic bucket is broken on purpose


@pytest.fixture(scope="module")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("evaluate") / "checkpoint", seed=0)


def make_checkpoint(path: Path, seed: int) -> Path:
    """Untrained: what is counted does not matter here."""
    torch.manual_seed(seed)
    recipe = smoke()
    save_checkpoint(path, build_model(recipe.model, num_classes=recipe.data.num_classes), recipe, {})
    return path


def flags_of(checkpoint: Path, bucket: Path, run_dir: Path, *flags: str) -> list[str]:
    given = ("--checkpoint", str(checkpoint), "--source", f"file://{bucket}", "--run-dir", str(run_dir))
    return [*given, "--num-cpus", "2", *flags]


def evaluate(checkpoint: Path, bucket: Path, run_dir: Path, *flags: str) -> str:
    """Output of the command."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "train/evaluate.py"), *flags_of(checkpoint, bucket, run_dir, *flags)],
        cwd=run_dir.parent,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def refused(in_process: Callable[..., Any]) -> Callable[..., str]:
    """`refused(checkpoint, bucket, run_dir, *flags)`: what the command, which must end with 2, says on stderr."""

    def call(checkpoint: Path, bucket: Path, run_dir: Path, *flags: str) -> str:
        done = in_process("train/evaluate.py", *flags_of(checkpoint, bucket, run_dir, *flags))
        assert done.code == 2, done
        return str(done.err)

    return call


def read_metrics(run_dir: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run_dir / "metrics.json").read_text())
    return metrics


def ids_in(folder: Path) -> list[str]:
    """The ids of all parts."""
    return [bin_id for path in folder.glob("part-*.parquet") for bin_id in pq.read_table(path)["id"].to_pylist()]


@pytest.fixture(scope="module")
def scored(checkpoint_dir: Path, synthetic_bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the test split, calibrated on the way."""
    run_dir = tmp_path_factory.mktemp("scored") / "run"
    output = evaluate(checkpoint_dir, synthetic_bucket, run_dir, "--calibrate", *TOLERANT)
    assert "calibrated on" in output
    assert "bins" in output
    return run_dir


def test_everything_is_left_behind(scored: Path) -> None:
    metrics = read_metrics(scored)
    with (scored / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert metrics["num_images"] == len(rows) > 30
    assert metrics["num_images"] + sum(metrics["drops"].values()) == metrics["num_ids"]
    assert metrics["accuracy"] == sum(row["expected"] == row["counted"] for row in rows) / len(rows)
    assert json.loads((scored / "drops.json").read_text()) == metrics["drops"]
    assert {row["by"] for row in metrics["slices"]} == {"brightness", "sharpness", "size"}
    assert metrics["published"]["differs"]
    for name in ("confusion", "risk_coverage", "reliability", "recall", "sheet", "worst"):
        assert (scored / f"{name}.png").stat().st_size > 5_000
    assert "</html>" in (scored / "report.html").read_text()


def test_the_checkpoint_keeps_a_calibration_of_other_photos(scored: Path, checkpoint_dir: Path) -> None:
    calibration = load_checkpoint(checkpoint_dir).calibration
    assert isinstance(calibration, Calibration)
    assert calibration.verify is not None
    fitted = set(ids_in(scored / "calibration"))
    assert 30 < calibration.num_images < len(fitted)
    assert (calibration.split, calibration.split_by) == ("val", "grouped")
    with (scored / "predictions.csv").open() as file:
        assert fitted.isdisjoint(row["id"] for row in csv.DictReader(file))
    after = read_metrics(scored)["calibration"]
    assert after["temperature"] == calibration.temperature
    assert after["doubts"] == []
    assert after["by_split"]["test"]["coverage"] == {key: row["coverage"] for key, row in after["ranges"].items()}


@pytest.mark.usefixtures("shared_ray")
def test_a_stopped_run_goes_on_to_the_same_result(scored: Path, checkpoint_dir: Path, synthetic_bucket: Path) -> None:
    before = {name: (scored / name).read_bytes() for name in ("metrics.json", "predictions.csv", "drops.json")}
    (part,) = (scored / "predictions").glob("part-*.parquet")
    rows = pq.read_table(part)
    pq.write_table(rows.slice(0, 20), part)
    output = evaluate(checkpoint_dir, synthetic_bucket, scored, *TOLERANT)
    assert f"going on: 20 of {rows.num_rows} bins" in output
    assert {name: (scored / name).read_bytes() for name in before} == before
    ids = ids_in(scored / "predictions")
    assert len(ids) == len(set(ids)) == rows.num_rows


@pytest.mark.usefixtures("shared_ray")
def test_what_was_lost_before_still_counts(
    scored: Path, checkpoint_dir: Path, synthetic_bucket: Path, refused: Refused
) -> None:
    """Nothing is left to fetch, and the faults found before are on the disk."""
    assert "--max-dropped" in refused(checkpoint_dir, synthetic_bucket, scored, "--max-dropped", "0%")


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize("changed", ["checkpoint", "data"])
def test_predictions_of_something_else_are_refused(
    scored: Path, checkpoint_dir: Path, synthetic_bucket: Path, refused: Refused, tmp_path: Path, changed: str
) -> None:
    before = (scored / "metrics.json").read_bytes()
    other = make_checkpoint(tmp_path / "other", seed=1) if changed == "checkpoint" else checkpoint_dir
    flags = ("--max-count", "3") if changed == "data" else ()
    error = refused(other, synthetic_bucket, scored, *flags, *TOLERANT)
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert ("max_count 5, not 3" if changed == "data" else "model_version") in error
    assert (scored / "metrics.json").read_bytes() == before


@pytest.mark.usefixtures("shared_ray")
def test_a_whole_bucket(scored: Path, checkpoint_dir: Path, bucket: Path, tmp_path: Path) -> None:
    evaluate(checkpoint_dir, bucket, tmp_path / "all", "--split", "all", "--no-tta", *TOLERANT)
    metrics = read_metrics(tmp_path / "all")
    assert metrics["num_ids"] == len(list((bucket / "bin-images").glob("?????*.jpg")))
    assert metrics["num_images"] > 200
    assert metrics["tta"] is None
    assert "val split, which are scored here" in metrics["calibration"]["doubts"][0]


@pytest.mark.usefixtures("shared_ray")
def test_a_split_without_a_usable_row_is_told(
    checkpoint_dir: Path, synthetic_bucket: Path, refused: Refused, tmp_path: Path
) -> None:
    flags = ("--ids", "list:96193", "--max-dropped", "100%")  # an id of the test split that is not in the bucket
    error = refused(checkpoint_dir, synthetic_bucket, tmp_path / "none", *flags)
    assert "no usable row in the test split" in error
    assert "1  missing_" in error


@pytest.mark.usefixtures("shared_ray")
def test_gpus_that_are_not_there_are_missed(
    checkpoint_dir: Path, synthetic_bucket: Path, refused: Refused, tmp_path: Path
) -> None:
    assert "the cluster has no GPU" in refused(
        checkpoint_dir, synthetic_bucket, tmp_path / "gpu", "--use-gpu", *TOLERANT
    )
