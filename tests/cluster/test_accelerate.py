"""The acceleration as a command: graphs are made, checked and stored, and the server's core counts by them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bintally.checkpoint import load_checkpoint, save_checkpoint
from bintally.model import build_model
from bintally.recipes import smoke
from bintally.runtime import load_runtime, probe_photos
from bintally.runtime_record import read_runtime_record

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("shared_ray")]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    recipe = smoke()
    path = tmp_path_factory.mktemp("accelerate") / "checkpoint"
    save_checkpoint(path, build_model(recipe.model, num_classes=recipe.data.num_classes), recipe, {})
    return path


def test_what_is_stored_is_what_was_shown(checkpoint_dir: Path, synthetic_bucket: Path) -> None:
    flags = ("--checkpoint", str(checkpoint_dir), "--source", f"file://{synthetic_bucket}", "--max-dropped", "20%")
    done = subprocess.run(
        [sys.executable, str(ROOT / "train/accelerate.py"), *flags],
        cwd=checkpoint_dir.parent,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    output = done.stdout
    checkpoint = load_checkpoint(checkpoint_dir)
    record = read_runtime_record(checkpoint_dir, checkpoint.version)
    assert f"{record.chosen}: {record.why}" in output
    assert 30 < record.measured["val_photos"] < 256
    assert 100 < record.measured["calibration_photos"] <= 256
    assert "onnx_fp32" in record.graphs
    for name, trial in record.measured["runtimes"].items():
        assert f"{trial['accuracy']:.2%}" in next(line for line in output.splitlines() if line.startswith(f"  {name}"))
    runtime = load_runtime(checkpoint_dir, checkpoint)
    assert (runtime.name, runtime.reason) == (record.chosen, record.why)
    shown = probe_photos(32)
    exact = load_runtime(checkpoint_dir, checkpoint, "onnx_fp32").predict(shown)
    np.testing.assert_allclose(exact, checkpoint.predict(shown), atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (("--max-dropped", "0%"), "--max-dropped"),
        (("--ids", "list:00000"), "val split is empty"),
        (("--image-size", "64"), "those of the checkpoint"),
    ],
)
def test_a_fault_is_one_line_and_writes_nothing(
    checkpoint_dir: Path,
    synthetic_bucket: Path,
    in_process: Callable[..., Any],
    flags: tuple[str, ...],
    names: str,
) -> None:
    before = {path.name: path.read_bytes() for path in checkpoint_dir.iterdir()}
    given = ("--checkpoint", checkpoint_dir, "--source", f"file://{synthetic_bucket}")
    done = in_process("train/accelerate.py", *given, *flags)
    assert done.code == 2
    assert names in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in checkpoint_dir.iterdir()} == before
