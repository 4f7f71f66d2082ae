"""Which split an id belongs to: by rules that depend on the id alone, or on the challenge's lists.

    grouped     runs of neighbouring ids stay together, since they are often one bin before and after a pick
    official    the challenge's validation list is the test split, which published figures are scored on; its training
                list is cut into train and val by the grouped rule; what is on neither list is left out
    hash        every id by itself; neighbours part, so that val and test hold bins which training has seen

`data/siblings.py` has the rule for ids whose records are at hand: runs by shared ASIN, never cut.
"""

from collections.abc import Callable, Iterable
from functools import partial
from hashlib import blake2b
from typing import Final, Literal, get_args

from bintally.source_config import DataConfig
from data.official import OfficialLists, read_lists

Split = Literal["train", "val", "test"]
Splitter = Callable[[str], Split | None]
"""The split of an id; None leaves it out."""

_TRAIN_SHARE: Final = 0.64
_VAL_SHARE: Final = 0.16  # the remaining 0.20 are the test split

# The same shares over blocks: 16, 4 and 5 of 25. A fixed cycle instead of a hash, so that a small bucket has all three
# splits, too: any 4 blocks from the first on, and any 7 anywhere. Only a run over a block's edge can leak, 1 in 64 ids.
_BLOCK_SIZE: Final = 64
_CYCLE: Final = 25
_VAL_BLOCKS: Final = frozenset({1, 7, 14, 20})
_TEST_BLOCKS: Final = frozenset({3, 8, 13, 18, 23})


def make_splitter(data: DataConfig) -> Splitter:
    """The rule of a config. With `labels`, it leaves out what has no listed count, whatever the rule.

    Raises:
        ConfigError: the official lists cannot be read.
    """
    lists = read_lists(data.labels) if data.labels is not None else None
    if data.split_by == "official":
        assert lists is not None  # DataConfig asks for labels
        return partial(official_split, lists=lists)
    rule = hash_split if data.split_by == "hash" else grouped_split
    return rule if lists is None else lambda bin_id: rule(bin_id) if bin_id in lists.counts else None


def split_ids(ids: Iterable[str], splitter: Splitter) -> dict[Split, list[str]]:
    """All ids by split, each in the given order; a split may be empty."""
    splits: dict[Split, list[str]] = {split: [] for split in get_args(Split)}
    for bin_id in ids:
        split = splitter(bin_id)
        if split is not None:
            splits[split].append(bin_id)
    return splits


def digest_of(ids: Iterable[str]) -> str:
    """Of a set of ids, in whatever order: figures of other photos have another one."""
    return blake2b("\n".join(sorted(ids)).encode(), digest_size=8).hexdigest()


def hash_split(bin_id: str) -> Split:
    """The split of one id by itself; the same on every machine and in every version."""
    position = _position(bin_id, "split")
    if position < _TRAIN_SHARE:
        return "train"
    return "val" if position < _TRAIN_SHARE + _VAL_SHARE else "test"


def grouped_split(bin_id: str) -> Split:
    """The split of the block of 64 numbers that holds the id; an id that is no number is hashed.

    Padded and un-padded ids under one number fall into one split, though they are different bins: no harm.
    """
    if not bin_id.isdecimal():
        return hash_split(bin_id)
    place = (int(bin_id) - 1) // _BLOCK_SIZE % _CYCLE
    if place in _TEST_BLOCKS:
        return "test"
    return "val" if place in _VAL_BLOCKS else "train"


def official_split(bin_id: str, lists: OfficialLists) -> Split | None:
    """The split of one id by the challenge's lists."""
    if bin_id in lists.val_ids:
        return "test"
    if bin_id not in lists.counts:
        return None
    return "val" if grouped_split(bin_id) == "val" else "train"


def sample_ids(ids: list[str], limit: int | None) -> list[str]:
    """At most `limit` ids, chosen by a stable hash, sorted; a larger limit keeps what a smaller one chose."""
    if limit is None or limit >= len(ids):
        return sorted(ids)
    return sorted(sorted(ids, key=lambda bin_id: _position(bin_id, "sample"))[:limit])


def is_padded(bin_id: str) -> bool:
    """Whether the id is of ABID's main set: '00001' to '535234'. '523' is another bin than '00523'."""
    return bin_id.isdecimal() and len(bin_id) >= 5


def _position(bin_id: str, purpose: str) -> float:
    digest = blake2b(bin_id.encode(), digest_size=8, person=purpose.encode()).digest()
    return int.from_bytes(digest, "big") / 2**64
