"""Figures of the report from facts that are made up, so that every number is known."""

from dataclasses import replace

import numpy as np
import pytest

from bintally.errors import NoUsableRowsError
from bintally.source_config import DataConfig
from data.facts import BinFacts, measure_bin, to_table
from data.findings import Findings, spread_out
from data.siblings import next_id
from data.summary import (
    Bins,
    count_mix_by_split,
    drop_table,
    summarise_counts,
    summarise_photos,
    summarise_products,
)
from data.suspects import correlate, find_neighbours, find_suspects, summarise_neighbours
from data.synthetic import SyntheticConfig, encode_bin, iter_plans

DATA = DataConfig(source="file:///bins")


def thumb(seed: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, 256, dtype=np.uint8).tobytes()


def fact(bin_id: str, count: int = 1, *asins: str, **given: object) -> BinFacts:
    plain: dict[str, object] = {
        "width": 400,
        "height": 200,
        "luma": 120.0,
        "sharpness": 200.0,
        "clutter": 0.1,
        "photo_bytes": 1000,
    }
    return BinFacts(bin_id=bin_id, count=count, asins=asins, **({"thumb": thumb(int(bin_id)), **plain} | given))


def bins_of(*facts: BinFacts) -> Bins:
    return Bins.of(to_table(facts))


def test_bins_are_in_the_order_of_their_ids_whatever_order_they_came_in() -> None:
    facts = [fact(bin_id, int(bin_id) % 7, f"B{bin_id}") for bin_id in ("00001", "00002", "99999", "100000", "100001")]
    bins = bins_of(*(facts[row] for row in (3, 0, 4, 2, 1)))
    assert bins.ids == ["00001", "00002", "99999", "100000", "100001"]
    assert bins.count.tolist() == [int(bin_id) % 7 for bin_id in bins.ids]
    assert [[bins.asins[index] for index in bins.products_of(row)] for row in range(5)] == [[f"B{i}"] for i in bins.ids]
    assert bins.thumb[2].tobytes() == thumb(99999)


def test_unusable_bins_are_left_out() -> None:
    bins = bins_of(fact("00001"), BinFacts(bin_id="00002", fault="missing_image"))
    assert bins.ids == ["00001"]


def test_counts_are_told_over_all_bins_and_classes_up_to_max_count() -> None:
    summary = summarise_counts(np.array([0, 1, 1, 2, 2, 2, 2, 9, 9, 9, 9, 9]), max_count=2)
    assert summary.bins_by_count == {0: 1, 1: 2, 2: 4, 9: 5}
    assert (summary.num_bins, summary.num_above_max, summary.num_items, summary.largest) == (12, 5, 55, 9)
    assert summary.mean == pytest.approx(55 / 12)
    assert (summary.majority_count, summary.majority_share, summary.imbalance) == (2, 4 / 7, 4.0)
    assert summary.empty_classes == ()


def test_an_empty_class_makes_the_imbalance_unbounded() -> None:
    summary = summarise_counts(np.array([1, 3]), max_count=3)
    assert summary.imbalance is None
    assert summary.empty_classes == (0, 2)


def test_bins_above_max_count_alone_have_no_majority() -> None:
    summary = summarise_counts(np.array([7, 8]), max_count=5)
    assert (summary.majority_share, summary.imbalance, summary.num_above_max) == (0.0, None, 2)


def test_photos_are_dark_and_blurred_below_the_limits() -> None:
    summary = summarise_photos(
        bins_of(
            fact("00001", luma=89.9, sharpness=39.9),
            fact("00002", luma=90.0, sharpness=40.0),
            fact("00003", luma=10.0, width=200, height=400),
        )
    )
    assert (summary.num_dark, summary.num_blurred, summary.num_dark_and_blurred) == (2, 1, 1)
    assert (summary.aspect.least, summary.aspect.median, summary.aspect.most) == (0.5, 2.0, 2.0)
    assert summary.width.mean == pytest.approx(1000 / 3)


