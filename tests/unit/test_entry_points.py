"""The commands, from any folder: what --help needs, and how good and bad flags end."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
InProcess = Callable[..., Any]
SCRIPTS = (
    "data/manifest.py",
    "data/synthetic.py",
    "data/leaks.py",
    "data/report.py",
    "train/fit.py",
    "train/evaluate.py",
    "train/accelerate.py",
    "tune/search.py",
    "serve/client.py",
    "serve/start.py",
    "serve/front.py",
    "serve/export.py",
    "demo.py",
)
HEAVY = {"torch", "torchvision", "ray", "matplotlib", "pyarrow", "obstore", "numpy"}


def run(
    script: str, *flags: str, cwd: Path, python: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "RAY_ADDRESS"}} | variables
    command = [sys.executable, *python, str(ROOT / script), *flags]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False)


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
        ("data/manifest.py", ["--out", "m.csv"], "out must be a .parquet file"),
        ("data/manifest.py", ["--out", "m.parquet", "--ids", "some"], "ids"),
        ("data/manifest.py", ["--out", "m.parquet", "--max-failed", "1.5"], "max_failed"),
        ("data/leaks.py", ["--max-count", "0"], "max_count"),
        ("data/leaks.py", ["--split-by", "official"], "labels"),
        ("data/report.py", ["--source", "/bins"], "source"),
        ("data/report.py", ["--max-images", "0"], "max_images"),
        ("train/fit.py", ["--max-count", "0"], "max_count"),
        ("train/fit.py", ["--max-dropped", "lots"], "max_dropped"),
        ("train/evaluate.py", ["--checkpoint", "absent", "--cache-gb", "0"], "cache_gb"),
        ("train/accelerate.py", ["--checkpoint", "absent", "--max-dropped", "lots"], "max_dropped"),
        ("train/accelerate.py", ["--checkpoint", "absent"], "no checkpoint at absent"),
        ("tune/search.py", ["--max-dropped", "200%"], "max_dropped"),
        ("train/fit.py", ["--checkpoint-s", "nan"], "checkpoint_s"),
        ("train/fit.py", ["--set", "optim.momentum=0.9"], "optim.momentum"),
        ("tune/search.py", ["--checkpoint-s", "0"], "checkpoint_s"),
        ("train/fit.py", ["--source", "gs://bucket"], "source"),
        ("train/fit.py", ["--recipe", "smoek"], "smoek"),
        ("train/fit.py", ["--recipe-file", "absent.json"], "absent.json"),
        ("train/evaluate.py", ["--checkpoint", "absent", "--run-dir", "out"], "absent"),
        ("tune/search.py", ["--resume"], "--run-dir"),
        ("tune/search.py", ["--max-images", "-1"], "max_images"),
        ("tune/search.py", ["--num-trials", "0"], "num_trials"),
        ("tune/search.py", ["--lr", "0.1", "0.01"], "lr"),
        ("serve/export.py", ["--checkpoint", "absent", "--out", "model.zip"], "out must end with .tar.gz"),
        ("serve/export.py", ["--checkpoint", "absent", "--out", "model.tar.gz"], "no checkpoint at absent"),
        ("serve/export.py", ["delete", "--name", "Bins"], "name must be"),
    ],
)
def test_a_value_that_makes_no_sense_is_one_line(
    script: str, flags: list[str], names: str, in_process: InProcess, tmp_path: Path
) -> None:
    done = in_process(script, *flags)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert names in done.err
    assert done.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("data/synthetic.py", ["--out", "bins", "--num-bins", "many"]),
        ("data/manifest.py", ["--out", "m.parquet", "--max-failed", "few"]),
        ("data/leaks.py", ["--max-images", "many"]),
        ("data/report.py", ["--num-cpus", "two"]),
        ("train/fit.py", ["--max-epochs", "1.5"]),
        ("train/evaluate.py", []),
        ("train/evaluate.py", ["--checkpoint", "x", "--split", "tset"]),
        ("tune/search.py", ["--num-trails", "3"]),
    ],
)
def test_flags_that_cannot_be_parsed_are_named_without_traceback(
    script: str, flags: list[str], in_process: InProcess, tmp_path: Path
) -> None:
    done = in_process(script, *flags)
    assert done.code == 2
    assert (flags[-2] if flags else "--checkpoint") in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def refused_before_ray(
    in_process: InProcess, synthetic_bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """`refused_before_ray(script, *flags)`: what the command says on stderr, which is one line."""

    def no_ray(*_: object, **__: object) -> None:
        raise AssertionError("a Ray was to start")

    monkeypatch.setattr("ray.init", no_ray)

    def call(script: str, *flags: object) -> str:
        source = () if "--source" in flags else ("--source", f"file://{synthetic_bucket}")
        done = in_process(script, *flags, *source)
        assert done.code == 2
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
        return done.err

    return call


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--weights", "other.pth"], r"other\.pth' do not fit model\.backbone 'small_cnn'"),
        (["--max-images", "2"], r"the (train|val) split is empty"),
    ],
)
@pytest.mark.parametrize("script", ["train/fit.py", "tune/search.py"])
def test_what_cannot_be_trained_is_one_line_before_ray_starts(
    script: str, flags: list[str], names: str, refused_before_ray: Callable[..., str], tmp_path: Path
) -> None:
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pth")
    assert re.search(names, refused_before_ray(script, "--recipe", "smoke", *flags))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source", "file:///nowhere"], "there is no folder /nowhere"),
        (["--source", "nowhere"], "source must be s3://"),
        (["--source", "s3://b", "--endpoint-url", "http://127.0.0.1:9"], "http://127.0.0.1:9 cannot be read"),
        (["--batch-sizes", "4096"], "global_batch_size 4096 is larger than the training split"),
        (["--num-workers", "2", "--batch-sizes", "15"], "cannot be shared equally"),
        (["--resume"], "holds no search to resume"),
        (["--recipe", "unheard_of"], "recipe 'unheard_of' is unknown; choose one of"),
        (["--backbone", "resnet99"], "model.backbone 'resnet99' is unknown; choose small_cnn or one of"),
        (["--weights", "nowhere.safetensors"], "there are no weights at 'nowhere.safetensors'"),
        (["--lr", "0.1", "0.01"], "lr: bounds must be finite, the lower one first"),
        (["--space", "optim.colour=1,2"], "space names optim.colour, which is no field of a recipe"),
        (["--space", "model.backbone=small_cnn,resnet99"], "model.backbone 'resnet99' is unknown"),
    ],
)
def test_what_cannot_be_searched_is_one_line_before_ray_starts(
    flags: list[str], message: str, refused_before_ray: Callable[..., str]
) -> None:
    given = ("--recipe", "smoke", "--num-trials", 2, "--batch-sizes", 16, "--run-dir", "found")
    assert message in refused_before_ray("tune/search.py", *given, *flags)


def test_a_refused_command_leaves_no_folder(tmp_path: Path) -> None:
    """In a process of its own, as a user sees it."""
    done = run("train/fit.py", "--max-count", "0", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*max_count.*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_leaks_are_told_of_a_bucket(synthetic_bucket: Path, tmp_path: Path) -> None:
    done = run("data/leaks.py", "--source", f"file://{synthetic_bucket}", "--run-dir", "leaks", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert {path.name for path in (tmp_path / "leaks").iterdir()} == {"leaks.json", "leaks.html"}
    splits = json.loads((tmp_path / "leaks" / "leaks.json").read_text())["splits"]
    for name, one in splits.items():
        assert f"  {name} " in done.stdout
        assert all(part["num_sure"] <= part["num_siblings"] <= part["num_images"] for part in (one["val"], one["test"]))
    assert splits["hash"]["test"]["num_siblings"] > splits["grouped"]["test"]["num_siblings"]
    assert splits["grouped, records known"]["test"]["num_siblings"] == 0


def test_leaks_need_readable_lists(synthetic_bucket: Path, tmp_path: Path) -> None:
    flags = ("--source", f"file://{synthetic_bucket}", "--labels", "absent", "--run-dir", "leaks")
    done = run("data/leaks.py", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: labels: there is no counting_train.json in {tmp_path}/absent\n"


def test_the_demo_ends_with_the_exit_code_of_the_step_that_failed(tmp_path: Path) -> None:
    done = run("demo.py", "--num-bins", "0", "--run-dir", "demo", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: num_bins" in done.stderr
    assert "Traceback" not in done.stderr
    assert "2/4" not in done.stdout
