"""Searches that are killed, that share a cluster, and whose trials fail: what is left, and what goes on."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from benchmarks.parts.chaos_search import OF_RAY, Running, looking_into, soon
from bintally.model import build_model
from bintally.recipes import smoke
from tune.record import EVENTS_FILE, TRIALS_FILE, read_events, read_records

pytestmark = [pytest.mark.cluster, pytest.mark.faults]

SEARCH = ("--recipe", "smoke", "--num-trials", "2", "--batch-sizes", "16", "--no-final", "--max-dropped", "20%")


def best_of(run_dir: Path) -> dict[str, Any]:
    best: dict[str, Any] = json.loads((run_dir / "results.json").read_text())["best"]
    return {name: best[name] for name in ("point", "epoch", "val_nll", "val_accuracy")}


def points_of(run_dir: Path) -> list[Any]:
    """Of each trial that began; two that run at once may begin in either order."""
    points = {one.trial_id: one.point for one in read_events(run_dir / EVENTS_FILE) if one.what == "started"}
    return sorted(points.values(), key=str)


def epochs_of(run_dir: Path) -> list[tuple[float, int, float]]:
    """Learning rate, epoch and score of each."""
    return sorted(
        (float(str(one.point["optim.lr"])), one.epoch, one.metrics["val_nll"])
        for one in read_records(run_dir / TRIALS_FILE)
    )


@pytest.fixture(scope="module")
def in_cluster(running_ray: dict[str, str]) -> Iterator[Callable[[], dict[str, str]]]:
    """`in_cluster()`: what each placement group and actor of the running cluster is, by id."""
    with looking_into(running_ray) as look:
        yield look


@pytest.fixture
def nothing_new(in_cluster: Callable[[], dict[str, str]], join_ray: Callable[[], None]) -> Callable[[], None]:
    """`nothing_new()`: no placement group or actor is left of what began since this test did; joins the cluster."""
    before = in_cluster().keys()
    join_ray()

    def check() -> None:
        assert not soon(
            lambda: [what for key, what in in_cluster().items() if key not in before and what not in OF_RAY]
        )

    return check


@pytest.fixture
def source(synthetic_bucket: Path) -> tuple[str, str]:
    return "--source", f"file://{synthetic_bucket}"


def test_a_search_that_is_stopped_and_then_killed_leaves_nothing_and_resumes_to_the_same_end(
    source: tuple[str, str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    # Two workers, so that one trial runs at a time. The second, which learns less, is stopped by the first's score.
    space = ("--sampler", "grid", "--space", "optim.lr=0.003,0.00001", "--num-workers", 2, "--num-cpus", 3)
    flags = (*SEARCH, *space, *source, "--run-dir")
    hurt, whole = tmp_path / "hurt", tmp_path / "whole"
    resume = ("--run-dir", hurt, "--resume")
    search = Running(str(hurt), *flags, hurt)
    search.wait_for("epoch 1/")
    assert len(search.left()) > 5
    search.process.send_signal(signal.SIGINT)
    assert "--resume" in search.ends(130)
    assert not soon(search.left)

    search = Running(str(hurt), *resume)
    search.wait_for("epoch 2/")
    search.process.kill()
    search.ends(-signal.SIGKILL)
    assert not soon(search.left)
    assert not (hurt / "results.json").exists()

    nothing_new = request.getfixturevalue("nothing_new")
    both = Running(str(whole), *flags, whole), Running(str(hurt), *resume)
    for one in both:  # two searches at once in a cluster of four CPUs, each of which would take three of them
        one.ends(0)
    assert points_of(hurt) == points_of(whole)
    assert len(points_of(whole)) == 2
    assert epochs_of(hurt) == epochs_of(whole)
    assert len(epochs_of(whole)) == 3
    assert best_of(hurt) == best_of(whole)
    nothing_new()


def test_two_searches_that_stream_share_a_cluster(
    source: tuple[str, str], nothing_new: Callable[[], None], tmp_path: Path
) -> None:
    flags = (*SEARCH, "--stream", "--max-epochs", 1, *source, "--run-dir")
    both = [Running(str(tmp_path / name), *flags, tmp_path / name) for name in ("one", "other")]
    for one in both:
        one.wait_for("2 trials of smoke, 2 at a time")
    for one in both:
        one.ends(0)
    assert epochs_of(tmp_path / "one") == epochs_of(tmp_path / "other")
    assert len(epochs_of(tmp_path / "one")) == 2
    nothing_new()


def write_weights(path: Path) -> Path:
    recipe = smoke()
    model = build_model(recipe.model, num_classes=recipe.data.num_classes, image_size=recipe.data.image_size)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


def test_a_trial_that_fails_is_told_and_the_others_go_on(
    source: tuple[str, str], nothing_new: Callable[[], None], tmp_path: Path
) -> None:
    weights, run_dir = write_weights(tmp_path / "weights.safetensors"), tmp_path / "found"
    space = ("--sampler", "grid", "--space", f"model.weights={weights},null", "optim.lr=0.003", "--max-epochs", 1)
    search = Running(str(run_dir), *SEARCH, *space, *source, "--run-dir", run_dir)
    search.wait_for("trials of smoke")
    weights.unlink()
    output = search.ends(0)
    reason = f"there are no weights at '{weights}'"
    assert f"FAILED: {reason}" in output
    events = read_events(run_dir / EVENTS_FILE)
    (failed,) = (one for one in events if one.what == "failed")
    assert failed.reason.startswith(reason)
    assert sum(one.trial_id == failed.trial_id and one.what == "started" for one in events) <= 2
    results = json.loads((run_dir / "results.json").read_text())
    assert (results["num_begun"], results["num_failed"], results["epochs_run"]) == (2, 1, 1)
    assert results["best"]["point"]["model.weights"] is None
    assert "there are no weights at" in (run_dir / "report.html").read_text()
    nothing_new()


def test_nothing_is_left_of_a_search_that_failed_or_was_stopped(
    source: tuple[str, str], nothing_new: Callable[[], None], tmp_path: Path
) -> None:
    weights = write_weights(tmp_path / "weights.safetensors")
    failed, stopped = tmp_path / "failed", tmp_path / "stopped"
    space = ("--space", f"model.weights={weights}")
    search = Running(str(failed), *SEARCH, *space, *source, "--run-dir", failed)
    search.wait_for("trials of smoke")
    weights.unlink()
    assert "the first failed with: there are no weights at" in search.ends(2)
    search = Running(str(stopped), *SEARCH, *source, "--run-dir", stopped)
    search.wait_for("epoch 1/")
    search.process.send_signal(signal.SIGINT)
    search.ends(130)
    assert not soon(search.left)
    nothing_new()
