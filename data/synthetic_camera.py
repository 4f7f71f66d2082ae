"""The camera over a synthetic bin: framing, motion, focus, light, haze and noise."""

from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

Pixels: TypeAlias = NDArray[np.uint8]
Shades: TypeAlias = NDArray[np.float64]
NO_TINT: Shades = np.ones(3)


def photograph(image: Image.Image, difficulty: float, rng: np.random.Generator) -> Pixels:
    """Light, haze, blur and noise of one shot."""
    x0, y0, x1, y1 = rng.integers(0, 5, 4).tolist()
    image = image.crop((x0, y0, image.width - x1, image.height - y1))
    blur = rng.uniform(0.0, 0.3) + difficulty * rng.uniform(0.0, 1.0)
    if rng.random() < 0.3 * difficulty:
        image = _shake(image, rng)
    if blur > 0.4:
        small = image.resize([round(side / (1 + blur)) for side in image.size], Image.Resampling.BILINEAR)
        image = small.resize(image.size, Image.Resampling.BILINEAR)
    gain = rng.uniform(0.92, 1.08) - difficulty * rng.uniform(0.0, 0.4)
    haze = rng.uniform(4, 14) + 30 * difficulty
    tint = np.array((1.0, 0.95, 0.87)) + rng.normal(0, 0.012, 3)
    image = image.point(shade_curve(gain, haze, tint))
    return _add_grain(np.asarray(image), 5 - round(2 * difficulty), rng)


def shade_curve(gain: float, haze: float = 0, tint: Shades = NO_TINT) -> list[int]:
    """A look-up table for the three channels: a share of the light, and haze that lifts the blacks."""
    curve = haze + np.arange(256)[None] * gain * tint[:, None] * (1 - haze / 255)
    table: list[int] = np.clip(np.rint(curve), 0, 255).astype(int).ravel().tolist()
    return table


@lru_cache(maxsize=1)
def grain() -> NDArray[np.int16]:
    """Sensor noise with a standard deviation of 12 levels, as int16 tiles to cut from."""
    rng = np.random.default_rng(7)
    return rng.normal(0, 12, (1200, 1000, 3)).astype(np.int16)


def _shake(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Motion blur: each blend with a shifted copy doubles the number of samples on the path."""
    step_x, step_y = rng.integers(0, 2, 2).tolist()
    for doubling in range(int(rng.integers(2, 4))):
        shifted = ImageChops.offset(image, max(step_x, 1 - step_y) << doubling, step_y << doubling)
        image = ImageChops.blend(image, shifted, 0.5)
    return image


def _add_grain(pixels: Pixels, divisor: int, rng: np.random.Generator) -> Pixels:
    height, width, _ = pixels.shape
    tile = grain()
    y, x = int(rng.integers(0, tile.shape[0] - height + 1)), int(rng.integers(0, tile.shape[1] - width + 1))
    noisy = pixels + tile[y : y + height, x : x + width] // divisor
    clipped: Pixels = np.clip(noisy, 0, 255).astype(np.uint8)
    return clipped
