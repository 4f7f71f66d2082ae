"""What each synthetic bin holds and what its record says, decided without drawing anything.

Ids are planned in blocks of 32 from `(seed, key set, block)` alone, so a bin is the same whatever the
number of bins or workers. Inside a block, runs of neighbouring ids show one bin before and after a pick or
a stow: one item more or one item less.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bintally.errors import ConfigError

BLOCK_SIZE = 32
NUM_UNPADDED_LIMIT = 9_999  # from 10000 on, `%d` and `%05d` are the same key

# Pictures per count 0..30 in the padded set of ABID.
NATURAL_COUNTS = (
    *(9701, 41147, 76863, 90058, 80550, 62448, 46058, 33684, 24219, 17298, 12823, 9179, 6837, 5191, 3648, 2787),
    *(2175, 1733, 1304, 1094, 853, 740, 589, 494, 432, 367, 307, 267, 202, 204, 186),
)
LARGEST_COUNT = len(NATURAL_COUNTS) - 1
LARGEST_UNIFORM_COUNT = 5
QUANTITIES = (1, 2, 3, 4, 5, 6)
QUANTITY_RATES = (0.66, 0.16, 0.07, 0.05, 0.03, 0.03)  # items of one product in one bin, as in ABID

Kind = Literal["box", "carton", "book", "bottle", "tube", "bag"]
KINDS: tuple[Kind, ...] = ("box", "carton", "book", "bottle", "tube", "bag")
KIND_RATES = (0.27, 0.17, 0.18, 0.12, 0.08, 0.18)
# Inches: the least and the greatest length, width and height of a kind.
SIZES_IN: dict[Kind, tuple[tuple[float, float], ...]] = {
    "box": ((4, 12), (3, 9), (2, 7)),
    "carton": ((6, 14), (4, 10), (1, 4)),
    "book": ((7, 11), (5, 8), (0.4, 1.8)),
    "bottle": ((5, 10), (2, 4), (2, 4)),
    "tube": ((5, 9), (1, 2.5), (1, 2)),
    "bag": ((6, 14), (4, 11), (0.8, 3)),
}
NOUNS: dict[Kind, tuple[str, ...]] = {
    "box": ("Desk Lamp", "Travel Mug", "Night Light", "Card Game", "Water Filter"),
    "carton": ("Puzzle", "Picture Frame", "Bath Mat", "Cutlery Set", "Drawer Tray"),
    "book": ("Field Guide", "Cookbook", "Sketchbook", "Pocket Atlas", "Puzzle Book"),
    "bottle": ("Shampoo", "Vitamin C", "Olive Oil", "Hand Soap", "Fabric Softener"),
    "tube": ("Sun Cream", "Tooth Paste", "Poster Tube", "Glue", "Lip Balm"),
    "bag": ("T-Shirt", "Fleece Socks", "Throw Pillow", "Dog Treats", "Cable Kit"),
}
MAKERS = ("Alder", "Brisk", "Corva", "Dunmore", "Elmsley", "Fernhill", "Galva", "Harrow", "Ilex", "Juno")
TRAITS = ("Blue", "Classic", "Compact", "Large", "Organic", "Pack of 2", "Premium", "Slim", "Soft", "Twin")

Fault = Literal[
    "truncated_image", "not_an_image", "missing_image", "missing_metadata", "metadata_not_json", "no_quantity"
]
FAULTS: tuple[Fault, ...] = (
    *("truncated_image", "not_an_image", "missing_image"),
    *("missing_metadata", "metadata_not_json", "no_quantity"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticConfig:
    """A synthetic bucket in the layout of the Amazon Bin Image Dataset."""

    num_bins: int
    """Bins with padded keys: 00001, 00002, ..."""
    out: str
    """Where the bucket is written: a path, file:///abs/path or s3://bucket/prefix."""
    seed: int = 0
    """The same seed and options give the same bytes."""
    counts: Literal["natural", "uniform"] = "natural"
    """Mix of counts: as in ABID, or every count as often as the others."""
    max_count: int | None = None
    """Largest number of items in a bin, at most 30; left out, 30 for natural and 5 for uniform."""
    difficulty: float = 0.3
    """From 0 (bright, items apart, thin bands) to 1 (like the real pictures)."""
    pairs_rate: float = 0.4
    """Share of neighbouring ids that are one bin before and after a pick or stow of one item."""
    wrong_label_rate: float = 0.0
    """Share of bins whose record differs from what the picture shows."""
    broken_rate: float = 0.0
    """Share of bins with an object that is missing, truncated or not what it should be."""
    num_unpadded: int = 0
    """Extra bins under un-padded keys 1, 2, ...: other pictures than 00001, 00002, ..."""
    num_workers: int = 1
    """Processes that draw; the bucket does not depend on it."""

    def __post_init__(self) -> None:
        """Refuses values out of range, naming the field."""
        _check_range("num_bins", self.num_bins, 1, 999_999)
        _check_range("seed", self.seed, 0, 2**63 - 1)
        _check_range("num_unpadded", self.num_unpadded, 0, NUM_UNPADDED_LIMIT)
        _check_range("num_workers", self.num_workers, 1, 1024)
        for name in ("difficulty", "pairs_rate", "wrong_label_rate", "broken_rate"):
            _check_range(name, getattr(self, name), 0, 1)
        if self.max_count is not None:
            _check_range("max_count", self.max_count, 1, LARGEST_COUNT)
        if self.counts not in ("natural", "uniform"):
            raise ConfigError(f"counts must be 'natural' or 'uniform', got {self.counts!r}")
        if not self.out.strip():
            raise ConfigError("out must be a path or a URL, got an empty string")

    def count_rates(self) -> NDArray[np.float64]:
        """Probability of each count from 0 to the largest."""
        if self.counts == "uniform":
            rates = np.ones((self.max_count or LARGEST_UNIFORM_COUNT) + 1)
        else:
            rates = np.array(NATURAL_COUNTS[: (self.max_count or LARGEST_COUNT) + 1], dtype=float)
        rates /= rates.sum()
        return rates


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """One catalogue entry; every item of it looks the same."""

    fcsku: str
    asin: str
    name: str
    kind: Kind
    size_in: tuple[float, float, float] | None
    """Length, width and height; None where the record has null."""
    weight_pounds: float | None
    look_seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedItem:
    """One item of a product, standing in one of the places of its bin."""

    product: Product
    place: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BinPlan:
    """One id: what the picture shows and what the record says."""

    bin_id: str
    scene_seed: int
    """The same for all ids of a run: bin, camera and places."""
    shot_seed: int
    """Its own for each id: light, blur and noise."""
    num_places: int
    items: tuple[PlacedItem, ...]
    """What is in the bin, so the true count is its length."""
    recorded: tuple[tuple[Product, int], ...]
    """Products with their quantities in the record."""
    follows_previous: bool
    """The previous id is the same bin with one item more or less."""
    padded: bool = True
    fault: Fault | None = None

    @property
    def recorded_quantity(self) -> int:
        """EXPECTED_QUANTITY."""
        return sum(quantity for _, quantity in self.recorded)

    @property
    def is_wrong_label(self) -> bool:
        """The record does not tell what the picture shows."""
        return self.recorded_quantity != len(self.items)


