"""Trainings as a user runs them: in processes of their own, from another folder, without PYTHONPATH."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bintally.checkpoint import load_checkpoint
from bintally.config import read_recipe

pytestmark = pytest.mark.cluster

TOLERANT = ("--max-dropped", "20%")  # the synthetic bucket is broken on purpose


@pytest.mark.usefixtures("shared_ray")
def test_fit_streams_on_two_workers(synthetic_bucket: Path, tmp_path: Path, run: Callable[..., str]) -> None:
    flags = ("--recipe", "smoke", "--source", f"file://{synthetic_bucket}", "--run-dir", "fitted", *TOLERANT)
    output = run(tmp_path, "train/fit.py", *flags, "--stream", "--num-workers", 2, "--num-cpus", 4)
    assert "streamed each epoch" in output
    assert load_checkpoint(tmp_path / "fitted" / "checkpoint").recipe == read_recipe(tmp_path / "fitted/recipe.json")
    epochs = [json.loads(line) for line in (tmp_path / "fitted" / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert epochs[0]["val_num_images"] == epochs[1]["val_num_images"] > 30
    assert sum(json.loads((tmp_path / "fitted" / "drops.json").read_text()).values()) > 4


@pytest.mark.usefixtures("shared_ray")
def test_too_many_broken_bins_stop_a_run(synthetic_bucket: Path, tmp_path: Path, run: Callable[..., str]) -> None:
    source = ("--source", f"file://{synthetic_bucket}", "--run-dir", "fitted")
    output = run(tmp_path, "train/fit.py", "--recipe", "smoke", *source, "--num-cpus", 2, "--stream", code=2)
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, output
    assert "--max-dropped allows 1" in errors[0]
    assert "Traceback" not in output
    assert not (tmp_path / "fitted" / "checkpoint").exists()


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.faults)]
)
def test_a_stopped_training_says_so_and_goes_on(
    sent: signal.Signals,
    code: int,
    synthetic_bucket: Path,
    join_ray: Callable[[], None],
    tmp_path: Path,
    run: Callable[..., str],
    command: Callable[..., list[str]],
) -> None:
    flags = ["--recipe", "smoke", "--max-dropped", "20%", "--num-cpus", "2", "--run-dir", tmp_path / "fitted"]
    whole = [*flags, "--source", f"file://{synthetic_bucket}", "--max-epochs", "200"]
    training = subprocess.Popen(
        command("train/fit.py", *whole), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert training.stdout is not None
    for line in training.stdout:
        if "epoch 2/" in line:
            break
    training.send_signal(sent)
    rest = training.stdout.read()
    assert training.wait(timeout=60) == code, rest
    assert ("interrupted" if sent == signal.SIGINT else "terminated") in rest
    assert "Traceback" not in rest
    if sent == signal.SIGTERM:
        return  # it goes on in the same way

    join_ray()
    output = run(tmp_path, "train/fit.py", *whole[:-1], "3")
    assert "epoch 1/" not in output
