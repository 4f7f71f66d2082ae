"""Pictures of single items: a face with print on it, shaded like the solid it stands for."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from data.synthetic_plan import Kind, Product

Colour = tuple[int, int, int]

# Front faces as seen in a bin, width over height.
ASPECTS: dict[Kind, tuple[float, float]] = {
    "box": (0.6, 1.5),
    "carton": (1.4, 3.0),
    "book": (0.14, 0.34),
    "bottle": (0.34, 0.55),
    "tube": (0.22, 0.34),
    "bag": (0.75, 1.5),
}
INKS: tuple[Colour, ...] = ((32, 30, 34), (245, 242, 235), (150, 28, 36), (28, 52, 110), (20, 84, 60))
PAINTS: tuple[Colour, ...] = (
    *((174, 32, 40), (36, 68, 140), (28, 116, 84), (226, 222, 214), (40, 40, 46), (236, 138, 36)),
    *((104, 52, 118), (70, 150, 190), (222, 92, 130), (150, 160, 168), (96, 64, 44), (86, 124, 52)),
)
CARDBOARD: Colour = (150, 112, 78)
TEXTURE_SIZE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What all items of one product share."""

    aspect: float
    """Face width over height."""
    scale: float
    """Share of its place that the item fills."""
    paint: Colour
    second: Colour
    ink: Colour
    shelled: bool
    """In a clear bag, which adds gloss and wrinkles."""
    print_seed: int


@lru_cache(maxsize=256)
def look_of(product: Product) -> Look:
    """The look of a product, from its seed alone."""
    rng = np.random.default_rng(product.look_seed)
    low, high = ASPECTS[product.kind]
    paint = PAINTS[int(rng.integers(len(PAINTS)))]
    if product.kind in ("box", "carton") and rng.random() < 0.4:
        paint = CARDBOARD
    if product.kind == "bottle" and rng.random() < 0.5:
        paint = PAINTS[3]
    return Look(
        aspect=float(rng.uniform(low, high)),
        scale=float(rng.uniform(0.68, 1.0)),
        paint=vary(paint, 14, rng),
        second=vary(PAINTS[int(rng.integers(len(PAINTS)))], 14, rng),
        ink=INKS[1] if sum(paint) < 330 else INKS[int(rng.choice([0, 2, 3, 4]))],
        shelled=bool(product.kind == "bag" or rng.random() < 0.12),
        print_seed=int(rng.integers(2**62)),
    )


def vary(colour: Colour, amount: int, rng: np.random.Generator) -> Colour:
    """A colour near the given one."""
    red, green, blue = np.clip(np.array(colour) + rng.integers(-amount, amount + 1, 3), 0, 255).tolist()
    return red, green, blue


def darken(colour: Colour, gain: float) -> Colour:
    """The colour in less (or more) light."""
    red, green, blue = (min(255, int(c * gain)) for c in colour)
    return red, green, blue


def draw_item(product: Product, width: int, height: int) -> Image.Image:
    """The front of an item in RGBA, `width` by `height` pixels."""
    look = look_of(product)
    rng = np.random.default_rng(look.print_seed)
    face = Image.new("RGB", (width, height), look.paint)
    pen = ImageDraw.Draw(face)
    if look.paint == CARDBOARD or product.kind == "carton":
        _tape(pen, width, height, look)
    _print_on(pen, width, height, product, look, rng)
    if product.kind not in ("book", "tube") and rng.random() < 0.6:
        _barcode_label(pen, width, height, rng)
    if product.kind in ("bottle", "tube"):
        face = ImageChops.multiply(face, cylinder_shade().resize((width, height)))
    else:
        face = ImageChops.multiply(face, plane_shade().resize((width, height)))
    if look.shelled:
        _wrinkle(face, rng)
    face.putalpha(_outline(product.kind, width, height, rng))
    return face


@lru_cache(maxsize=1)
def cylinder_shade() -> Image.Image:
    """Light on a standing cylinder, a little left of the middle."""
    x = np.linspace(-1, 1, 64)
    light = 0.42 + 0.58 * np.sqrt(np.clip(1 - (x + 0.15) ** 2 / 1.4, 0, 1))
    return _grey(np.tile(light, (8, 1)))


@lru_cache(maxsize=1)
def plane_shade() -> Image.Image:
    """Light on an upright plane: less towards the floor, and at its edges."""
    x, y = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(0, 1, 64))
    light = 1.0 - 0.22 * y - 0.14 * np.abs(x) ** 8 - 0.1 * (y > 0.97)
    return _grey(light)


