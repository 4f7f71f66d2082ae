"""`ray up` with cluster.yaml, from the head to the last node, where Linux lets us have namespaces."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REHEARSAL = Path(__file__).parent / "ray_up" / "rehearse.py"
PRIVATE = ("unshare", "-Urnmpfu", "--mount-proc", "--kill-child")
pytestmark = [pytest.mark.cluster, pytest.mark.faults]


def may_have_namespaces() -> bool:
    try:
        probe = [*PRIVATE, "/bin/bash", "-c", "ip link add br0 type bridge && mount -t tmpfs srv /srv"]
        return subprocess.run(probe, capture_output=True, timeout=10, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not may_have_namespaces(), reason="unshare may not make network namespaces here")
def test_ray_up_with_autoscaling_and_a_spot_notice() -> None:
    command = [*PRIVATE, sys.executable, str(REHEARSAL)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=840)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said
    assert said.rstrip().endswith("ray down: no instance is left")
