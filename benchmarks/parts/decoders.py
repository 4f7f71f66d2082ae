"""Ways from the bytes of a photo to pixels, and what each costs."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.nn import functional as F

from bintally.image import decode_photo
from bintally.source_config import PixelConfig, Resize
from data.synthetic import SyntheticConfig, encode_bin, iter_plans

Decoder = Callable[[bytes], np.ndarray]

METHOD: Final = (
    "One thread, JPEGs in memory to uint8 arrays. floor: simplejpeg alone at full size, no resize. unchecked: the "
    "same and torch's resize, without our header check. exact, fast (half-size decoding where nothing is upsampled), "
    "letterbox, letterbox_fast: decode_photo. pillow: Pillow's decoder and antialiased bilinear filter. ms: thread CPU "
    "time per photo, the least of all rounds; in a round every row reads every photo once, so that load from elsewhere "
    "meets all rows alike. over_floor, over_pillow: ratios of ms. halved: share of photos that were decoded at half "
    "size; psnr_db (least, median) and levels (mean absolute difference of 255; median, most) of those against the "
    "exact row of the same resize."
)


def draw_photos(num_images: int) -> list[bytes]:
    """Synthetic bins of every size and quality that data/synthetic.py draws."""
    config = SyntheticConfig(num_bins=num_images, out="unused", broken_rate=0)
    photos = (encode_bin(plan, difficulty=config.difficulty)[0] for plan in iter_plans(config))
    return [photo for photo in photos if photo]


def read_photos(folder: Path, num_images: int) -> list[bytes]:
    """JPEGs of a folder, evenly picked."""
    paths = sorted(folder.glob("*.jpg"))
    return [path.read_bytes() for path in paths[:: max(1, len(paths) // num_images)][:num_images]]


def measure_decoders(photos: list[bytes], size: int, num_rounds: int) -> dict[str, dict[str, Any]]:
    """The figures of every row."""
    torch.set_num_threads(1)
    rows = _rows(size)
    best_ms = dict.fromkeys(rows, float("inf"))
    for _ in range(num_rounds):
        for name, decode in rows.items():
            best_ms[name] = min(best_ms[name], _ms_per_photo(decode, photos))
    figures: dict[str, dict[str, Any]] = {
        name: {
            "ms": round(ms, 4),
            "photos_per_s": round(1000 / ms, 1),
            "over_floor": round(ms / best_ms["floor"], 3),
            "over_pillow": round(ms / best_ms["pillow"], 3),
        }
        for name, ms in best_ms.items()
    }
    for fast, exact in (("fast", "exact"), ("letterbox_fast", "letterbox")):
        figures[fast] |= _differences(rows[fast], rows[exact], photos)
    return figures


def _rows(size: int) -> dict[str, Decoder]:
    def ours(resize: Resize, *, fast: bool) -> Decoder:
        pixels = PixelConfig(size=size, resize=resize, fast_decode=fast)
        return lambda photo: decode_photo(photo, pixels)

    def unchecked(photo: bytes) -> np.ndarray:
        nchw = torch.from_numpy(_decode_at_full_size(photo))[None].permute(0, 3, 1, 2)
        resized = F.interpolate(nchw, (size, size), mode="bilinear", antialias=True, align_corners=False)
        return resized[0].permute(1, 2, 0).numpy()

    def by_pillow(photo: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(photo)) as image:
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))

    return {
        "floor": _decode_at_full_size,
        "unchecked": unchecked,
        "exact": ours("squash", fast=False),
        "fast": ours("squash", fast=True),
        "letterbox": ours("letterbox", fast=False),
        "letterbox_fast": ours("letterbox", fast=True),
        "pillow": by_pillow,
    }


def _decode_at_full_size(photo: bytes) -> np.ndarray:
    pixels: np.ndarray = simplejpeg.decode_jpeg(photo, colorspace="RGB", strict=True)
    return pixels


def _ms_per_photo(decode: Decoder, photos: list[bytes]) -> float:
    start_s = time.thread_time()
    for photo in photos:
        decode(photo)
    return 1000 * (time.thread_time() - start_s) / len(photos)


def _differences(fast: Decoder, exact: Decoder, photos: list[bytes]) -> dict[str, Any]:
    differences = [fast(photo).astype(float) - exact(photo) for photo in photos]
    halved = [one for one in differences if one.any()]
    if not halved:
        return {"halved": 0.0}
    psnr_db = [10 * np.log10(255**2 / np.square(one).mean()) for one in halved]
    levels = [np.abs(one).mean() for one in halved]
    return {
        "halved": round(len(halved) / len(photos), 3),
        "psnr_db": [round(float(value), 1) for value in (min(psnr_db), np.median(psnr_db))],
        "levels": [round(float(value), 2) for value in (np.median(levels), max(levels))],
    }
