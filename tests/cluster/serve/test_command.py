"""`serve run` as people start it."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.parts.usage import family
from bintally.errors import CheckpointError, ConfigError
from serve.app import app, settings_of

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[3]


def test_an_absent_checkpoint_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BINTALLY_CHECKPOINT", raising=False)
    with pytest.raises(ConfigError, match=r"no checkpoint .*checkpoint=.*BINTALLY_CHECKPOINT"):
        app({})
    with pytest.raises(CheckpointError, match=r"no checkpoint at /nonexistent"):
        app({"checkpoint": "/nonexistent"})
    with pytest.raises(ConfigError, match="chekpoint"):
        app({"checkpoint": "/nonexistent", "chekpoint": "/x"})


def test_the_environment_names_the_checkpoint_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINTALLY_CHECKPOINT", "/environment")
    assert settings_of({}).checkpoint == "/environment"
    assert settings_of({"checkpoint": "/argument"}).checkpoint == "/argument"


def test_a_relative_checkpoint_is_that_of_the_command(served_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of a replica, which may have another working folder."""
    monkeypatch.chdir(served_checkpoint.parent)
    built = app({"checkpoint": served_checkpoint.name, "models": {"second": f"./{served_checkpoint.name}"}})
    told = built._bound_deployment.user_config  # noqa: SLF001  # what `serve run` sends
    assert (told["checkpoint"], told["models"]) == (str(served_checkpoint), {"second": str(served_checkpoint)})


def serve_run(folder: Path, variables: dict[str, str], *arguments: str) -> "subprocess.Popen[bytes]":
    """As the README has it, but for the log."""
    environment = {key: value for key, value in os.environ.items() if key != "BINTALLY_CHECKPOINT"}
    command = [str(Path(sys.executable).with_name("serve")), "run", "serve.app:app", *arguments]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def test_serve_run_without_a_checkpoint(tmp_path: Path) -> None:
    assert serve_run(tmp_path, {}).wait(120) != 0
    assert "BINTALLY_CHECKPOINT" in (tmp_path / "log").read_text().splitlines()[-1]


def wait_until_gone(pids: set[int], process: "subprocess.Popen[bytes]") -> set[int]:
    """Those that are still there after two minutes."""
    deadline = time.monotonic() + 120
    left = pids
    while left and time.monotonic() < deadline:
        time.sleep(0.2)
        process.poll()  # an ended child stays in /proc until its parent has asked
        left = {pid for pid in pids if Path(f"/proc/{pid}").exists()}
    return left


def test_serve_run_answers_and_ends_on_ctrl_c(
    tmp_path: Path,
    served_checkpoint: Path,
    make_photo: Callable[..., bytes],
    own_ray: dict[str, str],
    wait_for: Callable[..., Any],
) -> None:
    # `serve run` always takes port 8000; a loopback address of its own keeps it apart from whoever has that port.
    host = f"127.{secrets.randbelow(200) + 10}.{secrets.randbelow(256)}.7"
    mine = {"RAY_ADDRESS": "local", "RAY_SERVE_DEFAULT_HTTP_HOST": host}
    process = serve_run(tmp_path, own_ray | mine, f"checkpoint={os.path.relpath(served_checkpoint, ROOT)}")
    try:
        server = wait_for(host, 8000, process)
        assert server.post(make_photo()).status == 200
    finally:
        started = set(family(process.pid))
        process.send_signal(signal.SIGINT)
        left = wait_until_gone(started, process)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert len(started) > 4
    assert not left
