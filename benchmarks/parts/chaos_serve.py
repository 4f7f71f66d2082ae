"""Faults of the server on a cluster, each done once under load: replicas, their node, both ways in, the controller.

The application of serve/config.yaml, deployed with two replicas on two of three worker nodes. Clients ask the front
(serve/front.py), or Ray Serve's own proxy on the head, which is what `make serve-up` gives.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.parts.chaos_clients import Heard, ask, clients_asking, is_healthy, longest_silence, words_of
from benchmarks.parts.chaos_cluster import ROOT, RayCluster, running_cluster, title_of
from benchmarks.parts.chaos_row import ChaosSetup, FaultRow
from benchmarks.parts.chaos_search import MARKER, marked_processes, soon
from benchmarks.parts.served_model import make_checkpoint, make_photo
from benchmarks.parts.usage import family
from bintally.errors import RunError
from bintally.ports import free_port
from data.progress import say

NODES: Final = ("a", "b", "c")
NUM_REPLICAS: Final = 2
NUM_PORTS: Final = 16
LIMIT_S: Final = 240.0  # for a start, and again for what a fault takes away
OUTAGE_LIMIT_S: Final = 10.0  # beyond which a server was not back within seconds


@dataclass(frozen=True, slots=True)
class Served:
    """The application on a cluster, as who breaks it sees it."""

    cluster: RayCluster
    ports: range
    """The replicas listen at some of these."""
    front: "subprocess.Popen[bytes]"
    front_port: int
    proxy_port: int

    def haproxy(self) -> list[int]:
        """Process ids of the front's HAProxy."""
        return [pid for pid in family(self.front.pid) if "haproxy.cfg" in title_of(pid)]

    def is_whole(self) -> bool:
        """Whether all replicas answer."""
        return sum(is_healthy(port) for port in self.ports) == NUM_REPLICAS


Find = Callable[[Served], Sequence[int]]
"""The processes of a kind, by their ids."""


def replicas(served: Served) -> list[int]:
    """Process ids of the replicas."""
    return sorted(served.cluster.workers("ServeReplica"))


def kill_one(find: Find, served: Served, dice: random.Random) -> None:
    """Kill -9 of one process of a kind."""
    os.kill(dice.choice(find(served)), signal.SIGKILL)


def kill_node(served: Served, dice: random.Random) -> None:
    """Kill -9 of all processes of a node that holds a replica."""
    served.cluster.kill(served.cluster.node_of(dice.choice(replicas(served))))


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What is killed, how, and who is asked meanwhile."""

    what: str
    """In words."""
    find: Find
    """Processes, of which there are as many again afterwards, and at least one of them new."""
    kill: Callable[[Served, random.Random], None]
    by_front: bool = True
    """Clients ask the front; else Ray's own proxy."""


def run_fault(setup: ChaosSetup, fault: Fault) -> FaultRow:
    """Ask, kill, go on to ask until everything is as before.

    Raises:
        RunError: the server does not start.
    """
    dice = random.Random(f"{setup.seed} {setup.work_dir.name}")  # noqa: S311  # no secrets
    with ExitStack() as stack:
        served, photo = start_server(setup.work_dir, stack)
        before = fault.find(served)
        with clients_asking(served.front_port if fault.by_front else served.proxy_port, photo, dice) as heard:
            time.sleep(dice.uniform(2, 3 if setup.quick else 6))
            struck = time.monotonic()
            fault.kill(served, dice)
            say(f"  {fault.what} killed")

            def is_back() -> bool:
                now = fault.find(served)
                last = heard.probes[-1:]
                answers = bool(last) and last[0].status == HTTPStatus.OK and last[0].ended > struck
                return bool(answers and len(now) == len(before) and {*now} - {*before} and served.is_whole())

            back_s = seconds_until(is_back)
            time.sleep(2 if setup.quick else 5)
    left = soon(partial(marked_processes, str(setup.work_dir)))
    return judge(setup.work_dir.name, fault.what, heard, struck, back_s, left)


def judge(name: str, what: str, heard: Heard, struck: float, back_s: float | None, left: Sequence[str]) -> FaultRow:
    """The row of a fault.

    Args:
        name: of the fault.
        what: was killed.
        heard: by all clients.
        struck: when, by `time.monotonic()`.
        back_s: until there were as many processes as before, and answers; None if that did not come.
        left: commands that outlived the cluster.
    """
    outage_s = longest_silence(heard, struck)
    failed = Counter(words_of(one) for tries in heard.requests for one in tries if one.status != HTTPStatus.OK)
    wrong = [f"left running: {one}" for one in left] + (["not all of it came back"] if back_s is None else [])
    if heard.num_lost:
        wrong.append(f"{heard.num_lost} requests never got a count")
    if outage_s > OUTAGE_LIMIT_S:
        wrong.append(f"{outage_s:.1f} s without an answer, more than {OUTAGE_LIMIT_S:.0f}")
    words = ", ".join(f"{number} {word}" for word, number in failed.most_common())
    told = f"{what} killed: of {len(heard.requests)} requests {heard.num_again} were sent again"
    after = [] if back_s is None else [f"as before after {back_s:.1f} s"]
    return FaultRow(
        name=name,
        recovered=not wrong,
        lost=heard.num_lost,
        repeated_epochs=None,
        outage_s=round(outage_s, 1),
        told="; ".join([told + (f" (tries: {words})" if words else ""), *after, *wrong]),
    )


