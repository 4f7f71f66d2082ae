"""Splits and samples: the same for every machine, every version, and whatever else lies in the bucket."""

from itertools import chain, pairwise

import pytest

from data.split import is_padded, sample_ids, split_ids, split_of

IDS = [f"{number:05d}" for number in range(1, 10_001)]

# Written down once. If one of these changes, every published figure was measured on another test split.
KNOWN = {
    "00001": "test",
    "00523": "test",
    "01234": "train",
    "100000": "train",
    "535234": "train",
    "1": "train",
    "523": "test",
}


@pytest.mark.parametrize(("bin_id", "split"), KNOWN.items())
def test_an_id_stays_in_its_split_for_ever(bin_id: str, split: str) -> None:
    assert split_of(bin_id) == split


@pytest.mark.parametrize(("split", "share"), [("train", 0.64), ("val", 0.16), ("test", 0.20)])
def test_shares_are_as_told(split: str, share: float) -> None:
    assert [split_of(bin_id) for bin_id in IDS].count(split) / len(IDS) == pytest.approx(share, abs=0.015)


def test_every_id_is_in_one_split_in_the_given_order() -> None:
    splits = split_ids(reversed(IDS))
    assert list(splits) == ["train", "val", "test"]
    assert sorted(chain.from_iterable(splits.values())) == IDS
    assert all(members == sorted(members, reverse=True) for members in splits.values())
    assert all(split_of(bin_id) == split for split, members in splits.items() for bin_id in members[:100])


def test_the_split_of_an_id_does_not_depend_on_the_others() -> None:
    assert set(split_ids(IDS[::3])["val"]) == set(split_ids(IDS)["val"]) & set(IDS[::3])


def test_no_ids_leave_three_empty_splits() -> None:
    assert split_ids([]) == {"train": [], "val": [], "test": []}


def test_padded_and_unpadded_ids_are_independent() -> None:
    """'523' and '00523' are different bins: whether both fall in one split is chance, 0.64² + 0.16² + 0.20²."""
    same = [split_of(str(number)) == split_of(f"{number:05d}") for number in range(1, 1201)]
    assert sum(same) / len(same) == pytest.approx(0.475, abs=0.05)


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


def test_a_sample_is_split_like_the_whole() -> None:
    """Sampling and splitting hash apart; with one hash for both, a small sample would be training rows alone."""
    splits = split_ids(sample_ids(IDS, 1_000))
    assert len(splits["train"]) == pytest.approx(640, abs=60)
    assert len(splits["test"]) == pytest.approx(200, abs=50)


@pytest.mark.parametrize("bin_id", ["00001", "00523", "99999", "100000", "535234"])
def test_ids_of_the_main_set_are_padded(bin_id: str) -> None:
    assert is_padded(bin_id)


@pytest.mark.parametrize("bin_id", ["1", "523", "1200", "", "abcde", "00 01", "-0001", "0001.5", "readme00"])
def test_other_ids_are_not(bin_id: str) -> None:
    assert not is_padded(bin_id)
