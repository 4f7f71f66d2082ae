"""A training on drawn bins, whose weights rows of the results begin with."""

import shutil
import sys
from pathlib import Path
from typing import Final

from benchmarks.parts.result_runs import ROOT, run_logged
from data.progress import say

NUM_BINS: Final = 8000
DIFFICULTY: Final = 0.9  # near the real pictures
MAX_EPOCHS: Final = 12
SETTINGS: Final = ("data.image_size=96", "data.resize=letterbox", "allow_empty_counts=true")


def checkpoint_dir(folder: Path) -> Path:
    """Where the weights lie once `pretrain` is done."""
    return folder / "train/checkpoint"


def pretrain(folder: Path, *, quick: bool, use_gpu: bool) -> None:
    """Draw the bins and train on them, unless that is done.

    Args:
        folder: for the bins, the training and the logs.
        quick: few bins and one epoch.
        use_gpu: train on one.

    Raises:
        RunError: a command failed.
    """
    if (checkpoint_dir(folder) / "model.safetensors").is_file():
        return
    num_bins, max_epochs = (300, 1) if quick else (NUM_BINS, MAX_EPOCHS)
    bins, partial = folder / "bins", folder / "bins.partial"
    say(f"pre-training on {num_bins:,} drawn bins; logs in {folder}")
    draw = ["--num-bins", str(num_bins), "--out", str(partial), "--difficulty", str(DIFFICULTY), "--max-count", "5"]
    if not bins.exists():
        shutil.rmtree(partial, ignore_errors=True)  # of a draw that was killed
        run_logged([sys.executable, str(ROOT / "data/synthetic.py"), *draw, "--num-workers", "2"], folder / "draw.log")
        partial.rename(bins)
    train = ["--recipe", "demo", "--source", f"file://{bins}", "--run-dir", str(folder / "train")]
    train += ["--max-epochs", str(max_epochs), "--set", *SETTINGS, *(["--use-gpu"] if use_gpu else [])]
    run_logged([sys.executable, str(ROOT / "train/fit.py"), *train], folder / "train.log")
