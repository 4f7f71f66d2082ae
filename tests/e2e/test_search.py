"""The commands as a user runs them: in processes of their own, from another folder, without PYTHONPATH."""

import csv
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bintally.checkpoint import load_checkpoint
from bintally.config import read_recipe

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(400)]

TOLERANT = ("--max-dropped", "20%")  # the synthetic bucket is broken on purpose
SEARCH = ("--recipe", "smoke", "--num-trials", "2", "--num-cpus", "4", "--batch-sizes", "16", *TOLERANT)


def processes_with(marker: str) -> list[int]:
    """Processes that inherited an environment variable of that value: all that a command started, Ray's daemons too."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
        except OSError:
            continue
        if marker.encode() in environment:
            found.append(int(process.name))
    return found


def check_search(run_dir: Path) -> None:
    """A finished search left everything that a user needs."""
    results = json.loads((run_dir / "results.json").read_text())
    assert results["num_trials"] == 2
    assert results["num_failed"] == 0
    assert 3 <= results["epochs_run"] <= 4
    assert len({json.loads(line)["trial_id"] for line in (run_dir / "trials.jsonl").read_text().splitlines()}) == 2
    recipe = read_recipe(run_dir / "best.json")
    assert (recipe.optim.lr, recipe.optim.global_batch_size) == (results["best"]["point"]["optim.lr"], 16)
    checkpoint = load_checkpoint(run_dir / "checkpoint")
    assert checkpoint.recipe == recipe
    kept = results["final"]["kept_metrics"] if results["final"] else results["best"]
    assert checkpoint.metrics["val_nll"] == kept["val_nll"]
    assert (run_dir / "curves.png").stat().st_size > 5_000
    trials = sorted((run_dir / "trials").iterdir())
    assert len(trials) == 2
    for trial in trials:
        assert len(json.loads((trial / "health.json").read_text())["rules"]) == 15
        assert "data:image/png;base64" in (trial / "profile.html").read_text()
        assert (trial / "curves.png").stat().st_size > 5_000
    assert (run_dir / "report.html").stat().st_size > 50_000
    assert {path.name for path in (run_dir / "checkpoint").iterdir()} - {"calibration.json"} == {
        "README.md",
        "config.json",
        "metrics.json",
        "model.safetensors",
    }


@pytest.fixture(scope="module")
def found(
    bucket: Path,
    synthetic_bucket: Path,
    running_ray: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    run: Callable[..., str],
) -> Path:
    """Folder in which a search ran through file://, once with a Ray of its own; the search itself is in found/."""
    folder = tmp_path_factory.mktemp("folder")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in running_ray.items() if bucket != synthetic_bucket else ():
            patch.setenv(name, value)
        final = ("--final-seeds", 1) if bucket == synthetic_bucket else ("--no-final",)
        output = run(folder, "tune/search.py", *SEARCH, *final, "--source", f"file://{bucket}", "--run-dir", "found")
    assert "2 trials of smoke, 2 at a time" in output
    assert "dropped" in output
    return folder


def test_search_through_a_folder(found: Path) -> None:
    check_search(found / "found")


