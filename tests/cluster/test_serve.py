"""The server over real HTTP: answers, refusals, the command line."""

import http.client
import io
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from PIL import Image
from pydantic import PydanticDeprecatedSince20

from benchmarks.parts.usage import family
from bintally.checkpoint import load_checkpoint, save_checkpoint
from bintally.errors import CheckpointError
from bintally.image import decode_photo
from bintally.model import build_model
from bintally.recipes import smoke
from serve.schema import MAX_BODY_BYTES, STATUS_OF

with warnings.catch_warnings():  # Ray 2.60's own models use a pydantic spelling that ends with version 3
    warnings.simplefilter("ignore", PydanticDeprecatedSince20)
    import ray.serve

    from serve.app import ServerArgs, api, app

pytestmark = pytest.mark.cluster

Address = tuple[str, int]
Answer = tuple[int, Any]

RAY_IP = "127.0.0.2"  # Ray swaps 127.0.0.1 for the machine's public address; the rest of 127/8 stays
BODY_TIMEOUT_S = 1.0
JPEG = {"Content-Type": "image/jpeg"}


def make_photo(format_name: str = "JPEG", *, size: tuple[int, int] = (80, 64), seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(file, format_name)
    return file.getvalue()


def ask(address: Address, method: str, path: str, body: bytes | Iterable[bytes] = b"", **headers: str) -> Answer:
    """Status and JSON of the answer; an iterable body goes out in chunks, without Content-Length."""
    connection = http.client.HTTPConnection(*address, timeout=20)
    try:
        fields = {key.replace("_", "-"): value for key, value in headers.items()}
        connection.request(method, path, body, fields, encode_chunked=not isinstance(body, bytes))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def post(address: Address, body: bytes | Iterable[bytes], content_type: str = "image/jpeg", **headers: str) -> Answer:
    if not isinstance(body, bytes):
        headers["Transfer_Encoding"] = "chunked"
    return ask(address, "POST", "/count", body, Content_Type=content_type, **headers)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = smoke()
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("serve") / "checkpoint"
    save_checkpoint(path, build_model(recipe.model, num_classes=recipe.data.num_classes), recipe, {})
    return path


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


@pytest.fixture(scope="module")
def server(checkpoint_dir: Path) -> Iterator[Address]:
    address = ("127.0.0.1", free_port())
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
            ray.serve.start(http_options={"host": address[0], "port": address[1]})
            ray.serve.run(app(ServerArgs(checkpoint=str(checkpoint_dir), body_timeout_s=BODY_TIMEOUT_S)))
            yield address
        finally:
            ray.serve.shutdown()
            ray.shutdown()


# --- Answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", ["JPEG", "PNG"])
@pytest.mark.parametrize("content_type", ["image/jpeg", "image/png", "application/octet-stream"])
def test_numbers_equal_the_core_bit_for_bit(
    server: Address, checkpoint_dir: Path, format_name: str, content_type: str
) -> None:
    photo = make_photo(format_name)
    checkpoint = load_checkpoint(checkpoint_dir)
    expected = checkpoint.predict(decode_photo(photo, checkpoint.recipe.data.pixels)[None])[0]
    assert post(server, photo, content_type) == (
        200,
        {
            "count": int(expected.argmax()),
            "probabilities": {str(count): p for count, p in enumerate(expected.tolist())},
            "model_version": checkpoint.version,
        },
    )


def test_a_chunked_body_counts_too(server: Address) -> None:
    photo = make_photo()
    assert post(server, iter([photo[:500], photo[500:]])) == post(server, photo)


def test_healthz(server: Address, checkpoint_dir: Path) -> None:
    version = load_checkpoint(checkpoint_dir).version
    assert ask(server, "GET", "/healthz") == (200, {"status": "ok", "model_version": version})


def test_a_poison_photo_harms_no_other(server: Address) -> None:
    photos = [make_photo(seed=seed) for seed in range(23)]
    alone = [post(server, photo)[1] for photo in photos[:3]]
    photos.insert(11, make_photo()[:-300])
    with ThreadPoolExecutor(len(photos)) as pool:
        answers = list(pool.map(lambda photo: post(server, photo), photos))
    assert [status for status, _ in answers] == [200] * 11 + [400] + [200] * 12
    for (_, together), expected in zip(answers[:3], alone, strict=True):
        assert together["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


# --- Refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        pytest.param(b"", "image/jpeg", "empty_body", id="empty"),
        pytest.param(b"no photo at all", "image/jpeg", "not_an_image", id="text-as-jpeg"),
        pytest.param(make_photo("GIF"), "image/png", "not_an_image", id="gif-as-png"),
        pytest.param(make_photo()[:-300], "image/jpeg", "truncated_image", id="truncated-jpeg"),
        pytest.param(make_photo("PNG")[:-300], "image/png", "truncated_image", id="truncated-png"),
        pytest.param(make_photo(size=(8, 8)), "image/jpeg", "absurd_dimensions", id="tiny"),
        pytest.param(make_photo("PNG", size=(10_001, 16)), "image/png", "absurd_dimensions", id="wide"),
        pytest.param(make_photo(), "text/plain", "unsupported_media_type", id="text"),
        pytest.param(b"{}", "application/json", "unsupported_media_type", id="json"),
        pytest.param(make_photo(), "", "unsupported_media_type", id="no-type"),
        pytest.param(bytes(MAX_BODY_BYTES), "image/jpeg", "not_an_image", id="at-the-limit"),
        pytest.param(bytes(MAX_BODY_BYTES + 1), "image/jpeg", "body_too_large", id="past-the-limit"),
    ],
)
def test_bad_body(server: Address, body: bytes, content_type: str, code: str) -> None:
    status, answer = post(server, body, content_type)
    assert (status, answer["error"]["code"]) == (STATUS_OF[code], code)
    assert "Traceback" not in answer["error"]["message"]


