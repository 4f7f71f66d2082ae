"""Splits and samples: the same for every machine, every version, and whatever else lies in the bucket."""

from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from random import Random
from typing import get_args

import pytest

from bintally.errors import ConfigError
from bintally.source_config import DataConfig, SplitBy
from data.official import OfficialLists
from data.split import (
    Split,
    Splitter,
    digest_of,
    grouped_split,
    hash_split,
    is_padded,
    make_splitter,
    official_split,
    sample_ids,
    split_ids,
)

WriteLists = Callable[[dict[str, int], dict[str, int]], str]


def padded(first: int, last: int) -> list[str]:
    return [f"{number:05d}" for number in range(first, last + 1)]


IDS = padded(1, 10_000)

# Written down once. If one of these changes, every published figure was measured on another test split.
KNOWN_BY_HASH = {
    "00001": "test",
    "00523": "test",
    "01234": "train",
    "100000": "train",
    "535234": "train",
    "1": "train",
    "523": "test",
}
KNOWN_BY_GROUP = {
    "00001": "train",
    "00064": "train",
    "00065": "val",
    "00128": "val",
    "00129": "train",
    "00193": "test",
    "00256": "test",
    "00257": "train",
    "00523": "test",
    "01234": "train",
    "01600": "train",
    "01665": "val",
    "100000": "train",
    "535234": "test",
    "1": "train",
    "523": "test",
    "photo-7": "test",
}

SMALL_LISTS = OfficialLists(
    counts=dict.fromkeys(padded(1, 300), 2) | {"00066": 0}, val_ids=frozenset({"00002", "00066", "00200"})
)
RULES: dict[str, Splitter] = {
    "hash": hash_split,
    "grouped": grouped_split,
    "official": lambda bin_id: official_split(bin_id, SMALL_LISTS),
}


@pytest.mark.parametrize(("bin_id", "split"), KNOWN_BY_HASH.items())
def test_an_id_stays_in_its_hash_split_for_ever(bin_id: str, split: str) -> None:
    assert hash_split(bin_id) == split


@pytest.mark.parametrize(("bin_id", "split"), KNOWN_BY_GROUP.items())
def test_an_id_stays_in_its_grouped_split_for_ever(bin_id: str, split: str) -> None:
    assert grouped_split(bin_id) == split


@pytest.mark.parametrize("rule", [hash_split, grouped_split])
@pytest.mark.parametrize(("split", "share"), [("train", 0.64), ("val", 0.16), ("test", 0.20)])
def test_shares_are_as_told(rule: Splitter, split: str, share: float) -> None:
    assert [rule(bin_id) for bin_id in IDS].count(split) / len(IDS) == pytest.approx(share, abs=0.015)


# What holds of every rule


@pytest.mark.parametrize("name", RULES)
def test_every_id_is_in_at_most_one_split_in_the_given_order(name: str) -> None:
    given = Random(3).sample(IDS, 2_000)  # noqa: S311  # no secret
    splits = split_ids(given, RULES[name])
    assert list(splits) == ["train", "val", "test"]
    kept = [bin_id for bin_id in given if RULES[name](bin_id) is not None]
    assert sorted(chain.from_iterable(splits.values())) == sorted(kept)
    order = {bin_id: place for place, bin_id in enumerate(given)}
    assert all(members == sorted(members, key=order.__getitem__) for members in splits.values())


@pytest.mark.parametrize("name", RULES)
def test_the_split_of_an_id_depends_on_no_other_and_on_no_order(name: str) -> None:
    rule = RULES[name]
    whole = split_ids(IDS, rule)
    shuffled = Random(0).sample(IDS, len(IDS))  # noqa: S311  # no secret
    assert {split: sorted(members) for split, members in split_ids(shuffled, rule).items()} == whole
    part = split_ids(IDS[::3], rule)
    assert all(set(part[split]) == set(whole[split]) & set(IDS[::3]) for split in get_args(Split))


@pytest.mark.parametrize("name", RULES)
def test_no_ids_leave_three_empty_splits(name: str) -> None:
    assert split_ids([], RULES[name]) == {"train": [], "val": [], "test": []}


@pytest.mark.parametrize("name", ["hash", "grouped"])
def test_a_rule_on_ids_alone_leaves_none_out(name: str) -> None:
    odd = ["", "1", "00000", "photo-7", "00001.old", "0" * 900, "9" * 900, "\uff17"]
    assert None not in map(RULES[name], [*IDS, *odd])


# grouped


def test_a_block_of_64_neighbours_is_never_cut() -> None:
    for first in range(1, 20_000, 64):
        assert len({grouped_split(bin_id) for bin_id in padded(first, first + 63)}) == 1


def test_a_whole_cycle_has_the_exact_shares_wherever_it_begins() -> None:
    for first in (1, 2, 65, 1_000, 99_000, 535_234 - 1_599):
        splits = split_ids(padded(first, first + 1_599), grouped_split)
        assert {split: len(members) for split, members in splits.items()} == {"train": 1024, "val": 256, "test": 320}


@pytest.mark.parametrize(
    ("num_ids", "shares"),
    [
        (240, (0.53, 0.27, 0.20)),
        (799, (0.68, 0.16, 0.16)),
        (2_400, (0.65, 0.16, 0.19)),
        (535_234, (0.64, 0.16, 0.20)),
    ],
)
def test_small_buckets_have_all_splits_and_large_ones_the_shares(num_ids: int, shares: tuple[float, ...]) -> None:
    splits = split_ids(padded(1, num_ids), grouped_split)
    assert [round(len(members) / num_ids, 2) for members in splits.values()] == pytest.approx(shares)


