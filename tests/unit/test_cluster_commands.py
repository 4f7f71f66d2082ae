"""What cluster.yaml ships to the nodes, and its commands in a pretend home."""

import subprocess
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

from cluster.render import ROOT, cluster_config

Config = dict[str, Any]

PACKAGES = ("bintally", "data", "train", "tune", "serve")
BUILD_FILES = ("requirements.lock", "pyproject.toml", "README.md", "LICENSE")  # hatchling reads the last two
OUTPUTS = (".venv/bin/python", "runs/a/b.pt", "data/__pycache__/a.pyc", ".git/config", "my.pem", ".env")


@pytest.fixture
def config() -> Config:
    return cluster_config()


def rsync_skips(pattern: str, path: str) -> bool:
    """Say whether rsync leaves out a file; our patterns have a slash before all of a path, or nowhere."""
    if "/" in pattern.strip("/"):
        assert pattern.startswith("/")
        return fnmatch(f"/{path}", pattern)
    parts = path.split("/")
    last = len(parts) - pattern.endswith("/")  # a trailing slash: folders only
    return any(fnmatch(part, pattern.strip("/")) for part in parts[: min(last, 1) if pattern[0] == "/" else last])


def patterns_for(config: Config, folder: Path) -> list[str]:
    """Patterns by which rsync leaves out parts of a folder: those for all, and those of files there."""
    files = [folder / name for name in config["rsync_filter"] if (folder / name).exists()]
    lines = [line for file in files for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return [*config["rsync_exclude"], *lines]


def must_ship() -> list[str]:
    sources = [str(p.relative_to(ROOT)) for package in PACKAGES for p in (ROOT / package).rglob("*.py")]
    assert {path.split("/")[0] for path in sources} == set(PACKAGES)
    to_come = [f"{p}/{name}" for p in PACKAGES for name in ("runs.py", "dist.py", "checkpoint.py", "a.json")]
    return [*PACKAGES, *sources, *to_come, *BUILD_FILES, "baselines/a.json"]


def test_rsync_ships_the_code_and_nothing_else(config: Config) -> None:
    patterns = patterns_for(config, ROOT)
    assert [p for p in patterns if p.startswith(("!", "-", "+"))] == []  # which rsync reads otherwise than git
    assert [p for p in must_ship() if any(rsync_skips(x, p) for x in patterns)] == []
    assert [p for p in OUTPUTS if not any(rsync_skips(x, p) for x in patterns)] == []
    assert rsync_skips("data/", "data/bucket.py")
    assert rsync_skips("/docs/**/*.png", "docs/images/a.png")


def test_rsync_ships_the_key_by_which_the_head_reaches_its_workers(config: Config, tmp_path: Path) -> None:
    patterns = patterns_for(config, tmp_path)  # its folder is none of ours
    assert [x for x in patterns if rsync_skips(x, "ray-autoscaler_1_us-east-1.pem")] == []


def test_working_dir_uploads_hide_no_package() -> None:
    hidden_by = get_excludes_from_ignore_files(ROOT, include_gitignore=True)
    assert len(hidden_by) == 2  # .gitignore and .rayignore
    assert [p for p in must_ship() if any(hides(ROOT / p) for hides in hidden_by)] == []
    unwanted = [*OUTPUTS, ".venv", ".git", "runs", "docs/img/a.png"]
    assert [p for p in unwanted if not hidden_by[1](ROOT / p)] == []


STUB = '#!/bin/bash\necho "$(basename "$0") $* [$RAY_AUTH_MODE]" >> ~/calls\n'
UV_STUB = STUB + '[ "$1" != venv ] || { mkdir -p ~/venv/bin && install -m 755 /dev/null ~/venv/bin/python; }\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("bin/sudo", "bin/cloud-init", "bin/ray", "bin/python", "uv/bin/uv"):
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(UV_STUB if name.endswith("/uv") else STUB)
        program.chmod(0o755)
    (tmp_path / "bintally").mkdir()
    (tmp_path / "bintally/requirements.lock").write_text("a==1\n")
    return tmp_path


def run_commands(home: Path, commands: list[str]) -> list[str]:
    """Run commands as Ray does, each in a shell of its own that reads ~/.bashrc, and return the programs called."""
    (home / "calls").write_text("")
    env = {"HOME": str(home), "PATH": f"{home}/bin:/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.1"}
    (home / ".bashrc").touch()
    for command in commands:
        subprocess.run(["/bin/bash", "-c", f"source ~/.bashrc; ({command})"], env=env, check=True)
    return (home / "calls").read_text().splitlines()


def test_token_authentication_is_on_before_ray_starts(config: Config, home: Path) -> None:
    for start in ("head_start_ray_commands", "worker_start_ray_commands"):
        calls = run_commands(home, config["initialization_commands"] + config[start])
        assert [c.split()[:2] for c in calls if c.startswith("ray ")] == [["ray", "stop"], ["ray", "start"]]
        assert all(c.endswith(" [token]") for c in calls)
    (started,) = (c for c in calls if c.startswith("ray start"))
    assert "--address=10.0.0.1:6379" in started
    watch = "python -m train.spot --address=10.0.0.1:6379 [token]\n"
    deadline = time.monotonic() + 10
    while watch not in (home / "calls").read_text():  # detached, so it may call later
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (home / ".bashrc").read_text().count("bintally_env") == 1  # set up twice, added once
    exported = (home / ".bintally_env").read_text().splitlines()
    assert {"export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0", 'export VIRTUAL_ENV="$HOME/venv"'} <= set(exported)


def test_a_node_with_faulty_gpus_does_not_join(config: Config, home: Path) -> None:
    (home / "bin/python").write_text(STUB + '[ "$2" != train.gpu_check ]\n')
    with pytest.raises(subprocess.CalledProcessError):
        run_commands(home, config["initialization_commands"] + config["worker_start_ray_commands"])
    assert (home / "calls").read_text().splitlines() == ["ray stop [token]", "python -m train.gpu_check [token]"]


def test_packages_are_installed_only_when_the_lock_changed(config: Config, home: Path) -> None:
    commands = config["initialization_commands"] + config["setup_commands"]
    packages = "uv pip install --require-hashes -r requirements.lock [token]"
    project = "uv pip install --no-deps --no-build-isolation -e . [token]"
    first_boot = [f"uv venv --python 3.11 {home}/venv [token]", packages, project]
    for lock, expected in (("a==1", first_boot), ("a==1", [project]), ("a==2", [packages, project])):
        (home / "bintally/requirements.lock").write_text(lock)
        assert [c for c in run_commands(home, commands) if c.startswith("uv ")] == expected


def test_a_broken_install_fails_and_is_tried_again(config: Config, home: Path) -> None:
    commands = config["initialization_commands"] + config["setup_commands"]
    (home / "uv/bin/uv").write_text(UV_STUB + '[ "$3" != --require-hashes ]\n')
    for _ in range(2):
        with pytest.raises(subprocess.CalledProcessError):
            run_commands(home, commands)
    assert not (home / "venv/requirements.sha256").exists()
