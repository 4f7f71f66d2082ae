"""The commands, as a user starts them: from any folder, without PYTHONPATH, with good and bad flags."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ("data/synthetic.py", "data/report.py", "train/fit.py", "train/evaluate.py", "tune/search.py", "demo.py")
HEAVY = {"torch", "torchvision", "ray", "matplotlib", "pyarrow", "obstore", "numpy"}


def run(script: str, *flags: str, cwd: Path, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "RAY_ADDRESS"}}
    command = [sys.executable, *python, str(ROOT / script), *flags]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_comes_without_heavy_imports_and_leaves_nothing(script: str, tmp_path: Path) -> None:
    # importtime lists every module that was imported; only the names are read here, not the times.
    done = run(script, "--help", cwd=tmp_path, python=("-X", "importtime"))
    imported = {name.split(".")[0] for name in re.findall(r"\|\s+([\w.]+)$", done.stderr, flags=re.MULTILINE)}
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")
    assert "tyro" in imported
    assert imported & HEAVY <= ({"numpy"} if script == "data/synthetic.py" else set())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "flags", "names"),
    [
        ("data/synthetic.py", ["--out", "bins", "--num-bins", "0"], "num_bins"),
        ("data/report.py", ["--source", "/bins"], "source"),
        ("data/report.py", ["--max-images", "0"], "max_images"),
        ("train/fit.py", ["--max-count", "0"], "max_count"),
        ("train/fit.py", ["--source", "gs://bucket"], "source"),
        ("train/fit.py", ["--recipe", "smoek"], "smoek"),
        ("train/fit.py", ["--recipe-file", "absent.json"], "absent.json"),
        ("train/evaluate.py", ["--checkpoint", "absent", "--run-dir", "out"], "absent"),
        ("tune/search.py", ["--resume"], "--run-dir"),
        ("tune/search.py", ["--max-images", "-1"], "max_images"),
        ("tune/search.py", ["--num-trials", "0"], "num_trials"),
        ("tune/search.py", ["--lr", "0.1", "0.01"], "lr"),
    ],
)
def test_a_value_that_makes_no_sense_is_one_line(script: str, flags: list[str], names: str, tmp_path: Path) -> None:
    done = run(script, *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert names in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("data/synthetic.py", ["--out", "bins", "--num-bins", "many"]),
        ("data/report.py", ["--num-cpus", "two"]),
        ("train/fit.py", ["--max-epochs", "1.5"]),
        ("train/evaluate.py", []),
        ("train/evaluate.py", ["--checkpoint", "x", "--split", "tset"]),
        ("tune/search.py", ["--num-trails", "3"]),
        ("demo.py", ["--num-bins", "many"]),
    ],
)
def test_flags_that_cannot_be_parsed_are_named_without_traceback(script: str, flags: list[str], tmp_path: Path) -> None:
    done = run(script, *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert (flags[-2] if flags else "--checkpoint") in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_refused_fit_leaves_no_folder(tmp_path: Path) -> None:
    run("train/fit.py", "--max-count", "0", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_evaluation_leaves_no_folder(tmp_path: Path) -> None:
    run("train/evaluate.py", "--checkpoint", "absent", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_demo_ends_with_the_exit_code_of_the_step_that_failed(tmp_path: Path) -> None:
    done = run("demo.py", "--num-bins", "0", "--run-dir", "demo", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: num_bins" in done.stderr
    assert "Traceback" not in done.stderr
    assert "2/4" not in done.stdout