def test_a_product_counts_once_per_bin() -> None:
    products = summarise_products(bins_of(fact("00001", 2, "B1", "B2"), fact("00002", 3, "B2"), fact("00003", 0)))
    assert (products.num_products, products.num_single_product_bins) == (2, 1)
    assert products.products_per_bin == 1.0
    assert products.products_by_bins == {1: 1, 2: 1}
    assert products.top == (("B2", 2, "00001"), ("B1", 1, "00001"))
    assert products.share_in_one_bin == 0.5


def test_empty_bins_alone_have_no_products() -> None:
    products = summarise_products(bins_of(fact("00001", 0)))
    assert (products.num_products, products.top, products.share_in_one_bin) == (0, (), 0.0)


def test_the_drop_table_tells_faults_and_the_filter() -> None:
    facts = to_table([fact("00001", 9), fact("00002"), *(BinFacts(bin_id=i, fault="missing_image") for i in "34")])
    assert drop_table(facts, Bins.of(facts), 5) == {"missing_image": 2, "count_above_max": 1}
    assert drop_table(facts.slice(1, 1), Bins.of(facts.slice(1, 1)), 5) == {}


def test_the_mix_of_a_split_holds_its_good_bins() -> None:
    bins = bins_of(fact("00001", 2), fact("00002", 2), fact("00003", 0))
    mix = count_mix_by_split(bins, {"train": ["00001", "00002", "00009"], "val": ["00003"], "test": []})
    assert mix == {"train": {2: 2}, "val": {0: 1}, "test": {}}


@pytest.mark.parametrize(
    ("bin_id", "after"),
    [("00009", "00010"), ("99999", "100000"), ("523", "524"), ("999", "1000"), ("IMG_1", None), ("\u0661", None)],
)
def test_the_next_id_is_of_the_same_set(bin_id: str, after: str | None) -> None:
    assert next_id(bin_id) == after


def test_neighbours_are_consecutive_ids_of_one_set() -> None:
    pairs = find_neighbours(bins_of(*(fact(i) for i in ("00001", "00002", "00004", "3", "99999", "100000"))))
    assert [(pair.first, pair.second) for pair in pairs] == [("00001", "00002"), ("99999", "100000")]


def test_neighbours_are_summed_up() -> None:
    facts = [fact("00001", 3, "A", "B"), fact("00002", 2, "A"), fact("00003", 4, "A"), fact("00004", 4, "C")]
    pairs = find_neighbours(bins_of(*facts))
    summary = summarise_neighbours(pairs, {"train": ["00001", "00002"], "val": ["00003", "00004"], "test": []})
    assert (summary.num_neighbours, summary.num_sharing, summary.num_differ_by_one) == (3, 2, 1)
    assert summary.pairs_by_difference == {-1: 1, 2: 1}
    assert summary.num_across_splits == 1
    assert summary.share_sharing == pytest.approx(2 / 3)
    assert summary.largest_stranger_similarity == pairs[2].similarity


def test_without_neighbours_all_shares_are_zero() -> None:
    summary = summarise_neighbours([], {"train": [], "val": [], "test": []})
    assert (summary.share_sharing, summary.share_differ_by_one, summary.largest_stranger_similarity) == (0, 0, None)


