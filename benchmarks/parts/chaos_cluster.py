"""A Ray cluster of several nodes on this machine, any of which can be killed as if its machine were switched off.

The head has no CPUs and each worker node has two. All nodes are started by one process of its own, which takes a
command per line (`add NAME`, `kill NAME`), since Ray's own `Cluster` must stay in a main thread.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from benchmarks.parts.usage import family
from bintally.errors import RunError

ROOT: Final = Path(__file__).resolve().parents[2]
HEAD: Final = "head"
CPUS_OF_A_NODE: Final = 2
END_S: Final = 60.0
_ENVIRONMENT: Final = {
    "RAY_AUTH_MODE": "token",
    "RAY_worker_maximum_startup_concurrency": "8",  # as data/session.py has it; the default warns at each trial
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",  # how soon a training sees that its node is drained
}


class RayCluster:
    """A running cluster, as who breaks it sees it."""

    def __init__(self, process: "subprocess.Popen[str]", log_path: Path) -> None:
        self._process, self._log_path = process, log_path
        self._raylets: dict[str, int] = {}
        self.address: str = self._answer()["address"]
        """Of its GCS."""

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which a command joins it."""
        return {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token"}

    def add(self, name: str) -> None:
        """Start a node; returns once the cluster has it. Its instance id, as a cloud gives one, is its name."""
        self._raylets[name] = self._ask("add", name)["raylet"]

    def kill(self, name: str) -> None:
        """Kill -9 all processes of a node. Of the head that is the GCS, too, but not what others started there."""
        self._raylets.pop(name, None)
        self._ask("kill", name)

    def workers(self, kind: str) -> list[int]:
        """Process ids of Ray workers of all nodes whose title begins so, as `RayTrainWorker`."""
        return [pid for pid in family(self._process.pid) if title_of(pid).startswith(f"ray::{kind}")]

    def node_of(self, pid: int) -> str:
        """The node on which a worker runs."""
        return next((name for name, raylet in self._raylets.items() if pid in family(raylet)), HEAD)

    def _ask(self, verb: str, name: str) -> dict[str, Any]:
        print(verb, name, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RunError(f"the cluster ended: {self._log_path.read_text()[-500:].strip()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def running_cluster(nodes: Sequence[str], log_path: Path, variables: Mapping[str, str]) -> Iterator[RayCluster]:
    """A cluster of a head and named worker nodes, which ends with the block.

    Args:
        nodes: names of the worker nodes.
        log_path: takes what its processes print.
        variables: which all its processes have in their environment.

    Raises:
        RunError: it does not start.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}  # of another cluster
    # Its own, or others' commands would find it there; short, since paths of sockets are.
    with (
        tempfile.TemporaryDirectory(prefix="bt-", dir="/tmp", ignore_cleanup_errors=True) as temp_dir,
        log_path.open("w") as log,
    ):
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.parts.chaos_cluster"],
            cwd=ROOT,
            env={**inherited, **_ENVIRONMENT, "RAY_TMPDIR": temp_dir, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C is for us, who end it in order
        )
        try:
            cluster = RayCluster(process, log_path)
            for name in nodes:
                cluster.add(name)
            yield cluster
        finally:
            _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    with suppress(subprocess.TimeoutExpired, BrokenPipeError):
        process.communicate(timeout=END_S)
    for pid in family(process.pid) if process.poll() is None else []:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def title_of(pid: int) -> str:
    """The title of a process, which of Ray's workers says what they run; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def main() -> None:
    """The process that starts the nodes."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": 0})
    nodes: dict[str, Any] = {HEAD: cluster.head_node}
    print(json.dumps({"address": cluster.address}), flush=True)
    for line in sys.stdin:
        verb, name = line.split()
        if verb == "add":
            nodes[name] = cluster.add_node(num_cpus=CPUS_OF_A_NODE, env_vars={"RAY_CLOUD_INSTANCE_ID": name})
            raylet = dict(nodes[name].live_processes())["raylet"]
            print(json.dumps({"raylet": raylet.pid}), flush=True)
            continue
        node = nodes.pop(name)
        for pid in [pid for _, process in node.live_processes() for pid in family(process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        cluster.remove_node(node, allow_graceful=False)  # waits for what was killed
        print(json.dumps({}), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
