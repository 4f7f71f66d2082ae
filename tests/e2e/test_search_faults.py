"""Searches that are killed, that share a cluster, and whose trials fail: what is left, and what goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from bintally.model import build_model
from bintally.recipes import smoke
from tune.record import EVENTS_FILE, TRIALS_FILE, read_events, read_records

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[2]
SEARCH = ("--recipe", "smoke", "--num-trials", "2", "--batch-sizes", "16", "--no-final", "--max-dropped", "20%")
REMOVAL_S = 90  # Ray's two agents try for a minute to tell of its end


class Running:
    """A command in a process of its own, whose children can be told by a variable that they inherit."""

    def __init__(self, marker: str, *flags: object) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self._marker = f"STARTED_BY={marker}\0".encode()
        self.output = ""
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tune/search.py"), *map(str, flags)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment | {"STARTED_BY": marker},
        )

    def wait_for(self, *words: str) -> None:
        """Read until a line has one of these words."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if any(word in line for word in words):
                return
        raise AssertionError(self.output)

    def ends(self, code: int) -> str:
        """All that it printed; it must end with that code."""
        assert self.process.stdout is not None
        self.output += self.process.stdout.read()
        assert self.process.wait(timeout=60) == code, self.output
        return self.output

    def left(self) -> list[str]:
        """Commands of the processes that it started and that still run, Ray's daemons included."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self._marker in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
            except OSError:
                continue
        return found


def soon(find: Callable[[], list[Any]]) -> list[Any]:
    """What is still found after the time that Ray may take to remove it."""
    deadline = time.monotonic() + REMOVAL_S
    while (found := find()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


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


LOOK = """
import json, sys, ray
from ray.util.placement_group import placement_group_table
from ray.util.state import list_actors
from ray.util.state.exception import RayStateApiException

ray.init(log_to_driver=False)
for _ in sys.stdin:
    groups = {key: "group " + one["state"] for key, one in placement_group_table().items() if one["state"] != "REMOVED"}
    try:
        actors = list_actors(filters=[("state", "!=", "DEAD")], limit=1_000, raise_on_missing_output=False)
        groups |= {one.actor_id: one.class_name for one in actors}
    except RayStateApiException as error:  # of a busy dashboard
        groups[""] = "no answer: " + str(error)
    print(json.dumps(groups), flush=True)
"""
OF_RAY = {"_AutoscalingCoordinatorActor", "_StatsActor", "_UsageCollectionActor"}
"""Ray Data has one of each in a cluster, which stay."""


@pytest.fixture(scope="module")
def in_cluster(running_ray: dict[str, str]) -> Iterator[Callable[[], dict[str, str]]]:
    """`in_cluster()`: what each placement group and actor of the running cluster is, by id.

    Asked by a process of its own: in this one Ray has already settled on no authentication.
    """
    looking = subprocess.Popen(
        [sys.executable, "-c", LOOK],
        env=os.environ | running_ray,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert looking.stdin is not None
    assert looking.stdout is not None
    asked, answers = looking.stdin, looking.stdout

    def look() -> dict[str, str]:
        print(file=asked, flush=True)
        answer = next(line for line in answers if line.startswith("{"))  # Ray prints its warnings there, too
        found: dict[str, str] = json.loads(answer)
        return found

    yield look
    looking.communicate(timeout=60)


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


def test_a_search_whose_driver_was_killed_leaves_nothing_and_resumes_to_the_same_end(
    source: tuple[str, str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    flags = (*SEARCH, "--no-asha", "--num-cpus", 2, *source, "--run-dir")  # one trial at a time
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    search = Running(str(killed), *flags, killed)
    search.wait_for("epoch 1/")
    assert len(search.left()) > 5
    search.process.kill()
    search.ends(-signal.SIGKILL)
    assert not soon(search.left)
    assert not (killed / "results.json").exists()

    nothing_new = request.getfixturevalue("nothing_new")
    both = Running(str(whole), *flags, whole), Running(str(killed), "--run-dir", killed, "--resume")
    for one in both:  # two searches at once in a cluster of four CPUs, each of which would take all of them
        one.ends(0)
    assert points_of(killed) == points_of(whole)
    assert len(points_of(whole)) == 2
    assert epochs_of(killed) == epochs_of(whole)
    assert len(epochs_of(whole)) == 4
    assert best_of(killed) == best_of(whole)
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