def test_correlation_ignores_brightness_and_contrast_and_survives_a_plain_picture() -> None:
    picture = np.frombuffer(thumb(1), np.uint8)
    assert correlate(picture, picture // 2 + 20) > 0.999
    assert correlate(picture, 255 - picture) == pytest.approx(-1)
    assert correlate(picture, np.zeros(256, np.uint8)) == 0.0


def suspects_of(*facts: BinFacts) -> list[tuple[str, tuple[str, ...]]]:
    table = to_table(facts)
    bins = Bins.of(table)
    return [(one.kind, one.ids) for one in find_suspects(table, bins, find_neighbours(bins))]


def test_the_same_photo_under_two_counts_is_suspected() -> None:
    one, other = fact("00001", 1, "A", thumb=thumb(5)), fact("00002", 3, "A", "B", thumb=thumb(5))
    assert suspects_of(one, other) == [("same_photo", ("00001", "00002"))]
    assert suspects_of(one, replace(other, count=2)) == []  # one more, as a stow leaves it
    assert suspects_of(one, replace(other, asins=("B",))) == []
    assert suspects_of(one, replace(other, thumb=thumb(6))) == []
    assert suspects_of(one, replace(other, bin_id="00003")) == []


def test_the_same_bin_twice_with_the_same_count_is_suspected() -> None:
    one, other = fact("00001", 2, "A"), fact("00002", 2, "A", "B")
    assert suspects_of(one, other) == [("same_count", ("00001", "00002"))]
    assert suspects_of(one, replace(other, asins=("B",))) == []


def test_a_record_that_contradicts_itself_is_suspected_with_its_reason() -> None:
    facts = [fact("00001"), BinFacts(bin_id="00007", fault="quantity_mismatch", detail="1 but 2")]
    assert suspects_of(*facts) == [("contradiction", ("00007",))]


def empties(number: int, clutter: float = 0.05) -> list[BinFacts]:
    return [fact(f"{index:05d}", 0, clutter=clutter) for index in range(10, 10 + 2 * number, 2)]


def test_empty_and_filled_bins_that_look_like_each_other_are_suspected() -> None:
    filled = [fact(f"{index:05d}", 3, clutter=0.1) for index in range(101, 111, 2)]
    odd = [fact("00200", 0, clutter=0.2), fact("00300", 4, clutter=0.04)]
    assert suspects_of(*empties(5), *filled) == []
    assert suspects_of(*empties(5), *filled, *odd) == [("not_empty", ("00200",)), ("looks_empty", ("00300",))]


def test_few_empty_bins_tell_nothing() -> None:
    assert suspects_of(*empties(3), fact("00300", 4, clutter=0.04), fact("00302", 4)) == []
    assert suspects_of(*empties(6)) == []


def test_findings_name_every_photo_once() -> None:
    facts = to_table([fact("00001", 1, "A", thumb=thumb(0)), fact("00002", 2, "A", thumb=thumb(0)), fact("00003", 9)])
    findings = Findings.of(facts, {"train": ["00001", "00002"], "val": ["00003"], "test": []}, DATA)
    assert sorted(findings.shown_ids()) == ["00001", "00002", "00003"]
    assert findings.samples["6 or more"] == ("00003",)
    assert findings.num_faults == 0
    assert findings.drops == {"count_above_max": 1}
    assert "3 good bins of 3" in findings.headline()


def test_no_usable_bin_is_an_error_with_the_drop_table() -> None:
    with pytest.raises(NoUsableRowsError, match="missing_image"):
        Findings.of(
            to_table([BinFacts(bin_id="1", fault="missing_image")]), {"train": ["1"], "val": [], "test": []}, DATA
        )


@pytest.mark.parametrize(("number", "limit"), [(0, 3), (2, 3), (3, 3), (100, 8)])
def test_samples_are_spread_and_in_order(number: int, limit: int) -> None:
    chosen = spread_out(range(number), limit)
    assert len(chosen) == len(set(chosen)) == min(number, limit)
    assert chosen == sorted(chosen)
    if number == 100:
        assert chosen[-1] >= 80


def test_the_thresholds_find_the_wrong_labels_of_a_synthetic_bucket() -> None:
    config = SyntheticConfig(num_bins=600, wrong_label_rate=0.1, difficulty=0.5, out="unused")
    plans = list(iter_plans(config))
    facts = [measure_bin(plan.bin_id, *reversed(encode_bin(plan, difficulty=0.5))) for plan in plans]
    wrong = {plan.bin_id for plan in plans if plan.is_wrong_label}
    found = [ids for kind, ids in suspects_of(*facts) if kind in {"same_count", "same_photo"}]
    assert len(found) >= 10
    assert all(wrong & set(ids) for ids in found)
