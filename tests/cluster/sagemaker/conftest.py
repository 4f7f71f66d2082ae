"""What the tests of SageMaker share: an account of nobody, and real models behind its endpoints."""

import importlib.util
import json
import sys
import tarfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import moto
import pytest

from serve.aws.lambda_handler import start_counter
from serve.predictor import probe_photo


def load_beside(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"sagemaker_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


SHIM = load_beside("shim")


def forget_account(patch: pytest.MonkeyPatch) -> None:
    """Let boto3 find an account that nobody has, so that no test asks the real AWS."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        patch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "made-up")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """An account that nobody has."""
    forget_account(monkeypatch)


@contextmanager
def shim_of(endpoints: MutableMapping[str, "SHIM.Endpoint"]) -> Iterator["SHIM.Shim"]:
    """A sagemaker-runtime that boto3 talks to until the end of the block."""
    with SHIM.running_shim(endpoints) as running, pytest.MonkeyPatch.context() as patch:
        forget_account(patch)
        patch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", running.url)
        yield running


@pytest.fixture
def shim() -> Iterator["SHIM.Shim"]:
    """The sagemaker-runtime that boto3 talks to from here on; `shim.endpoints[name] = endpoint(url)`."""
    with shim_of({}) as running:
        yield running


@pytest.fixture(scope="session")
def run_shim() -> Callable[[MutableMapping[str, "SHIM.Endpoint"]], AbstractContextManager["SHIM.Shim"]]:
    """`with run_shim(endpoints) as shim`: one for as long as a test or a file wants it."""
    return shim_of


@pytest.fixture
def sagemaker(shim: "SHIM.Shim", s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A SageMaker, as boto3 finds it from here on, whose models serve behind the shim; see fake_sagemaker.py."""
    fake = load_beside("fake_sagemaker")  # heavy

    def serve_at(name: str, url: str | None, serverless: bool) -> None:
        shim.endpoints.pop(name, None)
        if url is not None:
            shim.endpoints[name] = SHIM.Endpoint(url=url, serverless=serverless)

    running = fake.FakeSageMaker(moto=s3_endpoint, serve_at=serve_at, folder=tmp_path / "unpacked")
    with fake.running_sagemaker(running):
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", running.url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_endpoint)
        yield running


@pytest.fixture
def endpoint() -> Callable[..., "SHIM.Endpoint"]:
    """`endpoint(url, serverless=, answer_s=)`: a server for `shim.endpoints`."""

    def make(url: str, *, serverless: bool = False, answer_s: float = 60) -> "SHIM.Endpoint":
        return SHIM.Endpoint(url=url, serverless=serverless, answer_s=answer_s)

    return make


@pytest.fixture
def make_fault() -> Callable[[int, str], "SHIM.Fault"]:
    """`make_fault(status, code)`: an answer of SageMaker itself, for `shim.faults`."""

    def make(status: int, code: str) -> "SHIM.Fault":
        return SHIM.Fault(status=status, code=code)

    return make


@pytest.fixture(scope="session")
def cloud_module() -> ModuleType:
    """cloud.py."""
    return load_beside("cloud")


@contextmanager
def hosted(model_dir: Path) -> Iterator[str]:
    """Our container's application over an unpacked tarball, in a thread; its URL."""
    import uvicorn  # heavy, as what follows

    from serve.container.app import build_app

    config = uvicorn.Config(
        build_app(model_dir), host="127.0.0.1", port=0, log_level="warning", lifespan="off", ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the container's application did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="session")
def host_model() -> Callable[[Path], object]:
    """`with host_model(model_dir) as url`: another model behind our container's application."""
    return hosted


@pytest.fixture(scope="session")
def pack_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """`pack_model(checkpoint)`: its model.tar.gz."""
    from serve.aws.bundle import pack

    def make(checkpoint: Path) -> Path:
        return pack(checkpoint, tmp_path_factory.mktemp("packed") / "model.tar.gz").path

    return make


@pytest.fixture(scope="session")
def unpack() -> Callable[[Path, Path], Path]:
    """`unpack(tarball, folder)`: the folder with its files."""

    def make(tarball: Path, folder: Path) -> Path:
        with tarfile.open(tarball) as tar:
            tar.extractall(folder, filter="data")
        return folder

    return make


@pytest.fixture(scope="session")
def container_url(packed_model: Path) -> Iterator[str]:
    """Our container's application with the tests' model."""
    with hosted(packed_model) as url:
        yield url


BUCKET = "bins"


@pytest.fixture(scope="module")
def lambda_world(container_url: str) -> Iterator[tuple["SHIM.Shim", Any]]:
    """A shim, and a client of moto's S3 with a bucket; what is on the loopback is not moto's. Clients cost CPU."""
    config = {"core": {"passthrough": {"urls": [r"http://127\.0\.0\.1.*"]}}}
    with shim_of({}) as shim, moto.mock_aws(config=config), pytest.MonkeyPatch.context() as patch:
        patch.setenv("BINTALLY_ENDPOINT", "live")
        start_counter.cache_clear()
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        yield shim, client
    start_counter.cache_clear()


@pytest.fixture
def s3(lambda_world: tuple["SHIM.Shim", Any]) -> Iterator[object]:
    """A client of an S3 with the empty bucket `bins`."""
    _, client = lambda_world
    yield client
    for found in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=found["Key"])


@pytest.fixture
def live(
    lambda_world: tuple["SHIM.Shim", object], endpoint: Callable[..., "SHIM.Endpoint"], container_url: str
) -> "SHIM.Shim":
    """The shim, with our container behind the endpoint that the Lambda asks."""
    shim, _ = lambda_world
    shim.endpoints["live"] = endpoint(container_url)
    shim.faults.clear()
    shim.requests.clear()
    return shim


@pytest.fixture
def settle(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`settle(NAME=value)`: another environment of the Lambda, as a new instance of it would find it."""

    def change(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        start_counter.cache_clear()

    yield change
    start_counter.cache_clear()


@pytest.fixture(scope="session")
def photo() -> bytes:
    """One that each model counts."""
    return probe_photo()


@pytest.fixture(scope="session")
def expected(container_url: str, photo: bytes) -> dict[str, object]:
    """What the container answers to the photo without anything before it."""
    request = urllib.request.Request(f"{container_url}/invocations", photo, {"Content-Type": "image/jpeg"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310  # the loopback
        answer: dict[str, object] = json.loads(reply.read())
    return answer
