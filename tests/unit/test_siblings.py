"""Runs of neighbouring ids that are one bin, and which held-out images have a sibling in training."""

from pathlib import Path
from random import Random

import pytest

from bintally.labels import parse_record
from data.siblings import Leak, find_leaks, find_runs, siblings_in, split_by_runs
from data.split import Split, grouped_split, hash_split, split_ids

REAL_BUCKET = Path(__file__).resolve().parents[3] / "shared" / "abid" / "bucket"


def bins(**products: str) -> dict[str, frozenset[str]]:
    """`bins(_00001="AB")`: bins with products of one letter each; the underscore makes a keyword of an id."""
    return {name.removeprefix("_"): frozenset(letters) for name, letters in products.items()}


def random_bins(num_bins: int, seed: int) -> dict[str, frozenset[str]]:
    """Bins of up to three of five products, so that runs are common, short and long."""
    rng = Random(seed)  # noqa: S311  # no secret
    return {f"{number:05d}": frozenset(rng.sample("ABCDE", rng.randrange(4))) for number in range(1, num_bins + 1)}


# find_runs


def test_neighbours_that_share_a_product_are_a_run() -> None:
    asins = bins(_00001="A", _00002="AB", _00003="C", _00004="C")
    assert find_runs(asins) == [("00001", "00002"), ("00003", "00004")]


def test_a_chain_is_one_run_though_its_ends_share_nothing() -> None:
    assert find_runs(bins(_00001="A", _00002="AB", _00003="B")) == [("00001", "00002", "00003")]


def test_the_same_product_further_away_is_another_bin() -> None:
    assert find_runs(bins(_00001="A", _00003="A")) == [("00001",), ("00003",)]
    assert find_runs(bins(_00001="A", _00002="B", _00003="A")) == [("00001",), ("00002",), ("00003",)]


def test_empty_bins_are_nobodys_siblings() -> None:
    assert find_runs(bins(_00001="", _00002="", _00003="A")) == [("00001",), ("00002",), ("00003",)]


def test_padded_and_unpadded_ids_are_never_in_one_run() -> None:
    asins = bins(_522="A", _523="A", _00523="A", _00524="A")
    assert find_runs(asins) == [("522", "523"), ("00523", "00524")]


def test_runs_go_on_where_a_number_grows() -> None:
    asins = bins(_9="A", _10="A", _99999="B", _100000="B")
    assert find_runs(asins) == [("9", "10"), ("99999", "100000")]


def test_ids_that_are_no_numbers_are_alone() -> None:
    assert find_runs(bins(_a1="A", _a2="A", _00001="A")) == [("00001",), ("a1",), ("a2",)]


@pytest.mark.parametrize(
    ("one", "other", "are_sure"),
    [("AB", "AB", True), ("AB", "A", True), ("ABC", "AB", True), ("ABC", "A", False), ("AB", "BC", False)],
)
def test_neighbours_are_sure_from_half_of_their_products_on(one: str, other: str, are_sure: bool) -> None:
    asins = bins(_00001=one, _00002=other)
    assert len(find_runs(asins)) == 1
    assert len(find_runs(asins, min_overlap=0.5)) == (1 if are_sure else 2)


@pytest.mark.parametrize("seed", range(5))
def test_runs_hold_every_id_once_and_depend_on_no_order(seed: int) -> None:
    asins = random_bins(500, seed)
    runs = find_runs(asins)
    assert [bin_id for run in runs for bin_id in run] == sorted(asins)
    shuffled = Random(seed).sample(list(asins.items()), len(asins))  # noqa: S311  # no secret
    assert find_runs(dict(shuffled)) == runs
    sure = find_runs(asins, min_overlap=0.5)
    assert {run[0] for run in runs} <= {run[0] for run in sure}  # sure runs are parts of runs


# find_leaks


def leaks(asins: dict[str, frozenset[str]], train: list[str], val: list[str], test: list[str]) -> dict[Split, Leak]:
    return find_leaks({"train": train, "val": val, "test": test}, asins)


