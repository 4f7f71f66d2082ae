"""The photo and the checkpoint that every server of benchmarks/serve.py is given, and the bare counting of it."""

import io
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from bintally.calibration import Calibration
from bintally.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, write_calibration
from bintally.config import ModelConfig, OptimConfig, Recipe
from bintally.errors import ConfigError, RunError
from bintally.image import decode_photo
from bintally.model import build_model
from bintally.runtime import load_runtime
from bintally.source_config import DataConfig

SIZE: Final = (520, 640)  # width and height
NUM_BYTES: Final = 58_000
IMAGE_SIZE: Final = 224
ABID_PAIRS: Final = "bucket/bin-images"
NUM_CALIBRATION: Final = 16  # any ranges do: the weights are random


class Bare:
    """Counts photos with nothing around it; the other servers are made of it, too."""

    def __init__(self, checkpoint_dir: str, runtime: str = "eager") -> None:
        torch.set_num_threads(1)
        path = Path(checkpoint_dir)
        checkpoint = load_checkpoint(path)
        self._pixels = checkpoint.recipe.data.pixels
        self._predict = load_runtime(path, checkpoint, runtime).predict  # type: ignore[arg-type]

    def decode(self, photo: bytes) -> np.ndarray:
        """The pixels that the network is shown, as uint8 (224, 224, 3)."""
        return decode_photo(photo, self._pixels)

    def count(self, photos: list[np.ndarray]) -> list[dict[str, Any]]:
        """The answers to decoded photos, JSON-ready."""
        probabilities = self._predict(np.stack(photos))
        return [{"count": int(row.argmax()), "probabilities": row.tolist()} for row in probabilities]


def make_photo(abid_dir: Path | None) -> bytes:
    """A JPEG of 520x640 and 58 kB: a real bin where there is a folder of ABID, else a drawn one.

    Raises:
        ConfigError: the folder holds no photo.
    """
    image = _real_photo(abid_dir) if abid_dir else _drawn_photo()
    image = image.convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)
    return min((_encode(image, quality) for quality in range(30, 100)), key=lambda photo: abs(len(photo) - NUM_BYTES))


def _encode(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _real_photo(abid_dir: Path) -> Image.Image:
    paths = list((abid_dir / ABID_PAIRS).glob("*.jpg"))
    if not paths:
        raise ConfigError(f"abid must be a folder with {ABID_PAIRS}; {abid_dir} has no photo there")
    # The one nearest to the size, so that little of it is made up.
    return Image.open(min(paths, key=lambda path: (abs(path.stat().st_size - NUM_BYTES), path.name)))


def _drawn_photo() -> Image.Image:
    from benchmarks.parts.decoders import draw_photos

    return Image.open(io.BytesIO(max(draw_photos(8), key=len)))


def make_checkpoint(folder: Path, photo: bytes, *, with_graphs: bool) -> None:
    """A calibrated resnet18 of random weights that counts 0..5, with graphs of ONNX Runtime beside it if asked for."""
    torch.manual_seed(0)
    recipe = Recipe(
        name="benchmark",
        data=DataConfig(image_size=IMAGE_SIZE),
        model=ModelConfig(backbone="resnet18"),
        optim=OptimConfig(lr=1e-3, global_batch_size=16),
        max_epochs=1,
    )
    model = build_model(recipe.model, num_classes=recipe.data.num_classes, image_size=IMAGE_SIZE, load_weights=False)
    save_checkpoint(folder, model.eval(), recipe, {})
    checkpoint = load_checkpoint(folder)
    calibration = Calibration(
        temperature=1.5,
        thresholds={"0.8": 0.5, "0.9": 0.6, "0.95": 0.7},
        model_version=checkpoint.version,
        source="none",
        split="val",
        split_by="grouped",
        num_images=0,
    )
    write_calibration(folder, calibration)
    if with_graphs:
        _add_graphs(folder, checkpoint, photo)


def _add_graphs(folder: Path, checkpoint: Checkpoint, photo: bytes) -> None:
    from bintally.runtime_record import RuntimeRecord, write_runtime
    from train.runtimes import make_graphs

    pixels = decode_photo(photo, checkpoint.recipe.data.pixels)
    graphs = make_graphs(checkpoint, np.stack([np.roll(pixels, 8 * shift, axis=1) for shift in range(NUM_CALIBRATION)]))
    if graphs.failed:
        raise RunError(f"the graphs could not be made: {graphs.failed}")
    record = RuntimeRecord(
        model_version=checkpoint.version,
        chosen="onnx_int8",
        why="benchmarks/serve.py measures its speed; of random weights there is no accuracy to lose",
        graphs=graphs.records,
        refused={},
    )
    write_runtime(folder, record, graphs.files)
