"""Bins photographed twice: neighbouring ids that show one bin before and after a pick or a stow.

The records tell. Two ids are neighbours if their numbers differ by one in one key set ('00522' and '00523'; '522' and
'00523' are not). Neighbours are linked if they share at least one ASIN, and surely linked if they share at least half
of all ASINs of both (Jaccard). A run is a longest chain of linked ids, and its ids are siblings of each other. Empty
bins share nothing, so they are linked to none; nor is an id whose record is unknown.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from data.split import Split, Splitter, grouped_split

Asins = Mapping[str, frozenset[str]]
"""The products of each bin whose record is known, by id."""
Run = tuple[str, ...]

SURE: Final = 0.5  # Jaccard overlap


@dataclass(frozen=True, kw_only=True, slots=True)
class Leak:
    """How many images of a held-out split have a sibling in training."""

    num_images: int
    num_siblings: int
    """Images of a run that has an image in training."""
    num_sure: int
    """The same for runs of surely linked ids."""


def find_runs(asins: Asins, *, min_overlap: float = 0.0) -> list[Run]:
    """All ids in runs, most of them alone; in the order of their numbers, un-padded ids first.

    Args:
        asins: products by id.
        min_overlap: neighbours need at least this Jaccard overlap beside one shared ASIN.
    """
    runs: list[list[str]] = []
    for bin_id in sorted(asins, key=lambda one: (not one.isdecimal(), len(one), one)):
        previous = runs[-1][-1] if runs else ""
        if next_id(previous) == bin_id and _are_linked(asins[previous], asins[bin_id], min_overlap):
            runs[-1].append(bin_id)
        else:
            runs.append([bin_id])
    return [tuple(run) for run in runs]


def split_by_runs(asins: Asins) -> Splitter:
    """The grouped rule without its leaks: each run goes whole to where its first id belongs.

    An id whose record is unknown goes by its own number. The result depends on the records, so that it is stable only
    as far as they are: build it from the whole bucket's, not from those of a sample.
    """
    first_ids = {bin_id: run[0] for run in find_runs(asins) for bin_id in run}
    return lambda bin_id: grouped_split(first_ids.get(bin_id, bin_id))


def find_leaks(splits: Mapping[Split, Sequence[str]], asins: Asins) -> dict[Split, Leak]:
    """Siblings in training of the val and test images.

    Args:
        splits: the images that are used, by split.
        asins: products by id, also of images that are not used: a chain may go over them.
    """
    any_runs, sure_runs = find_runs(asins), find_runs(asins, min_overlap=SURE)
    return {
        split: Leak(
            num_images=len(splits[split]),
            num_siblings=len(siblings_in(splits["train"], splits[split], any_runs)),
            num_sure=len(siblings_in(splits["train"], splits[split], sure_runs)),
        )
        for split in ("val", "test")
    }


def siblings_in(training: Iterable[str], held_out: Iterable[str], runs: Iterable[Run]) -> list[str]:
    """The held-out ids that have a sibling in training."""
    trained = set(training)
    leaking = {bin_id for run in runs if not trained.isdisjoint(run) for bin_id in run}
    return [bin_id for bin_id in held_out if bin_id in leaking]


def next_id(bin_id: str) -> str | None:
    """The id after this one, as wide as this one: 00009 -> 00010, 99999 -> 100000; None if it is no number."""
    return str(int(bin_id) + 1).zfill(len(bin_id)) if bin_id.isascii() and bin_id.isdecimal() else None


def _are_linked(one: frozenset[str], other: frozenset[str], min_overlap: float) -> bool:
    shared = one & other
    return bool(shared) and len(shared) >= min_overlap * len(one | other)
