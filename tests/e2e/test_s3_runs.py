"""Runs in S3, in a cluster whose nodes do not know the endpoint: the head is lost, and another one goes on."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data.s3_folder import S3Folder
from tune.record import EVENTS_FILE, TRIALS_FILE, read_events, read_records

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.usefixtures("shared_ray")]

SMOKE = ("--recipe", "smoke", "--max-dropped", "20%")


def fetched(uri: str, folder: Path) -> Path:
    S3Folder.open(uri, "run_dir").fetch(folder)
    return folder


def test_a_training_goes_on_in_s3_and_is_scored_from_there(
    s3_runs: str, synthetic_bucket: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    uri, source = f"{s3_runs}/fit", ("--source", f"file://{synthetic_bucket}")
    first = run(tmp_path, "train/fit.py", *SMOKE, *source, "--max-epochs", 1, "--run-dir", uri)
    assert f"checkpoint: {uri}/checkpoint" in first
    shutil.rmtree(tmp_path / "cache")  # another head
    second = run(tmp_path, "train/fit.py", *SMOKE, *source, "--max-epochs", 2, "--run-dir", uri)
    assert "epoch 2/2" in second
    folder = fetched(uri, tmp_path / "fetched")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 1, 2]  # a restart reports its newest epoch again
    assert {"recipe.json", "health.json", "profile.html", "drops.json"} <= {path.name for path in folder.iterdir()}

    flags = (*source, "--max-dropped", "20%", "--no-tta", "--calibrate", "--run-dir", f"{uri}-scored")
    run(tmp_path, "train/evaluate.py", "--checkpoint", f"{uri}/checkpoint", *flags)
    scored = S3Folder.open(f"{uri}-scored", "run_dir")
    version = json.loads(scored.read("metrics.json") or b"")["model_version"]
    calibration = json.loads(S3Folder.open(f"{uri}/checkpoint", "checkpoint").read("calibration.json") or b"")
    assert calibration["model_version"] == version
    assert scored.read("report.html")


def test_a_search_whose_head_was_lost_goes_on_from_s3(
    s3_runs: str,
    synthetic_bucket: Path,
    tmp_path: Path,
    run: Callable[..., str],
    command: Callable[..., list[str]],
) -> None:
    uri = f"{s3_runs}/search"
    flags = (*SMOKE, "--num-trials", 2, "--batch-sizes", 16, "--no-asha", "--max-epochs", 9, "--final-seeds", 1)
    source = ("--source", f"file://{synthetic_bucket}")
    search = subprocess.Popen(
        command("tune/search.py", *flags, *source, "--run-dir", uri), stdout=subprocess.PIPE, text=True
    )
    assert search.stdout is not None
    assert any("epoch 1/9" in line for line in search.stdout)
    there = S3Folder.open(uri, "run_dir")
    while not any("experiment_state" in name for name in there.names()):
        assert search.poll() is None
        time.sleep(0.1)
    search.kill()
    search.communicate()
    assert search.returncode == -signal.SIGKILL
    shutil.rmtree(tmp_path / "cache")
    before = fetched(uri, tmp_path / "before")
    begun = {one.trial_id: one.point for one in read_events(before / EVENTS_FILE) if one.what == "started"}
    assert begun
    assert there.read("best.json") is None

    output = run(tmp_path, "tune/search.py", "--resume", "--run-dir", uri)
    assert f"report: {uri}/report.html" in output
    after = fetched(uri, tmp_path / "after")
    points = {one.trial_id: one.point for one in read_events(after / EVENTS_FILE) if one.what == "started"}
    assert len(points) == 2
    assert begun.items() <= points.items()
    assert {trial: point for trial, point in points.items() if trial in begun} == begun
    records = read_records(after / TRIALS_FILE)
    assert {(one.trial_id, one.epoch) for one in records} >= {(trial_id, 9) for trial_id in points}
    assert all(one.checkpoint_path.startswith(f"{uri}/trials/") for one in records)
    results = json.loads((after / "results.json").read_text())
    assert (results["num_begun"], results["num_failed"]) == (2, 0)
    assert results["final"]["seeds"].keys() == {"0"}
    assert {"best.json", "report.html"} <= {path.name for path in after.iterdir()}
    assert (after / "checkpoint" / "model.safetensors").exists()
