"""The server as serve/config.yaml deploys it, on a head and three worker nodes: who counts, and what a kill loses."""

import json
import os
import random
import re
import signal
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from urllib.request import urlopen

import pytest

from benchmarks.parts.chaos_clients import clients_asking, is_healthy
from benchmarks.parts.chaos_cluster import HEAD
from benchmarks.parts.chaos_search import marked_processes, soon
from benchmarks.parts.chaos_serve import Served, replicas, seconds_until, start_server

pytestmark = [pytest.mark.cluster, pytest.mark.faults]


def num_counts(pid: int) -> int:
    """Photos that a replica has counted, by its own log."""
    files = (Path(os.readlink(link)) for link in Path(f"/proc/{pid}/fd").iterdir())  # noqa: PTH115  # sockets are no paths
    (log,) = {file for file in files if re.fullmatch(r"bintally_.*\.jsonl", file.name)}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return sum((line.get("route"), line.get("status")) == ("/v1/count", HTTPStatus.OK) for line in lines)


def counted_by_metrics(port: int) -> float:
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:  # our own server
        told = answer.read().decode()
    figures = re.findall(r'^bintally_photos_counted_total{[^}]*node="[^"]+"} (\S+)$', told, re.MULTILINE)
    return sum(map(float, figures))


def nodes_of(served: Served) -> set[str]:
    return {served.cluster.node_of(pid) for pid in replicas(served)}


def test_replicas_on_two_nodes_count_and_the_kill_of_one_loses_nothing(tmp_path: Path) -> None:
    with ExitStack() as stack:
        served, photo = start_server(tmp_path, stack)
        first, other = replicas(served)
        nodes = nodes_of(served)
        assert len(nodes) == 2
        assert HEAD not in nodes
        with clients_asking(served.front_port, photo, random.Random(0)) as heard:  # noqa: S311  # no secrets
            assert seconds_until(lambda: min(num_counts(first), num_counts(other)) > 2) is not None
            before = len(heard.requests)
            os.kill(first, signal.SIGKILL)
            assert seconds_until(lambda: first not in replicas(served) and served.is_whole()) is not None
        assert heard.num_lost == 0
        assert len(heard.requests) > before
        assert other in replicas(served)
        assert len(nodes_of(served)) == 2
        told = [counted_by_metrics(port) for port in served.ports if is_healthy(port)]
        assert len(told) == 2
        assert (
            told[0] == told[1] >= len(heard.requests)
        )  # whichever replica is asked, and with what the killed one counted
    assert not soon(lambda: marked_processes(str(tmp_path)))
