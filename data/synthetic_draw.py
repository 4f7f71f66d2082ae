"""The scene of one synthetic bin: fabric walls, items, elastic bands, position labels."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from data.synthetic_camera import Pixels, photograph, shade_curve
from data.synthetic_items import Colour, darken, draw_item, font, look_of, vary
from data.synthetic_plan import BinPlan, Product

# Percentiles of 824 real pictures, to draw sizes from.
PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
WIDTHS = (325, 330, 345, 383, 462, 552, 645, 710, 780)
ASPECTS = (0.61, 0.62, 0.66, 1.03, 1.35, 1.46, 1.62, 1.66, 1.68)
MIN_HEIGHT, MAX_HEIGHT = 250, 1060

FABRIC: Colour = (206, 178, 96)
POST: Colour = (176, 172, 170)
SLEEVES: tuple[Colour, ...] = ((40, 46, 84), (190, 62, 56), (112, 156, 196), (226, 140, 150), (222, 110, 50))


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """The bin in pixels: its opening in front and its back wall."""

    width: int
    height: int
    left: float
    top: float
    right: float
    bottom: float
    back_left: float
    back_top: float
    back_right: float
    back_bottom: float
    fabric: Colour


@dataclass(frozen=True, kw_only=True, slots=True)
class Spot:
    """Where one item goes: a column of the bin, the room it has there and how it leans."""

    column: int
    x: float
    floor: float
    """Where the column stands; items of one column are stacked on each other."""
    room_width: float
    room_height: float
    depth: float
    """0 in front, 1 at the back wall."""
    lean_deg: float
    lying: bool


def render_bin(plan: BinPlan, *, difficulty: float) -> Pixels:
    """Draws one bin as uint8 RGB (height, width, 3); the same plan gives the same pixels."""
    rng = np.random.default_rng(plan.scene_seed)
    scene = _draw_scene(rng)
    spots = _lay_out(scene, plan.num_places, difficulty, rng)
    image = _draw_walls(scene, rng)
    heap_top: dict[int, float] = {}
    for item in sorted(plan.items, key=lambda item: (-spots[item.place].depth, item.place)):
        spot = spots[item.place]
        foot = heap_top.get(spot.column, spot.floor)
        heap_top[spot.column] = _place(image, scene, item.product, spot, foot)
    image = image.point(shade_curve(0.98 - 0.22 * difficulty))
    _draw_bands(image, scene, difficulty, rng)
    _draw_front(image, scene, rng)
    return photograph(image, difficulty, np.random.default_rng(plan.shot_seed))


def _draw_scene(rng: np.random.Generator) -> Scene:
    # One quantile moves both a little: wide pictures are low, narrow ones are tall.
    width = int(np.interp(rng.uniform(0, 100), PERCENTILES, WIDTHS))
    aspect = np.interp(rng.uniform(0, 100), PERCENTILES, ASPECTS)
    height = int(np.clip(width / aspect, MIN_HEIGHT, MAX_HEIGHT))
    left, right = width * rng.uniform(0.0, 0.05), width * (1 - rng.uniform(0.0, 0.05))
    top, bottom = height * rng.uniform(0.05, 0.12), height * (1 - rng.uniform(0.06, 0.12))
    inset = width * rng.uniform(0.04, 0.11)
    return Scene(
        width=width,
        height=height,
        left=left,
        top=top,
        right=right,
        bottom=bottom,
        back_left=left + inset * rng.uniform(0.5, 1.4),
        back_top=top + height * rng.uniform(0.0, 0.06),
        back_right=right - inset * rng.uniform(0.5, 1.4),
        back_bottom=bottom - height * rng.uniform(0.09, 0.22),
        fabric=vary(darken(FABRIC, rng.uniform(0.88, 1.08)), 5, rng),
    )


def _lay_out(scene: Scene, num_places: int, difficulty: float, rng: np.random.Generator) -> list[Spot]:
    """Places from left to right; columns become heaps where there are many or the bin is a hard one."""
    tall = scene.height > scene.width
    per_row = int(rng.integers(4, 6)) if tall else 6
    num_rows = -(-max(1, num_places) // per_row)
    if num_places > 2 and rng.random() < 0.5 * difficulty:
        num_rows += 1
    num_columns = -(-max(1, num_places) // num_rows)
    room_width = min(0.8, (0.88 + difficulty * rng.uniform(0.0, 0.6)) / num_columns)
    room_height = rng.uniform(0.7, 0.98) * (1 + 0.25 * difficulty) / num_rows
    columns = [_draw_column(scene, index, num_columns, difficulty, rng) for index in range(num_columns)]
    spots = []
    for place in range(num_places):
        x, floor, depth, span = columns[place // num_rows]
        spots.append(
            Spot(
                column=place // num_rows,
                x=x + rng.uniform(-0.04, 0.04) * difficulty * scene.width,
                floor=floor,
                room_width=room_width * span,
                room_height=room_height * (floor - scene.top),
                depth=depth,
                lean_deg=float(rng.normal(0, 1 + 8 * difficulty)) if rng.random() < 0.2 + 0.4 * difficulty else 0,
                lying=num_rows > 1,
            )
        )
    return spots


def _draw_column(
    scene: Scene, index: int, num_columns: int, difficulty: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Middle, floor, depth and width of the bin for one column."""
    depth = rng.uniform(0.1, 0.5 + 0.4 * difficulty)
    left = scene.left + depth * (scene.back_left - scene.left)
    right = scene.right + depth * (scene.back_right - scene.right)
    x = (index + 0.5 + rng.uniform(-0.35, 0.35) * difficulty) / num_columns
    return (
        left + x * (right - left),
        scene.bottom + depth * (scene.back_bottom - scene.bottom),
        depth,
        right - left,
    )


