"""The verbs of the Makefile for a cluster, as make would run them, and the tunnel that they use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.render import ROOT


def would_run(*args: str) -> subprocess.CompletedProcess[str]:
    """What make would do if the environment were ready, without doing it."""
    command = ["make", "--dry-run", "--no-print-directory", "--old-file=setup", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_up_has_a_token_of_the_users_own_and_renders_the_variant() -> None:
    done = would_run("up", "VARIANT=one-gpu", "ARGS=--yes")
    assert "cluster/render.py --variant one-gpu --out runs/cluster-one-gpu.yaml" in done.stdout
    get, chmod, up = done.stdout.splitlines()[-3:]
    assert "ray get-auth-token --generate" in get
    assert chmod == "chmod 600 ~/.ray/auth_token"
    assert up == "RAY_AUTH_MODE=token .venv/bin/ray up runs/cluster-one-gpu.yaml --yes"


@pytest.mark.parametrize(
    ("args", "command"),
    [
        (
            ("submit", "ARGS=a.py --b c"),
            ".venv/bin/python cluster/tunnel.py cluster.yaml ray job submit --working-dir . -- python a.py --b c",
        ),
        (("serve-up", "CONFIG=a.yaml"), ".venv/bin/python cluster/tunnel.py cluster.yaml serve deploy a.yaml"),
        (("down",), ".venv/bin/ray down cluster.yaml"),
    ],
)
def test_verbs(args: tuple[str, ...], command: str) -> None:
    assert command in [line.strip() for line in would_run(*args).stdout.splitlines()]


def test_mistakes_are_told_in_a_line() -> None:
    assert 'name the command: make submit ARGS="tune/search.py' in would_run("submit").stderr


def run_tunnel(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "cluster" / "tunnel.py"), *args]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=False)


def test_a_tunnel_without_a_cluster_is_one_line(tmp_path: Path) -> None:
    nothing = run_tunnel("none.yaml", "serve", "status")
    assert (nothing.returncode, nothing.stderr) == (
        2,
        "error: none.yaml is no file; name the YAML that the cluster was started with\n",
    )
    config = tmp_path / "c.yaml"
    config.write_text("cluster_name: [\n")
    broken = run_tunnel(str(config), "serve", "status")
    assert broken.returncode == 2
    assert broken.stderr.startswith(f"error: no tunnel to the dashboard of {config}: ")
    assert broken.stderr.count("\n") == 1
    assert run_tunnel(str(config)).stderr.startswith("Run a command that talks to a cluster's dashboard")