def test_a_chunked_body_past_the_limit(server: Address) -> None:
    status, answer = post(server, iter([bytes(1_000_000)] * (MAX_BODY_BYTES // 1_000_000 + 1)))
    assert (status, answer["error"]["code"]) == (413, "body_too_large")


def test_a_compressed_body(server: Address) -> None:
    status, answer = post(server, make_photo(), Content_Encoding="gzip")
    assert (status, answer["error"]["code"]) == (415, "unsupported_media_type")


def test_a_body_that_does_not_arrive(server: Address) -> None:
    with socket.create_connection(server, timeout=20) as client:
        start = time.monotonic()
        client.sendall(b"POST /count HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 99\r\n\r\n\xff")
        status_line = client.makefile("rb").readline()
        waited_s = time.monotonic() - start
    assert b" 408 " in status_line
    assert BODY_TIMEOUT_S <= waited_s < BODY_TIMEOUT_S + 5


def test_a_client_that_leaves_harms_no_other(server: Address) -> None:
    with socket.create_connection(server, timeout=20) as client:
        client.sendall(b"POST /count HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 99\r\n\r\n\xff")
    assert post(server, make_photo())[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("POST", "/count/", 404, "not_found"),
        ("GET", "/count", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
    ],
)
def test_unknown_routes_and_methods(server: Address, method: str, path: str, status: int, code: str) -> None:
    answer = ask(server, method, path)
    assert (answer[0], answer[1]["error"]["code"]) == (status, code)


def test_openapi_names_every_status_and_body(server: Address) -> None:
    status, served = ask(server, "GET", "/openapi.json")
    assert (status, served["paths"]) == (200, api.openapi()["paths"])
    operation = served["paths"]["/count"]["post"]
    assert set(operation["responses"]) == {"200", *map(str, STATUS_OF.values())}
    assert set(operation["requestBody"]["content"]) == {"image/jpeg", "image/png", "application/octet-stream"}


# --- The command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [None, "/nonexistent/checkpoint"])
def test_an_absent_checkpoint_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, named: str | None) -> None:
    monkeypatch.delenv("BINTALLY_CHECKPOINT", raising=False)
    with pytest.raises(CheckpointError, match=r"no checkpoint .*checkpoint=.*BINTALLY_CHECKPOINT"):
        app(ServerArgs(checkpoint=named))


def serve_run(folder: Path, variables: dict[str, str], *arguments: str) -> "subprocess.Popen[bytes]":
    environment = {key: value for key, value in os.environ.items() if key != "BINTALLY_CHECKPOINT"}
    command = [str(Path(sys.executable).with_name("serve")), "run", "serve.app:app", *arguments]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def test_serve_run_without_a_checkpoint(tmp_path: Path) -> None:
    assert serve_run(tmp_path, {}).wait(30) != 0
    assert "BINTALLY_CHECKPOINT" in (tmp_path / "log").read_text().splitlines()[-1]


def wait_until_healthy(address: Address, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if ask(address, "GET", "/healthz")[0] == 200:
                return
        except (OSError, ValueError):
            pass  # nobody listens yet, or Ray's proxy answers in plain text
        time.sleep(0.2)
    raise AssertionError(f"no answer at {address}")


def wait_until_gone(pids: set[int], process: "subprocess.Popen[bytes]") -> set[int]:
    """Those that are still there after 40 s."""
    deadline = time.monotonic() + 40
    left = pids
    while left and time.monotonic() < deadline:
        time.sleep(0.2)
        process.poll()  # an ended child stays in /proc until its parent has asked
        left = {pid for pid in pids if Path(f"/proc/{pid}").exists()}
    return left


def test_serve_run_answers_and_ends_on_ctrl_c(tmp_path: Path, checkpoint_dir: Path) -> None:
    # `serve run` always takes port 8000; a loopback address of its own keeps it apart from whoever has that port.
    address = (f"127.{secrets.randbelow(200) + 10}.{secrets.randbelow(256)}.7", 8000)
    mine = {
        "BINTALLY_CHECKPOINT": str(checkpoint_dir),
        "RAY_ADDRESS": "local",
        "RAY_SERVE_DEFAULT_HTTP_HOST": address[0],
    }
    with ray_environment() as variables:
        process = serve_run(tmp_path, variables | mine)
        try:
            wait_until_healthy(address, process)
            assert post(address, make_photo())[0] == 200
        finally:
            started = set(family(process.pid))
            process.send_signal(signal.SIGINT)
            left = wait_until_gone(started, process)
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        assert len(started) > 4
        assert not left
