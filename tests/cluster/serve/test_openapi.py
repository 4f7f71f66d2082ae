"""Requests made up from the OpenAPI document: whatever comes, the answers are those that it tells of."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.cluster

# Bytes that satisfy the schema of a body are seldom a photo.
UNFIT = "positive_data_acceptance"


def test_answers_are_as_documented(run_local: Callable[..., Any], served_checkpoint: Path, tmp_path: Path) -> None:
    with run_local({"checkpoint": str(served_checkpoint), "audit_source": f"file://{tmp_path}"}, tmp_path) as server:
        command = [str(Path(sys.executable).with_name("schemathesis")), "run", "--no-color", "--seed", "1"]
        command += ["--max-examples", "20", "--exclude-checks", UNFIT, "--request-timeout", "120"]
        ended = subprocess.run(
            [*command, f"http://{server.host}:{server.port}/openapi.json"],
            cwd=tmp_path,
            env=os.environ | {"SCHEMATHESIS_HOOKS": "fuzz_hooks", "PYTHONPATH": str(Path(__file__).parent)},
            capture_output=True,
            text=True,
            check=False,
        )
        log = (tmp_path / "server.log").read_text()
    assert ended.returncode == 0, ended.stdout
    assert "Tested: 0" not in ended.stdout
    assert "traceback" not in log