def plan_block(config: SyntheticConfig, block: int, *, padded: bool = True) -> list[BinPlan]:
    """Plans the bins of one block that are within the number asked for."""
    rng = np.random.default_rng([config.seed, int(padded), block])
    plans: list[BinPlan] = []
    for counts in _draw_runs(config, rng):
        plans += _plan_run(counts, rng, first=block * BLOCK_SIZE + len(plans) + 1, padded=padded)
    # A stream of its own, so that turning a fault on leaves all other bins as they were.
    fault_rng = np.random.default_rng([config.seed, int(padded), block, 1])
    plans = [_spoil(plan, config, fault_rng) for plan in plans]
    limit = config.num_bins if padded else config.num_unpadded
    return plans[: max(0, limit - block * BLOCK_SIZE)]


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} must be between {low} and {high}, got {value}")


def _draw_runs(config: SyntheticConfig, rng: np.random.Generator) -> list[list[int]]:
    """Counts of a whole block, cut into runs of the same bin.

    Steps of one item are accepted by Metropolis' rule, so the mix of counts stays the one asked for; the
    proposals are scaled up by the acceptance, so the share of pairs does too.
    """
    rates = config.count_rates()
    acceptance = np.minimum(rates[1:], rates[:-1]).sum()
    propose_rate = min(1.0, config.pairs_rate / acceptance)
    runs = [[int(rng.choice(len(rates), p=rates))]]
    for _ in range(BLOCK_SIZE - 1):
        count = runs[-1][-1]
        if rng.random() >= propose_rate:
            runs.append([int(rng.choice(len(rates), p=rates))])
            continue
        step = count + (1 if rng.random() < 0.5 else -1)
        inside = 0 <= step < len(rates)
        if inside and rng.random() < rates[step] / rates[count]:
            runs[-1].append(step)
        else:
            runs.append([count])
    return runs


