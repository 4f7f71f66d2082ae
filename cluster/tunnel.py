"""Run a command that talks to a cluster's dashboard, through an ssh tunnel that lasts as long as the command.

    python cluster/tunnel.py cluster.yaml ray job submit --working-dir . -- python tune/search.py --use-gpu
    python cluster/tunnel.py cluster.yaml serve deploy serve/config.yaml
    python cluster/tunnel.py cluster.yaml serve status

The command finds the dashboard by RAY_API_SERVER_ADDRESS and RAY_DASHBOARD_ADDRESS, and the token in ~/.ray/auth_token.
Its exit code is this one's. Stopping it leaves a submitted job running.
"""

import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from bintally.cli import readable_errors
from bintally.errors import ConfigError, RunError
from bintally.ports import free_port

_OPEN_S: Final = 60
_BIN: Final = Path(sys.executable).parent


@contextmanager
def tunnel(config: Path) -> Iterator[str]:
    """The address, on the loopback, at which the cluster's dashboard answers within the block.

    Raises:
        RunError: it does not within a minute; the message has the last of what ssh or Ray said.
    """
    port = free_port()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603  # Ray's own command
            [_BIN / "ray", "dashboard", config, "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # ssh is a child of it, and ends with the group
        )
        try:
            begun = time.monotonic()
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > begun + _OPEN_S:
                    said.seek(0)
                    last = said.read().decode(errors="replace").strip().splitlines()[-1:]
                    raise RunError(f"no tunnel to the dashboard of {config}: {''.join(last) or 'no answer'}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/api/version")
        connection.getresponse()  # any answer, a 401 too, comes from the other end
    except (OSError, http.client.HTTPException):
        return False
    else:
        return True
    finally:
        connection.close()


def main() -> None:
    """Open the tunnel, run the command."""
    with readable_errors():
        if len(sys.argv) < 3 or sys.argv[1] in ("-h", "--help"):
            sys.exit(__doc__)
        config, command = Path(sys.argv[1]), sys.argv[2:]
        if not config.is_file():
            raise ConfigError(f"{config} is no file; name the YAML that the cluster was started with")
        with tunnel(config) as address:
            found = {"RAY_API_SERVER_ADDRESS": address, "RAY_DASHBOARD_ADDRESS": address, "RAY_AUTH_MODE": "token"}
            found["PYTHONUNBUFFERED"] = "1"  # lines of a job as they come, into a pipe, too
            path = f"{_BIN}{os.pathsep}{os.environ['PATH']}"
            sys.exit(subprocess.run(command, env=os.environ | found | {"PATH": path}, check=False).returncode)  # noqa: S603


if __name__ == "__main__":
    main()
