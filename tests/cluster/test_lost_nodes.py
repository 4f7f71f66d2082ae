"""Nodes go while a training runs: with a notice, or at once. It ends on what is left, with the same numbers.

No deadline here says how fast anything is: what has to happen in the midst of a training finds it held, or without end.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from benchmarks.parts.usage import family
from train.run_folder import METRICS_FILE, read_epochs
from train.state import PARTIAL
from train.storage import RECORD_FILE

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 400  # for what takes 10 to 30 on two quiet cores
NUM_EPOCHS = 12


class Nodes:
    """A Ray in a process of its own: a head without CPUs, and nodes of two CPUs each, by name."""

    CODE = """if True:
        import sys
        from ray.cluster_utils import Cluster

        settings = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000}  # else it takes 15 s
        cluster = Cluster(True, head_node_args={"num_cpus": 0, "dashboard_port": 0, "_system_config": settings})
        nodes = {}
        print(cluster.address, flush=True)
        for line in sys.stdin:
            verb, name = line.split()
            if verb == "add":
                nodes[name] = cluster.add_node(num_cpus=2, env_vars={"RAY_CLOUD_INSTANCE_ID": name})
                print(nodes[name].all_processes["raylet"][0].process.pid, flush=True)
            else:
                cluster.remove_node(nodes.pop(name), allow_graceful=False)
                print("gone", flush=True)
        cluster.shutdown()
    """

    def __init__(self) -> None:
        env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", self.CODE], env=env, cwd=ROOT, **pipes)
        self.address = self._line()
        self._raylets: dict[str, int] = {}

    def add(self, name: str) -> None:
        self._raylets[name] = int(self._tell("add", name))

    def kill(self, name: str) -> None:
        """SIGKILL to all of its processes."""
        signal_all(family(self._raylets.pop(name)), signal.SIGKILL)
        self._tell("remove", name)

    def home_of(self, pid: int) -> str:
        """The node that a worker is on."""
        return next(name for name, raylet in self._raylets.items() if pid in family(raylet))

    def _tell(self, verb: str, name: str) -> str:
        assert self.process.stdin
        print(verb, name, file=self.process.stdin, flush=True)
        return self._line()

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        assert line, "no Ray started"
        return line

    def train_workers(self) -> list[int]:
        """Their process ids."""
        return [pid for pid in family(self.process.pid) if title_of(pid).startswith("ray::RayTrainWorker")]


@contextmanager
def held(pids: list[int]) -> Iterator[None]:
    """These processes stand still meanwhile."""
    signal_all(pids, signal.SIGSTOP)
    yield
    signal_all(pids, signal.SIGCONT)


def signal_all(pids: list[int], sent: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, sent)


def title_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    yield made
    try:
        made.process.communicate(timeout=PATIENCE_S)
    finally:
        made.process.kill()


class Command:
    """One of this project's, that joins a cluster; ends with the test."""

    def __init__(self, nodes: Nodes, folder: Path, *command: str, **variables: str) -> None:
        self._said = folder / f"said{len(list(folder.glob('said*')))}.txt"
        env = os.environ | {"RAY_ADDRESS": nodes.address, "RAY_AUTH_MODE": "token"} | variables
        with self._said.open("w") as said:
            self.process = subprocess.Popen([sys.executable, *command], env=env, cwd=ROOT, stdout=said, stderr=said)

    def said(self) -> str:
        return self._said.read_text()

    def epoch(self) -> int:
        """The newest one that it told of."""
        return max(map(int, re.findall(r"epoch (\d+)/", self.said())), default=0)

    def wait_for(self, happened: Callable[[], bool], *, look_s: float = 0.1) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not happened():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(look_s)

    def end(self) -> int:
        """Its exit code."""
        return self.process.wait(timeout=PATIENCE_S)


@pytest.fixture
def run(nodes: Nodes, tmp_path: Path) -> Iterator[Callable[..., Command]]:
    begun: list[Command] = []

    def begin(*command: str, **variables: str) -> Command:
        begun.append(Command(nodes, tmp_path, *command, **variables))
        return begun[-1]

    yield begin
    for one in begun:
        one.process.kill()
        one.process.wait()


# A node dies

ELASTIC_AND_FIXED = """if True:
    import sys
    from pathlib import Path

    import train.elastic
    from bintally.config import with_settings
    from bintally.recipes import smoke
    from data.args import ReadArgs, ResourceArgs

    train.elastic.RESIZE_S = 0.0  # before train.trainer takes it: nobody waits a minute for a larger group
    from train.run import fit

    source, run_dir, num_epochs = sys.argv[1:]
    settings = [f"max_epochs={num_epochs}", "optim.optimizer=sgd", "optim.lr=0.01", f"data.source={source}"]
    recipe = with_settings(smoke(), settings)
    for name, resources in (("elastic", ResourceArgs(num_workers=2, min_workers=1)), ("fixed", ResourceArgs())):
        (Path(run_dir) / name).mkdir()
        fit(recipe, ReadArgs(max_dropped="10%"), resources, Path(run_dir) / name)
"""


