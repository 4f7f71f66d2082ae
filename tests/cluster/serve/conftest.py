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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import yaml
from PIL import Image
from pydantic import PydanticDeprecatedSince20

from bintally.ports import free_port

with warnings.catch_warnings():  # Ray 2.60's own models use a pydantic spelling that ends with version 3
    warnings.simplefilter("ignore", PydanticDeprecatedSince20)
    import ray.serve

ROOT = Path(__file__).parents[3]
RAY_IP = "127.0.0.2"  # Ray swaps 127.0.0.1 for the machine's public address; the rest of 127/8 stays
PATIENCE_S = 120.0  # with a server; nothing here measures how soon it answers, and CI's machine may be busy
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
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_S)
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
        return socket.create_connection((self.host, self.port), timeout=PATIENCE_S)


@pytest.fixture(scope="session")
def make_photo() -> Callable[..., bytes]:
    """`make_photo(format, size=, seed=, **save)`: the bytes of a drawn photo."""

    def make(format_name: str = "JPEG", *, size: tuple[int, int] = (80, 64), seed: int = 0, **options: object) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).resize(size).save(file, format_name, **options)
        return file.getvalue()

    return make


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
        process.wait(PATIENCE_S)


def wait_until_ready(
    server: Server, process: "subprocess.Popen[bytes] | None" = None, path: str = "/readyz", within_s: float = 240
) -> None:
    """Return once the server counts; or whatever else answers a path."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        with suppress(OSError):  # nobody listens yet
            if server.get(path).status == 200:
                return
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


@dataclass(frozen=True, slots=True)
class ServingRay:
    """A Ray in this process to which serve/config.yaml is deployed, as a user does it; Ray's own proxy answers."""

    server: Server
    dashboard: Server
    config_path: Path

    def deploy(self, settings: dict[str, Any], **deployment: object) -> None:
        """`serve deploy` the file, with these settings and fields of the deployment."""
        config = yaml.safe_load((ROOT / "serve/config.yaml").read_text())
        config["http_options"]["port"] = self.server.port
        (values,) = config["applications"][0]["deployments"]
        values["user_config"] |= settings
        if "autoscaling_config" in deployment:
            del values["num_replicas"]
        values |= deployment
        self.config_path.write_text(yaml.safe_dump(config))
        command = [str(Path(sys.executable).with_name("serve")), "deploy", str(self.config_path)]
        command += ["--address", f"http://127.0.0.1:{self.dashboard.port}"]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def audited_bucket(tmp_path_factory: pytest.TempPathFactory, make_photo: Callable[..., bytes]) -> Path:
    """The folder whose photos the servers audit: eight photos, the last of them cut off."""
    folder = tmp_path_factory.mktemp("bucket")
    (folder / "bin-images").mkdir()
    for number in range(8):
        photo = make_photo(seed=number)
        (folder / f"bin-images/{number:05d}.jpg").write_bytes(photo[:-300] if number == 7 else photo)
    return folder


@pytest.fixture(scope="session")
def settings(served_checkpoint: Path, audited_bucket: Path) -> dict[str, Any]:
    """What both servers are told."""
    return {
        "checkpoint": str(served_checkpoint),
        "models": {"second": str(served_checkpoint)},
        "body_timeout_s": 4.0,  # a test waits for it; but within it, 10 MB must arrive on a busy machine
        "request_timeout_s": PATIENCE_S,
        "audit_source": f"file://{audited_bucket}",
    }


@pytest.fixture(scope="session")
def local_engine(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of one process."""
    with local_server(settings, tmp_path_factory.mktemp("local")) as running:
        yield running


@pytest.fixture(scope="session")
def serving_ray(
    settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, this_process_ray: ExitStack
) -> Iterator[ServingRay]:
    """The engine that is Ray Serve."""
    this_process_ray.close()  # a session's fixture comes before those of a file, which would end it
    checkpoint, config_path = Path(settings["checkpoint"]), tmp_path_factory.mktemp("ray") / "config.yaml"
    server, dashboard = (Server("127.0.0.1", free_port(), checkpoint) for _ in range(2))
    with ray_environment() as variables, pytest.MonkeyPatch.context() as patch:
        for key, value in variables.items():
            patch.setenv(key, value)
        with pytest.MonkeyPatch.context() as inherited:  # by Ray's processes, not by later commands of tests
            inherited.setenv("RAY_ADDRESS", f"{RAY_IP}:{variables['RAY_GCS_SERVER_PORT']}")
            ray.init(
                "local",
                num_cpus=2,
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                dashboard_port=dashboard.port,
                log_to_driver=False,
                namespace="serve",
                _node_ip_address=RAY_IP,
                _temp_dir=variables["RAY_TMPDIR"],
            )
        serving = ServingRay(server, dashboard, config_path)
        try:
            wait_until_ready(dashboard, path="/api/serve/applications/")  # its web server starts by and by
            serving.deploy(settings)
            wait_until_ready(server)
            yield serving
        finally:
            ray.serve.shutdown()
            ray.shutdown()


@pytest.fixture(params=["local", "ray"])
def server(request: pytest.FixtureRequest) -> Server:
    """The same server by each engine; both run to the end, whatever the order of tests and files."""
    if request.param == "ray":
        serving: ServingRay = request.getfixturevalue("serving_ray")
        return serving.server
    local: Server = request.getfixturevalue("local_engine")
    return local


@pytest.fixture(scope="session")
def run_local() -> Callable[..., Any]:
    """`with run_local(settings, folder) as server`: one of the first engine with settings of its own."""
    return local_server


@pytest.fixture
def own_ray() -> Iterator[dict[str, str]]:
    """The environment of a command that starts a Ray for itself."""
    with ray_environment() as variables:
        yield variables


@pytest.fixture(scope="session")
def wait_for(served_checkpoint: Path) -> Callable[..., Server]:
    """`wait_for(host, port, process)`: the server there, once it counts."""

    def wait(host: str, port: int, process: "subprocess.Popen[bytes]") -> Server:
        server = Server(host, port, served_checkpoint)
        wait_until_ready(server, process)
        return server

    return wait
