"""The command that starts a server, on Ray, behind the front: two replicas under faults, overload and change.

One server for the whole file; each test leaves it as it was, but for the last two.
"""

import http.client
import io
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from benchmarks.parts.usage import family
from bintally.checkpoint import load_checkpoint, save_checkpoint
from bintally.model import build_model
from bintally.recipes import smoke
from serve.front import FrontConfig
from serve.front_process import running_front

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-this-test"  # noqa: S105  # opens nothing
MAX_IN_FLIGHT = 8
BODY_TIMEOUT_S = 3.0
NUM_REPLICAS = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client was told, or 0 if the connection broke."""

    status: int
    seconds: float
    body: Any = None
    retry_after: str | None = None


class Client:
    """A client with one kept connection."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        if context:
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                "127.0.0.1", port, timeout=30, context=context
            )
        else:
            self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """GET, or POST of a photo; a broken connection is an answer of status 0."""
        fields = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "image/jpeg"}
        fields |= {key.replace("_", "-"): value for key, value in headers.items()}
        begun = time.monotonic()
        try:
            self._connection.request("GET" if body is None else "POST", path, body, fields)
            response = self._connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return Answer(0, time.monotonic() - begun)
        is_json = "json" in response.headers.get("Content-Type", "")
        told: Any = json.loads(data) if is_json else data.decode()
        return Answer(response.status, time.monotonic() - begun, told, response.headers.get("Retry-After"))


@dataclass(frozen=True, slots=True)
class Server:
    """A running server and its files."""

    process: "subprocess.Popen[str]"
    port: int
    config_path: Path
    log_path: Path
    checkpoints: tuple[Path, Path]

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> Answer:
        return Client(self.port).ask(path, body, **headers)

    def pids(self, name: str) -> list[int]:
        """Processes of the server whose command line has a name."""
        return [pid for pid in family(self.process.pid) if name in command_line(pid)]

    def configure(self, *, num_replicas: int = NUM_REPLICAS, **settings: object) -> None:
        """Write the config file."""
        config = yaml.safe_load((ROOT / "serve/config.yaml").read_text())
        deployment = config["applications"][0]["deployments"][0]
        deployment["num_replicas"] = num_replicas
        mine = {
            "checkpoint": str(self.checkpoints[0]),
            "max_in_flight": MAX_IN_FLIGHT,
            "body_timeout_s": BODY_TIMEOUT_S,
        }
        mine["token_file"] = str(self.config_path.with_name("tokens"))
        deployment["user_config"] |= mine | settings
        self.config_path.write_text(yaml.safe_dump(config))

    def reload(self, *, until: str = "reloaded", within_s: float = 90) -> None:
        """Have the file read again, and wait for a line of the log."""
        before = self.log_path.read_text().count(until)
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.log_path.read_text().count(until) > before, within_s, self.log_path)


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def wait_until(true: Callable[[], object], within_s: float, log_path: Path | None = None) -> float:
    """Seconds until something holds."""
    begun = time.monotonic()
    while not true():
        if time.monotonic() > begun + within_s:
            raise AssertionError(log_path.read_text() if log_path else f"not within {within_s} s")
        time.sleep(0.1)
    return time.monotonic() - begun


def make_photo(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((480, 360)).save(file, "JPEG", quality=90)
    return file.getvalue()


PHOTO = make_photo()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve-ray")
    recipe, checkpoints = smoke(), (folder / "a", folder / "b")
    for seed, path in enumerate(checkpoints):
        torch.manual_seed(seed)
        save_checkpoint(path, build_model(recipe.model, num_classes=recipe.data.num_classes), recipe, {})
    (folder / "tokens").write_text(f"{TOKEN}\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    temp_dir = tempfile.mkdtemp(prefix="bt-", dir="/tmp")  # short, for unix sockets
    with (folder / "log").open("w") as log:
        flags = ["--config", str(folder / "config.yaml"), "--port", str(port)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        Server(None, port, folder / "config.yaml", folder / "log", checkpoints).configure()  # type: ignore[arg-type]
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "serve/start.py"), *flags],
            cwd=folder,
            env=environment | {"TMPDIR": temp_dir},
            stdout=log,
            stderr=log,
            text=True,
        )
    running = Server(process, port, folder / "config.yaml", folder / "log", checkpoints)
    try:
        wait_until(lambda: process.poll() is not None or "serving at" in running.log_path.read_text(), 200)
        assert process.poll() is None, running.log_path.read_text()
        yield running
    finally:
        started = family(process.pid)
        process.terminate()
        try:
            process.wait(60)
        finally:
            for pid in started:
                if Path(f"/proc/{pid}").exists():
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(temp_dir, ignore_errors=True)