def start_server(folder: Path, stack: ExitStack) -> tuple[Served, bytes]:
    """The application on a new cluster, with the front before it, once both ways in count a photo; and that photo.

    Raises:
        RunError: it does not start.
    """
    photo = make_photo(None)
    make_checkpoint(folder / "checkpoint", photo, with_graphs=False)
    first = 20_000 + os.getpid() * NUM_PORTS % 10_000  # replicas pass over ports that somebody has
    ports, front_port, proxy_port = range(first, first + NUM_PORTS), free_port(), free_port()
    (folder / "serve.yaml").write_text(yaml.safe_dump(config_of(folder / "checkpoint", proxy_port)))
    variables = {  # the replicas listen for a front; beside that, Ray's own proxy stays, looked at as in cluster.yaml
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.25",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports.start),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports.stop),
        MARKER: str(folder),
    }
    cluster = stack.enter_context(running_cluster(NODES, folder / "cluster.log", variables))
    with (folder / "deploy.log").open("w") as log:
        program = Path(sys.executable).with_name("serve")
        command: list[str | Path] = [program, "run", folder / "serve.yaml", "--non-blocking"]
        env = os.environ | cluster.environment | variables
        if subprocess.run(command, cwd=ROOT, env=env, stdout=log, stderr=log, check=False).returncode:
            raise RunError(f"the application was not deployed; {folder}/deploy.log tells why")
    flags = ["--port", front_port, "--first-replica-port", first, "--num-replica-ports", NUM_PORTS]
    with (folder / "front.log").open("w") as log:
        front = subprocess.Popen(
            [sys.executable, "-m", "serve.front", *map(str, flags)],
            cwd=ROOT,
            env=os.environ | {MARKER: str(folder)},
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us, who end it in order
        )
    stack.callback(front.wait)
    stack.callback(front.terminate)
    served = Served(cluster, ports, front, front_port, proxy_port)

    def is_ready() -> bool:
        return served.is_whole() and all(ask(port, photo).status == HTTPStatus.OK for port in (front_port, proxy_port))

    if seconds_until(is_ready) is None:
        raise RunError(f"the server did not count within {LIMIT_S:.0f} s; its logs are in {folder}")
    return served, photo


def config_of(checkpoint: Path, proxy_port: int) -> dict[str, Any]:
    """serve/config.yaml with two replicas, each on a node of its own."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve/config.yaml").read_text())
    config["http_options"]["port"] = proxy_port
    (deployment,) = config["applications"][0]["deployments"]
    deployment |= {"num_replicas": NUM_REPLICAS, "max_replicas_per_node": 1}
    deployment["user_config"]["checkpoint"] = str(checkpoint)
    return config


def seconds_until(is_so: Callable[[], bool]) -> float | None:
    """How long it takes; None if it takes too long."""
    began = time.monotonic()
    while time.monotonic() < began + LIMIT_S:
        if is_so():
            return time.monotonic() - began
        time.sleep(0.2)
    return None


def _workers(kind: str) -> Find:
    return lambda served: served.cluster.workers(kind)


FAULTS: Final = {
    "serve_replica": Fault(what="a replica", find=replicas, kill=partial(kill_one, replicas)),
    "serve_replica_by_proxy": Fault(
        what="a replica behind Ray's own proxy", find=replicas, kill=partial(kill_one, replicas), by_front=False
    ),
    "serve_node": Fault(what="a node with a replica", find=replicas, kill=kill_node),
    "serve_controller": Fault(
        what="Serve's controller", find=_workers("ServeController"), kill=partial(kill_one, _workers("ServeController"))
    ),
    "serve_front": Fault(what="the front's HAProxy", find=Served.haproxy, kill=partial(kill_one, Served.haproxy)),
    "serve_proxy": Fault(
        what="Ray's own proxy",
        find=_workers("ProxyActor"),
        kill=partial(kill_one, _workers("ProxyActor")),
        by_front=False,
    ),
}
ROWS: Final[dict[str, Callable[[ChaosSetup], FaultRow]]] = {
    name: partial(run_fault, fault=fault) for name, fault in FAULTS.items()
}
