"""The figures of the report, from the facts of all bins; pure, and the same whatever order the bins came in.

Counts are told over all bins: `max_count` is a filter of training, shown as one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.facts import THUMB_SIDE
from data.split import Split

DARK_LUMA: Final = 90.0
"""A photo whose mean brightness lies below is called dark; 6 % of the real photos looked at."""
BLURRED_SHARPNESS: Final = 40.0
"""A photo whose Laplacian varies less is called blurred; chosen by looking at real photos, 7 % lie below."""
TOP_PRODUCTS: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Bins:
    """The good bins as columns, in the order of their ids, shorter ids first."""

    ids: list[str]
    count: np.ndarray
    width: np.ndarray
    height: np.ndarray
    photo_bytes: np.ndarray
    record_bytes: np.ndarray
    luma: np.ndarray
    sharpness: np.ndarray
    clutter: np.ndarray
    thumb: np.ndarray
    """(bins, THUMB_SIDE * THUMB_SIDE) uint8."""
    asins: list[str]
    """Every distinct product."""
    product: np.ndarray
    """Indices into asins of the products of all bins, bin after bin."""
    first_product: np.ndarray
    """Where in `product` the bin begins; one more entry than bins."""

    @classmethod
    def of(cls, facts: pa.Table) -> Self:
        """The good bins of a table of facts."""
        good = facts.filter(pc.equal(facts["fault"], "")).combine_chunks()
        ids = good["bin_id"].to_pylist()
        good = good.take(pa.array(sorted(range(len(ids)), key=lambda row: (len(ids[row]), ids[row])), pa.int64()))
        products = good["asins"].combine_chunks().flatten().dictionary_encode()
        thumbs = b"".join(good["thumb"].to_pylist())
        names = ("count", "width", "height", "photo_bytes", "record_bytes", "luma", "sharpness", "clutter")
        return cls(
            ids=good["bin_id"].to_pylist(),
            thumb=np.frombuffer(thumbs, np.uint8).reshape(-1, THUMB_SIDE**2),
            asins=products.dictionary.to_pylist(),
            product=products.indices.to_numpy(),
            first_product=np.concatenate([[0], np.cumsum(pc.list_value_length(good["asins"]).to_numpy())]).astype(int),
            **{name: good[name].to_numpy() for name in names},
        )

    def products_of(self, row: int) -> frozenset[int]:
        """Indices of the products in one bin."""
        return frozenset(self.product[self.first_product[row] : self.first_product[row + 1]].tolist())


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """How a figure is spread over the bins."""

    mean: float
    median: float
    low: float
    """5 % lie below."""
    high: float
    """5 % lie above."""
    least: float
    most: float

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """The spread of at least one value."""
        least, low, median, high, most = (float(v) for v in np.percentile(values, (0, 5, 50, 95, 100)))
        return cls(mean=float(values.mean()), median=median, low=low, high=high, least=least, most=most)


@dataclass(frozen=True, kw_only=True, slots=True)
class CountSummary:
    """Items per bin: the labels."""

    bins_by_count: dict[int, int]
    """Over all counts that occur."""
    max_count: int
    num_bins: int
    num_above_max: int
    """Bins that training filters out."""
    num_items: int
    mean: float
    largest: int
    majority_count: int
    """The most frequent of 0..max_count."""
    majority_share: float
    """Of the bins with 0..max_count items: what an answer that is always the same would score."""
    imbalance: float | None
    """Largest over smallest of the classes 0..max_count; None when a class is empty."""
    empty_classes: tuple[int, ...]
    """Counts of 0..max_count without a bin."""


def summarise_counts(counts: np.ndarray, max_count: int) -> CountSummary:
    """Of at least one bin."""
    by_count = dict(sorted(Counter(counts.tolist()).items()))
    classes = {count: by_count.get(count, 0) for count in range(max_count + 1)}
    majority = max(classes, key=lambda count: classes[count])
    smallest, num_kept = min(classes.values()), sum(classes.values())
    return CountSummary(
        bins_by_count=by_count,
        max_count=max_count,
        num_bins=len(counts),
        num_above_max=len(counts) - num_kept,
        num_items=int(counts.sum()),
        mean=float(counts.mean()),
        largest=int(counts.max()),
        majority_count=majority,
        majority_share=classes[majority] / num_kept if num_kept else 0.0,
        imbalance=classes[majority] / smallest if smallest else None,
        empty_classes=tuple(count for count, num_bins in classes.items() if not num_bins),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotoSummary:
    """Sizes, brightness and sharpness of the photos."""

    width: Spread
    """Pixels."""
    height: Spread
    """Pixels."""
    aspect: Spread
    """Width over height."""
    photo_bytes: Spread
    record_bytes: Spread
    luma: Spread
    """Mean brightness, 0 to 255."""
    sharpness: Spread
    """Variance of the Laplacian."""
    num_dark: int
    num_blurred: int
    num_dark_and_blurred: int


def summarise_photos(bins: Bins) -> PhotoSummary:
    """Of at least one bin."""
    dark, blurred = bins.luma < DARK_LUMA, bins.sharpness < BLURRED_SHARPNESS
    return PhotoSummary(
        width=Spread.of(bins.width),
        height=Spread.of(bins.height),
        aspect=Spread.of(bins.width / bins.height),
        photo_bytes=Spread.of(bins.photo_bytes),
        record_bytes=Spread.of(bins.record_bytes),
        luma=Spread.of(bins.luma),
        sharpness=Spread.of(bins.sharpness),
        num_dark=int(dark.sum()),
        num_blurred=int(blurred.sum()),
        num_dark_and_blurred=int((dark & blurred).sum()),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductSummary:
    """Distinct products (ASINs) and how often they come back."""

    num_products: int
    num_single_product_bins: int
    products_per_bin: float
    """Mean over all bins, the empty ones included."""
    products_by_bins: dict[int, int]
    """How many products occur in exactly so many bins."""
    top: tuple[tuple[str, int, str], ...]
    """The most frequent: ASIN, number of bins, id of the first such bin."""

    @property
    def share_in_one_bin(self) -> float:
        """Products that occur in one bin alone, of all."""
        return self.products_by_bins.get(1, 0) / max(self.num_products, 1)


def summarise_products(bins: Bins) -> ProductSummary:
    """Of any number of bins; a product counts once per bin."""
    bins_by_product = np.bincount(bins.product, minlength=len(bins.asins))
    top = np.argsort(-bins_by_product, kind="stable")[:TOP_PRODUCTS]
    owner = np.repeat(np.arange(len(bins.ids)), np.diff(bins.first_product))
    return ProductSummary(
        num_products=len(bins.asins),
        num_single_product_bins=int((np.diff(bins.first_product) == 1).sum()),
        products_per_bin=len(bins.product) / max(len(bins.ids), 1),
        products_by_bins=dict(sorted(Counter(bins_by_product.tolist()).items())),
        top=tuple(
            (bins.asins[index], int(bins_by_product[index]), bins.ids[owner[int(np.argmax(bins.product == index))]])
            for index in top
        ),
    )


def count_mix_by_split(bins: Bins, splits: Mapping[Split, Sequence[str]]) -> dict[Split, dict[int, int]]:
    """Good bins by split and count."""
    count_of = dict(zip(bins.ids, bins.count.tolist(), strict=True))
    return {
        split: dict(sorted(Counter(count_of[bin_id] for bin_id in ids if bin_id in count_of).items()))
        for split, ids in splits.items()
    }


def drop_table(facts: pa.Table, bins: Bins, max_count: int) -> dict[str, int]:
    """Unusable bins by reason, and the good ones that hold too many items, most frequent first."""
    reasons = Counter(reason for reason in facts["fault"].to_pylist() if reason)
    reasons["count_above_max"] = int((bins.count > max_count).sum())
    return dict((+reasons).most_common())
