"""The checkpoint folder, the whole contract between training and serving.

    model.safetensors   weights, nothing that executes
    config.json         format version and the recipe
    metrics.json        figures that were measured with these weights
    calibration.json    a temperature and thresholds for ranges, if train/evaluate.py --calibrate has fitted them

A folder is written under another name and renamed, so a reader never sees half of one.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float, UInt8
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from bintally.calibration import Calibration
from bintally.config import Recipe, recipe_from_dict
from bintally.errors import CheckpointError, ConfigError
from bintally.model import WEIGHTS_FILE, Counter, build_model

FORMAT: Final = 2  # 1 was trained on another split of the ids than recipes mean now
CONFIG_FILE: Final = "config.json"
METRICS_FILE: Final = "metrics.json"
CALIBRATION_FILE: Final = "calibration.json"

_CALIBRATION: Final = TypeAdapter(Calibration)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A loaded checkpoint, ready to count."""

    model: Counter
    """In evaluation mode, on the CPU."""
    recipe: Recipe
    """What the weights were trained by."""
    metrics: dict[str, Any]
    """Figures that were measured with these weights."""
    version: str
    """First 12 hex digits of the SHA-256 of the weights."""
    calibration: Calibration | None = None
    """How to read the probabilities, if that was fitted."""

    def predict(self, images: UInt8[np.ndarray, "batch size size 3"]) -> Float[np.ndarray, "batch classes"]:
        """Probability of each count 0..max_count, for photos as `decode_photo` makes them."""
        with torch.inference_mode():
            device = self.model.mean.device
            outputs = self.model(torch.tensor(images, device=device))  # a copy: arrays of the stream are read-only
            probabilities: np.ndarray = self.model.log_probabilities(outputs).exp().cpu().numpy()
        return probabilities


def save_checkpoint(path: Path, model: Counter, recipe: Recipe, metrics: dict[str, Any]) -> None:
    """Write a checkpoint folder; an older one at the same path is replaced as a whole.

    Raises:
        CheckpointError: the folder could not be written, as when the disk is full.
    """
    with written_whole(path) as partial:
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        safetensors.torch.save_file(state, partial / WEIGHTS_FILE)
        config = {"format": FORMAT, "recipe": asdict(recipe)}
        (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        (partial / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `path` at the end, or vanishes if the filling fails.

    Raises:
        CheckpointError: the folder could not be written, as when the disk is full.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} could not be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the config.
    """
    config = _read_json(path / CONFIG_FILE)
    if config.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {config.get('format')!r}; this BinTally reads format {FORMAT}")
    try:
        recipe = recipe_from_dict(config.get("recipe", {}), origin=str(path / CONFIG_FILE))
        size = recipe.data.image_size
        model = build_model(recipe.model, num_classes=recipe.data.num_classes, image_size=size, load_weights=False)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    version = load_weights(path, model)
    return Checkpoint(
        model=model.eval(),
        recipe=recipe,
        metrics=_read_json(path / METRICS_FILE),
        version=version,
        calibration=_read_calibration(path / CALIBRATION_FILE, version),
    )


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Store a calibration in the checkpoint folder that it was fitted with; a reader sees all of it, or the one before.

    Raises:
        CheckpointError: it could not be written, as when the disk is full.
    """
    partial = path / f".{CALIBRATION_FILE}.{os.getpid()}.partial"
    try:
        partial.write_text(json.dumps(asdict(calibration), indent=2) + "\n")
        partial.replace(path / CALIBRATION_FILE)
    except OSError as error:
        raise CheckpointError(f"{path / CALIBRATION_FILE} could not be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def load_weights(path: Path, model: Counter) -> str:
    """Load the weights of a checkpoint folder into a model; the version, as in `Checkpoint.version`.

    Raises:
        CheckpointError: the file is missing or damaged, or does not fit the model.
    """
    weights = _read_bytes(path / WEIGHTS_FILE)
    try:
        model.load_state_dict(safetensors.torch.load(weights))
    except SafetensorError as error:
        raise CheckpointError(f"{path / WEIGHTS_FILE} is damaged: {error}") from None
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {path} do not fit its config.json: {error}") from None
    return hashlib.sha256(weights).hexdigest()[:12]


def _read_calibration(path: Path, version: str) -> Calibration | None:
    if not path.exists():
        return None
    try:
        calibration = _CALIBRATION.validate_json(_read_bytes(path))
    except ValidationError as error:
        raise CheckpointError(f"{path} is no calibration: {error.errors()[0]['msg']}") from None
    if calibration.model_version != version:
        raise CheckpointError(
            f"{path} is of the weights {calibration.model_version}, not {version}: delete it, or calibrate anew"
        )
    return calibration


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return values


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"no checkpoint at {path.parent}: {error}") from None
