"""Running servers, one for each engine, and a client that says what came over the wire."""

import base64
import http.client
import io
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from PIL import Image
from pydantic import PydanticDeprecatedSince20

from bintally.calibration import Calibration, fit_thresholds
from bintally.checkpoint import load_checkpoint, save_checkpoint, write_calibration
from bintally.model import build_model
from bintally.recipes import smoke
from bintally.verify import VerifyThresholds

with warnings.catch_warnings():  # Ray 2.60's own models use a pydantic spelling that ends with version 3
    warnings.simplefilter("ignore", PydanticDeprecatedSince20)
    import ray.serve

    from serve.app import app

RAY_IP = "127.0.0.2"  # Ray swaps 127.0.0.1 for the machine's public address; the rest of 127/8 stays
BODY_TIMEOUT_S = 1.0
LOCAL = """
import json, sys
from serve.local import serve_local
from serve.settings import settings_from_dict
serve_local(settings_from_dict(json.loads(sys.argv[1])), "127.0.0.1", int(sys.argv[2]))
"""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401  # JSON has every shape
        """The body."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """That of a problem, whose other fields are checked here once for all tests."""
        problem = self.json
        assert self.headers["content-type"] == "application/problem+json"
        assert problem["status"] == self.status
        assert problem["type"] == f"urn:bintally:problem:{problem['code']}"
        assert problem["request_id"] == self.headers["x-request-id"]
        assert "Traceback" not in problem["detail"]
        return str(problem["code"])


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    host: str
    port: int
    checkpoint: Path
    pid: int | None = None
    """Of the process that answers, if it is one."""

    def ask(self, method: str, path: str, body: bytes | Iterable[bytes] = b"", **headers: str) -> Reply:
        """Send a request; an iterable body goes out in chunks, without Content-Length."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        fields = {key.replace("_", "-"): value for key, value in headers.items()}
        if not isinstance(body, bytes):
            fields["Transfer-Encoding"] = "chunked"
        try:
            connection.request(method, path, body, fields, encode_chunked=not isinstance(body, bytes))
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, names, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        """GET."""
        return self.ask("GET", path, **headers)

    def post(
        self, body: bytes | Iterable[bytes], kind: str = "image/jpeg", path: str = "/v1/count", **headers: str
    ) -> Reply:
        """POST a body of this content type."""
        return self.ask("POST", path, body, Content_Type=kind, **headers)

    def post_json(self, path: str, **values: object) -> Reply:
        """POST JSON; bytes become base64."""
        body = json.dumps(values, default=lambda photo: base64.b64encode(photo).decode())
        return self.post(body.encode(), "application/json", path)

    def post_form(self, path: str, *photos: bytes, **fields: str) -> Reply:
        """POST a form."""
        boundary = "d1f5c0a7"
        parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
        parts += [
            f'name="photo"; filename="{number}.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'.encode() + photo
            for number, photo in enumerate(photos)
        ]
        head = f"--{boundary}\r\nContent-Disposition: form-data; ".encode()
        body = b"".join(head + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()
        return self.post(body, f"multipart/form-data; boundary={boundary}", path)

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection((self.host, self.port), timeout=20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def make_photo() -> Callable[..., bytes]:
    """`make_photo(format, size=, seed=, **save)`: the bytes of a drawn photo."""

    def make(format_name: str = "JPEG", *, size: tuple[int, int] = (80, 64), seed: int = 0, **options: object) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).resize(size).save(file, format_name, **options)
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def served_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with random weights, calibrated on random counts."""
    recipe = smoke()
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("serve") / "checkpoint"
    save_checkpoint(path, build_model(recipe.model, num_classes=recipe.data.num_classes), recipe, {"val_nll": 1.5})
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(recipe.data.num_classes), 200)
    calibration = Calibration(
        temperature=1.3,
        thresholds=fit_thresholds(probabilities, random.integers(0, 6, 200)),
        model_version=load_checkpoint(path).version,
        source="file:///drawn",
        split="val",
        split_by="hash",
        num_images=200,
        verify=VerifyThresholds(mismatch=0.1, match=0.2),
    )
    write_calibration(path, calibration)
    return path


@contextmanager
def local_server(settings: dict[str, Any], folder: Path) -> Iterator[Server]:
    """The engine that is one process."""
    port = free_port()
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", LOCAL, json.dumps(settings), str(port)], stderr=log)
    server = Server("127.0.0.1", port, Path(settings["checkpoint"]), process.pid)
    try:
        wait_until_ready(server, process)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def wait_until_ready(server: Server, process: "subprocess.Popen[bytes] | None" = None, within_s: float = 90) -> None:
    """Return once the server counts."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        try:
            if server.get("/readyz").status == 200:
                return
        except OSError:
            pass  # nobody listens yet
        time.sleep(0.2)
    raise AssertionError(f"no answer at {server.host}:{server.port}")


@contextmanager
def ray_environment() -> Iterator[dict[str, str]]:
    """Variables that keep a Ray apart from every other on this machine, in a folder of its own."""
    temp_dir = Path(tempfile.mkdtemp(prefix="bt-"))  # short: unix sockets below it allow 107 characters
    try:
        yield {
            "RAY_TMPDIR": str(temp_dir),
            "RAY_AUTH_MODE": "disabled",  # "token" must be set before Ray is imported, else the driver sends none
            "RAY_GCS_SERVER_PORT": str(free_port()),
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # today's default warns of tomorrow's
        }
    finally:
        shutil.rmtree(temp_dir, ignore_errors=True)


@contextmanager
def ray_server(settings: dict[str, Any]) -> Iterator[Server]:
    """The engine that is Ray Serve, behind Ray's own proxy."""
    server = Server("127.0.0.1", free_port(), Path(settings["checkpoint"]))
    with ray_environment() as variables, pytest.MonkeyPatch.context() as patch:
        for key, value in variables.items():
            patch.setenv(key, value)
        ray.init(
            "local",
            num_cpus=2,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=free_port(),
            log_to_driver=False,
            namespace="serve",
            _node_ip_address=RAY_IP,
            _temp_dir=variables["RAY_TMPDIR"],
            runtime_env={"env_vars": {"RAY_ADDRESS": f"{RAY_IP}:{variables['RAY_GCS_SERVER_PORT']}"}},
        )
        try:
            ray.serve.start(http_options={"host": server.host, "port": server.port})
            ray.serve.run(app(settings))
            yield server
        finally:
            ray.serve.shutdown()
            ray.shutdown()


@pytest.fixture(scope="session", params=["local", "ray"])
def server(
    request: pytest.FixtureRequest, served_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The same server by each engine."""
    settings = {
        "checkpoint": str(served_checkpoint),
        "models": {"second": str(served_checkpoint)},
        "body_timeout_s": BODY_TIMEOUT_S,
    }
    start = (
        local_server(settings, tmp_path_factory.mktemp("local")) if request.param == "local" else ray_server(settings)
    )
    with start as running:
        yield running


@pytest.fixture
def start_local(tmp_path: Path, served_checkpoint: Path) -> Callable[..., Any]:
    """`with start_local(**settings) as server`: one of the first engine with settings of its own."""
    return lambda **settings: local_server({"checkpoint": str(served_checkpoint)} | settings, tmp_path)


@pytest.fixture(scope="session")
def body_timeout_s() -> float:
    """How long `server` waits for a body."""
    return BODY_TIMEOUT_S
