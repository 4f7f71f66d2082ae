"""The unpacked tarball where SageMaker would run it, with this repository out of reach.

`container` is the entry point of our own image. `ray` is what AWS's Ray Serve image does: `serve run config.yaml`, and
before it an adapter, of which `adapter` below is a stand-in that hands on, fills in and asks for what AWS's does.
"""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bintally.ports import free_port

# The interpreter behind the virtual environment: the environment's own would find this repository, which is installed
# there, and so would all of Ray's workers.
PYTHON = Path(sys.executable).resolve()
PACKAGES = sysconfig.get_paths()["purelib"]
RAY_IP = "127.0.0.2"  # Ray swaps 127.0.0.1 for the machine's public address; the rest of 127/8 stays
MAX_BODY_BYTES = 300_000

RAY_IMAGE = """
import sys
import ray
from ray import serve
from ray.serve.scripts import cli

ray.init("local", num_cpus=2, include_dashboard=False, namespace="serve", _node_ip_address=sys.argv[1])
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
cli(["run", sys.argv[3]])
"""

WAIT_FOR_FLAG = """
from sys import stderr as _stderr
from time import sleep as _sleep
_build_app = build_app

def build_app(model_dir):
    print("waiting", file=_stderr, flush=True)
    while not (model_dir / "flag").exists():
        _sleep(0.05)
    return _build_app(model_dir)
"""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a host answered."""

    status: int
    media_type: str
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401  # JSON has every shape
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Host:
    """A server that SageMaker would talk to."""

    port: int

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Reply(response.status, response.headers.get("Content-Type", ""), response.read())
        finally:
            connection.close()

    def status(self, path: str = "/ping") -> int:
        """What a GET is told; 0 if nobody listens."""
        try:
            return self.ask("GET", path).status
        except OSError:
            return 0

    def invoke(self, body: bytes, kind: str = "image/jpeg", **headers: str) -> Reply:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", "/invocations", body, {"Content-Type": kind, **fields})


def environment(*folders: Path, **variables: str) -> dict[str, str]:
    """Of a process that finds our code in these folders alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RAY_", "VIRTUAL"))}
    path = ":".join([*map(str, folders), PACKAGES])
    return kept | {"PYTHONPATH": path, "BINTALLY_MAX_BODY_BYTES": str(MAX_BODY_BYTES), **variables}


def wait_until_200(host: Host, path: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if host.status(path) == 200:
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} does not say 200: {log.read_text()[-3000:]}")


@dataclass(frozen=True, slots=True)
class Container:
    """Our own image, that may not have started yet."""

    host: Host
    process: "subprocess.Popen[bytes]"
    log: Path

    def wait(self) -> None:
        """Until it says that it is ready."""
        wait_until_200(self.host, "/ping", self.process, self.log)


@contextmanager
def run_container(model: Path, folder: Path) -> Iterator[Container]:
    """The entry point of our image, as SageMaker calls it."""
    host = Host(free_port())
    flags = ["-m", "serve.container", "--port", str(host.port), "--model-dir", str(model), "serve"]
    path = folder / "container.log"
    with path.open("wb") as log:
        process = subprocess.Popen([PYTHON, *flags], cwd=folder, env=environment(model / "code"), stderr=log)
    try:
        yield Container(host, process, path)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="session")
def running_container() -> Callable[[Path, Path], AbstractContextManager[Container]]:
    """`with running_container(model, folder) as container`: its log and working folder are there."""
    return run_container


@pytest.fixture(scope="module")
def container(packed_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Our own image, ready."""
    with run_container(packed_model, tmp_path_factory.mktemp("container")) as running:
        running.wait()
        yield running.host


def adapter(backend: str, *, patience_s: float) -> Starlette:
    """A stand-in for AWS's adapter, which passes these headers alone; its patience with a ping is 5 s."""
    client = httpx.AsyncClient(timeout=60)

    async def invoke(request: Request) -> Response:
        headers = {name: value for name, value in request.headers.items() if name.startswith("x-amzn-sagemaker-")}
        for name in ("content-type", "accept"):
            headers[name] = request.headers.get(name, "application/json")
        reply = await client.post(f"{backend}/", content=await request.body(), headers=headers)
        return Response(reply.content, reply.status_code, media_type=reply.headers.get("content-type"))

    async def ping(_: Request) -> Response:
        try:
            reply = await client.get(f"{backend}/-/healthz", timeout=patience_s)
        except httpx.HTTPError:
            return Response(status_code=503)
        return Response(status_code=200 if reply.status_code == 200 else 503)

    return Starlette(routes=[Route("/invocations", invoke, methods=["POST"]), Route("/ping", ping)])


@contextmanager
def running_adapter(backend: str) -> Iterator[Host]:
    """The stand-in, in a thread of this process."""
    host = Host(free_port())
    config = uvicorn.Config(adapter(backend, patience_s=1), port=host.port, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield host
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def copy_waiting(model: Path, folder: Path) -> Path:
    """A copy whose application waits for the file `flag` in it."""
    copied: Path = shutil.copytree(model, folder / "model")
    with (copied / "code/serve/container/app.py").open("a") as source:
        source.write(WAIT_FOR_FLAG)
    return copied


@pytest.fixture
def waiting_model(packed_model: Path, tmp_path: Path) -> Path:
    """An unpacked tarball that loads until it has a file `flag`."""
    return copy_waiting(packed_model, tmp_path)


@dataclass(frozen=True, slots=True)
class RayImage:
    """AWS's image."""

    host: Host
    early_ping: int
    """Its /ping when Ray's proxy said 200, but no replica had loaded the model."""


@pytest.fixture(scope="module")
def ray_image(packed_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayImage]:
    """AWS's Ray Serve image, with a model that takes as long to load as a test wants."""
    from serve.aws.bundle import RAY_IMAGE_ENVIRONMENT  # heavy

    folder = tmp_path_factory.mktemp("ray")
    model = copy_waiting(packed_model, folder)
    serve = Host(free_port())
    temporary = tempfile.mkdtemp(prefix="bt-")  # short: unix sockets below it allow 107 characters
    variables = environment(
        model,
        model / "code",
        RAY_TMPDIR=temporary,
        RAY_AUTH_MODE="disabled",
        RAY_raylet_start_wait_time_s="120",  # of 30, which a busy machine exceeds
        RAY_GCS_SERVER_PORT=(gcs := str(free_port())),
        RAY_ADDRESS=f"{RAY_IP}:{gcs}",
    )
    command = [PYTHON, "-c", RAY_IMAGE, RAY_IP, str(serve.port), str(model / "config.yaml")]
    with (folder / "ray.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log)
    backend = RAY_IMAGE_ENVIRONMENT["RAYSERVE_BACKEND_URL"].replace(":8000", f":{serve.port}")
    try:
        with running_adapter(backend) as host:
            # Ray's proxy, by which AWS's image answers /ping unless told otherwise.
            wait_until_200(serve, "/-/healthz", process, folder / "ray.log")
            ping = host.status()
            (model / "flag").touch()
            wait_until_200(host, "/ping", process, folder / "ray.log")
            yield RayImage(host, ping)
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(params=["container", "ray"])
def host(request: pytest.FixtureRequest) -> Host:
    """Each host in turn."""
    if request.param == "ray":
        image: RayImage = request.getfixturevalue("ray_image")
        return image.host
    running: Host = request.getfixturevalue("container")
    return running


@pytest.fixture(scope="session")
def out_of_reach() -> Callable[..., dict[str, str]]:
    """`out_of_reach(*folders)`: environment of a process that finds our code in these folders alone."""
    return environment


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter for it."""
    return PYTHON
