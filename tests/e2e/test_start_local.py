"""The command that starts a server in one process, alone and behind the front."""

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from benchmarks.parts.usage import family
from bintally.checkpoint import load_checkpoint, save_checkpoint
from bintally.model import build_model
from bintally.recipes import smoke

ROOT = Path(__file__).parents[2]


def make_checkpoint(path: Path, seed: int) -> str:
    """Write a checkpoint; its version."""
    torch.manual_seed(seed)
    save_checkpoint(path, build_model(smoke().model, num_classes=smoke().data.num_classes), smoke(), {})
    return load_checkpoint(path).version


def count(port: int) -> dict[str, Any]:
    """The answer to a photo."""
    file = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(file, "JPEG")
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("POST", "/v1/count", file.getvalue(), {"Content-Type": "image/jpeg"})
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        return answer


def wait_for_version(port: int, version: str, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None
        try:
            if count(port).get("model", {}).get("version") == version:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{version} did not answer")


def fronts(process: "subprocess.Popen[str]") -> set[int]:
    """The HAProxies of the server."""
    found = set()
    for pid in family(process.pid):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if Path(f"/proc/{pid}/comm").read_text() == "haproxy\n":
                found.add(pid)
    return found


@pytest.mark.parametrize("flags", [["--no-front"], ["--front", "--rate-limit", "1000"]])
def test_it_counts_reloads_its_file_and_ends(flags: list[str], tmp_path: Path) -> None:
    first, second = (make_checkpoint(tmp_path / name, seed) for seed, name in enumerate("ab"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def configure(checkpoint: str, **limits: int) -> None:
        deployment = {"user_config": {"checkpoint": checkpoint} | limits if checkpoint else {}}
        config = {"http_options": {"port": port}, "applications": [{"deployments": [deployment]}]}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    configure("a")
    command = [sys.executable, str(ROOT / "serve/start.py"), "--engine", "local", "--config", "config.yaml", *flags]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        wait_for_version(port, first, process)
        before = fronts(process)
        configure("b", max_body_bytes=5_000_000)
        process.send_signal(signal.SIGHUP)
        wait_for_version(port, second, process)
        assert len(before) == int("--front" in flags)
        while before and not fronts(process) - before:  # the front is reloaded, too, for the limit
            time.sleep(0.1)  # the test's own timeout ends it
        configure("")  # with which it would not start
        process.send_signal(signal.SIGHUP)
        while "nothing was reloaded" not in (tmp_path / "log").read_text():
            time.sleep(0.1)
        wait_for_version(port, second, process)
        process.terminate()
        assert process.wait(30) == 143
        assert process.communicate()[0] == f"loading the model, to serve at http://127.0.0.1:{port}\n"
        with pytest.raises(ConnectionRefusedError):
            count(port)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()


ABSENT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"boto3", "botocore", "sagemaker", "sagemaker_core"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def test_it_counts_without_boto3_and_sagemaker(tmp_path: Path) -> None:
    version = make_checkpoint(tmp_path / "checkpoint", 0)
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent/sitecustomize.py").write_text(ABSENT)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "absent")}
    imported = subprocess.run([sys.executable, "-c", "import boto3"], env=environment, capture_output=True, check=False)
    assert b"No module named 'boto3'" in imported.stderr
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--engine", "local", "--checkpoint", str(tmp_path / "checkpoint"), "--port", str(port)]
    process = subprocess.Popen([sys.executable, str(ROOT / "serve/start.py"), *flags], env=environment, text=True)
    try:
        wait_for_version(port, version, process)
    finally:
        process.terminate()
        process.wait(30)
