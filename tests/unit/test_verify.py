"""Records against photos: promises on photos that were not fitted, verdicts, the queue, and what it finds."""

from collections.abc import Sequence

import numpy as np
import pytest

from bintally.calibration import fit_temperature, fit_thresholds, range_scores, scale
from bintally.verify import (
    BUDGETS,
    VerifyThresholds,
    discrepancies,
    fit_verify,
    match_probabilities,
    recount_order,
    tamper,
    verify,
    verify_figures,
)

LIMITS = VerifyThresholds(mismatch=0.1, match=0.6)


def draw_photos(
    num: int, *, sharpen: float = 1.0, spread: float = 0.6, num_classes: int = 6, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities whose counts are drawn from them, and then made too sure by a factor on their logits.

    A smaller spread makes a better model.
    """
    random = np.random.default_rng(seed)
    true = random.dirichlet(np.full(num_classes, spread), num)
    counts = (true.cumsum(axis=1) < random.random((num, 1))).sum(axis=1).clip(max=num_classes - 1)
    return scale(true, 1 / sharpen), counts


def off_by_one_or_two(probabilities: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """p(match) of every such record, written out."""
    num_classes = probabilities.shape[1]
    return np.array(
        [
            row[wrong]
            for row, count in zip(probabilities, counts, strict=True)
            for wrong in range(num_classes)
            if 1 <= abs(wrong - count) <= 2
        ]
    )


# What the thresholds promise


@pytest.mark.parametrize("spread", [0.05, 0.3, 2.0])
@pytest.mark.parametrize("sharpen", [0.5, 1.0, 3.0])
def test_both_promises_hold_on_other_photos(spread: float, sharpen: float) -> None:
    """Whatever the model: good or bad, too sure or not sure enough."""
    fitted, counts = draw_photos(4_000, sharpen=sharpen, spread=spread)
    others, expected = draw_photos(10_000, sharpen=sharpen, spread=spread, seed=1)
    temperature = fit_temperature(fitted, counts)
    limits = fit_verify(scale(fitted, temperature), counts)
    calibrated = scale(others, temperature)
    alarms = (match_probabilities(calibrated, expected) < limits.mismatch).mean()
    missed = (off_by_one_or_two(calibrated, expected) > limits.match).mean()
    assert 0.01 < alarms < 0.03
    assert missed < 0.06
    assert missed > 0.04 or limits.mismatch == limits.match


@pytest.mark.parametrize("num", [60, 200])
def test_the_promises_hold_on_average_over_few_photos(num: int) -> None:
    """The finite-sample corrections: without them, so few photos would promise too much."""
    others, expected = draw_photos(4_000, seed=1)
    right, wrong = match_probabilities(others, expected), off_by_one_or_two(others, expected)
    drawn = [fit_verify(*draw_photos(num, seed=seed)) for seed in range(2, 302)]
    assert np.mean([(right < limits.mismatch).mean() for limits in drawn]) <= 0.02 + 0.002
    assert np.mean([(wrong > limits.match).mean() for limits in drawn]) <= 0.05 + 0.003


def test_the_limits_are_the_widest_of_the_fitted_photos() -> None:
    for seed in range(50):
        probabilities, counts = draw_photos(300, spread=2.0, seed=seed)
        limits = fit_verify(probabilities, counts)
        right, wrong = match_probabilities(probabilities, counts), off_by_one_or_two(probabilities, counts)
        assert (right < limits.mismatch).sum() == 5  # 301 * 2 % = 6.02, of which one is the photo to come
        assert (wrong > limits.match).sum() == int((len(wrong) + 4) * 0.05) - 4


def test_equal_probabilities_do_not_break_a_promise() -> None:
    """All right records tie with one another: then none of them may be called a mismatch."""
    limits = fit_verify(np.full((500, 6), 1 / 6), np.arange(500) % 6)
    assert limits.mismatch == limits.match == 1 / 6
    assert verify(np.full(6, 1 / 6), 3, limits, (0, 5)).decision == "review"


def test_a_good_model_leaves_nothing_to_review() -> None:
    probabilities, counts = draw_photos(2_000, spread=0.02)
    limits = fit_verify(probabilities, counts)
    assert limits.mismatch == limits.match
    others, expected = draw_photos(2_000, spread=0.02, seed=1)
    decisions = verify_figures(others, expected, expected, limits, None)["decisions"]
    assert decisions["review"] == 0
    assert decisions["match"] == pytest.approx(0.98, abs=0.01)


@pytest.mark.parametrize("num", [0, 1, 20])
def test_too_few_photos_leave_everything_to_people(num: int) -> None:
    limits = fit_verify(*draw_photos(num))
    assert (limits.mismatch, limits.match) == (0.0, 1.0)
    for p in (0.0, 0.5, 1.0):
        assert verify(np.array([p, 1 - p]), 0, limits, (0, 1)).decision == "review"


def test_a_model_of_one_count_has_no_wrong_records() -> None:
    limits = fit_verify(np.ones((100, 1)), np.zeros(100, np.int64))
    assert (limits.mismatch, limits.match) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"mismatch": 0.7, "match": 0.6}, "mismatch"),
        ({"mismatch": -0.1, "match": 0.6}, "mismatch"),
        ({"mismatch": 0.1, "match": 1.1}, "match"),
        ({"mismatch": 0.1, "match": float("nan")}, "match"),
        ({"mismatch": 0.1, "match": 0.6, "misses": 0.0}, "misses"),
        ({"mismatch": 0.1, "match": 0.6, "false_alarms": 1.0}, "false_alarms"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(values: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        VerifyThresholds(**values)


# Verdicts


@pytest.mark.parametrize(
    ("p_match", "decision", "reason"),
    [
        (0.05, "mismatch", "disagrees"),
        (0.1, "review", "unsure"),
        (0.3, "review", "unsure"),
        (0.6, "review", "unsure"),
        (0.7, "match", "agrees"),
    ],
)
def test_the_limits_themselves_are_for_people(p_match: float, decision: str, reason: str) -> None:
    verdict = verify(np.array([1 - p_match, p_match]), 1, LIMITS, (0, 1))
    assert (verdict.decision, verdict.reason, verdict.p_match) == (decision, reason, p_match)
    assert f"{p_match:.1%}" in verdict.sentence


@pytest.mark.parametrize(
    ("p_match", "told", "limit"),
    [
        (0.0003, "of under 0.1 %, ", "(under 0.1 %)"),
        (0.001, "of 0.1%: ", ""),
        (0.999, "of 99.9%: ", ""),
        (0.99996, "of over 99.9 %, ", "(over 99.9 %)"),
    ],
)
def test_a_chance_is_never_rounded_to_certainty(p_match: float, told: str, limit: str) -> None:
    limits = VerifyThresholds(mismatch=0.0004, match=0.9995)
    sentence = verify(np.array([1 - p_match, p_match]), 1, limits, (0, 1)).sentence
    assert told in sentence
    assert limit in sentence


def test_what_lies_outside_the_range_is_no_match() -> None:
    """With two peaks, a range may leave out one of them that is probable enough."""
    row = np.array([0.0, 0.0, 0.0, 0.39, 0.19, 0.42])
    limits = VerifyThresholds(mismatch=0.05, match=0.35)
    verdict = verify(row, 3, limits, (4, 5))
    assert (verdict.decision, verdict.reason, verdict.p_match) == ("review", "outside_range", 0.39)
    assert "outside the range, 4 to 5" in verdict.sentence
    assert [verify(row, 3, limits, within).decision for within in ((3, 5), None)] == ["match", "match"]
    assert verify(row, 2, limits, (4, 5)).decision == "mismatch"


def test_the_range_breaks_no_promise_and_takes_few_matches() -> None:
    """Of a good model; of one that is right on less than 80 % of the photos it takes none."""
    fitted, counts = draw_photos(2_000, spread=0.05)
    thresholds, limits = fit_thresholds(fitted, counts), fit_verify(fitted, counts)
    others, truth = draw_photos(10_000, spread=0.05, seed=1)
    inside = range_scores(others) <= thresholds["0.9"]
    ranges = inside.argmax(axis=1), 5 - inside[:, ::-1].argmax(axis=1)
    records = tamper(truth, 0.5, 0, max_count=5)
    alone, both = (verify_figures(others, records, truth, limits, one)["decisions"] for one in (None, ranges))
    assert alone["match"] - 0.04 < both["match"] < alone["match"]
    assert both["misses"] < alone["misses"] < 0.06
    assert (both["mismatch"], both["false_alarms"]) == (alone["mismatch"], alone["false_alarms"])


def test_more_than_the_model_counts_is_for_people() -> None:
    verdict = verify(np.array([0.0, 1.0]), 2, LIMITS, (1, 1))
    assert (verdict.decision, verdict.reason, verdict.p_match) == ("review", "above_max_count", None)
    assert "up to 1" in verdict.sentence


def test_without_thresholds_everything_is_for_people() -> None:
    verdict = verify(np.array([0.0, 1.0]), 1, None, None)
    assert (verdict.decision, verdict.reason, verdict.p_match) == ("review", "not_calibrated", 1.0)


def test_no_record_expects_less_than_nothing() -> None:
    with pytest.raises(ValueError, match="expected_quantity"):
        verify(np.array([0.0, 1.0]), -1, LIMITS, (1, 1))


def test_verdicts_are_those_that_the_figures_count() -> None:
    probabilities, counts = draw_photos(500)
    records = tamper(counts, 0.3, 0, max_count=5)
    low, high = probabilities.argmax(axis=1) - 1, probabilities.argmax(axis=1)
    verdicts = [
        verify(row, int(one), LIMITS, (int(least), int(most))).decision
        for row, one, least, most in zip(probabilities, records, low, high, strict=True)
    ]
    figures = verify_figures(probabilities, records, counts, LIMITS, (low, high))["decisions"]
    for decision in ("match", "review", "mismatch"):
        assert figures[decision] == verdicts.count(decision) / 500
    wrong = records != counts
    assert figures["false_alarms"] == np.mean(np.array(verdicts)[~wrong] == "mismatch")
    assert figures["misses"] == np.mean(np.array(verdicts)[wrong] == "match")


# The queue


def by_hand(probabilities: np.ndarray, expected: Sequence[int]) -> list[int]:
    """The queue, sorted by tuples."""

    def key(row: int) -> tuple[float, float, int]:
        above = expected[row] >= probabilities.shape[1]
        p_match = 2.0 if above else float(probabilities[row, expected[row]])
        gap = sum(float(p) * abs(count - expected[row]) for count, p in enumerate(probabilities[row]))
        return p_match, -gap, row

    return sorted(range(len(expected)), key=key)


def test_the_queue_is_sorted_by_probability_then_by_discrepancy() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        num = int(random.integers(1, 30))
        probabilities = random.multinomial(8, [0.25] * 4, num) / 8  # sums of eighths are exact, and often tie
        expected = random.integers(0, 7, num)
        assert recount_order(probabilities, expected).tolist() == by_hand(probabilities, expected.tolist())


def test_of_equal_probabilities_the_larger_discrepancy_comes_first() -> None:
    near, far = [0.1, 0.9, 0.0, 0.0], [0.1, 0.0, 0.0, 0.9]
    expected = np.array([0, 0])
    assert recount_order(np.array([near, far]), expected).tolist() == [1, 0]
    assert discrepancies(np.array([near, far]), expected).tolist() == pytest.approx([0.9, 2.7])


def test_an_empty_queue() -> None:
    assert recount_order(np.zeros((0, 6)), np.zeros(0, np.int64)).tolist() == []


# Wrong records


@pytest.mark.parametrize("max_count", [1, 2, 5])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_tampering_changes_so_many_by_one_or_two(share: float, max_count: int) -> None:
    random = np.random.default_rng(0)
    for seed in range(20):
        counts = random.integers(0, max_count + 1, int(random.integers(0, 300)))
        before = counts.copy()
        records = tamper(counts, share, seed, max_count=max_count)
        changed = records != counts
        assert np.array_equal(counts, before)
        assert changed.sum() == round(share * len(counts))
        assert np.abs(records - counts).max(initial=0) <= 2
        assert records.min(initial=0) >= 0
        assert records.max(initial=0) <= max_count


def test_each_way_to_be_wrong_is_alike_and_depends_on_the_seed_alone() -> None:
    counts = np.full(40_000, 1)
    records = tamper(counts, 1.0, 3, max_count=5)
    assert np.bincount(records) / 40_000 == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3], abs=0.01)
    assert np.array_equal(records, tamper(counts, 1.0, 3, max_count=5))
    assert not np.array_equal(records, tamper(counts, 1.0, 4, max_count=5))


def test_where_nothing_can_be_wrong_nothing_is_tampered_with() -> None:
    with pytest.raises(ValueError, match="max_count"):
        tamper(np.zeros(5, np.int64), 0.5, 0, max_count=0)


# What the queue finds


def test_the_figures_of_four_records() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]])
    truth, records = np.array([0, 1, 1, 0]), np.array([1, 1, 0, 0])  # p(match) 0.1, 0.8, 0.3, 0.6
    figures = verify_figures(probabilities, records, truth, LIMITS, None)
    assert (figures["num_images"], figures["num_wrong"], figures["auroc"]) == (4, 2, 1.0)
    assert figures["recall"] == {"0.05": 0.0, "0.1": 0.0, "0.2": 0.5}
    assert figures["precision"] == {"0.05": None, "0.1": None, "0.2": 1.0}
    assert figures["curve"][25] == [0.25, 0.5]
    assert figures["curve"][-1] == [1.0, 1.0]
    assert figures["decisions"] == {"match": 0.25, "review": 0.75, "mismatch": 0, "false_alarms": 0, "misses": 0}


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        shares = random.integers(1, 4, (30, 3))
        probabilities = shares / shares.sum(axis=1, keepdims=True)
        truth = random.integers(0, 3, 30)
        records = tamper(truth, 0.4, int(random.integers(1000)), max_count=2)
        p_match = probabilities[np.arange(30), records]
        low, high = p_match[records != truth], p_match[records == truth]
        pairs = [0.5 if a == b else float(a < b) for a in low for b in high]
        assert verify_figures(probabilities, records, truth, None, None)["auroc"] == pytest.approx(np.mean(pairs))


def test_a_model_that_knows_nothing_finds_as_much_as_chance() -> None:
    random = np.random.default_rng(0)
    probabilities, truth = random.dirichlet(np.ones(6), 50_000), random.integers(0, 6, 50_000)
    figures = verify_figures(probabilities, tamper(truth, 0.05, 0, max_count=5), truth, None, None)
    assert figures["auroc"] == pytest.approx(0.5, abs=0.02)
    for budget in BUDGETS:
        assert figures["recall"][str(budget)] == pytest.approx(budget, abs=0.03)
        assert figures["precision"][str(budget)] == pytest.approx(0.05, abs=0.02)


def test_a_model_that_knows_everything_finds_all_of_it_first() -> None:
    truth = np.arange(1000) % 6
    figures = verify_figures(np.eye(6)[truth], tamper(truth, 0.05, 0, max_count=5), truth, LIMITS, None)
    assert figures["auroc"] == 1
    assert list(figures["recall"].values()) == [1, 1, 1]
    assert list(figures["precision"].values()) == [1, 0.5, 0.25]
    assert figures["decisions"] == {"match": 0.95, "review": 0, "mismatch": 0.05, "false_alarms": 0, "misses": 0}


@pytest.mark.parametrize("num", [0, 1, 7])
def test_without_wrong_records_there_is_nothing_to_find(num: int) -> None:
    probabilities, truth = draw_photos(num)
    figures = verify_figures(probabilities, truth, truth, LIMITS, None)
    assert (figures["num_wrong"], figures["auroc"], figures["curve"]) == (0, None, [])
    assert set(figures["recall"].values()) == {None}
    assert figures["decisions"]["misses"] is None
    assert (figures["decisions"]["match"] is None) == (num == 0)


def test_when_every_record_is_wrong_there_is_no_order_to_judge() -> None:
    probabilities, truth = draw_photos(10)
    figures = verify_figures(probabilities, tamper(truth, 1.0, 0, max_count=5), truth, LIMITS, None)
    assert (figures["auroc"], figures["decisions"]["false_alarms"]) == (None, None)
    assert figures["precision"]["0.2"] == 1
