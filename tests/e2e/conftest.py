"""Commands as a user runs them: in processes of their own, from another folder, without PYTHONPATH."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def command() -> Callable[..., list[str]]:
    """`command(script, *flags)`: what starts a script of this repository."""

    def build(script: str, *flags: object) -> list[str]:
        return [sys.executable, str(ROOT / script), *map(str, flags)]

    return build


@pytest.fixture(scope="session")
def run(command: Callable[..., list[str]]) -> Callable[..., str]:
    """`run(cwd, script, *flags, code=0)`: output of a command that must end with the given code."""

    def to_its_end(cwd: Path, script: str, *flags: object, code: int = 0) -> str:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            command(script, *flags), cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        output = done.stdout + done.stderr
        assert done.returncode == code, output
        return output

    return to_its_end


@pytest.fixture(scope="session")
def run_at_terminal(command: Callable[..., list[str]]) -> Callable[..., str]:
    """`run_at_terminal(cwd, script, *flags)`: what a terminal of 200 columns shows of a command that must end well."""

    def to_its_end(cwd: Path, script: str, *flags: object) -> str:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {"TERM": "xterm", "COLUMNS": "200", "LINES": "50"}
        mine, its = pty.openpty()
        shown = bytearray()
        with subprocess.Popen(command(script, *flags), cwd=cwd, env=environment, stdout=its, stderr=its) as process:
            os.close(its)
            with suppress(OSError):  # EIO: its last process has closed the terminal
                while part := os.read(mine, 65_536):
                    shown += part
        os.close(mine)
        output = shown.decode(errors="replace")
        assert process.returncode == 0, output
        return output

    return to_its_end
