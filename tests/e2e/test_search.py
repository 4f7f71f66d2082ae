"""The commands as a user runs them: in processes of their own, from another folder, without PYTHONPATH."""

import csv
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.parts.chaos_search import Running, soon
from bintally.checkpoint import load_checkpoint
from bintally.config import read_recipe

pytestmark = pytest.mark.cluster

TOLERANT = ("--max-dropped", "20%")  # the synthetic bucket is broken on purpose
SEARCH = ("--recipe", "smoke", "--num-trials", "2", "--num-cpus", "6", "--batch-sizes", "16", *TOLERANT)


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
    s3_endpoint: str,
    s3_bucket: str,
    running_ray: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    run_at_terminal: Callable[..., str],
) -> Path:
    """Folder with a search through S3, in found/: Ctrl-C ended it in a Ray of its own, and it went on in another.

    What a terminal showed of it is in terminal.txt.
    """
    folder = tmp_path_factory.mktemp("folder")
    source = ("--source", s3_bucket, "--endpoint-url", s3_endpoint)
    flags = (*SEARCH, *source, "--num-workers", 2, "--final-seeds", 1, "--run-dir", folder / "found")
    search = Running(str(folder / "search"), *flags)
    try:
        search.wait_for("epoch 1/")
        assert len(search.left()) > 5
        search.process.send_signal(signal.SIGINT)
        said = search.ends(130)
    finally:
        search.stop()
    assert "200 ids" in said
    assert "2 trials of smoke, 2 at a time" in said
    assert "--resume" in said
    assert "Traceback" not in said
    assert not soon(search.left)
    assert not (folder / "found" / "results.json").exists()
    with pytest.MonkeyPatch.context() as joined:
        for name, value in running_ray.items():
            joined.setenv(name, value)
        shown = run_at_terminal(folder, "tune/search.py", "--run-dir", "found", "--resume")
    (folder / "terminal.txt").write_text(shown)
    return folder


def test_a_search_through_s3_that_was_stopped_and_resumed(found: Path) -> None:
    check_search(found / "found")


def test_a_terminal_shows_its_trials_as_they_run(found: Path) -> None:
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", (found / "terminal.txt").read_text())
    assert "dropped" in shown  # what is printed stands above the table
    assert re.search(r"search: 0 of 2 ended, \d epochs run, \d:\d\d elapsed", shown)
    assert re.search(r"\d +lr \S+ +running +1/2 +[\d.]+ +[\d.]+ +[\d.]+% +[\d,]+ +\d:\d\d", shown)
    assert re.search(r"search: 2 of 2 ended, [34] epochs run", shown)
    assert "* is the best so far" in shown


@pytest.mark.usefixtures("shared_ray")
def test_evaluate_what_was_found(found: Path, s3_bucket: str, run: Callable[..., str]) -> None:
    flags = ("--split", "val", "--run-dir", "scored", *TOLERANT, "--num-cpus", 2)
    run(found, "train/evaluate.py", "--checkpoint", "found/checkpoint", *flags)
    summary = json.loads((found / "scored" / "metrics.json").read_text())
    with (found / "scored" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert summary["num_images"] == len(rows) > 30
    assert summary["accuracy"] == sum(row["expected"] == row["counted"] for row in rows) / len(rows)
    assert (summary["source"], summary["split_by"]) == (s3_bucket, "grouped")
    for picture in ("confusion.png", "sheet.png"):
        assert (found / "scored" / picture).stat().st_size > 5_000


@pytest.mark.usefixtures("shared_ray")
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
def test_a_cluster_that_is_too_small_is_told_in_one_line(
    synthetic_bucket: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    flags = ("--source", f"file://{synthetic_bucket}", "--run-dir", "found", "--num-workers", 8)
    output = run(tmp_path, "tune/search.py", *SEARCH, *flags, code=2)
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, output
    assert "num_workers 8 needs 9 CPUs" in errors[0]
    assert "Traceback" not in output
