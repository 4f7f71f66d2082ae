"""The search on a cluster of several nodes: its work is done by them, and nothing of it is left."""

import time
from pathlib import Path

import pytest

from benchmarks.parts.chaos_cluster import HEAD, running_cluster
from benchmarks.parts.chaos_search import MARKER, OF_RAY, Running, looking_into, marked_processes, soon
from tune.record import TRIALS_FILE, read_records

pytestmark = [pytest.mark.cluster, pytest.mark.faults]


def test_a_search_on_three_nodes_trains_on_the_workers_alone_and_leaves_nothing(
    synthetic_bucket: Path, tmp_path: Path
) -> None:
    flags = ["--recipe", "smoke", "--num-trials", "2", "--max-epochs", "1", "--batch-sizes", "16", "--no-final"]
    flags += ["--max-dropped", "10%", "--source", f"file://{synthetic_bucket}"]
    marker, run_dir = str(tmp_path / "search"), tmp_path / "run"
    trained: dict[str, str] = {}
    with running_cluster(("a", "b"), tmp_path / "cluster.log", {MARKER: marker}) as cluster:
        search = Running(marker, *flags, "--run-dir", run_dir, more=cluster.environment)

        def has_ended() -> bool:
            for pid in cluster.workers("RayTrainWorker"):
                trained.setdefault(str(pid), cluster.node_of(pid))
            time.sleep(0.5)  # a look at all processes of the machine costs some 10 ms
            return (run_dir / "results.json").exists()

        try:
            search.wait_until(has_ended, "it has no results")
            search.ends(0)
        finally:
            search.stop()
        with looking_into(cluster.environment) as look:
            assert not soon(lambda: [what for what in look().values() if what not in OF_RAY])
    assert not soon(lambda: marked_processes(marker))
    assert len({one.trial_id for one in read_records(run_dir / TRIALS_FILE)}) == 2
    assert len(trained) == 2
    assert HEAD not in trained.values()
