"""Which split an id belongs to: a stable hash of the id, so it depends on nothing but the id."""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final, Literal, get_args

Split = Literal["train", "val", "test"]

_TRAIN_SHARE: Final = 0.64
_VAL_SHARE: Final = 0.16  # the remaining 0.20 are the test split


def split_of(bin_id: str) -> Split:
    """The split of one id; the same on every machine and in every version."""
    position = _position(bin_id, "split")
    if position < _TRAIN_SHARE:
        return "train"
    return "val" if position < _TRAIN_SHARE + _VAL_SHARE else "test"


def split_ids(ids: Iterable[str]) -> dict[Split, list[str]]:
    """All ids by split, each in the given order; a split may be empty."""
    splits: dict[Split, list[str]] = {split: [] for split in get_args(Split)}
    for bin_id in ids:
        splits[split_of(bin_id)].append(bin_id)
    return splits


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