@contextmanager
def load(server: Server, num_clients: int = 4, pause_s: float = 0.0) -> Iterator[list[Answer]]:
    """Clients that send photos all the time meanwhile; what they are told."""
    answers: list[Answer] = []
    done = threading.Event()

    def send() -> None:
        client = Client(server.port)
        while not done.is_set():
            answers.append(client.ask("/v1/count", PHOTO))
            if answers[-1].status != 200 or pause_s:
                time.sleep(max(pause_s, 0.05))

    with ThreadPoolExecutor(num_clients) as pool:
        for _ in range(num_clients):
            pool.submit(send)
        try:
            yield answers
        finally:
            done.set()


def statuses(answers: list[Answer]) -> Counter[int]:
    return Counter(one.status for one in answers)


# --- What is served -------------------------------------------------------------------------------------------------


def test_it_counts_as_the_checkpoint_does(server: Server) -> None:
    answer = server.ask("/v1/count", PHOTO, X_Request_ID="mine")
    assert answer.status == 200, answer.body
    assert answer.body["model"]["version"] == load_checkpoint(server.checkpoints[0]).version
    assert answer.body["request_id"] == "mine"


def test_the_token_is_asked_for(server: Server) -> None:
    answer = server.ask("/v1/count", PHOTO, Authorization="Bearer another")
    assert (answer.status, answer.body["code"]) == (401, "unauthorized")
    assert server.ask("/readyz", Authorization="").status == 200


def test_a_deadline_of_the_client_is_a_problem_of_ours_not_rays(server: Server) -> None:
    answer = server.ask("/v1/count", PHOTO, X_Request_Timeout_Seconds="0.000001")
    assert (answer.status, answer.body["code"]) == (504, "deadline_exceeded")


def test_nothing_listens_beyond_this_machine_for_requests(server: Server) -> None:
    ports = {server.port, *replica_ports(server)}
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if " 0A " in line]
    mine = {address for address in listening if int(address.split(":")[1], 16) in ports}
    assert len(mine) == 1 + NUM_REPLICAS
    assert {address.split(":")[0] for address in mine} == {"0100007F"}  # 127.0.0.1


def replica_ports(server: Server) -> list[int]:
    """All ports on which the front looks for replicas."""
    (haproxy,) = server.pids("haproxy.cfg")
    arguments = command_line(haproxy).split("\0")
    lines = Path(arguments[arguments.index("-f") + 1]).read_text().split("server replica-")[1:]
    return [int(line.split()[0]) for line in lines]


def test_tls_and_a_rate_limit_before_the_same_replicas(server: Server, tmp_path: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", "key", "-out", "cert"], cwd=tmp_path, check=True, capture_output=True)
    pem = tmp_path / "both.pem"
    pem.write_text((tmp_path / "cert").read_text() + (tmp_path / "key").read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ports = replica_ports(server)
    config = FrontConfig(port=port, first_replica_port=ports[0], num_replica_ports=len(ports), tls_cert=pem)
    with running_front(replace(config, rate_limit=3)):
        client = Client(port, ssl.create_default_context(cafile=str(pem)))
        answers = [client.ask("/v1/count", PHOTO) for _ in range(12)]
    assert answers[0].status == 200
    # 0: what is refused before all of its body has come may end the connection before the client has read the answer.
    assert set(statuses(answers)) - {0} == {200, 429}
    assert {one.retry_after for one in answers if one.status == 429} == {"1"}


def test_the_metrics_of_both_replicas_add_up(server: Server) -> None:
    def counted() -> float:
        lines = server.ask("/metrics").body.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("bintally_photos_counted_total{"))

    before = counted()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: server.ask("/v1/count", PHOTO), range(40)))
    assert statuses(answers) == {200: 40}
    assert [counted() - before for _ in range(4)] == [40.0] * 4  # whichever replica tells


# --- Clients that are slow or many ----------------------------------------------------------------------------------