def test_each_held_out_image_counts_once_and_by_its_own_split() -> None:
    asins = bins(_00001="A", _00002="A", _00003="A", _00004="B", _00005="BCD")
    found = leaks(asins, train=["00001", "00003", "00004"], val=["00002"], test=["00005"])
    assert found["val"] == Leak(num_images=1, num_siblings=1, num_sure=1)
    assert found["test"] == Leak(num_images=1, num_siblings=1, num_sure=0)


def test_siblings_within_a_held_out_split_or_between_two_are_no_leak() -> None:
    asins = bins(_00001="A", _00002="A", _00003="A", _00004="Z")
    found = leaks(asins, train=["00004"], val=["00001", "00002"], test=["00003"])
    assert found["val"] == Leak(num_images=2, num_siblings=0, num_sure=0)
    assert found["test"] == Leak(num_images=1, num_siblings=0, num_sure=0)


def test_a_chain_over_an_image_that_is_not_used_leaks() -> None:
    asins = bins(_00001="A", _00002="A", _00003="A")
    assert leaks(asins, train=["00001"], val=[], test=["00003"])["test"].num_siblings == 1


def test_an_image_without_a_known_record_has_no_siblings() -> None:
    assert leaks(bins(_00001="A"), train=["00001"], val=["00002"], test=[])["val"].num_siblings == 0


def test_siblings_are_named_in_the_given_order() -> None:
    runs = [("1", "2", "3"), ("4",)]
    assert siblings_in(training=["2"], held_out=["3", "4", "1"], runs=runs) == ["3", "1"]


# split_by_runs


def test_a_run_over_the_edge_of_a_block_goes_whole_to_where_it_begins() -> None:
    asins = bins(_00064="A", _00065="A", _00066="AB", _00067="C")
    splitter = split_by_runs(asins)
    assert [splitter(bin_id) for bin_id in asins] == ["train", "train", "train", "val"]
    assert [grouped_split(bin_id) for bin_id in asins] == ["train", "val", "val", "val"]


def test_an_id_without_a_record_goes_by_its_number() -> None:
    splitter = split_by_runs({})
    assert all(splitter(bin_id) == grouped_split(bin_id) for bin_id in ("00001", "00065", "523", "x"))


@pytest.mark.parametrize("seed", range(5))
def test_whole_runs_leak_nothing_and_keep_the_shares(seed: int) -> None:
    asins = random_bins(3_200, seed)
    splits = split_ids(asins, split_by_runs(asins))
    assert sorted(bin_id for members in splits.values() for bin_id in members) == sorted(asins)
    found = find_leaks(splits, asins)
    assert (found["val"].num_siblings, found["test"].num_siblings) == (0, 0)
    assert len(splits["train"]) / len(asins) == pytest.approx(0.64, abs=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_blocks_leak_at_their_edges_alone_and_hashes_everywhere(seed: int) -> None:
    asins = random_bins(3_200, seed)
    grouped, hashed = (find_leaks(split_ids(asins, rule), asins) for rule in (grouped_split, hash_split))
    for split in ("val", "test"):
        assert grouped[split].num_sure <= grouped[split].num_siblings < 0.15 * grouped[split].num_images
        assert hashed[split].num_siblings > 0.3 * hashed[split].num_images


@pytest.mark.skipif(not REAL_BUCKET.is_dir(), reason="the real ABID records are not on this machine")
def test_the_real_neighbours_share_as_the_data_sets_readme_says() -> None:
    records = {path.stem: path.read_bytes() for path in (REAL_BUCKET / "metadata").glob("?????.json")}
    asins = {bin_id: parse_record(record).asins for bin_id, record in records.items()}
    runs = find_runs(asins)
    assert sum(len(run) - 1 for run in runs) / (len(asins) - 1) == pytest.approx(0.40, abs=0.005)
