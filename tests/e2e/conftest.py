"""Commands as a user runs them: in processes of their own, from another folder, without PYTHONPATH."""

import os
import subprocess
import sys
from collections.abc import Callable
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
