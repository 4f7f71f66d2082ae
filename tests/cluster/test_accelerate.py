"""The acceleration as a command: graphs are made, checked and stored, and the server's core counts by them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bintally.checkpoint import load_checkpoint, save_checkpoint
from bintally.model import build_model
from bintally.recipes import smoke
from bintally.runtime import load_runtime, probe_photos
from bintally.runtime_record import read_runtime_record

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    recipe = smoke()
    path = tmp_path_factory.mktemp("accelerate") / "checkpoint"
    save_checkpoint(path, build_model(recipe.model, num_classes=recipe.data.num_classes), recipe, {})
    return path


def accelerate(checkpoint: Path, bucket: Path, *flags: str, code: int = 0) -> str:
    """Output of the command, which must end with this code."""
    given = ("--checkpoint", str(checkpoint), "--source", f"file://{bucket}", *flags)
    done = subprocess.run(
        [sys.executable, str(ROOT / "train/accelerate.py"), *given],
        cwd=checkpoint.parent,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def test_what_is_stored_is_what_was_shown(checkpoint_dir: Path, synthetic_bucket: Path) -> None:
    output = accelerate(checkpoint_dir, synthetic_bucket, "--max-dropped", "20%")
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
    checkpoint_dir: Path, synthetic_bucket: Path, flags: tuple[str, ...], names: str
) -> None:
    before = {path.name: path.read_bytes() for path in checkpoint_dir.iterdir()}
    error = accelerate(checkpoint_dir, synthetic_bucket, *flags, code=2)
    assert names in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in checkpoint_dir.iterdir()} == before