def test_300_slow_senders_starve_nobody(server: Server) -> None:
    head = (
        b"POST /v1/count HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nAuthorization: Bearer %s\r\n"
        % TOKEN.encode()
    )
    with ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20)) for _ in range(300)
        ]
        for number, client in enumerate(slow):
            client.sendall(head + (b"Content-Length: 50000\r\n\r\n\xff" if number % 2 else b"X-Slow: "))
        begun = time.monotonic()
        answers = [server.ask("/v1/count", PHOTO) for _ in range(10)]
        assert statuses(answers) == {200: 10}
        assert time.monotonic() - begun < BODY_TIMEOUT_S  # so all of them were held meanwhile
        told = [client.recv(65_536) for client in slow]
    assert {answer[:13] for answer in told} == {b"HTTP/1.1 408 "}
    lines = server.ask("/metrics").body.splitlines()
    assert not [line for line in lines if 'status="408"' in line]  # no replica has heard of them


def test_overload_is_503_with_retry_after_and_passes_at_once(server: Server) -> None:
    with load(server, num_clients=4 * NUM_REPLICAS * MAX_IN_FLIGHT) as answers:
        time.sleep(8)
    told = statuses(answers)
    assert set(told) == {200, 503}
    assert told[200] > 50
    assert {(one.retry_after, one.body["code"]) for one in answers if one.status == 503} == {("1", "overloaded")}
    accepted = sorted(one.seconds for one in answers if one.status == 200)
    assert accepted[int(0.99 * len(accepted))] < 5
    recovery_s = wait_until(lambda: server.ask("/v1/count", PHOTO).status == 200, 5)
    assert recovery_s < 5
    assert statuses([server.ask("/v1/count", PHOTO) for _ in range(10)]) == {200: 10}


# --- Processes that die ---------------------------------------------------------------------------------------------


def test_kill_9_of_a_replica_fails_only_what_it_worked_on(server: Server) -> None:
    replicas = server.pids("ray::ServeReplica")
    assert len(replicas) == NUM_REPLICAS
    with load(server) as answers:
        time.sleep(1)
        os.kill(replicas[0], signal.SIGKILL)
        time.sleep(3)
    failed = [one for one in answers if one.status != 200]
    assert len(failed) <= 4  # as many as clients
    assert {(one.status, one.retry_after, one.body["code"]) for one in failed} <= {(502, "1", "replica_lost")}
    assert statuses(answers)[200] > 20
    wait_until(lambda: len(set(server.pids("ray::ServeReplica")) - {replicas[0]}) == NUM_REPLICAS, 60)


def test_kill_9_of_the_front_is_over_in_seconds(server: Server) -> None:
    (haproxy,) = server.pids("haproxy.cfg")
    os.kill(haproxy, signal.SIGKILL)
    assert wait_until(lambda: server.ask("/v1/count", PHOTO).status == 200, 10) < 5
    assert haproxy not in server.pids("haproxy.cfg")


# --- Changes --------------------------------------------------------------------------------------------------------


def test_a_model_is_swapped_without_a_failed_request(server: Server) -> None:
    replicas = sorted(server.pids("ray::ServeReplica"))
    new = load_checkpoint(server.checkpoints[1]).version
    with load(server) as answers:
        server.configure(checkpoint=str(server.checkpoints[1]))
        server.reload()
        wait_until(lambda: {one.body["model"]["version"] for one in answers[-8:]} == {new}, 30)
    assert set(statuses(answers)) == {200}
    assert {one.body["model"]["version"] for one in answers} == {new, load_checkpoint(server.checkpoints[0]).version}
    assert sorted(server.pids("ray::ServeReplica")) == replicas


def test_what_cannot_be_loaded_leaves_all_as_it_was(server: Server) -> None:
    version = server.ask("/v1/count", PHOTO).body["model"]["version"]
    server.configure(checkpoint="/nonexistent/checkpoint")
    server.reload(until="error: nothing was reloaded: no checkpoint at /nonexistent/checkpoint")
    assert server.ask("/v1/count", PHOTO).body["model"]["version"] == version


def test_a_replica_that_is_taken_away_loses_no_request(server: Server) -> None:
    with load(server) as answers:
        server.configure(num_replicas=1)
        server.reload()
        wait_until(lambda: len(server.pids("ray::ServeReplica")) == 1, 60)
    assert set(statuses(answers)) == {200}


def test_sigterm_answers_what_is_under_way_and_leaves_no_process(server: Server) -> None:
    started = family(server.process.pid)
    with load(server, 2) as answers:
        time.sleep(0.5)
        server.process.terminate()
        server.process.wait(60)
    assert server.process.returncode == 143
    # A kept connection may be closed between two requests; a request that was begun is answered.
    begun = [one for one in answers if one.status]
    assert set(statuses(begun)) <= {200, 503}
    wait_until(lambda: not [pid for pid in started if Path(f"/proc/{pid}").exists()], 20)
