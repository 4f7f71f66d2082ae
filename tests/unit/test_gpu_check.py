"""train/gpu_check.py by a stand-in for nvidia-smi, which answers as the real one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

A10G = "{index}, NVIDIA A10G, {driver}, {faults}\n"


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    return tmp_path


def run_check(bin_dir: Path, gpus: int | None, smi: str | None, *flags: str) -> subprocess.CompletedProcess[str]:
    if smi is not None:
        (bin_dir / "nvidia-smi").write_text(f"#!/bin/sh\n{smi}")
        (bin_dir / "nvidia-smi").chmod(0o755)
    env = os.environ | {"PATH": f"{bin_dir}:/bin"}
    if gpus is not None:
        env["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": 48, "GPU": gpus})
    command = [sys.executable, "-m", "train.gpu_check", *flags]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def listing(*, num_gpus: int = 4, driver: str = "580.95.05", faults: str = "0") -> str:
    lines = "".join(A10G.format(index=i, driver=driver, faults=faults) for i in range(num_gpus))
    return f"cat <<'EOF'\n{lines}EOF\n"


def test_healthy_gpus_pass(bin_dir: Path) -> None:
    done = run_check(bin_dir, 4, listing())
    assert (done.returncode, done.stdout) == (0, "GPUs: 4 x NVIDIA A10G, driver 580.95.05\n")
    assert run_check(bin_dir, 4, listing(faults="[N/A]")).returncode == 0


@pytest.mark.parametrize(
    ("smi", "says"),
    [
        (None, "no nvidia-smi"),
        (listing(num_gpus=3), "4 GPUs are expected, but 3 are there"),
        (listing(driver="535.183.01"), "the driver is 535.183.01"),
        (listing(faults="2"), "GPU 0 has 2 memory errors"),
        (listing(driver="[Unknown Error]"), "may be broken: 0, NVIDIA A10G, [Unknown Error], 0"),
        ("echo '[GPU is lost]'; echo; echo 1; echo 2; echo 3\n", "may be broken: [GPU is lost]"),
        ("echo 'Unable to determine the device handle: GPU is lost' >&2; exit 15\n", "GPU is lost"),
    ],
)
def test_faults_keep_the_node_out_with_one_line(bin_dir: Path, smi: str | None, says: str) -> None:
    done = run_check(bin_dir, 4, smi)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("gpus", [None, 0])
def test_a_node_without_gpus_is_not_looked_at(bin_dir: Path, gpus: int | None) -> None:
    done = run_check(bin_dir, gpus, None)
    assert (done.returncode, done.stdout) == (0, "GPUs: none expected\n")


def test_help_checks_nothing(bin_dir: Path) -> None:
    done = run_check(bin_dir, 4, None, "--help")  # without nvidia-smi a check would fail
    assert (done.returncode, done.stdout.split()[0]) == (0, "usage:")