def test_a_training_goes_on_with_the_workers_that_are_left_and_with_more_when_a_node_comes(
    nodes: Nodes, run: Callable[..., Command], synthetic_bucket: Path, tmp_path: Path
) -> None:
    nodes.add("a")
    nodes.add("b")
    source = f"file://{synthetic_bucket}"
    training = run("-c", ELASTIC_AND_FIXED, source, str(tmp_path), str(NUM_EPOCHS), PYTHONPATH=str(ROOT))
    training.wait_for(lambda: len(nodes.train_workers()) == 2, look_s=0.5)  # a look costs 20 ms
    both = nodes.train_workers()
    home = nodes.home_of(both[0])  # perhaps both of them are there
    training.wait_for(lambda: training.epoch() > 0)
    with held(both):
        nodes.kill(home)
    training.wait_for(lambda: "train: goes on with 1 of 2 workers" in training.said())
    alone, before = nodes.train_workers(), training.epoch()
    training.wait_for(lambda: training.epoch() > before)
    with held(alone):
        nodes.add("c")
    training.wait_for(lambda: "train: goes on with 2 of 2 workers" in training.said())
    assert training.end() == 0, training.said()

    elastic, fixed = (read_epochs(tmp_path / name / METRICS_FILE) for name in ("elastic", "fixed"))
    workers = [epoch["num_workers"] for epoch in elastic]
    assert [number for number, before in zip(workers, [0, *workers], strict=False) if number != before] == [2, 1, 2]
    assert {epoch["num_images"] for epoch in elastic + fixed} == {fixed[0]["num_images"]}
    for name in ("epoch", "lr", "train_loss", "val_nll"):
        assert [one[name] for one in elastic] == pytest.approx([one[name] for one in fixed], rel=1e-4)


# A spot node gets its notice

INSTANCE = "i-0spot"


class Metadata(BaseHTTPRequestHandler):
    """What EC2 tells the spot node of itself; `notice` once it is to go."""

    notice = ""

    def do_PUT(self) -> None:
        self._answer("token")

    def do_GET(self) -> None:
        known = {"instance-id": INSTANCE, "instance-life-cycle": "spot", "spot/instance-action": type(self).notice}
        self._answer(known[self.path.removeprefix("/latest/meta-data/")])

    def _answer(self, text: str) -> None:
        self.send_response(200 if text else 404)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def metadata_url() -> Iterator[str]:
    Metadata.notice = ""
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_notice_makes_a_checkpoint_though_no_data_come_and_the_training_goes_on_elsewhere(
    nodes: Nodes, run: Callable[..., Command], metadata_url: str, synthetic_bucket: Path, tmp_path: Path
) -> None:
    nodes.add(INSTANCE)
    watching = run("-m", "train.spot", f"--address={nodes.address}", AWS_EC2_METADATA_SERVICE_ENDPOINT=metadata_url)
    flags = ["--recipe", "smoke", "--source", f"file://{synthetic_bucket}", "--stream", "--max-dropped", "10%"]
    # Without end. So few steps an epoch that none of them asks for a notice: only the wait for data does.
    flags += ["--set", "max_epochs=100000", "optim.global_batch_size=64", "--run-dir", str(tmp_path)]
    training = run("train/fit.py", *flags)
    metrics, record = tmp_path / METRICS_FILE, tmp_path / "train" / RECORD_FILE
    training.wait_for(lambda: training.epoch() > 0)
    due = datetime.now(UTC) + timedelta(seconds=600)
    Metadata.notice = json.dumps({"action": "terminate", "time": f"{due:%Y-%m-%dT%H:%M:%SZ}"})
    assert watching.end() == 0
    assert watching.said().endswith("drained\n")
    # The node takes no more data tasks, and no other one has CPUs: the training stands still.
    training.wait_for(lambda: newest_checkpoint(record).get(PARTIAL, False))
    training.wait_for(lambda: "train: a node is taken away" in training.said())
    nodes.add("other")
    nodes.kill(INSTANCE)
    stood_at = training.epoch()
    training.wait_for(lambda: training.epoch() > stood_at)
    training.process.send_signal(signal.SIGINT)
    assert training.end() == 130, training.said()
    told = [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()]
    assert told == [*range(1, len(told) + 1)]


def newest_checkpoint(record: Path) -> dict[str, Any]:
    """The figures of the checkpoint that Train goes on from."""
    with suppress(json.JSONDecodeError):  # it is being written
        newest: dict[str, Any] = json.loads(record.read_text())["latest_checkpoint_result"]["metrics"]
        return newest
    return {}