@lru_cache(maxsize=1)
def wrinkle_mask() -> Image.Image:
    """Where a clear or soft bag shines: thin bent ridges, as an L mask."""
    rng = np.random.default_rng(11)
    x, y = np.meshgrid(np.arange(TEXTURE_SIZE), np.arange(TEXTURE_SIZE))
    field = np.zeros(x.shape)
    for _ in range(14):
        kx, ky, phase = rng.normal(0, 0.05), rng.normal(0, 0.05), rng.uniform(0, 6)
        field += np.sin(kx * x + ky * y + phase + 1.5 * np.sin(0.02 * (x - y) + phase))
    ridges = np.exp(-((field / 0.55) ** 2)) * (0.4 + 0.6 * (np.roll(field, 40, 1) > 0))
    return Image.fromarray((ridges * 150).astype(np.uint8))


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that no font need be installed."""
    return ImageFont.load_default(size)


def _grey(light: np.ndarray) -> Image.Image:
    return Image.fromarray((np.clip(light, 0, 1) * 255).astype(np.uint8)).convert("RGB")


def _tape(pen: ImageDraw.ImageDraw, width: int, height: int, look: Look) -> None:
    y = int(height * 0.46)
    pen.rectangle((0, y, width, y + max(2, height // 12)), fill=darken(look.paint, 1.12))
    pen.line((0, y + height // 24, width, y + height // 24), fill=darken(look.paint, 0.75))


def _print_on(
    pen: ImageDraw.ImageDraw, width: int, height: int, product: Product, look: Look, rng: np.random.Generator
) -> None:
    """A coloured field, a title and lines of small print."""
    top, bottom = sorted(rng.uniform(0.08, 0.92, 2))
    style = rng.random()
    if look.paint != CARDBOARD and style < 0.65:
        pen.rectangle((0, int(top * height), width, int(bottom * height)), fill=look.second)
    elif style > 0.8:
        radius, cx, cy = 0.3 * min(width, height), 0.5 * width, rng.uniform(0.3, 0.6) * height
        pen.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=look.second)
    title = product.name.split(" ")[int(rng.integers(len(product.name.split(" "))))]
    size = int(np.clip(1.5 * width / max(4, len(title)), 6, 48))
    y = float(rng.uniform(0.05, 0.4)) * height
    pen.text((width * 0.08, y), title, fill=look.ink, font=font(size - size % 3))
    for line in range(int(rng.integers(1, 7))):
        line_y = int(y + size * 1.3 + line * max(3, height * 0.045))
        pen.line((width * 0.1, line_y, width * rng.uniform(0.4, 0.9), line_y), fill=look.ink)


def _barcode_label(pen: ImageDraw.ImageDraw, width: int, height: int, rng: np.random.Generator) -> None:
    """A white sticker with bars, as stuck on most items."""
    label_w, label_h = max(10, int(width * 0.42)), max(7, int(min(height * 0.3, width * 0.24)))
    x = int(rng.uniform(0.05, 0.5) * width)
    y = int(rng.uniform(0.05, 0.62) * height)
    pen.rectangle((x, y, x + label_w, y + label_h), fill=(236, 234, 228))
    for bar in range(x + 3, x + label_w - 2, 3):
        pen.line((bar, y + 2, bar, y + label_h * 0.6), fill=(60, 56, 58), width=1 + (bar * 7 % 5 == 0))
    pen.line((x + 3, y + label_h * 0.8, x + label_w * 0.8, y + label_h * 0.8), fill=(90, 86, 88))


def _wrinkle(face: Image.Image, rng: np.random.Generator) -> None:
    width, height = face.size
    span = TEXTURE_SIZE // 2
    x, y = rng.integers(0, span, 2).tolist()
    mask = wrinkle_mask().resize(face.size, box=(x, y, x + span, y + span))
    face.paste((232, 232, 230), (0, 0, width, height), mask)


def _outline(kind: Kind, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """The silhouette of a kind as an L mask."""
    mask = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(mask)
    right, bottom = width - 1, height - 1
    if kind == "bag":
        turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        reach = (1 - 0.13 * rng.random(24)) * np.minimum(
            1, 0.8 / np.maximum(abs(np.cos(turn)), abs(np.sin(turn))) + 0.1
        )
        points = np.stack((0.5 + 0.5 * reach * np.cos(turn) * 1.12, 0.5 + 0.5 * reach * np.sin(turn) * 1.12), 1)
        pen.polygon([(x * right, y * bottom) for x, y in np.clip(points, 0, 1).tolist()], fill=255)
    elif kind == "bottle":
        neck = int(height * 0.2)
        pen.rounded_rectangle((0, neck, right, bottom), radius=max(2, width // 5), fill=255)
        pen.rectangle((int(width * 0.27), 0, int(width * 0.73), neck + width // 4), fill=255)
    elif kind == "tube":
        pen.rounded_rectangle((0, 0, right, bottom), radius=max(2, width // 4), fill=255)
    else:
        pen.rectangle((0, 0, right, bottom), fill=255)
    return mask
