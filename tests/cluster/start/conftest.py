"""A server that serve/start.py runs: Ray, two replicas, the front; and clients that say what they are told."""

import http.client
import io
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from benchmarks.parts.usage import family
from bintally.checkpoint import save_checkpoint
from bintally.model import build_model
from bintally.ports import free_port
from bintally.recipes import smoke

ROOT = Path(__file__).parents[3]
TOKEN = "a-token-of-this-test"  # noqa: S105  # opens nothing


def make_photo(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((480, 360)).save(file, "JPEG", quality=90)
    return file.getvalue()


PHOTO = make_photo()


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

    token: ClassVar = TOKEN
    num_replicas: ClassVar = 2
    max_in_flight: ClassVar = 8
    body_timeout_s: ClassVar = 3.0

    process: "subprocess.Popen[str]"
    port: int
    config_path: Path
    log_path: Path
    checkpoints: tuple[Path, Path]

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request by a new client."""
        return Client(self.port).ask(path, body, **headers)

    def count(self, port: int | None = None, context: ssl.SSLContext | None = None, **headers: str) -> Answer:
        """POST a photo, to this server or to another front before its replicas."""
        return Client(port or self.port, context).ask("/v1/count", PHOTO, **headers)

    def pids(self, name: str) -> list[int]:
        """Processes of the server whose command line has a name."""
        return [pid for pid in family(self.process.pid) if name in command_line(pid)]

    def configure(self, *, num_replicas: int = 2, **settings: object) -> None:
        """Write the config file."""
        config = yaml.safe_load((ROOT / "serve/config.yaml").read_text())
        deployment = config["applications"][0]["deployments"][0]
        deployment["num_replicas"] = num_replicas
        mine = {
            "checkpoint": str(self.checkpoints[0]),
            "max_in_flight": self.max_in_flight,
            "body_timeout_s": self.body_timeout_s,
            "token_file": str(self.config_path.with_name("tokens")),
        }
        deployment["user_config"] |= mine | settings
        self.config_path.write_text(yaml.safe_dump(config))

    def replica_ports(self) -> list[int]:
        """All ports on which the front looks for replicas."""
        (haproxy,) = self.pids("haproxy.cfg")
        arguments = command_line(haproxy).split("\0")
        lines = Path(arguments[arguments.index("-f") + 1]).read_text().split("server replica-")[1:]
        return [int(line.split()[0]) for line in lines]

    def reload(self, *, until: str = "reloaded", within_s: float = 90) -> None:
        """Have the file read again, and wait for a line of the log."""
        before = self.log_path.read_text().count(until)
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.log_path.read_text().count(until) > before, within_s, self.log_path)

    @contextmanager
    def load(self, num_clients: int = 4) -> Iterator[list[Answer]]:
        """Clients that send photos all the time meanwhile; what they are told."""
        answers: list[Answer] = []
        done = threading.Event()

        def send() -> None:
            client = Client(self.port)
            while not done.is_set():
                answers.append(client.ask("/v1/count", PHOTO))
                if answers[-1].status != 200:
                    time.sleep(0.05)

        with ThreadPoolExecutor(num_clients) as pool:
            for _ in range(num_clients):
                pool.submit(send)
            try:
                yield answers
            finally:
                done.set()


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


@pytest.fixture(scope="session", name="wait_until")
def _wait_until() -> Callable[..., float]:
    """`wait_until(true, within_s)`: seconds until something holds."""
    return wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve-ray")
    recipe, checkpoints = smoke(), (folder / "a", folder / "b")
    for seed, path in enumerate(checkpoints):
        torch.manual_seed(seed)
        save_checkpoint(path, build_model(recipe.model, num_classes=recipe.data.num_classes), recipe, {})
    (folder / "tokens").write_text(f"{TOKEN}\n")
    port = free_port()
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
