"""Temperature and ranges: against a grid and a growth written out, and the promise on photos that were not fitted."""

import math

import numpy as np
import pytest

from bintally.calibration import Calibration, fit_temperature, fit_thresholds, range_scores, scale
from bintally.scores import nll_of


def draw_photos(num: int, *, sharpen: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities whose counts are drawn from them, and then made too sure by a factor on their logits."""
    random = np.random.default_rng(seed)
    true = random.dirichlet(np.full(6, 0.6), num)
    counts = (true.cumsum(axis=1) < random.random((num, 1))).sum(axis=1).clip(max=5)
    return scale(true, 1 / sharpen).astype(np.float32), counts


def calibration(**values: object) -> Calibration:
    known = {
        "temperature": 2.0,
        "thresholds": {"0.9": 0.8},
        "model_version": "0123456789ab",
        "source": "file:///bins",
        "split": "val",
        "split_by": "grouped",
        "num_images": 10,
    }
    return Calibration(**(known | values))  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_scaling_is_the_softmax_of_scaled_logits(temperature: float) -> None:
    logits = np.random.default_rng(0).normal(size=(20, 6))
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = np.exp(logits / temperature)
    assert np.allclose(scale(softmax, temperature), wanted / wanted.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("sharpen", [0.5, 1.0, 2.5])
def test_the_temperature_undoes_what_made_the_model_too_sure(sharpen: float) -> None:
    probabilities, counts = draw_photos(20_000, sharpen=sharpen)
    assert fit_temperature(probabilities, counts) == pytest.approx(sharpen, rel=0.05)


def test_no_temperature_of_a_grid_is_better() -> None:
    probabilities, counts = draw_photos(300, sharpen=1.7)
    best = nll_of(scale(probabilities, fit_temperature(probabilities, counts)), counts).mean()
    grid = [nll_of(scale(probabilities, one), counts).mean() for one in np.geomspace(0.05, 20, 400)]
    assert best <= min(grid) + 1e-9


def test_a_model_that_is_always_sure_and_right_gets_the_least_temperature() -> None:
    assert fit_temperature(scale(np.eye(3), 5.0), np.array([0, 1, 2])) == pytest.approx(1 / 20, rel=1e-3)


def test_no_photo_gives_no_temperature() -> None:
    with pytest.raises(ValueError, match="no photo"):
        fit_temperature(np.zeros((0, 6)), np.zeros(0, np.int64))


def grow(row: np.ndarray, threshold: float) -> set[int]:
    """The range of one photo, grown while it has at most the threshold of the probability."""
    low = high = int(row.argmax())
    while row[low : high + 1].sum() <= threshold and (low > 0 or high < len(row) - 1):
        below = row[low - 1] if low > 0 else -1
        above = row[high + 1] if high < len(row) - 1 else -1
        low, high = (low - 1, high) if below >= above else (low, high + 1)
    return set(range(low, high + 1))


@pytest.mark.parametrize("threshold", [0.0, 0.31, 0.6, 0.87, 1.0])
def test_ranges_are_grown_from_the_most_probable_count(threshold: float) -> None:
    probabilities = draw_photos(300)[0].astype(np.float64)
    low, high = calibration(thresholds={"0.9": threshold}).ranges(probabilities, "0.9")
    for row, first, last in zip(probabilities, low, high, strict=True):
        assert set(range(first, last + 1)) == grow(row, threshold)


def test_the_most_probable_count_is_always_in_its_range() -> None:
    probabilities = draw_photos(50)[0]
    assert (range_scores(probabilities)[np.arange(50), probabilities.argmax(axis=1)] == 0).all()


@pytest.mark.parametrize("sharpen", [1.0, 3.0])
def test_ranges_hold_as_often_as_promised_on_other_photos(sharpen: float) -> None:
    """Also when the probabilities are far too sure: the promise needs no good model."""
    fitted, counts = draw_photos(4_000, sharpen=sharpen)
    others, expected = draw_photos(20_000, sharpen=sharpen, seed=1)
    thresholds = fit_thresholds(fitted, counts)
    assert list(thresholds) == ["0.8", "0.9", "0.95"]
    for target in ("0.9", "0.95"):
        low, high = calibration(thresholds=thresholds).ranges(others, target)
        held = ((low <= expected) & (expected <= high)).mean()
        assert float(target) - 0.015 <= held <= float(target) + 0.04


@pytest.mark.parametrize("sharpen", [0.5, 1.0, 3.0])
def test_the_range_of_nine_in_ten_holds_within_two_points_on_the_other_half(sharpen: float) -> None:
    """With everything fitted on one half, as an evaluation does, whether the model was too sure or not sure enough."""
    probabilities, counts = draw_photos(8_000, sharpen=sharpen)
    fitted, other = slice(0, 4_000), slice(4_000, 8_000)
    temperature = fit_temperature(probabilities[fitted], counts[fitted])
    thresholds = fit_thresholds(scale(probabilities[fitted], temperature), counts[fitted])
    found = calibration(temperature=temperature, thresholds=thresholds)
    low, high = found.ranges(found.apply(probabilities[other]), "0.9")
    held = ((low <= counts[other]) & (counts[other] <= high)).mean()
    assert held == pytest.approx(0.9, abs=0.02)


def test_too_few_photos_promise_nothing_but_the_whole_range() -> None:
    probabilities, counts = draw_photos(8)
    thresholds = fit_thresholds(probabilities, counts, (0.9,))
    low, high = calibration(thresholds=thresholds).ranges(probabilities, "0.9")
    assert (low == 0).all()
    assert (high == 5).all()


def test_the_answer_does_not_change_with_the_temperature() -> None:
    probabilities = draw_photos(50)[0]
    assert (calibration().apply(probabilities).argmax(axis=1) == probabilities.argmax(axis=1)).all()


@pytest.mark.parametrize("values", [{"temperature": 0.0}, {"temperature": math.inf}, {"thresholds": {"0.9": 1.1}}])
def test_values_that_make_no_sense_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        calibration(**values)
