"""Probabilities that can be trusted: one temperature, and ranges of counts that hold the expected one often enough.

Temperature scaling is that of Guo et al. 2017 (arXiv 1706.04599). The ranges are split conformal prediction with the
adaptive score of Romano, Sesia and Candes 2020 (arXiv 2006.02544) on nested sets (Gupta et al. 2022, arXiv 1910.10562)
that are intervals: from the most probable count, a range grows to whichever neighbour is likelier.

On photos like those that it was fitted on, a range of coverage 0.9 holds the expected count of 90 % of them or more,
whatever the model. It does so over all photos together, not for each count by itself. The temperature and the
thresholds come from the same photos; one number hardly spoils the promise, and an evaluation says how much of it holds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from jaxtyping import Float, Int
from pydantic import ConfigDict

from bintally.scores import MIN_PROBABILITY, Counts, Probabilities, nll_of
from bintally.verify import VerifyThresholds

COVERAGES: Final = (0.8, 0.9, 0.95)
TOLD: Final = "0.9"
"""Coverage of the range that is told with a count, and outside of which no record is called a match."""
MAX_SCALE: Final = 20.0  # temperatures lie in 1/20..20
_STEPS: Final = 40  # of the golden section: the temperature to 8 digits, more than its probabilities have


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What was fitted on photos that the weights were not trained on."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    temperature: float
    """Logits are divided by it; above 1 the model was too sure."""
    thresholds: dict[str, float]
    """By coverage ("0.9"): a range grows while the counts in it have at most this much probability."""
    model_version: str
    """Of the weights that it belongs to."""
    source: str
    """Bucket of the photos."""
    split: str
    split_by: str
    """How the ids of the bucket were split; by `hash`, photos have siblings in training, and this promises too much."""
    num_images: int
    verify: VerifyThresholds | None = None
    """Limits of p(match) for records; None in folders written before there were any."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0 and finite, not {self.temperature}")
        if not all(0 <= threshold <= 1 for threshold in self.thresholds.values()):
            raise ValueError(f"thresholds must lie in 0..1, not {self.thresholds}")
        if TOLD not in self.thresholds:
            raise ValueError(f"thresholds must hold one for {TOLD!r}, not {sorted(self.thresholds)} alone")

    def apply(self, probabilities: Probabilities) -> Probabilities:
        """The calibrated probabilities; the most probable count stays the same."""
        return scale(probabilities, self.temperature)

    def ranges(
        self, calibrated: Probabilities, coverage: str
    ) -> tuple[Int[np.ndarray, " images"], Int[np.ndarray, " images"]]:
        """The least and the largest count of each range, for one of the coverages of `thresholds`."""
        inside = range_scores(calibrated) <= self.thresholds[coverage]
        return inside.argmax(axis=1), inside.shape[1] - 1 - inside[:, ::-1].argmax(axis=1)


def scale(probabilities: Probabilities, temperature: float) -> Float[np.ndarray, "images classes"]:
    """The softmax of the logits divided by a temperature, which needs no logits: their logarithms do as well."""
    logits = np.log(np.maximum(probabilities.astype(np.float64), MIN_PROBABILITY)) / temperature
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]  # numpy's Any


def fit_temperature(probabilities: Probabilities, counts: Counts) -> float:
    """The temperature of the least mean NLL, by golden-section search: the NLL is convex in 1/temperature.

    Raises:
        ValueError: there is no photo.
    """
    if not len(counts):
        raise ValueError("a temperature cannot be fitted on no photo")

    def cost(log_temperature: float) -> float:
        return float(nll_of(scale(probabilities, math.exp(log_temperature)), counts).mean())

    low, high = -math.log(MAX_SCALE), math.log(MAX_SCALE)
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    left_cost, right_cost = cost(left), cost(right)
    for _ in range(_STEPS):
        if left_cost <= right_cost:
            high, right, right_cost = right, left, left_cost
            left = high - ratio * (high - low)
            left_cost = cost(left)
        else:
            low, left, left_cost = left, right, right_cost
            right = low + ratio * (high - low)
            right_cost = cost(right)
    return math.exp((low + high) / 2)


def range_scores(probabilities: Probabilities) -> Float[np.ndarray, "images classes"]:
    """For each count, how much probability the range has before the count joins it; 0 for the most probable one.

    A tie goes to the lower neighbour.
    """
    num_images, num_classes = probabilities.shape
    rows = np.arange(num_images)
    padded = np.pad(probabilities.astype(np.float64), ((0, 0), (1, 1)), constant_values=-1.0)  # beyond the ends
    low = high = probabilities.argmax(axis=1)
    scores = np.zeros((num_images, num_classes))
    mass = padded[rows, low + 1]
    for _ in range(num_classes - 1):
        below, above = padded[rows, low], padded[rows, high + 2]
        down = below >= above
        low, high = low - down, high + ~down
        scores[rows, np.where(down, low, high)] = np.minimum(mass, 1.0)
        mass = mass + np.maximum(below, above)
    return scores


def fit_thresholds(
    calibrated: Probabilities, counts: Counts, coverages: Sequence[float] = COVERAGES
) -> dict[str, float]:
    """The ceil((n + 1) * coverage)-th least score of the expected counts; 1, the whole range, for too few photos."""
    scores = np.sort(np.take_along_axis(range_scores(calibrated), counts[:, None], axis=1)[:, 0])
    ranks = {coverage: math.ceil((len(scores) + 1) * coverage) for coverage in coverages}
    return {str(coverage): float(scores[rank - 1]) if rank <= len(scores) else 1.0 for coverage, rank in ranks.items()}