def _draw_walls(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """The fabric inside, each wall in its own light, with folds."""
    image = Image.new("RGB", (scene.width, scene.height), darken(scene.fabric, 0.92))
    pen = ImageDraw.Draw(image)
    s = scene
    floor = ((s.left, s.bottom), (s.right, s.bottom), (s.back_right, s.back_bottom), (s.back_left, s.back_bottom))
    left = ((s.left, s.top), (s.back_left, s.back_top), (s.back_left, s.back_bottom), (s.left, s.bottom))
    right = ((s.right, s.top), (s.back_right, s.back_top), (s.back_right, s.back_bottom), (s.right, s.bottom))
    pen.rectangle((s.left, s.top, s.right, s.back_top), fill=darken(s.fabric, 0.5))
    pen.rectangle((s.back_left, s.back_top, s.back_right, s.back_bottom), fill=vary(darken(s.fabric, 0.74), 5, rng))
    for wall, gain in ((floor, 0.66), (left, rng.uniform(0.76, 1.0)), (right, rng.uniform(0.76, 1.0))):
        pen.polygon(wall, fill=vary(darken(s.fabric, gain), 5, rng))
    return ImageChops.multiply(image, _crop(fold_shade(), image.size, rng))


def _place(image: Image.Image, scene: Scene, product: Product, spot: Spot, foot: float) -> float:
    """Draws one item with its shadow, sides first; returns where an item on top of it would stand."""
    look = look_of(product)
    lying = spot.lying and look.aspect < 0.6
    aspect = 1 / look.aspect if lying else look.aspect
    room_width, room_height = spot.room_width * look.scale, spot.room_height * look.scale
    width = max(6, int(min(room_width, room_height * aspect)))
    height = max(6, int(min(room_height, room_width / aspect)))
    if lying:
        face = draw_item(product, height, width).transpose(Image.Transpose.ROTATE_90)
    else:
        face = draw_item(product, width, height)
    _draw_shadow(image, spot.x, foot, width)
    if spot.lean_deg:
        face = face.rotate(spot.lean_deg, Image.Resampling.BILINEAR, expand=True)
    left, top = int(spot.x - face.width / 2), int(foot - face.height)
    if not spot.lean_deg and product.kind in ("box", "carton", "book"):
        _draw_sides(image, scene, look.paint, (left, top, left + width, top + height))
    image.paste(face, (left, top), face)
    return foot - 0.95 * height


def _draw_shadow(image: Image.Image, x: float, y: float, width: int) -> None:
    blob = shadow_mask().resize((int(width * 1.5) + 4, int(width * 0.25) + 14))
    image.paste((26, 22, 18), (int(x - blob.width * 0.47), int(y - blob.height * 0.55)), blob)


def _draw_sides(image: Image.Image, scene: Scene, paint: Colour, face: tuple[int, int, int, int]) -> None:
    """Top and side of a box, running to the vanishing point in the middle of the bin."""
    left, top, right, bottom = face
    eye_x, eye_y = 0.5 * (scene.left + scene.right), 0.42 * scene.height
    reach = 0.16

    def back(x: float, y: float) -> tuple[float, float]:
        return x + reach * (eye_x - x), y + reach * (eye_y - y)

    pen = ImageDraw.Draw(image)
    if top > eye_y:
        pen.polygon((((left, top)), (right, top), back(right, top), back(left, top)), fill=darken(paint, 1.18))
    if right < eye_x:
        pen.polygon(((right, top), (right, bottom), back(right, bottom), back(right, top)), fill=darken(paint, 0.5))
    elif left > eye_x:
        pen.polygon(((left, top), (left, bottom), back(left, bottom), back(left, top)), fill=darken(paint, 0.5))


def _draw_bands(image: Image.Image, scene: Scene, difficulty: float, rng: np.random.Generator) -> None:
    """Elastic threads across the opening, in two bands or one low net, that hide more as difficulty grows."""
    mask = Image.new("L", image.size, 0)
    pen = ImageDraw.Draw(mask)
    span = scene.bottom - scene.top
    cover = float(np.clip(rng.uniform(0.08, 0.14) + difficulty * rng.uniform(0.05, 0.36), 0, 0.46))
    starts = [rng.uniform(0.04, 0.2), rng.uniform(0.54, 0.64)]
    if rng.random() < 0.2:
        starts, cover = [max(0.45, 0.95 - 2 * cover)], 2 * cover
    step = rng.uniform(0.011, 0.016) * scene.width + 5 * (1 - difficulty)
    for start in starts:
        y0, y1 = scene.top + start * span, min(scene.top + (start + cover) * span, scene.bottom)
        pen.rectangle((0, y0, scene.width, y1), fill=int(52 * difficulty))
        slope = rng.uniform(-0.01, 0.01) * scene.width
        for y in np.arange(y0, y1, step).tolist():
            sag = rng.uniform(-0.5, 0.5)
            light = int((70 + 110 * difficulty) * rng.uniform(0.75, 1.1))
            pen.line((0, y + sag, scene.width, y + slope + sag), fill=light, width=1 + (difficulty > 0.2))
    image.paste((188, 180, 168), (0, 0, *image.size), mask)
    if len(starts) == 1:
        y = scene.top + starts[0] * span
        pen = ImageDraw.Draw(image)
        pen.line((0, y, scene.width, y + rng.uniform(-4, 4)), fill=(214, 176, 76), width=max(2, scene.width // 130))


def _draw_front(image: Image.Image, scene: Scene, rng: np.random.Generator) -> None:
    """Fabric lips above and below the opening with their position labels, and the posts."""
    pen = ImageDraw.Draw(image)
    lip = darken(scene.fabric, 1.12)
    sag = scene.height * rng.uniform(0.0, 0.02)
    middle = scene.width / 2
    low = ((0, scene.bottom - sag), (middle, scene.bottom + sag), (scene.width, scene.bottom - sag))
    high = ((0, scene.top - sag), (middle, scene.top), (scene.width, scene.top - sag))
    pen.polygon((*low, (scene.width, scene.height), (0, scene.height)), fill=lip)
    pen.polygon((*high, (scene.width, 0), (0, 0)), fill=darken(lip, 0.96))
    pen.line(low, fill=darken(lip, 0.8), width=2)
    pen.line(high, fill=darken(lip, 0.7), width=2)
    pen.rectangle((0, 0, scene.left * 0.6, scene.height), fill=lip)
    pen.rectangle((scene.width - (scene.width - scene.right) * 0.6, 0, *image.size), fill=vary(POST, 8, rng))
    shelf, row = int(rng.integers(1, 5)), int(rng.integers(1, 10))
    label_h = int(np.clip(scene.width * 0.1, 28, 68))
    x = int(scene.width * rng.uniform(0.2, 0.5))
    upper, lower = f"{shelf}{chr(65 + row)}", f"{shelf}{chr(64 + row)}"
    y_upper, y_lower = scene.top - rng.uniform(0.85, 1.05) * label_h, scene.bottom + 0.02 * scene.height
    for name, y in ((upper, y_upper), (lower, y_lower)):
        sleeve = SLEEVES[(ord(name[1]) + shelf) % len(SLEEVES)]
        image.paste(position_label(name, sleeve, label_h), (x, int(y)))


@lru_cache(maxsize=256)
def position_label(name: str, sleeve: Colour, height: int) -> Image.Image:
    """A position label: name with an arrow on white, a square code on a coloured sleeve."""
    width = int(height * 3.1)
    label = Image.new("RGB", (width, height), sleeve)
    pen = ImageDraw.Draw(label)
    edge = max(2, height // 9)
    pen.rectangle((edge, edge, int(width * 0.58), height - edge), fill=(226, 220, 206))
    pen.text((edge * 2, -height * 0.02), name, (24, 22, 24), font(int(height * 0.8)), stroke_width=max(1, height // 32))
    x, y, wing = width * 0.5, height * 0.25, height * 0.14
    pen.line((x, y, x, height * 0.8), fill=(24, 22, 24), width=max(2, height // 10))
    pen.polygon(((x - wing, y + wing), (x, y - wing / 2), (x + wing, y + wing)), fill=(24, 22, 24))
    cells = np.random.default_rng([ord(c) for c in name]).random((11, 11)) < 0.5
    code = Image.fromarray(np.where(cells, 40, 222).astype(np.uint8)).resize((height - 2 * edge,) * 2, 0)
    label.paste(code.convert("RGB"), (int(width * 0.64), edge))
    return label


@lru_cache(maxsize=1)
def fold_shade() -> Image.Image:
    """Folds and weave of the fabric as light from 0.75 to 1."""
    rng = np.random.default_rng(5)
    coarse = Image.fromarray((rng.random((9, 12)) * 255).astype(np.uint8)).resize((1200, 1200), 3)
    weave = rng.integers(0, 10, (1200, 1200))
    light = 190 + np.asarray(coarse, dtype=np.int64) // 5 + weave
    return Image.fromarray(np.clip(light, 0, 255).astype(np.uint8)).convert("RGB")


@lru_cache(maxsize=1)
def shadow_mask() -> Image.Image:
    """A soft dark ellipse as an L mask."""
    x, y = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64))
    return Image.fromarray((np.clip(1 - x**2 - y**2, 0, 1) * 165).astype(np.uint8))


def _crop(texture: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    x = int(rng.integers(0, texture.width - size[0] + 1))
    y = int(rng.integers(0, texture.height - size[1] + 1))
    return texture.crop((x, y, x + size[0], y + size[1]))