def _plan_run(counts: list[int], rng: np.random.Generator, *, first: int, padded: bool) -> list[BinPlan]:
    """One bin over consecutive ids."""
    num_places = max(counts) + int(rng.integers(0, 2))
    scene_seed = int(rng.integers(2**62))
    items = _fill(counts[0], num_places, rng)
    plans = []
    for offset, count in enumerate(counts):
        items = _step_to(items, count, num_places, rng)
        plans.append(
            BinPlan(
                bin_id=f"{first + offset:05d}" if padded else str(first + offset),
                scene_seed=scene_seed,
                shot_seed=int(rng.integers(2**62)),
                num_places=num_places,
                items=items,
                recorded=_record(items),
                follows_previous=offset > 0,
                padded=padded,
            )
        )
    return plans


def _fill(count: int, num_places: int, rng: np.random.Generator) -> tuple[PlacedItem, ...]:
    """Puts products into free places, items of one product side by side."""
    products: list[Product] = []
    while len(products) < count:
        quantity = int(rng.choice(QUANTITIES, p=QUANTITY_RATES))
        products += [_draw_product(rng)] * quantity
    places = sorted(rng.permutation(num_places)[:count].tolist())
    return tuple(PlacedItem(product=p, place=i) for p, i in zip(products[:count], places, strict=True))


def _step_to(
    items: tuple[PlacedItem, ...], count: int, num_places: int, rng: np.random.Generator
) -> tuple[PlacedItem, ...]:
    """The same items with at most one picked or stowed."""
    if count < len(items):
        picked = int(rng.integers(len(items)))
        return items[:picked] + items[picked + 1 :]
    if count > len(items):
        free = sorted(set(range(num_places)) - {item.place for item in items})
        again = bool(items) and rng.random() < 0.35
        product = items[int(rng.integers(len(items)))].product if again else _draw_product(rng)
        return (*items, PlacedItem(product=product, place=free[int(rng.integers(len(free)))]))
    return items


def _draw_product(rng: np.random.Generator) -> Product:
    kind = KINDS[int(rng.choice(len(KINDS), p=KIND_RATES))]
    letters = "".join(rng.choice(list("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"), size=7))
    asin = f"{rng.integers(10**9, 10**10)}" if kind == "book" else f"B00{letters}"
    length, width, height = (round(float(rng.uniform(*limits)), 1) for limits in SIZES_IN[kind])
    words = (MAKERS, TRAITS, NOUNS[kind])
    return Product(
        fcsku=f"X00{letters[::-1]}" if rng.random() < 0.03 else asin,
        asin=asin,
        name=" ".join(w[int(rng.integers(len(w)))] for w in words),
        kind=kind,
        size_in=None if rng.random() < 0.01 else (length, width, height),
        weight_pounds=None if rng.random() < 0.03 else round(length * width * height * 0.012 + 0.1, 2),
        look_seed=int(rng.integers(2**62)),
    )


def _record(items: tuple[PlacedItem, ...]) -> tuple[tuple[Product, int], ...]:
    return tuple(Counter(item.product for item in items).items())


def _spoil(plan: BinPlan, config: SyntheticConfig, rng: np.random.Generator) -> BinPlan:
    """Gives some bins a wrong record, or an object that cannot be read."""
    wrong, broken, up = rng.random(3)
    fault = FAULTS[int(rng.integers(len(FAULTS)))]
    stray = _draw_product(rng)
    if wrong < config.wrong_label_rate:
        last = () if not plan.recorded else plan.recorded[-1:]
        if up < 0.5 or not last:
            recorded = (*plan.recorded, (stray, 1))
        else:
            left = last[0][1] - 1
            recorded = plan.recorded[:-1] + (((last[0][0], left),) if left else ())
        plan = replace(plan, recorded=recorded)
    return replace(plan, fault=fault) if broken < config.broken_rate else plan
