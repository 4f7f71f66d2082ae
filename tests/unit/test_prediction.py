"""What one number to say of a distribution: each is the best by its own measure."""

import numpy as np
import pytest

from bintally.prediction import Prediction


def random_distributions(num: int = 500, num_classes: int = 6) -> np.ndarray:
    return np.random.default_rng(0).dirichlet([0.4] * num_classes, num)


def test_each_number_is_the_best_by_its_measure() -> None:
    distribution = random_distributions()
    prediction = Prediction(distribution)
    levels = np.arange(6)
    error = levels[:, None] - levels[None]  # expected count, said count
    for said, cost in [
        (prediction.counted, error != 0),
        (prediction.rounded_mean, error**2),
        (prediction.median, abs(error)),
    ]:
        costs = distribution @ cost  # of each number that could be said
        np.testing.assert_allclose(costs[np.arange(len(said)), said], costs.min(axis=1), atol=1e-12)
        assert said.dtype == np.int64


def test_the_three_can_differ() -> None:
    prediction = Prediction(np.array([[0.4, 0.05, 0.1, 0.05, 0.0, 0.4]]))
    assert prediction.counted.tolist() == [0]
    assert prediction.expected.tolist() == pytest.approx([2.4])
    assert prediction.rounded_mean.tolist() == [2]
    assert prediction.median.tolist() == [2]
    assert Prediction(np.array([[0.45, 0.06, 0.0, 0.0, 0.0, 0.49]])).median.tolist() == [1]


@pytest.mark.parametrize("count", range(6))
def test_of_a_sure_count_all_are_that_count(count: int) -> None:
    prediction = Prediction(np.eye(6, dtype=np.float32)[[count]])
    assert [int(one[0]) for one in (prediction.counted, prediction.rounded_mean, prediction.median)] == [count] * 3


def test_rows_that_sum_to_less_than_one_by_rounding_stay_in_range() -> None:
    assert Prediction(np.array([[0.0, 0.0, 0.49999]])).median.tolist() == [2]


def test_no_photos_no_numbers() -> None:
    prediction = Prediction(np.empty((0, 6)))
    assert [one.shape for one in (prediction.counted, prediction.expected, prediction.median)] == [(0,)] * 3