def test_any_448_neighbours_have_all_splits() -> None:
    assert all(all(split_ids(padded(first, first + 447), grouped_split).values()) for first in range(1, 1_601))


def test_few_neighbours_part() -> None:
    edges = [(one, other) for one, other in pairwise(IDS) if grouped_split(one) != grouped_split(other)]
    assert 0 < len(edges) < len(IDS) / 64
    assert sum(hash_split(one) != hash_split(other) for one, other in pairwise(IDS)) > len(IDS) / 2


def test_unpadded_ids_are_in_blocks_of_their_own_numbers() -> None:
    unpadded = [str(number) for number in range(1, 1201)]
    assert [grouped_split(bin_id) for bin_id in unpadded] == [grouped_split(bin_id) for bin_id in padded(1, 1200)]


def test_a_bucket_numbered_without_zeros_has_no_seam_where_its_ids_grow() -> None:
    """'9999' is un-padded and '10000' is not, yet they are neighbours, in one block of 64."""
    assert len({grouped_split(str(number)) for number in range(9_985, 10_049)}) == 1


# official


def test_the_official_validation_list_is_the_test_split() -> None:
    splits = split_ids(padded(1, 400), RULES["official"])
    assert splits["test"] == ["00002", "00066", "00200"]


def test_the_official_training_list_is_cut_into_train_and_val_by_blocks() -> None:
    splits = split_ids(padded(1, 300), RULES["official"])
    assert splits["val"] == [bin_id for bin_id in padded(65, 128) if bin_id != "00066"]
    assert {"00193", "00256"} <= set(splits["train"])  # a test block of the grouped rule: free to train on here
    assert sum(map(len, splits.values())) == 300


def test_what_is_on_no_list_is_left_out() -> None:
    assert official_split("00301", SMALL_LISTS) is None
    assert official_split("2", SMALL_LISTS) is None  # un-padded: another photo than 00002


# make_splitter


@pytest.fixture
def folder(write_lists: WriteLists) -> str:
    return write_lists(dict.fromkeys(padded(1, 130), 2), {"00140": 1})


def test_the_default_is_grouped_and_no_lists_are_needed() -> None:
    assert make_splitter(DataConfig()) is grouped_split
    assert make_splitter(DataConfig(split_by="hash")) is hash_split


@pytest.mark.parametrize("rule", get_args(SplitBy))
def test_with_labels_no_split_has_an_id_without_a_listed_count(rule: SplitBy, folder: str) -> None:
    splits = split_ids(padded(1, 200), make_splitter(DataConfig(split_by=rule, labels=folder)))
    assert sorted(chain.from_iterable(splits.values())) == [*padded(1, 130), "00140"]


@pytest.mark.parametrize("rule", ["hash", "grouped"])
def test_labels_leave_the_rule_as_it_is(rule: SplitBy, folder: str) -> None:
    plain, listed = (make_splitter(DataConfig(split_by=rule, labels=labels)) for labels in (None, folder))
    assert all(plain(bin_id) == listed(bin_id) for bin_id in padded(1, 130))


def test_official_reads_the_lists(folder: str) -> None:
    splitter = make_splitter(DataConfig(split_by="official", labels=folder))
    assert [splitter(bin_id) for bin_id in ("00001", "00065", "00140", "00131")] == ["train", "val", "test", None]


@pytest.mark.parametrize("rule", get_args(SplitBy))
def test_lists_that_cannot_be_read_are_told_before_the_first_id(rule: SplitBy, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="labels"):
        make_splitter(DataConfig(split_by=rule, labels=str(tmp_path / "absent")))


# sample_ids


@pytest.mark.parametrize("limit", [1, 10, 999, 9_999])
def test_a_sample_has_the_size_and_is_sorted(limit: int) -> None:
    sample = sample_ids(IDS[::-1], limit)
    assert len(set(sample)) == limit
    assert set(sample) <= set(IDS)
    assert sample == sorted(sample)


def test_a_larger_sample_keeps_what_a_smaller_one_chose() -> None:
    samples = [set(sample_ids(IDS, limit)) for limit in (10, 100, 5_000, 9_999)]
    assert all(small < large for small, large in pairwise(samples))


@pytest.mark.parametrize("limit", [None, 10_000, 20_000])
def test_no_limit_or_a_larger_one_keeps_all(limit: int | None) -> None:
    assert sample_ids(IDS[::-1], limit) == IDS


def test_a_sample_is_stable() -> None:
    assert sample_ids(IDS, 5) == ["01009", "03386", "06652", "08217", "09677"]


@pytest.mark.parametrize("rule", [hash_split, grouped_split])
def test_a_sample_is_split_like_the_whole(rule: Splitter) -> None:
    """Sampling and splitting hash apart; with one hash for both, a small sample would be training rows alone."""
    splits = split_ids(sample_ids(IDS, 1_000), rule)
    assert len(splits["train"]) == pytest.approx(640, abs=60)
    assert len(splits["test"]) == pytest.approx(200, abs=50)


@pytest.mark.parametrize("bin_id", ["00001", "00523", "99999", "100000", "535234"])
def test_ids_of_the_main_set_are_padded(bin_id: str) -> None:
    assert is_padded(bin_id)


@pytest.mark.parametrize("bin_id", ["1", "523", "1200", "", "abcde", "00 01", "-0001", "0001.5", "readme00"])
def test_other_ids_are_not(bin_id: str) -> None:
    assert not is_padded(bin_id)


def test_a_digest_is_of_the_ids_whatever_their_order() -> None:
    assert digest_of(["1", "2"]) == digest_of(["2", "1"])
    assert len({digest_of(ids) for ids in (["1", "2"], ["12"], ["1"], ["1", "3"], [])}) == 5