@pytest.mark.usefixtures("shared_ray")
def test_evaluate_what_was_found(found: Path, bucket: Path, run: Callable[..., str]) -> None:
    source = f"file://{bucket}"
    run(
        found,
        "train/evaluate.py",
        "--checkpoint",
        "found/checkpoint",
        "--run-dir",
        "scored",
        *TOLERANT,
        "--num-cpus",
        2,
    )
    summary = json.loads((found / "scored" / "metrics.json").read_text())
    with (found / "scored" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert summary["num_images"] == len(rows) > 30
    assert summary["accuracy"] == sum(row["expected"] == row["counted"] for row in rows) / len(rows)
    assert (summary["source"], summary["split_by"]) == (source, "grouped")
    for picture in ("confusion.png", "sheet.png"):
        assert (found / "scored" / picture).stat().st_size > 5_000


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize("bucket", ["synthetic"], indirect=True)
def test_fit_the_recipe_that_was_found(found: Path, run: Callable[..., str]) -> None:
    run(found, "train/fit.py", "--recipe-file", "found/best.json", "--run-dir", "fitted", *TOLERANT, "--num-cpus", 2)
    assert load_checkpoint(found / "fitted" / "checkpoint").recipe == read_recipe(found / "found" / "best.json")
    assert len((found / "fitted" / "metrics.jsonl").read_text().splitlines()) == 2
    assert {path.name for path in (found / "fitted").iterdir()} == {
        "checkpoint",
        "curves.png",
        "drops.json",
        "environment.json",
        "health.json",
        "metrics.jsonl",
        "profile.html",
        "recipe.json",
        "train",
    }


@pytest.mark.usefixtures("shared_ray")
def test_search_through_an_s3_server(s3_endpoint: str, s3_bucket: str, tmp_path: Path, run: Callable[..., str]) -> None:
    flags = ("--source", s3_bucket, "--endpoint-url", s3_endpoint, "--run-dir", "found")
    output = run(tmp_path, "tune/search.py", *SEARCH, "--num-workers", 2, "--no-final", *flags)
    check_search(tmp_path / "found")
    assert "2 trials of smoke, 1 at a time" in output
    assert "200 ids" in output


def test_ctrl_c_leaves_nothing_behind_and_the_search_resumes(
    synthetic_bucket: Path,
    join_ray: Callable[[], None],
    tmp_path: Path,
    run: Callable[..., str],
    command: Callable[..., list[str]],
) -> None:
    run_dir = tmp_path / "found"
    flags = [*SEARCH, "--no-final", "--source", f"file://{synthetic_bucket}", "--run-dir", run_dir]
    environment = os.environ | {"STARTED_BY": str(tmp_path)}
    search = subprocess.Popen(
        command("tune/search.py", *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    assert search.stdout is not None
    for line in search.stdout:
        if "epoch 1/" in line:
            break
    assert len(processes_with(str(tmp_path))) > 5
    search.send_signal(signal.SIGINT)
    rest = search.stdout.read()
    assert search.wait(timeout=60) == 130, rest
    assert "--resume" in rest
    deadline = time.monotonic() + 20
    while processes_with(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not processes_with(str(tmp_path))
    assert not (run_dir / "best.json").exists()

    join_ray()
    run(tmp_path, "tune/search.py", "--run-dir", run_dir, "--resume")
    check_search(run_dir)


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source", "file:///nowhere"], "there is no folder /nowhere"),
        (["--source", "nowhere"], "source must be s3://"),
        (["--source", "s3://b", "--endpoint-url", "http://127.0.0.1:9"], "http://127.0.0.1:9 cannot be read"),
        (["--num-workers", "8"], "num_workers 8 needs 9 CPUs"),
        (["--use-gpu", "--num-workers", "8"], "needs 8 GPUs"),
        (["--batch-sizes", "4096"], "global_batch_size 4096 is larger than the training split"),
        (["--num-workers", "2", "--batch-sizes", "15"], "cannot be shared equally"),
        (["--resume"], "holds no search to resume"),
        (["--recipe", "unheard_of"], "recipe 'unheard_of' is unknown; choose one of"),
        (["--backbone", "resnet99"], "model.backbone 'resnet99' is unknown; choose small_cnn or one of"),
        (["--weights", "nowhere.safetensors"], "there are no weights at 'nowhere.safetensors'"),
        (["--lr", "0.1", "0.01"], "lr: bounds must be finite, the lower one first"),
        (["--space", "optim.colour=1,2"], "space names optim.colour, which is no field of a recipe"),
        (["--space", "model.backbone=small_cnn,resnet99"], "model.backbone 'resnet99' is unknown"),
    ],
)
def test_bad_input_is_told_in_one_line(
    flags: list[str], message: str, synthetic_bucket: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    source = [] if "--source" in flags else ["--source", f"file://{synthetic_bucket}"]
    output = run(tmp_path, "tune/search.py", *SEARCH, *source, "--run-dir", "found", *flags, code=2)
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, output
    assert message in errors[0]
    assert "Traceback" not in output
