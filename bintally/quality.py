"""How good a photo is, whatever it shows: dark, blurred, too small.

Measured on a small squashed copy, so that size changes nothing and the cost is small: of a large photo only every n-th
row is read. The limits were chosen on real photos of ABID and on blurred, darkened and shrunk versions of them
(docs/log.md): hardly any real photo is called dark or too small, and one in fifty blurred.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from jaxtyping import Float, UInt8

from bintally.resize import resize

Flag = Literal["dark", "blurred", "too_small"]

LUMA: Final = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in JPEG
GRID: Final = 112
"""Side in pixels of the copy that is measured."""
DARK: Final = 65.0
"""Brightness below which a photo is dark."""
BLURRED: Final = 0.07
"""Sharpness below which a photo is blurred, or shows nothing."""
TOO_SMALL: Final = GRID
"""Shorter side in pixels below which the copy would be an enlargement, and its sharpness would say nothing."""
_ROWS: Final = 2 * GRID  # read at least, if there are so many; leaving out columns, too, costs more than it saves


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotoQuality:
    """What the pixels tell of a photo as such."""

    width: int
    """Pixels of the file."""
    height: int
    brightness: float
    """Mean, 0 black to 255 white."""
    sharpness: float
    """Variance of the Laplacian over the variance, the same for a dark photo and a bright one; low when blurred."""
    flags: tuple[Flag, ...]
    """What is wrong with it; empty for a good photo."""


def assess(decoded: UInt8[np.ndarray, "rows columns 3"], *, width: int, height: int) -> PhotoQuality:
    """The quality of one photo.

    Args:
        decoded: its pixels, RGB; those of `fast_decode` do as well.
        width: of the file, in pixels.
        height: of the file, in pixels.
    """
    step = max(1, min(decoded.shape[:2]) // _ROWS)
    grey = resize(decoded[::step], GRID, GRID).astype(np.float32) @ LUMA
    brightness = float(grey.mean())
    sharpness = measure_sharpness(grey) / max(float(grey.var()), 1.0)
    found: dict[Flag, bool] = {
        "dark": brightness < DARK,
        "blurred": sharpness < BLURRED,
        "too_small": min(width, height) < TOO_SMALL,
    }
    flags = tuple(flag for flag, is_so in found.items() if is_so)
    return PhotoQuality(width=width, height=height, brightness=brightness, sharpness=sharpness, flags=flags)


def measure_sharpness(grey: Float[np.ndarray, "height width"]) -> float:
    """Variance of the Laplacian, which depends on the size and the contrast."""
    sides = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((sides - 4 * grey[1:-1, 1:-1]).var())
