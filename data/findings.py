"""Everything the report says, put together from the facts of all bins; pure, so the page and report.json agree."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self, TypeVar

import numpy as np
import pyarrow as pa

from bintally.errors import NoUsableRowsError
from bintally.source_config import DataConfig
from data.drops import format_table
from data.split import Split
from data.summary import (
    BLURRED_SHARPNESS,
    DARK_LUMA,
    Bins,
    CountSummary,
    PhotoSummary,
    ProductSummary,
    count_mix_by_split,
    drop_table,
    summarise_counts,
    summarise_photos,
    summarise_products,
)
from data.suspects import (
    PLAIN_PERCENTILE,
    TWIN_CORRELATION,
    TWIN_DIFFERENCE,
    Kind,
    NeighbourSummary,
    Pair,
    Suspect,
    find_neighbours,
    find_suspects,
    summarise_neighbours,
)

SAMPLES_PER_COUNT: Final = 8
SHOWN_PAIRS: Final = 8
SHOWN_SUSPECTS: Final = 8
FILTERS: Final = frozenset({"count_above_max"})

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What one look at a bucket found."""

    source: str
    num_ids: int
    """Ids looked at, the unusable ones included."""
    counts: CountSummary
    photos: PhotoSummary
    products: ProductSummary
    neighbours: NeighbourSummary
    drops: dict[str, int]
    """Ids by reason, most frequent first."""
    mix_by_split: dict[Split, dict[int, int]]
    """Good bins by split and count, those above max_count included."""
    ids_by_split: dict[Split, int]
    split_by: str
    samples: dict[str, tuple[str, ...]]
    """Ids to show by count; the last entry stands for all counts above max_count."""
    pairs: tuple[Pair, ...]
    """Some of the pairs suspected to be one bin."""
    suspects: tuple[Suspect, ...]

    @classmethod
    def of(cls, facts: pa.Table, splits: Mapping[Split, Sequence[str]], data: DataConfig) -> Self:
        """All findings.

        Raises:
            NoUsableRowsError: not one bin can be used; the message holds the drop table.
        """
        bins = Bins.of(facts)
        drops = drop_table(facts, bins, data.max_count)
        if not bins.ids:
            raise NoUsableRowsError(f"no usable row in {data.source}; {format_table(drops, facts.num_rows)}")
        pairs = find_neighbours(bins)
        return cls(
            source=data.source,
            num_ids=facts.num_rows,
            counts=summarise_counts(bins.count, data.max_count),
            photos=summarise_photos(bins),
            products=summarise_products(bins),
            neighbours=summarise_neighbours(pairs, splits),
            drops=drops,
            mix_by_split=count_mix_by_split(bins, splits),
            ids_by_split={split: len(ids) for split, ids in splits.items()},
            split_by=data.split_by,
            samples=choose_samples(bins, data.max_count),
            pairs=tuple(spread_out([pair for pair in pairs if pair.shares_product], SHOWN_PAIRS)),
            suspects=tuple(find_suspects(facts, bins, pairs)),
        )

    @property
    def num_good(self) -> int:
        """Bins with a record and a photo that can be used, whatever they hold."""
        return self.counts.num_bins

    @property
    def num_faults(self) -> int:
        """Ids lost to faults, not to filters."""
        return sum(number for reason, number in self.drops.items() if reason not in FILTERS)

    def headline(self) -> str:
        """The findings in one line."""
        counts, neighbours = self.counts, self.neighbours
        return (
            f"{self.num_good:,} good bins of {self.num_ids:,}, counts {min(counts.bins_by_count)}-{counts.largest};"
            f" always answering {counts.majority_count} scores {counts.majority_share:.1%};"
            f" {neighbours.share_sharing:.0%} of neighbours share a product; {len(self.suspects):,} suspected labels"
        )

    def shown_suspects(self) -> dict[Kind, list[Suspect]]:
        """The strongest few of each kind."""
        kinds = dict.fromkeys(suspect.kind for suspect in self.suspects)
        return {kind: [one for one in self.suspects if one.kind == kind][:SHOWN_SUSPECTS] for kind in kinds}

    def shown_ids(self) -> list[str]:
        """Every id whose photo the page shows, once."""
        ids = [bin_id for chosen in self.samples.values() for bin_id in chosen]
        ids += [bin_id for pair in self.pairs for bin_id in (pair.first, pair.second)]
        ids += [bin_id for shown in self.shown_suspects().values() for one in shown for bin_id in one.ids]
        return list(dict.fromkeys(ids))

    def to_json(self) -> dict[str, Any]:
        """All figures, with the thresholds behind them."""
        thresholds = {
            "dark_luma": DARK_LUMA,
            "blurred_sharpness": BLURRED_SHARPNESS,
            "twin_correlation": TWIN_CORRELATION,
            "twin_difference": TWIN_DIFFERENCE,
            "plain_percentile": PLAIN_PERCENTILE,
        }
        return asdict(self) | {"num_good": self.num_good, "num_faults": self.num_faults, "thresholds": thresholds}


def choose_samples(bins: Bins, max_count: int) -> dict[str, tuple[str, ...]]:
    """Some ids of each count 0..max_count, and of all above together, spread over the bucket."""
    chosen = {str(count): bins.count == count for count in range(max_count + 1)}
    chosen[f"{max_count + 1} or more"] = bins.count > max_count
    ids = {name: [bins.ids[row] for row in np.flatnonzero(rows)] for name, rows in chosen.items()}
    return {name: tuple(spread_out(members, SAMPLES_PER_COUNT)) for name, members in ids.items()}


def spread_out(values: Sequence[_T], limit: int) -> list[_T]:
    """At most `limit` of the values, in their order and evenly apart."""
    step = max(len(values) / limit, 1)
    return [values[int(number * step)] for number in range(min(limit, len(values)))]
