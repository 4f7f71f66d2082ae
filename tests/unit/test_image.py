"""The one pixel path: what is decoded, and what is refused before it costs anything. Resizing: test_resize.py."""

import io
import random
import struct
import time
import tracemalloc
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from bintally.errors import ImageError
from bintally.image import MAX_SCANS, check_header, decode_photo
from bintally.source_config import PixelConfig

Photo = Callable[..., bytes]

SOS = b"\xff\xda"


def decode(data: bytes, size: int) -> np.ndarray:
    """As a recipe of this size decodes that says nothing else."""
    return decode_photo(data, PixelConfig(size=size))


def by_pillow(data: bytes, size: int) -> np.ndarray:
    """What Pillow alone makes of a photo; its bilinear filter is antialiased as ours has to be."""
    with Image.open(io.BytesIO(data)) as image:
        resized = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized).astype(int)


def claim_size(jpeg: bytes, width: int, height: int) -> bytes:
    """The same JPEG with other dimensions in its frame header (SOF0 or 2: marker, length, precision, height, width)."""
    start = min(place for marker in (b"\xff\xc0", b"\xff\xc2") if (place := jpeg.find(marker)) >= 0) + 5
    return jpeg[:start] + struct.pack(">HH", height, width) + jpeg[start + 4 :]


def with_scans(progressive: bytes, num_scans: int) -> bytes:
    """The same progressive JPEG with its last scan repeated up to so many scans."""
    last = progressive[progressive.rindex(SOS) : -2]
    return progressive[:-2] + last * (num_scans - progressive.count(SOS)) + progressive[-2:]


def reason_of(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, 32)
    return caught.value.reason


# What is decoded


@pytest.mark.parametrize("size", [16, 48, 64, 200])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_comes_out_as_from_pillow(photo: Photo, mode: str, size: int) -> None:
    data = photo("JPEG", mode=mode, size=(120, 90))
    pixels = decode(data, size)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    difference = np.abs(pixels.astype(int) - by_pillow(data, size))
    # Two decoders round differently, most of all in CMYK; a wrong filter or channel order is off by far more.
    assert difference.mean() < 1.5
    assert difference.max() <= 8


def test_downsizing_is_antialiased() -> None:
    lines = np.zeros((256, 256, 3), np.uint8)
    lines[:, ::8] = 255  # without antialiasing, every output pixel would fall between two lines
    file = io.BytesIO()
    Image.fromarray(lines).save(file, "PNG")
    assert decode(file.getvalue(), 32).mean() == pytest.approx(255 / 8, abs=2)


def test_channels_are_red_green_blue() -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 100, 30)).save(file, "JPEG", quality=95)
    assert np.abs(decode(file.getvalue(), 32).astype(int) - (200, 100, 30)).max() <= 3


def test_the_photo_is_squashed_not_cropped() -> None:
    halves = np.zeros((40, 160, 3), np.uint8)
    halves[:, 80:] = 255
    file = io.BytesIO()
    Image.fromarray(halves).save(file, "PNG")
    pixels = decode(file.getvalue(), 32)
    assert (pixels[:, :15] == 0).all()
    assert (pixels[:, 17:] == 255).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_a_png_of_the_right_size_comes_out_as_it_is(photo: Photo, mode: str) -> None:
    data = photo("PNG", mode=mode, size=(64, 64))
    assert np.array_equal(decode(data, 64), by_pillow(data, 64))


def test_the_result_is_contiguous_and_may_be_written(photo: Photo) -> None:
    pixels = decode(photo(), 32)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


def test_exif_orientation_is_ignored(photo: Photo) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by 90 degrees"
    assert np.array_equal(decode(photo(exif=exif), 32), decode(photo(), 32))


def test_a_progressive_jpeg_is_a_photo_like_any_other(photo: Photo) -> None:
    data = photo(progressive=True)
    assert data.count(SOS) > 1
    assert np.abs(decode(data, 64).astype(int) - by_pillow(data, 64)).max() <= 8


@pytest.mark.parametrize("side", [16, 10_000])
def test_sides_at_the_limits_are_taken(photo: Photo, side: int) -> None:
    assert check_header(claim_size(photo(), side, 2_500)) == (side, 2_500)


@pytest.mark.parametrize("format_name", ["PNG", "JPEG"])
def test_bytes_that_look_like_scans_do_not_count(photo: Photo, format_name: str) -> None:
    if format_name == "PNG":  # in 6.5 MB of compressed pixels the two bytes turn up 100 times by chance
        data = photo("PNG")
        data = data[:-12] + png_chunk(b"biNt", SOS * (MAX_SCANS + 1)) + data[-12:]
    else:  # an embedded thumbnail, a vendor's block in EXIF
        data = photo("JPEG", comment=SOS * (MAX_SCANS + 1))
    assert decode(data, 32).shape == (32, 32, 3)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    from zlib import crc32

    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc32(kind + body))


