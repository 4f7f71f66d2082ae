"""Figures against formulas written out photo by photo, which share no code with them."""

import math

import numpy as np
import pytest

from bintally.scores import (
    DECODERS,
    MIN_PROBABILITY,
    Reliability,
    confusion_of,
    decode_mean,
    decode_median,
    figures_of,
    nll_of,
    risk_by_coverage,
)


def random_photos(num: int = 200, classes: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.full(classes, 0.7), num).astype(np.float32)
    return probabilities, random.integers(0, classes, num)


def expected_cost(row: np.ndarray, answer: int, power: int) -> float:
    return float(sum(p * abs(count - answer) ** power for count, p in enumerate(row)))


def test_each_decoder_is_the_best_answer_for_its_figure() -> None:
    probabilities, _ = random_photos()
    for row, best, mean, median in zip(
        probabilities, *(DECODERS[name](probabilities) for name in DECODERS), strict=True
    ):
        answers = range(len(row))
        assert row[best] == max(row)
        assert expected_cost(row, mean, 2) == pytest.approx(min(expected_cost(row, one, 2) for one in answers))
        assert expected_cost(row, median, 1) == pytest.approx(min(expected_cost(row, one, 1) for one in answers))


def test_halves_are_rounded_up_and_the_median_is_the_lower_one() -> None:
    tie = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
    assert decode_mean(tie).tolist() == [1, 2]
    assert decode_median(tie).tolist() == [0, 1]


def test_rows_of_the_confusion_matrix_are_expected_counts() -> None:
    confusion = confusion_of(np.array([0, 0, 2]), np.array([0, 1, 1]), 3)
    assert confusion.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0]]


def kappa_by_definition(counts: list[int], counted: list[int]) -> float:
    """Every pair of photos stands for chance."""
    observed = sum((a - b) ** 2 for a, b in zip(counts, counted, strict=True)) / len(counts)
    chance = sum((a - b) ** 2 for a in counts for b in counted) / len(counts) ** 2
    return 1 - observed / chance


def test_figures_are_those_of_the_single_photos() -> None:
    probabilities, counts = random_photos()
    counted = probabilities.argmax(axis=1)
    figures = figures_of(confusion_of(counts, counted, 6))
    errors = np.abs(counts - counted)
    assert figures["accuracy"] == pytest.approx((errors == 0).mean())
    assert figures["within_one"] == pytest.approx((errors <= 1).mean())
    assert figures["rmse"] == pytest.approx(math.sqrt((errors**2).mean()))
    assert figures["mae"] == pytest.approx(errors.mean())
    assert figures["quadratic_kappa"] == pytest.approx(kappa_by_definition(counts.tolist(), counted.tolist()))


def test_figures_of_a_stack_are_those_of_its_matrices() -> None:
    matrices = [confusion_of(*map(np.asarray, pair), 3) for pair in (([0, 1, 2], [0, 1, 1]), ([2, 2], [0, 2]))]
    stacked = figures_of(np.stack(matrices))
    for number, matrix in enumerate(matrices):
        assert {name: float(values[number]) for name, values in stacked.items()} == pytest.approx(
            {name: float(value) for name, value in figures_of(matrix).items()}
        )


def test_kappa_without_any_variety_is_no_nan() -> None:
    assert figures_of(confusion_of(np.array([2, 2]), np.array([2, 2]), 3))["quadratic_kappa"] == 0


def test_a_sure_mistake_costs_much_and_not_everything() -> None:
    costs = nll_of(np.array([[0, 1, 0], [0.5, 0.25, 0.25]], np.float32), np.array([2, 0]))
    assert costs.tolist() == pytest.approx([-math.log(MIN_PROBABILITY), math.log(2)])


@pytest.mark.parametrize("num_bins", [1, 7, 15])
def test_ece_is_the_mean_distance_of_the_bins(num_bins: int) -> None:
    probabilities, counts = random_photos()
    distance = 0.0
    for number in range(num_bins):
        last = number == num_bins - 1
        inside = [
            (float(row.max()), int(row.argmax()) == count)
            for row, count in zip(probabilities, counts, strict=True)
            if number / num_bins <= float(row.max()) and (last or float(row.max()) < (number + 1) / num_bins)
        ]
        if inside:
            confidence, accuracy = np.mean(inside, axis=0)
            distance += abs(confidence - accuracy) * len(inside) / len(counts)
    assert Reliability.of(probabilities, counts, num_bins).ece == pytest.approx(distance)


def test_sure_and_right_has_no_calibration_error() -> None:
    assert Reliability.of(np.eye(3), np.array([0, 1, 2])).ece == 0
    assert Reliability.of(np.eye(3), np.array([1, 2, 0])).ece == 1


def test_risk_is_the_share_of_mistakes_among_the_most_confident() -> None:
    random = np.random.default_rng(0)
    confidence, right = random.permutation(50) / 50, random.random(50) < 0.6
    ranked = sorted(zip(confidence, right, strict=True), reverse=True)
    by_hand = [sum(not is_right for _, is_right in ranked[:k]) / k for k in range(1, 51)]
    assert risk_by_coverage(confidence, right).tolist() == pytest.approx(by_hand)


def test_the_order_of_equally_confident_photos_does_not_matter() -> None:
    confidence = np.array([0.9, 0.5, 0.5, 0.5, 0.5])
    right = np.array([True, True, False, False, True])
    risk = risk_by_coverage(confidence, right)
    assert risk.tolist() == pytest.approx([0, 0.25, 1 / 3, 3 / 8, 2 / 5])
    again = [0, 3, 2, 4, 1]
    assert risk_by_coverage(confidence[again], right[again]).tolist() == pytest.approx(risk.tolist())
