"""The metrics of several processes, added up, without those that have ended."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COUNT = """
import sys
from pathlib import Path
from serve.telemetry import Instruments
instruments = Instruments(Path(sys.argv[3]), sys.argv[4])
instruments.tell_models([("default", sys.argv[1], "eager")])
instruments.counted.labels("default", 3).inc(int(sys.argv[2]))
instruments.in_flight.set(int(sys.argv[2]))
print("ready", flush=True)
while line := sys.stdin.readline().strip():
    instruments.tell_models([("default", line, "eager")])
    print(instruments.text().decode(), "ready", sep="\\n", flush=True)
"""


class Replica:
    """A process that has counted some photos."""

    def __init__(self, version: str, photos: int, folder: Path, node: str = "a") -> None:
        command = [sys.executable, "-W", "error", "-c", COUNT, version, str(photos), str(folder), node]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lines()

    def load(self, version: str) -> set[str]:
        """Load another model, then tell the metrics of all."""
        assert self._process.stdin is not None
        self._process.stdin.write(version + "\n")
        self._process.stdin.flush()
        return self._lines()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _lines(self) -> set[str]:
        assert self._process.stdout is not None
        lines = set(iter(lambda: self._process.stdout.readline().strip(), "ready"))  # type: ignore[union-attr]
        assert self._process.poll() is None
        return lines


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return tmp_path / "not" / "there"


def test_figures_of_two_replicas_add_up_and_a_dead_one_leaves_its_counts_alone(folder: Path) -> None:
    first, second = Replica("aaaaaa", 2, folder), Replica("aaaaaa", 5, folder)
    try:
        told = first.load("bbbbbb")
        assert 'bintally_photos_counted_total{count="3",model="default",node="a"} 7.0' in told
        assert 'bintally_photos_in_flight{node="a"} 7.0' in told
        # In the second one:
        assert 'bintally_model_info{model="default",node="a",runtime="eager",version="aaaaaa"} 1.0' in told
        assert 'bintally_model_info{model="default",node="a",runtime="eager",version="bbbbbb"} 1.0' in told
        second.kill()
        told = first.load("cccccc")
        assert 'bintally_photos_counted_total{count="3",model="default",node="a"} 7.0' in told
        assert 'bintally_photos_in_flight{node="a"} 2.0' in told
        assert 'bintally_model_info{model="default",node="a",runtime="eager",version="aaaaaa"} 0.0' in told
        assert 'bintally_model_info{model="default",node="a",runtime="eager",version="cccccc"} 1.0' in told
    finally:
        first.kill()
        second.kill()


def test_figures_of_two_nodes_are_series_of_their_own(folder: Path) -> None:
    # Scraped at one address, by turns: without the label each change of the node would be a counter that starts anew.
    here, there = Replica("aaaaaa", 2, folder / "1", "a"), Replica("aaaaaa", 5, folder / "2", "b")
    try:
        assert 'bintally_photos_counted_total{count="3",model="default",node="a"} 2.0' in here.load("aaaaaa")
        assert 'bintally_photos_counted_total{count="3",model="default",node="b"} 5.0' in there.load("aaaaaa")
    finally:
        here.kill()
        there.kill()
