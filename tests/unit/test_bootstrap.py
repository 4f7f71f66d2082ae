"""Intervals: of whole blocks of neighbours, the same for the same seed, and as wide as theory has them."""

import math

import numpy as np
import pytest

from bintally.scores import confusion_of, figures_of
from train.bootstrap import BLOCK_IDS, Bootstrap, find_blocks, intervals_of


def padded(numbers: list[int]) -> list[str]:
    return [f"{number:05d}" for number in numbers]


def intervals(ids: list[str], counts: np.ndarray, counted: np.ndarray, **options: int) -> dict[str, list[float]]:
    return intervals_of(ids, counts, counted, np.abs(counts - counted) / 2, 3, Bootstrap(**options))


def test_neighbours_share_a_block() -> None:
    blocks = find_blocks([*padded([1, 8, 9, 16, 17]), "9", "shelf-1", "shelf-2"])
    assert blocks[0] == blocks[1] != blocks[2] == blocks[3] != blocks[4]
    assert len(set(blocks.tolist())) == 6  # "9" is of another set than "00009"
    assert sorted(set(blocks.tolist())) == list(range(6))


def test_the_figures_of_resamples_are_those_of_their_photos() -> None:
    """The same draws of blocks, with the photos themselves put together."""
    random = np.random.default_rng(1)
    ids = padded(sorted(random.choice(np.arange(1, 200), 60, replace=False).tolist()))
    counts, counted = random.integers(0, 3, 60), random.integers(0, 3, 60)
    found = intervals(ids, counts, counted, num_resamples=40, seed=5)
    blocks = find_blocks(ids)
    draws = np.random.default_rng(5)
    accuracies, nlls, kappas = [], [], []
    for _ in range(40):
        chosen = draws.integers(blocks.max() + 1, size=blocks.max() + 1)
        rows = np.concatenate([np.flatnonzero(blocks == block) for block in chosen])
        accuracies.append((counts[rows] == counted[rows]).mean())
        nlls.append((np.abs(counts - counted) / 2)[rows].mean())
        kappas.append(float(figures_of(confusion_of(counts[rows], counted[rows], 3))["quadratic_kappa"]))
    for name, values in (("accuracy", accuracies), ("nll", nlls), ("quadratic_kappa", kappas)):
        assert found[name] == pytest.approx(np.percentile(values, [2.5, 97.5]).tolist())


def test_the_same_seed_gives_the_same_intervals() -> None:
    ids, counts = padded(list(range(1, 401))), np.arange(400) % 3
    counted = np.where(np.arange(400) % 5 < 2, counts, 0)
    first, again, other = (intervals(ids, counts, counted, num_resamples=50, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first["rmse"] != other["rmse"]


def test_independent_photos_get_the_interval_of_a_share() -> None:
    random = np.random.default_rng(0)
    right = random.random(4_000) < 0.7
    counts = np.ones(4_000, np.int64)
    ids = padded([1 + BLOCK_IDS * number for number in range(4_000)])
    low, high = intervals(ids, counts, np.where(right, 1, 0))["accuracy"]
    error = math.sqrt(0.7 * 0.3 / 4_000)
    assert (low + high) / 2 == pytest.approx(right.mean(), abs=0.1 * error)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_neighbours_that_go_wrong_together_widen_the_interval() -> None:
    right = np.repeat(np.random.default_rng(0).random(250) < 0.7, BLOCK_IDS)
    counts = np.ones(2_000, np.int64)
    together = intervals(padded(list(range(1, 2_001))), counts, np.where(right, 1, 0))["accuracy"]
    apart = intervals(padded([1 + BLOCK_IDS * n for n in range(2_000)]), counts, np.where(right, 1, 0))["accuracy"]
    assert together[1] - together[0] > 2.5 * (apart[1] - apart[0])  # the root of 8 is 2.8


def test_counts_have_intervals_of_their_own() -> None:
    counts = np.array([0, 0, 0, 0, 2, 2])
    found = intervals(padded([1, 9, 17, 25, 33, 41]), counts, np.array([0, 0, 0, 0, 0, 0]))["per_count"]
    assert found == {"0": {"accuracy": [1, 1], "rmse": [0, 0]}, "2": {"accuracy": [0, 0], "rmse": [2, 2]}}
