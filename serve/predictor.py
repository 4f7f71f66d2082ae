"""A checkpoint that counts: bytes to a photo, photos to calibrated counts. Knows nothing of HTTP or Ray."""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from bintally.calibration import TOLD
from bintally.checkpoint import Checkpoint, load_checkpoint
from bintally.errors import CheckpointError
from bintally.image import decode_and_assess
from bintally.prediction import Prediction
from bintally.quality import PhotoQuality
from bintally.runtime import Runtime, load_runtime
from bintally.verify import Verdict, VerifyThresholds, verify
from serve.settings import RuntimeChoice

Photo = UInt8[np.ndarray, "size size 3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """What the model says of one photo."""

    count: int
    """The most probable count."""
    probabilities: tuple[float, ...]
    """Of the counts 0..max_count, calibrated if the checkpoint is."""
    expected_value: float
    """Mean of the distribution, in items."""
    low: int | None
    """The least count of the range that holds 90 % of the records; None without a calibration."""
    high: int | None
    """The largest one."""


class Predictor:
    """Counts the items in photos, on the pixel path of training."""

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        self._checkpoint = checkpoint
        self._runtime = runtime
        self._pixels = checkpoint.recipe.data.pixels

    @classmethod
    def load(cls, path: Path, runtime: RuntimeChoice = "auto", device: str = "cpu") -> Self:
        """Read a checkpoint folder and let its model count once.

        Args:
            path: the folder.
            runtime: what computes.
            device: of PyTorch. Other ones than cpu mean PyTorch, where nothing else is asked for: graphs are for CPUs.

        Raises:
            CheckpointError: the folder is missing or damaged, its model gives no probabilities, or a graph is asked for
                on another device.
        """
        if device != "cpu" and runtime not in ("auto", "eager"):
            raise CheckpointError(
                f"runtime {runtime} counts on CPUs alone, and this replica has a GPU; take num_gpus: 0"
            )
        checkpoint = load_checkpoint(path)
        checkpoint.model.to(device)
        chosen = load_runtime(path, checkpoint, runtime if device == "cpu" else "eager")
        if device != "cpu":
            chosen = replace(chosen, reason=f"graphs are for CPUs, and this counts on {device}")
        predictor = cls(checkpoint, chosen)
        predictor.count([predictor.decode(probe_photo())[0]])
        return predictor

    @property
    def version(self) -> str:
        """Which weights answer."""
        return self._checkpoint.version

    @property
    def runtime(self) -> Runtime:
        """What computes, and why that."""
        return self._runtime

    @property
    def card(self) -> dict[str, Any]:
        """What a user may know of the model, JSON-ready."""
        recipe, calibration = self._checkpoint.recipe, self._checkpoint.calibration
        return {
            "version": self.version,
            "recipe": recipe.name,
            "backbone": recipe.model.backbone,
            "image_size": recipe.data.image_size,
            "max_count": recipe.data.max_count,
            "runtime": self._runtime.name,
            "runtime_reason": self._runtime.reason,
            "metrics": self._checkpoint.metrics,
            "calibration": None if calibration is None else asdict(calibration),
        }

    @property
    def thresholds(self) -> VerifyThresholds | None:
        """Of p(match); None without a calibration."""
        calibration = self._checkpoint.calibration
        return None if calibration is None else calibration.verify

    def decode(self, data: bytes) -> tuple[Photo, PhotoQuality]:
        """Decode one JPEG or PNG as the stream of training does.

        Raises:
            ImageError: the bytes are no usable photo.
        """
        return decode_and_assess(data, self._pixels)

    def count(self, photos: Sequence[Photo]) -> list[Counted]:
        """Count in one forward pass.

        Raises:
            CheckpointError: the model answered NaN, which damaged weights do and no photo can cause.
        """
        probabilities = self._runtime.predict(np.stack(photos))
        if not np.isfinite(probabilities).all():
            raise CheckpointError(f"the model of checkpoint {self.version} answers NaN")
        calibration = self._checkpoint.calibration
        low = high = [None] * len(photos)
        if calibration is not None:
            probabilities = calibration.apply(probabilities)
            low, high = (ends.tolist() for ends in calibration.ranges(probabilities, TOLD))
        prediction = Prediction(probabilities)
        rows = zip(prediction.counted, probabilities, prediction.expected, low, high, strict=True)
        return [
            Counted(
                count=int(count), probabilities=tuple(row.tolist()), expected_value=float(mean), low=least, high=most
            )
            for count, row, mean, least, most in rows
        ]

    def verify(self, counted: Counted, expected_quantity: int) -> Verdict:
        """Whether the photo agrees with its record."""
        within = None if counted.low is None or counted.high is None else (counted.low, counted.high)
        return verify(np.array(counted.probabilities), expected_quantity, self.thresholds, within)


def probe_photo() -> bytes:
    """A small JPEG of two brightnesses, to see whether a model answers at all."""
    image = Image.new("RGB", (64, 64), (135, 115, 92))  # the mean colour of ABID
    image.paste((40, 40, 40), (16, 16, 48, 48))
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()
