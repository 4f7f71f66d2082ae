"""Neighbours that show one bin twice, and labels that something speaks against; found without any model.

All of these are hints for an auditor, none is a verdict.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.siblings import next_id
from data.split import Split
from data.summary import Bins

TWIN_CORRELATION: Final = 0.93
"""Thumbnails that agree better show a photo that hardly changed; of the neighbours in the real pairs that share no
product, none passes 0.88."""
TWIN_DIFFERENCE: Final = 2
"""Items. One more or less is what a pick or stow leaves, and may well be hidden."""
PLAIN_PERCENTILE: Final = 10
"""A filled bin looks empty when it is plainer than all but so many percent of the empty bins."""
MIN_EMPTY_BINS: Final = 5
"""Fewer empty bins tell nothing of how empty ones look."""

Kind = Literal["contradiction", "same_count", "same_photo", "not_empty", "looks_empty"]
KINDS: Final = get_args(Kind)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two bins under consecutive ids."""

    first: str
    second: str
    counts: tuple[int, int]
    shares_product: bool
    similarity: float
    """Correlation of the two thumbnails, -1 to 1; 1 is the same picture but for brightness and contrast."""

    @property
    def difference(self) -> int:
        """Items by which the second count is higher."""
        return self.counts[1] - self.counts[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourSummary:
    """What consecutive ids have in common."""

    num_neighbours: int
    """Pairs of consecutive ids of which both bins are good."""
    num_sharing: int
    """Of these, pairs with a product in common: suspected to be one bin before and after a pick or stow."""
    num_differ_by_one: int
    """Of these, pairs whose counts differ by exactly one item."""
    pairs_by_difference: dict[int, int]
    """Sharing pairs by the signed difference of their counts."""
    num_across_splits: int
    """Sharing pairs whose two bins lie in different splits: a leak."""
    largest_stranger_similarity: float | None
    """Of the neighbours without a common product, the best agreement of photos: what chance gives."""

    @property
    def share_sharing(self) -> float:
        """Sharing pairs of all neighbours."""
        return self.num_sharing / max(self.num_neighbours, 1)

    @property
    def share_differ_by_one(self) -> float:
        """Pairs that differ by one item, of the sharing ones."""
        return self.num_differ_by_one / max(self.num_sharing, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Suspect:
    """A label that something speaks against."""

    kind: Kind
    ids: tuple[str, ...]
    """The bin, or both bins of a pair."""
    counts: tuple[int, ...]
    """As the records say; empty where the record contradicts itself."""
    why: str
    strength: float
    """Orders the suspects of one kind, the strongest first."""


def find_neighbours(bins: Bins) -> list[Pair]:
    """All pairs of consecutive ids, in the order of the ids."""
    row_of = {bin_id: row for row, bin_id in enumerate(bins.ids)}
    rows = [(row, row_of[after]) for row, one in enumerate(bins.ids) if (after := next_id(one)) in row_of]
    return [_pair(bins, first, second) for first, second in rows]


def _pair(bins: Bins, first: int, second: int) -> Pair:
    return Pair(
        first=bins.ids[first],
        second=bins.ids[second],
        counts=(int(bins.count[first]), int(bins.count[second])),
        shares_product=not bins.products_of(first).isdisjoint(bins.products_of(second)),
        similarity=correlate(bins.thumb[first], bins.thumb[second]),
    )


def correlate(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson correlation of the pixels; 0 if one of the pictures is of one grey."""
    a, b = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale else 0.0


def summarise_neighbours(pairs: Sequence[Pair], splits: Mapping[Split, Sequence[str]]) -> NeighbourSummary:
    """Of any number of pairs."""
    sharing = [pair for pair in pairs if pair.shares_product]
    differences = Counter(pair.difference for pair in sharing)
    split_of = {bin_id: split for split, ids in splits.items() for bin_id in ids}
    return NeighbourSummary(
        num_neighbours=len(pairs),
        num_sharing=len(sharing),
        num_differ_by_one=differences[1] + differences[-1],
        pairs_by_difference=dict(sorted(differences.items())),
        num_across_splits=sum(split_of.get(pair.first) != split_of.get(pair.second) for pair in sharing),
        largest_stranger_similarity=max((pair.similarity for pair in pairs if not pair.shares_product), default=None),
    )


def find_suspects(facts: pa.Table, bins: Bins, pairs: Sequence[Pair]) -> list[Suspect]:
    """All suspected labels, kind by kind, the strongest first."""
    found = [*_contradictions(facts), *_same_bins(pairs), *_wrongly_empty(bins)]
    return sorted(found, key=lambda suspect: (KINDS.index(suspect.kind), -suspect.strength, suspect.ids))


def _contradictions(facts: pa.Table) -> list[Suspect]:
    rows = facts.filter(pc.equal(facts["fault"], "quantity_mismatch")).select(["bin_id", "detail"]).to_pylist()
    return [
        Suspect(kind="contradiction", ids=(row["bin_id"],), counts=(), why=row["detail"], strength=0.0) for row in rows
    ]


def _same_bins(pairs: Sequence[Pair]) -> list[Suspect]:
    """Of the pairs that share a product: those whose counts or whose photos did not change, though the other did."""
    found: list[Suspect] = []
    for pair in pairs:
        unchanged = pair.similarity >= TWIN_CORRELATION
        if pair.shares_product and not pair.difference:
            found.append(_by_pair("same_count", pair))
        elif pair.shares_product and unchanged and abs(pair.difference) >= TWIN_DIFFERENCE:
            found.append(_by_pair("same_photo", pair))
    return found


def _by_pair(kind: Kind, pair: Pair) -> Suspect:
    why = f"counts differ by {abs(pair.difference)}, photos correlate by {pair.similarity:.2f}"
    return Suspect(kind=kind, ids=(pair.first, pair.second), counts=pair.counts, why=why, strength=pair.similarity)


def _wrongly_empty(bins: Bins) -> list[Suspect]:
    """Empty bins that look like filled ones, and filled ones that look like empty ones, by their clutter."""
    empty = bins.count == 0
    if empty.sum() < MIN_EMPTY_BINS or empty.all():
        return []
    filled_limit, empty_limit = np.median(bins.clutter[~empty]), np.percentile(bins.clutter[empty], PLAIN_PERCENTILE)
    full = [_by_clutter("not_empty", bins, row) for row in np.flatnonzero(empty & (bins.clutter > filled_limit))]
    bare = [_by_clutter("looks_empty", bins, row) for row in np.flatnonzero(~empty & (bins.clutter < empty_limit))]
    return full + bare


def _by_clutter(kind: Kind, bins: Bins, row: np.intp) -> Suspect:
    clutter, count = float(bins.clutter[row]), int(bins.count[row])
    return Suspect(
        kind=kind,
        ids=(bins.ids[int(row)],),
        counts=(count,),
        why=f"{count} item{'' if count == 1 else 's'} by the record, clutter {clutter:.3f}",
        strength=clutter if kind == "not_empty" else -clutter,
    )