def test_a_palette_with_alpha_does_not_warn(photo: Photo) -> None:
    data = photo("PNG", mode="P", transparency=bytes(range(200)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pixels = decode(data, 32)
    assert caught == []
    assert np.array_equal(pixels, decode(photo("PNG", mode="P"), 32))


def test_a_16_bit_png_keeps_its_brightness() -> None:
    file = io.BytesIO()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16).save(file, "PNG")
    pixels = decode(file.getvalue(), 64)
    assert np.array_equal(pixels[:, :, 0].ravel(), np.arange(64 * 64) * 16 // 256)
    assert (pixels == pixels[:, :, :1]).all()


# What is refused


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"<!doctype html><html></html>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"%PDF-1.7", bytes(5000)],
    ids=["empty", "one byte", "HTML", "JPEG magic alone", "PNG magic alone", "PDF", "zeros"],
)
def test_what_is_no_image(data: bytes) -> None:
    assert reason_of(data) == "not_an_image"


@pytest.mark.parametrize("format_name", ["GIF", "BMP", "WEBP", "TIFF"])
def test_other_formats_are_no_photos_of_ours(photo: Photo, format_name: str) -> None:
    assert reason_of(photo(format_name)) == "not_an_image"


@pytest.mark.parametrize("format_name", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_photo_that_ends_early(photo: Photo, format_name: str, share: float) -> None:
    data = photo(format_name, size=(160, 120))
    assert reason_of(data[: int(share * len(data))]) == "truncated_image"


@pytest.mark.parametrize(
    ("width", "height"), [(20_000, 20_000), (65_535, 65_535), (10_001, 64), (5_001, 5_000), (15, 64), (64, 15)]
)
def test_absurd_dimensions_are_refused_before_anything_is_decoded(photo: Photo, width: int, height: int) -> None:
    data = claim_size(photo(), width, height)
    tracemalloc.start()
    started = time.perf_counter()
    try:
        assert reason_of(data) == "absurd_dimensions"
        seconds, (_, peak_bytes) = time.perf_counter() - started, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds < 1
    assert peak_bytes < 5e6


def test_a_png_header_can_lie_as_well(photo: Photo) -> None:
    body = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    data = photo("PNG")
    assert reason_of(data[:8] + png_chunk(b"IHDR", body) + data[33:]) == "absurd_dimensions"


@pytest.mark.parametrize("format_name", ["JPEG", "PNG"])
def test_one_pixel(photo: Photo, format_name: str) -> None:
    assert reason_of(photo(format_name, size=(1, 1))) == "absurd_dimensions"


def test_a_bomb_of_scans_is_refused_and_the_last_allowed_scan_is_not(photo: Photo) -> None:
    progressive = photo(progressive=True)
    assert reason_of(with_scans(progressive, MAX_SCANS + 1)) == "absurd_dimensions"
    assert check_header(with_scans(progressive, MAX_SCANS)) == (80, 64)


def one_scan_per_channel(photo: Photo, num_repeats: int = 0) -> bytes:
    """A baseline JPEG whose channels come one after another, made of three grey ones; the last one repeated."""
    grey = [photo("JPEG", mode="L", seed=seed) for seed in range(3)]
    frame, scan = grey[0].index(b"\xff\xc0"), grey[0].index(SOS)
    head = grey[0][: frame + 2] + struct.pack(">H", 17) + grey[0][frame + 4 : frame + 9] + b"\x03"
    channels = b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3))
    tables = grey[0][frame + 13 : scan]
    scans = [
        SOS + struct.pack(">HBB", 8, 1, number) + one[one.index(SOS) + 6 : -2] for number, one in enumerate(grey, 1)
    ]
    return head + channels + tables + b"".join(scans) + scans[-1] * num_repeats + b"\xff\xd9"


def test_a_bomb_of_segments_is_refused_and_many_segments_are_not(photo: Photo) -> None:
    jpeg = photo()
    scans = b"\xff\xfe\x00\x04\xff\xda" * (MAX_SCANS + 1)  # in comments, so that the segments have to be walked
    empty = b"\xff\xfe\x00\x02"
    assert check_header(jpeg[:2] + scans + empty * 4_000 + jpeg[2:]) == (80, 64)
    assert reason_of(jpeg[:2] + scans + empty * 5_000 + jpeg[2:]) == "absurd_dimensions"


def test_a_baseline_jpeg_of_several_scans_can_be_a_bomb_as_well(photo: Photo) -> None:
    whole, most = one_scan_per_channel(photo), one_scan_per_channel(photo, MAX_SCANS - 3)
    assert np.array_equal(decode(whole, 32), decode(most, 32))
    assert reason_of(one_scan_per_channel(photo, MAX_SCANS - 2)) == "absurd_dimensions"


@pytest.mark.parametrize(("width", "most"), [(5_000, 10), (2_500, 20), (500, 100)])
def test_the_larger_a_photo_the_fewer_scans_it_may_have(photo: Photo, width: int, most: int) -> None:
    """151 kB that claim 25 MP in 100 scans would take 2.3 s."""
    progressive = photo(progressive=True)
    assert check_header(claim_size(with_scans(progressive, most), width, 5_000)) == (width, 5_000)
    assert reason_of(claim_size(with_scans(progressive, most + 1), width, 5_000)) == "absurd_dimensions"


def test_a_bomb_cannot_hide_behind_fill_bytes_and_comments(photo: Photo) -> None:
    progressive = with_scans(photo(progressive=True), MAX_SCANS + 1)
    first = progressive.index(SOS)
    hidden = progressive[:first] + progressive[first:].replace(SOS, b"\xff\xfe\x00\x04\xff\xd9\xff\xff" + SOS)
    assert reason_of(hidden) == "absurd_dimensions"


@pytest.mark.parametrize(
    "pixels", [PixelConfig(size=16), PixelConfig(size=16, resize="letterbox", fast_decode=True)], ids=["exact", "fast"]
)
def test_damaged_bytes_never_cause_another_error(photo: Photo, pixels: PixelConfig) -> None:
    draw = random.Random(0)  # noqa: S311  # reproducible, no secret
    whole = [photo("JPEG"), photo(progressive=True), photo("PNG"), photo("PNG", mode="P"), photo("PNG", mode="LA")]
    num_refused = 0
    for _ in range(400):
        data = bytearray(draw.choice(whole))
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data) if draw.random() < 0.4 else 100)] = draw.randrange(256)
        try:
            decode_photo(bytes(data), pixels)
        except ImageError:
            num_refused += 1
    assert num_refused > 100
