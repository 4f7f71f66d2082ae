"""The rules of imports: which way they go, what modules may be called, and that importing does nothing."""

import ast
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("bintally", "data", "train", "tune", "serve")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES if path.stem != "__init__"]


def imported_tops(path: Path) -> set[str]:
    """First names of everything that a file imports absolutely; '' stands for a relative import."""
    tops: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            tops |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            tops.add("" if node.level else (node.module or "").split(".")[0])
    return tops


def test_the_contracts_of_import_linter_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout
    assert "5 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_hides_another(package: str) -> None:
    """`python train/fit.py` puts train/ first on the path: train/queue.py would be everybody's `queue`."""
    installed = set(importlib.metadata.packages_distributions()) | {"sagemaker"}  # an extra
    taken = sys.stdlib_module_names | installed | set(PACKAGES)
    names = {path.stem for path in (ROOT / package).glob("*.py")} | {
        path.name for path in (ROOT / package).iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    assert names & taken == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_by_package(path: Path) -> None:
    siblings = {sibling.stem for sibling in path.parent.glob("*.py")}
    assert imported_tops(path) & (siblings | {""}) == set()


def test_no_file_edits_the_path() -> None:
    files = [*SOURCES, ROOT / "demo.py", *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    needle = ".".join(("sys", "path"))  # so that this file passes
    assert [str(path) for path in files if needle in path.read_text()] == []


def test_importing_everything_starts_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "cwd").mkdir()
    (tmp_path / "tmp").mkdir()
    code = f"""
import importlib, json, logging, os, threading
before = dict(os.environ)
for name in {[*MODULES, "demo"]!r}:
    importlib.import_module(name)
import ray
print(json.dumps({{
    "ray started": ray.is_initialized(),
    "changed environment": sorted(
        key for key in before.keys() | os.environ.keys()
        if before.get(key) != os.environ.get(key) and key.startswith(("RAY_ADDRESS", "RAY_GCS", "CUDA_VIS", "AWS_"))
    ),
    "root log handlers": len(logging.root.handlers),
    "files": [str(path) for folder in (".", os.environ["TMPDIR"]) for path in os.listdir(folder)],
}}))
"""
    env = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path / "cwd", env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "ray started": False,
        "changed environment": [],
        "root log handlers": 0,
        "files": [],
    }
