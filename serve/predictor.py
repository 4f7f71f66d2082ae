"""A checkpoint that counts: bytes to a photo, photos to counts. Knows nothing of HTTP or Ray."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from bintally.checkpoint import Checkpoint, load_checkpoint
from bintally.errors import CheckpointError
from bintally.image import decode_photo

Photo = UInt8[np.ndarray, "size size 3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What the model says of one photo."""

    count: int
    """The most probable count."""
    probabilities: tuple[float, ...]
    """Of the counts 0..max_count."""


class Predictor:
    """Counts the items in photos, on the pixel path of training."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a checkpoint folder and let its model count once.

        Raises:
            CheckpointError: the folder is missing or damaged, or its model gives no probabilities.
        """
        predictor = cls(load_checkpoint(path))
        predictor.count([predictor.decode(probe_photo())])
        return predictor

    @property
    def version(self) -> str:
        """Which weights answer."""
        return self._checkpoint.version

    def decode(self, data: bytes) -> Photo:
        """Decode one JPEG or PNG as the stream of training does.

        Raises:
            ImageError: the bytes are no usable photo.
        """
        return decode_photo(data, self._checkpoint.recipe.data.pixels)

    def count(self, photos: Sequence[Photo]) -> list[Prediction]:
        """Count in one forward pass.

        Raises:
            CheckpointError: the model answered NaN, which damaged weights do and no photo can cause.
        """
        probabilities = self._checkpoint.predict(np.stack(photos))
        if not np.isfinite(probabilities).all():
            raise CheckpointError(f"the model of checkpoint {self.version} answers NaN")
        return [Prediction(count=int(row.argmax()), probabilities=tuple(row.tolist())) for row in probabilities]


def probe_photo() -> bytes:
    """A small JPEG of two brightnesses, to see whether a model answers at all."""
    image = Image.new("RGB", (64, 64), (135, 115, 92))  # the mean colour of ABID
    image.paste((40, 40, 40), (16, 16, 48, 48))
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()
