"""What all tests share: their order, a Ray that commands may join, buckets, an S3 server.

Buckets: a synthetic one always, the real ABID pairs where the machine has them.
"""

import importlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from jaxtyping import install_import_hook

install_import_hook(["bintally", "train"], "beartype.beartype")  # checks shapes in what is imported from here on

ROOT = Path(__file__).resolve().parent.parent
REAL_BUCKET = ROOT.parent / "shared" / "abid" / "bucket"

S3_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "not-a-secret"}  # moto takes anything

# With two processes one runs the searches while the other runs what shares a Ray; short files come last, so that none
# is left alone with a long one. The server's tests come after all others with a Ray: they turn its authentication off,
# and a process cannot turn it on again.
FIRST = ("search", "training", "stream", "pipeline", "evaluate_infer", "fit", "evaluate")


def pytest_configure(config: pytest.Config) -> None:
    """Make Ray's token, if there is none: two first Rays that start side by side would each write their own."""
    token_path = Path.home() / ".ray" / "auth_token"
    if not hasattr(config, "workerinput") and not token_path.exists():
        token_path.parent.mkdir(exist_ok=True)
        with os.fdopen(os.open(token_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex(32))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files; within one nothing changes. What starts processes gets a second try (docs/decisions/0010)."""

    def place(item: pytest.Item) -> tuple[int, int]:
        name = item.path.stem.removeprefix("test_")
        folders = item.path.relative_to(ROOT / "tests").parts
        part = 2 if "unit" in folders else int("serve" in (*folders, name[:5]))
        return part, FIRST.index(name) if part == 0 and name in FIRST else len(FIRST)

    items.sort(key=place)
    for item in items:
        if place(item)[0] < 2:
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session", autouse=True)
def _heed_ctrl_c() -> None:
    """A shell has SIGINT ignored in what it runs in the background, and the commands under test would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test talks to a Ray that happens to run here, or has Ray Train's Ctrl-C, which would start another one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="session")
def this_process_ray() -> Iterator[ExitStack]:
    """Holds the Ray of this process that files share."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module", autouse=True)
def _end_shared_ray(request: pytest.FixtureRequest, this_process_ray: ExitStack) -> None:
    """A file that does not use the shared Ray finds none, and may start its own."""
    used = {name for mark in request.node.iter_markers("usefixtures") for name in mark.args}
    if "local_ray" not in used:
        this_process_ray.close()


@pytest.fixture(scope="module")
def local_ray(_end_shared_ray: None, this_process_ray: ExitStack) -> None:
    """A Ray with 4 CPUs in this process; with `usefixtures` in `pytestmark`, other files may have used it before.

    A start costs 8 seconds of CPU.
    """
    import ray  # heavy, and unit tests need none

    from data.session import ray_session

    if not ray.is_initialized():
        this_process_ray.enter_context(ray_session(num_cpus=4))


@pytest.fixture(scope="session")
def running_ray() -> Iterator[dict[str, str]]:
    """Variables by which a command joins a Ray with 4 CPUs, which has a process of its own, instead of starting one."""
    code = """if True:
        import os, sys
        from data.session import ray_session
        with ray_session(num_cpus=4):
            print(os.environ["RAY_ADDRESS"], flush=True)
            sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | S3_KEYS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address, "no Ray started"
        yield {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"}
    finally:
        process.communicate(timeout=60)


@pytest.fixture
def join_ray(_own_ray: None, running_ray: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """`join_ray()`: from then on this test, and its commands, join a running Ray; that saves 8 CPU-seconds for each."""

    def join() -> None:
        for name, value in running_ray.items():
            monkeypatch.setenv(name, value)
        if "ray" in sys.modules:  # as imported here, it has read RAY_AUTH_MODE already
            from ray._raylet import Config

            Config.initialize("")

    return join


@pytest.fixture
def shared_ray(join_ray: Callable[[], None]) -> None:
    """This test and its commands join a running Ray; for those whose own Ray is not what the test is about."""
    join_ray()


class Told(NamedTuple):
    """How a command ended, and what it said."""

    code: int | str | None
    out: str
    err: str


@pytest.fixture
def in_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., Told]]:
    """`in_process(script, *flags)`: a command in this process, in `tmp_path`.

    For what is refused: a process of its own would import for 1 to 5 seconds of CPU.
    """
    on_sigterm = signal.getsignal(signal.SIGTERM)

    def call(script: str, *flags: object) -> Told:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
        code: int | str | None = 0
        try:
            importlib.import_module(script.removesuffix(".py").replace("/", ".")).main()
        except SystemExit as ended:
            code = ended.code
        return Told(code, *capsys.readouterr())

    yield call
    signal.signal(signal.SIGTERM, on_sigterm)


@pytest.fixture(scope="session")
def synthetic_bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 easy bins with counts 0-5, and some of every fault."""
    folder = tmp_path_factory.mktemp("synthetic")
    flags = ["--num-bins", "240", "--counts", "uniform", "--difficulty", "0", "--broken-rate", "0.05"]
    subprocess.run([sys.executable, str(ROOT / "data/synthetic.py"), *flags, "--out", str(folder)], check=True)
    return folder


@pytest.fixture(scope="module", params=["synthetic", "real"])  # wider, and pytest would mix the files
def bucket(request: pytest.FixtureRequest, synthetic_bucket: Path) -> Path:
    """A bucket folder: the synthetic one, and the real ABID pairs where they exist."""
    if request.param == "synthetic":
        return synthetic_bucket
    if not REAL_BUCKET.is_dir():
        pytest.skip("the real ABID pairs are not on this machine; the same test ran on the synthetic bucket")
    return REAL_BUCKET


@pytest.fixture(scope="session")
def best_bucket(synthetic_bucket: Path) -> Path:
    """The real ABID pairs where they exist, the synthetic bucket elsewhere; for tests too slow to run on both."""
    return REAL_BUCKET if REAL_BUCKET.is_dir() else synthetic_bucket


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A moto S3 server in a process of its own, on the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(endpoint)
        yield endpoint
    finally:
        server.terminate()
        server.wait(timeout=10)


def s3_client(endpoint: str) -> "boto3.client":  # type: ignore[valid-type]  # boto3 makes its types at run time
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="owner",
        aws_secret_access_key="not-a-secret",  # noqa: S106  # moto takes anything
        config=Config(retries={"total_max_attempts": 1}),
    )


@pytest.fixture(scope="session")
def s3_bucket(s3_endpoint: str, best_bucket: Path) -> str:
    """The first 200 ids of the best bucket on the S3 server, readable by everyone; its s3:// address."""
    client = s3_client(s3_endpoint)
    client.create_bucket(Bucket="pairs", ACL="public-read")
    photos = sorted((best_bucket / "bin-images").glob("?????*.jpg"))[:200]
    records = [best_bucket / "metadata" / f"{photo.stem}.json" for photo in photos]
    for path in [*photos, *filter(Path.exists, records)]:
        key = f"abid/{path.relative_to(best_bucket)}"
        client.put_object(Bucket="pairs", Key=key, Body=path.read_bytes(), ACL="public-read")
    client.create_bucket(Bucket="private")
    client.put_object(Bucket="private", Key="bin-images/00001.jpg", Body=b"x")
    return "s3://pairs/abid"


@pytest.fixture
def s3_runs(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A folder for runs in a bucket of the S3 server, which the environment names; its s3:// address.

    What commands keep of such runs on this machine is the test's own, below `tmp_path`.
    """
    s3_client(s3_endpoint).create_bucket(Bucket="runs")
    for name, value in (S3_KEYS | {"AWS_ENDPOINT_URL": s3_endpoint, "AWS_DEFAULT_REGION": "us-east-1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"s3://runs/{tmp_path.name}"


def _wait_until_up(endpoint: str) -> None:
    for _ in range(100):
        try:
            s3_client(endpoint).list_buckets()
        except BotoCoreError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(f"moto did not answer at {endpoint}")


@pytest.fixture(scope="session")
def served_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the smoke recipe, calibrated, whose random weights give each photo another distribution."""
    import torch  # heavy, as what follows

    from bintally.calibration import Calibration
    from bintally.checkpoint import load_checkpoint, save_checkpoint, write_calibration
    from bintally.model import build_model
    from bintally.recipes import smoke
    from bintally.verify import VerifyThresholds

    recipe = smoke()
    torch.manual_seed(0)
    model = build_model(recipe.model, num_classes=recipe.data.num_classes)
    *_, (_, last) = model.named_parameters()
    torch.nn.init.zeros_(last)  # of the bias alone, all photos would show the same count
    path = tmp_path_factory.mktemp("served") / "checkpoint"
    save_checkpoint(path, model, recipe, {"val_accuracy": 0.781, "val_within_one": 0.954, "val_num_images": 512})
    calibration = Calibration(
        temperature=0.02,
        thresholds={"0.8": 0.7, "0.9": 0.8, "0.95": 0.9},
        model_version=load_checkpoint(path).version,
        source="s3://bins",
        split="val",
        split_by="grouped",
        num_images=512,
        verify=VerifyThresholds(mismatch=0.1, match=0.3),
    )
    write_calibration(path, calibration)
    return path


@pytest.fixture(scope="session")
def packed_model(served_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which SageMaker would unpack `served_checkpoint`, packed."""
    from serve.aws.bundle import pack

    folder = tmp_path_factory.mktemp("packed")
    pack(served_checkpoint, folder / "model.tar.gz")
    with tarfile.open(folder / "model.tar.gz") as tar:
        tar.extractall(folder / "model", filter="data")
    return folder / "model"


@pytest.fixture(scope="session")
def serve_locally(served_checkpoint: Path) -> Callable[..., AbstractContextManager[str]]:
    """`with serve_locally(**fields_of_settings) as url`: a server without Ray, in a thread of this process."""
    import uvicorn

    from serve.local import build_local
    from serve.settings import Settings

    @contextmanager
    def run(**settings: object) -> Iterator[str]:
        app, _ = build_local(Settings(**({"checkpoint": str(served_checkpoint)} | settings)))  # type: ignore[arg-type]
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)

    return run


@pytest.fixture
def local_server(serve_locally: Callable[..., AbstractContextManager[str]]) -> Iterator[Callable[..., str]]:
    """`local_server(**fields_of_settings)`: the URL of a server that ends with the test."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(serve_locally(**settings))
