"""Image quality: what is measured does not depend on the photo's size, and flags mean what they say."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from bintally.image import decode_and_assess, decode_photo
from bintally.quality import BLURRED, DARK, PhotoQuality, assess, measure_sharpness
from bintally.source_config import PixelConfig

Photo = Callable[..., bytes]

ABID = Path(__file__).resolve().parents[3] / "shared/abid/bucket/bin-images"
PIXELS = PixelConfig(size=32)


def drawn_bin(size: tuple[int, int] = (480, 360), *, seed: int = 0) -> Image.Image:
    """Boxes with hard edges on a grey ground: sharp, and neither dark nor bright."""
    random = np.random.default_rng(seed)
    pixels = np.full((360, 480, 3), 120, np.uint8)
    for _ in range(40):
        top, left = random.integers(0, 330), random.integers(0, 440)
        pixels[top : top + random.integers(8, 90), left : left + random.integers(8, 90)] = random.integers(0, 256, 3)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BOX)


def quality_of(image: Image.Image) -> PhotoQuality:
    return assess(np.array(image.convert("RGB")), width=image.width, height=image.height)


def darkened(image: Image.Image, factor: float) -> Image.Image:
    return image.point(lambda value: value * factor)


def test_a_good_photo_has_no_flag() -> None:
    quality = quality_of(drawn_bin())
    assert quality.flags == ()
    assert (quality.width, quality.height) == (480, 360)
    luma = np.array(drawn_bin(), np.float64) @ [0.299, 0.587, 0.114]
    assert quality.brightness == pytest.approx(luma.mean(), abs=1.5)


@pytest.mark.parametrize("size", [(160, 120), (240, 180), (481, 359), (960, 720), (2400, 1800), (1920, 360)])
@pytest.mark.parametrize("blur", [0, 6])
def test_the_size_changes_neither_the_figures_nor_the_flags(size: tuple[int, int], blur: int) -> None:
    image = drawn_bin().filter(ImageFilter.GaussianBlur(blur))
    usual, other = quality_of(image), quality_of(image.resize(size, Image.Resampling.LANCZOS))
    assert other.flags == usual.flags == (("blurred",) if blur else ())
    assert other.brightness == pytest.approx(usual.brightness, abs=2)
    assert other.sharpness == pytest.approx(usual.sharpness, rel=0.3)


@pytest.mark.parametrize("seed", range(5))
def test_more_blur_is_less_sharp(seed: int) -> None:
    image = drawn_bin(seed=seed)
    sharpness = [quality_of(image.filter(ImageFilter.GaussianBlur(radius))).sharpness for radius in (0, 1, 2, 4, 8, 16)]
    assert sharpness == sorted(sharpness, reverse=True)
    assert sharpness[0] > 3 * BLURRED
    assert sharpness[-1] < BLURRED


@pytest.mark.parametrize("factor", [0.7, 0.4, 0.25])
def test_a_dark_photo_is_not_taken_for_a_blurred_one(factor: float) -> None:
    usual, dark = quality_of(drawn_bin()), quality_of(darkened(drawn_bin(), factor))
    assert dark.brightness == pytest.approx(factor * usual.brightness, abs=1)
    assert dark.sharpness == pytest.approx(usual.sharpness, rel=0.05)
    assert dark.flags == (("dark",) if dark.brightness < DARK else ())
    assert (factor > 0.5) == (dark.flags == ())


def test_a_photo_can_be_all_of_it() -> None:
    blurred = darkened(drawn_bin().filter(ImageFilter.GaussianBlur(12)), 0.3)
    assert quality_of(blurred.resize((120, 90))).flags == ("dark", "blurred", "too_small")


@pytest.mark.parametrize(("size", "small"), [((112, 112), False), ((111, 2000), True), ((2000, 111), True)])
def test_the_shorter_side_says_whether_a_photo_is_too_small(size: tuple[int, int], small: bool) -> None:
    assert ("too_small" in quality_of(drawn_bin(size)).flags) == small


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_plain_picture_shows_nothing_sharp(grey: int) -> None:
    quality = quality_of(Image.new("RGB", (200, 300), (grey, grey, grey)))
    assert quality.brightness == pytest.approx(grey, abs=0.1)
    assert quality.sharpness == 0
    assert quality.flags == (("dark", "blurred") if grey == 0 else ("blurred",))


@pytest.mark.parametrize("size", [(16, 16), (16, 10_000), (10_000, 16)])
def test_extreme_shapes_have_figures(size: tuple[int, int]) -> None:
    quality = quality_of(Image.effect_noise(size, 60))
    assert quality.brightness == pytest.approx(128, abs=10)
    assert quality.flags[-1] == "too_small"


# Decoded once


@pytest.mark.parametrize("format_name", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    "pixels",
    [PIXELS, replace(PIXELS, resize="letterbox"), replace(PIXELS, size=300), replace(PIXELS, fast_decode=True)],
)
def test_the_photo_is_that_of_decode_photo(photo: Photo, format_name: str, pixels: PixelConfig) -> None:
    data = photo(format_name, size=(300, 260))
    decoded, quality = decode_and_assess(data, pixels)
    assert np.array_equal(decoded, decode_photo(data, pixels))
    assert decoded.flags.c_contiguous
    assert (quality.width, quality.height) == (300, 260)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_quality_does_not_depend_on_the_pixels_asked_for(photo: Photo, mode: str) -> None:
    file = io.BytesIO()
    drawn_bin().convert(mode).save(file, "JPEG", quality=95)
    found = [
        decode_and_assess(file.getvalue(), pixels)[1]
        for pixels in (PIXELS, PixelConfig(size=224, resize="letterbox"), replace(PIXELS, fast_decode=True))
    ]
    assert found[0] == found[1]
    assert found[2].flags == found[0].flags
    assert found[2].sharpness == pytest.approx(found[0].sharpness, rel=0.1)


# Sharpness as the report measures it, too


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (224, 224)).astype(np.float32)


def test_blurring_lowers_sharpness() -> None:
    sharp = noise()
    soft = (sharp + np.roll(sharp, 1, 0) + np.roll(sharp, 1, 1) + np.roll(sharp, (1, 1), (0, 1))) / 4
    assert measure_sharpness(soft) < measure_sharpness(sharp) / 2


def test_sharpness_of_a_known_pattern() -> None:
    spot = np.zeros((5, 5), np.float32)
    spot[2, 2] = 1.0
    # Inside the border the Laplacian is -4 in the middle, 1 at its four sides and 0 at the corners.
    assert measure_sharpness(spot) == pytest.approx(np.var([-4, 1, 1, 1, 1, 0, 0, 0, 0]))


# Real photos


@pytest.mark.skipif(not ABID.is_dir(), reason="the real photos are not here")
def test_flags_on_real_photos() -> None:
    """Every 20th photo as it is, at 0.4 of its brightness, and blurred by 2 % of its shorter side."""
    images = [Image.open(path).convert("RGB") for path in sorted(ABID.glob("0*.jpg"))[::20]]
    assert len(images) == 40
    as_they_are = [quality_of(image).flags for image in images]
    dark = [quality_of(darkened(image, 0.4)).flags for image in images]
    blurred = [quality_of(image.filter(ImageFilter.GaussianBlur(0.02 * min(image.size)))).flags for image in images]
    assert sum(bool(flags) for flags in as_they_are) <= 2
    assert sum("dark" in flags for flags in dark) >= 38
    assert sum("blurred" in flags for flags in dark) <= 2
    assert sum("blurred" in flags for flags in blurred) == 40
