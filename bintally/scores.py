"""Figures of counted photos: pure functions of arrays, none of which knows a model.

Probabilities are of each count 0..classes-1, a row per photo. Shares lie in 0..1, errors are in items, NLL in nats.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int

from bintally.prediction import Prediction

MIN_PROBABILITY: Final = 1e-12  # 27.6 nats; one sure mistake must not make the mean infinite
NUM_BINS: Final = 15  # of confidence, as in Guo et al. 2017

Probabilities = Float[np.ndarray, "images classes"]
Counts = Int[np.ndarray, " images"]


def decode_argmax(probabilities: Probabilities) -> Counts:
    """The most probable count: best for accuracy."""
    return Prediction(probabilities).counted


def decode_mean(probabilities: Probabilities) -> Counts:
    """The mean of the distribution, rounded half up: best for RMSE among whole numbers."""
    return Prediction(probabilities).rounded_mean


def decode_median(probabilities: Probabilities) -> Counts:
    """The least count with at least half of the probability up to it: best for MAE."""
    return Prediction(probabilities).median


DECODERS: Final[dict[str, Callable[[Probabilities], Counts]]] = {
    "argmax": decode_argmax,
    "mean": decode_mean,
    "median": decode_median,
}
"""Answers from one distribution, each best for another figure."""


def confusion_of(counts: Counts, counted: Counts, num_classes: int) -> Int[np.ndarray, "expected counted"]:
    """Number of photos by expected count (rows) and counted (columns)."""
    cells = np.bincount(counts * num_classes + counted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def figures_of(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """accuracy, within_one, rmse, mae and quadratic_kappa of confusion matrices (..., expected, counted).

    Kappa is 0 where it is not defined: where all photos have one expected and the same counted number.
    """
    levels = np.arange(confusion.shape[-1])
    error = np.abs(levels[None, :] - levels[:, None])
    total = confusion.sum(axis=(-2, -1))
    squared = (confusion * error**2).sum(axis=(-2, -1))
    chance = np.einsum("...e,...c,ec->...", confusion.sum(axis=-1), confusion.sum(axis=-2), error**2) / total
    figures = {
        "accuracy": (confusion * (error == 0)).sum(axis=(-2, -1)) / total,
        "within_one": (confusion * (error <= 1)).sum(axis=(-2, -1)) / total,
        "rmse": np.sqrt(squared / total),
        "mae": (confusion * error).sum(axis=(-2, -1)) / total,
        "quadratic_kappa": 1 - np.divide(squared, chance, out=np.ones_like(squared, float), where=chance > 0),
    }
    return {name: np.asarray(values) for name, values in figures.items()}


def nll_of(probabilities: Probabilities, counts: Counts) -> Float[np.ndarray, " images"]:
    """Negative log-likelihood of each expected count; what float32 rounds to 0 counts as MIN_PROBABILITY."""
    taken = np.take_along_axis(probabilities, counts[:, None], axis=1)[:, 0].astype(np.float64)
    return -np.log(np.maximum(taken, MIN_PROBABILITY))


@dataclass(frozen=True, kw_only=True, slots=True)
class Reliability:
    """Confidence (the probability of the most probable count) beside accuracy, in bins of equal width."""

    num_images: Int[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]
    """Mean of the bin; 0 where it is empty."""
    accuracy: Float[np.ndarray, " bins"]
    """Share of the bin; 0 where it is empty."""

    @classmethod
    def of(cls, probabilities: Probabilities, counts: Counts, num_bins: int = NUM_BINS) -> "Reliability":
        """Sort the photos into the bins [0, 1/n), [1/n, 2/n) ... [1 - 1/n, 1]."""
        confidence = probabilities.max(axis=1).astype(np.float64)
        right = probabilities.argmax(axis=1) == counts
        place = np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)
        num_images = np.bincount(place, minlength=num_bins)
        sums = (np.bincount(place, weights=values, minlength=num_bins) for values in (confidence, right))
        mean_confidence, accuracy = (total / np.maximum(num_images, 1) for total in sums)
        return cls(num_images=num_images, confidence=mean_confidence, accuracy=accuracy)

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean distance of confidence and accuracy, weighted by the photos."""
        distance = np.abs(self.confidence - self.accuracy)
        return float(distance @ self.num_images / self.num_images.sum())


def risk_by_coverage(
    confidence: Float[np.ndarray, " images"], right: Bool[np.ndarray, " images"]
) -> Float[np.ndarray, " images"]:
    """Share of mistakes among the k most confident photos, for k = 1..images; their mean is the AURC.

    Photos of equal confidence share their mistakes, so that their order changes nothing.
    """
    order = np.argsort(-confidence, kind="stable")
    _, group, size = np.unique(-confidence[order], return_inverse=True, return_counts=True)
    mistakes: np.ndarray = np.bincount(group, weights=~right[order]) / size
    return mistakes[group].cumsum() / np.arange(1, len(right) + 1)
