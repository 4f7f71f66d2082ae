"""The front's command, and what it refuses."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bintally.errors import ConfigError
from serve.front import FrontConfig, config_text

ROOT = Path(__file__).parents[3]


def command(*flags: object) -> "subprocess.Popen[str]":
    arguments = [sys.executable, str(ROOT / "serve/front.py"), *map(str, flags)]
    return subprocess.Popen(arguments, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_the_command_prints_the_configuration() -> None:
    process = command("--print", "--port", 8443, "--rate-limit", 7)
    assert process.communicate(timeout=20)[0] == config_text(FrontConfig(port=8443, rate_limit=7))


def test_a_certificate_that_is_none_changes_nothing_and_haproxy_ends_with_the_command_even_by_kill_9(
    ports: int, certificate: Path, tmp_path: Path
) -> None:
    pem = Path(shutil.copy(certificate, tmp_path))
    flags = ["--port", ports - 1, "--first-replica-port", ports, "--num-replica-ports", 2, "--tls-cert", pem]
    process = command(*flags)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == f"front at https://127.0.0.1:{ports - 1}\n"
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    (haproxy,) = [pid for one in children for pid in one.read_text().split()]
    assert (Path("/proc") / haproxy / "comm").read_text() == "haproxy\n"
    arguments = (Path("/proc") / haproxy / "cmdline").read_text().split("\0")
    pem.write_text("no certificate")
    process.send_signal(signal.SIGHUP)
    assert process.stderr.readline().startswith("error: nothing was reloaded: HAProxy refuses")
    assert (process.poll(), (Path("/proc") / haproxy).exists()) == (None, True)
    process.kill()
    process.communicate(timeout=10)
    deadline = time.monotonic() + 5
    while (Path("/proc") / haproxy).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    shutil.rmtree(Path(arguments[arguments.index("-f") + 1]).parent)  # which nobody was left to remove


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"port": 0}, "port"),
        ({"port": 70_000}, "65536"),
        ({"first_replica_port": 65_530}, "65536"),
        ({"rate_limit": 0}, "rate_limit"),
        ({"buffered_bytes": 1}, "buffered_bytes"),
        ({"host": "0.0.0.0\n    bind :1"}, "spaces"),
        ({"tls_cert": Path("a b.pem")}, "spaces"),
    ],
)
def test_values_that_make_no_sense(fields: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        FrontConfig(**fields)
